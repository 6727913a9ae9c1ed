"""Signed objects verify under their signer's key alone, and each rule SIG-… is broken once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.x509 import ObjectIdentifier as Oid
from hypothesis import given, settings
from hypothesis import strategies as st
from pqcrypto.sign import ml_dsa_65
from pyasn1.codec.der.decoder import decode as ber_decode
from pyasn1.codec.der.encoder import encode as ber_encode
from pyasn1_alt_modules import rfc5652

from pki.core import asn1, attributes, oids, signatures, signing
from pki.core.errors import AlgorithmError, KeymailboxError, MalformedError, ProfileError, SignatureError
from pki.core.signing import UnverifiedSigned
from tests.kit.authority import NOW, acme, globex

Y2050 = datetime(2050, 1, 1, tzinfo=UTC)
CONTENT = b"what is signed"
EXTRA = {oids.DEPOSIT_DIGEST: asn1.encode(b"digest")}


def signed(**changes: Any) -> bytes:
    """Return an object signed by acme."""
    fields: dict[str, Any] = {
        "extra": EXTRA,
        "signing_time": NOW,
        "signer_ski": acme().ski,
        "sign": acme().key.sign,
        **changes,
    }
    return signing.sign(oids.KEY_PACKAGE_RECEIPT, CONTENT, **fields)


def parse(der: bytes) -> UnverifiedSigned:
    """Parse with the expectations of these tests."""
    return signing.parse(der, content_types={oids.KEY_PACKAGE_RECEIPT}, extra={oids.DEPOSIT_DIGEST})


DER = signed()


def test_round_trip() -> None:
    """What was signed verifies and comes back whole."""
    found = parse(DER).verify(acme().key.public)
    assert (found.content_type, found.content, found.signer_ski) == (oids.KEY_PACKAGE_RECEIPT, CONTENT, acme().ski)
    assert found.signing_time == NOW
    assert found.attributes[oids.DEPOSIT_DIGEST] == EXTRA[oids.DEPOSIT_DIGEST]
    assert found.der == DER


def test_sig_006_another_key() -> None:
    """SIG-006: another key does not verify it."""
    with pytest.raises(SignatureError) as caught:
        parse(DER).verify(globex().key.public)
    assert caught.value.rule == "SIG-006"


def test_sig_006_another_name() -> None:
    """SIG-006: a signer's name that is not the key's is refused."""
    with pytest.raises(SignatureError) as caught:
        parse(signed(signer_ski=globex().ski)).verify(acme().key.public)
    assert caught.value.rule == "SIG-006"


def test_sig_006_other_content() -> None:
    """SIG-006: a digest over other content is refused, although the signature over the attributes is good."""
    info, data, _ = opened(DER)
    changed = replace(data, content=replace(data.content, content=b"another"))
    with pytest.raises(SignatureError) as caught:
        parse(closed(info, changed)).verify(acme().key.public)
    assert caught.value.rule == "SIG-006"


def test_a_digest_that_is_no_digest() -> None:
    """A message digest of another type is malformed, even when it is properly signed."""
    with pytest.raises((MalformedError, SignatureError)):
        parse(signed(extra={**EXTRA, oids.MESSAGE_DIGEST: asn1.encode(5)})).verify(acme().key.public)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(DER) * 8 - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    """No single bit can be changed unseen."""
    changed = bytearray(DER)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(KeymailboxError):
        parse(bytes(changed)).verify(acme().key.public)


def test_another_implementation_verifies() -> None:
    """Pqcrypto verifies our signature over the attributes' DER SET OF, read by pyasn1."""
    content, _ = ber_decode(DER, asn1Spec=rfc5652.ContentInfo())
    data, rest = ber_decode(content["content"], asn1Spec=rfc5652.SignedData())
    assert not rest
    assert ber_encode(data) == bytes(content["content"])
    (info,) = data["signerInfos"]
    listed = rfc5652.SignedAttributes()
    listed.extend(info["signedAttrs"])
    # X.690 §11.6: the order of a SET OF is that of the encodings.
    parts = sorted(ber_encode(item) for item in listed)
    body = b"".join(parts)
    assert 128 <= len(body) < 256
    header = b"\x31\x81" + bytes([len(body)])
    raw = acme().key.public.raw
    ml_dsa_65.verify(raw, header + body, bytes(info["signature"]))
    digests = {str(item["attrType"]): item["attrValues"][0] for item in listed}
    digest, _ = ber_decode(digests[oids.MESSAGE_DIGEST.dotted_string])
    assert bytes(digest) == hashlib.sha512(CONTENT).digest()


def test_we_verify_another_implementation() -> None:
    """A signature that pqcrypto made verifies here."""
    public, private = sorted(ml_dsa_65.keygen(), key=len)
    ski = hashlib.sha256(public).digest()[:20]
    der = signed(sign=lambda message: ml_dsa_65.sign(private, message), signer_ski=ski)
    parse(der).verify(signatures.from_raw(public))


@pytest.mark.parametrize(
    "moment", [NOW, datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)]
)
def test_times(moment: datetime) -> None:
    """Times change form in 2050 and keep whole seconds (RFC 5652 §11.3)."""
    der = signing.encode_time(moment + timedelta(microseconds=7))
    assert der[0] == (0x17 if moment.year < 2050 else 0x18)
    assert signing.decode_time(der) == moment


def test_a_time_in_the_wrong_form() -> None:
    """Before 2050 GeneralizedTime is not DER for a Time."""
    early = asn1.encode(asn1.GeneralizedTime(NOW))
    with pytest.raises(MalformedError):
        signing.decode_time(early)


# Each rule broken once


def opened(der: bytes) -> tuple[Any, Any, Any]:
    """Return ContentInfo, SignedData and SignerInfo."""
    info = asn1.decode(asn1.ContentInfo, der, what="x")
    data = asn1.decode(asn1.SignedData, asn1.encode(info.content), what="x")
    return info, data, data.signer_infos.as_list()[0]


def closed(info: Any, data: Any) -> bytes:
    """Return the DER of a changed object."""
    return asn1.encode(replace(info, content=asn1.tlv(asn1.encode(data))))


def of_data(change: Callable[[Any], Any]) -> bytes:
    """Return the object with its SignedData changed."""
    info, data, _ = opened(DER)
    return closed(info, change(data))


def of_signer(change: Callable[[Any], Any]) -> bytes:
    """Return the object with its SignerInfo changed."""
    info, data, signer = opened(DER)
    return closed(info, replace(data, signer_infos=asn1.SetOf([change(signer)])))


def with_attributes(change: Callable[[list[asn1.Attribute]], list[asn1.Attribute]]) -> bytes:
    """Return the object with its signed attributes changed."""
    return of_signer(lambda s: replace(s, signed_attrs=asn1.SetOf(change(s.signed_attrs.as_list()))))


def swapped(oid: Any, value: bytes) -> bytes:
    """Return the object with one attribute's value changed."""
    return with_attributes(
        lambda listed: [attributes.attribute(oid, value) if item.oid == oid else item for item in listed]
    )


SHA512_NULL = asn1.AlgorithmIdentifier(algorithm=oids.SHA512, parameters=asn1.Null())
SHA256 = asn1.AlgorithmIdentifier(algorithm=Oid("2.16.840.1.101.3.4.2.1"), parameters=None)
ML_DSA_44 = asn1.AlgorithmIdentifier(algorithm=Oid("2.16.840.1.101.3.4.3.17"), parameters=None)
MEDIA = attributes.attribute(oids.MEDIA_TYPE, asn1.encode("a/b"))
BROKEN = [
    ("SIG-001", asn1.encode(asn1.ContentInfo(content_type=oids.DATA, content=asn1.tlv(asn1.encode(b""))))),
    ("SIG-001", of_data(lambda d: replace(d, version=1))),
    ("SIG-002", of_data(lambda d: replace(d, content=replace(d.content, content_type=oids.DATA)))),
    ("SIG-003", of_data(lambda d: replace(d, signer_infos=asn1.SetOf([])))),
    ("SIG-003", of_data(lambda d: replace(d, signer_infos=asn1.SetOf(d.signer_infos.as_list() * 2)))),
    ("SIG-003", of_signer(lambda s: replace(s, version=1))),
    ("SIG-003", of_signer(lambda s: replace(s, sid=b"short"))),
    ("SIG-004", of_signer(lambda s: replace(s, digest_algorithm=SHA256))),
    ("SIG-004", of_signer(lambda s: replace(s, digest_algorithm=SHA512_NULL))),
    ("SIG-004", of_data(lambda d: replace(d, digest_algorithms=asn1.SetOf([SHA256])))),
    ("SIG-004", of_data(lambda d: replace(d, digest_algorithms=asn1.SetOf([])))),
    ("SIG-004", of_signer(lambda s: replace(s, signature_algorithm=ML_DSA_44))),
    ("SIG-004", of_signer(lambda s: replace(s, signature=s.signature[:-1]))),
    ("SIG-005", with_attributes(lambda listed: listed[1:])),
    ("SIG-005", with_attributes(lambda listed: [*listed, MEDIA])),
    ("SIG-005", with_attributes(lambda listed: [*listed, listed[0]])),
    ("SIG-005", swapped(oids.CONTENT_TYPE, asn1.encode(oids.DATA))),
]


@pytest.mark.parametrize(("rule", "der"), BROKEN, ids=[f"{rule}-{n}" for n, (rule, _) in enumerate(BROKEN)])
def test_broken_rule(rule: str, der: bytes) -> None:
    """Each rule of signed objects, broken once, names itself."""
    with pytest.raises((ProfileError, AlgorithmError)) as caught:
        parse(der)
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    "junk",
    [b"", b"\x30\x80\x00\x00", DER + b"\0", DER[:-1], b"\x30" * 20_000, b"\x30\x84\xff\xff\xff\xff", b"\x24" + DER[1:]],
)
def test_junk_is_refused(junk: bytes) -> None:
    """BER, trailing bytes, deep nesting and huge lengths are malformed."""
    with pytest.raises(MalformedError):
        parse(junk)
