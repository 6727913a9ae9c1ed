"""The shape of DER: what leaves it is refused with the offset, at once, however large it claims to be."""

from __future__ import annotations

import pytest

from pki.core import asn1
from pki.core.deposits import parse_deposit
from pki.core.der import MAX_DEPTH, complaint, walk
from pki.core.errors import MalformedError, ProfileError
from tests.kit.authority import acme, globex


def nested(depth: int) -> bytes:
    """Return a SEQUENCE in a SEQUENCE in …, ``depth`` of them."""
    value = b""
    for _ in range(depth):
        length = len(value)
        size = bytes([length]) if length < 0x80 else bytes([0x80 | 3]) + length.to_bytes(3, "big")
        if 0x80 <= length < 0x10000:
            size = bytes([0x82]) + length.to_bytes(2, "big") if length > 0xFF else bytes([0x81, length])
        value = b"\x30" + size + value
    return value


@pytest.mark.parametrize(
    ("der", "offset", "words"),
    [
        (b"", 0, "cut off"),
        (b"\x30", 0, "cut off"),
        (b"\x30\x03\x02\x01", 0, "over the end"),
        (b"\x30\x03\x02\x05\x01", 2, "over the end"),
        (b"\x30\x80\x00\x00", 0, "indefinite"),
        (b"\x30\x05\x02\x01\x05\x24\x80", 5, "indefinite"),
        (b"\x30\x88\x80\x00\x00\x00\x00\x00\x00\x00", 0, "more than 4 bytes"),
        (b"\x30\x84\x80\x00\x00\x00", 0, "over the end"),
        (b"\x30\x81\x03\x02\x01\x05", 0, "shortest form"),
        (b"\x30\x03\x02\x01\x05\x00", 5, "follow after the end"),
        (b"\x3f\x81\x01\x00", 0, "tag number"),
        (nested(MAX_DEPTH + 2), 2 * MAX_DEPTH, "nested"),
    ],
)
def test_complaint(der: bytes, offset: int, words: str) -> None:
    """Whatever leaves the shape of DER is named with the offset where it does."""
    wrong = complaint(der)
    assert wrong is not None
    assert (wrong.rule, wrong.offset) == ("DER-001", offset)
    assert words in wrong.message


def test_bounds() -> None:
    """A walk ends at the value that is one too many; a complaint has looked at enough long before, and says nothing."""
    many = b"\x30\x82\x27\x10" + b"\x05\x00" * 5000
    with pytest.raises(MalformedError) as caught:
        list(walk(many))
    assert caught.value.offset == 4 + 2 * 4095
    assert complaint(many) is None


def test_walk() -> None:
    """A walk yields every header with its depth, in the order of the bytes."""
    found = [(one.tag, one.start, one.depth) for one in walk(bytes.fromhex("3008 0201 05 3003 0401 ff"))]
    assert found == [(0x30, 0, 0), (0x02, 2, 1), (0x30, 5, 1), (0x04, 7, 2)]
    assert complaint(bytes.fromhex("30030201 05")) is None


def test_deep_nesting_costs_nothing() -> None:
    """Twenty thousand levels are refused at the first that is too many."""
    with pytest.raises(MalformedError) as caught:
        asn1.decode(asn1.ContentInfo, nested(20_000), what="The object")
    assert caught.value.offset is not None
    assert caught.value.offset <= 5 * (MAX_DEPTH + 1)


def test_offset_in_the_whole() -> None:
    """A fault in an inner part is told with its offset in the whole object."""
    der = acme().deposit(globex())
    mark = b"\x02\x01\x10"  # the tag length of the GCM parameters, in the envelope, in the signed content
    inner = der.index(mark + b"\x80")
    broken = der[:inner] + b"\x02\x01\x0f" + der[inner + 3 :]
    with pytest.raises(ProfileError) as caught:
        parse_deposit(broken)
    assert caught.value.rule == "ENV-010"
    assert caught.value.offset is not None
    assert der[caught.value.offset : caught.value.offset + 2] == b"\x30\x11"
