"""Receipts and refusals handed in: verified many at a time outside of the transaction, stored by one commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pki.core.deposits import DepositState, check_move
from pki.core.errors import (
    ConflictError,
    IllegalMoveError,
    KeymailboxError,
    MalformedError,
    NotFoundError,
    RevokedError,
    WrongPartyError,
)
from pki.core.events import Event, EventType
from pki.core.ids import DepositId, Fingerprint
from pki.core.receipts import ReceiptKind, UnverifiedReceipt, VerifiedReceipt, parse_receipt
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind
from pki.server.facts import CaChain, Caller, DepositRecord, ReceiptRecord
from pki.server.services import signers
from pki.server.services.deps import Deps
from pki.server.services.events import of_deposit
from pki.server.services.validation import ring
from pki.server.store import certificates as certificate_store
from pki.server.store import deposits as deposit_store
from pki.server.store import events as event_store
from pki.server.store import receipts as receipt_store
from pki.server.store.engine import Unit

Answer = tuple[Caller, str, bytes]
"""Who answers which deposit, and the receipt or refusal in DER."""

_MOVES = {ReceiptKind.RECEIPT: DepositState.ACKNOWLEDGED, ReceiptKind.REFUSAL: DepositState.REFUSED}
_EVENTS = {ReceiptKind.RECEIPT: EventType.DEPOSIT_ACKNOWLEDGED, ReceiptKind.REFUSAL: EventType.DEPOSIT_REFUSED}


@dataclass(frozen=True)
class _Claim:
    own: Address
    deposit_id: DepositId
    receipt: UnverifiedReceipt
    der: bytes


@dataclass(frozen=True)
class _Proved:
    deposit_id: DepositId
    receipt: VerifiedReceipt
    der: bytes
    certificate: Fingerprint


def answer_all(deps: Deps, items: Sequence[Answer]) -> list[ReceiptRecord | KeymailboxError]:
    """Store recipients' signed answers, which settle their deposits; one answer for each, in order.

    The same receipt again changes nothing. An item fails on its own: NotFoundError for somebody else's deposit,
    WrongPartyError, SignatureError or CertificateError for a receipt that is not the recipient's for exactly these
    bytes, IllegalMoveError when the deposit was not collected, ConflictError when another answer was given before,
    and what is wrong with the bytes. Raises UnavailableError for all when the store is away.
    """
    now = deps.clock.now()
    # Callers of several tenants may have come together.
    store = deps.store.scoped([caller.instance.tenant for caller, _, _ in items])
    answers: list[ReceiptRecord | KeymailboxError | _Claim | _Proved] = [_read(item) for item in items]
    claims = [answer for answer in answers if isinstance(answer, _Claim)]
    if claims:
        with store.read() as unit:
            held = {record.id: record for record in deposit_store.many(unit, [claim.deposit_id for claim in claims])}
            skis = [claim.receipt.signed.signer_ski.hex() for claim in claims]
            known = signers.known(unit, skis)
        chain = deps.chain
        answers = [
            _prove(answer, held.get(answer.deposit_id), known, chain, now) if isinstance(answer, _Claim) else answer
            for answer in answers
        ]
    proved = [answer for answer in answers if isinstance(answer, _Proved)]
    if proved:
        with store.unit() as unit:
            settled = iter(_settle(unit, proved, now))
        answers = [next(settled) if isinstance(answer, _Proved) else answer for answer in answers]
    return [answer for answer in answers if isinstance(answer, ReceiptRecord | KeymailboxError)]


def _read(item: Answer) -> _Claim | KeymailboxError:
    caller, deposit_id, der = item
    try:
        return _Claim(caller.instance.address, signers.known_form(deposit_id), parse_receipt(der), der)
    except KeymailboxError as error:
        return error
    except (ValueError, TypeError, OverflowError):
        # One item's bytes must not fail those that came with it.
        return MalformedError("The receipt cannot be read")


def _prove(
    claim: _Claim,
    record: DepositRecord | None,
    known: signers.Known,
    chain: CaChain,
    now: datetime,
) -> _Proved | KeymailboxError:
    # To who is not its recipient, or before it is in the mailbox, it is not there to be answered.
    if record is None or record.recipient != claim.own or record.sequence is None:
        return NotFoundError(on=claim.deposit_id)
    rows = known.of(claim.receipt.signed.signer_ski.hex())
    try:
        signer, proof = known.verified(rows, CertificateKind.IDENTITY, chain, now, rule="RCP-004")
        if signer.address != claim.own:
            raise WrongPartyError("The receipt is signed by somebody else", on=str(signer.address), rule="RCP-004")
        verified = claim.receipt.verify(
            proof.identity_key, recipient=claim.own, deposit=claim.deposit_id, sha512=record.body_sha512
        )
    except KeymailboxError as error:
        return error
    return _Proved(claim.deposit_id, verified, claim.der, signer.fingerprint)


def _settle(unit: Unit, proved: Sequence[_Proved], now: datetime) -> list[ReceiptRecord | KeymailboxError]:
    # Certificates before deposits, as in a revocation: either it has not begun, or it is seen here.
    states = certificate_store.held_states(unit, [one.certificate for one in proved])
    ids = [one.deposit_id for one in proved]
    records = {record.id: record for record in deposit_store.many(unit, ids, lock=True)}
    stored = dict(receipt_store.by_deposits(unit, ids))
    new: list[tuple[Address, ReceiptRecord]] = []
    moved: dict[DepositState, dict[DepositId, DepositState]] = {to: {} for to in _MOVES.values()}
    told: list[Event] = []
    answers: list[ReceiptRecord | KeymailboxError] = []
    for one in proved:
        record, earlier = records[one.deposit_id], stored.get(one.deposit_id)
        to = _MOVES[one.receipt.kind]
        if earlier is not None:
            same = earlier.der == one.der
            answers.append(earlier if same else ConflictError("The deposit was answered before", on=record.id))
            continue
        if states.get(one.certificate) not in signers.USABLE:
            answers.append(RevokedError(on=str(record.recipient), rule="RCP-004"))
            continue
        try:
            check_move(record.state, to)
        except IllegalMoveError as error:
            answers.append(IllegalMoveError(error.message, on=record.id, hint=error.hint))
            continue
        stored[record.id] = fresh = _as_record(one, now)
        new.append((record.sender, fresh))
        moved[to][record.id] = record.state
        reason = {} if one.receipt.reason is None else {"reason": one.receipt.reason.word}
        told.append(of_deposit(_EVENTS[one.receipt.kind], record, now, **reason))
        ring(unit, record)
        answers.append(fresh)
    for to, held in moved.items():
        deposit_store.move(unit, held, to, now=now)
    receipt_store.insert(unit, new)
    event_store.append(unit, told)
    return answers


def _as_record(one: _Proved, now: datetime) -> ReceiptRecord:
    answer = one.receipt
    return ReceiptRecord(
        deposit_id=answer.deposit_id,
        kind=answer.kind.value,
        reason=None if answer.reason is None else answer.reason.word,
        der=one.der,
        signed_at=answer.signed.signing_time,
        stored_at=now,
    )
