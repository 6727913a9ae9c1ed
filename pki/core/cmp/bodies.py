"""What clients ask for by CMP: certificates (RFC 4211), confirmations and revocations, read into facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from cryptography.x509 import ObjectIdentifier as Oid
from cryptography.x509.oid import ExtensionOID

from pki.core import asn1, oids, signatures
from pki.core.cmp import types
from pki.core.cmp.messages import Message, name_of
from pki.core.cmp.types import Body
from pki.core.der import members
from pki.core.errors import AlgorithmError, ProfileError, SignatureError, demand
from pki.core.signatures import IDENTITY, SignatureAlgorithm, VerifyingKey

_MAX_CONTROLS = 4
_MAX_DIGEST = 64
_SEQUENCE = 0x30
_SIGNATURE, _KEY_ENCIPHERMENT, _KEY_AGREEMENT = 0xA1, 0xA2, 0xA3
_ENCRYPTED_CERTIFICATE = b"\x81\x01\x00"
"""POPOPrivKey: subsequentMessage, encrCert (RFC 4211 §4.2)."""
_CRL_REASON = Oid("2.5.29.21")  # RFC 5280 §5.3.1
_EXTENSIONS = {ExtensionOID.SUBJECT_ALTERNATIVE_NAME, ExtensionOID.KEY_USAGE, oids.SMIME_CAPABILITIES}
_HASHES: dict[Oid, str] = {oids.SHA256: "sha256", oids.SHA384: "sha384", oids.SHA512: "sha512"}

T = TypeVar("T")


@dataclass(frozen=True)
class Signed:
    """A signature over ``message`` and its algorithm; nothing is verified."""

    algorithm: SignatureAlgorithm
    message: bytes
    signature: bytes

    def verify(self, key: VerifyingKey) -> None:
        """Raise SignatureError unless ``key`` made it (rules SIG-006 and SIG-007)."""
        if key.algorithm is not self.algorithm:
            raise SignatureError("The signature is not of the algorithm of the signer's key", rule="SIG-007")
        try:
            key.verify(self.signature, self.message)
        except SignatureError:
            raise SignatureError(rule="SIG-006") from None


@dataclass(frozen=True)
class KeyRequest:
    """A request for one certificate (rules CMP-004 to CMP-006); Names and extensions' values are in DER.

    ``proof`` is the signature of the key itself; None asks that the certificate come encrypted to the key. ``old`` is
    the certificate that shall be replaced, by its issuer's Name and its serial number.
    """

    number: int
    subject_der: bytes
    spki: bytes
    not_before: datetime | None
    proof: Signed | None
    names: bytes | None
    usage: bytes | None
    capabilities: bytes | None
    old: tuple[bytes, int] | None


@dataclass(frozen=True)
class Confirmation:
    """What a client says of the certificate that it got: the hash, by ``hash`` where it is named, or a rejection."""

    number: int
    digest: bytes
    hash: str | None
    accepted: bool


@dataclass(frozen=True)
class RevocationWish:
    """Which certificate, by its issuer's Name in DER and its serial number, shall be revoked, and why."""

    issuer_der: bytes
    serial: int
    reason: int


def read(message: Message) -> KeyRequest | Confirmation | RevocationWish | Sequence[Oid] | bytes:
    """Return what a message says: of a p10cr the PKCS #10, and of what only a CA says the content as it is."""
    if message.kind in (Body.IR, Body.CR, Body.KUR):
        return parse_key_request(message.content)
    reader = _READERS.get(message.kind)
    return message.content if reader is None else reader(message.content)


def parse_key_request(content: bytes) -> KeyRequest:
    """Return the one request of an ir, cr or kur; ``content`` is what lies under the body's tag."""
    message = _one(types.CertRequestMessage, content, "certificate request")
    request_der = asn1.encode(message.request)
    request = asn1.decode(types.CertRequest, request_der, what="The certificate request")
    demand(-1 <= request.number < 1 << 31, "CMP-004", "The number of the certificate request is out of bounds")
    template = request.template
    plain = (template.version, template.serial, template.signature, template.issuer_id, template.subject_id)
    demand(template.version in (None, 2), "CMP-005", "The template is not for a certificate of version 3")
    demand(plain[1:] == (None,) * 4, "CMP-005", "The template names what only the CA decides")
    subject, key = template.subject, template.public_key
    if not isinstance(subject, asn1.TLV) or key is None:
        raise ProfileError("The template does not name subject and key", rule="CMP-005")
    extensions = _extensions(template.extensions or [], _EXTENSIONS)
    validity = template.validity
    return KeyRequest(
        number=request.number,
        subject_der=asn1.encode(subject),
        spki=asn1.encode(key),
        not_before=None if validity is None or validity.not_before is None else _time(validity.not_before),
        proof=_proof(message.proof, request_der),
        names=extensions.get(ExtensionOID.SUBJECT_ALTERNATIVE_NAME),
        usage=extensions.get(ExtensionOID.KEY_USAGE),
        capabilities=extensions.get(oids.SMIME_CAPABILITIES),
        old=_old(request.controls or []),
    )


def parse_confirmation(content: bytes) -> Confirmation:
    """Return what a certConf says; an empty one rejects all (RFC 9810 §5.3.18)."""
    if content == b"\x30\x00":
        return Confirmation(0, b"", None, accepted=False)
    status = _one(types.CertStatus, content, "confirmation")
    demand(len(status.digest) <= _MAX_DIGEST, "CMP-010", "The certificate's hash is too long")
    hashed = None
    if status.algorithm is not None:
        hashed = _HASHES.get(status.algorithm.algorithm)
        if hashed is None:
            raise AlgorithmError(
                "The certificate's hash is not of SHA-256, SHA-384 or SHA-512",
                on=oids.name(status.algorithm.algorithm),
                rule="CMP-010",
            )
    # Accepted, or accepted with changes, which is for the client to say.
    accepted = status.status is None or status.status.status in (0, 1)
    return Confirmation(status.number, status.digest, hashed, accepted)


def parse_revocation(content: bytes) -> RevocationWish:
    """Return the one certificate that an rr is about."""
    details = _one(types.RevocationDetails, content, "revocation request")
    template = details.certificate
    if not isinstance(template.issuer, asn1.TLV) or template.serial is None:
        raise ProfileError("The revocation request does not name issuer and serial number", rule="CMP-004")
    found = _extensions(details.extensions or [], {_CRL_REASON})
    coded = found.get(_CRL_REASON)
    reason = 0 if coded is None else asn1.enumerated_number(coded, what="The revocation reason")
    return RevocationWish(asn1.encode(template.issuer), template.serial, reason)


def parse_information(content: bytes) -> list[Oid]:
    """Return what a genm asks for, by type."""
    listed = members(content, _SEQUENCE, most=_MAX_CONTROLS)
    return [asn1.decode(types.InfoTypeAndValue, one, what="A general message").kind for one in listed]


def _one(kind: type[T], content: bytes, what: str) -> T:
    listed = members(content, _SEQUENCE, most=2)
    demand(len(listed) == 1, "CMP-004", f"A message holds one {what}, not {len(listed)} or more")
    return asn1.decode(kind, listed[0], what=f"The {what}")


def _proof(proof: asn1.TLV | asn1.Null | None, request_der: bytes) -> Signed | None:
    if not isinstance(proof, asn1.TLV):
        raise ProfileError("Nothing proves possession of the key", rule="CMP-006")
    der = asn1.encode(proof)
    if der[0] in (_KEY_ENCIPHERMENT, _KEY_AGREEMENT):
        expected = bytes([der[0], len(_ENCRYPTED_CERTIFICATE)]) + _ENCRYPTED_CERTIFICATE
        demand(der == expected, "CMP-006", "Possession of an encryption key is proved by an encrypted certificate", der)
        return None
    demand(der[0] == _SIGNATURE, "CMP-006", "Possession is proved by a signature or an encrypted certificate", der)
    signed = asn1.decode(types.SignatureProof, asn1.retagged(_SEQUENCE, der), what="The proof of possession")
    demand(not signed.signature.padding_bits(), "CMP-006", "The signature's bits are not whole bytes")
    algorithm = signatures.algorithm_of(signed.algorithm, allowed=IDENTITY, rule="CMP-006")
    return Signed(algorithm, request_der, signed.signature.as_bytes())


def _extensions(listed: list[asn1.Extension], known: set[Oid]) -> dict[Oid, bytes]:
    found: dict[Oid, bytes] = {}
    for one in listed:
        if one.oid not in known or one.oid in found:
            raise ProfileError("An extension is unknown, or there twice", on=oids.name(one.oid), rule="CMP-005")
        found[one.oid] = one.value
    return found


def _old(controls: list[types.AttributeTypeAndValue]) -> tuple[bytes, int] | None:
    demand(len(controls) <= _MAX_CONTROLS, "CMP-005", f"There are more than {_MAX_CONTROLS} controls")
    for one in controls:
        if one.kind == types.OLD_CERTIFICATE:
            named = asn1.inner(types.CertId, one.value, what="The old certificate's name")
            return name_of(asn1.encode(named.issuer)), named.serial
    return None


def _time(moment: asn1.UTCTime | asn1.GeneralizedTime) -> datetime:
    return moment.as_datetime().replace(tzinfo=UTC)


_READERS: Mapping[Body, Callable[[bytes], Confirmation | RevocationWish | Sequence[Oid]]] = {
    Body.CERTCONF: parse_confirmation,
    Body.RR: parse_revocation,
    Body.GENM: parse_information,
}
