"""A CMP message (PKIMessage, RFC 9810 §5.1): read with its bounds, and written."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1
from pki.core.cmp import types
from pki.core.cmp.protection import MacParameters, Protection, SignedBy, parse_algorithm
from pki.core.cmp.types import Body
from pki.core.der import header as at
from pki.core.der import located, members, not_der, parts
from pki.core.errors import ProfileError, demand

MAX_MESSAGE = 64 * 1024
"""Bytes; an honest one has about 6,000, and as many again for each certificate that comes along."""
VERSIONS = (2, 3)
_ID = (16, 16)
_NONCE = (16, 64)
_DIRECTORY_NAME = b"\xa4"
_MAX_NAME = 512
_SEQUENCE, _CONTEXT = 0x30, 0xA0
_REFERENCE = (1, 64)
_MAX_INFO = 8
NOBODY = b"\xa4\x02\x30\x00"
"""A GeneralName of nobody: the empty directory name."""


@dataclass(frozen=True)
class Header:
    """Who says something to whom, in which exchange; names are GeneralNames in DER, ``time`` has whole seconds."""

    version: int
    sender: bytes
    recipient: bytes
    transaction: bytes
    sender_nonce: bytes
    time: datetime | None = None
    sender_key: bytes | None = None
    recipient_nonce: bytes | None = None
    implicit_confirm: bool = False


@dataclass(frozen=True)
class Message:
    """A message that keeps its bounds (rules CMP-001 to CMP-003); its protection is not verified.

    ``content`` is what lies under the body's tag, ``protected`` what the protection is over, ``bare`` the message
    without the certificates that came along, which nothing protects.
    """

    header: Header
    kind: Body
    content: bytes
    algorithm: MacParameters | SignedBy | None
    protection: bytes
    protected: bytes
    bare: bytes


def is_message(der: bytes) -> bool:
    """Tell a CMP message from PKCS #10 and CMS: a header, and then a body under a tag of its own."""
    outer = at(der, 0, len(der))
    if not outer.constructed:
        return False
    tags = [one.tag for one in islice(parts(der, outer.content, outer.end), 2)]
    return len(tags) == 2 and tags[0] == _SEQUENCE and tags[1] & 0xE0 == _CONTEXT


@located
def parse(der: bytes) -> Message:
    """Return a message within its bounds; certificates that come along are left out unread."""
    demand(len(der) <= MAX_MESSAGE, "CMP-001", f"A CMP message has at most {MAX_MESSAGE} bytes")
    outer = asn1.decode(types.Message, der, what="The CMP message")
    header_der, body_der = asn1.encode(outer.header), asn1.encode(outer.body)
    raw = asn1.decode(types.Header, header_der, what="The header of the CMP message")
    header = _header(raw)
    number = body_der[0] - 0xA0
    demand(number in set(Body), "CMP-002", "The body is of a kind that is not known here")
    algorithm = None
    if raw.protection_algorithm is not None and outer.protection is not None:
        algorithm = parse_algorithm(raw.protection_algorithm)
    absent = raw.protection_algorithm is None and outer.protection is None
    demand(absent or algorithm is not None, "CMP-003", "The protection and its algorithm go together")
    whole = outer.protection is None or not outer.protection.padding_bits()
    demand(whole, "CMP-003", "The protection's bits are not whole bytes")
    protected = asn1.encode(types.ProtectedPart(header=outer.header, body=outer.body))
    bare = types.Message(header=outer.header, body=outer.body, protection=outer.protection, extra_certificates=None)
    return Message(
        header=header,
        kind=Body(number),
        content=bytes(outer.body.data),
        algorithm=algorithm,
        protection=b"" if outer.protection is None else outer.protection.as_bytes(),
        protected=protected,
        bare=asn1.encode(bare),
    )


def compose(
    header: Header, kind: Body, content: bytes, protection: Protection | None, certificates: Sequence[bytes] = ()
) -> bytes:
    """Return a message in DER; ``content`` is what stands under the body's tag, ``certificates`` come along."""
    general = None
    if header.implicit_confirm:
        info = types.InfoTypeAndValue(kind=types.IMPLICIT_CONFIRM, value=asn1.tlv(b"\x05\x00"))
        general = asn1.tlv(_sequence([asn1.encode(info)]))
    raw = types.Header(
        version=header.version,
        sender=asn1.tlv(header.sender),
        recipient=asn1.tlv(header.recipient),
        message_time=None if header.time is None else asn1.GeneralizedTime(header.time),
        protection_algorithm=None if protection is None else protection.identifier,
        sender_key=header.sender_key,
        recipient_key=None,
        transaction=header.transaction,
        sender_nonce=header.sender_nonce,
        recipient_nonce=header.recipient_nonce,
        free_text=None,
        general=general,
    )
    part = types.ProtectedPart(header=asn1.tlv(asn1.encode(raw)), body=asn1.tlv(tagged(0xA0 + kind, content)))
    bits = None if protection is None else asn1.BitString(protection.protect(asn1.encode(part)), 0)
    along = asn1.tlv(_sequence(certificates)) if certificates else None
    return asn1.encode(types.Message(header=part.header, body=part.body, protection=bits, extra_certificates=along))


def general_name(name_der: bytes) -> bytes:
    """Return a Name as a GeneralName."""
    return tagged(_DIRECTORY_NAME[0], name_der)


def name_of(general_name: bytes) -> bytes:
    """Return the Name in a GeneralName; what is none raises MalformedError."""
    listed = members(general_name, _DIRECTORY_NAME[0], most=1)
    if not listed:
        raise not_der("The name is empty")
    return listed[0]


def tagged(tag: int, content: bytes) -> bytes:
    """Return ``content`` under a tag, with its length."""
    # The encoding of an OCTET STRING has the same form.
    return asn1.retagged(tag, asn1.encode(content))


def _sequence(parts: Sequence[bytes]) -> bytes:
    return tagged(0x30, b"".join(parts))


def _header(raw: types.Header) -> Header:
    demand(raw.version in VERSIONS, "CMP-001", "The version of a CMP message is 2 or 3")
    sender, recipient = _name(raw.sender, "sender"), _name(raw.recipient, "recipient")
    key, nonce = raw.sender_key, raw.recipient_nonce
    return Header(
        version=raw.version,
        sender=sender,
        recipient=recipient,
        transaction=_octets(raw.transaction, _ID, "transactionID"),
        sender_nonce=_octets(raw.sender_nonce, _NONCE, "senderNonce"),
        time=None if raw.message_time is None else raw.message_time.as_datetime().replace(tzinfo=UTC),
        sender_key=None if key is None else _octets(key, _REFERENCE, "senderKID"),
        recipient_nonce=None if nonce is None else _octets(nonce, _NONCE, "recipNonce"),
        implicit_confirm=types.IMPLICIT_CONFIRM in _general(raw.general),
    )


def _octets(value: bytes | None, bounds: tuple[int, int], what: str) -> bytes:
    least, most = bounds
    if value is None or not least <= len(value) <= most:
        raise ProfileError(f"A {what} has {least} to {most} bytes", rule="CMP-001", at=value)
    return value


def _name(value: asn1.TLV, who: str) -> bytes:
    der = asn1.encode(value)
    demand(der[:1] == _DIRECTORY_NAME, "CMP-002", f"The {who} is no directory name", der)
    demand(len(der) <= _MAX_NAME, "CMP-002", f"The {who}'s name has over {_MAX_NAME} bytes")
    return der


def _general(value: asn1.TLV | asn1.Null | None) -> Collection[Oid]:
    if value is None:
        return ()
    if isinstance(value, asn1.Null):
        raise not_der("The generalInfo is not a list")
    listed = members(asn1.encode(value), 0x30, most=_MAX_INFO)
    return {asn1.decode(types.InfoTypeAndValue, one, what="A generalInfo").kind for one in listed}
