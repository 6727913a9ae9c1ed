"""Foreign BER becomes DER in one bounded pass; asn1crypto, which reads BER its own way, agrees."""

from __future__ import annotations

import os

import pytest
from asn1crypto import cms

from pki.core import asn1, envelope, oids, signing
from pki.core.der import header
from pki.core.errors import MalformedError
from pki.core.profile import Profile
from pki.tenant.objects.ber import MAX_DEPTH, to_der
from tests.kit.authority import NOW, acme, globex
from tests.kit.cost import calls, memory

SIGNED = bytes.fromhex("06092a864886f70d010702")
ENVELOPED = bytes.fromhex("060b2a864886f70d0109100117")


def indefinite(tag: int, *parts: bytes) -> bytes:
    """Return a value of indefinite length."""
    return bytes([tag, 0x80]) + b"".join(parts) + b"\0\0"


def definite(tag: int, *parts: bytes) -> bytes:
    """Return a value whose length has four bytes, whether it needs them or not."""
    content = b"".join(parts)
    return bytes([tag, 0x84]) + len(content).to_bytes(4, "big") + content


def pieces(content: bytes, size: int, tag: int = 0x24) -> bytes:
    """Return an OCTET STRING in pieces."""
    return indefinite(tag, *(definite(4, content[at : at + size]) for at in range(0, len(content), size)))


def parts(der: bytes) -> list[bytes]:
    """Return the encodings inside of one value."""
    found, at, outer = [], 0, asn1.tlv(der)
    content = bytes(outer.data)
    while at < len(content):
        one = header(content, at, len(content))
        found.append(content[one.start : one.end])
        at = one.end
    return found


def loosened_envelope(der: bytes) -> bytes:
    """Return an envelope as a streaming tool writes it, its sets turned around."""
    content_type, explicit = parts(der)
    version, recipients, encrypted, attrs, mac = parts(parts(explicit)[0])
    kind, algorithm, ciphertext = parts(encrypted)
    body = bytes(asn1.tlv(ciphertext).data)
    return indefinite(
        0x30,
        content_type,
        indefinite(
            0xA0,
            indefinite(
                0x30,
                version,
                definite(0x31, *reversed(parts(recipients))),
                indefinite(0x30, kind, algorithm, pieces(body, 7, 0xA0)),
                indefinite(0xA1, *reversed(parts(attrs))),
                mac,
            ),
        ),
    )


def loosened_signed(der: bytes) -> bytes:
    """Return a SignedData as a streaming tool writes it, its attributes and its identifier as no DER is."""
    content_type, explicit = parts(der)
    version, digests, encapsulated, signers = parts(parts(explicit)[0])
    kind, held = parts(encapsulated)
    content = bytes(asn1.tlv(parts(held)[0]).data)
    number, ski, digest, attrs, algorithm, signature = parts(parts(signers)[0])
    signer = definite(
        0x30,
        number,
        pieces(bytes(asn1.tlv(ski).data), 9, 0xA0),
        digest,
        indefinite(0xA0, *reversed(parts(attrs))),
        algorithm,
        pieces(bytes(asn1.tlv(signature).data), 1000),
    )
    signed = indefinite(
        0x30, version, digests, indefinite(0x30, kind, indefinite(0xA0, pieces(content, 100))), indefinite(0x31, signer)
    )
    return indefinite(0x30, content_type, indefinite(0xA0, signed))


def test_an_envelope_of_a_streaming_tool_opens() -> None:
    """Indefinite lengths, pieces, unsorted sets: the same DER as before, byte for byte, and it opens."""
    der = envelope.wrap(b"secret" * 40, oids.DATA, [acme().recipient, globex().recipient], context=b"\x05\x00")
    loose = loosened_envelope(der)
    assert loose != der
    assert to_der(loose) == der
    read = envelope.parse(to_der(loose), profile=Profile.READ)
    assert envelope.unwrap(read, globex().kem_ski, globex().decapsulate) == b"secret" * 40


def test_signed_attributes_keep_verifying() -> None:
    """A signature is over the DER of the attributes (RFC 5652 §5.4), in whatever order they were sent."""
    der = acme().deposit(globex())
    loose = loosened_signed(der)
    assert to_der(loose) == der
    signed = signing.parse(to_der(loose), content_types=None, extra=(), profile=Profile.READ)
    assert signed.verify(acme().key.public).content


def test_der_comes_back_itself() -> None:
    """Nothing is copied where nothing is to be done, and what is no CMS object is left alone."""
    deposit = acme().deposit(globex())
    assert to_der(deposit) is deposit
    assert to_der(acme().identity_der) is acme().identity_der
    other = b"\x30\x80\x02\x01\x01\0\0"
    assert to_der(other) is other


def test_a_second_opinion() -> None:
    """asn1crypto, made to write what it read anew, writes the same."""
    der = envelope.wrap(b"secret" * 4000, oids.DATA, [acme().recipient])
    loose = loosened_envelope(der)
    assert cms.ContentInfo.load(loose, strict=True).dump(force=True) == to_der(loose) == der


def test_what_lies_in_a_string_is_not_touched() -> None:
    """The digest is over the content as it was: BER inside of an OCTET STRING stays BER."""
    inside = indefinite(0x30, b"\x05\x00")
    signed = signing.sign(oids.DATA, inside, extra={}, signing_time=NOW, signer_ski=acme().ski, sign=acme().key.sign)
    read = signing.parse(to_der(loosened_signed(signed)), content_types=None, extra=(), profile=Profile.READ)
    assert read.verify(acme().key.public).content == inside


BAD = {
    "nested 20,000 deep": (b"\x30\x80" + ENVELOPED + b"\xa0\x80" + b"\x30\x80" * 20_000, 77),
    "a length of 2^63": (b"\x30\x88\x80" + bytes(7) + ENVELOPED + b"\xa0\x00" + bytes(4000), 0),
    "an inner length of 2^63": (b"\x30\x80" + ENVELOPED + b"\xa0\x80\x30\x88\x80" + bytes(4000), 17),
    "a length of nine bytes": (b"\x30\x80" + ENVELOPED + b"\xa0\x80\x30\x89\x01" + bytes(4000), 17),
    "ten thousand indefinite values": (
        b"\x30\x80" + ENVELOPED + b"\xa0\x80\x31\x80" + b"\x30\x80\0\0" * 10_000,
        19 + 4 * 253,
    ),
    "cut off": (b"\x30\x80" + ENVELOPED + b"\xa0\x80\x30\x80\x04", 19),
    "no end": (b"\x30\x80" + ENVELOPED + b"\xa0\x80\x30\x80\0\0\0\0", 23),
    "a primitive of indefinite length": (b"\x30\x80" + ENVELOPED + b"\xa0\x80\x04\x80\0\0", 17),
    "a long tag": (b"\x30\x80" + ENVELOPED + b"\xa0\x80\x1f\x81\x01\x00", 17),
    "bytes after the end": (indefinite(0x30, ENVELOPED, indefinite(0xA0, b"\x30\x00")) + b"\0", 23),
    "a piece that is no string": (indefinite(0x30, SIGNED, indefinite(0xA0, indefinite(0x24, b"\x02\x01\x01"))), 17),
    "a BIT STRING in pieces": (indefinite(0x30, SIGNED, indefinite(0xA0, definite(0x23, b"\x03\x01\x00"))), 15),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_ber_is_refused_at_once(name: str) -> None:
    """A typed error with the offset, in few steps (not as many as it has values), with hardly any memory."""
    data, offset = BAD[name]

    def refused() -> int | None:
        with pytest.raises(MalformedError) as caught:
            to_der(data)
        return caught.value.offset

    assert refused() == offset
    assert calls(refused) < 10_000
    assert memory(refused) < 64 * 1024


def test_many_values_and_members_are_counted() -> None:
    """Neither a million of the smallest values nor a set of thousands is taken apart."""
    with pytest.raises(MalformedError, match="too many values"):
        to_der(b"\x30\x80" + SIGNED + b"\xa0\x80" + b"\x05\x00" * 1_000_000)
    with pytest.raises(MalformedError, match="more than 1024 members"):
        to_der(indefinite(0x30, SIGNED, indefinite(0xA0, definite(0x31, b"\x05\x00" * 1025))))


def test_memory_and_depth_have_bounds() -> None:
    """Four megabytes in pieces need less than three times that; the deepest nesting that is read is MAX_DEPTH."""
    body = os.urandom(4 << 20)
    kind = bytes.fromhex("06092a864886f70d010701")
    data = indefinite(
        0x30,
        ENVELOPED,
        indefinite(0xA0, indefinite(0x30, b"\x02\x01\x00\x31\x00", indefinite(0x30, kind, pieces(body, 1000, 0xA0)))),
    )
    assert body in to_der(data)
    assert memory(lambda: to_der(data)) < 3 * len(data)
    inner = b"\x05\x00"
    for _ in range(MAX_DEPTH - 1):
        inner = indefinite(0x30, inner)
    to_der(indefinite(0x30, SIGNED, b"\xa0\x00", inner))
    with pytest.raises(MalformedError, match="nested"):
        to_der(indefinite(0x30, SIGNED, b"\xa0\x00", indefinite(0x30, inner)))
