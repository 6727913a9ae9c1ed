"""Lists of officers, their orders, and approvals."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from tests.kit import forge, tlv
from tests.kit import forge_pki as pki
from tests.kit.authority import NOW
from tests.kit.forge import Signer
from tests.kit.vectors import FOLDER, load
from tests.vectors.cases import Case

ORDER, LIFT, APPROVAL, LIST = (f"{forge.OURS}.2.{number}" for number in range(2, 6))
ANN, BOB, EVE = pki.ACME, pki.GLOBEX, Signer(14)
HOUR = timedelta(hours=1)
BEFORE = NOW - 30 * pki.DAY
TEXT = "Your key was seen in a public place"


def officer(name: str, key: Signer, *, added: datetime = BEFORE, removed: datetime | None = None) -> bytes:
    """Return one officer of a list."""
    gone = b"" if removed is None else tlv.retag(0x80, tlv.generalized(removed))
    return tlv.seq(tlv.utf8(name), tlv.generalized(added), gone, key.spki)


OFFICERS = (officer("ann", ANN), officer("bob", BOB), officer("eve", EVE, removed=NOW - 2 * HOUR))


def officers(
    listed: Sequence[bytes] = OFFICERS,
    *,
    version: int = 1,
    kind: str = LIST,
    number: int = 3,
    authority: bytes = pki.ISSUING.ski,
    signer: Signer = pki.ISSUING,
    unused: int = 0,
) -> bytes:
    """Return a signed list of officers."""
    tbs = tlv.seq(
        tlv.oid(kind),
        tlv.integer(version),
        tlv.integer(number),
        tlv.octets(authority),
        tlv.generalized(BEFORE),
        tlv.seq(*listed),
    )
    signature = bytearray(signer.sign(tbs))
    if unused:
        signature[-1] &= 0xFE  # in DER they are zero
    return tlv.seq(tbs, forge.GOOD, tlv.bits(bytes(signature), unused))


def signed(kind: str, content: bytes, signer: Signer, at: datetime) -> bytes:
    """Return SignedData over content of ours."""
    info = forge.signer_info(signer, forge.signed_attributes(kind, content, at=at))
    return forge.signed(kind, content, [info])


def order(
    hashes: Sequence[bytes] = (bytes(32),),
    *,
    officer: str = "ann",
    signer: Signer = ANN,
    version: int = 1,
    text: str = TEXT,
    created: datetime = NOW - HOUR,
    expires: datetime = NOW + HOUR,
    at: datetime | None = None,
    reason: int = 1,
) -> bytes:
    """Return an order to revoke."""
    content = tlv.seq(
        tlv.integer(version),
        tlv.utf8(officer),
        tlv.utf8(text),
        tlv.generalized(created),
        tlv.generalized(expires),
        tlv.integer(reason),
        tlv.seq(*map(tlv.octets, hashes)),
    )
    return signed(ORDER, content, signer, at or created)


def lift(*, count: int = 100, seconds: int = 3600, version: int = 1) -> bytes:
    """Return an order to lift the cap."""
    content = tlv.seq(
        tlv.integer(version),
        tlv.utf8("ann"),
        tlv.utf8(TEXT),
        tlv.generalized(NOW - HOUR),
        tlv.generalized(NOW + HOUR),
        tlv.integer(count),
        tlv.integer(seconds),
    )
    return signed(LIFT, content, ANN, NOW - HOUR)


def approval(
    of: bytes,
    *,
    officer: str = "bob",
    signer: Signer = BOB,
    version: int = 1,
    approved: datetime = NOW,
    at: datetime | None = None,
) -> bytes:
    """Return an approval of an order."""
    digest = hashlib.sha256(of).digest()
    content = tlv.seq(tlv.integer(version), tlv.utf8(officer), tlv.octets(digest), tlv.generalized(approved))
    return signed(APPROVAL, content, signer, at or approved)


def lists_of_officers() -> Iterator[Case]:
    """Yield a good list of officers and broken ones."""
    yield Case("three", "officers", "", "Two officers, and one who left", officers())
    again, twice = officer("ann", BOB), officer("anna", ANN)
    for rule, name, why, body in (
        ("ORD-001", "version-2", "Version 2", officers(version=2)),
        ("ORD-001", "other-kind", "It says that it is an order", officers(kind=ORDER)),
        ("ORD-001", "two-ann", "Two persons have one name", officers([OFFICERS[0], again])),
        ("ORD-001", "one-key", "One key has two names", officers([OFFICERS[0], twice])),
        ("ORD-001", "no-name", "A name is not one", officers([officer("Ann", ANN)])),
        ("ORD-001", "number-0", "The number is 0", officers(number=0)),
        ("ORD-001", "unused-bits", "The signature's last bits are unused", officers(unused=1)),
        ("ORD-002", "other-signer", "A stranger signed it", officers(signer=pki.STRANGER)),
    ):
        yield Case(name, "officers", rule, why, body)


def orders() -> Iterator[Case]:
    """Yield good orders and broken ones."""
    yield Case("revocation", "order", "", "Two certificates", order([bytes(32), b"\1" * 32]))
    yield Case("lift", "order", "", "The cap is lifted to 100 for an hour", lift())
    for rule, name, why, body in (
        ("ORD-003", "nobody", "There is no such officer", order(officer="joe")),
        ("ORD-003", "removed", "The officer was removed before", order(officer="eve", signer=EVE)),
        ("ORD-004", "version-2", "Version 2", order(version=2)),
        ("ORD-004", "lift-version-2", "Version 2", lift(version=2)),
        ("ORD-004", "nothing", "It names no certificate", order([])),
        ("ORD-004", "twice", "A certificate is named twice", order([bytes(32)] * 2)),
        ("ORD-004", "unordered", "The certificates are not in order", order([b"\1" * 32, bytes(32)])),
        ("ORD-004", "short", "A fingerprint has 31 bytes", order([bytes(31)])),
        ("ORD-004", "many", "1001 certificates", order([number.to_bytes(32, "big") for number in range(1001)])),
        ("ORD-004", "no-text", "The owner is told nothing", order(text="")),
        ("ORD-004", "lines", "The text has two lines", order(text="one\ntwo")),
        ("ORD-004", "long", "It waits for longer than a day", order(expires=NOW + 24 * HOUR)),
        ("ORD-004", "backwards", "It ends before it begins", order(expires=NOW - 2 * HOUR)),
        ("ORD-004", "other-time", "It was signed at another time than it says", order(at=NOW)),
        ("ORD-004", "lift-of-0", "It lifts the cap to nothing", lift(count=0)),
        ("ORD-004", "lift-for-ever", "It lifts the cap for two days", lift(seconds=172800)),
        ("SIG-006", "other-signer", "Another officer signed it", order(signer=BOB)),
    ):
        yield Case(name, "order", rule, why, body)


def approvals() -> Iterator[Case]:
    """Yield a good approval and broken ones."""
    given = the_order()
    yield Case("approval", "approval", "", "Another officer approves", approval(given))
    for rule, name, why, body in (
        ("ORD-003", "nobody", "There is no such officer", approval(given, officer="joe")),
        ("ORD-003", "removed", "The officer was removed before", approval(given, officer="eve", signer=EVE)),
        ("ORD-004", "version-2", "Version 2", approval(given, version=2)),
        ("ORD-004", "other-time", "It was signed at another time than it says", approval(given, at=NOW - HOUR)),
        ("ORD-005", "same-officer", "The same officer approves", approval(given, officer="ann", signer=ANN)),
        ("ORD-005", "other-order", "It is for another order", approval(order())),
        ("ORD-006", "late", "The order was good until then", approval(given, approved=NOW + HOUR)),
        ("ORD-006", "early", "There was no order yet", approval(given, approved=NOW - 2 * HOUR)),
        ("SIG-006", "other-signer", "A stranger signed it", approval(given, signer=pki.STRANGER)),
    ):
        yield Case(name, "approval", rule, why, body)


def the_order() -> bytes:
    """Return the order that the approvals are for: the one in its file, since a signature is another one each time."""
    path = FOLDER / "keys" / "order.txt"
    return load(path).body if path.exists() else order()
