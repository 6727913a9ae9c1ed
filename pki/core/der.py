"""The shape of DER: a walk over tags and lengths that says where bytes leave it, in bounded time and space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from pki.core.errors import KeymailboxError, MalformedError

MAX_DEPTH = 32
"""Levels; the deepest object of the profile has 17."""

LOOKED_AT = 400
"""Values that a complaint looks at; a deposit has about 100."""
_MARK = 256
"""Bytes of a part that it is looked for by: to look for a megabyte costs milliseconds."""

P = ParamSpec("P")
T = TypeVar("T")


def not_der(message: str, *, on: str = "", at: bytes | int | None = None) -> MalformedError:
    """Return the error of what is no DER of its structure (rule DER-001)."""
    return MalformedError(message, on=on, at=at, rule="DER-001")


@dataclass(frozen=True)
class Header:
    """One tag and length: where it starts, where its content starts and ends, how deep it lies."""

    tag: int
    start: int
    content: int
    end: int
    depth: int

    @property
    def constructed(self) -> bool:
        """Whether the content is more of the same (X.690 §8.1.2.5)."""
        return bool(self.tag & 0x20)


def header(data: bytes | memoryview, start: int, end: int, depth: int = 0) -> Header:
    """Return the header at ``start``; what runs over ``end`` or is no DER raises MalformedError with its offset."""
    if end - start < 2:
        raise not_der("The encoding is cut off", at=start)
    tag, length, content = data[start], data[start + 1], start + 2
    if tag & 0x1F == 0x1F:
        raise not_der("A tag number above 30 is not in the profile", at=start)
    if length == 0x80:
        raise not_der("The length is indefinite: BER, not DER", at=start)
    if length > 0x80:
        count = length & 0x7F
        if count > 4:
            raise not_der("The length has more than 4 bytes", at=start)
        content += count
        if content > end:
            raise not_der("The encoding is cut off", at=start)
        length = int.from_bytes(data[start + 2 : content], "big")
        if length < 0x80 or length >> (8 * (count - 1)) == 0:
            raise not_der("The length is not in the shortest form", at=start)
    if length > end - content:
        raise not_der("The length runs over the end", at=start)
    return Header(tag, start, content, content + length, depth)


def parts(data: bytes | memoryview, start: int, end: int, depth: int = 0) -> Iterator[Header]:
    """Yield the headers that lie side by side from ``start`` to ``end``, each looked at only when it is asked for."""
    while start < end:
        one = header(data, start, end, depth)
        yield one
        start = one.end


def members(data: bytes, tag: int, *, most: int) -> list[bytes]:
    """Return the encodings inside of one value with ``tag``; more than ``most`` are refused before they are kept."""
    outer = header(data, 0, len(data))
    if outer.tag != tag or outer.end != len(data):
        raise not_der("The value is not the expected list", at=0)
    found: list[bytes] = []
    at = outer.content
    while at < outer.end:
        if len(found) == most:
            raise not_der(f"There are more than {most} values", at=at)
        one = header(data, at, outer.end)
        found.append(data[one.start : one.end])
        at = one.end
    return found


def walk(data: bytes, *, max_headers: int = 4096) -> Iterator[Header]:
    """Yield each header in the order of the bytes; deeper than `MAX_DEPTH`, or more than ``max_headers``, raise."""
    ends: list[int] = []
    at, seen = 0, 0
    while at < len(data) or seen == 0:
        while ends and at == ends[-1]:
            ends.pop()
        if seen and not ends:
            raise not_der("Bytes follow after the end", at=at)
        seen += 1
        if seen > max_headers:
            raise not_der(f"There are more than {max_headers} values", at=at)
        one = header(data, at, ends[-1] if ends else len(data), len(ends))
        yield one
        if one.constructed and one.content < one.end:
            if len(ends) >= MAX_DEPTH:
                raise not_der(f"Values are nested more than {MAX_DEPTH} deep", at=at)
            ends.append(one.end)
            at = one.content
        else:
            at = one.end


def complaint(data: bytes) -> MalformedError | None:
    """Return what is wrong with the shape of ``data``, with the offset; None when it is right as far as one looks.

    That is `LOOKED_AT` values: a refusal may not cost more than what is refused.
    """
    try:
        for count, _ in enumerate(walk(data)):
            if count == LOOKED_AT:
                break
    except MalformedError as error:
        return error
    return None


def located(parse: Callable[Concatenate[bytes, P], T]) -> Callable[Concatenate[bytes, P], T]:
    """Give each error of a parser the offset, in the parser's whole input, of the part that it complains of."""

    @wraps(parse)
    def parser(der: bytes, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return parse(der, *args, **kwargs)
        except KeymailboxError as error:
            # An error of an inner parser counts from its part, which is looked for once more further out; without a
            # part, it is the whole that is wrong.
            found = 0 if error.part is None else der.find(error.part[:_MARK])
            error.offset = max(found, 0) + (error.offset or 0)
            error.part = der
            raise

    return parser
