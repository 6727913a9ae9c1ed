"""Root and issuing CA (RFC 5280 §6.1), of any algorithm that may certify: their keys, and whether they chain."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtensionOID

from pki.core import asn1, signatures
from pki.core.errors import CertificateError, ExpiredError, SignatureError, demand
from pki.core.signatures import SignatureAlgorithm, VerifyingKey


@lru_cache(maxsize=64)
def authority_key(certificate_der: bytes) -> VerifyingKey:
    """Return the key of a CA's certificate, whose signature is not looked at; raises as `signatures.load` does."""
    tbs = asn1.encode(asn1.decode(asn1.Certificate, certificate_der, what="A CA certificate").tbs)
    spki = asn1.decode(asn1.TbsCertificate, tbs, what="A CA certificate").public_key
    return signatures.load(asn1.encode(spki), rule="CRT-014")


def verify_authorities(*, issuing_der: bytes, root_der: bytes, now: datetime) -> x509.Certificate:
    """Verify root and issuing CA (rules CRT-003, -014), or raise; return the issuing CA."""
    issuing, root = _verified_issuing(issuing_der, root_der)
    for title, found in (("root", root), ("issuing CA", issuing)):
        check_validity(title, found.not_valid_before_utc, found.not_valid_after_utc, now)
    return issuing


def check_validity(title: str, start: datetime, end: datetime, now: datetime) -> None:
    """Raise CertificateError or ExpiredError unless ``now`` lies between the two (rule CRT-003)."""
    if now < start:
        raise CertificateError("A certificate is not valid yet", on=f"{title}, from {start}", rule="CRT-003")
    if now > end:
        raise ExpiredError("A certificate has expired", on=f"{title}, at {end}", rule="CRT-003")


def signature_algorithm(outer: asn1.Certificate, tbs: asn1.TbsCertificate, *, rule: str) -> SignatureAlgorithm:
    """Return the algorithm that is named inside and outside alike (RFC 5280 §4.1.1.2)."""
    inside = signatures.algorithm_of(tbs.signature, rule=rule)
    outside = signatures.algorithm_of(outer.signature_algorithm, rule=rule)
    demand(inside is outside, rule, "The certificate names one signature algorithm inside and another outside")
    return inside


def subject_key_identifier(certificate: x509.Certificate) -> bytes:
    """Return the subject key identifier; raises ExtensionNotFound."""
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
}
_UNREADABLE = (
    ValueError,
    TypeError,
    SignatureError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
)


@lru_cache(maxsize=16)
def _verified_issuing(issuing_der: bytes, root_der: bytes) -> tuple[x509.Certificate, x509.Certificate]:
    # Signatures never change their mind, so they are cached; the clock is looked at each time.
    try:
        root = _verified_authority(root_der, authority_key(root_der))
        issuing = _verified_authority(issuing_der, authority_key(root_der))
        authority_key(issuing_der)
    except _UNREADABLE:
        raise CertificateError("The issuing CA does not chain to the root", rule="CRT-014") from None
    named = root.issuer == root.subject == issuing.issuer
    above = root.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    # RFC 5280 §4.2.1.9: the issuing CA is one below.
    demand(above is None or above >= 1, "CRT-014", "The root may not have an issuing CA below it")
    if not named:
        raise CertificateError("The issuing CA does not chain to the root", on="another issuer", rule="CRT-014")
    return issuing, root


def _verified_authority(der: bytes, signer: VerifyingKey) -> x509.Certificate:
    """Return a CA's certificate that ``signer`` signed and that may sign certificates (rule CRT-014)."""
    outer = asn1.decode(asn1.Certificate, der, what="A CA certificate")
    demand(not outer.signature.padding_bits(), "CRT-014", "A CA certificate's signature is not of whole bytes")
    tbs_der = asn1.encode(outer.tbs)
    tbs = asn1.decode(asn1.TbsCertificate, tbs_der, what="A CA certificate")
    demand(tbs.version == 2 and tbs.serial > 0, "CRT-014", "A CA certificate's version or serial is out of bounds")
    if signature_algorithm(outer, tbs, rule="CRT-014") is not signer.algorithm:
        raise SignatureError(rule="CRT-014")
    # By our own check, as the library knows neither SLH-DSA nor composites.
    signer.verify(outer.signature.as_bytes(), tbs_der)
    found = x509.load_der_x509_certificate(der)
    constraints = found.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = found.extensions.get_extension_for_class(x509.KeyUsage).value
    subject_key_identifier(found)
    if not (constraints.critical and constraints.value.ca and usage.key_cert_sign):
        raise CertificateError("A CA certificate may not sign certificates", rule="CRT-014")
    # RFC 5280 §4.2: what is critical and not understood, such as name constraints, is refused.
    critical = {one.oid for one in found.extensions if one.critical}
    demand(critical <= _UNDERSTOOD, "CRT-014", "A CA certificate has a critical extension that is not understood")
    return found
