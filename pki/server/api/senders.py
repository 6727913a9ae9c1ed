"""Whom a mailbox takes deposits from: its owner's own word."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from pki.core.senders import MOST_LISTED, SHORTEST, SMALLEST, SenderMode, SenderPolicy
from pki.server.api import answers, bodies, calls
from pki.server.services import senders

router = APIRouter(prefix="/v1/mailboxes", tags=["mailboxes"])

_HOUR = int(SHORTEST.total_seconds())
_LONGEST = 10 * 366 * 86400


class Policy(bodies.Message):
    """Whom and what to take: tenants and addresses, bytes, seconds; null is no limit of the recipient's own."""

    mode: Literal["anyone", "known", "listed"]
    listed: Annotated[list[Annotated[str, Field(pattern="^[a-z0-9/-]{1,63}$")]], Field(max_length=MOST_LISTED)] = Field(
        default_factory=list
    )
    max_bytes: Annotated[int, Field(ge=SMALLEST, le=2**40)] | None = None
    max_lifetime: Annotated[int, Field(ge=_HOUR, le=_LONGEST)] | None = None


@router.get(
    "/{tenant}/{instance}/senders",
    summary="Whom a mailbox takes deposits from",
    responses=answers.tells(answers.Senders),
)
async def show(call: calls.Signed, tenant: calls.Label, instance: calls.Label) -> Response:
    """Return the caller's own policy; nobody else sees it."""
    address = calls.address_in(tenant, instance)
    return calls.answer(policy_object(await calls.run(senders.policy, call.deps, call.caller, address)))


@router.put(
    "/{tenant}/{instance}/senders",
    summary="Choose whom a mailbox takes deposits from",
    responses=answers.tells(answers.Senders),
    openapi_extra=bodies.takes(Policy),
)
async def change(call: calls.Signed, tenant: calls.Label, instance: calls.Label) -> Response:
    """Put the caller's own policy in the place of the one before; what is in the mailbox stays."""
    told = bodies.parse(call.request, call.body, Policy)
    address = calls.address_in(tenant, instance)
    wanted = SenderPolicy(
        SenderMode(told.mode),
        tuple(told.listed),
        told.max_bytes,
        None if told.max_lifetime is None else timedelta(seconds=told.max_lifetime),
    )
    return calls.answer(policy_object(await calls.run(senders.set_policy, call.deps, call.caller, address, wanted)))


def policy_object(policy: SenderPolicy) -> dict[str, Any]:
    """Return a policy as JSON."""
    return {
        "mode": policy.mode.value,
        "listed": list(policy.listed),
        "max_bytes": policy.max_bytes,
        "max_lifetime": None if policy.max_lifetime is None else int(policy.max_lifetime.total_seconds()),
        "changed_at": calls.maybe_time(policy.changed_at),
    }
