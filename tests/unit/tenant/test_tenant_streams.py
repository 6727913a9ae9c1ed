"""Server-sent events are read as the standard has it, however the pieces are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pki.core.errors import MalformedError, TooLargeError
from pki.tenant.streams import Message, messages

TEXT = (
    ": a comment\n\nretry: 1000\nid: 7\n\n"
    'id: 8\nevent: keymailbox.deposit.available\ndata: {"a": "ä"}\n\n'
    "data\ndata:  two\r\ndata:three\runknown: x\nid: bad\0\n\n"
    "event: only\n\nid\n\n: ping\n\nid: 9\ndata: not finished\n"
)
EXPECTED = [
    Message("7", "message", ""),
    Message("8", "keymailbox.deposit.available", '{"a": "ä"}'),
    Message("8", "message", "\n two\nthree"),
    Message("", "message", ""),
]


def test_what_a_stream_says() -> None:
    """Comments and unknown fields say nothing, an id stands until the next, what is not finished does not count."""
    assert list(messages([TEXT.encode()])) == EXPECTED
    assert list(messages([b"\xef\xbb\xbfid: 1\n\n"])) == [Message("1", "message", "")]


@given(st.lists(st.integers(0, len(TEXT.encode())), max_size=12))
def test_pieces_do_not_matter(cuts: list[int]) -> None:
    """Cut anywhere, inside of a character or between CR and LF, it says the same."""
    raw = TEXT.encode()
    places = [0, *sorted(cuts), len(raw)]
    pieces = [raw[begin:end] for begin, end in itertools.pairwise(places)]
    assert list(messages(pieces)) == EXPECTED


def test_a_stream_without_end_is_refused() -> None:
    """A line, or an event, that never ends does not fill the memory; what is not UTF-8 is no stream."""
    with pytest.raises(TooLargeError):
        list(messages(b"data: " + b"x" * 65536 for _ in range(100)))
    with pytest.raises(TooLargeError):
        list(messages(b"data: " + b"x" * 65536 + b"\n" for _ in range(100)))
    with pytest.raises(MalformedError):
        list(messages([b"data: \xff\n\n"]))
