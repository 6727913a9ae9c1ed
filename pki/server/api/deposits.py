"""Deposits: handed in, followed, withdrawn."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header
from pydantic import Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from pki.core.deposits import DepositState
from pki.core.errors import KeymailboxError, UsageError
from pki.server.api import answers, bodies, calls, problems
from pki.server.facts import DepositRecord
from pki.server.services import deposits, mailbox

router = APIRouter(prefix="/v1/deposits", tags=["deposits"])

MOST = 100
"""How many deposits one request brings."""


class Item(bodies.Message):
    """One deposit of several: its bytes, and what stands in header fields where it is alone."""

    body: bodies.Base64
    idempotency_key: Annotated[str, Field(pattern="^[!-~]{1,255}$")]
    supersedes: Annotated[str | None, Field(pattern="^[0-9a-f]{32}$")] = None
    respond_by: Annotated[str | None, Field(json_schema_extra={"format": "date-time"})] = None


class Batch(bodies.Message):
    """Several deposits. Each is looked at by itself, so that a bad one does not fail the others."""

    items: Annotated[
        list[Annotated[Any, WithJsonSchema(Item.model_json_schema())]], Field(min_length=1, max_length=MOST)
    ]


@router.post(
    "",
    status_code=202,
    summary="Deposit a wrapped key",
    responses=answers.tells(answers.Accepted, 202),
    openapi_extra=bodies.takes_binary(bodies.CMS, "A deposit: SignedData over AuthEnvelopedData, in DER"),
)
async def deposit(
    call: calls.Verified,
    idempotency_key: Annotated[str, Header(pattern="^[!-~]{1,255}$")],
    supersedes: Annotated[str | None, Header(pattern="^[0-9a-f]{32}$")] = None,
    respond_by: Annotated[datetime | None, Header(description="By when the sender wants an answer (RFC 3339)")] = None,
) -> Response:
    """Store a deposit durably and answer; a worker validates it. The same key and body again: the same answer."""
    read: deposits.Arrival | KeymailboxError
    try:
        bodies.expect(call.request, bodies.CMS)
        by = calls.moment(respond_by, "Respond-By")
        incoming = deposits.Incoming(call.body, idempotency_key, supersedes, by)
        read = await call.briefly(deposits.read, call.deps, call.caller, incoming)
    except KeymailboxError as error:
        # Handed on all the same: a request that is wrong is good once, too.
        read = error
    (result,) = await call.hand([read])
    if isinstance(result, KeymailboxError):
        raise result
    told = accepted_object(result)
    return calls.answer(told, 202, Location=told["status"])


@router.post(
    "/batch",
    summary="Deposit several wrapped keys",
    responses=answers.tells(answers.Batch),
    openapi_extra=bodies.takes(Batch),
)
async def deposit_several(request: Request) -> Response:
    """Store up to 100 deposits in one commit; each is answered for itself, in order, as it would be alone."""
    call = await calls.verified(request, calls.deps_of(request).settings.max_batch_bytes)
    try:
        told = await calls.run(bodies.parse, request, call.body, Batch)
    except KeymailboxError:
        await call.hand([])
        raise
    results = await call.hand(await calls.run(_read_several, call, told.items))
    return calls.answer(
        {
            "items": [
                {"error": problems.problem(result)} if isinstance(result, KeymailboxError) else accepted_object(result)
                for result in results
            ]
        }
    )


@router.get("/{deposit_id}", summary="Follow a deposit", responses=answers.tells(answers.Deposit))
async def follow(call: calls.Signed, deposit_id: calls.Id, wait: calls.Wait = 0, state: str = "received") -> Response:
    """Return a deposit to its sender or recipient; with ``wait``, once it has left ``state``."""
    left = _state(state)

    async def look() -> DepositRecord:
        return await calls.run(mailbox.status, call.deps, call.caller, deposit_id)

    record = await call.until([f"deposit:{deposit_id}"], wait, look, lambda found: found.state is not left)
    return calls.answer(deposit_object(record))


@router.post("/{deposit_id}/withdrawal", summary="Withdraw a deposit", responses=answers.tells(answers.Deposit))
async def withdraw(call: calls.Signed, deposit_id: calls.Id) -> Response:
    """Take back what was not collected yet; for its sender."""
    calls.expect_nothing(call)
    record = await calls.run(deposits.withdraw, call.deps, call.caller, deposit_id)
    return calls.answer(deposit_object(record))


def accepted_object(result: deposits.Accepted) -> dict[str, str]:
    """Return a deposit that was stored as JSON."""
    return {"id": result.id, "state": result.state.value, "status": f"/v1/deposits/{result.id}"}


def deposit_object(record: DepositRecord) -> dict[str, Any]:
    """Return a deposit as JSON, without its body."""
    rejected = {"code": record.rejected_code, "detail": record.rejected_detail or ""} if record.rejected_code else None
    return {
        "id": record.id,
        "sender": str(record.sender),
        "recipient": str(record.recipient),
        "state": record.state.value,
        "sequence": record.sequence,
        "key_id": record.key_id,
        "key_version": record.key_version,
        "purpose": record.purpose,
        "size": record.size,
        "sha256": record.body_sha256,
        "received_at": calls.time(record.received_at),
        "expires_at": calls.time(record.expires_at),
        "collected_at": calls.maybe_time(record.collected_at),
        "settled_at": calls.maybe_time(record.settled_at),
        "body_deleted_at": calls.maybe_time(record.body_deleted_at),
        "certificate": record.certificate_fingerprint,
        "rejected": rejected,
        "respond_by": calls.maybe_time(record.respond_by),
        "overdue_at": calls.maybe_time(record.overdue_at),
        "supersedes": record.supersedes,
        "superseded_by": record.superseded_by,
    }


def _state(text: str) -> DepositState:
    try:
        return DepositState(text)
    except ValueError:
        raise UsageError("There is no such state", on=f"state={text[:40]}", hint="state=received") from None


def _read_several(call: calls.Call, items: Sequence[Any]) -> list[deposits.Arrival | KeymailboxError]:
    read: list[deposits.Arrival | KeymailboxError] = []
    for place, given in enumerate(items):
        try:
            item = bodies.fitting(given, Item, f"items.{place}")
            by = calls.moment(_time(item.respond_by), "respond_by")
            incoming = deposits.Incoming(item.body, item.idempotency_key, item.supersedes, by)
            read.append(deposits.read(call.deps, call.caller, incoming))
        except KeymailboxError as error:
            read.append(error)
    return read


def _time(text: str | None) -> datetime | None:
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise UsageError("A time is written as RFC 3339 says", on="respond_by", hint="2030-01-31T12:00:00Z") from None
