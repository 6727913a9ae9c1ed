"""Certificate requests are signed by the identity key, for both kinds: each rule REQ-… broken once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509 as cx509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pyasn1.codec.der.decoder import decode as ber_decode
from pyasn1.codec.der.encoder import encode as ber_encode
from pyasn1_alt_modules import rfc2986, rfc9883

from pki.core import asn1, attributes, oids, requests, signing, x509
from pki.core.certificates import CertificateKind
from pki.core.errors import AlgorithmError, ProfileError, SignatureError
from pki.core.signatures import SignatureAlgorithm
from tests.kit.authority import NOW, acme, globex, new_signing_key

IDENTITY, ENCRYPTION = CertificateKind.IDENTITY, CertificateKind.ENCRYPTION
EC_SPKI = (
    ec.generate_private_key(ec.SECP521R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
)
EC_KEY = asn1.decode(asn1.SubjectPublicKeyInfo, EC_SPKI, what="x")
OTHER_ALGORITHM = asn1.AlgorithmIdentifier(algorithm=oids.SHA512, parameters=None)
WITH_NULL = asn1.AlgorithmIdentifier(algorithm=oids.ML_DSA_65, parameters=asn1.Null())


def test_other_decoders_read_requests() -> None:
    """Two other decoders read what we build, and one writes the same bytes."""
    for der in (acme().identity_request, acme().encryption_request):
        found, rest = ber_decode(der, asn1Spec=rfc2986.CertificationRequest())
        assert not rest
        assert ber_encode(found) == der
    listed = {str(a["type"]): a["values"][0] for a in found["certificationRequestInfo"]["attributes"]}
    value = bytes(listed[oids.POSSESSION_STATEMENT.dotted_string])
    statement, rest = ber_decode(value, asn1Spec=rfc9883.PrivateKeyPossessionStatement())
    assert not rest
    assert int(statement["signer"]["serialNumber"]) == acme().statement.serial
    assert cx509.load_der_x509_csr(acme().identity_request).is_signature_valid


def test_unused_bits_of_a_signature() -> None:
    """REQ-002: unused bits would give one signed request two ids."""
    changed = bytearray(acme().identity_request)
    changed[-1] &= 0xFE
    changed[-SignatureAlgorithm.ML_DSA_65.size - 1] = 1
    with pytest.raises(ProfileError) as caught:
        requests.parse_request(bytes(changed))
    assert caught.value.rule == "REQ-002"


def rerequested(change: Callable[[Any], Any], *, kind: CertificateKind = IDENTITY, **outer: Any) -> bytes:
    """Return a request that acme signed, changed."""
    der = acme().identity_request if kind is IDENTITY else acme().encryption_request
    request = asn1.decode(asn1.Request, der, what="x")
    info = asn1.encode(change(asn1.decode(asn1.RequestInfo, asn1.encode(request.info), what="x")))
    fields = {"info": asn1.tlv(info), "signature": asn1.BitString(acme().key.sign(info), 0), **outer}
    return asn1.encode(replace(request, **fields))


def with_attributes(*listed: asn1.Attribute) -> Callable[[Any], Any]:
    """Return a change of the request's attributes."""
    return lambda info: replace(info, attributes=asn1.SetOf(list(listed)))


TIME = attributes.attribute(oids.SIGNING_TIME, signing.encode_time(NOW))
MEDIA = attributes.attribute(oids.MEDIA_TYPE, asn1.encode("a/b"))
PLAIN_NAME = cx509.Name([cx509.NameAttribute(cx509.NameOID.COMMON_NAME, "acme/eu-west")]).public_bytes()
NO_ADDRESS = cx509.Name([cx509.NameAttribute(cx509.NameOID.COMMON_NAME, "acme")]).public_bytes()
BAD_REQUESTS = [
    ("REQ-001", rerequested(lambda i: replace(i, version=1))),
    ("REQ-001", bytes(requests.MAX_REQUEST + 1)),
    ("REQ-002", rerequested(lambda i: i, signature_algorithm=OTHER_ALGORITHM)),
    ("REQ-002", rerequested(lambda i: i, signature_algorithm=WITH_NULL)),
    ("REQ-003", rerequested(lambda i: replace(i, subject=asn1.tlv(PLAIN_NAME)))),
    ("REQ-003", rerequested(lambda i: replace(i, subject=asn1.tlv(NO_ADDRESS)))),
    ("REQ-004", rerequested(with_attributes())),
    ("REQ-004", rerequested(with_attributes(TIME, TIME))),
    ("REQ-004", rerequested(with_attributes(TIME, MEDIA))),
    ("REQ-004", rerequested(with_attributes(TIME), kind=ENCRYPTION)),
    (
        "CRT-009",
        rerequested(lambda i: replace(i, public_key=EC_KEY)),
    ),
]


@pytest.mark.parametrize(("rule", "der"), BAD_REQUESTS, ids=[f"{rule}-{n}" for n, (rule, _) in enumerate(BAD_REQUESTS)])
def test_a_request_outside_of_the_profile(rule: str, der: bytes) -> None:
    """Each rule of a request's form, broken once, names itself; one without possession is among them."""
    with pytest.raises((ProfileError, AlgorithmError)) as caught:
        requests.parse_request(der)
    assert caught.value.rule == rule


def test_req_005_signature() -> None:
    """REQ-005: a request verifies under its owner's identity key alone."""
    parsed = requests.parse_request(acme().encryption_request)
    found = parsed.verify(acme().key.public)
    assert (found.address, found.kind, found.spki) == (acme().address, ENCRYPTION, acme().kem_spki)
    assert found.statement == acme().statement
    assert found.signing_time == acme().requested
    with pytest.raises(SignatureError) as caught:
        parsed.verify(globex().key.public)
    assert caught.value.rule == "REQ-005"


def test_req_005_stolen_public_key() -> None:
    """REQ-005: asking for a certificate for somebody else's identity key fails, whoever signs."""
    stolen = requests.identity_request(globex().address, acme().spki, sign=globex().key.sign, signing_time=NOW)
    parsed = requests.parse_request(stolen)
    for party in (acme(), globex()):
        with pytest.raises(SignatureError) as caught:
            parsed.verify(party.key.public)
        assert caught.value.rule == "REQ-005"


def test_req_005_an_identity_key_does_not_stand_for_itself() -> None:
    """An EC key that signs is no key to agree with: each is for one use, whatever its owner asks for."""
    key = new_signing_key(SignatureAlgorithm.ECDSA_P256)
    der = requests.encryption_request(
        acme().address,
        key.public.spki,
        requests.Statement(x509.name_der(acme().address), 1),
        sign=key.sign,
        signing_time=NOW,
        algorithm=SignatureAlgorithm.ECDSA_P256,
    )
    with pytest.raises(SignatureError) as caught:
        requests.parse_request(der).verify(key.public)
    assert caught.value.rule == "REQ-005"
