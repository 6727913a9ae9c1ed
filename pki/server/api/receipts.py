"""Receipts and refusals: handed in by the recipient, fetched by the sender."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from pki.server.api import answers, bodies, calls
from pki.server.ports import ReceiptRecord
from pki.server.services import mailbox

router = APIRouter(prefix="/v1", tags=["receipts"])


@router.post(
    "/deposits/{deposit_id}/receipt",
    status_code=201,
    summary="Hand in a receipt or refusal",
    responses=answers.tells(answers.Receipt, 201),
    openapi_extra=bodies.takes_binary(bodies.CMS, "A SignedData over KeyPackageReceipt or KeyPackageError, in DER"),
)
async def hand_in(call: calls.Signed, deposit_id: calls.Id) -> Response:
    """Store a receipt that the recipient signed; the same one again is the same."""
    bodies.expect(call.request, bodies.CMS)
    record = await calls.run(mailbox.receipt, call.deps, call.caller, deposit_id, call.body)
    return calls.answer(receipt_object(record), 201, Location=f"/v1/deposits/{deposit_id}/receipt")


@router.get(
    "/deposits/{deposit_id}/receipt",
    summary="Fetch a receipt",
    response_class=Response,
    responses=answers.tells_binary(bodies.CMS, "The receipt in DER."),
)
async def fetch(call: calls.Signed, deposit_id: calls.Id) -> Response:
    """Return the receipt's bytes to sender or recipient."""
    record = await calls.run(mailbox.receipt_of, call.deps, call.caller, deposit_id)
    return Response(record.der, headers={"Cache-Control": "no-store"}, media_type=bodies.CMS)


@router.get("/receipts", summary="Receipts for what the caller sent", responses=answers.tells(answers.Receipts))
async def page(call: calls.Signed, after: calls.Cursor = "", limit: calls.Limit = 100) -> Response:
    """Return receipts in the order of their arrival."""
    records, cursor = await calls.run(mailbox.receipts, call.deps, call.caller, after, limit)
    return calls.answer({"items": [receipt_object(record) for record in records], "next": cursor})


def receipt_object(record: ReceiptRecord) -> dict[str, Any]:
    """Return a receipt as JSON."""
    return {
        "deposit_id": record.deposit_id,
        "kind": record.kind,
        "reason": record.reason,
        "signed_at": calls.time(record.signed_at),
        "receipt": bodies.b64(record.der),
    }
