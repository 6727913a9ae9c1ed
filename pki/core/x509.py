"""Certificates (RFC 5280): build, parse, verify a chain of root, issuing CA and leaf."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice

from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID

from pki.core import asked, asn1, kem, keys, oids, signatures, usages
from pki.core.authorities import (
    authority_key,
    check_validity,
    signature_algorithm,
    subject_key_identifier,
    verify_authorities,
)
from pki.core.capabilities import Capabilities, parse_capabilities
from pki.core.der import header, located, not_der, parts
from pki.core.envelope import Recipient
from pki.core.errors import (
    BadAddressError,
    CertificateError,
    ProfileError,
    SignatureError,
    demand,
)
from pki.core.ids import Fingerprint, fingerprint
from pki.core.keys import KeyAlgorithm
from pki.core.signatures import IDENTITY, SignatureAlgorithm, VerifyingKey
from pki.core.signatures import Sign as Sign
from pki.core.tenants import Address, parse_address_uri
from pki.core.usages import CertificateKind as CertificateKind
from pki.core.usages import key_usage, usage_of

MAX_CERTIFICATE = 64 * 1024
"""Bytes; an honest one has about 5,500, and 52,000 under SLH-DSA-SHA2-256f."""
MAX_EXTENSIONS = 16


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

    @property
    def recipient(self) -> Recipient:
        """The key of an encryption certificate, to wrap for in the way that its owner prefers."""
        algorithm, public = keys.parse_spki(self.spki)
        if self.capabilities is None:
            return Recipient(self.ski, algorithm, public)
        return Recipient(self.ski, self.capabilities.algorithm(algorithm), public, self.capabilities.kdf)


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


def access_public_key(spki: bytes) -> VerifyingKey:
    """Return the access key of a SubjectPublicKeyInfo; raises AlgorithmError or ProfileError (rule CRT-009)."""
    return signatures.load(spki, allowed={SignatureAlgorithm.ED25519})


def subject_forms(address: Address) -> tuple[bytes, bytes]:
    """Return a request's subject in the ways that tools write it: with UTF8Strings, as `name_der`, or PrintableStrings.

    Both are the same name (RFC 5280 §4.1.2.4, §7.1).
    """
    der = printable = name_der(address)
    for value in (address.tenant, str(address)):
        text = bytes([len(value)]) + value.encode()
        printable = printable.replace(b"\x0c" + text, b"\x13" + text)
    return der, printable


def own_extensions(address: Address, spki: bytes, kind: CertificateKind) -> list[tuple[bool, x509.ExtensionType]]:
    """Return what a certificate says of its owner: whether critical, and what, in the order of the profile.

    The extensions that a request may ask for; what the issuer and the owner's preferences add is not among them.
    """
    clients: list[tuple[bool, x509.ExtensionType]] = [(True, asked.CLIENTS)]
    return [
        (True, usage_of(spki, kind)),
        *(clients if kind is CertificateKind.ACCESS else []),
        (False, alternative_name(address)),
        (False, x509.SubjectKeyIdentifier(key_identifier(spki))),
    ]


def alternative_name(address: Address) -> x509.SubjectAlternativeName:
    """Return the name beside the subject."""
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(address.uri)])


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
    subject = common_name_der(common_name)
    issuer = x509.load_der_x509_certificate(issuer_der) if issuer_der else None
    aki = subject_key_identifier(issuer) if issuer else key_identifier(spki)
    signer = authority_key(issuer_der) if issuer_der else signatures.load(spki, rule="CRT-014")
    return encode_tbs(
        serial=serial,
        algorithm=signer.algorithm,
        issuer=issuer.subject.public_bytes() if issuer else subject,
        subject=subject,
        spki=spki,
        not_before=not_before,
        not_after=not_after,
        extensions=[
            (True, x509.BasicConstraints(ca=True, path_length=path_length)),
            # An issuing CA answers CMP and OCSP itself; a root signs certificates and lists only.
            (True, key_usage(digital_signature=issuer_der is not None, key_cert_sign=True, crl_sign=True)),
            (False, x509.SubjectKeyIdentifier(key_identifier(spki))),
            (False, x509.AuthorityKeyIdentifier(aki, None, None)),
        ],
    )


def encode_tbs(
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
    """Return the to-be-signed part of a certificate of these parts, version 3; names and key are in DER.

    ``algorithm`` is that of the issuer's key; ``extensions`` say whether critical, and what.
    """
    tbs = asn1.TbsCertificate(
        version=2,
        serial=serial,
        signature=algorithm.identifier,
        issuer=asn1.tlv(issuer),
        validity=asn1.Validity(not_before=asn1.time(not_before), not_after=asn1.time(not_after)),
        subject=asn1.tlv(subject),
        public_key=asn1.decode(asn1.SubjectPublicKeyInfo, spki, what="The public key"),
        extensions=[
            asn1.Extension(oid=extension.oid, critical=critical, value=extension.public_bytes())
            for critical, extension in extensions
        ],
    )
    return asn1.encode(tbs)


def assemble(tbs: bytes, signature: bytes) -> bytes:
    """Return the certificate in DER from its to-be-signed part, which names the algorithm, and the signature."""
    algorithm = asn1.decode(asn1.TbsCertificate, tbs, what="The certificate").signature
    return asn1.signed(tbs, algorithm, signature)


@located
def parse_certificate(der: bytes) -> ParsedCertificate:
    """Return an instance's certificate that keeps the profile (rules CRT-001 to CRT-006, -009, -015, -018)."""
    demand(len(der) <= MAX_CERTIFICATE, "CRT-016", f"A certificate has at most {MAX_CERTIFICATE} bytes")
    outer = asn1.decode(asn1.Certificate, der, what="The certificate")
    tbs_der = asn1.encode(outer.tbs)
    demand(_extensions(tbs_der) <= MAX_EXTENSIONS, "CRT-016", f"There are more than {MAX_EXTENSIONS} extensions")
    tbs = asn1.decode(asn1.TbsCertificate, tbs_der, what="The certificate")
    demand(tbs.version == 2, "CRT-001", "The certificate is not of version 3")
    demand(0 < tbs.serial < 1 << 159, "CRT-001", "The serial number is not positive with at most 20 bytes")
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
    clients = extensions.pop(ExtensionOID.EXTENDED_KEY_USAGE, None)
    demand(set(extensions) == _LEAF_EXTENSIONS, "CRT-005", "The certificate does not have exactly our extensions")
    address = _address(extensions[ExtensionOID.SUBJECT_ALTERNATIVE_NAME].value, subject)
    usage = extensions[ExtensionOID.KEY_USAGE]
    kind = usages.kind_of(usage.value, clients)
    demand(usage.critical, "CRT-006", "The key usage is not critical")
    spki = asn1.encode(tbs.public_key)
    if kind is CertificateKind.IDENTITY:
        identity_public_key(spki)
    elif kind is CertificateKind.ACCESS:
        access_public_key(spki)
    else:
        usages.check_fit(spki, usage.value)
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


def authority_key_identifier(tbs: bytes) -> bytes:
    """Return whose key is to sign these to-be-signed bytes of ours (RFC 5280 §4.2.1.1); raises CertificateError."""
    for extension in asn1.decode(asn1.TbsCertificate, tbs, what="The certificate").extensions:
        if extension.oid == ExtensionOID.AUTHORITY_KEY_IDENTIFIER and extension.value.startswith(_AKI):
            return extension.value[len(_AKI) :]
    raise CertificateError("The certificate does not name its issuer's key", rule="CRT-005")


def validity(tbs: bytes) -> tuple[datetime, datetime]:
    """Return start and end of a certificate's to-be-signed bytes, in UTC; raises MalformedError."""
    found = asn1.decode(asn1.TbsCertificate, tbs, what="The certificate").validity
    start, end = (moment.as_datetime().replace(tzinfo=UTC) for moment in (found.not_before, found.not_after))
    return start, end


def verify_chain(leaf: ParsedCertificate, *, issuing_der: bytes, root_der: bytes, now: datetime) -> None:
    """Verify root, issuing CA and leaf (rules CRT-003, -007, -008, -014), or raise."""
    issuing = verify_authorities(issuing_der=issuing_der, root_der=root_der, now=now)
    check_validity(str(leaf.address), leaf.not_before, leaf.not_after, now)
    if (leaf.issuer_der, leaf.aki) != (issuing.subject_der, issuing.ski):
        raise CertificateError("The certificate names another issuer", on=str(leaf.address), rule="CRT-007")
    _verify_leaf(leaf.tbs, leaf.signature_algorithm, leaf.signature, issuing_der)


def common_name_der(name: str) -> bytes:
    """Return the Name in DER that has one common name and nothing else."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]).public_bytes()


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


@lru_cache(maxsize=1024)  # each up to 10 kB, held by every process
def _verify_leaf(tbs: bytes, algorithm: SignatureAlgorithm, signature: bytes, issuing_der: bytes) -> None:
    key = authority_key(issuing_der)
    try:
        if algorithm is not key.algorithm:
            raise SignatureError
        key.verify(signature, tbs)
    except SignatureError:
        raise CertificateError("The certificate is not signed by the issuing CA", rule="CRT-008") from None


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
