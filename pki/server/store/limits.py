"""What is under way of each sender, in each mailbox, and of whom in whose, counted exactly; and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache

from sqlalchemy import Executable, case, delete, func, select, text

from pki.core.deposits import WAITING, DepositState
from pki.server.facts import Tally
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.tables import deposits, limits, tallies

EVERYBODY = ""
"""Stands for all senders of a mailbox, and for all recipients of a sender."""
_TAKEN_BACK = frozenset(WAITING) - {DepositState.COLLECTED}
"""What still counts for its sender: from collected on it cannot be taken back, and it is the recipient's to answer."""
_COUNTED = ("deposits", "bytes", "today", "accepted", "acknowledged")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC).date()


@dataclass(frozen=True)
class Change:
    """What is added to one tally; negative when something is over. ``day`` is days since 1970, for ``today``."""

    sender: str
    recipient: str
    deposits: int = 0
    bytes: int = 0
    today: int = 0
    accepted: int = 0
    acknowledged: int = 0
    day: int = 0


def day_of(now: datetime) -> int:
    """Return the number of a day, in UTC, since 1970."""
    return (now.astimezone(UTC).date() - _EPOCH).days


def accepted(sender: str, recipient: str, size: int, now: datetime) -> list[Change]:
    """Return what one deposit of ``size`` bytes adds."""
    one = Change(sender, recipient, deposits=1, bytes=size, today=1, accepted=1, day=day_of(now))
    return [one, replace(one, recipient=EVERYBODY), *_in_mailbox(one)]


def moved(sender: str, recipient: str, size: int, old: DepositState, new: DepositState) -> list[Change]:
    """Return what it adds that one deposit goes from one state to another."""
    found = []
    mailbox = (new in WAITING) - (old in WAITING)
    mine = (new in _TAKEN_BACK) - (old in _TAKEN_BACK)
    answered = int(new is DepositState.ACKNOWLEDGED)
    if mailbox or answered:
        pair = Change(sender, recipient, deposits=mailbox, bytes=mailbox * size, acknowledged=answered)
        found += [pair, *_in_mailbox(pair)]
    if mine:
        found.append(Change(sender, EVERYBODY, deposits=mine, bytes=mine * size))
    return found


def tenant_of(sender: str) -> str:
    """Return the tenant of an address, by whose name its share of a mailbox is counted."""
    return sender.partition("/")[0]


def back(changes: Sequence[Change]) -> list[Change]:
    """Return what undoes these changes."""
    return [replace(one, **{name: -getattr(one, name) for name in _COUNTED}) for one in changes]


def count(unit: Unit, changes: Sequence[Change]) -> Mapping[tuple[str, str], Tally]:
    """Add up changes, and return each tally as it is then, by sender and recipient; its row is held until the end.

    One statement, in one order: whoever counts the same waits here, and for nobody who waits for it.
    """
    summed: dict[tuple[str, str], Change] = {}
    for one in changes:
        place = (one.sender, one.recipient)
        known = summed.get(place)
        summed[place] = one if known is None else _plus(known, one)
    if not summed:
        return {}
    values = [
        {"sender": one.sender, "recipient": one.recipient, "day": one.day}
        | {name: getattr(one, name) for name in _COUNTED}
        for _, one in sorted(summed.items())
    ]
    # An array of one costs more than one row.
    several = unit.dialect == "postgresql" and len(values) > 1
    names = tuple(values[0])
    given = rows.arrays(names, values) if several else values
    counted = unit.connection.execute(_counting(unit.dialect, names if several else None), given)
    return {(row.sender, row.recipient): Tally(**row._mapping) for row in counted}


@cache
def _counting(dialect: str, names: tuple[str, ...] | None) -> Executable:
    """Return the statement that adds up changes, given as arrays of columns with these names, or one by one."""
    statement = rows.inserting(dialect, tallies)
    if names is not None:
        statement = statement.from_select(names, rows.unnested(tallies, names).select())
    new = statement.excluded
    # A day that is over starts anew; a clock that is behind does not bring one back.
    same = tallies.c.day == new.day
    set_ = {name: tallies.c[name] + new[name] for name in _COUNTED if name != "today"}
    set_["today"] = case(
        (same, tallies.c.today + new.today), (tallies.c.day < new.day, new.today), else_=tallies.c.today
    )
    set_["day"] = case((tallies.c.day < new.day, new.day), else_=tallies.c.day)
    upsert = statement.on_conflict_do_update(index_elements=[tallies.c.sender, tallies.c.recipient], set_=set_)
    return upsert.returning(tallies)


def settle(unit: Unit, changes: Sequence[Change]) -> None:
    """Add up changes just before ``unit`` commits."""
    unit.defer(_settle, changes)


def found(unit: Unit, places: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], Tally]:
    """Return tallies by sender and recipient; what was never counted is not there."""
    keys = [{"sender": sender, "recipient": recipient} for sender, recipient in sorted(set(places))]
    return {(row["sender"], row["recipient"]): Tally(**row) for row in rows.select_each(unit, tallies, keys)}


def differing(unit: Unit) -> list[tuple[Tally, Tally]]:
    """Return each tally that is not what the deposits say, beside what it should be."""
    should = _recounted(unit)
    statement = select(tallies).where((tallies.c.deposits != 0) | (tallies.c.bytes != 0))
    is_ = {(row.sender, row.recipient): Tally(**row._mapping) for row in unit.connection.execute(statement)}
    pairs = []
    for place in sorted(should.keys() | is_.keys()):
        nothing = Tally(*place)
        one, other = is_.get(place, nothing), should.get(place, nothing)
        if (one.deposits, one.bytes) != (other.deposits, other.bytes):
            pairs.append((one, other))
    return pairs


def mend(unit: Unit) -> int:
    """Set each tally to what the deposits say; return how many were wrong. Whoever counts meanwhile waits."""
    if unit.dialect == "postgresql":
        # Who has counted is waited for; who has changed deposits and not counted them yet does so afterwards.
        unit.connection.execute(text("LOCK TABLE tallies IN EXCLUSIVE MODE"))
    wrong = differing(unit)
    count(
        unit,
        [
            Change(one.sender, one.recipient, deposits=should.deposits - one.deposits, bytes=should.bytes - one.bytes)
            for one, should in wrong
        ],
    )
    return len(wrong)


# What the operator allows


def allowed(unit: Unit, subjects: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
    """Return what was set for tenants and addresses, by subject and name."""
    result: dict[str, dict[str, int]] = {}
    found = rows.select_among(unit, limits.c.subject, subjects, limits.c.subject, limits.c.name, limits.c.value)
    for row in found:
        result.setdefault(row.subject, {})[row.name] = row.value
    return result


def allow(unit: Unit, subject: str, values: Mapping[str, int | None], now: datetime) -> None:
    """Set limits of a tenant or an address; None takes one back."""
    for name, value in sorted(values.items()):
        if value is None:
            unit.connection.execute(delete(limits).where(limits.c.subject == subject, limits.c.name == name))
            continue
        statement = rows.insert(unit, limits).values(subject=subject, name=name, value=value, set_at=now)
        new = statement.excluded
        unit.connection.execute(
            statement.on_conflict_do_update(
                index_elements=[limits.c.subject, limits.c.name], set_={"value": new.value, "set_at": new.set_at}
            )
        )


def _in_mailbox(pair: Change) -> list[Change]:
    return [replace(pair, sender=tenant_of(pair.sender)), replace(pair, sender=EVERYBODY)]


def _settle(unit: Unit, changes: Sequence[Change]) -> None:
    count(unit, changes)


def _plus(one: Change, other: Change) -> Change:
    added = {name: getattr(one, name) + getattr(other, name) for name in _COUNTED}
    return replace(one, day=max(one.day, other.day), **added)


def _recounted(unit: Unit) -> dict[tuple[str, str], Tally]:
    # What is open is found by its state: what was settled is not read.
    statement = (
        select(deposits.c.sender, deposits.c.recipient, deposits.c.state, func.count(), func.sum(deposits.c.size))
        .where(deposits.c.state.in_([state.value for state in WAITING]))
        .group_by(deposits.c.sender, deposits.c.recipient, deposits.c.state)
    )
    summed: dict[tuple[str, str], Tally] = {}
    for sender, recipient, state, number, size in unit.connection.execute(statement):
        places = [(sender, recipient), (tenant_of(sender), recipient), (EVERYBODY, recipient)]
        places += [(sender, EVERYBODY)] if DepositState(state) in _TAKEN_BACK else []
        for place in places:
            known = summed.get(place, Tally(*place))
            summed[place] = replace(known, deposits=known.deposits + number, bytes=known.bytes + int(size))
    return summed
