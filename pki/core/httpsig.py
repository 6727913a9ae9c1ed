"""Signed HTTP requests (RFC 9421, Ed25519) with the body's digest (RFC 9530): both sides of one profile."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import exceptions
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
COMMANDS = ("idempotency-key", "supersedes", "respond-by", "last-event-id")
"""Header fields that change what a request does: signed after the others whenever they are there."""
MAX_AGE = timedelta(seconds=300)
SKEW = timedelta(seconds=30)

_PARAMETERS = {"created", "keyid", "alg", "nonce"}
_NONCE = re.compile(r"[0-9a-f]{32}")
_KEY_ID = re.compile(r"[0-9a-f]{32}")

# The one way of writing that our own clients use. Whatever is written otherwise, the library reads: it takes the
# tenfold time, and the same signatures.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<authority>[a-z0-9.-]+(?::(?P<port>[1-9][0-9]{1,4}))?)"
    r"(?P<path>/[A-Za-z0-9._~!$&'()*+,;=:@/-]*)(?:\?(?P<query>[A-Za-z0-9._~!$&'()*+,;=:@/?%-]*))?"
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_INPUT = re.compile(
    r"kmb=(?P<signed>\((?P<components>[a-z@\" -]+)\)"
    r"(?:;created=(?P<created>0|[1-9][0-9]{0,11})|;keyid=\"(?P<keyid>[0-9a-f]{32})\"|;alg=\"(?P<alg>ed25519)\""
    r"|;nonce=\"(?P<nonce>[0-9a-f]{32})\"){4})"
)
_SIGNATURE = re.compile(r"kmb=:(?P<signature>[A-Za-z0-9+/]{86}==):")
_DIGEST = re.compile(r"sha-(?P<bits>256|512)=:(?P<digest>[A-Za-z0-9+/]{43}=|[A-Za-z0-9+/]{86}==):")
_FIELD = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_METHOD = re.compile(r"[A-Z]+")


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
    plain = _without(headers, "content-digest", "signature-input", "signature")
    given = (method.upper(), url, plain, body, key_id, sign, created, nonce)
    return _signed_quickly(*given) or _signed_by_the_library(*given)


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
    given = (method.upper(), url, headers, body, resolve, now, max_age, skew)
    return _verified_quickly(*given) or _verified_by_the_library(*given)


def claimed_key(headers: Mapping[str, str]) -> str | None:
    """Return the id of the key that signed a request, as it says itself; None where it says so in another way.

    ``headers`` have names in lower case. It is worth a look-up and nothing else.
    """
    found = _INPUT.fullmatch(headers.get("signature-input", ""))
    return found["keyid"] if found else None


def _signed_quickly(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    key_id: str,
    sign: Callable[[bytes], bytes],
    created: datetime,
    nonce: str,
) -> dict[str, str] | None:
    """Return what `sign_request` returns for what is written in our one way, else None."""
    if not _KEY_ID.fullmatch(key_id) or not _NONCE.fullmatch(nonce) or created.tzinfo is None:
        return None
    digest = f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
    fields = {name.lower(): value for name, value in headers.items()} | {"content-digest": digest}
    names = _covered(fields)
    components = " ".join(f'"{name}"' for name in names)
    signed = f'({components});created={int(created.timestamp())};keyid="{key_id}";alg="ed25519";nonce="{nonce}"'
    base = _base(method, url, fields, names, signed)
    if base is None:
        return None
    signature = base64.b64encode(sign(base)).decode()
    return {"Content-Digest": digest, "Signature-Input": f"{LABEL}={signed}", "Signature": f"{LABEL}=:{signature}:"}


def _verified_quickly(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    resolve: Callable[[str], Ed25519PublicKey],
    now: datetime,
    max_age: timedelta,
    skew: timedelta,
) -> SignedRequest | None:
    """Return who signed a request that is written in our one way and right; None for all others, wrong ones too.

    It only ever says yes. What is wrong with a request, and what is right but written otherwise, the library says.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    told = _INPUT.fullmatch(fields.get("signature-input", ""))
    signature = _SIGNATURE.fullmatch(fields.get("signature", ""))
    digest = _DIGEST.fullmatch(fields.get("content-digest", ""))
    # A repeated parameter leaves another one out.
    if not told or not signature or not digest or len(fields) != len(headers) or None in told.groups():
        return None
    names = _covered(fields)
    base = _base(method, url, fields, names, told["signed"])
    age = now.timestamp() - int(told["created"])
    right = told["components"] == " ".join(f'"{name}"' for name in names)
    if base is None or not right or not -skew.total_seconds() <= age <= max_age.total_seconds():
        return None
    algorithm = hashlib.sha256 if digest["bits"] == "256" else hashlib.sha512
    try:
        if not hmac.compare_digest(base64.b64decode(digest["digest"], validate=True), algorithm(body).digest()):
            return None
        key = resolve(told["keyid"])
        key.verify(base64.b64decode(signature["signature"], validate=True), base)
    except (exceptions.InvalidSignature, binascii.Error):
        return None
    return SignedRequest(told["keyid"], told["nonce"], datetime.fromtimestamp(int(told["created"]), tz=UTC))


def _base(method: str, url: str, fields: Mapping[str, str], names: tuple[str, ...], signed: str) -> bytes | None:
    """Return the signature base (RFC 9421 §2.5) where every value stands for itself; None where one needs more care."""
    parts = _URL.fullmatch(url)
    if parts is None or parts["port"] == _DEFAULT_PORTS[parts["scheme"]] or not _METHOD.fullmatch(method):
        return None
    query = parts["query"] or ""
    if _PERCENT.search(query):
        return None
    derived = {
        "@method": method,
        "@authority": parts["authority"],
        "@path": parts["path"],
        "@query": f"?{query}",
    }
    lines = []
    for name in names:
        value = derived.get(name) or fields[name]
        if not _FIELD.fullmatch(value):
            return None
        lines.append(f'"{name}": {value}\n')
    return f'{"".join(lines)}"@signature-params": {signed}'.encode()


def _signed_by_the_library(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    key_id: str,
    sign: Callable[[bytes], bytes],
    created: datetime,
    nonce: str,
) -> dict[str, str]:
    message = _Message(method, url, dict(headers))
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


def _verified_by_the_library(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    resolve: Callable[[str], Ed25519PublicKey],
    now: datetime,
    max_age: timedelta,
    skew: timedelta,
) -> SignedRequest:
    message = _Message(method, url, dict(headers))
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
