"""Key packages: each rule PKG-… broken once, and pyasn1 reads and writes the same with the types of the RFCs."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.x509 import ObjectIdentifier as Oid
from hypothesis import given, settings
from hypothesis import strategies as st
from pyasn1.codec.der.decoder import decode as ber_decode
from pyasn1.codec.der.encoder import encode as ber_encode
from pyasn1_alt_modules import rfc5958, rfc6031, rfc7191, rfc7906

from pki.core import asn1, attributes, keyattributes, oids, packages, policy
from pki.core.errors import KeymailboxError, MalformedError, PeriodError, ProfileError, UsageError, WrongPartyError
from pki.core.keyattributes import KeyAttributes, KeyPurpose, Period
from pki.core.packages import PKCS8, KeyMaterial
from pki.core.profile import Profile
from pki.core.x509 import name_der
from tests.kit.authority import DAY, NOW, acme, globex

SECOND = timedelta(seconds=1)
SAID = KeyAttributes(
    algorithm=oids.AES256_GCM,
    purpose=KeyPurpose.OPERATIONAL,
    validity=Period(NOW, NOW + 365 * DAY),
    distribution=Period(NOW - DAY, NOW + 30 * DAY),
    receivers=(globex().address, acme().address),
)
TYPES = {
    oids.KEY_ALGORITHM: rfc7906.KeyAlgorithm(),
    oids.KEY_PURPOSE: rfc7906.KeyPurpose(),
    oids.KEY_VALIDITY_PERIOD: rfc7906.KeyValidityPeriod(),
    oids.KEY_DISTRIBUTION_PERIOD: rfc7906.KeyDistPeriod(),
    oids.KEY_PACKAGE_RECEIVERS: rfc7906.KeyPkgReceiversV2(),
}


def pkcs8(key: Any) -> bytes:
    """Return a private key as PKCS #8 in DER."""
    return bytes(
        key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


P8 = pkcs8(Ed25519PrivateKey.generate())
P256 = pkcs8(ec_key(SECP256R1()))


def rule_of(content_type: Oid, der: bytes, kind: type[KeymailboxError] = ProfileError) -> str:
    """Return the rule that a package breaks; its error keeps no part of the content."""
    with pytest.raises(kind) as caught:
        packages.decode_package(content_type, der)
    assert caught.value.part is None
    return caught.value.rule


# Whole packages


@pytest.mark.parametrize(
    ("key", "media_type"),
    [
        (b"k" * 1360, "application/x-covercrypt"),
        (b"-----BEGIN CERTIFICATE-----\n", "application/pem-certificate-chain"),
        (b"-----BEGIN PRIVATE KEY-----\n", "application/x-pem-file"),
        (b'{"kty":"oct","k":"AA"}', "application/jwk+json"),
        (bytes(32), packages.OCTETS),
    ],
)
@pytest.mark.parametrize("said", [KeyAttributes(), SAID], ids=["bare", "all said"])
def test_opaque_material_and_second_opinion(key: bytes, media_type: str, said: KeyAttributes) -> None:
    """Whatever a key is, it comes back with its media type, and pyasn1 reads it with RFC 6031's types."""
    material = KeyMaterial(key, media_type, said)
    content_type, der = packages.encode_package(material)
    assert content_type == oids.SYMMETRIC_KEY_PACKAGE
    assert packages.decode_package(content_type, der) == material
    other, rest = ber_decode(der, asn1Spec=rfc6031.SymmetricKeyPackage())
    assert not rest
    assert bytes(other["sKeys"][0]["sKey"]) == key
    assert ber_encode(other) == der


@pytest.mark.parametrize("key", [P8, P256, pkcs8(MLDSA65PrivateKey.generate())], ids=["Ed25519", "P-256", "ML-DSA-65"])
@pytest.mark.parametrize("said", [KeyAttributes(), SAID], ids=["bare", "all said"])
def test_asymmetric_keys_and_second_opinion(key: bytes, said: KeyAttributes) -> None:
    """A PKCS #8 key comes back byte for byte, and pyasn1 reads it with RFC 5958's types."""
    material = KeyMaterial(key, PKCS8, said)
    content_type, der = packages.encode_package(material)
    assert content_type == oids.ASYMMETRIC_KEY_PACKAGE == Oid(str(rfc5958.id_ct_KP_aKeyPackage))
    assert packages.decode_package(content_type, der) == material
    other, rest = ber_decode(der, asn1Spec=rfc5958.AsymmetricKeyPackage())
    assert not rest
    assert ber_encode(other) == der
    (one,) = other
    plain, _ = ber_decode(key, asn1Spec=rfc5958.OneAsymmetricKey())
    assert bytes(one["privateKey"]) == bytes(plain["privateKey"])
    told = {Oid(str(item["attrType"])) for item in one["attributes"]} if said != KeyAttributes() else set()
    assert told == set(keyattributes.encode(said))


def test_pyasn1_writes_what_we_read() -> None:
    """A package that another encoder made is ours: the same bytes, the same values."""
    plain, _ = ber_decode(P8, asn1Spec=rfc5958.OneAsymmetricKey())
    made = rfc5958.AsymmetricKeyPackage()
    made[0] = plain
    der = ber_encode(made)
    assert (oids.ASYMMETRIC_KEY_PACKAGE, der) == packages.encode_package(KeyMaterial(P8, PKCS8))
    assert packages.decode_package(oids.ASYMMETRIC_KEY_PACKAGE, der).key == P8


def test_own_attributes_of_a_private_key_stay_in_it() -> None:
    """What a key's maker put into its PKCS #8 is part of the key; what we say of it is put beside and taken out."""
    usage = attributes.attribute(Oid("2.5.29.15"), asn1.encode(asn1.BitString(b"\x80", 7)))
    key = asn1.encode(replace(asn1.decode(packages.OneAsymmetricKey, P8, what="key"), attributes=asn1.SetOf([usage])))
    material = KeyMaterial(key, PKCS8, SAID)
    assert packages.decode_package(*packages.encode_package(material)) == material
    bare = packages.decode_package(*packages.encode_package(replace(material, attributes=KeyAttributes())))
    assert bare.key == key


def test_a_private_key_with_its_public_key() -> None:
    """Version 2 of PKCS #8 holds the public key (RFC 5958 §2)."""
    public = asn1.BitString(Ed25519PrivateKey.generate().public_key().public_bytes_raw(), 0)
    one = replace(asn1.decode(packages.OneAsymmetricKey, P8, what="key"), version=1, public_key=public)
    material = KeyMaterial(asn1.encode(one), PKCS8, SAID)
    content_type, der = packages.encode_package(material)
    assert packages.decode_package(content_type, der) == material
    other, _ = ber_decode(der, asn1Spec=rfc5958.AsymmetricKeyPackage())
    assert other[0]["publicKey"].asOctets() == public.as_bytes()


def test_nothing_shows_a_key() -> None:
    """Neither the material nor an error repeats the key."""
    assert "kkkk" not in repr(KeyMaterial(b"kkkk", attributes=SAID))
    der = asn1.encode(
        asn1.SymmetricKeyPackage(version=2, attrs=None, keys=[asn1.OneSymmetricKey(attrs=None, key=b"kkkk")])
    )
    for content_type, broken in ((oids.SYMMETRIC_KEY_PACKAGE, der), (oids.SYMMETRIC_KEY_PACKAGE, der[:-1])):
        with pytest.raises((ProfileError, MalformedError)) as caught:
            packages.decode_package(content_type, broken)
        assert b"kkkk" not in repr(vars(caught.value)).encode() + str(caught.value).encode()


@pytest.mark.parametrize(
    "key",
    [b"-----BEGIN PRIVATE KEY-----", P8 + b"\0", P8[:-1], b"\x30\x00", asn1.encode(b"octets")],
    ids=["PEM", "trailing", "cut off", "empty", "no sequence"],
)
def test_what_is_no_pkcs8_is_not_packed(key: bytes) -> None:
    """The sender hears what to do about a key that is not what its media type says."""
    with pytest.raises(UsageError, match="PKCS #8") as caught:
        packages.encode_package(KeyMaterial(key, PKCS8))
    assert "openssl pkcs8" in caught.value.hint
    encrypted = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    with pytest.raises(UsageError, match="unencrypted"):
        packages.encode_package(KeyMaterial(encrypted, PKCS8))


def test_attributes_are_not_said_twice() -> None:
    """A PKCS #8 key that brings an attribute of ours is refused: there is one place for it."""
    _, der = packages.encode_package(KeyMaterial(P8, PKCS8, KeyAttributes(purpose=KeyPurpose.SAMPLE)))
    with pytest.raises(UsageError, match="beside it"):
        packages.encode_package(KeyMaterial(der[2:], PKCS8))


@pytest.mark.parametrize(("key", "media_type"), [(b"", "a/b"), (b"k", "text"), (b"k", "a/b\n"), (b"k", "A/B")])
def test_bad_material(key: bytes, media_type: str) -> None:
    """An empty key or a media type that is none is refused."""
    with pytest.raises(UsageError):
        KeyMaterial(key, media_type)


# Attributes, by the other encoder


def test_another_decoder_reads_each_attribute() -> None:
    """Each value is the type of RFC 7906, with the same meaning and, encoded again, the same bytes."""
    values = keyattributes.encode(SAID)
    assert {Oid(str(oid)) for oid in (rfc7906.id_kma_keyAlgorithm, rfc7906.id_kma_keyPurpose)} <= set(values)
    read = {}
    for oid, der in values.items():
        read[oid], rest = ber_decode(der, asn1Spec=TYPES[oid])
        assert not rest
        assert ber_encode(read[oid]) == der
    assert str(read[oids.KEY_ALGORITHM]["keyAlg"]) == oids.AES256_GCM.dotted_string
    assert read[oids.KEY_PURPOSE].prettyPrint() == "a"
    assert int(read[oids.KEY_VALIDITY_PERIOD]["doNotUseBefore"]) == int(NOW.timestamp())
    assert int(read[oids.KEY_DISTRIBUTION_PERIOD]["doNotDistAfter"]) == int((NOW + 30 * DAY).timestamp())
    names = [bytes(one["sirEntity"]["sirenValue"]) for one in read[oids.KEY_PACKAGE_RECEIVERS]]
    assert names == [name_der(globex().address), name_der(acme().address)]


def test_the_numbers_are_those_of_the_other_decoder() -> None:
    """Object identifiers and purposes are RFC 7906's, as pyasn1 has them."""
    theirs = (
        rfc7906.id_kma_keyAlgorithm,
        rfc7906.id_kma_keyPurpose,
        rfc7906.id_kma_keyValidityPeriod,
        rfc7906.id_kma_keyDistPeriod,
        rfc7906.id_kma_keyPkgReceiversV2,
    )
    assert [oid.dotted_string for oid in keyattributes.ORDER] == [str(oid) for oid in theirs]
    assert sorted(one.number for one in KeyPurpose) == sorted(rfc7906.KeyPurpose.namedValues.values())


@settings(max_examples=100, deadline=None)
@given(start=st.integers(0, 253402300798), purpose=st.sampled_from(list(KeyPurpose)), data=st.data())
def test_what_another_encoder_writes_comes_in(start: int, purpose: KeyPurpose, data: st.DataObject) -> None:
    """Values made by pyasn1 are read with the same meaning, and are the bytes that we write."""
    end = data.draw(st.none() | st.integers(start + 1, 253402300799))
    validity, spread, enum = rfc7906.KeyValidityPeriod(), rfc7906.KeyDistPeriod(), rfc7906.KeyPurpose(purpose.number)
    validity["doNotUseBefore"] = start
    if end is not None:
        validity["doNotUseAfter"] = end
        spread["doNotDistBefore"] = start
    spread["doNotDistAfter"] = end or start
    algorithm = rfc7906.KeyAlgorithm()
    algorithm["keyAlg"] = "1.2.840.113549.1.1.1"
    receivers = rfc7906.KeyPkgReceiversV2()
    receivers[0]["sirEntity"]["sirenType"] = rfc7191.id_dn
    receivers[0]["sirEntity"]["sirenValue"] = name_der(acme().address)
    values = dict(
        zip(keyattributes.ORDER, map(ber_encode, (algorithm, enum, validity, spread, receivers)), strict=True)
    )
    said = keyattributes.decode(values)
    first = datetime.fromtimestamp(start, UTC)
    last = None if end is None else datetime.fromtimestamp(end, UTC)
    assert said == KeyAttributes(
        algorithm=Oid("1.2.840.113549.1.1.1"),
        purpose=purpose,
        validity=Period(first, last),
        distribution=Period(first, last) if last else Period(None, first),
        receivers=(acme().address,),
    )
    assert keyattributes.encode(said) == values


@pytest.mark.parametrize(
    "make",
    [
        lambda: Period(NOW, NOW),
        lambda: Period(NOW.replace(tzinfo=None)),
        lambda: Period(NOW.replace(microsecond=1)),
        lambda: Period(datetime(1969, 12, 31, tzinfo=UTC)),
        lambda: KeyAttributes(validity=Period(None, NOW)),
        lambda: KeyAttributes(distribution=Period(NOW)),
        lambda: KeyAttributes(receivers=(acme().address,) * 2),
    ],
    ids=["empty", "naive", "fraction", "before 1970", "no start", "no end", "twice"],
)
def test_attributes_that_make_no_sense(make: Any) -> None:
    """What could not be written down is refused where it is said."""
    with pytest.raises(UsageError):
        make()


# The rules, broken


def symmetric(*listed: tuple[Oid, bytes], key: bytes = b"k", **changes: Any) -> bytes:
    """Return a symmetric key package with attributes in this order."""
    attrs = [attributes.attribute(oid, value) for oid, value in listed] or None
    fields = {"version": 1, "attrs": None, "keys": [asn1.OneSymmetricKey(attrs=attrs, key=key)], **changes}
    return asn1.encode(asn1.SymmetricKeyPackage(**fields))


def asymmetric(**changes: Any) -> bytes:
    """Return an asymmetric key package with fields of its one key changed."""
    one = replace(asn1.decode(packages.OneAsymmetricKey, P8, what="key"), **changes)
    return asn1.retagged(0x30, asn1.encode(asn1.encode(one)))


def listed(count: int) -> bytes:
    """Return an asymmetric key package with several keys."""
    return asn1.retagged(0x30, asn1.encode(P8 * count))


def value(spec: Any, **fields: Any) -> bytes:
    """Return a value made by pyasn1."""
    for name, one in fields.items():
        spec[name] = one
    return bytes(ber_encode(spec))


def receivers(*names: bytes, tag: int = 0xA0, kind: Oid = oids.SIREN_DN) -> bytes:
    """Return a list of receivers, put together by hand."""
    made = (asn1.retagged(tag, asn1.encode(asn1.EntityName(kind=kind, value=name))) for name in names)
    return asn1.retagged(0x30, asn1.encode(b"".join(made)))


NAME = name_der(acme().address)
MEDIA = (oids.MEDIA_TYPE, asn1.encode("a/b"))
PURPOSE = (oids.KEY_PURPOSE, asn1.enumerated(65))
ALGORITHM = (oids.KEY_ALGORITHM, value(rfc7906.KeyAlgorithm(), keyAlg="1.2.3"))
SYMMETRIC: list[tuple[str, bytes]] = [
    ("PKG-001", symmetric(version=2)),
    ("PKG-001", symmetric(attrs=[attributes.attribute(*MEDIA)])),
    ("PKG-001", symmetric(keys=[])),
    ("PKG-001", symmetric(keys=[asn1.OneSymmetricKey(attrs=None, key=b"k")] * 2)),
    ("PKG-002", symmetric((oids.CONTENT_TYPE, asn1.encode(oids.DATA)))),
    ("PKG-002", symmetric(MEDIA, MEDIA)),
    ("PKG-002", symmetric(PURPOSE, PURPOSE)),
    ("PKG-003", symmetric(PURPOSE, MEDIA)),
    ("PKG-003", symmetric(MEDIA, PURPOSE, ALGORITHM)),
    ("PKG-005", symmetric((oids.MEDIA_TYPE, asn1.encode(PKCS8)), key=P8)),
    ("PKG-006", symmetric((oids.MEDIA_TYPE, asn1.encode("text")))),
    ("PKG-006", symmetric((oids.MEDIA_TYPE, asn1.encode("A/B")))),
    ("PKG-006", symmetric(key=b"")),
    ("PKG-007", symmetric((oids.KEY_VALIDITY_PERIOD, asn1.retagged(0x30, asn1.encode(asn1.encode(-1)))))),
    ("PKG-007", symmetric((oids.KEY_VALIDITY_PERIOD, value(rfc7906.KeyValidityPeriod(), doNotUseBefore=253402300800)))),
    (
        "PKG-007",
        symmetric(
            (oids.KEY_DISTRIBUTION_PERIOD, value(rfc7906.KeyDistPeriod(), doNotDistBefore=5, doNotDistAfter=5)),
        ),
    ),
    ("PKG-008", symmetric((oids.KEY_ALGORITHM, value(rfc7906.KeyAlgorithm(), keyAlg="1.2.3", crcAlg="1.2.4")))),
    ("PKG-008", symmetric((oids.KEY_PURPOSE, asn1.enumerated(67)))),
    ("PKG-008", symmetric((oids.KEY_PURPOSE, asn1.enumerated(1 << 4000)))),
    ("PKG-009", symmetric((oids.KEY_PACKAGE_RECEIVERS, receivers()))),
    ("PKG-009", symmetric((oids.KEY_PACKAGE_RECEIVERS, receivers(NAME, NAME)))),
    ("PKG-009", symmetric((oids.KEY_PACKAGE_RECEIVERS, receivers(NAME, tag=0xA1)))),
    ("PKG-009", symmetric((oids.KEY_PACKAGE_RECEIVERS, receivers(NAME, kind=oids.DATA)))),
    ("PKG-009", symmetric((oids.KEY_PACKAGE_RECEIVERS, receivers(b"\x30\x00")))),
]
ASYMMETRIC: list[tuple[str, bytes]] = [
    ("PKG-001", listed(0)),
    ("PKG-001", listed(2)),
    ("PKG-002", asymmetric(attributes=asn1.SetOf([attributes.attribute(*PURPOSE), attributes.attribute(*PURPOSE)]))),
    ("PKG-004", asymmetric(version=2)),
    ("PKG-004", asymmetric(public_key=asn1.BitString(b"p", 0))),
    ("PKG-004", asymmetric(attributes=asn1.SetOf([]))),
]


@pytest.mark.parametrize(("rule", "der"), SYMMETRIC, ids=[f"{rule}-{n}" for n, (rule, _) in enumerate(SYMMETRIC)])
def test_broken_symmetric_package(rule: str, der: bytes) -> None:
    """Each rule of a symmetric key package, broken once, names itself."""
    assert rule_of(oids.SYMMETRIC_KEY_PACKAGE, der) == rule


@pytest.mark.parametrize(("rule", "der"), ASYMMETRIC, ids=[f"{rule}-{n}" for n, (rule, _) in enumerate(ASYMMETRIC)])
def test_broken_asymmetric_package(rule: str, der: bytes) -> None:
    """Each rule of an asymmetric key package, broken once, names itself."""
    assert rule_of(oids.ASYMMETRIC_KEY_PACKAGE, der) == rule


def test_another_content_type_is_no_package() -> None:
    """PKG-005: a package is read as what its content type says, and as nothing else."""
    assert rule_of(oids.DATA, symmetric(MEDIA)) == "PKG-005"
    assert rule_of(oids.ASYMMETRIC_KEY_PACKAGE, symmetric(MEDIA), MalformedError) == "DER-001"
    assert rule_of(oids.SYMMETRIC_KEY_PACKAGE, listed(1), MalformedError) == "DER-001"


@pytest.mark.parametrize(
    "listing",
    [
        receivers(*[NAME] * 65),
        receivers(NAME)[:-1],
        asn1.encode(NAME),
    ],
    ids=["too many", "cut off", "no list"],
)
def test_receivers_that_are_no_list(listing: bytes) -> None:
    """A list of receivers is counted before it is decoded."""
    with pytest.raises(MalformedError):
        keyattributes.decode({oids.KEY_PACKAGE_RECEIVERS: listing})


def test_read_takes_more() -> None:
    """READ passes over unknown attributes, in any order, and what has no field; strict refuses all of it."""
    strange = (oids.CONTENT_TYPE, asn1.encode(oids.DATA))
    word = (oids.KEY_ALGORITHM, value(rfc7906.KeyAlgorithm(), keyAlg="1.2.3", checkWordAlg="1.2.4"))
    others = (oids.KEY_PACKAGE_RECEIVERS, receivers(NAME, name_der(globex().address)[:-1] + b"!"))
    der = symmetric(strange, others, word, MEDIA, attrs=[attributes.attribute(*PURPOSE)])
    found = packages.decode_package(oids.SYMMETRIC_KEY_PACKAGE, der, profile=Profile.READ)
    said = KeyAttributes(algorithm=Oid("1.2.3"), purpose=KeyPurpose.OPERATIONAL, receivers=(acme().address,))
    assert found == KeyMaterial(b"k", "a/b", said)
    assert rule_of(oids.SYMMETRIC_KEY_PACKAGE, der) == "PKG-001"
    old = symmetric((oids.MEDIA_TYPE, asn1.encode(PKCS8)), key=b"not even PKCS #8")
    assert packages.decode_package(oids.SYMMETRIC_KEY_PACKAGE, old, profile=Profile.READ).media_type == PKCS8


# Who may have a key, and when


@pytest.mark.parametrize(
    ("period", "ahead"),
    [(Period(NOW, NOW + DAY), -2 * policy.CLOCK_SKEW), (Period(NOW - DAY, NOW), 2 * policy.CLOCK_SKEW)],
    ids=["too early", "too late"],
)
def test_pkg_010_distribution_period(period: Period, ahead: timedelta) -> None:
    """PKG-010: outside of its distribution period a key is handed over to nobody; clocks may differ a little."""
    material = KeyMaterial(b"k", attributes=KeyAttributes(distribution=period))
    policy.check_handover(material, recipient=acme().address, now=NOW)
    policy.check_handover(material, recipient=acme().address, now=NOW + ahead / 2)
    with pytest.raises(PeriodError) as caught:
        policy.check_handover(material, recipient=acme().address, now=NOW + ahead)
    assert (caught.value.rule, caught.value.code) == ("PKG-010", "outside-period")


def test_pkg_011_receivers() -> None:
    """PKG-011: a key that names its receivers is for them alone."""
    named = KeyMaterial(b"k", attributes=KeyAttributes(receivers=(acme().address,)))
    policy.check_handover(named, recipient=acme().address, now=NOW)
    policy.check_handover(KeyMaterial(b"k"), recipient=globex().address, now=NOW)
    with pytest.raises(WrongPartyError) as caught:
        policy.check_handover(named, recipient=globex().address, now=NOW)
    assert caught.value.rule == "PKG-011"


def test_validity_is_told_and_not_judged() -> None:
    """A key for later, or from before, is handed over: what it is used for is its owner's business."""
    later = KeyMaterial(b"k", attributes=KeyAttributes(validity=Period(NOW + DAY, NOW + 2 * DAY)))
    before = KeyMaterial(b"k", attributes=KeyAttributes(validity=Period(NOW - 2 * DAY, NOW - DAY)))
    for material in (later, before):
        policy.check_handover(material, recipient=acme().address, now=NOW)
