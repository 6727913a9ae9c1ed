"""Webhooks: where an instance wants to be told."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from pki.server.api import answers, bodies, calls
from pki.server.facts import Webhook
from pki.server.services import webhooks

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


class Registration(bodies.Message):
    """An HTTPS address, and the event types that it wants; null means all."""

    url: Annotated[str, Field(max_length=2000, pattern="^[!-~]+$")]
    types: Annotated[list[Annotated[str, Field(pattern="^[a-z.]{1,100}$")]], Field(max_length=50)] | None = None


@router.post(
    "",
    status_code=201,
    summary="Register a webhook",
    responses=answers.tells(answers.NewWebhook, 201),
    openapi_extra=bodies.takes(Registration),
)
async def register(call: calls.Signed) -> Response:
    """Register an address; the answer alone holds the secret that signs the deliveries (Standard Webhooks)."""
    told = bodies.parse(call.request, call.body, Registration)
    types = None if told.types is None else tuple(told.types)
    webhook = await calls.run(webhooks.register, call.deps, call.caller, told.url, types)
    return calls.answer(webhook_object(webhook) | {"secret": webhook.secret}, 201)


@router.get("", summary="The caller's webhooks", responses=answers.tells(answers.Webhooks))
async def listed(call: calls.Signed) -> Response:
    """Return the webhooks, without their secrets."""
    found = await calls.run(webhooks.listed, call.deps, call.caller)
    return calls.answer({"items": [webhook_object(webhook) for webhook in found]})


@router.delete("/{webhook_id}", status_code=204, summary="Remove a webhook")
async def remove(call: calls.Signed, webhook_id: calls.Id) -> Response:
    """Remove a webhook; deliveries under way may still arrive."""
    await calls.run(webhooks.remove, call.deps, call.caller, webhook_id)
    return Response(status_code=204)


def webhook_object(webhook: Webhook) -> dict[str, Any]:
    """Return a webhook as JSON, without its secret."""
    return {
        "id": webhook.id,
        "url": webhook.url,
        "types": None if webhook.types is None else list(webhook.types),
        "created_at": calls.time(webhook.created_at),
        "disabled_at": calls.maybe_time(webhook.disabled_at),
    }
