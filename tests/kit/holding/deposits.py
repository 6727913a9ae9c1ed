"""Deposits: each went one legal way, has its number in its mailbox, its receipt, and one request that brought it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise

from sqlalchemy import func, select

from pki.core import x509
from pki.core.certificates import CertificateState
from pki.core.deposits import DEPOSIT_MOVES, DepositState
from pki.core.errors import KeymailboxError
from pki.core.events import EventType
from pki.core.ids import DepositId
from pki.core.receipts import parse_receipt
from pki.core.tenants import parse_address
from pki.server.store import tables
from tests.kit.holding.certificates import parsed_once
from tests.kit.holding.seen import Complaints, Seen

_STEPS: Mapping[str, DepositState] = {
    EventType.DEPOSIT_RECEIVED: DepositState.RECEIVED,
    EventType.DEPOSIT_AVAILABLE: DepositState.AVAILABLE,
    EventType.DEPOSIT_REJECTED: DepositState.REJECTED,
    EventType.DEPOSIT_COLLECTED: DepositState.COLLECTED,
    EventType.DEPOSIT_ACKNOWLEDGED: DepositState.ACKNOWLEDGED,
    EventType.DEPOSIT_REFUSED: DepositState.REFUSED,
    EventType.DEPOSIT_QUARANTINED: DepositState.QUARANTINED,
    EventType.DEPOSIT_SUPERSEDED: DepositState.SUPERSEDED,
    EventType.DEPOSIT_EXPIRED: DepositState.EXPIRED,
    EventType.DEPOSIT_WITHDRAWN: DepositState.WITHDRAWN,
}
"""Each event of a deposit is one move: its trail is the way that it went."""


def mailboxes(seen: Seen) -> Complaints:
    """Numbers of deposits and of receipts begin at one and have no gap."""
    boxes = seen.by("mailboxes", "address")
    for table, column, whose, last in (
        ("deposits", "sequence", "recipient", "last_sequence"),
        ("receipts", "number", "sender", "last_receipt"),
    ):
        numbers: dict[str, list[int]] = defaultdict(list)
        for row in seen.rows(table):
            if row[column] is not None:
                numbers[row[whose]].append(row[column])
        for address in numbers.keys() | boxes.keys():
            found = sorted(numbers[address])
            counted = boxes[address][last] if address in boxes else 0
            if found != list(range(1, counted + 1)):
                missing = sorted(set(range(1, max([counted, *found]) + 1)) - set(found))
                yield f"{address}'s {table} have a gap at {missing[:5]}, or one twice; {last} is {counted}"


def deposits(seen: Seen) -> Complaints:
    """Each went one way along the moves, told once each, and its row says what it went through."""
    there = seen.by("deposits", "id")
    answered = seen.by("receipts", "deposit_id")
    certificates = seen.by("certificates", "fingerprint")
    dead = {row["subject"] for row in seen.rows("jobs") if row["dead_at"] is not None}
    for name, row in there.items():
        state = DepositState(row["state"])
        way = [_STEPS[one["type"]] for one in seen.trails[name] if one["type"] in _STEPS]
        if not way or way[0] is not DepositState.RECEIVED or way[-1] is not state or len(set(way)) != len(way):
            yield f"{name} is {state} and went {' → '.join(way)}"
        elif any(new not in DEPOSIT_MOVES[old] for old, new in pairwise(way)):
            yield f"{name} went an illegal way, {' → '.join(way)}"
        numbered = row["sequence"] is not None
        if numbered != (DepositState.AVAILABLE in way):
            yield f"{name} is {state} with the number {row['sequence']}"
        for one in seen.trails[name]:
            if one["type"] == EventType.DEPOSIT_AVAILABLE and json.loads(one["data"])["sequence"] != row["sequence"]:
                yield f"{name} was told to have another number than {row['sequence']}"
        stamps = {
            "validated_at": numbered or state is DepositState.REJECTED,
            "collected_at": DepositState.COLLECTED in way,
            "settled_at": not DEPOSIT_MOVES[state],
        }
        for stamp, wanted in stamps.items():
            if (row[stamp] is not None) != wanted:
                yield f"{name} is {state}, and {stamp} is {row[stamp]}"
        if (state in (DepositState.ACKNOWLEDGED, DepositState.REFUSED)) != (name in answered):
            yield f"{name} is {state}, and its receipt is {'' if name in answered else 'not '}there"
        if (state is DepositState.REJECTED) != (row["rejected_code"] is not None):
            yield f"{name} is {state} with the code {row['rejected_code']}"
        if state is DepositState.RECEIVED and seen.waiting["deposit", name] == 0 and name not in dead:
            yield f"{name} waits for nobody"
        if seen.waiting["deposit", name] > 1:
            yield f"{name} has several jobs"
        successor = there.get(row["superseded_by"])
        if (state is DepositState.SUPERSEDED) != (successor is not None and successor["supersedes"] == name):
            yield f"{name} is {state} by {row['superseded_by']}"
        wrapped = certificates.get(row["certificate_fingerprint"])
        if numbered and (wrapped is None or wrapped["ski"] != row["recipient_ski"]):
            yield f"{name} is wrapped for a key without a certificate"
        if state is DepositState.QUARANTINED and wrapped is not None and wrapped["state"] == CertificateState.ACTIVE:
            yield f"{name} is held back for a key that is good"
        if seen.settled and state is DepositState.RECEIVED:
            yield f"{name} is received still"
        if (
            seen.settled
            and state is DepositState.AVAILABLE
            and wrapped is not None
            and wrapped["state"] == CertificateState.REVOKED
        ):
            yield f"{name} is handed out for a key that was revoked"


def bodies(seen: Seen) -> Complaints:
    """The bytes of each are there, and are those that came, or a counterfoil stands in their place."""
    inside = select(tables.deposits.c.id, tables.deposits.c.body).where(func.length(tables.deposits.c.body) > 0)
    apart = select(tables.bodies.c.deposit_id, tables.bodies.c.body)
    found = {name: hashlib.sha256(body).hexdigest() for name, body in seen.unit.connection.execute(inside)}
    found |= {name: hashlib.sha256(body).hexdigest() for name, body in seen.unit.connection.execute(apart)}
    counterfoils = seen.by("counterfoils", "deposit_id")
    for name, row in seen.by("deposits", "id").items():
        if name not in found and name not in counterfoils:
            yield f"{name} has lost its bytes"
        elif name in found and found[name] != row["body_sha256"]:
            yield f"{name}'s bytes are others"
    yield from (f"{name} belongs to no deposit" for name in found.keys() - seen.by("deposits", "id").keys())


def idempotency(seen: Seen) -> Complaints:
    """A key leads to one deposit of who used it."""
    there = seen.by("deposits", "id")
    keys = Counter(row["deposit_id"] for row in seen.rows("idempotency"))
    yield from (f"{name} has {count} keys" for name, count in keys.items() if count > 1)
    for row in seen.rows("idempotency"):
        if row["deposit_id"] not in there or there[row["deposit_id"]]["sender"] != row["sender"]:
            yield f"{row['key']} leads to no deposit of {row['sender']}"


def receipts(seen: Seen) -> Complaints:
    """Each is signed by the recipient for exactly this deposit."""
    there = seen.by("deposits", "id")
    keys: dict[tuple[str, str], bytes] = {
        (row["address"], row["ski"]): row["der"] for row in seen.rows("certificates") if row["kind"] == "identity"
    }
    for name, row in seen.by("receipts", "deposit_id").items():
        deposit = there.get(name)
        if deposit is None or deposit["sender"] != row["sender"]:
            yield f"{name} is no deposit of {row['sender']}"
            continue
        if {"receipt": "acknowledged", "refusal": "refused"}[row["kind"]] != deposit["state"]:
            yield f"{name} has a {row['kind']} and is {deposit['state']}"
        try:
            key = keys[deposit["recipient"], _parsed(row["der"]).signed.signer_ski.hex()]
            _verify(row["der"], key, deposit["recipient"], name, deposit["body_sha512"])
        except (KeymailboxError, KeyError) as error:
            yield f"{name}'s does not verify: {error}"


# What verified once does so again, and is asked after each step; what raises is not remembered.
_parsed = lru_cache(maxsize=1 << 14)(parse_receipt)


@lru_cache(maxsize=1 << 14)
def _verify(der: bytes, certificate: bytes, recipient: str, deposit: str, sha512: bytes) -> None:
    _parsed(der).verify(
        x509.identity_public_key(parsed_once(certificate).spki),
        recipient=parse_address(recipient),
        deposit=DepositId(deposit),
        sha512=sha512,
    )


def tallies(seen: Seen) -> Complaints:
    """What is counted of senders, mailboxes, and of addresses and tenants in them, is what there is."""
    held: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    ever: Counter[tuple[str, str]] = Counter()
    answered: Counter[tuple[str, str]] = Counter()
    for row in seen.rows("deposits"):
        state = DepositState(row["state"])
        pair, sender, mailbox = (row["sender"], row["recipient"]), (row["sender"], ""), ("", row["recipient"])
        share = (row["sender"].partition("/")[0], row["recipient"])
        for place in (pair, share):
            ever[place] += 1
            answered[place] += state is DepositState.ACKNOWLEDGED
        places = [pair, share, mailbox] if DEPOSIT_MOVES[state] else []
        # From collected on it is the recipient's to answer, and counts for the sender no more.
        places += [sender] if DEPOSIT_MOVES[state] and state is not DepositState.COLLECTED else []
        for place in places:
            held[place] += 1
            sizes[place] += row["size"]
    for row in seen.rows("tallies"):
        place = (row["sender"], row["recipient"])
        counted = (row["deposits"], row["bytes"])
        if counted != (held[place], sizes[place]):
            yield f"{place} counts {counted}, and there are {(held[place], sizes[place])}"
        if all(place) and (row["accepted"], row["acknowledged"]) != (ever[place], answered[place]):
            yield f"{place} counts {row['accepted']} and {row['acknowledged']} answered of {ever[place]}"
    there = {(row["sender"], row["recipient"]) for row in seen.rows("tallies")}
    yield from (f"{place} is not counted" for place in held.keys() - there)
