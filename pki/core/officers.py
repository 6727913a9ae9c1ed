"""Officers: the operator's persons who may order together; the list of their keys, signed by an issuing CA."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

from cryptography.hazmat.asn1 import sequence
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, oids, signatures
from pki.core.authorities import authority_key
from pki.core.der import located, parts
from pki.core.errors import ConflictError, ForbiddenError, ProfileError, SignatureError, UsageError, demand
from pki.core.signatures import IDENTITY, VerifyingKey

MAX_LIST = 1024 * 1024
"""Bytes; an officer has about 2,000."""
MOST = 256
_NAME = re.compile(r"[a-z](?:[a-z0-9.-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Officer:
    """One person, by a name that is theirs for ever, and the key that only they can use."""

    name: str
    key: VerifyingKey
    added: datetime
    removed: datetime | None = None


@dataclass(frozen=True)
class Officers:
    """A list that the CA has signed; only `UnverifiedOfficers.verify` makes one."""

    number: int
    issued: datetime
    listed: tuple[Officer, ...]

    def at(self, name: str, moment: datetime) -> Officer:
        """Return who was an officer under this name then; raises ForbiddenError (rule ORD-003)."""
        for one in self.listed:
            if one.name == name and one.added <= moment and (one.removed is None or moment < one.removed):
                return one
        raise ForbiddenError(
            "There was no such officer then",
            on=f"{name[:64]}, {moment}",
            hint="kmb-server officer list",
            rule="ORD-003",
        )


@dataclass(frozen=True)
class UnverifiedOfficers:
    """A list that keeps the profile (rule ORD-001); ``authority`` is the key identifier of the CA that it names."""

    number: int
    authority: bytes
    issued: datetime
    listed: tuple[Officer, ...]
    _tbs: bytes
    _algorithm: signatures.SignatureAlgorithm
    _signature: bytes

    def verify(self, issuing_der: bytes) -> Officers:
        """Return the list if the CA with this certificate signed it, else raise SignatureError (rule ORD-002)."""
        key = authority_key(issuing_der)
        try:
            if key.algorithm is not self._algorithm:
                raise SignatureError
            key.verify(self._signature, self._tbs)
        except SignatureError:
            raise SignatureError(
                "The list of officers is not signed by the issuing CA", hint="kmb-server officer list", rule="ORD-002"
            ) from None
        return Officers(self.number, self.issued, self.listed)


def officer_name(text: str) -> str:
    """Return ``text`` as an officer's name, or raise UsageError."""
    if not _NAME.fullmatch(text):
        raise UsageError(
            "An officer's name has 1 to 63 of a-z, 0-9, dot and hyphen, the first a letter",
            on=text[:80],
            hint="kmb-server officer list",
        )
    return text


def with_officer(listed: Sequence[Officer], new: Officer) -> tuple[Officer, ...]:
    """Return the list with one more; a name or key that was ever on it raises ConflictError (rule ORD-001)."""
    for one in listed:
        if one.name == new.name or one.key == new.key:
            raise ConflictError(
                "The name was an officer's before" if one.name == new.name else "The key is another officer's",
                on=one.name,
                hint="kmb-server officer list",
                rule="ORD-001",
            )
    return (*listed, new)


def officers_tbs(number: int, authority: bytes, issued: datetime, listed: Sequence[Officer]) -> bytes:
    """Return what the CA whose key has the identifier ``authority`` is to sign.

    It begins with an object identifier, as neither a certificate nor a revocation list does.
    """
    raw = OfficerList(
        kind=oids.OFFICER_LIST,
        version=1,
        number=number,
        authority=authority,
        issued=_time(issued),
        officers=asn1.tlv(sequence_of([asn1.encode(_entry(one)) for one in listed])),
    )
    return asn1.encode(raw)


def sequence_of(encoded: Sequence[bytes]) -> bytes:
    """Return a SEQUENCE of values in DER, which the library encodes as a field of something only."""
    content = b"".join(encoded)
    size = len(content)
    width = (size.bit_length() + 7) // 8
    head = bytes([size]) if size < 0x80 else bytes([0x80 | width]) + size.to_bytes(width, "big")
    return b"\x30" + head + content


def assemble(tbs: bytes, signature: bytes, issuing_der: bytes) -> bytes:
    """Return the signed list in DER."""
    return asn1.signed(tbs, authority_key(issuing_der).algorithm.identifier, signature)


@located
def parse_officers(encoded: bytes) -> UnverifiedOfficers:
    """Return a list that keeps the profile (rule ORD-001)."""
    demand(len(encoded) <= MAX_LIST, "ORD-001", f"A list of officers has at most {MAX_LIST} bytes")
    outer = asn1.decode(asn1.Certificate, encoded, what="The list of officers")
    tbs = asn1.encode(outer.tbs)
    raw = asn1.decode(OfficerList, tbs, what="The list of officers")
    demand((raw.kind, raw.version) == (oids.OFFICER_LIST, 1), "ORD-001", "It is no list of officers of version 1")
    demand(not outer.signature.padding_bits(), "ORD-001", "The signature's bits are not whole bytes")
    demand(1 <= raw.number < 1 << 31 and len(raw.authority) == 20, "ORD-001", "Number or authority is out of bounds")
    listed: tuple[Officer, ...] = ()
    for one in _entries(raw.officers):
        demand(bool(_NAME.fullmatch(one.name)), "ORD-001", "An officer's name is not one")
        key = signatures.load(asn1.encode(one.key), allowed=IDENTITY, rule="ORD-001")
        removed = None if one.removed is None else moment(one.removed, "ORD-001")
        try:
            listed = with_officer(listed, Officer(one.name, key, moment(one.added, "ORD-001"), removed))
        except ConflictError as error:
            raise ProfileError(error.message, on=error.on, rule="ORD-001") from None
    return UnverifiedOfficers(
        number=raw.number,
        authority=raw.authority,
        issued=moment(raw.issued, "ORD-001"),
        listed=listed,
        _tbs=tbs,
        _algorithm=signatures.algorithm_of(outer.signature_algorithm, rule="ORD-001"),
        _signature=outer.signature.as_bytes(),
    )


def moment(time: asn1.GeneralizedTime, rule: str) -> datetime:
    """Return a time in whole seconds, or raise ProfileError."""
    found = time.as_datetime().replace(tzinfo=UTC)
    demand(not found.microsecond, rule, "A time is in whole seconds")
    return found


def _entry(one: Officer) -> OfficerEntry:
    return OfficerEntry(
        name=one.name,
        added=_time(one.added),
        removed=None if one.removed is None else _time(one.removed),
        key=asn1.decode(asn1.SubjectPublicKeyInfo, one.key.spki, what="The officer's key"),
    )


def _entries(listed: asn1.TLV) -> Iterator[OfficerEntry]:
    """Yield the officers, counted before one is decoded."""
    data = bytes(listed.data)
    found = list(islice(parts(data, 0, len(data)), MOST + 1))
    demand(listed.tag_bytes == b"\x30" and len(found) <= MOST, "ORD-001", f"There are more than {MOST} officers")
    for one in found:
        yield asn1.decode(OfficerEntry, data[one.start : one.end], what="The officer")


def _time(at: datetime) -> asn1.GeneralizedTime:
    return asn1.GeneralizedTime(at.astimezone(UTC).replace(microsecond=0))


@sequence
class OfficerEntry:
    """One officer; ``removed`` where they are one no more."""

    name: str
    added: asn1.GeneralizedTime
    removed: Annotated[asn1.GeneralizedTime | None, asn1.Implicit(0)]
    key: asn1.SubjectPublicKeyInfo


@sequence
class OfficerList:
    """What the CA signs, in the outer form of a certificate (RFC 5280 §4.1)."""

    kind: Oid
    version: int
    number: int
    authority: bytes
    issued: asn1.GeneralizedTime
    officers: asn1.TLV
