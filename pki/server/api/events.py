"""Events that the caller may hear of, in the order of the trail."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from pki.core.events import EventType
from pki.server.api import answers, calls, streams
from pki.server.facts import SequencedEvent
from pki.server.services import notices

Kind = Annotated[EventType | None, Query(alias="type", description="Only events of this type")]

router = APIRouter(prefix="/v1/events", tags=["events"])


@router.get("", summary="What happened", responses=answers.tells(answers.Events))
async def page(
    call: calls.Signed,
    after: calls.Position = 0,
    limit: calls.Limit = 100,
    wait: calls.Wait = 0,
    kind: Kind = None,
) -> Response:
    """Return the CloudEvents past a position; with ``wait``, as soon as there is one."""

    async def look() -> tuple[list[SequencedEvent], int]:
        return await calls.run(notices.page, call.deps, call.caller, after, limit, kind)

    topics = [notices.topic(call.address), notices.RUNG]
    found, following = await call.until(topics, wait, look, lambda seen: bool(seen[0]))
    items = [{**notices.cloudevent(call.deps, item), "position": item.position} for item in found]
    return calls.answer({"items": items, "next": following})


@router.get(
    "/stream",
    summary="What happens, as it happens",
    response_class=Response,
    responses=answers.tells_binary(streams.MEDIA_TYPE, "CloudEvents as server-sent events (WHATWG HTML §9.2)."),
)
async def stream(
    call: calls.Signed,
    after: Annotated[int | None, Query(ge=0, le=2**62 - 1, description="The position to begin after")] = None,
    kind: Kind = None,
    last_event_id: Annotated[str | None, Header(description="The id of the last event; stands above after")] = None,
) -> Response:
    """Tell of each event once and in order, past Last-Event-ID or ``after``; from now on where neither is given."""
    begin = streams.position(last_event_id)
    if begin is None:
        begin = after
    if begin is None:
        begin = await calls.run(notices.newest, call.deps, call.caller)
    return streams.EventStream(call, begin, kind)
