"""DER by hand, so that objects can be put together wrongly; knows nothing of the code that it is used to test."""

from __future__ import annotations

from datetime import datetime


def tlv(tag: int, *contents: bytes) -> bytes:
    """Return tag, length in the shortest form, and contents."""
    content = b"".join(contents)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def seq(*parts: bytes) -> bytes:
    """Return a SEQUENCE."""
    return tlv(0x30, *parts)


def set_of(*parts: bytes) -> bytes:
    """Return a SET OF, sorted."""
    return tlv(0x31, *sorted(parts))


def context(number: int, *parts: bytes, constructed: bool = True) -> bytes:
    """Return a value with a context-specific tag."""
    return tlv((0xA0 if constructed else 0x80) | number, *parts)


def retag(tag: int, der: bytes) -> bytes:
    """Return the same contents under another tag, as IMPLICIT does."""
    return bytes([tag]) + der[1:]


def integer(number: int) -> bytes:
    """Return an INTEGER."""
    return tlv(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True))


def octets(content: bytes) -> bytes:
    """Return an OCTET STRING."""
    return tlv(0x04, content)


def bits(content: bytes, unused: int = 0) -> bytes:
    """Return a BIT STRING."""
    return tlv(0x03, bytes([unused]), content)


def boolean(value: bool) -> bytes:
    """Return a BOOLEAN."""
    return tlv(0x01, b"\xff" if value else b"\0")


def utf8(text: str) -> bytes:
    """Return a UTF8String."""
    return tlv(0x0C, text.encode())


def oid(dotted: str) -> bytes:
    """Return an OBJECT IDENTIFIER."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    content = b""
    for arc in (first * 40 + second, *rest):
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(arc & 0x7F | 0x80)
        content += bytes(reversed(septets))
    return tlv(0x06, content)


def algorithm(dotted: str, *parameters: bytes) -> bytes:
    """Return an AlgorithmIdentifier."""
    return seq(oid(dotted), *parameters)


def attribute(dotted: str, *values: bytes) -> bytes:
    """Return an Attribute."""
    return seq(oid(dotted), set_of(*values))


def utc(moment: datetime) -> bytes:
    """Return a UTCTime."""
    return tlv(0x17, f"{moment:%y%m%d%H%M%SZ}".encode())


def generalized(moment: datetime) -> bytes:
    """Return a GeneralizedTime."""
    return tlv(0x18, f"{moment:%Y%m%d%H%M%SZ}".encode())


NULL = tlv(0x05)
