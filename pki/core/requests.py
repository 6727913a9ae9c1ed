"""Certificate requests (PKCS #10, RFC 2986), always signed by the identity key; RFC 9883 for encryption keys."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, attributes, keys, oids, signatures, signing, x509
from pki.core.capabilities import Capabilities, parse_capabilities
from pki.core.der import located
from pki.core.errors import BadAddressError, ProfileError, SignatureError, demand
from pki.core.ids import RequestId, request_id
from pki.core.signatures import IDENTITY, SignatureAlgorithm, VerifyingKey
from pki.core.tenants import Address, parse_address
from pki.core.x509 import CertificateKind, Sign

MAX_REQUEST = 16 * 1024
"""Bytes; an honest request has about 6,000."""


@dataclass(frozen=True)
class Statement:
    """Whose signature stands for possession: issuer (Name in DER) and serial of the identity certificate."""

    issuer_der: bytes
    serial: int


@dataclass(frozen=True)
class VerifiedRequest:
    """A request that the identity key has signed; only `UnverifiedRequest.verify` makes one."""

    id: RequestId
    kind: CertificateKind
    address: Address
    spki: bytes
    signing_time: datetime
    statement: Statement | None
    der: bytes
    capabilities: Capabilities | None = None


@dataclass(frozen=True)
class UnverifiedRequest:
    """A request that keeps the profile (rules REQ-001 to REQ-004)."""

    id: RequestId
    kind: CertificateKind
    address: Address
    spki: bytes
    signing_time: datetime
    statement: Statement | None
    der: bytes
    signature_algorithm: SignatureAlgorithm
    _info: bytes
    _signature: bytes
    capabilities: Capabilities | None = None

    def verify(self, identity_key: VerifyingKey) -> VerifiedRequest:
        """Return the request if ``identity_key`` signed it, else raise SignatureError (rule REQ-005)."""
        if self.kind is CertificateKind.IDENTITY and identity_key.spki != self.spki:
            raise SignatureError("The request is for another identity key", on=str(self.address), rule="REQ-005")
        if self.kind is CertificateKind.ENCRYPTION and identity_key.spki == self.spki:
            # SP 800-57 part 1 §5.2: a key is for one use. ECDSA and ECDH keys look the same.
            raise SignatureError("The identity key is no encryption key", on=str(self.address), rule="REQ-005")
        try:
            if self.signature_algorithm is not identity_key.algorithm:
                raise SignatureError
            identity_key.verify(self._signature, self._info)
        except SignatureError:
            raise SignatureError(
                "The request is not signed by the identity key", on=str(self.address), rule="REQ-005"
            ) from None
        return VerifiedRequest(
            self.id,
            self.kind,
            self.address,
            self.spki,
            self.signing_time,
            self.statement,
            self.der,
            self.capabilities,
        )


def identity_request(
    address: Address,
    spki: bytes,
    *,
    sign: Sign,
    signing_time: datetime,
    algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65,
) -> bytes:
    """Return a request for an identity key of ``algorithm``, signed by itself, in DER."""
    return _request(address, spki, None, sign=sign, signing_time=signing_time, algorithm=algorithm)


def encryption_request(
    address: Address,
    key_spki: bytes,
    statement: Statement,
    *,
    sign: Sign,
    signing_time: datetime,
    algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65,
    capabilities: Capabilities | None = None,
) -> bytes:
    """Return a request for an encryption key in DER, signed by the identity key that ``statement`` names.

    ``algorithm`` is that of ``sign``; ``capabilities`` come into the certificate as they are.
    """
    return _request(
        address,
        key_spki,
        statement,
        sign=sign,
        signing_time=signing_time,
        algorithm=algorithm,
        capabilities=capabilities,
    )


@located
def parse_request(der: bytes) -> UnverifiedRequest:
    """Return a request that keeps the profile; the key decides the kind, for an EC key the possession statement."""
    if len(der) > MAX_REQUEST:
        raise ProfileError(f"The request has more than {MAX_REQUEST} bytes", on=f"{len(der)} bytes", rule="REQ-001")
    outer = asn1.decode(asn1.Request, der, what="The certificate request")
    info_der = asn1.encode(outer.info)
    info = asn1.decode(asn1.RequestInfo, info_der, what="The certificate request")
    if info.version != 0:
        raise ProfileError("The request is not of version 1", rule="REQ-001")
    algorithm = signatures.algorithm_of(outer.signature_algorithm, allowed=IDENTITY, rule="REQ-002")
    if outer.signature.padding_bits():
        raise ProfileError("The signature's bits are not whole bytes", rule="REQ-002")
    spki = asn1.encode(info.public_key)
    kind = _kind(info)
    if kind is CertificateKind.IDENTITY:
        same = x509.identity_public_key(spki).algorithm is algorithm
        demand(same, "REQ-002", "The request for an identity key is signed with another algorithm than the key's")
    else:
        keys.parse_spki(spki)
    required, optional = {oids.SIGNING_TIME}, set[Oid]()
    if kind is CertificateKind.ENCRYPTION:
        required.add(oids.POSSESSION_STATEMENT)
        optional.add(oids.SMIME_CAPABILITIES)
    found = attributes.values(info.attributes.as_list(), required=required, optional=optional, rule="REQ-004")
    said = found.get(oids.SMIME_CAPABILITIES)
    statement = None
    if kind is CertificateKind.ENCRYPTION:
        named = asn1.decode(
            asn1.PossessionStatement, found[oids.POSSESSION_STATEMENT], what="The possession statement"
        ).signer
        statement = Statement(asn1.encode(named.issuer), named.serial)
    return UnverifiedRequest(
        id=request_id(der),
        kind=kind,
        address=_address(asn1.encode(info.subject)),
        spki=spki,
        signing_time=signing.decode_time(found[oids.SIGNING_TIME]),
        statement=statement,
        der=der,
        signature_algorithm=algorithm,
        _info=info_der,
        _signature=outer.signature.as_bytes(),
        capabilities=None if said is None else parse_capabilities(said),
    )


def _kind(info: asn1.RequestInfo) -> CertificateKind:
    key: Oid = info.public_key.algorithm.algorithm
    if key not in _IDENTITY_KEYS:
        return CertificateKind.ENCRYPTION
    # An EC key may be for ECDSA or for ECDH; only for the latter does another key stand (RFC 9883).
    stated = any(one.oid == oids.POSSESSION_STATEMENT for one in info.attributes.as_list())
    return CertificateKind.ENCRYPTION if stated and key == oids.EC_PUBLIC_KEY else CertificateKind.IDENTITY


_IDENTITY_KEYS = {one.key_oid for one in IDENTITY}


def _request(
    address: Address,
    spki: bytes,
    statement: Statement | None,
    *,
    sign: Sign,
    signing_time: datetime,
    algorithm: SignatureAlgorithm,
    capabilities: Capabilities | None = None,
) -> bytes:
    listed = [attributes.attribute(oids.SIGNING_TIME, signing.encode_time(signing_time))]
    if statement is not None:
        signer = asn1.IssuerAndSerial(issuer=asn1.tlv(statement.issuer_der), serial=statement.serial)
        value = asn1.encode(asn1.PossessionStatement(signer=signer))
        listed.append(attributes.attribute(oids.POSSESSION_STATEMENT, value))
    if capabilities is not None:
        listed.append(attributes.attribute(oids.SMIME_CAPABILITIES, capabilities.der))
    info = asn1.encode(
        asn1.RequestInfo(
            version=0,
            subject=asn1.tlv(x509.name_der(address)),
            public_key=asn1.decode(asn1.SubjectPublicKeyInfo, spki, what="The public key"),
            attributes=asn1.SetOf(listed),
        )
    )
    request = asn1.Request(
        info=asn1.tlv(info),
        signature_algorithm=algorithm.identifier,
        signature=asn1.BitString(sign(info), 0),
    )
    return asn1.encode(request)


def _address(subject_der: bytes) -> Address:
    try:
        address = parse_address(x509.common_name_of(subject_der))
    except BadAddressError as error:
        raise ProfileError("The request's common name is not an address", on=error.on, rule="REQ-003") from None
    if x509.name_der(address) != subject_der:
        raise ProfileError("The request's subject is not exactly O = tenant, CN = address", rule="REQ-003")
    return address
