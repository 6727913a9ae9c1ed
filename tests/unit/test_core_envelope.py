"""The envelope opens for its recipients alone, and each rule ENV-… is broken once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyasn1.codec.der.decoder import decode as ber_decode
from pyasn1.codec.der.encoder import encode as ber_encode
from pyasn1_alt_modules import rfc5083, rfc5652, rfc9629

from pki.core import asn1, attributes, envelope, kem, oids
from pki.core.envelope import Recipient
from pki.core.errors import AlgorithmError, KeymailboxError, ProfileError, UnavailableError, UnwrapError
from pki.core.kem import MADE, KemAlgorithm
from tests.kit.authority import acme, globex

CONTEXT = asn1.encode("a context")
ABSENT = asn1.AlgorithmIdentifier(algorithm=oids.SHA512, parameters=None)
Change = Callable[[Any], Any]


def wrapped() -> bytes:
    """Return an envelope for globex."""
    return envelope.wrap(b"content", oids.DATA, [globex().recipient], context=CONTEXT)


DER = wrapped()


@pytest.mark.parametrize("algorithm", MADE)
@pytest.mark.parametrize("context", [None, CONTEXT])
def test_round_trip(algorithm: KemAlgorithm, context: bytes | None) -> None:
    """What was wrapped for a key opens with it, content, type and context alike."""
    party = acme(algorithm)
    parsed = envelope.parse(envelope.wrap(b"content", oids.DATA, [party.recipient], context=context))
    assert (parsed.content_type, parsed.context) == (oids.DATA, context)
    assert [(r.ski, r.algorithm) for r in parsed.recipients] == [(party.kem_ski, algorithm)]
    assert envelope.unwrap(parsed, party.kem_ski, party.decapsulate) == b"content"


def test_several_recipients() -> None:
    """Each recipient opens the same envelope; one who is not named cannot."""
    both = envelope.parse(envelope.wrap(b"c", oids.DATA, [acme().recipient, globex().recipient]))
    for party in (acme(), globex()):
        assert envelope.unwrap(both, party.kem_ski, party.decapsulate) == b"c"
    with pytest.raises(UnwrapError):
        envelope.unwrap(both, bytes(20), globex().decapsulate)


def test_every_failure_is_the_same_error() -> None:
    """A wrong key, a wrong wrap, a wrong tag and a broken holder cannot be told apart (no oracle)."""
    parsed = envelope.parse(DER)
    (recipient,) = parsed.recipients
    ski = globex().kem_ski

    def broken(algorithm: KemAlgorithm, ciphertext: bytes) -> bytes:
        raise ValueError("inner detail")

    attempts: list[tuple[envelope.ParsedEnvelope, Callable[[KemAlgorithm, bytes], bytes]]] = [
        (parsed, acme().decapsulate),
        (parsed, broken),
        (parsed, lambda algorithm, ciphertext: b""),
        (replace(parsed, mac=bytes(16)), globex().decapsulate),
        (replace(parsed, ciphertext=bytes([parsed.ciphertext[0] ^ 1]) + parsed.ciphertext[1:]), globex().decapsulate),
        (replace(parsed, aad=b""), globex().decapsulate),
        (replace(parsed, recipients=(replace(recipient, encrypted_key=bytes(40)),)), globex().decapsulate),
        (replace(parsed, recipients=(replace(recipient, ukm=b"x"),)), globex().decapsulate),
        (replace(parsed, recipients=()), globex().decapsulate),
    ]
    told = set()
    for attempt, decapsulate in attempts:
        with pytest.raises(UnwrapError) as caught:
            envelope.unwrap(attempt, ski, decapsulate)
        told.add((str(caught.value), caught.value.on, caught.value.rule, caught.value.hint, caught.value.__cause__))
        assert caught.value.__context__ is None
    assert len(told) == 1


def test_an_absent_holder_is_not_a_bad_envelope() -> None:
    """When the KMS is away the caller is told so, and does not refuse a good deposit."""

    def away(algorithm: KemAlgorithm, ciphertext: bytes) -> bytes:
        raise UnavailableError

    with pytest.raises(UnavailableError):
        envelope.unwrap(envelope.parse(DER), globex().kem_ski, away)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(DER) * 8 - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    """No single bit can be changed unseen."""
    changed = bytearray(DER)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(KeymailboxError):
        envelope.unwrap(envelope.parse(bytes(changed)), globex().kem_ski, globex().decapsulate)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_junk_is_refused(junk: bytes) -> None:
    """Junk, cut off and prolonged envelopes raise our errors only."""
    for bad in (junk, DER + junk[:1] + b"\0", DER[: len(junk)]):
        with pytest.raises(KeymailboxError):
            envelope.parse(bad)


def test_another_decoder_reads_the_same() -> None:
    """pyasn1 reads envelope and recipient with RFC 5083's and RFC 9629's types and writes the same bytes."""
    info, rest = ber_decode(DER, asn1Spec=rfc5652.ContentInfo())
    assert not rest
    assert str(info["contentType"]) == oids.AUTH_ENVELOPED_DATA.dotted_string
    data, rest = ber_decode(info["content"], asn1Spec=rfc5083.AuthEnvelopedData())
    assert not rest
    assert ber_encode(data) == bytes(info["content"])
    other = data["recipientInfos"][0]["ori"]
    recipient, rest = ber_decode(other["oriValue"], asn1Spec=rfc9629.KEMRecipientInfo())
    assert not rest
    assert ber_encode(recipient) == bytes(other["oriValue"])
    assert bytes(recipient["rid"]["subjectKeyIdentifier"]) == globex().kem_ski
    assert (int(recipient["version"]), int(recipient["kekLength"])) == (0, 32)


# Each rule broken once


def altered(change: Change, *, outer: Change = lambda info: info) -> bytes:
    """Return the envelope with its AuthEnvelopedData changed."""
    info = asn1.decode(asn1.ContentInfo, DER, what="x")
    data = change(asn1.decode(asn1.AuthEnvelopedData, asn1.encode(info.content), what="x"))
    return asn1.encode(outer(replace(info, content=asn1.tlv(asn1.encode(data)))))


def of_recipient(change: Change, *, tag: int = 0xA4, kind: Any = oids.KEM_RECIPIENT_INFO) -> bytes:
    """Return the envelope with its recipient changed."""

    def inner(data: Any) -> Any:
        slot = asn1.encode(data.recipients.as_list()[0])
        other = asn1.decode(asn1.OtherRecipient, b"\x30" + slot[1:], what="x")
        info = change(asn1.decode(asn1.KemRecipient, asn1.encode(other.value), what="x"))
        changed = asn1.encode(replace(other, kind=kind, value=asn1.tlv(asn1.encode(info))))
        return replace(data, recipients=asn1.SetOf([asn1.tlv(bytes([tag]) + changed[1:])]))

    return altered(inner)


def of_content(change: Change) -> bytes:
    """Return the envelope with its EncryptedContentInfo changed."""
    return altered(lambda data: replace(data, encrypted=change(data.encrypted)))


def gcm(**fields: Any) -> bytes:
    """Return the envelope with other GCM parameters."""
    parameters = asn1.tlv(asn1.encode(asn1.GcmParameters(**{"nonce": bytes(12), "tag_length": 16, **fields})))
    return of_content(lambda content: replace(content, algorithm=replace(content.algorithm, parameters=parameters)))


def auth(*listed: asn1.Attribute) -> bytes:
    """Return the envelope with other authenticated attributes."""
    return altered(lambda data: replace(data, auth_attrs=asn1.SetOf(list(listed)) if listed else None))


TYPE = attributes.attribute(oids.CONTENT_TYPE, asn1.encode(oids.DATA))
TWICE = asn1.Attribute(oid=oids.CONTENT_TYPE, values=asn1.SetOf([asn1.tlv(asn1.encode(oids.DATA))] * 2))
KEM_WITH_NULL = asn1.AlgorithmIdentifier(algorithm=oids.ML_KEM_768_X25519, parameters=asn1.Null())
BROKEN = [
    ("ENV-001", altered(lambda d: d, outer=lambda info: replace(info, content_type=oids.DATA))),
    ("ENV-002", altered(lambda d: replace(d, version=1))),
    ("ENV-002", of_recipient(lambda r: replace(r, version=1))),
    ("ENV-003", altered(lambda d: replace(d, recipients=asn1.SetOf([])))),
    ("ENV-003", altered(lambda d: replace(d, recipients=asn1.SetOf(d.recipients.as_list() * 2)))),
    ("ENV-003", altered(lambda d: replace(d, recipients=asn1.SetOf(d.recipients.as_list() * 17)))),
    ("ENV-004", of_recipient(lambda r: r, tag=0xA3)),
    ("ENV-004", of_recipient(lambda r: r, kind=oids.DATA)),
    ("ENV-004", of_recipient(lambda r: replace(r, kem=ABSENT))),
    ("ENV-004", of_recipient(lambda r: replace(r, kem=KEM_WITH_NULL))),
    ("ENV-005", of_recipient(lambda r: replace(r, kem_ciphertext=r.kem_ciphertext[:-1]))),
    ("ENV-005", of_recipient(lambda r: replace(r, rid=r.rid[:-1]))),
    ("ENV-006", of_recipient(lambda r: replace(r, kdf=ABSENT))),
    ("ENV-006", of_recipient(lambda r: replace(r, kdf=replace(r.kdf, parameters=asn1.Null())))),
    ("ENV-007", of_recipient(lambda r: replace(r, wrap=ABSENT))),
    ("ENV-007", of_recipient(lambda r: replace(r, kek_length=16))),
    ("ENV-007", of_recipient(lambda r: replace(r, encrypted_key=r.encrypted_key[:-8]))),
    ("ENV-008", of_content(lambda c: replace(c, algorithm=ABSENT))),
    ("ENV-009", of_content(lambda c: replace(c, algorithm=replace(c.algorithm, parameters=None)))),
    ("ENV-009", gcm(nonce=bytes(13))),
    ("ENV-010", gcm(tag_length=12)),
    ("ENV-010", altered(lambda d: replace(d, mac=d.mac[:12]))),
    ("ENV-011", auth()),
    ("ENV-011", auth(attributes.attribute(oids.DEPOSIT_CONTEXT, CONTEXT))),
    ("ENV-011", auth(TYPE, attributes.attribute(oids.MEDIA_TYPE, CONTEXT))),
    ("ENV-011", auth(TYPE, TYPE)),
    ("ENV-011", auth(TWICE)),
    ("ENV-012", of_content(lambda c: replace(c, content_type=oids.SYMMETRIC_KEY_PACKAGE))),
]


@pytest.mark.parametrize(("rule", "der"), BROKEN, ids=[f"{rule}-{n}" for n, (rule, _) in enumerate(BROKEN)])
def test_broken_rule(rule: str, der: bytes) -> None:
    """Each rule of the envelope, broken once, names itself."""
    with pytest.raises((ProfileError, AlgorithmError)) as caught:
        envelope.parse(der)
    assert caught.value.rule == rule


def test_a_malformed_public_key_is_not_wrapped_for() -> None:
    """The sender's side refuses a malformed key before anything is made."""
    with pytest.raises(ProfileError):
        envelope.wrap(b"c", oids.DATA, [Recipient(bytes(20), KemAlgorithm.ML_KEM_768, b"\xff" * 1184)])


def test_kem_names() -> None:
    """People read names, not numbers."""
    assert kem.KemAlgorithm.COMPOSITE.title == "MLKEM768-X25519-SHA3-256"
