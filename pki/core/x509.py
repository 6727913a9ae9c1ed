"""Certificates (RFC 5280): build, parse, verify a chain of root, issuing CA and leaf."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from itertools import islice

from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID

from pki.core import asn1, kem, keys, oids, signatures
from pki.core.authorities import (
    authority_key,
    check_validity,
    signature_algorithm,
    subject_key_identifier,
    verify_authorities,
)
from pki.core.capabilities import Capabilities, parse_capabilities
from pki.core.der import header, located, not_der, parts
from pki.core.errors import (
    BadAddressError,
    CertificateError,
    ProfileError,
    SignatureError,
    demand,
)
from pki.core.ids import Fingerprint, fingerprint
from pki.core.keys import EcAlgorithm, KeyAlgorithm
from pki.core.signatures import IDENTITY, SignatureAlgorithm, VerifyingKey
from pki.core.signatures import Sign as Sign
from pki.core.tenants import Address, parse_address_uri

_YEAR_2050 = datetime(2050, 1, 1, tzinfo=UTC)


MAX_CERTIFICATE = 64 * 1024
"""Bytes; an honest one has about 5,500, and 52,000 under SLH-DSA-SHA2-256f."""
MAX_EXTENSIONS = 16


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
    signature_algorithm: SignatureAlgorithm
    signature: bytes
    capabilities: Capabilities | None = None

    @property
    def key_algorithm(self) -> KeyAlgorithm:
        """What the key of an encryption certificate is used with."""
        algorithm, _ = keys.parse_spki(self.spki)
        return algorithm if self.capabilities is None else self.capabilities.algorithm(algorithm)


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


def identity_public_key(spki: bytes) -> VerifyingKey:
    """Return the identity key of a SubjectPublicKeyInfo; raises AlgorithmError or ProfileError (rule CRT-009)."""
    return signatures.load(spki, allowed=IDENTITY)


def tbs_certificate(
    *,
    serial: int,
    issuer_der: bytes,
    address: Address,
    spki: bytes,
    not_before: datetime,
    not_after: datetime,
    kind: CertificateKind,
    capabilities: bytes | None = None,
) -> bytes:
    """Return the to-be-signed part of an instance's certificate; ``issuer_der`` is the issuing CA's certificate.

    ``capabilities`` are those of the request, SMIMECapabilities in DER.
    """
    issuer = x509.load_der_x509_certificate(issuer_der)
    identity = kind is CertificateKind.IDENTITY
    agreed = not identity and isinstance(keys.parse_spki(spki)[0], EcAlgorithm)
    preferences = [] if capabilities is None else [x509.UnrecognizedExtension(_CAPABILITIES, capabilities)]
    return _tbs(
        serial=serial,
        algorithm=authority_key(issuer_der).algorithm,
        issuer=issuer.subject.public_bytes(),
        subject=name_der(address),
        spki=spki,
        not_before=not_before,
        not_after=not_after,
        extensions=[
            (
                True,
                _key_usage(
                    digital_signature=identity,
                    key_agreement=agreed,
                    key_encipherment=not identity and not agreed,
                ),
            ),
            (False, x509.SubjectAlternativeName([x509.UniformResourceIdentifier(address.uri)])),
            (False, x509.SubjectKeyIdentifier(key_identifier(spki))),
            (False, x509.AuthorityKeyIdentifier(subject_key_identifier(issuer), None, None)),
            *((False, one) for one in preferences),
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
    """Return the to-be-signed part of a CA's certificate; without ``issuer_der`` it is a root.

    The issuer's key decides the signature algorithm.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    issuer = x509.load_der_x509_certificate(issuer_der) if issuer_der else None
    aki = subject_key_identifier(issuer) if issuer else key_identifier(spki)
    signer = authority_key(issuer_der) if issuer_der else signatures.load(spki, rule="CRT-014")
    return _tbs(
        serial=serial,
        algorithm=signer.algorithm,
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
    """Return the certificate in DER from its to-be-signed part, which names the algorithm, and the signature."""
    algorithm = asn1.decode(asn1.TbsCertificate, tbs, what="The certificate").signature
    certificate = asn1.Certificate(
        tbs=asn1.tlv(tbs), signature_algorithm=algorithm, signature=asn1.BitString(signature, 0)
    )
    return asn1.encode(certificate)


@located
def parse_certificate(der: bytes) -> ParsedCertificate:
    """Return an instance's certificate that keeps the profile (rules CRT-001 to CRT-006, -009, -015)."""
    demand(len(der) <= MAX_CERTIFICATE, "CRT-016", f"A certificate has at most {MAX_CERTIFICATE} bytes")
    outer = asn1.decode(asn1.Certificate, der, what="The certificate")
    tbs_der = asn1.encode(outer.tbs)
    demand(_extensions(tbs_der) <= MAX_EXTENSIONS, "CRT-016", f"There are more than {MAX_EXTENSIONS} extensions")
    tbs = asn1.decode(asn1.TbsCertificate, tbs_der, what="The certificate")
    demand(tbs.version == 2, "CRT-001", "The certificate is not of version 3")
    demand(0 < tbs.serial < 1 << 160, "CRT-001", "The serial number is not positive with at most 20 bytes")
    algorithm = signature_algorithm(outer, tbs, rule="CRT-002")
    demand(not outer.signature.padding_bits(), "CRT-002", "The signature's bits are not whole bytes")
    for extension in tbs.extensions:
        demand(len(extension.value) <= _MAX_EXTENSION, "CRT-016", f"An extension has over {_MAX_EXTENSION} bytes")
        if extension.oid == ExtensionOID.AUTHORITY_KEY_IDENTIFIER:
            demand(extension.value[:4] == _AKI, "CRT-005", "The issuer is not named by a key identifier alone")
    try:
        found = x509.load_der_x509_certificate(der)
        extensions = {extension.oid: extension for extension in found.extensions}
        not_before, not_after = found.not_valid_before_utc, found.not_valid_after_utc
    except (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise not_der("The certificate cannot be read", on=type(error).__name__) from None
    # The names as they stand there: the library's own reading of a long one costs many times its size.
    issuer, subject = asn1.encode(tbs.issuer), asn1.encode(tbs.subject)
    demand(not_before <= not_after, "CRT-003", "The certificate ends before it begins")
    preferences = extensions.pop(_CAPABILITIES, None)
    demand(set(extensions) == _LEAF_EXTENSIONS, "CRT-005", "The certificate does not have exactly our extensions")
    address = _address(extensions[ExtensionOID.SUBJECT_ALTERNATIVE_NAME].value, subject)
    usage = extensions[ExtensionOID.KEY_USAGE]
    kind = _kind(usage.value)
    demand(usage.critical, "CRT-006", "The key usage is not critical")
    spki = asn1.encode(tbs.public_key)
    if kind is CertificateKind.IDENTITY:
        identity_public_key(spki)
    else:
        _check_usage(spki, usage.value)
    said = None if preferences is None else _preferences(preferences, kind)
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
        signature_algorithm=algorithm,
        signature=outer.signature.as_bytes(),
        capabilities=said,
    )


def verify_chain(leaf: ParsedCertificate, *, issuing_der: bytes, root_der: bytes, now: datetime) -> None:
    """Verify root, issuing CA and leaf (rules CRT-003, -007, -008, -014), or raise."""
    issuing = verify_authorities(issuing_der=issuing_der, root_der=root_der, now=now)
    check_validity(str(leaf.address), leaf.not_before, leaf.not_after, now)
    if leaf.issuer_der != issuing.subject.public_bytes() or leaf.aki != subject_key_identifier(issuing):
        raise CertificateError("The certificate names another issuer", on=str(leaf.address), rule="CRT-007")
    _verify_leaf(leaf.tbs, leaf.signature_algorithm, leaf.signature, issuing_der)


def common_name_of(name_der: bytes) -> str:
    """Return the one common name of a Name in DER, or an empty text."""
    # The longest of an address has 120; the library's reading of a long one costs many times its size.
    if len(name_der) > _MAX_NAME:
        return ""
    try:
        names = x509.Name.from_bytes(name_der).get_attributes_for_oid(NameOID.COMMON_NAME)
    except (ValueError, TypeError) as error:
        raise not_der("The name cannot be read", on=type(error).__name__) from None
    return str(names[0].value) if len(names) == 1 else ""


_MAX_NAME = 256
_MAX_EXTENSION = 4096
_MOST_FIELDS = 10
_EXTENSIONS = 0xA3
_AKI = b"\x30\x16\x80\x14"  # SEQUENCE of [0] with 20 bytes (RFC 5280 §4.2.1.1)
_CAPABILITIES = oids.SMIME_CAPABILITIES
_LEAF_EXTENSIONS = {
    ExtensionOID.KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
}


@lru_cache(maxsize=4096)
def _verify_leaf(tbs: bytes, algorithm: SignatureAlgorithm, signature: bytes, issuing_der: bytes) -> None:
    key = authority_key(issuing_der)
    try:
        if algorithm is not key.algorithm:
            raise SignatureError
        key.verify(signature, tbs)
    except SignatureError:
        raise CertificateError("The certificate is not signed by the issuing CA", rule="CRT-008") from None


def _tbs(
    *,
    serial: int,
    algorithm: SignatureAlgorithm,
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
        signature=algorithm.identifier,
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


def _extensions(tbs: bytes) -> int:
    """Return how many extensions there are, up to one more than there may be; none of them is decoded."""
    outer = header(tbs, 0, len(tbs))
    count = 0
    for fields, one in enumerate(parts(tbs, outer.content, outer.end), 1):
        demand(fields <= _MOST_FIELDS, "CRT-016", f"There are more than {_MOST_FIELDS} fields")
        if one.tag == _EXTENSIONS and one.content < one.end:
            listed = header(tbs, one.content, one.end)
            some = islice(parts(tbs, listed.content, listed.end), MAX_EXTENSIONS + 1 - count)
            count += sum(1 for _ in some)
    return count


def _key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_agreement: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=key_agreement,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _kind(usage: x509.ExtensionType) -> CertificateKind:
    if usage == _key_usage(digital_signature=True):
        return CertificateKind.IDENTITY
    if usage in (_key_usage(key_encipherment=True), _key_usage(key_agreement=True)):
        return CertificateKind.ENCRYPTION
    raise ProfileError("The key usage is not digitalSignature, keyEncipherment or keyAgreement alone", rule="CRT-006")


def _check_usage(spki: bytes, usage: x509.ExtensionType) -> None:
    # RFC 9935 §5 and RFC 3279 §2.3.1 for what is encrypted to, RFC 5480 §3 for ECDH
    agreed = isinstance(keys.parse_spki(spki)[0], EcAlgorithm)
    fits = usage == _key_usage(key_agreement=agreed, key_encipherment=not agreed)
    demand(fits, "CRT-006", "The key usage is not that of the key: keyAgreement for an EC key, else keyEncipherment")


def _preferences(extension: x509.Extension[x509.ExtensionType], kind: CertificateKind) -> Capabilities:
    good = kind is CertificateKind.ENCRYPTION and not extension.critical
    demand(good, "CRT-005", "Capabilities are for an encryption certificate, and not critical")
    assert isinstance(extension.value, x509.UnrecognizedExtension)
    return parse_capabilities(extension.value.value)


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
