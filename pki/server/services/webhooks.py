"""Webhooks: each is told its owner's events one after the other, in the order of the trail."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import structlog
from standardwebhooks import Webhook as Signer

from pki.core.errors import KeymailboxError, NotFoundError, UnavailableError, UsageError
from pki.core.events import Event, EventType
from pki.core.ids import EventId
from pki.server import metrics, tracing
from pki.server.facts import Caller, Delivery, Job, SequencedEvent, Webhook
from pki.server.ports import Notifier
from pki.server.services.deps import Deps
from pki.server.services.events import cloudevent, event
from pki.server.services.jobs import MAX_ATTEMPTS, describe, pause
from pki.server.services.leases import Leases
from pki.server.store import deliveries as delivery_store
from pki.server.store import events as event_store
from pki.server.store import outbox, tenants
from pki.server.store import webhooks as webhook_store
from pki.server.store.engine import Unit
from pki.server.tracing import Span, Trace

_log = structlog.get_logger("webhooks")

QUEUE = "notify"
JOB = "webhook"
"""Asks to look at the webhook of a delivery, whichever of its deliveries is next."""
LOOK = "look"
REPLAY = "replay"
"""Asks to tell a delivery again that was given up."""
MAX_WEBHOOKS = 10
"""An address has this many at most."""
_LONGEST_URL = 2000
_PARALLEL_HOOKS = 16
_POSTS = 64
"""So many posts are written down together at most: what a killed worker has posted of them is posted again."""
_TURN_SECONDS = 5.0
"""A webhook's turn is as many posts as begin in this time; then others have theirs."""
_LEASE_TIME = timedelta(seconds=5)
"""Shorter than a job's claim: when the job of a killed worker is free again, so is its webhook."""
_FORGOTTEN = timedelta(seconds=30)
_JITTER = 0.4
_GONE = 410
_random = secrets.SystemRandom()


@dataclass(frozen=True)
class _Turn:
    hook: Webhook
    items: Sequence[tuple[Delivery, SequencedEvent, Trace | None]]


@dataclass(frozen=True)
class _Outcome:
    delivery: Delivery
    gone: bool
    error: KeymailboxError | None


def register(deps: Deps, caller: Caller, url: str, types: Sequence[str] | None = None) -> Webhook:
    """Create a webhook of the caller's address for some event types, or all; its secret is told this once.

    Raises UsageError for what is no such URL or type. Whether the URL leads anywhere allowed is found out at each post.
    """
    now = deps.clock.now()
    _check_url(url, allow_plain=deps.settings.webhook_allow_private)
    known = {kind.value for kind in EventType}
    if types is not None and (not types or not set(types) <= known):
        raise UsageError("Unknown event types", on=", ".join(sorted(set(types) - known))[:200] or "none given")
    webhook = Webhook(
        id=secrets.token_hex(16),
        address=caller.instance.address,
        url=url,
        secret="whsec_" + base64.b64encode(secrets.token_bytes(32)).decode("ascii"),
        types=None if types is None else tuple(dict.fromkeys(types)),
        created_at=now,
    )
    with deps.store.unit() as unit:
        tenants.hold(unit, [webhook.address])
        if len(webhook_store.list_webhooks(unit, [webhook.address])) >= MAX_WEBHOOKS:
            raise UsageError(f"An address has at most {MAX_WEBHOOKS} webhooks", on=str(webhook.address))
        webhook_store.insert_webhook(unit, webhook)
    return webhook


def listed(deps: Deps, caller: Caller) -> list[Webhook]:
    """Return the webhooks of the caller's address, oldest first."""
    with deps.store.read() as unit:
        return webhook_store.list_webhooks(unit, [caller.instance.address])


def remove(deps: Deps, caller: Caller, webhook_id: str) -> None:
    """Remove a webhook of the caller's address and what is under way to it; raises NotFoundError."""
    if not _is_hex(webhook_id):
        raise NotFoundError(on=webhook_id[:40])
    with deps.store.unit() as unit:
        if not webhook_store.delete_webhook(unit, webhook_id, caller.instance.address):
            raise NotFoundError(on=webhook_id)


def fan_out(unit: Unit, numbered: Sequence[tuple[Event, int, Trace | None]], now: datetime) -> None:
    """Queue what has just got its position for the webhooks that want it; the position is the order of their posts."""
    audience = sorted({address for one, _, _ in numbered for address in one.audience})
    hooks: dict[str, list[Webhook]] = {}
    for hook in webhook_store.list_webhooks(unit, audience) if audience else []:
        if hook.disabled_at is None:
            hooks.setdefault(str(hook.address), []).append(hook)
    new = [
        (Delivery(_delivery_id(hook, one), hook.id, one.id, "pending", 0, None, now, position), trace)
        for one, position, trace in numbered
        # A post that tells of a post that failed could fail as well, without end.
        if one.type is not EventType.WEBHOOK_DEAD
        for address in one.audience
        for hook in hooks.get(address, [])
        if hook.types is None or one.type.value in hook.types
    ]
    owners = {hook.id: hook.address.tenant for theirs in hooks.values() for hook in theirs}
    fresh = set(event_store.insert_deliveries(unit, [delivery for delivery, _ in new]))
    # A job asks to look at its webhook, where all the others are found: each by itself cost more than its post.
    firsts: dict[str, str] = {}
    for delivery, _ in new:
        if delivery.id in fresh:
            firsts.setdefault(delivery.webhook_id, delivery.id)
    with tracing.carrying({delivery.id: trace for delivery, trace in new}):
        outbox.add(unit, QUEUE, JOB, list(firsts.values()), now=now, lanes=[owners[hook] for hook in firsts])


def deliver(
    deps: Deps,
    notifier: Notifier,
    ids: Sequence[str],
    *,
    again: Collection[str] = (),
    done: Callable[[Unit], None] = lambda _: None,
) -> None:
    """Tell the webhooks of these deliveries what is due: each its own, one after the other, in the order of the trail.

    A post that fails is tried again later, and what comes after it waits. After ten attempts, or at once when the
    target is forbidden, it is dead: its owner reads so among the events, people find it among the dead letters, and
    the next one has its turn. Those in ``again`` that are dead are tried once more, before what is newer.

    The jobs only ask to look. Who finds the webhook being told by another goes away, as that one looks again after
    letting go; what is forgotten all the same, `look` finds.

    ``done`` is called in the unit that lets go of the webhook, or goes away from it, if all are one webhook's.
    """
    with deps.store.read() as unit:
        found = event_store.deliveries_by_ids(unit, ids)
        untold = event_store.untold(unit, sorted({one.webhook_id for one in found}))
    dead = [one.id for one in found if one.state == "dead" and one.id in again]
    # Queued by an earlier release, which knew no order.
    lost = [one.id for one in found if one.state == "pending" and one.position is None]
    if dead or lost:
        with deps.store.unit() as unit:
            delivery_store.revive(unit, dead)
            event_store.place(unit, [*dead, *lost])
    # Whatever became of their own delivery: whoever told it, or gave it up, may have been killed before what came next.
    # Not where all was told with what an earlier job began.
    mended = {one.webhook_id for one in found if one.id in dead or one.id in lost}
    hooks = sorted(mended | set(untold))
    if len(hooks) == 1:
        _tell(deps, notifier, hooks[0], done)
    elif hooks:
        with ThreadPoolExecutor(min(_PARALLEL_HOOKS, len(hooks))) as pool:
            list(pool.map(lambda hook: _tell(deps, notifier, hook), hooks))


def parted(deps: Deps, batch: Sequence[Job]) -> list[list[Job]]:
    """Return a batch in parts that need not wait for each other: of each webhook, and of each other kind of job."""
    with deps.store.read() as unit:
        found = event_store.deliveries_by_ids(unit, [job.subject for job in batch if job.kind == JOB])
    hooks = {one.id: one.webhook_id for one in found}
    parts: dict[tuple[str, str], list[Job]] = {}
    for job in batch:
        parts.setdefault((job.kind, hooks.get(job.subject, "")), []).append(job)
    return list(parts.values())


def look(deps: Deps) -> int:
    """Queue what is due and seems to be forgotten; return for how many webhooks."""
    now = deps.clock.now()
    with deps.store.unit() as unit:
        then = now - _FORGOTTEN
        late = [one for one in event_store.heads(unit) if one.updated_at <= then and not _rests(one, then)]
        outbox.add(unit, QUEUE, JOB, [one.id for one in late], now=now)
    return len(late)


# One webhook's turn


def _tell(deps: Deps, notifier: Notifier, hook_id: str, done: Callable[[Unit], None] = lambda _: None) -> None:
    leases, end = Leases(deps, _LEASE_TIME), time.monotonic() + _TURN_SECONDS
    with leases.renewed():
        turn = _begin(deps, hook_id, leases, done)
        while turn is not None:
            outcomes = _post_each(deps, notifier, turn, leases, end)
            turn = _conclude(deps, turn, leases, outcomes, done, over=time.monotonic() > end)


def _post_each(deps: Deps, notifier: Notifier, turn: _Turn, leases: Leases, end: float) -> list[_Outcome]:
    outcomes: list[_Outcome] = []
    for delivery, item, trace in turn.items:
        if not leases.sure(_lease(turn.hook.id)):
            # This process stood still, or the database did: another may be telling it, from where this one was.
            break
        gone, error = _post(deps, notifier, turn.hook, item, trace)
        outcomes.append(_Outcome(delivery, gone, error))
        if error is not None:
            _tell_of(delivery, error, trace)
        if error is not None or time.monotonic() > end:
            break
    return outcomes


def _tell_of(one: Delivery, error: KeymailboxError, trace: Trace | None) -> None:
    # Not on what: a host may be a secret of the receiver's, but for a status.
    what = error.on if error.on.startswith("status ") else error.message
    _log.warning(
        "post_failed",
        webhook=one.webhook_id,
        delivery=one.id,
        attempt=one.attempts % MAX_ATTEMPTS + 1,
        error=f"{error.code}: {what}",
        request_id=tracing.request_id(trace),
    )


def _begin(deps: Deps, hook_id: str, leases: Leases, done: Callable[[Unit], None]) -> _Turn | None:
    """Take the webhook for a turn; None when nothing is due, or another has it."""
    now = deps.clock.now()
    turn = None
    with deps.store.unit() as unit:
        first = event_store.pending(unit, hook_id, 1)
        if first and not _rests(first[0], now) and leases.acquire(unit, _lease(hook_id)):
            # Read under the lease: who had it till now may just have told what was seen above.
            turn = _next(unit, hook_id, event_store.pending(unit, hook_id, _POSTS), now)
            if turn is None:
                leases.release(unit, _lease(hook_id))
        if turn is None:
            done(unit)
    return turn


def _next(unit: Unit, hook_id: str, pending: Sequence[Delivery], now: datetime) -> _Turn | None:
    """Return what to tell a webhook of what is pending; None when nothing is due."""
    if not pending or _rests(pending[0], now):
        return None
    hook = webhook_store.webhook(unit, hook_id)
    if hook is None or hook.disabled_at is not None:
        return None
    told = event_store.told(unit, [EventId(one.event_id) for one in pending])
    return _Turn(hook, [(one, *told[one.event_id]) for one in pending])


def _conclude(
    deps: Deps,
    turn: _Turn,
    leases: Leases,
    outcomes: Sequence[_Outcome],
    done: Callable[[Unit], None],
    *,
    over: bool,
) -> _Turn | None:
    """Write down what came of a turn and take the next, or let go of the webhook when nothing is due or time is over.

    Who lost the webhook on the way writes down what was taken, but no failure: how that goes on is another's to say.
    """
    now, hook = deps.clock.now(), turn.hook
    with deps.store.unit() as unit, tracing.carrying(_traces(turn, outcomes)):
        # Let go of first, and what is pending read then: who comes later waits for this commit and takes the webhook,
        # and what those wrote who have gone away is seen here.
        still = leases.release(unit, _lease(hook.id))
        # What was removed while it was posted has no row any more, and what another told is done.
        left = delivery_store.hold_pending(unit, [one.delivery.id for one in outcomes])
        taken = [one.delivery.id for one in outcomes if one.error is None and one.delivery.id in left]
        event_store.set_delivered(unit, taken, now)
        unit.once_committed(lambda: metrics.posts.labels("delivered").inc(len(taken)))
        for one in outcomes:
            if still and one.error is not None and one.delivery.id in left:
                _record(unit, one, one.error, hook, now)
        following = None
        if still or over:
            following = _next(unit, hook.id, event_store.pending(unit, hook.id, 1 if over else _POSTS), now)
        if following is not None and over:
            [(first, _, trace)] = following.items
            with tracing.carrying({first.id: trace}):
                outbox.add(unit, QUEUE, JOB, [first.id], now=now, lanes=[hook.address.tenant])
            following = None
        # Nobody can have come between: the row that was let go of is locked till the commit.
        if following is not None and not leases.acquire(unit, _lease(hook.id)):
            following = None
        if following is None and (still or over):
            done(unit)
    if not still:
        _log.warning("turn_lost", webhook=hook.id, posts=len(outcomes))
        # In a unit of its own: another may hold the webhook, and wait for what was written down here.
        return None if over else _begin(deps, hook.id, leases, done)
    return following


def _traces(turn: _Turn, outcomes: Sequence[_Outcome]) -> Mapping[str, Trace | None]:
    """Return which request each delivery of a turn comes from, and what is said of its webhook when one failed."""
    traces = {one.id: trace for one, _, trace in turn.items}
    # Only the last can have failed.
    failed = next((one.delivery.id for one in outcomes if one.error is not None), None)
    return traces if failed is None else traces | {turn.hook.id: traces[failed]}


def _rests(one: Delivery, now: datetime) -> bool:
    """Say whether a delivery that failed waits for its next attempt."""
    failed = one.attempts % MAX_ATTEMPTS
    return failed > 0 and one.updated_at + pause(failed) > now


def _lease(hook_id: str) -> str:
    return f"webhook:{hook_id}"


def _post(
    deps: Deps, notifier: Notifier, hook: Webhook, item: SequencedEvent, trace: Trace | None
) -> tuple[bool, KeymailboxError | None]:
    """Return whether the receiver wants no more, and what went wrong."""
    with tracing.step("webhook post", "client", trace) as span:
        span.note("keymailbox.webhook", hook.id)
        span.note("keymailbox.event.type", item.event.type.value)
        with metrics.post_seconds.time():
            return _posted(deps, notifier, hook, item, span)


def _posted(
    deps: Deps, notifier: Notifier, hook: Webhook, item: SequencedEvent, span: Span
) -> tuple[bool, KeymailboxError | None]:
    body = json.dumps(cloudevent(deps, item), separators=(",", ":"), ensure_ascii=False)
    now = deps.clock.now()
    headers = {
        "content-type": "application/cloudevents+json",
        # The same at each attempt, so that the receiver can tell what it has seen.
        "webhook-id": item.event.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Signer(hook.secret).sign(item.event.id, now, body),
        # W3C Trace Context: what a receiver quotes when it asks us about a post.
        "traceparent": span.trace,
    }
    try:
        status = notifier.post(hook.url, headers, body.encode())
    except KeymailboxError as error:
        return False, error
    except Exception as error:
        # Whatever a receiver provokes in a client must not take the other deliveries with it.
        return False, UnavailableError("The post failed", on=type(error).__name__)
    span.note("http.response.status_code", status)
    if 200 <= status < 300:
        return False, None
    return status == _GONE, UnavailableError("The webhook did not take the event", on=f"status {status}")


def _record(unit: Unit, outcome: _Outcome, error: KeymailboxError, hook: Webhook, now: datetime) -> None:
    one = outcome.delivery
    attempts = one.attempts % MAX_ATTEMPTS + 1
    final = outcome.gone or not isinstance(error, UnavailableError) or attempts == MAX_ATTEMPTS
    event_store.set_delivery(unit, one.id, "dead" if final else "pending", now=now, error=describe(error))
    unit.once_committed(metrics.posts.labels("gone" if outcome.gone else "dead" if final else "failed").inc)
    if outcome.gone:
        webhook_store.disable_webhook(unit, hook.id, now)
    if not final:
        # Never before the delivery has rested: a job that comes too early finds nothing to do, and is done with.
        due = now + pause(attempts) * _random.uniform(1, 1 + _JITTER)
        outbox.add(unit, QUEUE, JOB, [one.id], now=now, due_at=due, lanes=[hook.address.tenant])
        return
    if not outcome.gone:
        outbox.add_dead(unit, QUEUE, JOB, one.id, now=now, error=describe(error), attempts=attempts)
    told = event(
        EventType.WEBHOOK_DEAD,
        hook.id,
        now,
        hook.address,
        delivery_id=one.id,
        event_id=one.event_id,
        error=describe(error),
        disabled=1 if outcome.gone else 0,
    )
    event_store.append(unit, [told])


def _check_url(url: str, *, allow_plain: bool) -> None:
    try:
        parts = urlsplit(url)
        sound = bool(parts.hostname) and parts.username is None and not parts.fragment and parts.port != 0
    except ValueError:
        sound = False
        parts = urlsplit("")
    allowed = ("https", "http") if allow_plain else ("https",)
    if not sound or parts.scheme not in allowed or len(url) > _LONGEST_URL or not url.isascii() or " " in url:
        raise UsageError("A webhook's URL is https:// with a host, without a password and without a fragment")


def _delivery_id(hook: Webhook, happened: Event) -> str:
    return hashlib.sha256(f"{hook.id}:{happened.id}".encode()).hexdigest()[:32]


def _is_hex(text: str) -> bool:
    return len(text) == 32 and all(digit in "0123456789abcdef" for digit in text)
