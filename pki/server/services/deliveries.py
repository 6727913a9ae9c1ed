"""Dead letters of webhooks: their owner sees what was given up, and has it told again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pki.core.errors import ConflictError, NotFoundError, UsageError
from pki.core.ids import EventId
from pki.server.facts import Caller, Delivery, SequencedEvent
from pki.server.services.deps import Deps
from pki.server.services.webhooks import JOB, QUEUE, REPLAY
from pki.server.store import deliveries as store
from pki.server.store import events as event_store
from pki.server.store import outbox
from pki.server.store import webhooks as webhook_store
from pki.server.store.engine import Unit

MAX_PAGE = 500
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ID = 32


def dead(
    deps: Deps, caller: Caller, webhook_id: str, after: str = "", limit: int = 100
) -> tuple[list[tuple[Delivery, SequencedEvent | None]], str]:
    """Return a page of what a webhook of the caller's was not told, each with its event, and the next cursor.

    The event is None where it is not kept any more. Raises NotFoundError for another's webhook.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise UsageError(f"A page has 1 to {MAX_PAGE} items", on=str(limit)[:20])
    place = _place(after)
    with deps.store.read() as unit:
        _own(unit, caller, webhook_id)
        found = store.dead(unit, webhook_id, after=place, limit=limit)
        told = {item.event.id: item for item in event_store.events_by_ids(unit, [EventId(o.event_id) for o in found])}
    return [(one, told.get(EventId(one.event_id))) for one in found], _cursor(found[-1]) if found else after


def replay(deps: Deps, caller: Caller, webhook_id: str, ids: Sequence[str] = ()) -> list[str]:
    """Have a worker tell a webhook of the caller's once more what it was not told; return which, 500 at most.

    Without ``ids`` those that were given up first. What is not dead any more is left out, so that the same again does
    nothing twice. Raises NotFoundError for another's webhook, ConflictError for one that was switched off.
    """
    if len(ids) > MAX_PAGE:
        raise UsageError(f"At most {MAX_PAGE} deliveries are told again at once", on=str(len(ids)))
    now = deps.clock.now()
    with deps.store.unit() as unit:
        if _own(unit, caller, webhook_id):
            hint = "kmb webhook add URL"
            raise ConflictError("The webhook was switched off: it answered 410", on=webhook_id, hint=hint)
        found = event_store.deliveries_by_ids(unit, ids) if ids else store.dead(unit, webhook_id, limit=MAX_PAGE)
        chosen = [one.id for one in found if one.webhook_id == webhook_id and one.state == "dead"]
        # A worker does it: it may change what the API may only see.
        outbox.add(unit, QUEUE, REPLAY, chosen, now=now, lanes=[caller.instance.tenant] * len(chosen))
    return chosen


def revive(deps: Deps, ids: Sequence[str]) -> list[str]:
    """Take up deliveries that were given up, in a worker; return which. Their dead jobs are forgotten."""
    with deps.store.unit() as unit:
        revived = store.revive(unit, ids)
        outbox.forget_dead(unit, QUEUE, JOB, revived)
    return revived


def _own(unit: Unit, caller: Caller, webhook_id: str) -> bool:
    """Return whether the webhook is switched off."""
    hook = webhook_store.webhook(unit, webhook_id)
    if hook is None or hook.address != caller.instance.address:
        raise NotFoundError(on=webhook_id[:40])
    return hook.disabled_at is not None


def _cursor(last: Delivery) -> str:
    return f"{(last.updated_at - _EPOCH) // _MICROSECOND:016x}{last.id}"


def _place(cursor: str) -> store.Place | None:
    if not cursor:
        return None
    moment, one = cursor[:-_ID], cursor[-_ID:]
    try:
        return _EPOCH + int(moment, 16) * _MICROSECOND, one
    except (ValueError, OverflowError):
        raise UsageError("A cursor is what an earlier page gave as next", on=cursor[:60]) from None
