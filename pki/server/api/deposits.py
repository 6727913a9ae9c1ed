"""Deposits: handed in, followed, withdrawn."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header
from starlette.responses import Response

from pki.core.deposits import DepositState
from pki.core.errors import KeymailboxError, UsageError
from pki.server.api import answers, bodies, calls
from pki.server.ports import DepositRecord
from pki.server.services import deposits, mailbox

router = APIRouter(prefix="/v1/deposits", tags=["deposits"])


@router.post(
    "",
    status_code=202,
    summary="Deposit a wrapped key",
    responses=answers.tells(answers.Accepted, 202),
    openapi_extra=bodies.takes_binary(bodies.CMS, "A deposit: SignedData over AuthEnvelopedData, in DER"),
)
async def deposit(
    call: calls.Signed,
    idempotency_key: Annotated[str, Header(pattern="^[!-~]{1,255}$")],
    supersedes: Annotated[str | None, Header(pattern="^[0-9a-f]{32}$")] = None,
) -> Response:
    """Store a deposit durably and answer; a worker validates it. The same key and body again: the same answer."""
    bodies.expect(call.request, bodies.CMS)
    incoming = deposits.Incoming(call.body, idempotency_key, supersedes)
    result = await call.accepting.submit((call.caller, incoming))
    if isinstance(result, KeymailboxError):
        raise result
    path = f"/v1/deposits/{result.id}"
    return calls.answer({"id": result.id, "state": result.state.value, "status": path}, 202, Location=path)


@router.get("/{deposit_id}", summary="Follow a deposit", responses=answers.tells(answers.Deposit))
async def follow(call: calls.Signed, deposit_id: calls.Id, wait: calls.Wait = 0, state: str = "received") -> Response:
    """Return a deposit to its sender or recipient; with ``wait``, once it has left ``state``."""
    left = _state(state)

    async def look() -> DepositRecord:
        return await calls.run(mailbox.status, call.deps, call.caller, deposit_id)

    record = await call.waiting.until(
        call.request,
        [f"deposit:{deposit_id}"],
        call.seconds(wait),
        look,
        lambda found: found.state is not left,
    )
    return calls.answer(deposit_object(record))


@router.post("/{deposit_id}/withdrawal", summary="Withdraw a deposit", responses=answers.tells(answers.Deposit))
async def withdraw(call: calls.Signed, deposit_id: calls.Id) -> Response:
    """Take back what was not collected yet; for its sender."""
    calls.expect_nothing(call)
    record = await calls.run(deposits.withdraw, call.deps, call.caller, deposit_id)
    return calls.answer(deposit_object(record))


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
        "certificate": record.certificate_fingerprint,
        "rejected": rejected,
        "supersedes": record.supersedes,
        "superseded_by": record.superseded_by,
    }


def _state(text: str) -> DepositState:
    try:
        return DepositState(text)
    except ValueError:
        raise UsageError("There is no such state", on=f"state={text[:40]}", hint="state=received") from None
