"""What the caller has sent."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from pki.core.deposits import DepositState
from pki.core.errors import UsageError
from pki.server.api import answers, calls
from pki.server.api.deposits import deposit_object
from pki.server.services import mailbox

router = APIRouter(prefix="/v1/sent", tags=["deposits"])


@router.get("", summary="What the caller has sent", responses=answers.tells(answers.Sent))
async def page(call: calls.Signed, state: str = "", after: calls.Cursor = "", limit: calls.Limit = 100) -> Response:
    """Return the caller's deposits, oldest first, of one state or of all."""
    try:
        wanted = DepositState(state) if state else None
    except ValueError:
        raise UsageError("There is no such state", on=f"state={state[:40]}", hint="state=available") from None

    def found() -> tuple[list[dict[str, Any]], str]:
        records, cursor = mailbox.sent(call.deps, call.caller, wanted, after, limit)
        return [deposit_object(record) for record in records], cursor

    items, cursor = await calls.run(found)
    return await calls.long_answer({"items": items, "next": cursor}, len(items))
