"""Certificates of any issuer, as far as this tool needs them: whose they are, what they are called, which key."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Annotated

from cryptography import x509
from cryptography.hazmat import asn1 as library
from cryptography.x509.oid import ExtensionOID

from pki.core import asn1, oids
from pki.core.capabilities import Capabilities, parse_capabilities
from pki.core.errors import MalformedError
from pki.core.recipients import IssuerSerial
from pki.core.signing import SignerName
from pki.tenant.objects.outline import name_text

MAX_EXTENSIONS = 64
MAX_CERTIFICATE = 128 * 1024
"""Bytes; one that SLH-DSA-SHA2-256f signed has about 50,000."""


@dataclass(frozen=True)
class Foreign:
    """A certificate that is well formed; nothing of it is verified. ``ski`` is that of its extension, or empty.

    ``tbs`` is what was signed, ``usage`` and ``constraints`` its extensions (RFC 5280 §4.2.1.3, §4.2.1.9), ``unknown``
    the numbers of critical extensions that nothing here understands.
    """

    der: bytes
    subject_der: bytes
    issuer_der: bytes
    serial: int
    ski: bytes
    spki: bytes
    tbs: bytes
    signature_algorithm: asn1.AlgorithmIdentifier
    signature: bytes
    not_before: datetime
    not_after: datetime
    usage: x509.KeyUsage | None
    constraints: x509.BasicConstraints | None
    unknown: tuple[str, ...]
    capabilities_der: bytes | None

    @property
    def subject(self) -> str:
        """Whose it is, safe for a terminal."""
        return name_text(self.subject_der)

    @property
    def issuer(self) -> str:
        """Who says so, safe for a terminal."""
        return name_text(self.issuer_der)

    @property
    def self_issued(self) -> bool:
        """Whether subject and issuer are one."""
        return self.subject_der == self.issuer_der

    @property
    def issuer_serial(self) -> IssuerSerial:
        """Its name by issuer and serial (RFC 5652 §10.2.4)."""
        return IssuerSerial(self.issuer_der, self.serial)

    @property
    def signer_name(self) -> SignerName:
        """How an object that it signed may call it."""
        return SignerName(self.ski, self.issuer_der, self.serial)

    @cached_property
    def capabilities(self) -> Capabilities | None:
        """What its owner prefers; raises ProfileError."""
        return None if self.capabilities_der is None else parse_capabilities(self.capabilities_der)


@library.sequence
class _Tbs:
    """TBSCertificate of any version (RFC 5280 §4.1.2)."""

    version: Annotated[int | None, library.Explicit(0)]
    serial: int
    signature: asn1.AlgorithmIdentifier
    issuer: asn1.TLV
    validity: asn1.TLV
    subject: asn1.TLV
    public_key: asn1.SubjectPublicKeyInfo
    issuer_id: Annotated[asn1.BitString | None, library.Implicit(1)]
    subject_id: Annotated[asn1.BitString | None, library.Implicit(2)]
    extensions: Annotated[list[asn1.Extension] | None, library.Explicit(3)]


def parse(der: bytes) -> Foreign:
    """Return a certificate of RFC 5280, any version; raises MalformedError."""
    if len(der) > MAX_CERTIFICATE:
        raise MalformedError("The certificate is too large", on=f"{len(der)} bytes")
    outer = asn1.decode(asn1.Certificate, der, what="The certificate")
    if outer.signature.padding_bits():
        raise MalformedError("The certificate's signature is not of whole bytes")
    fields = asn1.inner(_Tbs, outer.tbs, what="The certificate")
    listed = fields.extensions or []
    if len(listed) > MAX_EXTENSIONS:
        raise MalformedError(f"A certificate has more than {MAX_EXTENSIONS} extensions")
    if asn1.encode(fields.signature) != asn1.encode(outer.signature_algorithm):
        raise MalformedError("The certificate names one signature algorithm inside and another outside")
    if fields.serial < 1:
        raise MalformedError("The certificate's serial number is not positive")
    try:
        found = x509.load_der_x509_certificate(der)
        extensions = {one.oid: one.value for one in found.extensions}
        starts, ends = found.not_valid_before_utc, found.not_valid_after_utc
    except _UNREADABLE as error:
        raise MalformedError("The certificate cannot be read", on=type(error).__name__) from None
    ski = extensions.get(ExtensionOID.SUBJECT_KEY_IDENTIFIER)
    usage = extensions.get(ExtensionOID.KEY_USAGE)
    limits = extensions.get(ExtensionOID.BASIC_CONSTRAINTS)
    said = extensions.get(oids.SMIME_CAPABILITIES)
    return Foreign(
        der=der,
        subject_der=asn1.encode(fields.subject),
        issuer_der=asn1.encode(fields.issuer),
        serial=fields.serial,
        ski=ski.digest if isinstance(ski, x509.SubjectKeyIdentifier) else b"",
        spki=asn1.encode(fields.public_key),
        tbs=asn1.encode(outer.tbs),
        signature_algorithm=outer.signature_algorithm,
        signature=outer.signature.as_bytes(),
        not_before=starts,
        not_after=ends,
        usage=usage if isinstance(usage, x509.KeyUsage) else None,
        constraints=limits if isinstance(limits, x509.BasicConstraints) else None,
        unknown=tuple(one.oid.dotted_string for one in listed if one.critical and one.oid not in _KNOWN),
        capabilities_der=said.value if isinstance(said, x509.UnrecognizedExtension) else None,
    )


_UNREADABLE = (ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
_KNOWN = {
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    oids.SMIME_CAPABILITIES,
}
