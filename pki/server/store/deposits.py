"""Deposits, the mailboxes that number them, and their receipts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, RowMapping, Select, delete, or_, select, tuple_, update

from pki.core.deposits import DEPOSIT_MOVES, DepositState, check_move
from pki.core.errors import ConflictError, IllegalMoveError, NotFoundError, ReplayedError
from pki.core.ids import DepositId, KeyId
from pki.core.tenants import Address, TenantName, parse_address
from pki.server.ports import DepositRecord, NewDeposit, ReceiptRecord, ReportRow
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.tables import deposits, idempotency, mailboxes, receipts

_LIGHT = [column for column in deposits.c if column.name != "body"]
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
    """Store deposits as ``received``, in one statement; raises ReplayedError when an id was used before, by anybody."""
    values = [
        {
            "id": item.id,
            "sender": str(item.sender),
            "recipient": str(item.recipient),
            "state": DepositState.RECEIVED.value,
            "body": item.body,
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
        }
        for item in new
    ]
    inserted = rows.insert_new(unit, deposits, values, deposits.c.id)
    if len(inserted) != len(values):
        clash = sorted({item.id for item in new} - set(inserted)) or [item.id for item in new]
        raise ReplayedError("A deposit with this id was presented before", on=", ".join(clash[:5]))


def find_idempotent(unit: Unit, sender: Address, key: str) -> tuple[str, DepositId] | None:
    """Return digest and deposit of the first request with this idempotency key of this sender."""
    statement = select(idempotency.c.body_sha256, idempotency.c.deposit_id).where(
        idempotency.c.sender == str(sender), idempotency.c.key == key
    )
    row = unit.connection.execute(statement).one_or_none()
    return None if row is None else (row.body_sha256, DepositId(row.deposit_id))


def insert_idempotency(
    unit: Unit, sender: Address, key: str, body_sha256: str, deposit_id: DepositId, now: datetime
) -> None:
    """Remember an idempotency key; raises ConflictError when another request with it got here first."""
    row = {
        "sender": str(sender),
        "key": key,
        "body_sha256": body_sha256,
        "deposit_id": deposit_id,
        "created_at": now,
    }
    if not rows.insert_new(unit, idempotency, [row], idempotency.c.key):
        raise ConflictError("Another request with this idempotency key is on its way", hint="repeat the request")


def purge_idempotency(unit: Unit, before: datetime) -> int:
    """Forget the keys of requests older than ``before``; return how many."""
    return unit.connection.execute(delete(idempotency).where(idempotency.c.created_at < before)).rowcount


def deposit(unit: Unit, deposit_id: DepositId, with_body: bool = False) -> DepositRecord | None:
    """Return one deposit."""
    found = many(unit, [deposit_id], with_body=with_body)
    return found[0] if found else None


def many(unit: Unit, ids: Sequence[DepositId], *, lock: bool = False, with_body: bool = False) -> list[DepositRecord]:
    """Return the deposits that exist, by id, held until the end of the unit when ``lock``."""
    found = []
    for chunk in rows.chunks(sorted(set(ids))):
        statement = _select(with_body).where(deposits.c.id.in_(chunk)).order_by(deposits.c.id)
        found += _records(unit, statement.with_for_update() if lock else statement)
    return found


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
    last = _advance(unit, "last_sequence", {recipient: len(group) for recipient, group in arriving.items()})
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
    unknown = set(columns) - _SETTABLE
    if unknown:
        raise TypeError(f"not set with a state: {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {"state": to.value, **columns}
    if "rejected_detail" in columns:
        values["rejected_detail"] = rows.detail(columns["rejected_detail"])
    if to in _STAMPS:
        values[_STAMPS[to]] = now
    if to is DepositState.REJECTED:
        values["validated_at"] = now
    for chunk in rows.chunks(sorted(set(ids))):
        statement = select(deposits.c.id, deposits.c.state).where(deposits.c.id.in_(chunk)).order_by(deposits.c.id)
        states = {row.id: row.state for row in unit.connection.execute(statement.with_for_update())}
        for deposit_id in chunk:
            if deposit_id not in states:
                raise NotFoundError(on=deposit_id)
            _check(DepositState(states[deposit_id]), to, deposit_id)
        unit.connection.execute(update(deposits).where(deposits.c.id.in_(chunk)).values(values))


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


def quarantine_for(unit: Unit, recipient_ski: str, now: datetime) -> list[DepositId]:
    """Quarantine what is available and wrapped for a key (hex); return the ids."""
    statement = (
        select(deposits.c.id)
        .where(deposits.c.recipient_ski == recipient_ski, deposits.c.state == DepositState.AVAILABLE.value)
        .order_by(deposits.c.id)
        .with_for_update()
    )
    ids = [DepositId(found) for found in unit.connection.execute(statement).scalars()]
    set_state(unit, ids, DepositState.QUARANTINED, now=now)
    return ids


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


def insert_receipt(unit: Unit, record: ReceiptRecord) -> int:
    """Store the one receipt of a deposit and return its number in the sender's list.

    Raises NotFoundError without the deposit, ReplayedError when there is a receipt.
    """
    found = deposit(unit, record.deposit_id)
    if found is None:
        raise NotFoundError(on=record.deposit_id)
    sender = str(found.sender)
    number = _advance(unit, "last_receipt", {sender: 1})[sender]
    row = {
        "deposit_id": record.deposit_id,
        "sender": sender,
        "number": number,
        "kind": record.kind,
        "reason": record.reason,
        "der": record.der,
        "signed_at": record.signed_at,
        "stored_at": record.stored_at,
    }
    if not rows.insert_new(unit, receipts, [row], receipts.c.deposit_id):
        raise ReplayedError("The deposit has a receipt", on=record.deposit_id)
    return number


def receipt(unit: Unit, deposit_id: DepositId) -> ReceiptRecord | None:
    """Return the receipt or refusal of a deposit."""
    statement = select(receipts).where(receipts.c.deposit_id == deposit_id)
    row = unit.connection.execute(statement).mappings().one_or_none()
    return None if row is None else _receipt(row)


def receipts_for(unit: Unit, sender: Address, *, after: int, limit: int) -> list[tuple[int, ReceiptRecord]]:
    """Return up to ``limit`` receipts for a sender's deposits past the number ``after``, each with its number."""
    statement = (
        select(receipts)
        .where(receipts.c.sender == str(sender), receipts.c.number > after)
        .order_by(receipts.c.number)
        .limit(limit)
    )
    return [(row["number"], _receipt(row)) for row in unit.connection.execute(statement).mappings()]


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
        answers = unit.connection.execute(select(receipts).where(receipts.c.deposit_id.in_(ids))).mappings()
        by_id = {row["deposit_id"]: _receipt(row) for row in answers}
        for row in found:
            yield ReportRow(deposit=_record(row._mapping), receipt=by_id.get(row.id))
        statement = base.where(_past(deposits.c.received_at, deposits.c.id, found[-1]))


def _advance(unit: Unit, counter: str, by: Mapping[str, int]) -> Mapping[str, int]:
    # One statement, its rows in address order: two units that need the same mailboxes wait for each other, in order.
    if not by:
        return {}
    fresh = {"last_sequence": 0, "last_receipt": 0}
    values = [{"address": address, **fresh, counter: by[address]} for address in sorted(by)]
    statement = rows.insert(unit, mailboxes)
    upsert = statement.on_conflict_do_update(
        index_elements=[mailboxes.c.address],
        set_={counter: mailboxes.c[counter] + statement.excluded[counter]},
    ).returning(mailboxes.c.address, mailboxes.c[counter].label("last"))
    return {row.address: row.last for row in unit.connection.execute(upsert, values)}


def _check(state: DepositState, to: DepositState, deposit_id: str) -> None:
    try:
        check_move(state, to)
    except IllegalMoveError as error:
        raise IllegalMoveError(error.message, on=deposit_id, hint=error.hint) from None


def _past(time: Any, key: Any, row: Row[Any]) -> Any:
    return tuple_(time, key) > tuple_(row.received_at, row.id, types=[time.type, key.type])


def _select(with_body: bool = False) -> Select[Any]:
    return select(deposits) if with_body else select(*_LIGHT)


def _records(unit: Unit, statement: Select[Any]) -> list[DepositRecord]:
    return [_record(row) for row in unit.connection.execute(statement).mappings()]


def _record(row: RowMapping) -> DepositRecord:
    values = dict(row)
    values |= {
        "id": DepositId(row["id"]),
        "sender": parse_address(row["sender"]),
        "recipient": parse_address(row["recipient"]),
        "state": DepositState(row["state"]),
        "key_id": KeyId(row["key_id"]),
    }
    return DepositRecord(**values)


def _receipt(row: RowMapping) -> ReceiptRecord:
    return ReceiptRecord(
        deposit_id=DepositId(row["deposit_id"]),
        kind=row["kind"],
        reason=row["reason"],
        der=row["der"],
        signed_at=row["signed_at"],
        stored_at=row["stored_at"],
    )
