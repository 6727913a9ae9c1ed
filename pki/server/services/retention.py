"""Bodies of deposits are deleted a while after nobody needs them; what proves who sent and who answered stays."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pki.core import counterfoils
from pki.core.errors import ConflictError, KeymailboxError, NotFoundError, UnavailableError
from pki.core.ids import DepositId
from pki.server.facts import CounterfoilRecord, DepositRecord, Shelved
from pki.server.services import signers
from pki.server.services.deps import Deps
from pki.server.services.findings import Finding
from pki.server.store import bodies, outbox, space
from pki.server.store import deposits as deposit_store
from pki.server.store.engine import Unit

QUEUE, JOB = "rotate", "retain"
AHEAD = 4
"""For how many weeks after this one shelves are made: as long as nobody may look after the server."""
SLACK = timedelta(days=1)
"""How much longer a shelf stands, so that what was answered within a day of its end need not be copied."""

_PAGE = 500
_PAGES = 60
"""How many of them one job looks at: some seconds, well within its lease."""
_GROUP_BYTES = 8 * 1024 * 1024
_STEPS = 50
_TRIES = 3
_FROM = "from"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cleared:
    """How many bodies were deleted, how many outlive their week, how many shelves were dropped; whether more is due."""

    deleted: int = 0
    kept: int = 0
    dropped: int = 0
    more: bool = False

    def __add__(self, other: Cleared) -> Cleared:
        return Cleared(
            self.deleted + other.deleted,
            self.kept + other.kept,
            self.dropped + other.dropped,
            self.more or other.more,
        )


@dataclass(frozen=True)
class _Shelf:
    """A week's bodies; those that are ``apart`` have a partition, which is dropped whole."""

    week: int
    apart: bool


def prepare(deps: Deps) -> int:
    """Make the shelves of this week and the next ones, where the database has such; return how many were made."""
    this = bodies.week_of(deps.clock.now())
    made = 0
    for week in range(this, this + AHEAD + 1):
        try:
            with deps.store.unit() as unit:
                made += bodies.make_shelf(unit, week)
        except UnavailableError as error:
            # Somebody reads for long: bodies without a shelf lie with what is kept, and the next run tries again.
            _log.warning("no shelf was made for the week of %s: %s", bodies.monday(week).date(), error)
            break
    return made


def set_apart(deps: Deps) -> None:
    """Have bodies written to their shelves from now on: no process of a release before them is left."""
    prepare(deps)
    with deps.store.unit() as unit:
        bodies.set_apart(unit)


def is_apart(deps: Deps) -> bool:
    """Return whether bodies are written to their shelves."""
    with deps.store.read() as unit:
        return bodies.apart(unit)


def retain(deps: Deps, subject: str = "") -> Cleared:
    """Delete the bodies of deposits that were settled ``body_retention`` ago; what is open or unanswered stays.

    Works for some seconds from where ``subject`` says and writes a job for the rest. May be repeated, interrupted and
    run twice at once: what is deleted has its counterfoil in the same transaction, or before its shelf is dropped.
    """
    prepare(deps)
    left = _PAGES
    total = Cleared()
    first, after = _place(subject)
    for shelf in _due(deps, first):
        found, left, after = _sweep(deps, shelf, after if shelf.week == first else "", left)
        total += found
        if not left:
            _go_on(deps, shelf.week, after)
            return total + Cleared(more=True)
        dropped = _drop(deps, shelf.week) if shelf.apart else 0
        if dropped is None:
            # In use, and each try keeps those waiting who come after: the next run has another chance.
            break
        total += Cleared(dropped=dropped)
    for _ in range(_STEPS):
        with deps.store.unit() as unit:
            if not space.give_back(unit):
                break
    if total != Cleared():
        _log.info("bodies deleted: %d, kept: %d, shelves dropped: %d", total.deleted, total.kept, total.dropped)
    return total


def marked(unit: Unit, records: Sequence[DepositRecord]) -> list[DepositRecord]:
    """Return the same deposits, those whose bodies were deleted with the time of it."""
    settled = [record.id for record in records if record.settled_at is not None]
    when = bodies.deleted_at(unit, settled) if settled else {}
    return [replace(record, body_deleted_at=when[record.id]) if record.id in when else record for record in records]


def counterfoil(deps: Deps, deposit_id: str) -> CounterfoilRecord:
    """Return what proves who sent a deposit, whether its body is still there or not; for the operator and auditors.

    Raises NotFoundError for what is no deposit, or was never available, so that nobody ever verified its signature.
    """
    known = signers.known_form(deposit_id)
    with deps.store.read() as unit:
        record = deposit_store.deposit(unit, known, with_body=True)
        kept = bodies.counterfoils_of(unit, [known]).get(known)
    if record is None or record.sequence is None:
        raise NotFoundError("There is no such deposit that was available once", on=known)
    if kept is not None:
        return kept
    if record.body is None:
        raise KeymailboxError("The deposit's bytes are not there", on=known, hint="kmb-server doctor")
    return CounterfoilRecord(known, record.received_at, counterfoils.cut(record.body))


def examine(deps: Deps) -> Iterator[Finding]:
    """Where bodies are written, and whether PostgreSQL has a partition for those that come next week."""
    hint = "kmb-server beat, and kmb-server worker --queues rotate"
    if not is_apart(deps):
        detail = (
            "bodies are written where an earlier release reads them; when none is left: kmb-server migrate --finish"
        )
        yield Finding("bodies", True, detail)
    elif deps.store.dialect == "sqlite":
        yield Finding("bodies", True, "bodies are deleted row by row")
    else:
        following = bodies.week_of(deps.clock.now()) + 1
        with deps.store.read() as unit:
            weeks = [week for week, whole in bodies.shelves(unit) if whole]
        detail = f"{len(weeks)} weeks have a partition"
        yield Finding("bodies", following in weeks, detail + ("" if following in weeks else ", the next not"), hint)


def _due(deps: Deps, first: int) -> Iterator[_Shelf]:
    """Yield the shelves on which something may be due, from one on."""
    horizon = deps.clock.now() - deps.settings.body_retention
    with deps.store.read() as unit:
        found = bodies.shelves(unit)
    for week, apart in sorted({(bodies.INSIDE, False), (bodies.KEPT, False), *found}):
        begins = bodies.monday(week + 1) + SLACK if apart else bodies.monday(week)
        if week >= first and (week < 0 or begins <= horizon):
            yield _Shelf(week, apart)


def _sweep(deps: Deps, shelf: _Shelf, after: str, left: int) -> tuple[Cleared, int, str]:
    """Clear a shelf; return what was done, how many pages are left to look at, and the last deposit looked at."""
    total = Cleared()
    while left:
        with deps.store.read() as unit:
            page = bodies.look(unit, shelf.week, after, _PAGE)
        if page:
            total += _clear(deps, shelf, page)
            after = page[-1].deposit_id
            left -= 1
        if len(page) < _PAGE:
            return total, max(left, 1), after
    return total, left, after


def _clear(deps: Deps, shelf: _Shelf, page: Sequence[Shelved]) -> Cleared:
    now = deps.clock.now()
    horizon = now - deps.settings.body_retention
    due = [one for one in page if one.settled_at is not None and one.settled_at <= horizon]
    damaged: set[DepositId] = set()
    deleted = 0
    for group in _groups(due):
        with deps.store.read() as unit:
            found = bodies.read(unit, shelf.week, [one.deposit_id for one in group if one.numbered and not one.deleted])
        new = []
        for one in group:
            body = found.get(one.deposit_id)
            if one.deleted or (body is None and one.numbered):
                # Somebody was quicker.
                continue
            try:
                new.append(CounterfoilRecord(one.deposit_id, now, None if body is None else _cut(one, body)))
            except KeymailboxError:
                damaged.add(one.deposit_id)
        gone = [one.deposit_id for one in group if one.deleted] + [one.deposit_id for one in new]
        with deps.store.unit() as unit:
            bodies.insert_counterfoils(unit, new)
            if not shelf.apart:
                bodies.remove(unit, shelf.week, gone)
        deleted += len(new)
    if damaged:
        _log.error("bodies that are not what was deposited are kept: %s", ", ".join(sorted(damaged)[:5]))
    kept = _stay(deps, shelf, page, horizon, damaged) if shelf.apart else 0
    return Cleared(deleted, kept)


def _stay(deps: Deps, shelf: _Shelf, page: Sequence[Shelved], horizon: datetime, damaged: set[DepositId]) -> int:
    """Copy what outlives its week, before the shelf is dropped; return how many there are."""
    ids = [
        one.deposit_id
        for one in page
        if not one.deleted and (one.settled_at is None or one.settled_at > horizon or one.deposit_id in damaged)
    ]
    if ids:
        with deps.store.unit() as unit:
            bodies.keep(unit, shelf.week, ids)
    return len(ids)


def _groups(due: Sequence[Shelved]) -> Iterator[list[Shelved]]:
    """Yield pieces whose bodies fit into memory."""
    group: list[Shelved] = []
    room = _GROUP_BYTES
    for one in due:
        if group and one.size > room:
            yield group
            group, room = [], _GROUP_BYTES
        group.append(one)
        room -= one.size
    if group:
        yield group


def _cut(one: Shelved, body: bytes) -> bytes:
    if not hmac.compare_digest(hashlib.sha256(body).hexdigest(), one.body_sha256):
        raise KeymailboxError("The deposit's bytes were altered", on=one.deposit_id)
    return counterfoils.cut(body)


def _drop(deps: Deps, week: int) -> int | None:
    """Drop a shelf; return 1, 0 when somebody was quicker, None when it is still there."""
    for _ in range(_TRIES):
        try:
            with deps.store.unit() as unit:
                return int(bodies.drop_shelf(unit, week))
        except UnavailableError as error:
            _log.warning("the shelf of the week of %s is in use: %s", bodies.monday(week).date(), error)
        except ConflictError as error:
            # Something came after the sweep: the next run looks at all of it again.
            _log.warning("the shelf of the week of %s is needed: %s", bodies.monday(week).date(), error)
            break
    return None


def _place(subject: str) -> tuple[int, str]:
    word, _, place = subject.partition(" ")
    week, _, after = place.partition(" ")
    return (int(week), after) if word == _FROM else (bodies.INSIDE, "")


def _go_on(deps: Deps, week: int, after: str) -> None:
    now = deps.clock.now()
    with deps.store.unit() as unit:
        outbox.add(unit, QUEUE, JOB, [f"{_FROM} {week} {after}"], now=now, rank=outbox.IDLE)
