"""Deposits on their way in: stored at once, validated later, withdrawn by their sender."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

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
    UnavailableError,
    UnknownRecipientError,
    UsageError,
    WrongPartyError,
)
from pki.core.events import EventType
from pki.core.ids import DepositId
from pki.core.tenants import TenantName
from pki.server import tracing
from pki.server.facts import Caller, DepositRecord, NewDeposit
from pki.server.services import limits, signers
from pki.server.services.calls import Ticket, spend
from pki.server.services.deps import Deps
from pki.server.services.events import of_deposit
from pki.server.services.validation import SUPERSEDABLE, as_new, ring, to_sender
from pki.server.services.validation import Validated as Validated
from pki.server.services.validation import validate as validate
from pki.server.store import deposits as deposit_store
from pki.server.store import events as event_store
from pki.server.store import outbox, successors, tenants
from pki.server.store.engine import Unit

QUEUE = "validate"
JOB = "deposit"
_LONGEST_KEY = 255
_REPLAYED = "A deposit with this id was presented before"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Incoming:
    """A deposit as it was sent; ``supersedes`` names the uncollected one that it takes the place of.

    ``respond_by`` is when its sender wants an answer; both are told when there is none by then.
    """

    body: bytes = field(repr=False)
    idempotency_key: str
    supersedes: str | None = None
    respond_by: datetime | None = None
    trace: str | None = field(default_factory=tracing.current, repr=False)
    """The request that brought it: those of several requests are stored together."""


@dataclass(frozen=True)
class Accepted:
    """A deposit that is stored; ``repeated`` when this very request was answered before."""

    id: DepositId
    state: DepositState
    repeated: bool = False


@dataclass(frozen=True)
class Arrival:
    """A deposit as it was read: it keeps the profile, and its sender brings it."""

    deposit: NewDeposit
    key: str
    digest: str
    trace: str | None


Answer = Accepted | KeymailboxError


@dataclass(frozen=True)
class Handed:
    """What one request brings: deposits that were read, or what is wrong with them; its ticket is spent with them."""

    items: Sequence[Arrival | KeymailboxError]
    ticket: Ticket | None = None


def accept(deps: Deps, caller: Caller, items: Sequence[Incoming]) -> list[Answer]:
    """Store deposits of one caller, who was authenticated before; see `accept_all`."""
    (answer,) = accept_all(deps, [Handed([read(deps, caller, item) for item in items])])
    return [answer] * len(items) if isinstance(answer, KeymailboxError) else answer


def read(deps: Deps, caller: Caller, item: Incoming) -> Arrival | KeymailboxError:
    """Parse a deposit; return what the bytes alone show to be wrong. It touches no store, and takes a thread no time.

    UsageError, MalformedError, ProfileError, AlgorithmError, TooLargeError, WrongPartyError.
    """
    try:
        if not 1 <= len(item.idempotency_key) <= _LONGEST_KEY or not _visible(item.idempotency_key):
            raise UsageError(
                f"An idempotency key has 1 to {_LONGEST_KEY} visible ASCII characters", hint="send Idempotency-Key"
            )
        parsed = parse_deposit(item.body, max_size=deps.settings.max_deposit_bytes)
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
        deposit = as_new(parsed, item.body, supersedes, deps.clock.now(), item.respond_by)
        return Arrival(deposit, item.idempotency_key, _digest(deposit), item.trace)
    except KeymailboxError as error:
        return error
    except (ValueError, TypeError, OverflowError):
        # One item's bytes must not fail those that came with it.
        return MalformedError("The deposit cannot be read")


def accept_all(deps: Deps, handed: Sequence[Handed]) -> list[list[Answer] | KeymailboxError]:
    """Store what several requests brought in one commit, and queue it for validation; one answer for each, in order.

    A request is answered by what is wrong with its ticket, and then leaves nothing, or by one answer for each of its
    items: UnknownRecipientError, ReplayedError, IdempotencyError, NotFoundError, ConflictError, IllegalMoveError; what
    recipient and operator do not allow (`limits.admit`): NotWelcomeError, QuotaError, TooLargeError, PeriodError; or
    what was found out before. The rest is for `validate`. Raises UnavailableError for all when the store is away.
    """
    if not any(one.ticket is not None or _arrivals(one) for one in handed):
        return [[item for item in one.items if isinstance(item, KeymailboxError)] for one in handed]
    with tracing.together("deposits store", [arrival.trace for one in handed for arrival in _arrivals(one)]):
        return _store_together(deps, handed, deps.clock.now())


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


def _digest(deposit: NewDeposit) -> str:
    # The whole request counts: the same body in another's place is another request.
    body = bytes.fromhex(deposit.body_sha256)
    # A request of before there was a time to respond by keeps its digest.
    by = b"" if deposit.respond_by is None else f" {deposit.respond_by.astimezone(UTC).isoformat()}".encode()
    return hashlib.sha256(body + (deposit.supersedes or "").encode() + by).hexdigest()


def _arrivals(one: Handed) -> list[Arrival]:
    return [item for item in one.items if isinstance(item, Arrival)]


def _visible(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _store_together(deps: Deps, handed: Sequence[Handed], now: datetime) -> list[list[Answer] | KeymailboxError]:
    try:
        try:
            return _store(deps, handed, now)
        except ConflictError:
            # Somebody with the same id or idempotency key was quicker: now its row is there to be found.
            return _store(deps, handed, now, again=True)
    except UnavailableError:
        raise
    except Exception as error:
        if len(handed) == 1 and len(handed[0].items) <= 1:
            if not isinstance(error, ConflictError):
                _log.exception("a deposit could not be stored")
            told = error if isinstance(error, KeymailboxError) else KeymailboxError()
            return [[told] if handed[0].items else told]
    # Something in it fails the whole: the halves find it in a few steps.
    if len(handed) > 1:
        middle = len(handed) // 2
        return [answer for half in (handed[:middle], handed[middle:]) for answer in _store_together(deps, half, now)]
    (one,) = handed
    middle = len(one.items) // 2
    (first,) = _store_together(deps, [Handed(one.items[:middle], one.ticket)], now)
    if isinstance(first, KeymailboxError):
        return [first]
    (second,) = _store_together(deps, [Handed(one.items[middle:])], now)
    return [first if isinstance(second, KeymailboxError) else first + second]


def _store(
    deps: Deps, handed: Sequence[Handed], now: datetime, *, again: bool = False
) -> list[list[Answer] | KeymailboxError]:
    # Callers of several tenants may have come together.
    with deps.store.scoped(_tenants(handed)).unit() as unit:
        tickets = [one.ticket for one in handed if one.ticket is not None]
        wrong = iter(spend(unit, tickets) if tickets else [])
        refused = [next(wrong) if one.ticket is not None else None for one in handed]
        let_in = [one for one, error in zip(handed, refused, strict=True) if error is None]
        arrivals = [arrival for one in let_in for arrival in _arrivals(one)]
        stored = iter(_decide(deps, unit, arrivals, now, again) if arrivals else [])
    return [
        error or [item if isinstance(item, KeymailboxError) else next(stored) for item in one.items]
        for one, error in zip(handed, refused, strict=True)
    ]


def _tenants(handed: Sequence[Handed]) -> list[TenantName]:
    callers = [one.ticket.caller.instance.tenant for one in handed if one.ticket is not None]
    return [*callers, *(arrival.deposit.sender.tenant for one in handed for arrival in _arrivals(one))]


def _decide(deps: Deps, unit: Unit, arrivals: Sequence[Arrival], now: datetime, again: bool) -> list[Answer]:
    wanted = [arrival.deposit.id for arrival in arrivals]
    older = [arrival.deposit.supersedes for arrival in arrivals if arrival.deposit.supersedes is not None]
    # Deposits before keys: whoever's deposit is seen here, his key is seen below, and he is told that he repeats.
    known = {record.id: record for record in deposit_store.many(unit, [*wanted, *older])}
    waiting = _held(unit, arrivals, known)
    keys = deposit_store.find_idempotent(unit, [(arrival.deposit.sender, arrival.key) for arrival in arrivals])
    missed = [deposit_id for _, deposit_id in keys.values() if deposit_id not in known]
    known |= {record.id: record for record in deposit_store.many(unit, missed)}
    recipients = tenants.existing(unit, [arrival.deposit.recipient for arrival in arrivals])
    taken = {deposit_id for deposit_id in wanted if deposit_id in known}
    answers: list[Answer] = []
    fresh: list[Arrival] = []
    for arrival in arrivals:
        deposit, place = arrival.deposit, (arrival.deposit.sender, arrival.key)
        earlier = keys.get(place)
        if earlier is not None:
            answers.append(_repeated(arrival, *earlier, known.get(earlier[1])))
            continue
        try:
            if deposit.recipient not in recipients:
                raise UnknownRecipientError(on=str(deposit.recipient))
            if deposit.id in taken:
                raise ReplayedError(_REPLAYED, on=deposit.id, rule="DEP-011")
            if deposit.supersedes is not None:
                _check_superseding(deposit, known.get(deposit.supersedes), waiting)
        except KeymailboxError as error:
            answers.append(error)
            continue
        keys[place] = (arrival.digest, deposit.id)
        taken.add(deposit.id)
        fresh.append(arrival)
        answers.append(Accepted(deposit.id, DepositState.RECEIVED))
    if fresh:
        refused = dict(_admit(deps, unit, fresh, known, now))
        refused |= _insert(unit, [arrival for arrival in fresh if arrival.deposit.id not in refused], now, again)
        answers = [refused.get(answer.id, answer) if isinstance(answer, Accepted) else answer for answer in answers]
    return answers


def _held(unit: Unit, arrivals: Sequence[Arrival], known: dict[DepositId, DepositRecord]) -> dict[DepositId, DepositId]:
    """Hold the callers' own deposits that are to be superseded, as they are now; return who is to take their places.

    Until the end of the unit: of two that name the same one, the second waits here and then sees the first.
    """
    named = [(one.deposit.sender, known.get(one.deposit.supersedes)) for one in arrivals if one.deposit.supersedes]
    own = [old.id for sender, old in named if old is not None and old.sender == sender]
    if not own:
        return {}
    known |= {record.id: record for record in deposit_store.many(unit, own, lock=True)}
    return successors.on_their_way(unit, own)


def _admit(
    deps: Deps, unit: Unit, fresh: Sequence[Arrival], known: Mapping[DepositId, DepositRecord], now: datetime
) -> Mapping[DepositId, Accepted | KeymailboxError]:
    new = [arrival.deposit for arrival in fresh]
    found = limits.admit(deps, unit, new, {one.id: known[one.supersedes].size for one in new if one.supersedes}, now)
    return {arrival.deposit.id: error for arrival, error in zip(fresh, found, strict=True) if error is not None}


def _insert(unit: Unit, fresh: Sequence[Arrival], now: datetime, again: bool) -> Mapping[DepositId, KeymailboxError]:
    """Store deposits that are counted; return what is wrong with those whose ids were used.

    Raises ReplayedError the first time: it may be this very deposit, that another process stores. ``again``, one that
    this unit may still not see is another tenant's, and must not fail those that came with it.
    """
    new = [arrival.deposit for arrival in fresh]
    if not new:
        return {}
    taken = deposit_store.insert_free(unit, new)
    refused = {one: ReplayedError(_REPLAYED, on=one, rule="DEP-011") for one in sorted(taken)}
    if taken:
        if not again or deposit_store.many(unit, sorted(taken)):
            raise next(iter(refused.values()))
        limits.take_back(unit, [one for one in new if one.id in taken], now)
        fresh = [arrival for arrival in fresh if arrival.deposit.id not in taken]
        new = [arrival.deposit for arrival in fresh]
    if not new:
        return refused
    used = {(one.deposit.sender, one.key): (one.digest, one.deposit.id) for one in fresh}
    deposit_store.insert_idempotency(unit, used, now)
    successors.note(unit, {one.supersedes: one.id for one in new if one.supersedes})
    # The recipient hears of it when it is known to be sound.
    told = [to_sender(of_deposit(EventType.DEPOSIT_RECEIVED, deposit, now), deposit) for deposit in new]
    with tracing.carrying({arrival.deposit.id: arrival.trace for arrival in fresh}):
        lanes = [deposit.sender.tenant for deposit in new]
        outbox.add(unit, QUEUE, JOB, [deposit.id for deposit in new], now=now, lanes=lanes)
        event_store.append(unit, told)
    return refused


def _repeated(arrival: Arrival, digest: str, deposit_id: DepositId, record: DepositRecord | None) -> Answer:
    if digest != arrival.digest:
        return IdempotencyError(on=arrival.key[:80], hint="send another deposit with another Idempotency-Key")
    return Accepted(deposit_id, record.state if record else DepositState.RECEIVED, repeated=True)


def _check_superseding(new: NewDeposit, old: DepositRecord | None, waiting: Mapping[DepositId, DepositId]) -> None:
    if old is None or old.sender != new.sender:
        raise NotFoundError("There is no such deposit of yours to supersede", on=new.supersedes or "")
    if (old.recipient, old.key_id, old.key_version) != (new.recipient, new.key_id, new.key_version):
        raise ConflictError("A deposit supersedes one with the same recipient, key and version", on=old.id)
    if old.state not in SUPERSEDABLE:
        raise IllegalMoveError(f"Only an uncollected deposit is superseded, this one is {old.state}", on=old.id)
    if old.id in waiting:
        raise limits.place_taken(old.id, waiting[old.id])
