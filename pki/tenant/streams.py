"""Reads server-sent events (WHATWG HTML §9.2.6) from the pieces in which they come."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pki.core.errors import MalformedError, TooLargeError

MEDIA_TYPE = "text/event-stream"
_LONGEST = 1024 * 1024


@dataclass(frozen=True)
class Message:
    """One block of a stream: ``id`` is the last one that was named; ``data`` is empty where only the place moves on."""

    id: str
    event: str
    data: str


def messages(pieces: Iterable[bytes]) -> Iterator[Message]:
    """Yield what a stream says, but for comments. What is not finished at the end of the stream does not count.

    Raises MalformedError for what is not UTF-8, TooLargeError for a block of more than a mebibyte.
    """
    last, named, event, size = "", False, "", 0
    data: list[str] = []
    for line in _lines(pieces):
        size += len(line)
        if size > _LONGEST:
            raise TooLargeError("An event of the stream is larger than the limit", on=f"{_LONGEST} bytes")
        if not line:
            if data or named:
                yield Message(last, event or "message", "\n".join(data))
            named, event, size = False, "", 0
            data = []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            event = value
        elif field == "id" and "\0" not in value:
            last, named = value, True


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield lines without their ends, which are CR LF, LF or CR; one that is not finished is not yielded."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest = ""
    for piece in pieces:
        try:
            rest += decoder.decode(piece)
        except UnicodeDecodeError:
            raise MalformedError("The stream is not UTF-8", hint="kmb doctor") from None
        # A CR at the end may be half of an end of line.
        held = "\r" if rest.endswith("\r") else ""
        *whole, rest = rest.removesuffix(held).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        rest += held
        if len(rest) > _LONGEST:
            raise TooLargeError("A line of the stream is longer than the limit", on=f"{_LONGEST} bytes")
        yield from whole
