"""Root and issuing CA (RFC 5280 §6.1), of any algorithm that may certify: their keys, and whether they chain."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtensionOID

from pki.core import asn1, links, paths, signatures
from pki.core.errors import CertificateError, MalformedError, SignatureError, demand
from pki.core.links import Link
from pki.core.paths import check_validity as check_validity
from pki.core.signatures import SignatureAlgorithm, VerifyingKey


@lru_cache(maxsize=64)
def authority_key(certificate_der: bytes) -> VerifyingKey:
    """Return the key of a CA's certificate, whose signature is not looked at; raises as `signatures.load` does."""
    tbs = asn1.encode(asn1.decode(asn1.Certificate, certificate_der, what="A CA certificate").tbs)
    spki = asn1.decode(asn1.TbsCertificate, tbs, what="A CA certificate").public_key
    return signatures.load(asn1.encode(spki), rule="CRT-014")


def issuer_of(candidates: Iterable[bytes], key_identifier: bytes) -> bytes:
    """Return the first CA certificate in DER whose subject key identifier is this authority key identifier.

    Nothing is verified. Raises CertificateError where none fits (rule CRT-007; RFC 5280 §4.2.1.1).
    """
    for one in candidates:
        if ca_key_identifier(one) == key_identifier:
            return one
    raise CertificateError("The certificate names another issuer", on=key_identifier.hex()[:64], rule="CRT-007")


@lru_cache(maxsize=64)
def ca_key_identifier(certificate_der: bytes) -> bytes:
    """Return the subject key identifier of a CA's certificate, which is not verified; raises CertificateError."""
    try:
        return subject_key_identifier(x509.load_der_x509_certificate(certificate_der))
    except _UNREADABLE:
        raise CertificateError("A CA certificate cannot be read", rule="CRT-014") from None


def verify_authorities(*, issuing_der: bytes, root_der: bytes, now: datetime) -> Link:
    """Verify root and issuing CA (rules CRT-003, -014), or raise; return the issuing CA."""
    issuing, root = _verified_issuing(issuing_der, root_der)
    for title, found in (("root", root), ("issuing CA", issuing)):
        check_validity(title, found.not_before, found.not_after, now)
    return issuing


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
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
)


@lru_cache(maxsize=16)
def _verified_issuing(issuing_der: bytes, root_der: bytes) -> tuple[Link, Link]:
    # Signatures never change their mind, so they are cached; the clock is looked at each time.
    key = authority_key(root_der)
    root, issuing = _ours(root_der, key), _ours(issuing_der, key)
    demand(root.self_issued, "CRT-014", "The root is not its own issuer")
    paths.check_path((issuing, root), authority=True)
    return issuing, root


def _ours(der: bytes, signer: VerifyingKey) -> Link:
    """Return a CA's certificate of our own profile that ``signer`` signed (rule CRT-014)."""
    outer = asn1.decode(asn1.Certificate, der, what="A CA certificate")
    demand(not outer.signature.padding_bits(), "CRT-014", "A CA certificate's signature is not of whole bytes")
    tbs = asn1.decode(asn1.TbsCertificate, asn1.encode(outer.tbs), what="A CA certificate")
    demand(tbs.version == 2 and tbs.serial > 0, "CRT-014", "A CA certificate's version or serial is out of bounds")
    algorithm = signature_algorithm(outer, tbs, rule="CRT-014")
    authority_key(der)
    try:
        found = links.parse(der)
        # The root's own signature, too, and only under the digest that goes with the key.
        if algorithm is not signer.algorithm:
            raise SignatureError
        signer.verify(found.signature, found.tbs)
    except (MalformedError, SignatureError):
        raise CertificateError("The issuing CA does not chain to the root", rule="CRT-014") from None
    demand(found.usage is not None, "CRT-014", "A CA certificate has no key usage")
    # RFC 5280 §4.2: what is critical and not understood, such as name constraints, is refused.
    critical = {oid for oid, marked in found.extensions.items() if marked}
    demand(critical <= _UNDERSTOOD, "CRT-014", "A CA certificate has a critical extension that is not understood")
    return found
