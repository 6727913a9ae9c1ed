"""Foreign BER (X.690 §8) to DER (§10, §11), for CMS objects alone: one bounded pass, before any decoder sees a byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from pki.core.der import not_der

MAX_DEPTH = 32
MAX_SET = 1024
"""Members of one set, which have to be sorted."""
_MAX_VALUES = 4096
_BYTES_PER_VALUE = 256
"""A longer object may hold one value more for so many bytes: streaming tools cut a content into pieces."""

_MAX_INDEFINITE = 256
"""Values of indefinite length; an honest object has about ten."""
_SEQUENCE, _SET, _OID, _BITS = 0x30, 0x31, 0x06, 0x03
_CONSTRUCTED = 0x20
# OCTET STRING, the character strings and the times: what BER may cut into pieces (X.690 §8.7.3, §8.23.6)
_STRINGS = frozenset({4, 12, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 30})


class _Kind(Enum):
    """What stands somewhere in a CMS object: an implicit tag does not say whether it is a set or a string."""

    ANY = auto()
    CONTENT_INFO = auto()
    SIGNED_CONTENT = auto()
    SIGNED = auto()
    SIGNER = auto()
    ENVELOPED_CONTENT = auto()
    ENVELOPED = auto()
    ORIGINATOR = auto()
    ENCRYPTED = auto()
    RECIPIENT = auto()
    TRANSPORT = auto()
    AGREEMENT = auto()
    AGREEMENT_ORIGINATOR = auto()
    OTHER = auto()
    KEM = auto()
    SET = auto()
    SIGNERS = auto()
    RECIPIENTS = auto()
    OCTETS = auto()


_K = _Kind
_MEMBERS: Mapping[_Kind, _Kind] = {_K.SET: _K.ANY, _K.SIGNERS: _K.SIGNER, _K.RECIPIENTS: _K.RECIPIENT}
_SECOND_IS_IDENTIFIER = frozenset({_K.SIGNER, _K.TRANSPORT, _K.KEM})
"""Where the second field, if its tag is [0], is a subject key identifier (RFC 5652 §5.3, §6.2.1, RFC 9629 §3)."""
_INSIDE: Mapping[_Kind, Mapping[int, _Kind]] = {
    # RFC 5652 §5.1 and §5.3
    _K.SIGNED_CONTENT: {_SEQUENCE: _K.SIGNED},
    _K.SIGNED: {0xA0: _K.SET, 0xA1: _K.SET, _SET: _K.SIGNERS},
    _K.SIGNER: {0xA0: _K.SET, 0xA1: _K.SET},
    # RFC 5652 §6.1, RFC 5083 §2.1
    _K.ENVELOPED_CONTENT: {_SEQUENCE: _K.ENVELOPED},
    _K.ENVELOPED: {0xA0: _K.ORIGINATOR, _SET: _K.RECIPIENTS, _SEQUENCE: _K.ENCRYPTED, 0xA1: _K.SET, 0xA2: _K.SET},
    _K.ORIGINATOR: {0xA0: _K.SET, 0xA1: _K.SET},
    _K.ENCRYPTED: {0xA0: _K.OCTETS},
    # RFC 5652 §6.2.2 and §6.2.5
    _K.AGREEMENT: {0xA0: _K.AGREEMENT_ORIGINATOR},
    _K.AGREEMENT_ORIGINATOR: {0xA0: _K.OCTETS},
    _K.OTHER: {_SEQUENCE: _K.KEM},
}
_RECIPIENTS: Mapping[int, _Kind] = {_SEQUENCE: _K.TRANSPORT, 0xA1: _K.AGREEMENT, 0xA4: _K.OTHER}
_CONTENTS: Mapping[bytes, _Kind] = {
    bytes.fromhex("2a864886f70d010702"): _K.SIGNED_CONTENT,
    bytes.fromhex("2a864886f70d010703"): _K.ENVELOPED_CONTENT,
    bytes.fromhex("2a864886f70d0109100117"): _K.ENVELOPED_CONTENT,
}
"""The contents of content types: SignedData, EnvelopedData, AuthEnvelopedData."""


def to_der(data: bytes) -> bytes:
    """Return a CMS object in DER; what is DER already comes back as it is, and so does what is no CMS object.

    Indefinite and overlong lengths become the shortest, strings in pieces become whole, sets are sorted, so that a
    signature over the DER of attributes holds (RFC 5652 §5.4). What lies in an OCTET STRING is not touched. Raises
    MalformedError with the offset in ``data``: at once for a length over the end, nesting over `MAX_DEPTH`, or too many
    values. Needs less than three times the bytes of ``data``.
    """
    rewriter = _Rewriter(data, _MAX_VALUES + len(data) // _BYTES_PER_VALUE)
    top = rewriter.header(0, len(data))
    if top.tag != _SEQUENCE or not rewriter.names_its_content(top):
        return data
    # The shape first, so that what is refused costs no copy.
    end = rewriter.measure(top)
    if end != len(data):
        raise not_der("Bytes follow after the end", at=end)
    out = bytearray()
    changed = rewriter.rewrite(out, top, _K.CONTENT_INFO)
    return bytes(out) if changed else data


@dataclass(frozen=True, slots=True)
class _Header:
    """Tag and length; ``end`` is None for an indefinite length; ``short`` says that the length is as DER has it."""

    tag: int
    start: int
    content: int
    end: int | None
    short: bool

    @property
    def constructed(self) -> bool:
        return bool(self.tag & _CONSTRUCTED)


@dataclass(slots=True)
class _Rewriter:
    """One pass over one object."""

    data: bytes
    left: int
    _ends: dict[int, int] = field(default_factory=dict)

    def header(self, at: int, limit: int) -> _Header:
        """Return the header at ``at``; nothing of the value is looked at."""
        data = self.data
        if limit - at < 2:
            raise not_der("The encoding is cut off", at=at)
        tag, length, content = data[at], data[at + 1], at + 2
        if tag & 0x1F == 0x1F:
            raise not_der("A tag number above 30 is not in the profile", at=at)
        if length == 0x80:
            if not tag & _CONSTRUCTED:
                raise not_der("A value that is not constructed has an indefinite length", at=at)
            return _Header(tag, at, content, None, False)
        short = True
        if length > 0x80:
            count = length & 0x7F
            if count > 8:
                raise not_der("The length has more than 8 bytes", at=at)
            content += count
            if content > limit:
                raise not_der("The encoding is cut off", at=at)
            length = int.from_bytes(data[at + 2 : content], "big")
            short = length >= 0x80 and length >> (8 * (count - 1)) != 0
        if length > limit - content:
            raise not_der("The length runs over the end", at=at)
        return _Header(tag, at, content, content + length, short)

    def names_its_content(self, top: _Header) -> bool:
        """Say whether the object starts like a ContentInfo (RFC 5652 §3): an OID, and [0] after it."""
        limit = len(self.data) if top.end is None else top.end
        if limit == top.content or self.data[top.content] != _OID:
            return False
        first = self.header(top.content, limit)
        return first.end is not None and first.end < limit and self.data[first.end] == 0xA0

    def measure(self, top: _Header) -> int:
        """Walk over all headers and return where the object ends; where indefinite lengths end is kept."""
        limit = len(self.data)
        open_: list[_Header] = []
        at, indefinite = top.start, 0
        while True:
            while open_ and open_[-1].end == at:
                open_.pop()
            if at != top.start and not open_:
                return at
            bound = next((one.end for one in reversed(open_) if one.end is not None), limit)
            if open_ and open_[-1].end is None and self.data[at : at + 2] == b"\0\0" and at + 2 <= bound:
                at += 2
                self._ends[open_.pop().start] = at
                continue
            self.left -= 1
            if self.left < 0:
                raise not_der("There are too many values for the size", at=at)
            one = self.header(at, bound)
            if one.constructed:
                if len(open_) >= MAX_DEPTH:
                    raise not_der(f"Values are nested more than {MAX_DEPTH} deep", at=at)
                if one.end is None:
                    indefinite += 1
                    if indefinite > _MAX_INDEFINITE:
                        raise not_der("There are too many values of indefinite length", at=at)
                open_.append(one)
                at = one.content
            else:
                assert one.end is not None
                at = one.end

    def bounds(self, one: _Header) -> tuple[int, int]:
        """Return where the content of a value ends, and where the value does."""
        if one.end is not None:
            return one.end, one.end
        end = self._ends[one.start]
        return end - 2, end

    def rewrite(self, out: bytearray, one: _Header, kind: _Kind) -> bool:
        """Append a value in DER; say whether it differs from what was there."""
        last, end = self.bounds(one)
        string = kind is _K.OCTETS or (one.tag & 0xC0 == 0 and one.tag & 0x1F in _STRINGS)
        if string and one.constructed:
            content = bytearray()
            self.gather(content, one)
            _append(out, one.tag & ~_CONSTRUCTED, content)
            return True
        if one.tag == _BITS | _CONSTRUCTED:
            raise not_der("A BIT STRING is cut into pieces", at=one.start)
        if not one.constructed:
            if one.short:
                out += memoryview(self.data)[one.start : end]
            else:
                _append(out, one.tag, self.data[one.content : last])
            return not one.short
        content = bytearray()
        if kind in _MEMBERS or one.tag == _SET:
            changed = self.members(content, one, _MEMBERS.get(kind, _K.ANY))
        else:
            changed = self.fields(content, one, kind)
        if changed or not one.short:
            _append(out, one.tag, content)
            return True
        del content
        out += memoryview(self.data)[one.start : end]
        return False

    def fields(self, content: bytearray, one: _Header, kind: _Kind) -> bool:
        """Append the fields of a sequence, or what an explicit tag holds."""
        last, _ = self.bounds(one)
        inside = dict(_INSIDE.get(kind, {}))
        at, index, changed = one.content, 0, False
        while at < last:
            part = self.header(at, last)
            if kind is _K.CONTENT_INFO and index == 0:
                inside[0xA0] = _CONTENTS.get(self.data[part.content : self.bounds(part)[0]], _K.ANY)
            identifier = index == 1 and part.tag == 0xA0 and kind in _SECOND_IS_IDENTIFIER
            changed |= self.rewrite(content, part, _K.OCTETS if identifier else inside.get(part.tag, _K.ANY))
            at, index = self.bounds(part)[1], index + 1
        return changed

    def members(self, content: bytearray, one: _Header, kind: _Kind) -> bool:
        """Append the members of a set in the order of DER (X.690 §11.6)."""
        last, _ = self.bounds(one)
        at, changed = one.content, False
        listed: list[bytes] = []
        while at < last:
            if len(listed) == MAX_SET:
                raise not_der(f"A set has more than {MAX_SET} members", at=at)
            member = self.header(at, last)
            piece = bytearray()
            known = _RECIPIENTS.get(member.tag, _K.ANY) if kind is _K.RECIPIENT else kind
            changed |= self.rewrite(piece, member, known)
            listed.append(bytes(piece))
            at = self.bounds(member)[1]
        ordered = sorted(listed)
        content += b"".join(ordered)
        return changed or ordered != listed

    def gather(self, content: bytearray, one: _Header) -> None:
        """Append the pieces of a string (X.690 §8.7.3.2); a piece may itself be in pieces."""
        last, _ = self.bounds(one)
        at = one.content
        while at < last:
            piece = self.header(at, last)
            if piece.tag & 0xC0 or piece.tag & 0x1F not in _STRINGS:
                raise not_der("A piece of a string is no string", at=at)
            inner, end = self.bounds(piece)
            if piece.constructed:
                self.gather(content, piece)
            else:
                content += memoryview(self.data)[piece.content : inner]
            at = end


def _append(out: bytearray, tag: int, content: bytes | bytearray) -> None:
    size = len(content)
    if size < 0x80:
        out += bytes([tag, size])
    else:
        count = (size.bit_length() + 7) // 8
        out += bytes([tag, 0x80 | count]) + size.to_bytes(count, "big")
    out += content
