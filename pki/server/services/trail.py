"""The trail of events, verified: what is new from where it was left off, and a part of what is old each time."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass

from pki.core.errors import VerificationError
from pki.core.events import GENESIS, chain_hash
from pki.server.services.deps import Deps
from pki.server.services.findings import Finding
from pki.server.store import events as event_store
from pki.server.store import outbox

QUEUE, JOB = "report", "chain"
_BATCH = 500
_AT_ONCE = 100_000
"""How many new events one job verifies, and how many old ones again: some seconds, well within its lease."""
_ANCHOR, _AGAIN = "trail", "trail-again"


@dataclass(frozen=True)
class Verified:
    """How far the trail was verified, and up to where what is old was verified again; ``more`` is new than that."""

    position: int
    again: int
    more: bool = False


def verify(deps: Deps) -> Verified:
    """Verify what was numbered since the last time, and a part of what was verified before; the same cost on any day.

    It goes on from an anchor, the position and chain value at which it was left off, and writes a job where more is
    new than one job does. An event that is altered after it was verified is found when its part comes again, or by
    `verify_all`; a trail that was cut off before the anchor, or chained anew from before it, at once. Raises
    VerificationError at the first event that was altered, left out or put in; the anchor then stays.
    """
    with deps.store.read() as unit:
        position, chain = event_store.anchor(unit, _ANCHOR) or (0, GENESIS)
        again = event_store.cursor(unit, _AGAIN)
        if position:
            _demand(event_store.chain_at(unit, position), chain, position)
        newest, _ = event_store.head(unit, lock=False)
        old = _there(event_store.chain_at(unit, again), again) if 0 < again < position else GENESIS
    again = again if 0 < again < position else 0
    checked, _ = _walk(deps, again, old, min(again + _AT_ONCE, position))
    position, chain = _walk(deps, position, chain, min(position + _AT_ONCE, newest))
    more = position < newest
    now = deps.clock.now()
    with deps.store.unit() as unit:
        if position:
            event_store.set_anchor(unit, _ANCHOR, position, chain)
            event_store.set_anchor(unit, _AGAIN, checked if checked < position else 0, None)
        if more:
            outbox.add(unit, QUEUE, JOB, [f"from {position}"], now=now, rank=outbox.IDLE)
    return Verified(position, checked, more)


def verify_all(deps: Deps) -> int:
    """Recompute the chain over all numbered events; return how many there are. Raises VerificationError."""
    with deps.store.read() as unit:
        newest, _ = event_store.head(unit, lock=False)
        anchor = event_store.anchor(unit, _ANCHOR)
    position, _ = _walk(deps, 0, GENESIS, newest)
    if anchor is not None and anchor[0] > position:
        raise VerificationError("Events are missing from the end of the chain", on=f"position {position + 1}")
    return position


def examine(deps: Deps) -> Iterator[Finding]:
    """How far the daily job has come: what is beyond was not looked at yet."""
    with deps.store.read() as unit:
        position, _ = event_store.anchor(unit, _ANCHOR) or (0, b"")
        newest, _ = event_store.head(unit, lock=False)
    yield Finding("trail", True, f"{position} of {newest} events are verified; all of them: kmb-server doctor --full")


def examine_all(deps: Deps) -> Iterator[Finding]:
    """Each event from the first on, which takes as long as there are many."""
    detail = f"all {verify_all(deps)} events are as they were chained"
    yield Finding("trail", True, detail)


def _walk(deps: Deps, position: int, chain: bytes, until: int) -> tuple[int, bytes]:
    """Recompute the chain past a position and up to another; return where it ends."""
    while position < until:
        # A unit each: numbered events do not change, and a snapshot of hours keeps the database from clearing up.
        with deps.store.read() as unit:
            items = event_store.after(unit, position, min(_BATCH, until - position))
        if not items:
            raise VerificationError("Events are missing from the end of the chain", on=f"position {position + 1}")
        for item in items:
            if item.position != position + 1:
                raise VerificationError("An event is missing from the chain", on=f"position {position + 1}")
            position, chain = item.position, chain_hash(chain, item.event)
            _demand(item.chain, chain, position)
    return position, chain


def _demand(stored: bytes | None, chain: bytes, position: int) -> None:
    if not hmac.compare_digest(_there(stored, position), chain):
        raise VerificationError("An event was altered after it was chained", on=f"position {position}")


def _there(stored: bytes | None, position: int) -> bytes:
    if stored is None:
        raise VerificationError("An event is missing from the chain", on=f"position {position}")
    return stored
