"""Signed HTTP requests (RFC 9421, Ed25519) with the body's digest (RFC 9530): both sides of one profile."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from http_message_signatures import (
    HTTPMessageSigner,
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
    InvalidSignature,
    VerifyResult,
    algorithms,
)
from http_message_signatures.exceptions import HTTPMessageSignaturesException

from pki.core.errors import AccessError, UsageError

LABEL = "kmb"
COMPONENTS = ("@method", "@authority", "@path", "@query", "content-digest")
"""What is signed, in this order; the digest covers an empty body too."""
COMMANDS = ("idempotency-key", "supersedes")
"""Header fields that change what a request does: signed after the others whenever they are there."""
MAX_AGE = timedelta(seconds=300)
SKEW = timedelta(seconds=30)

_PARAMETERS = {"created", "keyid", "alg", "nonce"}
_NONCE = re.compile(r"[0-9a-f]{32}")
_KEY_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class SignedRequest:
    """Who signed a request and when; only `verify_request` makes one. The caller spends the nonce."""

    key_id: str
    nonce: str
    created: datetime


def key_id(public_raw: bytes) -> str:
    """Return the name of an access key: the first 16 bytes of the SHA-256 of the raw 32 bytes, in hex."""
    if len(public_raw) != 32:
        raise UsageError("An Ed25519 public key has 32 bytes", on=f"{len(public_raw)} bytes")
    return hashlib.sha256(public_raw).digest()[:16].hex()


def sign_request(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    key_id: str,
    sign: Callable[[bytes], bytes],
    created: datetime,
    nonce: str,
) -> dict[str, str]:
    """Return the headers to add: Content-Digest, Signature-Input and Signature.

    ``url`` is absolute, as it goes out; ``sign`` makes an Ed25519 signature; ``nonce`` is 16 random bytes in hex.
    """
    message = _Message(method.upper(), url, _without(headers, "content-digest", "signature-input", "signature"))
    signer = HTTPMessageSigner(signature_algorithm=algorithms.ED25519)
    try:
        prepared = signer.prepare(
            message,
            key_id=key_id,
            created=created,
            nonce=nonce,
            label=LABEL,
            covered_component_ids=_covered(message.headers),
            body=body,
        )
        signer.apply(message, prepared, sign(prepared.signature_base))
    except HTTPMessageSignaturesException as error:
        raise UsageError("The request cannot be signed", on=str(error)[:200]) from None
    return {name: message.headers[name] for name in ("Content-Digest", "Signature-Input", "Signature")}


def verify_request(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    resolve: Callable[[str], Ed25519PublicKey],
    now: datetime,
    max_age: timedelta = MAX_AGE,
    skew: timedelta = SKEW,
) -> SignedRequest:
    """Verify a request's one signature, its age and its body; raise AccessError with a hint that says which failed.

    ``resolve`` returns the access key with an id, or raises; its error goes through as it is.
    """
    message = _Message(method.upper(), url, dict(headers))
    present = {name.lower() for name in headers}
    if not {"signature", "signature-input"} <= present:
        raise AccessError("The request is not signed", hint="sign the request (RFC 9421), or run kmb enroll")
    if "content-digest" not in present:
        raise AccessError("The request has no Content-Digest", hint="send a Content-Digest, for an empty body too")
    resolver = _Resolver(resolve)
    verifier = _Verifier(signature_algorithm=algorithms.ED25519, key_resolver=resolver)
    verifier.now, verifier.oldest, verifier.skew = now, max_age, skew
    try:
        results = verifier.verify(message, max_age=None)
    except (InvalidSignature, HTTPMessageSignaturesException):
        if resolver.error is not None:
            raise resolver.error from None
        raise AccessError(
            "The request's signature does not verify", hint=f"cover {' '.join(COMPONENTS)} with the enrolled key"
        ) from None
    result = _only(results, _covered(headers))
    try:
        verifier.verify_body(message, [result], body)
    except (InvalidSignature, HTTPMessageSignaturesException):
        raise AccessError(
            "The signature is for another body", hint="compute Content-Digest over the body as it is sent"
        ) from None
    parameters = result.parameters
    return SignedRequest(
        key_id=str(parameters["keyid"]),
        nonce=str(parameters["nonce"]),
        created=datetime.fromtimestamp(int(parameters["created"]), tz=UTC),
    )


@dataclass
class _Message:
    method: str
    url: str
    headers: dict[str, str]


class _Resolver(HTTPSignatureKeyResolver):
    """Keeps the error of a look-up, which the library would turn into its own."""

    def __init__(self, resolve: Callable[[str], Ed25519PublicKey]) -> None:
        self.resolve = resolve
        self.error: Exception | None = None

    def resolve_public_key(self, key_id: str) -> Ed25519PublicKey:
        try:
            if not _KEY_ID.fullmatch(key_id):
                raise AccessError("The key id is not one of ours", hint="keyid is 32 hex digits, see kmb whoami")
            return self.resolve(key_id)
        except Exception as error:
            self.error = error
            raise


class _Verifier(HTTPMessageVerifier):
    """Takes the time as a value instead of looking at a clock."""

    now: datetime
    oldest: timedelta
    skew: timedelta

    def validate_created_and_expires(self, sig_input: Any, max_age: timedelta | None = None) -> None:
        created = sig_input.params.get("created")
        if type(created) is not int or not 0 <= created < 1 << 40:
            raise AccessError("The signature has no creation time", hint="add the parameter created")
        age = self.now.timestamp() - created
        if age > self.oldest.total_seconds() or -age > self.skew.total_seconds():
            raise AccessError(
                "The signature is too old or from the future", on=f"{age:+.0f} s", hint="set this machine's clock"
            )


def _only(results: list[VerifyResult], names: tuple[str, ...]) -> VerifyResult:
    covered = tuple(f'"{name}"' for name in names)
    if len(results) != 1 or results[0].label != LABEL:
        raise AccessError("There is not exactly one signature", hint=f"label the signature {LABEL}")
    (result,) = results
    if tuple(result.covered_components)[:-1] != covered:
        raise AccessError("The signature does not cover what it must", hint=f"cover {' '.join(names)}")
    if set(result.parameters) != _PARAMETERS or not _NONCE.fullmatch(str(result.parameters["nonce"])):
        raise AccessError(
            "The signature's parameters are not ours", hint="send created, keyid, alg and a 32-digit nonce"
        )
    return result


def _covered(headers: Mapping[str, str]) -> tuple[str, ...]:
    present = {name.lower() for name in headers}
    return COMPONENTS + tuple(name for name in COMMANDS if name in present)


def _without(headers: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in names}
