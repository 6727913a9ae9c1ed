"""Deposits: stored, found, numbered in their mailboxes, moved along their states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Row, Select, func, or_, select, text, tuple_, update

from pki.core.deposits import DEPOSIT_MOVES, WAITING, DepositState, check_move
from pki.core.errors import ConflictError, IllegalMoveError, NotFoundError, ReplayedError
from pki.core.ids import DepositId
from pki.core.tenants import Address, TenantName, parse_address
from pki.server import metrics
from pki.server.facts import DepositRecord, NewDeposit, ReportRow
from pki.server.store import bodies, limits, mailboxes, receipts, rows
from pki.server.store.engine import Unit
from pki.server.store.tables import ENDED, deposits, idempotency, instances

_LIGHT = [deposits.c[one.name] for one in fields(DepositRecord) if one.name != "body" and one.name in deposits.c]
_ENDED = frozenset(
    {
        DepositState.REFUSED,
        DepositState.REJECTED,
        DepositState.SUPERSEDED,
        DepositState.EXPIRED,
        DepositState.WITHDRAWN,
        DepositState.QUARANTINED,
    }
)
_EXPIRING = [state for state, moves in DEPOSIT_MOVES.items() if DepositState.EXPIRED in moves]
_STAMPS: Mapping[DepositState, str] = {
    DepositState.AVAILABLE: "validated_at",
    DepositState.COLLECTED: "collected_at",
    DepositState.ACKNOWLEDGED: "settled_at",
    DepositState.REFUSED: "settled_at",
    DepositState.REJECTED: "settled_at",
    DepositState.SUPERSEDED: "settled_at",
    DepositState.EXPIRED: "settled_at",
    DepositState.WITHDRAWN: "settled_at",
}
_SETTABLE = frozenset(
    {"rejected_code", "rejected_detail", "superseded_by", "certificate_fingerprint", "sender_fingerprint"}
)
_REPORT_BATCH = 500


def insert(unit: Unit, new: Sequence[NewDeposit]) -> None:
    """Store deposits as ``received``, with their bodies, and count them; raises ReplayedError when an id was used."""
    taken, ids = insert_free(unit, new), {item.id for item in new}
    if taken or len(ids) != len(new):
        clash = sorted(taken or ids)
        raise ReplayedError("A deposit with this id was presented before", on=", ".join(clash[:5]))
    added = [limits.accepted(str(one.sender), str(one.recipient), one.size, one.received_at) for one in new]
    limits.settle(unit, [change for changes in added for change in changes])


def insert_free(unit: Unit, new: Sequence[NewDeposit]) -> set[DepositId]:
    """Store deposits whose ids nobody has used, those that this unit may not see included; return the other ids.

    They are counted for their sender and recipient by who calls.
    """
    apart = bodies.apart(unit)
    values = [
        {
            "id": item.id,
            "sender": str(item.sender),
            "recipient": str(item.recipient),
            "state": DepositState.RECEIVED.value,
            "body": b"" if apart else item.body,
            "body_sha256": item.body_sha256,
            "body_sha512": item.body_sha512,
            "size": item.size,
            "key_id": item.key_id,
            "key_version": item.key_version,
            "purpose": item.purpose,
            "signing_time": item.signing_time,
            "received_at": item.received_at,
            "expires_at": item.expires_at,
            "recipient_ski": item.recipient_ski,
            "sender_ski": item.sender_ski,
            "supersedes": item.supersedes,
            "respond_by": item.respond_by,
        }
        # In one order everywhere: two units with the same ids wait for each other and not in a circle.
        for item in sorted(new, key=lambda item: item.id)
    ]
    inserted = set(rows.insert_new(unit, deposits, values, deposits.c.id))
    stored = [item for item in new if item.id in inserted]
    unit.once_committed(lambda: metrics.moved(DepositState.RECEIVED, count=len(stored)))
    if apart:
        bodies.insert(unit, [(item.id, item.received_at, item.body) for item in stored])
    return {item.id for item in new} - inserted


def find_idempotent(
    unit: Unit, places: Sequence[tuple[Address, str]]
) -> dict[tuple[Address, str], tuple[str, DepositId]]:
    """Return digest and deposit of the first request with each of these senders' idempotency keys that was used."""
    keys = [{"sender": str(sender), "key": key} for sender, key in dict.fromkeys(places)]
    return {
        (parse_address(row["sender"]), row["key"]): (row["body_sha256"], DepositId(row["deposit_id"]))
        for row in rows.select_each(unit, idempotency, keys)
    }


def insert_idempotency(unit: Unit, used: Mapping[tuple[Address, str], tuple[str, DepositId]], now: datetime) -> None:
    """Remember idempotency keys; raises ConflictError when another request with one of them got here first."""
    values = [
        {"sender": str(sender), "key": key, "body_sha256": digest, "deposit_id": deposit_id, "created_at": now}
        for (sender, key), (digest, deposit_id) in sorted(used.items(), key=lambda item: (str(item[0][0]), item[0][1]))
    ]
    if len(rows.insert_new(unit, idempotency, values, idempotency.c.key)) != len(values):
        raise ConflictError("Another request with this idempotency key is on its way", hint="repeat the request")


def purge_idempotency(unit: Unit, before: datetime, limit: int = 10_000) -> int:
    """Forget the keys of requests older than ``before``, so many at most; return how many."""
    return rows.delete_first(unit, idempotency, idempotency.c.created_at < before, idempotency.c.created_at, limit)


def deposit(unit: Unit, deposit_id: DepositId, with_body: bool = False) -> DepositRecord | None:
    """Return one deposit."""
    found = many(unit, [deposit_id], with_body=with_body)
    return found[0] if found else None


def many(unit: Unit, ids: Sequence[DepositId], *, lock: bool = False, with_body: bool = False) -> list[DepositRecord]:
    """Return the deposits that exist, by id, held until the end of the unit when ``lock``.

    ``with_body``: a body that is not there, because it was deleted, is None.
    """
    found: list[Row[Any]] = []
    statement = _by_id(unit.dialect, with_body, lock)
    for chunk in rows.chunks(sorted(set(ids))):
        found += unit.connection.execute(statement, {"wanted": chunk}).all()
    if not with_body:
        return [_record(row) for row in found]
    # What was deposited before bodies had a table of their own lies in the deposit's row.
    fetched = bodies.fetch(unit, {row.id: row.received_at for row in found if not row.body})
    return [_record(row, row.body or fetched.get(row.id)) for row in found]


def assign_sequences(unit: Unit, ids: Sequence[DepositId]) -> Mapping[DepositId, int]:
    """Number deposits in their recipients' mailboxes, in the order given, without gaps; one that has a number keeps it.

    The mailboxes are held until the end of the unit, so numbers become visible in their order.
    """
    known = {record.id: record for record in many(unit, ids, lock=True)}
    numbers = {record.id: record.sequence for record in known.values() if record.sequence is not None}
    arriving: dict[str, list[DepositId]] = {}
    for deposit_id in dict.fromkeys(ids):
        if deposit_id not in known:
            raise NotFoundError(on=deposit_id)
        if deposit_id not in numbers:
            arriving.setdefault(str(known[deposit_id].recipient), []).append(deposit_id)
    new: dict[DepositId, int] = {}
    last = mailboxes.advance(unit, "last_sequence", {recipient: len(group) for recipient, group in arriving.items()})
    for recipient, group in arriving.items():
        first = last[recipient] - len(group) + 1
        new |= {deposit_id: first + place for place, deposit_id in enumerate(group)}
    numbered = [{"id": deposit_id, "sequence": number} for deposit_id, number in new.items()]
    rows.update_each(unit, deposits, numbered, deposits.c.id)
    return numbers | new


def set_state(unit: Unit, ids: Sequence[DepositId], to: DepositState, *, now: datetime, **columns: str | None) -> None:
    """Move deposits along ``DEPOSIT_MOVES``, all or none, with the time of it and what else is given.

    ``columns``: rejected_code, rejected_detail, superseded_by, certificate_fingerprint, sender_fingerprint.
    Raises NotFoundError, IllegalMoveError.
    """
    for chunk in rows.chunks(sorted(set(ids))):
        statement = select(deposits.c.id, deposits.c.state).where(deposits.c.id.in_(chunk)).order_by(deposits.c.id)
        states = {row.id: DepositState(row.state) for row in unit.connection.execute(statement.with_for_update())}
        for deposit_id in chunk:
            if deposit_id not in states:
                raise NotFoundError(on=deposit_id)
        move(unit, states, to, now=now, **columns)


def move(
    unit: Unit, held: Mapping[DepositId, DepositState], to: DepositState, *, now: datetime, **columns: str | None
) -> None:
    """Do what `set_state` does with deposits that this unit holds already, in the states that they are in."""
    unknown = set(columns) - _SETTABLE
    if unknown:
        raise TypeError(f"not set with a state: {', '.join(sorted(unknown))}")
    for deposit_id, state in held.items():
        _check(state, to, deposit_id)
    values: dict[str, Any] = {"state": to.value, **columns}
    if "rejected_detail" in columns:
        values["rejected_detail"] = rows.detail(columns["rejected_detail"])
    if to in _STAMPS:
        values[_STAMPS[to]] = now
    if to is DepositState.REJECTED:
        values["validated_at"] = now
    since: list[float | None] = []
    # When what came before this state began; validated_at may be this very moment.
    began = deposits.c.received_at if to is DepositState.AVAILABLE else deposits.c.validated_at
    for chunk in rows.chunks(sorted(held)):
        statement = update(deposits).where(deposits.c.id.in_(chunk)).values(values)
        moved = statement.returning(deposits.c.id, deposits.c.sender, deposits.c.recipient, deposits.c.size, began)
        for row in unit.connection.execute(moved):
            since.append(None if row[4] is None else (now - row[4]).total_seconds())
            # Here, since there is no other way out of a state: what is counted cannot differ from what there is.
            limits.settle(unit, limits.moved(row.sender, row.recipient, row.size, held[row.id], to))
    unit.once_committed(lambda: metrics.moved(to, since))


def last_numbers(unit: Unit, recipients: Sequence[Address]) -> Mapping[Address, int]:
    """Return the highest number in each of these mailboxes, 0 where nothing has one; one step in an index for each."""
    wanted = sorted({str(address) for address in recipients})
    found = unit.connection.execute(_last_numbers(unit.dialect), {"wanted": wanted})
    return {parse_address(row.address): row.last or 0 for row in found}


def page(unit: Unit, recipient: Address, after: int, limit: int) -> list[DepositRecord]:
    """Return up to ``limit`` numbered deposits of a mailbox past the number ``after``, without bodies."""
    statement = (
        _select()
        .where(deposits.c.recipient == str(recipient), deposits.c.sequence > after)
        .order_by(deposits.c.sequence)
        .limit(limit)
    )
    return _records(unit, statement)


def sent(
    unit: Unit, sender: Address, *, state: DepositState | None = None, after: DepositId | None = None, limit: int
) -> list[DepositRecord]:
    """Return up to ``limit`` deposits of a sender past the deposit ``after``, oldest first, without bodies."""
    statement = _select().where(deposits.c.sender == str(sender))
    if state is not None:
        statement = statement.where(deposits.c.state == state.value)
        if state in _ENDED:
            # In the words of the index, so that both databases see that it fits.
            statement = statement.where(text(ENDED))
    if after is not None:
        place = (
            select(deposits.c.received_at, deposits.c.id)
            .where(deposits.c.id == after, deposits.c.sender == str(sender))
            .subquery()
        )
        found = unit.connection.execute(select(place)).one_or_none()
        if found is None:
            raise NotFoundError("The cursor names no deposit of this sender", on=after)
        statement = statement.where(_past(deposits.c.received_at, deposits.c.id, found))
    return _records(unit, statement.order_by(deposits.c.received_at, deposits.c.id).limit(limit))


def quarantine_for(unit: Unit, recipient_skis: Sequence[str], now: datetime) -> list[DepositId]:
    """Quarantine what is available and wrapped for one of these keys (hex); return the ids."""
    # One statement for all keys: with one for each, deposits would be held in another order than elsewhere.
    statement = (
        select(deposits.c.id)
        .where(rows.among(unit.dialect, deposits.c.recipient_ski), deposits.c.state == DepositState.AVAILABLE.value)
        .order_by(deposits.c.id)
        .with_for_update()
    )
    found = unit.connection.execute(statement, {"wanted": list(recipient_skis)}).scalars()
    held = {DepositId(one): DepositState.AVAILABLE for one in found}
    move(unit, held, DepositState.QUARANTINED, now=now)
    return list(held)


def due_expiry(unit: Unit, now: datetime, limit: int) -> list[DepositRecord]:
    """Return and hold up to ``limit`` open deposits whose time is over."""
    statement = (
        _select()
        .where(deposits.c.state.in_([state.value for state in _EXPIRING]), deposits.c.expires_at <= now)
        .order_by(deposits.c.expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return _records(unit, statement)


def due_answers(unit: Unit, now: datetime, limit: int) -> list[DepositRecord]:
    """Return up to ``limit`` deposits without the answer that their sender wanted by now, once each; and hold them."""
    statement = (
        _select()
        .where(deposits.c.respond_by <= now, deposits.c.overdue_at.is_(None), deposits.c.settled_at.is_(None))
        .order_by(deposits.c.respond_by)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    found = _records(unit, statement)
    for chunk in rows.chunks([record.id for record in found]):
        unit.connection.execute(update(deposits).where(deposits.c.id.in_(chunk)).values(overdue_at=now))
    return found


def waiting(unit: Unit, skis: Sequence[str] | None = None) -> Mapping[str, Mapping[DepositState, int]]:
    """Return how many deposits wait under each key (hex), by state; ``skis`` names the keys, None means all."""
    found: dict[str, dict[DepositState, int]] = {}
    for chunk in [None] if skis is None else rows.chunks(sorted(set(skis))):
        statement = (
            select(deposits.c.recipient_ski, deposits.c.state, func.count())
            .where(deposits.c.state.in_([state.value for state in WAITING]))
            .group_by(deposits.c.recipient_ski, deposits.c.state)
        )
        if chunk is not None:
            statement = statement.where(deposits.c.recipient_ski.in_(chunk))
        for ski, state, count in unit.connection.execute(statement):
            found.setdefault(ski, {})[DepositState(state)] = count
    return found


def report_rows(
    unit: Unit, *, tenant: TenantName | None = None, since: datetime | None = None, until: datetime | None = None
) -> Iterator[ReportRow]:
    """Yield the deposits from or to a tenant, received from ``since`` until before ``until``, with their receipts."""
    base = _select().order_by(deposits.c.received_at, deposits.c.id).limit(_REPORT_BATCH)
    if tenant is not None:
        prefix = f"{tenant}/"
        base = base.where(
            or_(
                deposits.c.sender.startswith(prefix, autoescape=True),
                deposits.c.recipient.startswith(prefix, autoescape=True),
            )
        )
    if since is not None:
        base = base.where(deposits.c.received_at >= since)
    if until is not None:
        base = base.where(deposits.c.received_at < until)
    statement = base
    while found := unit.connection.execute(statement).all():
        ids = [row.id for row in found]
        by_id = receipts.by_deposits(unit, ids)
        deleted = bodies.deleted_at(unit, ids)
        for row in found:
            record = replace(_record(row), body_deleted_at=deleted.get(row.id))
            yield ReportRow(deposit=record, receipt=by_id.get(row.id))
        statement = base.where(_past(deposits.c.received_at, deposits.c.id, found[-1]))


def _check(state: DepositState, to: DepositState, deposit_id: str) -> None:
    try:
        check_move(state, to)
    except IllegalMoveError as error:
        raise IllegalMoveError(error.message, on=deposit_id, hint=error.hint) from None


def _past(time: Any, key: Any, row: Row[Any]) -> Any:
    return tuple_(time, key) > tuple_(row.received_at, row.id, types=[time.type, key.type])


@cache
def _by_id(dialect: str, with_body: bool, lock: bool) -> Select[Any]:
    statement = _select(with_body).where(rows.among(dialect, deposits.c.id)).order_by(deposits.c.id)
    return statement.with_for_update() if lock else statement


@cache
def _last_numbers(dialect: str) -> Select[Any]:
    last = select(func.max(deposits.c.sequence)).where(deposits.c.recipient == instances.c.address)
    return select(instances.c.address, last.scalar_subquery().label("last")).where(
        rows.among(dialect, instances.c.address)
    )


def _select(with_body: bool = False) -> Select[Any]:
    return select(*_LIGHT, deposits.c.body) if with_body else select(*_LIGHT)


def _records(unit: Unit, statement: Select[Any]) -> list[DepositRecord]:
    return [_record(row) for row in unit.connection.execute(statement)]


def _record(row: Row[Any], body: bytes | None = None) -> DepositRecord:
    # By place: there are many columns, and many of these.
    name, sender, recipient, state, *rest = tuple(row)[: len(_LIGHT)]
    values = (name, parse_address(sender), parse_address(recipient), DepositState(state), *rest, body)
    return DepositRecord(*values)
