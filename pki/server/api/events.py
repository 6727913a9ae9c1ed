"""Events that the caller may hear of, in the order of the trail."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from pki.server.api import answers, calls
from pki.server.ports import SequencedEvent
from pki.server.services import notices

router = APIRouter(prefix="/v1/events", tags=["events"])


@router.get("", summary="What happened", responses=answers.tells(answers.Events))
async def page(
    call: calls.Signed, after: calls.Position = 0, limit: calls.Limit = 100, wait: calls.Wait = 0
) -> Response:
    """Return the CloudEvents past a position; with ``wait``, as soon as there is one."""

    async def look() -> list[SequencedEvent]:
        return await calls.run(notices.events, call.deps, call.caller, after, limit)

    found = await call.waiting.until(call.request, ["events"], call.seconds(wait), look, bool)
    items = [{**notices.cloudevent(call.deps, item), "position": item.position} for item in found]
    return calls.answer({"items": items, "next": found[-1].position if found else after})
