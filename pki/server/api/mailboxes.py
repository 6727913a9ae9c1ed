"""Mailboxes: pages in the order of arrival, and collection."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from pki.core.errors import KeymailboxError
from pki.server.api import answers, bodies, calls, problems
from pki.server.api.deposits import deposit_object
from pki.server.services import mailbox

router = APIRouter(prefix="/v1/mailboxes", tags=["mailboxes"])


class Collection(bodies.Message):
    """What to fetch."""

    ids: Annotated[list[bodies.AnyId], Field(min_length=1, max_length=100)]


@router.get("/{tenant}/{instance}", summary="Poll a mailbox", responses=answers.tells(answers.Mailbox))
async def poll(
    call: calls.Verified,
    tenant: calls.Label,
    instance: calls.Label,
    after: calls.Position = 0,
    limit: calls.Limit = 100,
    wait: calls.Wait = 0,
) -> Response:
    """Return what came after the number ``after``; with ``wait``, as soon as there is something."""
    try:
        address = calls.address_in(tenant, instance)
        mailbox.check_page(call.caller, address, after, limit)
    except KeymailboxError:
        # Such a request is good once as well.
        await call.spend()
        raise

    def page() -> list[dict[str, Any]]:
        return [deposit_object(one) for one in mailbox.page(call.deps, call.caller, address, after, limit)]

    async def past(newest: int) -> list[dict[str, Any]]:
        # Most polls find nothing: that is asked for many at once.
        return await calls.run(page) if newest > after else []

    async def look() -> list[dict[str, Any]]:
        return await past(await call.entrance.numbers.submit(address))

    if wait:
        await call.spend()
        items = await call.until([f"mailbox:{address}"], wait, look, bool)
    else:
        items = await past(await call.poll())
    return await calls.long_answer({"items": items, "next": items[-1]["sequence"] if items else after}, len(items))


@router.post(
    "/{tenant}/{instance}/collection",
    summary="Collect deposits",
    responses=answers.tells(answers.Collection),
    openapi_extra=bodies.takes(Collection),
)
async def collect(call: calls.Signed, tenant: calls.Label, instance: calls.Label) -> Response:
    """Return the bytes of deposits; each id is answered for itself, in the order asked."""
    told = bodies.parse(call.request, call.body, Collection)
    address = calls.address_in(tenant, instance)
    ids = list(dict.fromkeys(told.ids))
    results = await calls.run(mailbox.collect, call.deps, call.caller, address, ids)
    return calls.answer({"items": [_item(name, result) for name, result in zip(ids, results, strict=True)]})


def _item(deposit_id: str, result: mailbox.Collected | KeymailboxError) -> dict[str, Any]:
    if isinstance(result, KeymailboxError):
        return {"id": deposit_id, "error": problems.problem(result)}
    record, body = result
    return {"id": deposit_id, "state": record.state.value, "body": bodies.b64(body)}
