"""Certificate requests (PKCS #10, RFC 2986; CMP, RFC 9810), signed by the identity key; for access by its own key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asked, asn1, attributes, keys, oids, signatures, signing, usages, x509
from pki.core.capabilities import Capabilities, parse_capabilities
from pki.core.cmp import bodies, messages
from pki.core.cmp.protection import SignedBy
from pki.core.cmp.types import Body
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
    """A request that its owner's key has signed; only `UnverifiedRequest.verify` makes one."""

    id: RequestId
    kind: CertificateKind
    address: Address
    spki: bytes
    signing_time: datetime | None
    """None in what another tool made for an identity or access key (docs/adr/0016)."""
    statement: Statement | None
    der: bytes
    capabilities: Capabilities | None = None


@dataclass(frozen=True)
class UnverifiedRequest:
    """A request that keeps the profile (rules REQ-001 to REQ-004, REQ-008)."""

    id: RequestId
    kind: CertificateKind
    address: Address
    spki: bytes
    signing_time: datetime | None
    statement: Statement | None
    der: bytes
    signature_algorithm: SignatureAlgorithm
    _info: bytes
    _signature: bytes
    capabilities: Capabilities | None = None
    _also: tuple[bytes, bytes] | None = None
    """Bytes and signature that have to be the identity key's too: a CMP message has two."""

    def verify(self, key: VerifyingKey) -> VerifiedRequest:
        """Return the request if ``key`` signed it, else raise SignatureError (rule REQ-005).

        ``key`` is the owner's identity key; for an access certificate it is the access key.
        """
        signer = "access" if self.kind is CertificateKind.ACCESS else "identity"
        if self.kind is not CertificateKind.ENCRYPTION and key.spki != self.spki:
            raise SignatureError(f"The request is for another {signer} key", on=str(self.address), rule="REQ-005")
        if self.kind is CertificateKind.ENCRYPTION and key.spki == self.spki:
            # SP 800-57 part 1 §5.2: a key is for one use. ECDSA and ECDH keys look the same.
            raise SignatureError("The identity key is no encryption key", on=str(self.address), rule="REQ-005")
        try:
            if self.signature_algorithm is not key.algorithm:
                raise SignatureError
            key.verify(self._signature, self._info)
            if self._also is not None:
                key.verify(self._also[1], self._also[0])
        except SignatureError:
            raise SignatureError(
                f"The request is not signed by the {signer} key", on=str(self.address), rule="REQ-005"
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


def access_request(address: Address, spki: bytes, *, sign: Sign, signing_time: datetime) -> bytes:
    """Return a request for the certificate of an access key (Ed25519), signed by itself, in DER."""
    algorithm = SignatureAlgorithm.ED25519
    return _request(address, spki, None, sign=sign, signing_time=signing_time, algorithm=algorithm, clients=True)


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
    """Return a request that keeps the profile, PKCS #10 or a CMP message without certificates that come along.

    The key decides the kind, for an EC key the possession statement, for an Ed25519 key what it asks for; in CMP the
    proof of possession does.
    """
    if len(der) > MAX_REQUEST:
        raise ProfileError(f"The request has more than {MAX_REQUEST} bytes", on=f"{len(der)} bytes", rule="REQ-001")
    if messages.is_message(der):
        return _of_message(der)
    outer = asn1.decode(asn1.Request, der, what="The certificate request")
    info_der = asn1.encode(outer.info)
    info = asn1.decode(asn1.RequestInfo, info_der, what="The certificate request")
    if info.version != 0:
        raise ProfileError("The request is not of version 1", rule="REQ-001")
    algorithm = signatures.algorithm_of(outer.signature_algorithm, allowed=IDENTITY, rule="REQ-002")
    if outer.signature.padding_bits():
        raise ProfileError("The signature's bits are not whole bytes", rule="REQ-002")
    spki = asn1.encode(info.public_key)
    listed = info.attributes.as_list()
    wanted = _asked(listed)
    kind = _kind(info, listed, wanted)
    if kind is CertificateKind.ENCRYPTION:
        keys.parse_spki(spki)
    else:
        key = (x509.identity_public_key if kind is CertificateKind.IDENTITY else x509.access_public_key)(spki)
        demand(key.algorithm is algorithm, "REQ-002", "The request is signed with another algorithm than its key's")
    required, optional = _ATTRIBUTES[kind]
    found = attributes.values(listed, required=required, optional=optional, rule="REQ-004")
    address = _address(asn1.encode(info.subject))
    if kind is not CertificateKind.ENCRYPTION:
        given = x509.own_extensions(address, spki, kind)
        asked.check(wanted.values(), given, on=str(address), rule="REQ-008")
    signed = found.get(oids.SIGNING_TIME)
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
        address=address,
        spki=spki,
        signing_time=None if signed is None else signing.decode_time(signed),
        statement=statement,
        der=der,
        signature_algorithm=algorithm,
        _info=info_der,
        _signature=outer.signature.as_bytes(),
        capabilities=None if said is None else parse_capabilities(said),
    )


def _of_message(der: bytes) -> UnverifiedRequest:
    """Read an ir, cr or kur (docs/adr/0015).

    For an identity key, the key itself has signed the request. That has no time but a notBefore that may be asked for,
    which stands for it where a secret protects the message (docs/adr/0016). For an encryption key, the identity key
    has signed the message, and its messageTime is the signing time.
    """
    message = messages.parse(der)
    demand(message.bare == der, "REQ-001", "Certificates come along with the request")
    demand(message.kind in _ASKING, "REQ-001", "The CMP message is no request for a certificate")
    wanted = bodies.parse_key_request(message.content)
    address = _address(wanted.subject_der)
    kind = CertificateKind.ENCRYPTION if wanted.proof is None else CertificateKind.IDENTITY
    _check_extensions(wanted, address, kind)
    whole = None
    if isinstance(message.algorithm, SignedBy):
        whole = bodies.Signed(message.algorithm.algorithm, message.protected, message.protection)
    first = wanted.proof or whole
    time = message.header.time if whole is not None else wanted.not_before
    if first is None:
        raise ProfileError("A request for an encryption key is signed by the identity key", rule="CMP-006")
    demand(time is not None or whole is None, "CMP-007", "A signed message has to say when, by its messageTime")
    if kind is CertificateKind.IDENTITY:
        same = x509.identity_public_key(wanted.spki).algorithm is first.algorithm
        demand(same, "REQ-002", "The request for an identity key is signed with another algorithm than the key's")
    else:
        keys.parse_spki(wanted.spki)
    also = whole if whole is not None and wanted.proof is not None else None
    demand(also is None or also.algorithm is first.algorithm, "REQ-002", "The two signatures are of two algorithms")
    return UnverifiedRequest(
        id=request_id(der),
        kind=kind,
        address=address,
        spki=wanted.spki,
        signing_time=time,
        statement=None,
        der=der,
        signature_algorithm=first.algorithm,
        _info=first.message,
        _signature=first.signature,
        capabilities=None if wanted.capabilities is None else parse_capabilities(wanted.capabilities),
        _also=None if also is None else (also.message, also.signature),
    )


_ASKING = {Body.IR, Body.CR, Body.KUR}


def _check_extensions(wanted: bodies.KeyRequest, address: Address, kind: CertificateKind) -> None:
    """Demand that what is asked for is what would be issued anyway (rule CMP-005)."""
    named = wanted.names in (None, x509.alternative_name(address).public_bytes())
    demand(named, "CMP-005", "The name that is asked for is not the address's")
    used = wanted.usage is None or wanted.usage == usages.usage_of(wanted.spki, kind).public_bytes()
    demand(used, "CMP-005", "The key usage that is asked for is not the key's")
    fits = wanted.capabilities is None or kind is CertificateKind.ENCRYPTION
    demand(fits, "CMP-005", "Capabilities are for an encryption key")


def _asked(listed: Sequence[asn1.Attribute]) -> Mapping[Oid, asn1.Extension]:
    for one in listed:
        if one.oid == oids.EXTENSION_REQUEST:
            # Its first value; more than one are refused with the attributes.
            return asked.parse(next((asn1.encode(value) for value in one.values.as_list()), b""), rule="REQ-008")
    return {}


def _kind(
    info: asn1.RequestInfo, listed: Sequence[asn1.Attribute], wanted: Mapping[Oid, asn1.Extension]
) -> CertificateKind:
    key: Oid = info.public_key.algorithm.algorithm
    if key not in _IDENTITY_KEYS:
        return CertificateKind.ENCRYPTION
    if key == oids.ED25519 and asked.for_clients(wanted):
        return CertificateKind.ACCESS
    # An EC key may be for ECDSA or for ECDH; only for the latter does another key stand (RFC 9883).
    stated = any(one.oid == oids.POSSESSION_STATEMENT for one in listed)
    return CertificateKind.ENCRYPTION if stated and key == oids.EC_PUBLIC_KEY else CertificateKind.IDENTITY


_IDENTITY_KEYS = {one.key_oid for one in IDENTITY}
_ATTRIBUTES: Mapping[CertificateKind, tuple[frozenset[Oid], frozenset[Oid]]] = {
    CertificateKind.IDENTITY: (frozenset(), frozenset({oids.SIGNING_TIME, oids.EXTENSION_REQUEST})),
    CertificateKind.ACCESS: (frozenset({oids.EXTENSION_REQUEST}), frozenset({oids.SIGNING_TIME})),
    CertificateKind.ENCRYPTION: (
        frozenset({oids.SIGNING_TIME, oids.POSSESSION_STATEMENT}),
        frozenset({oids.SMIME_CAPABILITIES}),
    ),
}
"""What each kind of request has to say, and what it may."""


def _request(
    address: Address,
    spki: bytes,
    statement: Statement | None,
    *,
    sign: Sign,
    signing_time: datetime,
    algorithm: SignatureAlgorithm,
    capabilities: Capabilities | None = None,
    clients: bool = False,
) -> bytes:
    listed = [attributes.attribute(oids.SIGNING_TIME, signing.encode_time(signing_time))]
    if statement is not None:
        signer = asn1.IssuerAndSerial(issuer=asn1.tlv(statement.issuer_der), serial=statement.serial)
        value = asn1.encode(asn1.PossessionStatement(signer=signer))
        listed.append(attributes.attribute(oids.POSSESSION_STATEMENT, value))
    if capabilities is not None:
        listed.append(attributes.attribute(oids.SMIME_CAPABILITIES, capabilities.der))
    if clients:
        wish = asn1.Extension(oid=asked.CLIENTS.oid, critical=True, value=asked.CLIENTS.public_bytes())
        listed.append(attributes.attribute(oids.EXTENSION_REQUEST, asn1.sequence_of([asn1.encode(wish)])))
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
    if subject_der not in x509.subject_forms(address):
        raise ProfileError("The request's subject is not exactly O = tenant, CN = address", rule="REQ-003")
    return address
