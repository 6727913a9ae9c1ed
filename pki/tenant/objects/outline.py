"""A tree of what an object says: names, values, offsets and sizes; nothing secret, nothing that moves a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, errorcodes, oids
from pki.core.der import Header, header
from pki.core.errors import KeymailboxError, MalformedError
from pki.core.names import name_text, safe
from pki.core.signing import decode_time
from pki.tenant.objects.shapes import ANY, Field, Look, Shape

MAX_NODES = 4000
MAX_LISTED = 64
"""Of a longer list, the rest is counted."""
_MAX_DEPTH = 48
_WHOLE = 64
"""Bytes that are shown whole; of longer ones the beginning."""


@dataclass(frozen=True)
class Node:
    """One value: what it is called, what it says, where its encoding begins and how long that is (in bytes of DER)."""

    name: str
    value: str
    offset: int
    size: int
    items: tuple[Node, ...] = ()


def outline(der: bytes, shape: Shape, name: str) -> Node:
    """Return the tree of an object; what is not as the shape says is shown as what it is. Raises MalformedError."""
    top = header(der, 0, len(der))
    return _Outline(der).node(name, top, shape, 0)


def oid_text(oid: Oid) -> str:
    """Return the name of an OID, and its number."""
    name = oids.name(oid)
    if name == oid.dotted_string:
        known = oid._name
        name = "" if known == "Unknown OID" else known
    return f"{name} ({safe(oid.dotted_string)})" if name else safe(oid.dotted_string)


@dataclass
class _Outline:
    """One walk over one object."""

    data: bytes
    left: int = field(default=MAX_NODES)

    def node(self, name: str, one: Header, shape: Shape, depth: int) -> Node:
        """Return the tree of one value."""
        self.left -= 1
        if one.tag in shape.alternatives:
            shape = shape.alternatives[one.tag]
        if depth > _MAX_DEPTH or self.left < 0:
            return Node(name, "not shown: there is too much", one.start, one.end - one.start)
        try:
            value, items = self._shown(one, shape, depth)
        except (KeymailboxError, ValueError, TypeError, OverflowError) as error:
            said = error.message if isinstance(error, KeymailboxError) else "not what it should be"
            value, items = f"cannot be read: {safe(said)}, {one.end - one.content} bytes", ()
        return Node(name, value, one.start, one.end - one.start, items)

    def _shown(self, one: Header, shape: Shape, depth: int) -> tuple[str, tuple[Node, ...]]:
        if shape.look in (Look.ANY, Look.DEPENDS):
            return self._anything(one, depth)
        if shape.look is Look.FIELDS:
            return "", tuple(self._fields(one, shape, depth))
        if shape.look is Look.LIST:
            return self._list(one, shape.of or ANY, depth)
        if shape.look is Look.INSIDE:
            inner = header(self.data, one.content, one.end)
            if inner.end != one.end:
                raise MalformedError("Bytes follow after the end")
            held = self.node("", inner, shape.of or ANY, depth + 1)
            return held.value, held.items
        return self._value(one, shape), ()

    def _fields(self, one: Header, shape: Shape, depth: int) -> Iterator[Node]:
        if not one.constructed:
            raise MalformedError("A sequence is not one")
        expected = list(shape.fields)
        kind: Oid | None = None
        for child in self._children(one):
            known = next((part for part in expected if not part.tags or child.tag in part.tags), None)
            if known is None:
                yield self.node("not expected here", child, ANY, depth + 1)
                continue
            del expected[: expected.index(known) + 1]
            if known.shape.look is Look.OID and kind is None and not known.explicit:
                kind = _oid(self.data[child.start : child.end])
            yield self._field(known, child, shape, kind, depth)

    def _field(self, known: Field, child: Header, shape: Shape, kind: Oid | None, depth: int) -> Node:
        kept = known.shape
        if kept.look is Look.DEPENDS:
            kept = shape.by_type.get(kind, ANY) if kind is not None else ANY
        if not known.explicit:
            return self.node(known.name, child, kept, depth + 1)
        inner = header(self.data, child.content, child.end)
        return self.node(known.name, inner, kept, depth + 1)

    def _list(self, one: Header, shape: Shape, depth: int) -> tuple[str, tuple[Node, ...]]:
        if not one.constructed:
            raise MalformedError("A list is not one")
        count, items = 0, []
        for child in self._children(one):
            count += 1
            if count <= MAX_LISTED:
                items.append(self.node(str(count), child, shape, depth + 1))
        more = f", of which {MAX_LISTED} are shown" if count > MAX_LISTED else ""
        return f"{count}{more}", tuple(items)

    def _children(self, one: Header) -> Iterator[Header]:
        at = one.content
        for _ in range(65536):
            if at >= one.end:
                return
            child = header(self.data, at, one.end)
            yield child
            at = child.end
        raise MalformedError("There are too many values")

    def _anything(self, one: Header, depth: int) -> tuple[str, tuple[Node, ...]]:
        """Show a value of which only the tag is known: it may be secret, so the size of bytes and numbers is all."""
        size = f"{one.end - one.content} bytes"
        title = f"[{one.tag & 0x1F}]" if one.tag & 0xC0 else _TAGS.get(one.tag, f"tag {one.tag:#04x}")
        if one.constructed:
            count, items = self._list(one, ANY, depth)
            more = f", {count}" if len(items) == MAX_LISTED else ""
            return f"{title}{more}", tuple(replace(item, name="") for item in items)
        if one.tag & 0xC0:
            return f"{title}, {size}", ()
        if one.tag == 0x05:
            return "NULL", ()
        if one.tag == 0x06:
            return oid_text(_oid(self.data[one.start : one.end])), ()
        if one.tag == 0x02 and one.end - one.content <= 4:
            return str(int.from_bytes(self.data[one.content : one.end], "big", signed=True)), ()
        if one.tag in (0x17, 0x18):
            return self._value(one, Shape(Look.TIME)), ()
        return f"{title}, {size}", ()

    def _value(self, one: Header, shape: Shape) -> str:
        content, look = self.data[one.content : min(one.end, one.content + 4096)], shape.look
        size = one.end - one.content
        if look is Look.SECRET:
            return f"{size} bytes, secret, not shown"
        if look is Look.SIZE:
            return f"{size} bytes"
        if look is Look.BITS:
            return f"{size - 1} bytes"
        if look is Look.BYTES:
            return content.hex() if size <= _WHOLE else f"{content[:16].hex()}…, {size} bytes"
        if look is Look.TEXT:
            return safe(content.decode("utf-8"))
        if look is Look.FLAG:
            return "yes" if content == b"\xff" else "no"
        if look is Look.NAME:
            return name_text(self.data[one.start : one.end])
        if look is Look.USAGE:
            bits = "".join(f"{byte:08b}" for byte in content[1:])
            return ", ".join(shape.names.get(at, str(at)) for at, bit in enumerate(bits) if bit == "1")
        if look is Look.OID:
            return oid_text(_oid(b"\x06" + self.data[one.start + 1 : one.end]))
        if look is Look.TIME:
            return f"{decode_any_time(self.data[one.start : one.end]):%Y-%m-%d %H:%M:%S}Z"
        if look is Look.CODE:
            code = errorcodes.parse_code(self.data[one.start : one.end])
            return safe(str(code))
        number = int.from_bytes(content, "big", signed=True)
        if size > 8 or look is Look.SERIAL:
            return content.hex() if size <= _WHOLE else f"a number of {size} bytes"
        if look is Look.SECONDS:
            return f"{datetime.fromtimestamp(number, UTC):%Y-%m-%d %H:%M:%S}Z"
        return str(number)


def decode_any_time(der: bytes) -> datetime:
    """Return a moment, also a GeneralizedTime before 2050, which is none of RFC 5280 but of ours."""
    if der[:1] == b"\x18":
        return asn1.decode(asn1.GeneralizedTime, der, what="The time").as_datetime().replace(tzinfo=UTC)
    return decode_time(der)


def _oid(der: bytes) -> Oid:
    if len(der) > 80:
        raise MalformedError("An object identifier is too long")
    return asn1.decode(Oid, der, what="The object identifier")


_TAGS = {
    0x01: "BOOLEAN", 0x02: "INTEGER", 0x03: "BIT STRING", 0x04: "OCTET STRING", 0x05: "NULL", 0x06: "OBJECT IDENTIFIER",
    0x0A: "ENUMERATED", 0x0C: "UTF8String", 0x13: "PrintableString", 0x14: "TeletexString", 0x16: "IA5String",
    0x17: "UTCTime", 0x18: "GeneralizedTime", 0x1A: "VisibleString", 0x1E: "BMPString", 0x30: "SEQUENCE", 0x31: "SET",
}  # fmt: skip
