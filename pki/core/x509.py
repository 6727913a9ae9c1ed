"""Certificates (RFC 5280): build, parse, verify a chain of root, issuing CA and leaf."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.x509.oid import ExtensionOID, NameOID

from pki.core import asn1, kem, oids
from pki.core.der import located
from pki.core.errors import BadAddressError, CertificateError, ExpiredError, MalformedError, ProfileError, demand
from pki.core.ids import Fingerprint, fingerprint
from pki.core.tenants import Address, parse_address_uri

_YEAR_2050 = datetime(2050, 1, 1, tzinfo=UTC)
_ML_DSA_65 = asn1.AlgorithmIdentifier(algorithm=oids.ML_DSA_65, parameters=None)

Sign = Callable[[bytes], bytes]
"""Makes an ML-DSA-65 signature over the bytes that it is given."""


class CertificateKind(StrEnum):
    """What a certificate's key is for."""

    IDENTITY = "identity"
    ENCRYPTION = "encryption"


@dataclass(frozen=True)
class ParsedCertificate:
    """A leaf certificate that keeps the profile; nothing of it is verified."""

    der: bytes
    fingerprint: Fingerprint
    serial: int
    address: Address
    kind: CertificateKind
    issuer_der: bytes
    spki: bytes
    ski: bytes
    aki: bytes
    not_before: datetime
    not_after: datetime
    tbs: bytes
    signature: bytes


@lru_cache(maxsize=4096)
def name_der(address: Address) -> bytes:
    """Return the subject of an instance: O = tenant, CN = tenant/instance."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, address.tenant),
            x509.NameAttribute(NameOID.COMMON_NAME, str(address)),
        ]
    ).public_bytes()


def key_identifier(spki: bytes) -> bytes:
    """Return the 20-byte subject key identifier of a SubjectPublicKeyInfo (RFC 7093 §2 method 1)."""
    return kem.ski(spki)


def identity_public_key(spki: bytes) -> MLDSA65PublicKey:
    """Return the ML-DSA-65 key of a SubjectPublicKeyInfo, or raise ProfileError."""
    try:
        key = serialization.load_der_public_key(spki)
    except Exception as error:
        raise ProfileError("The identity key cannot be read", on=type(error).__name__, rule="CRT-009") from None
    if not isinstance(key, MLDSA65PublicKey):
        raise ProfileError("The identity key is not of ML-DSA-65", rule="CRT-009")
    return key


def spki_of(key: MLDSA65PublicKey) -> bytes:
    """Return the SubjectPublicKeyInfo of a key in DER."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def tbs_certificate(
    *,
    serial: int,
    issuer_der: bytes,
    address: Address,
    spki: bytes,
    not_before: datetime,
    not_after: datetime,
    kind: CertificateKind,
) -> bytes:
    """Return the to-be-signed part of an instance's certificate; ``issuer_der`` is the issuing CA's certificate."""
    issuer = x509.load_der_x509_certificate(issuer_der)
    identity = kind is CertificateKind.IDENTITY
    return _tbs(
        serial=serial,
        issuer=issuer.subject.public_bytes(),
        subject=name_der(address),
        spki=spki,
        not_before=not_before,
        not_after=not_after,
        extensions=[
            (True, _key_usage(digital_signature=identity, key_encipherment=not identity)),
            (False, x509.SubjectAlternativeName([x509.UniformResourceIdentifier(address.uri)])),
            (False, x509.SubjectKeyIdentifier(key_identifier(spki))),
            (False, x509.AuthorityKeyIdentifier(_ski(issuer), None, None)),
        ],
    )


def ca_tbs(
    common_name: str,
    spki: bytes,
    *,
    issuer_der: bytes | None,
    serial: int,
    not_before: datetime,
    not_after: datetime,
    path_length: int,
) -> bytes:
    """Return the to-be-signed part of a CA's certificate; without ``issuer_der`` it is a root."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    issuer = x509.load_der_x509_certificate(issuer_der) if issuer_der else None
    aki = _ski(issuer) if issuer else key_identifier(spki)
    return _tbs(
        serial=serial,
        issuer=(issuer.subject if issuer else subject).public_bytes(),
        subject=subject.public_bytes(),
        spki=spki,
        not_before=not_before,
        not_after=not_after,
        extensions=[
            (True, x509.BasicConstraints(ca=True, path_length=path_length)),
            (True, _key_usage(key_cert_sign=True, crl_sign=True)),
            (False, x509.SubjectKeyIdentifier(key_identifier(spki))),
            (False, x509.AuthorityKeyIdentifier(aki, None, None)),
        ],
    )


def assemble(tbs: bytes, signature: bytes) -> bytes:
    """Return the certificate in DER from its to-be-signed part and an ML-DSA-65 signature."""
    certificate = asn1.Certificate(
        tbs=asn1.tlv(tbs), signature_algorithm=_ML_DSA_65, signature=asn1.BitString(signature, 0)
    )
    return asn1.encode(certificate)


@located
def parse_certificate(der: bytes) -> ParsedCertificate:
    """Return an instance's certificate that keeps the profile (rules CRT-001 to CRT-006, CRT-009)."""
    outer = asn1.decode(asn1.Certificate, der, what="The certificate")
    tbs_der = asn1.encode(outer.tbs)
    tbs = asn1.decode(asn1.TbsCertificate, tbs_der, what="The certificate")
    demand(tbs.version == 2, "CRT-001", "The certificate is not of version 3")
    demand(0 < tbs.serial < 1 << 160, "CRT-001", "The serial number is not positive with at most 20 bytes")
    for algorithm in (tbs.signature, outer.signature_algorithm):
        same = algorithm.algorithm == oids.ML_DSA_65 and algorithm.parameters is None
        demand(same, "CRT-002", "The certificate is not signed with ML-DSA-65")
    demand(not outer.signature.padding_bits(), "CRT-002", "The signature's bits are not whole bytes")
    for extension in tbs.extensions:
        if extension.oid == ExtensionOID.AUTHORITY_KEY_IDENTIFIER:
            demand(extension.value[:4] == _AKI, "CRT-005", "The issuer is not named by a key identifier alone")
    try:
        found = x509.load_der_x509_certificate(der)
        extensions = {extension.oid: extension for extension in found.extensions}
        not_before, not_after = found.not_valid_before_utc, found.not_valid_after_utc
        issuer, subject = found.issuer.public_bytes(), found.subject.public_bytes()
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise MalformedError("The certificate cannot be read", on=type(error).__name__) from None
    demand(not_before <= not_after, "CRT-003", "The certificate ends before it begins")
    demand(set(extensions) == _LEAF_EXTENSIONS, "CRT-005", "The certificate does not have exactly our extensions")
    address = _address(extensions[ExtensionOID.SUBJECT_ALTERNATIVE_NAME].value, subject)
    usage = extensions[ExtensionOID.KEY_USAGE]
    kind = _kind(usage.value)
    demand(usage.critical, "CRT-006", "The key usage is not critical")
    spki = asn1.encode(tbs.public_key)
    if kind is CertificateKind.IDENTITY:
        identity_public_key(spki)
    else:
        kem.parse_spki(spki)
    ski = extensions[ExtensionOID.SUBJECT_KEY_IDENTIFIER].value
    aki = extensions[ExtensionOID.AUTHORITY_KEY_IDENTIFIER].value
    assert isinstance(ski, x509.SubjectKeyIdentifier)
    assert isinstance(aki, x509.AuthorityKeyIdentifier)
    demand(ski.digest == key_identifier(spki), "CRT-005", "The subject key identifier is not the key's")
    return ParsedCertificate(
        der=der,
        fingerprint=fingerprint(der),
        serial=tbs.serial,
        address=address,
        kind=kind,
        issuer_der=issuer,
        spki=spki,
        ski=ski.digest,
        aki=aki.key_identifier or b"",
        not_before=not_before,
        not_after=not_after,
        tbs=tbs_der,
        signature=outer.signature.as_bytes(),
    )


def verify_chain(leaf: ParsedCertificate, *, issuing_der: bytes, root_der: bytes, now: datetime) -> None:
    """Verify root, issuing CA and leaf (rules CRT-003, -007, -008, -014), or raise."""
    issuing = _verified_issuing(issuing_der, root_der)
    root = x509.load_der_x509_certificate(root_der)
    for title, start, end in (
        ("root", root.not_valid_before_utc, root.not_valid_after_utc),
        ("issuing CA", issuing.not_valid_before_utc, issuing.not_valid_after_utc),
        (str(leaf.address), leaf.not_before, leaf.not_after),
    ):
        if now < start:
            raise CertificateError("A certificate is not valid yet", on=f"{title}, from {start}", rule="CRT-003")
        if now > end:
            raise ExpiredError("A certificate has expired", on=f"{title}, at {end}", rule="CRT-003")
    if leaf.issuer_der != issuing.subject.public_bytes() or leaf.aki != _ski(issuing):
        raise CertificateError("The certificate names another issuer", on=str(leaf.address), rule="CRT-007")
    _verify_leaf(leaf.tbs, leaf.signature, issuing_der)


def common_name_of(name_der: bytes) -> str:
    """Return the one common name of a Name in DER, or an empty text."""
    try:
        names = x509.Name.from_bytes(name_der).get_attributes_for_oid(NameOID.COMMON_NAME)
    except (ValueError, TypeError) as error:
        raise MalformedError("The name cannot be read", on=type(error).__name__) from None
    return str(names[0].value) if len(names) == 1 else ""


_AKI = b"\x30\x16\x80\x14"  # SEQUENCE of [0] with 20 bytes (RFC 5280 §4.2.1.1)
_LEAF_EXTENSIONS = {
    ExtensionOID.KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
}


_UNREADABLE = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
)


@lru_cache(maxsize=16)
def _verified_issuing(issuing_der: bytes, root_der: bytes) -> x509.Certificate:
    # Signatures never change their mind, so they are cached; the clock is looked at each time.
    for der in (root_der, issuing_der):
        outer = asn1.decode(asn1.Certificate, der, what="A CA certificate")
        demand(not outer.signature.padding_bits(), "CRT-014", "A CA certificate's signature is not of whole bytes")
        tbs = asn1.decode(asn1.TbsCertificate, asn1.encode(outer.tbs), what="A CA certificate")
        demand(tbs.version == 2 and tbs.serial > 0, "CRT-014", "A CA certificate's version or serial is out of bounds")
    try:
        root, issuing = x509.load_der_x509_certificate(root_der), x509.load_der_x509_certificate(issuing_der)
        root.verify_directly_issued_by(root)
        issuing.verify_directly_issued_by(root)
        for authority in (root, issuing):
            constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
            usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
            if not (constraints.critical and constraints.value.ca and usage.key_cert_sign):
                raise CertificateError("A CA certificate may not sign certificates", rule="CRT-014")
    except _UNREADABLE:
        raise CertificateError("The issuing CA does not chain to the root", rule="CRT-014") from None
    return issuing


@lru_cache(maxsize=4096)
def _verify_leaf(tbs: bytes, signature: bytes, issuing_der: bytes) -> None:
    key = x509.load_der_x509_certificate(issuing_der).public_key()
    if not isinstance(key, MLDSA65PublicKey):
        raise CertificateError("The issuing CA's key is not of ML-DSA-65", rule="CRT-014")
    try:
        key.verify(signature, tbs)
    except InvalidSignature:
        raise CertificateError("The certificate is not signed by the issuing CA", rule="CRT-008") from None


def _tbs(
    *,
    serial: int,
    issuer: bytes,
    subject: bytes,
    spki: bytes,
    not_before: datetime,
    not_after: datetime,
    extensions: Iterable[tuple[bool, x509.ExtensionType]],
) -> bytes:
    tbs = asn1.TbsCertificate(
        version=2,
        serial=serial,
        signature=_ML_DSA_65,
        issuer=asn1.tlv(issuer),
        validity=asn1.Validity(not_before=_time(not_before), not_after=_time(not_after)),
        subject=asn1.tlv(subject),
        public_key=asn1.decode(asn1.SubjectPublicKeyInfo, spki, what="The public key"),
        extensions=[
            asn1.Extension(oid=extension.oid, critical=critical, value=extension.public_bytes())
            for critical, extension in extensions
        ],
    )
    return asn1.encode(tbs)


def _time(moment: datetime) -> asn1.UTCTime | asn1.GeneralizedTime:
    moment = moment.astimezone(UTC).replace(microsecond=0)
    return asn1.UTCTime(moment) if moment < _YEAR_2050 else asn1.GeneralizedTime(moment)


def _key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _kind(usage: x509.ExtensionType) -> CertificateKind:
    if usage == _key_usage(digital_signature=True):
        return CertificateKind.IDENTITY
    if usage == _key_usage(key_encipherment=True):
        return CertificateKind.ENCRYPTION
    raise ProfileError("The key usage is neither digitalSignature nor keyEncipherment alone", rule="CRT-006")


def _address(names: x509.ExtensionType, subject: bytes) -> Address:
    assert isinstance(names, x509.SubjectAlternativeName)
    values = list(names)
    demand(
        len(values) == 1 and isinstance(values[0], x509.UniformResourceIdentifier),
        "CRT-004",
        "The certificate does not name exactly one address",
    )
    try:
        address = parse_address_uri(values[0].value)
    except BadAddressError as error:
        raise ProfileError("The certificate's name is not an address", on=error.on, rule="CRT-004") from None
    demand(subject == name_der(address), "CRT-004", "The subject is not the address")
    return address


def _ski(certificate: x509.Certificate) -> bytes:
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
