"""The mailbox: what lies in it, taking it out, and the recipient's signed answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from pki.core.deposits import DepositState
from pki.core.errors import (
    DeletedError,
    ExpiredError,
    IllegalMoveError,
    KeymailboxError,
    NotFoundError,
    TooLargeError,
    UsageError,
)
from pki.core.events import EventType
from pki.core.ids import DepositId
from pki.core.tenants import Address
from pki.server.facts import Caller, DepositRecord, ReceiptRecord
from pki.server.services import calls, retention, signers
from pki.server.services.deps import Deps
from pki.server.services.events import of_deposit
from pki.server.services.receipts import answer_all
from pki.server.services.validation import ring
from pki.server.store import deposits as deposit_store
from pki.server.store import events as event_store
from pki.server.store import receipts as receipt_store
from pki.server.store.engine import Unit

MAX_PAGE = 500
_CURSOR = "A cursor is what an earlier page gave as next"
MAX_COLLECTION = 100
MAX_COLLECTED_BYTES = 16 * 1024 * 1024
"""How many bytes of deposits one call hands out; the first of them always fits."""


Collected = tuple[DepositRecord, bytes]
"""A deposit that was handed out, with its bytes."""


def page(deps: Deps, caller: Caller, address: Address, after: int = 0, limit: int = 100) -> list[DepositRecord]:
    """Return what has a number past ``after`` in the caller's own mailbox, whatever became of it, without bodies.

    The numbers have no gaps: one that is missing was withheld. Raises NotFoundError for another's mailbox.
    """
    check_page(caller, address, after, limit)
    with deps.store.read() as unit:
        return retention.marked(unit, deposit_store.page(unit, address, after, limit))


def last_numbers(deps: Deps, addresses: Sequence[Address]) -> list[int]:
    """Return the last number given out in each mailbox, in one statement: past it there is nothing to look for."""
    with deps.store.scoped([address.tenant for address in addresses]).read() as unit:
        found = deposit_store.last_numbers(unit, addresses)
    return [found.get(address, 0) for address in addresses]


def poll(deps: Deps, memory: calls.Memory, tickets: Sequence[calls.Ticket]) -> list[int | KeymailboxError]:
    """Use up the tickets of polls, and return the last number given out in each caller's own mailbox, in one commit.

    For a ticket that is not good: what is wrong with it, as `calls.spend_for_reading` tells.
    """
    addresses = [ticket.caller.instance.address for ticket in tickets]
    found: dict[Address, int] = {}
    told = calls.spend_for_reading(
        deps.scoped([address.tenant for address in addresses]),
        memory,
        tickets,
        lambda unit: found.update(deposit_store.last_numbers(unit, addresses)),
    )
    return [found.get(address, 0) if wrong is None else wrong for address, wrong in zip(addresses, told, strict=True)]


def check_page(caller: Caller, address: Address, after: int, limit: int) -> None:
    """Raise what `page` raises before it looks: NotFoundError for another's mailbox, UsageError."""
    _check_page(after, limit)
    _check_own(caller, address)


def collect(deps: Deps, caller: Caller, address: Address, ids: Sequence[str]) -> list[Collected | KeymailboxError]:
    """Hand out deposits of the caller's own mailbox; what was collected is handed out again.

    One answer for each different id, in their order. An item fails on its own: NotFoundError, IllegalMoveError,
    ExpiredError, DeletedError when its bytes were, or TooLargeError when the answer is full.
    """
    if not 1 <= len(ids) <= MAX_COLLECTION:
        raise UsageError(f"1 to {MAX_COLLECTION} deposits are collected at once", on=str(len(ids)))
    _check_own(caller, address)
    now = deps.clock.now()
    with deps.store.unit() as unit:
        wanted = [DepositId(text) for text in ids if signers.has_form(text)]
        known = retention.marked(unit, deposit_store.many(unit, wanted, lock=True))
        held = {record.id: record for record in known}
        answers: dict[str, DepositRecord | KeymailboxError] = {}
        room = MAX_COLLECTED_BYTES
        for text in dict.fromkeys(ids):
            record = held.get(DepositId(text))
            try:
                answers[text] = _collectable(record, address, now, text)
                if record is not None:
                    room = _fill(room, record)
            except KeymailboxError as error:
                answers[text] = error
        taken = [answer for answer in answers.values() if isinstance(answer, DepositRecord)]
        bodies = {found.id: found.body for found in deposit_store.many(unit, [t.id for t in taken], with_body=True)}
        # One whose bytes are not there was not handed out, whatever else comes of it.
        first = [record for record in taken if record.state is DepositState.AVAILABLE and bodies[record.id]]
        deposit_store.set_state(unit, [record.id for record in first], DepositState.COLLECTED, now=now)
        event_store.append(unit, [of_deposit(EventType.DEPOSIT_COLLECTED, record, now) for record in first])
        for record in first:
            ring(unit, record)
    return [_handed_out(answer, bodies, now) for answer in answers.values()]


def status(deps: Deps, caller: Caller, deposit_id: str) -> DepositRecord:
    """Return a deposit to its sender, and to its recipient from when it is available; else NotFoundError."""
    known = signers.known_form(deposit_id)
    with deps.store.read() as unit:
        (found,) = retention.marked(unit, [_visible(unit, caller, known)])
    return found


def receipt(deps: Deps, caller: Caller, deposit_id: str, der: bytes) -> ReceiptRecord:
    """Store one signed receipt or refusal; raises what `receipts.answer_all` answers."""
    (answer,) = answer_all(deps, [(caller, deposit_id, der)])
    if isinstance(answer, KeymailboxError):
        raise answer
    return answer


def receipt_of(deps: Deps, caller: Caller, deposit_id: str) -> ReceiptRecord:
    """Return the answer to a deposit to its sender or recipient; else, or before there is one, NotFoundError."""
    known = signers.known_form(deposit_id)
    with deps.store.read() as unit:
        _visible(unit, caller, known)
        found = receipt_store.receipt(unit, known)
    if found is None:
        raise NotFoundError("The deposit has no receipt yet", on=known)
    return found


def receipts(deps: Deps, caller: Caller, after: str = "", limit: int = 100) -> tuple[list[ReceiptRecord], str]:
    """Return the answers to the caller's deposits past the cursor ``after``, as they came, and the next cursor."""
    number = _number(after)
    _check_page(number, limit)
    with deps.store.read() as unit:
        found = receipt_store.of_sender(unit, caller.instance.address, after=number, limit=limit)
    return [record for _, record in found], str(found[-1][0]) if found else after


def sent(
    deps: Deps, caller: Caller, state: DepositState | None = None, after: str = "", limit: int = 100
) -> tuple[list[DepositRecord], str]:
    """Return the caller's own deposits, oldest first, past the cursor ``after``, and the next cursor."""
    _check_page(0, limit)
    cursor = signers.known_form(after) if after else None
    with deps.store.read() as unit:
        items = deposit_store.sent(unit, caller.instance.address, state=state, after=cursor, limit=limit)
        items = retention.marked(unit, items)
    return items, items[-1].id if items else after


def _check_own(caller: Caller, address: Address) -> None:
    # The same answer for another's mailbox and for none: who has one is nobody else's business.
    if caller.instance.address != address:
        raise NotFoundError(on=str(address))


def _number(cursor: str) -> int:
    if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise UsageError(_CURSOR, on=cursor[:20])
    return int(cursor or "0")


def _check_page(after: int, limit: int) -> None:
    if not 0 <= after < 1 << 62:
        raise UsageError(_CURSOR, on=str(after)[:20])
    if not 1 <= limit <= MAX_PAGE:
        raise UsageError(f"A page has 1 to {MAX_PAGE} items", on=str(limit)[:20])


def _visible(unit: Unit, caller: Caller, deposit_id: DepositId) -> DepositRecord:
    found = deposit_store.deposit(unit, deposit_id)
    own = caller.instance.address
    if found is None or not (found.sender == own or (found.recipient == own and found.sequence is not None)):
        raise NotFoundError(on=deposit_id)
    return found


def _collectable(record: DepositRecord | None, address: Address, now: datetime, text: str) -> DepositRecord:
    if record is None or record.recipient != address or record.sequence is None:
        raise NotFoundError(on=text[:40])
    if record.body_deleted_at is not None:
        raise DeletedError(on=record.id)
    if record.state is DepositState.EXPIRED or (record.state in _OPEN and record.expires_at <= now):
        raise ExpiredError("The deposit has expired", on=record.id)
    if record.state not in _OPEN:
        raise IllegalMoveError(f"The deposit is {record.state} and cannot be collected", on=record.id)
    return record


_OPEN = (DepositState.AVAILABLE, DepositState.COLLECTED)


def _fill(room: int, record: DepositRecord) -> int:
    if record.size > room and room < MAX_COLLECTED_BYTES:
        raise TooLargeError("The answer is full", on=record.id, hint="collect this one with the next call")
    return room - record.size


def _handed_out(
    answer: DepositRecord | KeymailboxError, bodies: Mapping[DepositId, bytes | None], now: datetime
) -> Collected | KeymailboxError:
    if isinstance(answer, KeymailboxError):
        return answer
    body = bodies[answer.id]
    if body is None:
        return KeymailboxError("The deposit's bytes are not there", on=answer.id)
    if answer.state is DepositState.AVAILABLE:
        answer = replace(answer, state=DepositState.COLLECTED, collected_at=now)
    return answer, body
