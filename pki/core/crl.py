"""Certificate revocation lists (RFC 5280 §5), full and delta, each signed by the issuing CA that it is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from pki.core import asn1, der, signatures
from pki.core.authorities import authority_key, subject_key_identifier
from pki.core.der import located, not_der
from pki.core.errors import (
    CertificateError,
    SignatureError,
    StaleError,
    UsageError,
)

_REMOVED = 8
"""removeFromCRL, RFC 5280 §5.3.1: in a delta list alone."""


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
    """What is revoked: a list whose signature and freshness were verified, with a delta list added or not.

    Only `verify_crl` and `apply_delta` make one. ``issuer`` is the issuing CA's key identifier.
    """

    number: int
    this_update: datetime
    next_update: datetime
    revoked: Mapping[int, Revoked]
    issuer: bytes = b""


@dataclass(frozen=True)
class DeltaCrl:
    """What changed since the full list with the number ``base``; only `verify_delta` makes one."""

    number: int
    base: int
    this_update: datetime
    next_update: datetime
    revoked: Mapping[int, Revoked]
    removed: frozenset[int]
    issuer: bytes = b""


def parse_reason(number: int) -> Reason:
    """Return the reason with this number, or raise UsageError."""
    try:
        return Reason(number)
    except ValueError:
        raise UsageError("The revocation reason is not one of 0, 1, 3, 4, 5") from None


def crl_tbs(
    issuing_der: bytes,
    *,
    number: int,
    this_update: datetime,
    next_update: datetime,
    revoked: Iterable[tuple[int, Revoked]],
    base: int | None = None,
    removed: Iterable[int] = (),
    freshest: str = "",
) -> bytes:
    """Return the to-be-signed part of a list; entries are serial, time and reason.

    With ``base`` it is a delta list to the full list of that number, and ``removed`` are the serials that left it. A
    full list says by ``freshest`` at which URL its delta lists are (RFC 5280 §5.2.6). The issuing CA's key decides the
    signature algorithm; `assemble` adds the signature.
    """
    issuing = x509.load_der_x509_certificate(issuing_der)
    ski = issuing.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    entries = [
        asn1.RevokedCertificate(serial=serial, revoked_at=asn1.time(entry.at), extensions=_said(int(entry.reason)))
        for serial, entry in revoked
    ]
    moment = asn1.time(this_update)
    entries += [
        asn1.RevokedCertificate(serial=serial, revoked_at=moment, extensions=_said(_REMOVED)) for serial in removed
    ]
    # RFC 5280 §5.2.4: critical, so that nobody takes it for the full list.
    indicator = [] if base is None else [_extension(x509.DeltaCRLIndicator(base), critical=True)]
    pointer = [_extension(x509.FreshestCRL([_point(freshest)]))] if freshest else []
    tbs = asn1.TbsCertList(
        version=1,
        signature=authority_key(issuing_der).algorithm.identifier,
        issuer=asn1.tlv(issuing.subject.public_bytes()),
        this_update=moment,
        next_update=asn1.time(next_update),
        revoked=entries or None,  # RFC 5280 §5.1.2.6: absent rather than empty
        extensions=[
            _extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)),
            _extension(x509.CRLNumber(number)),
            *indicator,
            *pointer,
        ],
    )
    return asn1.encode(tbs)


def assemble(tbs: bytes, signature: bytes, issuing_der: bytes) -> bytes:
    """Return the CRL in DER from its to-be-signed part and the issuing CA's signature."""
    return asn1.signed(tbs, authority_key(issuing_der).algorithm.identifier, signature)


def changes(base: Crl, revoked: Mapping[int, Revoked]) -> tuple[dict[int, Revoked], list[int]]:
    """Return what a delta list to ``base`` says where ``revoked`` is what is revoked now: entries, and what left."""
    new = {serial: entry for serial, entry in revoked.items() if not _same(base.revoked.get(serial), entry)}
    return new, [serial for serial in base.revoked if serial not in revoked]


@located
def verify_crl(crl_der: bytes, *, issuing_der: bytes, now: datetime) -> Crl:
    """Verify signature, issuer and freshness; raise CertificateError or, past nextUpdate, StaleError."""
    read = _read(crl_der, issuing_der)
    if read.critical or read.base is not None:
        raise CertificateError("The revocation list has a critical extension", rule="CRL-002")
    _check_fresh(read, now)
    return Crl(read.number, read.this_update, read.next_update, read.revoked | read.removed, read.issuer)


@located
def verify_delta(crl_der: bytes, *, issuing_der: bytes, now: datetime) -> DeltaCrl:
    """Verify a delta list as `verify_crl` does a full one; raises CertificateError with rule CRL-004 for any other."""
    read = _read(crl_der, issuing_der)
    if read.base is None or read.critical != {ExtensionOID.DELTA_CRL_INDICATOR}:
        raise CertificateError("The delta list does not say what it is one of", rule="CRL-004")
    _check_fresh(read, now)
    removed = frozenset(read.removed)
    return DeltaCrl(read.number, read.base, read.this_update, read.next_update, read.revoked, removed, read.issuer)


def apply_delta(full: Crl, delta: DeltaCrl) -> Crl:
    """Return what the full list of the delta list's number says (RFC 5280 §5.2.4); rules CRL-005 to -007."""
    if not delta.issuer or full.issuer != delta.issuer:
        raise CertificateError("The delta list is of another issuing CA than the full one", rule="CRL-007")
    if full.number < delta.base:
        raise CertificateError(
            "The delta list builds on a newer full list", on=f"{delta.base} after {full.number}", rule="CRL-005"
        )
    if delta.number <= full.number or delta.this_update < full.this_update:
        raise StaleError(
            "The delta list is not newer than the full one", on=f"{delta.number} after {full.number}", rule="CRL-006"
        )
    revoked = {serial: entry for serial, entry in full.revoked.items() if serial not in delta.removed}
    return Crl(delta.number, delta.this_update, delta.next_update, revoked | dict(delta.revoked), full.issuer)


@dataclass(frozen=True)
class _Read:
    """A list that the issuing CA signed."""

    number: int
    base: int | None
    critical: set[x509.ObjectIdentifier]
    this_update: datetime
    next_update: datetime
    revoked: dict[int, Revoked]
    removed: dict[int, Revoked]
    issuer: bytes


def _read(crl_der: bytes, issuing_der: bytes) -> _Read:
    # A CertificateList has a Certificate's outer form (RFC 5280 §5.1.1).
    outer = asn1.decode(asn1.Certificate, crl_der, what="The revocation list")
    if outer.signature.padding_bits():
        raise CertificateError("The revocation list's signature is not of whole bytes", rule="CRL-001")
    try:
        crl = x509.load_der_x509_crl(crl_der)
        issuing = x509.load_der_x509_certificate(issuing_der)
        if crl.issuer != issuing.subject:
            raise CertificateError("The revocation list is not the issuing CA's", rule="CRL-001")
        _check_signature(outer, issuing_der)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        indicators = [one.value for one in crl.extensions if isinstance(one.value, x509.DeltaCRLIndicator)]
        revoked: dict[int, Revoked] = {}
        removed: dict[int, Revoked] = {}
        for entry in crl:
            found, gone = _entry(entry)
            (removed if gone else revoked)[entry.serial_number] = found
        return _Read(
            number=number,
            base=indicators[0].crl_number if indicators else None,
            critical={one.oid for one in crl.extensions if one.critical},
            this_update=crl.last_update_utc,
            # Without a nextUpdate it is never fresh.
            next_update=crl.next_update_utc or datetime.min.replace(tzinfo=UTC),
            revoked=revoked,
            removed=removed,
            issuer=subject_key_identifier(issuing),
        )
    except SignatureError:
        raise CertificateError("The revocation list is not signed by the issuing CA", rule="CRL-001") from None
    except _UNREADABLE as error:
        raise not_der("The revocation list cannot be read", on=type(error).__name__) from None


def _check_fresh(read: _Read, now: datetime) -> None:
    if now > read.next_update:
        raise StaleError("The revocation list is out of date", on=f"until {read.next_update}", rule="CRL-003")


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


def _extension(value: x509.ExtensionType, *, critical: bool = False) -> asn1.Extension:
    return asn1.Extension(oid=value.oid, critical=critical, value=value.public_bytes())


def _point(url: str) -> x509.DistributionPoint:
    name = [x509.UniformResourceIdentifier(url)]
    return x509.DistributionPoint(full_name=name, relative_name=None, reasons=None, crl_issuer=None)


@lru_cache(maxsize=16)
def _said(reason: int) -> list[asn1.Extension] | None:
    # RFC 5280 §5.3.1: absent rather than unspecified
    if reason == Reason.UNSPECIFIED:
        return None
    return [asn1.Extension(oid=x509.CRLReason.oid, critical=False, value=asn1.enumerated(reason))]


def _same(known: Revoked | None, entry: Revoked) -> bool:
    # A list tells the time to the second.
    return known == entry or known == Revoked(entry.at.replace(microsecond=0), entry.reason)


def _entry(entry: x509.RevokedCertificate) -> tuple[Revoked, bool]:
    """Return when and why, and whether it says that the certificate is no longer on the list."""
    flag = None
    for extension in entry.extensions:
        # RFC 5280 §5.3: such as a certificate issuer, which would make it an entry about others.
        if extension.critical:
            raise CertificateError("An entry of the revocation list has a critical extension", rule="CRL-002")
        if isinstance(extension.value, x509.CRLReason):
            flag = extension.value.reason
    # An unknown reason still revokes.
    reason = _REASONS.get(flag, Reason.UNSPECIFIED) if flag else Reason.UNSPECIFIED
    return Revoked(entry.revocation_date_utc, reason), flag is x509.ReasonFlags.remove_from_crl


_UNREADABLE = (
    ValueError,
    # A name's attribute of a type that the library does not take for one.
    TypeError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.UnsupportedGeneralNameType,
)
_REASONS = {
    x509.ReasonFlags.key_compromise: Reason.KEY_COMPROMISE,
    x509.ReasonFlags.affiliation_changed: Reason.AFFILIATION_CHANGED,
    x509.ReasonFlags.superseded: Reason.SUPERSEDED,
    x509.ReasonFlags.cessation_of_operation: Reason.CESSATION_OF_OPERATION,
}
