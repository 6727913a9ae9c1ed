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

from pki.core import asked, asn1, attributes, oids, requests, signing, usages, x509
from pki.core.certificates import CertificateKind
from pki.core.errors import AlgorithmError, MalformedError, ProfileError, SignatureError
from pki.core.signatures import SignatureAlgorithm
from tests.kit.authority import NOW, acme, globex, new_signing_key

IDENTITY, ENCRYPTION, ACCESS = CertificateKind
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
    _, der, _ = acme().listed(kind)
    request = asn1.decode(asn1.Request, der, what="x")
    info = asn1.encode(change(asn1.decode(asn1.RequestInfo, asn1.encode(request.info), what="x")))
    sign = acme().access_key.sign if kind is ACCESS else acme().key.sign
    fields = {"info": asn1.tlv(info), "signature": asn1.BitString(sign(info), 0), **outer}
    return asn1.encode(replace(request, **fields))


def with_attributes(*listed: asn1.Attribute) -> Callable[[Any], Any]:
    """Return a change of the request's attributes."""
    return lambda info: replace(info, attributes=asn1.SetOf(list(listed)))


def asking(*wishes: asn1.Extension) -> asn1.Attribute:
    """Return an attribute that asks for extensions."""
    return attributes.attribute(oids.EXTENSION_REQUEST, asn1.sequence_of(asn1.encode(one) for one in wishes))


def wish(extension: cx509.ExtensionType, *, critical: bool = False) -> asn1.Extension:
    """Return an extension as it is asked for."""
    return asn1.Extension(oid=extension.oid, critical=critical, value=extension.public_bytes())


NAME = wish(cx509.SubjectAlternativeName([cx509.UniformResourceIdentifier(acme().address.uri)]))
OTHER_NAME = wish(cx509.SubjectAlternativeName([cx509.UniformResourceIdentifier(globex().address.uri)]))
USAGE = wish(usages.SIGNS, critical=True)
KEY_ID = wish(cx509.SubjectKeyIdentifier(acme().ski))
CA = wish(cx509.BasicConstraints(ca=True, path_length=None), critical=True)
CLIENTS = wish(asked.CLIENTS, critical=True)
TIME = attributes.attribute(oids.SIGNING_TIME, signing.encode_time(NOW))
MEDIA = attributes.attribute(oids.MEDIA_TYPE, asn1.encode("a/b"))
PLAIN_NAME = cx509.Name([cx509.NameAttribute(cx509.NameOID.COMMON_NAME, "acme/eu-west")]).public_bytes()
NO_ADDRESS = cx509.Name([cx509.NameAttribute(cx509.NameOID.COMMON_NAME, "acme")]).public_bytes()
SIGNER = asn1.IssuerAndSerial(issuer=asn1.tlv(acme().statement.issuer_der), serial=acme().statement.serial)
TWO_WISHES = asn1.SetOf([asn1.tlv(asn1.sequence_of([])), asn1.tlv(asn1.sequence_of([asn1.encode(NAME)]))])
STATED = [attributes.attribute(oids.POSSESSION_STATEMENT, asn1.encode(asn1.PossessionStatement(signer=SIGNER)))]
BAD_REQUESTS = [
    ("REQ-001", rerequested(lambda i: replace(i, version=1))),
    ("REQ-001", bytes(requests.MAX_REQUEST + 1)),
    ("REQ-002", rerequested(lambda i: i, signature_algorithm=OTHER_ALGORITHM)),
    ("REQ-002", rerequested(lambda i: i, signature_algorithm=WITH_NULL)),
    ("REQ-003", rerequested(lambda i: replace(i, subject=asn1.tlv(PLAIN_NAME)))),
    ("REQ-003", rerequested(lambda i: replace(i, subject=asn1.tlv(NO_ADDRESS)))),
    ("REQ-004", rerequested(with_attributes(asking(), asking()))),
    ("REQ-004", rerequested(with_attributes(asn1.Attribute(oid=oids.EXTENSION_REQUEST, values=TWO_WISHES)))),
    ("REQ-004", rerequested(with_attributes(*STATED), kind=ENCRYPTION)),
    ("REQ-004", rerequested(with_attributes(TIME, *STATED, asking(NAME)), kind=ENCRYPTION)),
    ("REQ-008", rerequested(with_attributes(asking(CA)))),
    ("REQ-008", rerequested(with_attributes(asking(CLIENTS)))),
    ("REQ-008", rerequested(with_attributes(asking(OTHER_NAME)))),
    ("REQ-008", rerequested(with_attributes(asking(replace(NAME, critical=True))))),
    ("REQ-008", rerequested(with_attributes(asking(NAME, NAME)))),
    ("REQ-008", rerequested(with_attributes(asking(CLIENTS, CA)), kind=ACCESS)),
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


@pytest.mark.parametrize(
    "said",
    [(), (TIME,), (asking(),), (asking(NAME, USAGE, KEY_ID),), (asking(replace(USAGE, critical=False)), TIME)],
    ids=["nothing", "time", "no-wish", "all-it-gets", "usage-and-time"],
)
def test_a_plain_request_for_an_identity(said: tuple[asn1.Attribute, ...]) -> None:
    """What other tools make is good: without a time, and asking at most for what the certificate gets anyway."""
    parsed = requests.parse_request(rerequested(with_attributes(*said)))
    found = parsed.verify(acme().key.public)
    assert (found.kind, found.address) == (IDENTITY, acme().address)
    assert found.signing_time == (NOW if TIME in said else None)


def test_no_more_wishes_are_read_than_a_certificate_could_fulfil() -> None:
    """Seventeen are counted before one is decoded; what is no list, or none at all, is no DER of its structure."""
    for value in (asn1.sequence_of([asn1.encode(NAME)] * 17), asn1.encode(5), asn1.sequence_of([b"\x05\x00"])):
        wishes = attributes.attribute(oids.EXTENSION_REQUEST, value)
        with pytest.raises(MalformedError):
            requests.parse_request(rerequested(with_attributes(wishes)))


def test_req_003_a_subject_in_printable_strings() -> None:
    """Java and Go write PrintableString where OpenSSL writes UTF8String: it is the same name."""
    utf8, printable = x509.subject_forms(acme().address)
    assert cx509.Name.from_bytes(printable) == cx509.Name.from_bytes(utf8)
    assert printable != utf8
    parsed = requests.parse_request(rerequested(lambda info: replace(info, subject=asn1.tlv(printable))))
    assert parsed.verify(acme().key.public).address == acme().address


def test_req_005_a_request_for_access() -> None:
    """REQ-005: the access key signs for its own certificate, and for no other; the identity key does not."""
    parsed = requests.parse_request(acme().access_request)
    found = parsed.verify(acme().access_key.public)
    assert (found.kind, found.address, found.spki) == (ACCESS, acme().address, acme().access_key.public.spki)
    for key in (acme().key.public, globex().access_key.public):
        with pytest.raises(SignatureError) as caught:
            parsed.verify(key)
        assert caught.value.rule == "REQ-005"
    forged = rerequested(with_attributes(asking(CLIENTS)), kind=ACCESS, signature=asn1.BitString(bytes(64), 0))
    with pytest.raises(SignatureError):
        requests.parse_request(forged).verify(acme().access_key.public)


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
