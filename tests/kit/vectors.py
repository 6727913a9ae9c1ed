"""Vectors: public ones (tests/vectors/public, the package cryptography-vectors), our own text files, and their run."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from textwrap import wrap

import cryptography_vectors
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import (
    certificates,
    crl,
    deposits,
    envelope,
    issuers,
    kem,
    keys,
    ocsp,
    officers,
    orders,
    packages,
    policy,
    receipts,
    requests,
    revocations,
    x509,
)
from pki.core.certificates import VerifiedCertificate
from pki.core.cmp import bodies, messages
from pki.core.cmp.protection import MacParameters
from pki.core.crl import Crl
from pki.core.ids import DepositId
from pki.core.profile import Profile
from pki.core.recipients import Recover
from pki.core.signatures import VerifyingKey
from pki.core.tenants import parse_address
from pki.core.x509 import CertificateKind

FOLDER = Path(__file__).parent.parent / "vectors"
FORMAT = "1"
ORDER = ("keymailbox-vector", "kind", "expect", "rule", "code", "why")


def public(name: str) -> dict[str, bytes]:
    """Return the values of a file of tests/vectors/public, decoded."""
    content = json.loads((FOLDER / "public" / f"{name}.json").read_text())
    return {key: b64decode(value) for key, value in content["vectors"].items()}


def answers(path: str) -> Iterator[dict[str, str]]:
    """Yield the cases of one of NIST's response files, ``name = value`` lines that start again with ``count``."""
    with cryptography_vectors.open_vector_file(path, "r") as lines:
        case: dict[str, str] = {}
        for line in lines:
            name, equals, value = line.partition(" = ")
            if name == "count" and case:
                yield case
                case = {}
            if equals:
                case[name] = value.strip()
        yield case


@dataclass(frozen=True)
class Vector:
    """One text file: what is said about an object, and its bytes."""

    header: Mapping[str, str]
    body: bytes

    def dump(self) -> str:
        """Return the file's text."""
        named = [key for key in ORDER if key in self.header]
        named += sorted(key for key in self.header if key not in ORDER)
        lines = [f"{key}: {self.header[key]}" for key in named]
        return "\n".join([*lines, "", *wrap(b64encode(self.body).decode(), 76), ""])


def load(path: Path) -> Vector:
    """Read a vector; a header line that is no ``key: value``, or one that is there twice, is an error."""
    head, blank, body = path.read_text().partition("\n\n")
    assert blank, path
    header: dict[str, str] = {}
    for line in head.splitlines():
        key, colon, value = line.partition(": ")
        assert colon, (path, line)
        assert key not in header, (path, line)
        header[key] = value
    assert header["keymailbox-vector"] == FORMAT
    return Vector(header, b64decode(body, validate=False))


def own() -> list[Path]:
    """Return our own vectors' files."""
    return sorted(path for expect in ("accepted", "refused") for path in (FOLDER / expect).glob("*.txt"))


def run(vector: Vector) -> bytes | None:
    """Do what the header says with the object; return what it holds, if anything, or raise what is wrong with it."""
    return _KINDS[vector.header["kind"]](vector)


def _key(name: str) -> Vector:
    return load(FOLDER / "keys" / f"{name}.txt")


def _now(vector: Vector) -> datetime:
    return datetime.fromisoformat(vector.header["now"])


def _profile(vector: Vector) -> Profile:
    return Profile(vector.header.get("profile", "strict"))


def _chain(vector: Vector) -> dict[str, bytes]:
    return {
        "issuing_der": _key(vector.header.get("issuing", "issuing")).body,
        "root_der": _key(vector.header.get("root", "root")).body,
    }


def _crl(vector: Vector) -> Crl | None:
    if "crl" not in vector.header:
        return None
    der = _key(vector.header["crl"]).body
    return crl.verify_crl(der, issuing_der=_chain(vector)["issuing_der"], now=_now(vector))


def _pinned(vector: Vector) -> VerifyingKey:
    return x509.identity_public_key(x509.parse_certificate(_key(vector.header["identity"]).body).spki)


def _private(vector: Vector) -> tuple[bytes, Recover]:
    algorithm, private = keys.load_private(_key(vector.header["private"]).body)
    ski = kem.ski(keys.spki(algorithm, keys.public_from_private(algorithm, private)))
    # An RSA key does not say its hash: what the recipient's entry says is believed here.
    return ski, lambda found, sent: keys.recover(found, private, sent)


def _deposit(vector: Vector) -> bytes:
    limit = int(vector.header.get("limit", deposits.MAX_DEPOSIT))
    parsed = deposits.parse_deposit(vector.body, max_size=limit)
    chain = _chain(vector)
    sender: VerifiedCertificate = certificates.check_stored(
        _key(vector.header["sender"]).body, kind=CertificateKind.IDENTITY, now=_now(vector), **chain
    )
    usable = x509.parse_certificate(_key(vector.header["recipient"]).body)
    verified = policy.verify_deposit(
        parsed, sender=sender, crl=_crl(vector), recipient_skis={usable.ski}, now=_now(vector)
    )
    return deposits.open_deposit(verified, *_private(vector)).key


def _envelope(vector: Vector) -> bytes:
    return envelope.unwrap(envelope.parse(vector.body, profile=_profile(vector)), *_private(vector))


def _package(vector: Vector) -> bytes:
    kind = Oid(vector.header["content-type"])
    material = packages.decode_package(kind, vector.body, profile=_profile(vector))
    policy.check_handover(material, recipient=parse_address(vector.header["address"]), now=_now(vector))
    return material.key


def _certificate(vector: Vector) -> None:
    certificates.check_listed(
        vector.body,
        _key(vector.header["request"]).body,
        address=parse_address(vector.header["address"]),
        kind=CertificateKind(vector.header["use"]),
        identity_key=_pinned(vector),
        crl=_crl(vector),
        now=_now(vector),
        **_chain(vector),
    )


def _list(vector: Vector) -> None:
    crl.verify_crl(vector.body, issuing_der=_chain(vector)["issuing_der"], now=_now(vector))


def _delta(vector: Vector) -> None:
    delta = crl.verify_delta(vector.body, issuing_der=_chain(vector)["issuing_der"], now=_now(vector))
    full = _key(vector.header["full"]).body
    issuing = _key(vector.header["full-issuing"]).body
    crl.apply_delta(crl.verify_crl(full, issuing_der=issuing, now=_now(vector)), delta)


def _question(vector: Vector) -> None:
    ocsp.issuer_of(ocsp.parse_request(vector.body), [_chain(vector)["issuing_der"]])


def _request(vector: Vector) -> None:
    requests.parse_request(vector.body).verify(_pinned(vector))


def _issuing_request(vector: Vector) -> None:
    issuers.parse_request(vector.body).verify()


def _cmp(vector: Vector) -> None:
    message = messages.parse(vector.body)
    bodies.read(message)
    if "secret" in vector.header:
        assert isinstance(message.algorithm, MacParameters)
        message.algorithm.verify(message.protection, vector.header["secret"].encode(), message.protected)


def _receipt(vector: Vector) -> None:
    receipts.parse_receipt(vector.body).verify(
        _pinned(vector),
        recipient=parse_address(vector.header["address"]),
        deposit=DepositId(vector.header["deposit-id"]),
        sha512=bytes.fromhex(vector.header["deposit-sha512"]),
    )


def _revocation(vector: Vector) -> None:
    revocations.parse_revocation(vector.body).verify(_pinned(vector))


def _officers(vector: Vector) -> None:
    officers.parse_officers(vector.body).verify(_chain(vector)["issuing_der"])


def _listed(vector: Vector) -> officers.Officers:
    return officers.parse_officers(_key(vector.header["officers"]).body).verify(_chain(vector)["issuing_der"])


def _order(vector: Vector) -> None:
    orders.parse_order(vector.body).ordered_by(_listed(vector))


def _approval(vector: Vector) -> None:
    approval, given = orders.parse_approval(vector.body), orders.parse_order(_key(vector.header["order"]).body)
    orders.verify_order(given, approval, _listed(vector), now=_now(vector))


_KINDS: dict[str, Callable[[Vector], bytes | None]] = {
    "deposit": _deposit,
    "envelope": _envelope,
    "package": _package,
    "certificate": _certificate,
    "crl": _list,
    "crl-delta": _delta,
    "ocsp-request": _question,
    "request": _request,
    "issuing-request": _issuing_request,
    "cmp": _cmp,
    "receipt": _receipt,
    "revocation": _revocation,
    "officers": _officers,
    "order": _order,
    "approval": _approval,
}


def digest(content: bytes) -> str:
    """Return how a header names the content that an object holds."""
    return hashlib.sha256(content).hexdigest()
