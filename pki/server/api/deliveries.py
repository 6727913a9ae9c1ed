"""Dead letters of webhooks: what was given up, and told again when its owner asks for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from pki.server.api import answers, bodies, calls
from pki.server.facts import Delivery, SequencedEvent
from pki.server.services import deliveries

router = APIRouter(prefix="/v1/webhooks/{webhook_id}", tags=["webhooks"])

_Place = Annotated[str, Query(pattern="^([0-9a-f]{48})?$", description="What the last page gave as next")]


class Replay(bodies.Message):
    """Deliveries that are dead; null means those that were given up first."""

    ids: Annotated[list[Annotated[str, Field(pattern="^[0-9a-f]{32}$")]], Field(max_length=500)] | None = None


@router.get("/deliveries", summary="What a webhook was not told", responses=answers.tells(answers.Deliveries))
async def page(
    call: calls.Signed,
    webhook_id: calls.Id,
    state: Annotated[Literal["dead"], Query(description="What is told of")] = "dead",
    after: _Place = "",
    limit: calls.Limit = 100,
) -> Response:
    """Return the deliveries that were given up after ten attempts, first given up first."""
    items, following = await calls.run(deliveries.dead, call.deps, call.caller, webhook_id, after, limit)
    return calls.answer({"items": [delivery_object(one, item) for one, item in items], "next": following})


@router.post(
    "/replay",
    status_code=202,
    summary="Tell a webhook again",
    responses=answers.tells(answers.Replayed, 202),
    openapi_extra=bodies.takes(Replay),
)
async def replay(call: calls.Signed, webhook_id: calls.Id) -> Response:
    """Have dead deliveries posted once more, under their old ``webhook-id``; what is not dead is left out."""
    told = bodies.parse(call.request, call.body, Replay)
    chosen = await calls.run(deliveries.replay, call.deps, call.caller, webhook_id, tuple(told.ids or ()))
    return calls.answer({"ids": chosen}, 202)


def delivery_object(one: Delivery, item: SequencedEvent | None) -> dict[str, Any]:
    """Return a delivery as JSON; of an event that is not kept any more, only the id."""
    return {
        "id": one.id,
        "event": one.event_id,
        "type": None if item is None else item.event.type.value,
        "subject": None if item is None else item.event.subject,
        "attempts": one.attempts,
        "error": one.last_error or "",
        "at": calls.time(one.updated_at),
    }
