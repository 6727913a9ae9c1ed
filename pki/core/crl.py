"""The certificate revocation list (RFC 5280 §5), signed by the issuing CA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from pki.core import asn1, der, signatures
from pki.core.authorities import authority_key
from pki.core.der import located, not_der
from pki.core.errors import (
    CertificateError,
    SignatureError,
    StaleError,
    UsageError,
)


class Reason(IntEnum):
    """CRLReason, RFC 5280 §5.3.1; the ones that an owner may give."""

    UNSPECIFIED = 0
    KEY_COMPROMISE = 1
    AFFILIATION_CHANGED = 3
    SUPERSEDED = 4
    CESSATION_OF_OPERATION = 5


@dataclass(frozen=True)
class Revoked:
    """One entry: when, and why."""

    at: datetime
    reason: Reason


@dataclass(frozen=True)
class Crl:
    """A list whose signature and freshness were verified; only `verify_crl` makes one."""

    number: int
    this_update: datetime
    next_update: datetime
    revoked: Mapping[int, Revoked]


def parse_reason(number: int) -> Reason:
    """Return the reason with this number, or raise UsageError."""
    try:
        return Reason(number)
    except ValueError:
        raise UsageError("The revocation reason is not one of 0, 1, 3, 4, 5") from None


def build_crl(
    issuing_der: bytes,
    key: MLDSA65PrivateKey | EllipticCurvePrivateKey,
    *,
    number: int,
    this_update: datetime,
    next_update: datetime,
    revoked: Iterable[tuple[int, Revoked]],
) -> bytes:
    """Return a full CRL in DER; entries are serial, time and reason."""
    issuing = x509.load_der_x509_certificate(issuing_der)
    ski = issuing.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuing.subject)
        .last_update(this_update.replace(microsecond=0))
        .next_update(next_update.replace(microsecond=0))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False)
    )
    for serial, entry in revoked:
        item = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(entry.at.replace(microsecond=0))
        if entry.reason is not Reason.UNSPECIFIED:  # RFC 5280 §5.3.1: absent rather than unspecified
            item = item.add_extension(x509.CRLReason(_FLAGS[entry.reason]), critical=False)
        builder = builder.add_revoked_certificate(item.build())
    hashed = hashes.SHA384() if isinstance(key, EllipticCurvePrivateKey) else None
    return builder.sign(key, hashed).public_bytes(serialization.Encoding.DER)


@located
def verify_crl(crl_der: bytes, *, issuing_der: bytes, now: datetime) -> Crl:
    """Verify signature, issuer and freshness; raise CertificateError or, past nextUpdate, StaleError."""
    # A CertificateList has a Certificate's outer form (RFC 5280 §5.1.1).
    outer = asn1.decode(asn1.Certificate, crl_der, what="The revocation list")
    if outer.signature.padding_bits():
        raise CertificateError("The revocation list's signature is not of whole bytes", rule="CRL-001")
    try:
        crl = x509.load_der_x509_crl(crl_der)
        if crl.issuer != x509.load_der_x509_certificate(issuing_der).subject:
            raise CertificateError("The revocation list is not the issuing CA's", rule="CRL-001")
        _check_signature(outer, issuing_der)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        for extension in crl.extensions:
            if extension.critical:
                raise CertificateError("The revocation list has a critical extension", rule="CRL-002")
        revoked = {entry.serial_number: _entry(entry) for entry in crl}
        this_update, next_update = crl.last_update_utc, crl.next_update_utc
    except SignatureError:
        raise CertificateError("The revocation list is not signed by the issuing CA", rule="CRL-001") from None
    except _UNREADABLE as error:
        raise not_der("The revocation list cannot be read", on=type(error).__name__) from None
    if next_update is None or now > next_update:
        raise StaleError("The revocation list is out of date", on=f"until {next_update}", rule="CRL-003")
    return Crl(number, this_update, next_update, revoked)


def _check_signature(outer: asn1.Certificate, issuing_der: bytes) -> None:
    key = authority_key(issuing_der)
    signed = asn1.encode(outer.tbs)
    # Inside, the algorithm follows the version 2 (RFC 5280 §5.1.2.2).
    inside = signed[der.header(signed, 0, len(signed)).content :]
    if not inside.startswith(b"\x02\x01\x01" + asn1.encode(outer.signature_algorithm)):
        raise SignatureError("The revocation list names one signature algorithm inside and another outside")
    if signatures.algorithm_of(outer.signature_algorithm, rule="CRL-001") is not key.algorithm:
        raise SignatureError("The revocation list is signed with another algorithm than the issuing CA's")
    key.verify(outer.signature.as_bytes(), signed)


def _entry(entry: x509.RevokedCertificate) -> Revoked:
    try:
        flag = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except x509.ExtensionNotFound:
        return Revoked(entry.revocation_date_utc, Reason.UNSPECIFIED)
    # An unknown reason still revokes.
    return Revoked(entry.revocation_date_utc, _REASONS.get(flag, Reason.UNSPECIFIED))


_UNREADABLE = (
    ValueError,
    # A name's attribute of a type that the library does not take for one.
    TypeError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.UnsupportedGeneralNameType,
)
_FLAGS = {
    Reason.KEY_COMPROMISE: x509.ReasonFlags.key_compromise,
    Reason.AFFILIATION_CHANGED: x509.ReasonFlags.affiliation_changed,
    Reason.SUPERSEDED: x509.ReasonFlags.superseded,
    Reason.CESSATION_OF_OPERATION: x509.ReasonFlags.cessation_of_operation,
}
_REASONS = {flag: reason for reason, flag in _FLAGS.items()}
