"""Certificates of any issuer (RFC 5280), well formed and no more: what a path to a trust anchor is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1 as library
from cryptography.x509 import ObjectIdentifier as Oid
from cryptography.x509.oid import ExtensionOID

from pki.core import asn1
from pki.core.der import located
from pki.core.errors import MalformedError
from pki.core.names import name_text

MAX_EXTENSIONS = 64
MAX_CERTIFICATE = 128 * 1024
"""Bytes; one that SLH-DSA-SHA2-256f signed has about 50,000."""


@dataclass(frozen=True)
class Link:
    """A certificate of any issuer that is well formed; nothing of it is verified.

    ``tbs`` is what was signed; ``ski`` and ``aki`` are the key identifiers of its extensions, or empty; ``named`` is
    the issuer's certificate where the latter names one: the names of its issuer, and its serial (RFC 5280 §4.2.1.1);
    ``usage`` and ``constraints`` are those extensions (§4.2.1.3, §4.2.1.9); ``extensions`` says of each whether it is
    critical, and ``values`` holds them in DER.
    """

    der: bytes
    version: int
    serial: int
    subject_der: bytes
    issuer_der: bytes
    spki: bytes
    tbs: bytes
    signature_algorithm: asn1.AlgorithmIdentifier
    signature: bytes
    not_before: datetime
    not_after: datetime
    ski: bytes
    aki: bytes
    named: tuple[tuple[bytes, ...], int] | None
    usage: x509.KeyUsage | None
    constraints: x509.BasicConstraints | None
    extensions: Mapping[Oid, bool]
    values: Mapping[Oid, bytes]

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


@located
def parse(der: bytes) -> Link:
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
    aki = extensions.get(ExtensionOID.AUTHORITY_KEY_IDENTIFIER)
    usage = extensions.get(ExtensionOID.KEY_USAGE)
    limits = extensions.get(ExtensionOID.BASIC_CONSTRAINTS)
    return Link(
        der=der,
        version=1 if fields.version is None else fields.version + 1,
        serial=fields.serial,
        subject_der=asn1.encode(fields.subject),
        issuer_der=asn1.encode(fields.issuer),
        spki=asn1.encode(fields.public_key),
        tbs=asn1.encode(outer.tbs),
        signature_algorithm=outer.signature_algorithm,
        signature=outer.signature.as_bytes(),
        not_before=starts,
        not_after=ends,
        ski=ski.digest if isinstance(ski, x509.SubjectKeyIdentifier) else b"",
        aki=(aki.key_identifier or b"") if isinstance(aki, x509.AuthorityKeyIdentifier) else b"",
        named=_named(aki),
        usage=usage if isinstance(usage, x509.KeyUsage) else None,
        constraints=limits if isinstance(limits, x509.BasicConstraints) else None,
        extensions={one.oid: one.critical for one in listed},
        values={one.oid: one.value for one in listed},
    )


_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


def _named(aki: x509.ExtensionType | None) -> tuple[tuple[bytes, ...], int] | None:
    if not isinstance(aki, x509.AuthorityKeyIdentifier) or aki.authority_cert_serial_number is None:
        return None
    names = aki.authority_cert_issuer or []
    directory = tuple(one.value.public_bytes() for one in names if isinstance(one, x509.DirectoryName))
    return directory, aki.authority_cert_serial_number
