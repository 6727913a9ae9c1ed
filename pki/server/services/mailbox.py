"""The mailbox: what lies in it, taking it out, and the recipient's signed answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from pki.core.deposits import DepositState
from pki.core.errors import (
    ConflictError,
    ExpiredError,
    IllegalMoveError,
    KeymailboxError,
    NotFoundError,
    TooLargeError,
    UsageError,
    WrongPartyError,
)
from pki.core.events import EventType
from pki.core.ids import DepositId
from pki.core.receipts import ReceiptKind, VerifiedReceipt, parse_receipt
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind
from pki.server.ports import Caller, DepositRecord, ReceiptRecord
from pki.server.services import signers
from pki.server.services.deps import Deps
from pki.server.services.events import of_deposit
from pki.server.services.validation import ring
from pki.server.store import certificates as certificate_store
from pki.server.store import deposits as deposit_store
from pki.server.store import events as event_store
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
    _check_page(after, limit)
    _check_own(caller, address)
    with deps.store.read() as unit:
        return deposit_store.page(unit, address, after, limit)


def collect(deps: Deps, caller: Caller, address: Address, ids: Sequence[str]) -> list[Collected | KeymailboxError]:
    """Hand out deposits of the caller's own mailbox; what was collected is handed out again.

    One answer for each different id, in their order. An item fails on its own: NotFoundError, IllegalMoveError,
    ExpiredError, or TooLargeError when the answer is full.
    """
    if not 1 <= len(ids) <= MAX_COLLECTION:
        raise UsageError(f"1 to {MAX_COLLECTION} deposits are collected at once", on=str(len(ids)))
    _check_own(caller, address)
    now = deps.clock.now()
    with deps.store.unit() as unit:
        wanted = [DepositId(text) for text in ids if signers.has_form(text)]
        held = {record.id: record for record in deposit_store.many(unit, wanted, lock=True)}
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
        first = [record for record in taken if record.state is DepositState.AVAILABLE]
        deposit_store.set_state(unit, [record.id for record in first], DepositState.COLLECTED, now=now)
        event_store.append(unit, [of_deposit(EventType.DEPOSIT_COLLECTED, record, now) for record in first])
        for record in first:
            ring(unit, record)
        bodies = {found.id: found for found in deposit_store.many(unit, [t.id for t in taken], with_body=True)}
    return [_handed_out(answer, bodies) for answer in answers.values()]


def status(deps: Deps, caller: Caller, deposit_id: str) -> DepositRecord:
    """Return a deposit to its sender, and to its recipient from when it is available; else NotFoundError."""
    known = signers.known_form(deposit_id)
    with deps.store.read() as unit:
        return _visible(unit, caller, known)


def receipt(deps: Deps, caller: Caller, deposit_id: str, der: bytes) -> ReceiptRecord:
    """Store the recipient's signed receipt or refusal, which settles the deposit; the same again changes nothing.

    Raises NotFoundError for somebody else's deposit, WrongPartyError, SignatureError or CertificateError for a receipt
    that is not the recipient's for exactly these bytes, IllegalMoveError when the deposit was not collected, and
    ConflictError when another answer was given before.
    """
    now = deps.clock.now()
    known = signers.known_form(deposit_id)
    parsed = parse_receipt(der)
    own = caller.instance.address
    with deps.store.read() as unit:
        record = _visible(unit, caller, known)
        if record.recipient != own:
            raise NotFoundError(on=known)
        certificates = certificate_store.by_ski(unit, parsed.signed.signer_ski.hex())
    signer, proof = signers.verified(certificates, CertificateKind.IDENTITY, deps.chain, now, rule="RCP-004")
    if signer.address != own:
        raise WrongPartyError("The receipt is signed by somebody else", on=str(signer.address), rule="RCP-004")
    answer = parsed.verify(proof.identity_key, recipient=own, deposit=known, sha512=record.body_sha512)
    to = DepositState.ACKNOWLEDGED if answer.kind is ReceiptKind.RECEIPT else DepositState.REFUSED
    with deps.store.unit() as unit:
        (record,) = deposit_store.many(unit, [known], lock=True)
        stored = deposit_store.receipt(unit, known)
        if stored is not None:
            if stored.der == der:
                return stored
            raise ConflictError("The deposit was answered before", on=known)
        deposit_store.set_state(unit, [known], to, now=now)
        stored = _as_record(answer, der, now)
        deposit_store.insert_receipt(unit, stored)
        kind = EventType.DEPOSIT_ACKNOWLEDGED if to is DepositState.ACKNOWLEDGED else EventType.DEPOSIT_REFUSED
        reason = {} if answer.reason is None else {"reason": answer.reason.word}
        event_store.append(unit, [of_deposit(kind, record, now, **reason)])
        ring(unit, record)
    return stored


def receipt_of(deps: Deps, caller: Caller, deposit_id: str) -> ReceiptRecord:
    """Return the answer to a deposit to its sender or recipient; else, or before there is one, NotFoundError."""
    known = signers.known_form(deposit_id)
    with deps.store.read() as unit:
        _visible(unit, caller, known)
        found = deposit_store.receipt(unit, known)
    if found is None:
        raise NotFoundError("The deposit has no receipt yet", on=known)
    return found


def receipts(deps: Deps, caller: Caller, after: str = "", limit: int = 100) -> tuple[list[ReceiptRecord], str]:
    """Return the answers to the caller's deposits past the cursor ``after``, as they came, and the next cursor."""
    number = _number(after)
    _check_page(number, limit)
    with deps.store.read() as unit:
        found = deposit_store.receipts_for(unit, caller.instance.address, after=number, limit=limit)
    return [record for _, record in found], str(found[-1][0]) if found else after


def sent(
    deps: Deps, caller: Caller, state: DepositState | None = None, after: str = "", limit: int = 100
) -> tuple[list[DepositRecord], str]:
    """Return the caller's own deposits, oldest first, past the cursor ``after``, and the next cursor."""
    _check_page(0, limit)
    cursor = signers.known_form(after) if after else None
    with deps.store.read() as unit:
        items = deposit_store.sent(unit, caller.instance.address, state=state, after=cursor, limit=limit)
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
    answer: DepositRecord | KeymailboxError, bodies: Mapping[DepositId, DepositRecord]
) -> Collected | KeymailboxError:
    if isinstance(answer, KeymailboxError):
        return answer
    found = bodies[answer.id]
    return replace(found, body=None), found.body or b""


def _as_record(answer: VerifiedReceipt, der: bytes, now: datetime) -> ReceiptRecord:
    return ReceiptRecord(
        deposit_id=answer.deposit_id,
        kind=answer.kind.value,
        reason=None if answer.reason is None else answer.reason.word,
        der=der,
        signed_at=answer.signed.signing_time,
        stored_at=now,
    )
