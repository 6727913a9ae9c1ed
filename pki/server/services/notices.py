"""Telling what happened: events are numbered and chained, published, and posted to those who asked for it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from standardwebhooks import Webhook as Signer

from pki.core.errors import KeymailboxError, NotFoundError, UnavailableError, UsageError, VerificationError
from pki.core.events import GENESIS, Event, EventType, chain_hash
from pki.core.ids import EventId
from pki.server.ports import Caller, Delivery, EventPublisher, Notifier, SequencedEvent, Webhook
from pki.server.services.deps import Deps
from pki.server.services.events import event
from pki.server.services.jobs import MAX_ATTEMPTS, describe
from pki.server.store import events as event_store
from pki.server.store import outbox
from pki.server.store.engine import Unit

QUEUE = "notify"
JOB = "webhook"
MAX_WEBHOOKS = 10
"""An address has this many at most."""
MAX_PAGE = 500
_LONGEST_URL = 2000
_BATCH = 500
_PARALLEL_POSTS = 16
_CURSOR = "exchange"
_LEASE = "exchange"
_LEASE_TIME = timedelta(seconds=60)
_GONE = 410
_SCHEMAS = "https://keymailbox.invalid/schemas/events"


# Webhooks


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
        if len(event_store.list_webhooks(unit, [webhook.address])) >= MAX_WEBHOOKS:
            raise UsageError(f"An address has at most {MAX_WEBHOOKS} webhooks", on=str(webhook.address))
        event_store.insert_webhook(unit, webhook)
    return webhook


def webhooks(deps: Deps, caller: Caller) -> list[Webhook]:
    """Return the webhooks of the caller's address, oldest first."""
    with deps.store.read() as unit:
        return event_store.list_webhooks(unit, [caller.instance.address])


def remove(deps: Deps, caller: Caller, webhook_id: str) -> None:
    """Remove a webhook of the caller's address and what is under way to it; raises NotFoundError."""
    if not _is_hex(webhook_id):
        raise NotFoundError(on=webhook_id[:40])
    with deps.store.unit() as unit:
        if not event_store.delete_webhook(unit, webhook_id, caller.instance.address):
            raise NotFoundError(on=webhook_id)


def deliver(deps: Deps, notifier: Notifier, ids: Sequence[str]) -> Mapping[str, KeymailboxError | None]:
    """Post deliveries to their webhooks, several at a time; for each None when it is done with, or what went wrong.

    One that was delivered is not posted again, one whose webhook is gone is done with. After ten attempts, or at once
    when the target is forbidden, it is dead, and its owner can read so among the events.
    """
    with deps.store.read() as unit:
        pending = [found for found in event_store.deliveries_by_ids(unit, ids) if found.state != "delivered"]
        hooks = {hook.id: hook for hook in event_store.list_webhooks(unit) if hook.disabled_at is None}
        told = {item.event.id: item for item in event_store.events_by_ids(unit, [_event_id(one) for one in pending])}
    work = [one for one in pending if one.webhook_id in hooks and one.event_id in told]
    results: dict[str, KeymailboxError | None] = dict.fromkeys(ids)
    if not work:
        return results
    with ThreadPoolExecutor(min(_PARALLEL_POSTS, len(work))) as pool:
        tries = pool.map(lambda one: _post(deps, notifier, hooks[one.webhook_id], told[_event_id(one)]), work)
        outcomes = list(zip(work, tries, strict=True))
    now = deps.clock.now()
    with deps.store.unit() as unit:
        # What was removed while it was posted has no row any more.
        left = {found.id for found in event_store.deliveries_by_ids(unit, [one.id for one in work])}
        for one, (gone, error) in outcomes:
            results[one.id] = None if gone or one.id not in left else error
            if one.id in left:
                _record(unit, one, hooks[one.webhook_id], error, gone=gone, now=now)
    return results


# Events


def sequence_events(deps: Deps, publisher: EventPublisher | None) -> int:
    """Number and chain what has happened, queue its webhooks, publish it; return how many events were numbered.

    Several may run at once: one numbers at a time, and one publishes. Raises UnavailableError when the broker is away:
    what is numbered stays so, and is published by the next call.
    """
    count = 0
    while numbered := _number(deps):
        count += numbered
    if publisher is not None:
        _publish(deps, publisher)
    return count


def events(deps: Deps, caller: Caller, after: int = 0, limit: int = 100) -> list[SequencedEvent]:
    """Return the events past position ``after`` that the caller's address may hear of."""
    if not 0 <= after < 1 << 62 or not 1 <= limit <= MAX_PAGE:
        raise UsageError(f"A page of events starts at a position and has 1 to {MAX_PAGE} items")
    with deps.store.read() as unit:
        return event_store.after(unit, after, limit, audience=caller.instance.address)


def cloudevent(deps: Deps, item: SequencedEvent) -> dict[str, object]:
    """Return an event as a CloudEvent 1.0; ``sequence`` is its position, in the extension of that name."""
    happened = item.event
    return {
        "specversion": "1.0",
        "id": happened.id,
        "source": deps.settings.url,
        "type": happened.type.value,
        "subject": happened.subject,
        "time": happened.time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "dataschema": f"{_SCHEMAS}/{happened.type.value}.schema.json",
        "sequence": str(item.position),
        "data": dict(happened.data),
    }


def verify_chain(deps: Deps) -> int:
    """Recompute the chain over all numbered events; return how many there are.

    Raises VerificationError at the first that was altered, left out or put in.
    """
    position, chain = 0, GENESIS
    with deps.store.read() as unit:
        while items := event_store.after(unit, position, _BATCH):
            for item in items:
                if item.position != position + 1:
                    raise VerificationError("An event is missing from the chain", on=f"position {position + 1}")
                position, chain = item.position, chain_hash(chain, item.event)
                if not hmac.compare_digest(chain, item.chain):
                    raise VerificationError("An event was altered after it was chained", on=f"position {position}")
    return position


def _number(deps: Deps) -> int:
    now = deps.clock.now()
    with deps.store.unit() as unit:
        position, chain = event_store.head(unit, lock=True)
        happened = event_store.unsequenced(unit, _BATCH)
        places = []
        for one in happened:
            position, chain = position + 1, chain_hash(chain, one)
            places.append((one.id, position, chain))
        event_store.set_positions(unit, places)
        if happened:
            _fan_out(unit, happened, now)
            unit.after_commit("events")
    return len(happened)


def _fan_out(unit: Unit, happened: Sequence[Event], now: datetime) -> None:
    audience = sorted({address for one in happened for address in one.audience})
    hooks: dict[str, list[Webhook]] = {}
    for hook in event_store.list_webhooks(unit, audience) if audience else []:
        if hook.disabled_at is None:
            hooks.setdefault(str(hook.address), []).append(hook)
    new = [
        Delivery(_delivery_id(hook, one), hook.id, one.id, "pending", 0, None, now)
        for one in happened
        # A post that tells of a post that failed could fail as well, without end.
        if one.type is not EventType.WEBHOOK_DEAD
        for address in one.audience
        for hook in hooks.get(address, [])
        if hook.types is None or one.type.value in hook.types
    ]
    outbox.add(unit, QUEUE, JOB, event_store.insert_deliveries(unit, new), now=now)


def _publish(deps: Deps, publisher: EventPublisher) -> None:
    holder = secrets.token_hex(8)
    while True:
        if not _lease(deps, holder):
            # Its holder looks again after letting go, so what was numbered before now is not forgotten.
            return
        try:
            while _publish_batch(deps, publisher):
                _lease(deps, holder)
        finally:
            with deps.store.unit() as unit:
                event_store.release_lease(unit, _LEASE, holder)
        with deps.store.read() as unit:
            if not event_store.after(unit, event_store.cursor(unit, _CURSOR), 1):
                return


def _publish_batch(deps: Deps, publisher: EventPublisher) -> bool:
    with deps.store.read() as unit:
        items = event_store.after(unit, event_store.cursor(unit, _CURSOR), _BATCH)
    if not items:
        return False
    publisher.publish([cloudevent(deps, item) for item in items])
    with deps.store.unit() as unit:
        event_store.set_cursor(unit, _CURSOR, items[-1].position)
    return True


def _lease(deps: Deps, holder: str) -> bool:
    with deps.store.unit() as unit:
        return event_store.acquire_lease(unit, _LEASE, holder, deps.clock.now(), _LEASE_TIME)


def _post(deps: Deps, notifier: Notifier, hook: Webhook, item: SequencedEvent) -> tuple[bool, KeymailboxError | None]:
    """Return whether the receiver wants no more, and what went wrong."""
    body = json.dumps(cloudevent(deps, item), separators=(",", ":"), ensure_ascii=False)
    now = deps.clock.now()
    headers = {
        "content-type": "application/cloudevents+json",
        # The same at each attempt, so that the receiver can tell what it has seen.
        "webhook-id": item.event.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Signer(hook.secret).sign(item.event.id, now, body),
    }
    try:
        status = notifier.post(hook.url, headers, body.encode())
    except KeymailboxError as error:
        return False, error
    except Exception as error:
        # Whatever a receiver provokes in a client must not take the other deliveries with it.
        return False, UnavailableError("The post failed", on=type(error).__name__)
    if 200 <= status < 300:
        return False, None
    return status == _GONE, UnavailableError("The webhook did not take the event", on=f"status {status}")


def _record(
    unit: Unit, one: Delivery, hook: Webhook, error: KeymailboxError | None, *, gone: bool, now: datetime
) -> None:
    if error is None:
        event_store.set_delivery(unit, one.id, "delivered", now=now)
        return
    final = gone or not isinstance(error, UnavailableError) or (one.attempts + 1) % MAX_ATTEMPTS == 0
    event_store.set_delivery(unit, one.id, "dead" if final else "pending", now=now, error=describe(error))
    if gone:
        event_store.disable_webhook(unit, hook.id, now)
    if final:
        told = event(
            EventType.WEBHOOK_DEAD,
            hook.id,
            now,
            hook.address,
            delivery_id=one.id,
            event_id=one.event_id,
            error=describe(error),
            disabled=1 if gone else 0,
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


def _event_id(delivery: Delivery) -> EventId:
    return EventId(delivery.event_id)


def _is_hex(text: str) -> bool:
    return len(text) == 32 and all(digit in "0123456789abcdef" for digit in text)
