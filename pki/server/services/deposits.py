"""Deposits on their way in: stored at once, validated later, withdrawn by their sender."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pki.core.deposits import DepositState, parse_deposit
from pki.core.errors import (
    ConflictError,
    IdempotencyError,
    IllegalMoveError,
    KeymailboxError,
    MalformedError,
    NotFoundError,
    ProfileError,
    ReplayedError,
    UnknownRecipientError,
    UsageError,
    WrongPartyError,
)
from pki.core.events import EventType
from pki.core.ids import DepositId
from pki.core.tenants import Address
from pki.server.ports import Caller, DepositRecord, NewDeposit
from pki.server.services import signers
from pki.server.services.deps import Deps
from pki.server.services.events import of_deposit
from pki.server.services.validation import Validated as Validated
from pki.server.services.validation import as_new, ring, to_sender
from pki.server.services.validation import validate as validate
from pki.server.store import deposits as deposit_store
from pki.server.store import events as event_store
from pki.server.store import outbox, tenants
from pki.server.store.engine import Unit

QUEUE = "validate"
JOB = "deposit"
_LONGEST_KEY = 255


@dataclass(frozen=True)
class Incoming:
    """A deposit as it was sent; ``supersedes`` names the quarantined one that it takes the place of."""

    body: bytes = field(repr=False)
    idempotency_key: str
    supersedes: str | None = None


@dataclass(frozen=True)
class Accepted:
    """A deposit that is stored; ``repeated`` when this very request was answered before."""

    id: DepositId
    state: DepositState
    repeated: bool = False


@dataclass(frozen=True)
class _Arrival:
    caller: Caller
    deposit: NewDeposit
    key: str
    digest: str


def accept(deps: Deps, caller: Caller, items: Sequence[Incoming]) -> list[Accepted | KeymailboxError]:
    """Store deposits of one caller durably, each or its error; see `accept_all`."""
    return accept_all(deps, [(caller, item) for item in items])


def accept_all(deps: Deps, items: Sequence[tuple[Caller, Incoming]]) -> list[Accepted | KeymailboxError]:
    """Store what several callers sent in one commit, and queue it for validation; one answer for each, in order.

    What the bytes alone show to be wrong is answered here, and leaves nothing: MalformedError, ProfileError,
    AlgorithmError, TooLargeError, WrongPartyError, UnknownRecipientError, ReplayedError, IdempotencyError.
    The rest is for `validate`. Raises UnavailableError for all when the store is away.
    """
    now = deps.clock.now()
    answers: list[Accepted | KeymailboxError | _Arrival] = [
        _read(caller, item, deps.settings.max_deposit_bytes, now) for caller, item in items
    ]
    places = [place for place, answer in enumerate(answers) if isinstance(answer, _Arrival)]
    arrivals = [answer for answer in answers if isinstance(answer, _Arrival)]
    stored = _store_together(deps, arrivals, now) if arrivals else []
    for place, result in zip(places, stored, strict=True):
        answers[place] = result
    return [answer for answer in answers if not isinstance(answer, _Arrival)]


def withdraw(deps: Deps, caller: Caller, deposit_id: str) -> DepositRecord:
    """Take back a deposit that was not collected; the same again changes nothing.

    Raises NotFoundError when it is not the caller's own, IllegalMoveError when it is too late.
    """
    now = deps.clock.now()
    known = signers.known_form(deposit_id)
    with deps.store.unit() as unit:
        found = next(iter(deposit_store.many(unit, [known], lock=True)), None)
        if found is None or found.sender != caller.instance.address:
            raise NotFoundError(on=known)
        if found.state is not DepositState.WITHDRAWN:
            deposit_store.set_state(unit, [known], DepositState.WITHDRAWN, now=now)
            told = of_deposit(EventType.DEPOSIT_WITHDRAWN, found, now)
            event_store.append(unit, [told if found.sequence is not None else to_sender(told, found)])
            ring(unit, found)
        after = deposit_store.deposit(unit, known)
    return after or found


# Accepting


def _read(caller: Caller, item: Incoming, max_size: int, now: datetime) -> _Arrival | KeymailboxError:
    try:
        if not 1 <= len(item.idempotency_key) <= _LONGEST_KEY or not _visible(item.idempotency_key):
            raise UsageError(
                f"An idempotency key has 1 to {_LONGEST_KEY} visible ASCII characters", hint="send Idempotency-Key"
            )
        parsed = parse_deposit(item.body, max_size=max_size)
        if parsed.context.sender != caller.instance.address:
            raise WrongPartyError(
                "The deposit names another sender than the one who brings it",
                on=str(parsed.context.sender),
                rule="DEP-005",
            )
        if len(parsed.envelope.recipients) != 1:
            # One key, one row: a revoked key finds all that is wrapped for it.
            raise ProfileError("A deposit is wrapped for one key", rule="DEP-007")
        supersedes = None if item.supersedes is None else signers.known_form(item.supersedes)
        return _Arrival(caller, as_new(parsed, item.body, supersedes, now), item.idempotency_key, _digest(item))
    except KeymailboxError as error:
        return error
    except (ValueError, TypeError, OverflowError):
        # One item's bytes must not fail those that came with it.
        return MalformedError("The deposit cannot be read")


def _digest(item: Incoming) -> str:
    # The whole request counts: the same body in another's place is another request.
    body = hashlib.sha256(item.body).digest()
    return hashlib.sha256(body + (item.supersedes or "").encode()).hexdigest()


def _visible(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _store_together(deps: Deps, arrivals: Sequence[_Arrival], now: datetime) -> list[Accepted | KeymailboxError]:
    try:
        return _store(deps, arrivals, now)
    except ConflictError as error:
        if len(arrivals) == 1:
            # Somebody with the same id or idempotency key was quicker: now its row is there to be found.
            try:
                return _store(deps, arrivals, now)
            except ConflictError as again:
                return [again if isinstance(again, ReplayedError) else error]
    # One collision rolled the whole back: each on its own finds the one to blame.
    return [answer for arrival in arrivals for answer in _store_together(deps, [arrival], now)]


def _store(deps: Deps, arrivals: Sequence[_Arrival], now: datetime) -> list[Accepted | KeymailboxError]:
    answers: list[Accepted | KeymailboxError] = []
    fresh: list[_Arrival] = []
    with deps.store.unit() as unit:
        wanted = [arrival.deposit.id for arrival in arrivals]
        older = [arrival.deposit.supersedes for arrival in arrivals if arrival.deposit.supersedes is not None]
        known = {record.id: record for record in deposit_store.many(unit, [*wanted, *older])}
        recipients = {
            address: tenants.instance(unit, address) is not None
            for address in sorted({arrival.deposit.recipient for arrival in arrivals})
        }
        keys: dict[tuple[Address, str], tuple[str, DepositId]] = {}
        taken = {record_id for record_id in wanted if record_id in known}
        for arrival in arrivals:
            deposit, place = arrival.deposit, (arrival.deposit.sender, arrival.key)
            earlier = keys.get(place) or deposit_store.find_idempotent(unit, *place)
            if earlier is not None:
                answers.append(_repeated(unit, arrival, earlier))
                continue
            try:
                if not recipients[deposit.recipient]:
                    raise UnknownRecipientError(on=str(deposit.recipient))
                if deposit.id in taken:
                    raise ReplayedError("A deposit with this id was presented before", on=deposit.id, rule="DEP-011")
                if deposit.supersedes is not None:
                    _check_superseding(deposit, known.get(deposit.supersedes))
            except KeymailboxError as error:
                answers.append(error)
                continue
            keys[place] = (arrival.digest, deposit.id)
            taken.add(deposit.id)
            fresh.append(arrival)
            answers.append(Accepted(deposit.id, DepositState.RECEIVED))
        if fresh:
            _insert(unit, fresh, now)
    return answers


def _insert(unit: Unit, fresh: Sequence[_Arrival], now: datetime) -> None:
    new = [arrival.deposit for arrival in fresh]
    deposit_store.insert(unit, new)
    for arrival in fresh:
        deposit = arrival.deposit
        deposit_store.insert_idempotency(unit, deposit.sender, arrival.key, arrival.digest, deposit.id, now)
    outbox.add(unit, QUEUE, JOB, [deposit.id for deposit in new], now=now)
    # The recipient hears of it when it is known to be sound.
    told = [to_sender(of_deposit(EventType.DEPOSIT_RECEIVED, deposit, now), deposit) for deposit in new]
    event_store.append(unit, told)


def _repeated(unit: Unit, arrival: _Arrival, earlier: tuple[str, DepositId]) -> Accepted | KeymailboxError:
    digest, deposit_id = earlier
    if digest != arrival.digest:
        return IdempotencyError(on=arrival.key[:80], hint="send another deposit with another Idempotency-Key")
    record = deposit_store.deposit(unit, deposit_id)
    return Accepted(deposit_id, record.state if record else DepositState.RECEIVED, repeated=True)


def _check_superseding(new: NewDeposit, old: DepositRecord | None) -> None:
    if old is None or old.sender != new.sender:
        raise NotFoundError("There is no such deposit of yours to supersede", on=new.supersedes or "")
    if (old.recipient, old.key_id, old.key_version) != (new.recipient, new.key_id, new.key_version):
        raise ConflictError("A deposit supersedes one with the same recipient, key and version", on=old.id)
    if old.state is not DepositState.QUARANTINED:
        raise IllegalMoveError(f"Only a quarantined deposit is superseded, this one is {old.state}", on=old.id)
