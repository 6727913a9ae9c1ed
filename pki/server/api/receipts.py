"""Receipts and refusals: handed in by the recipient, fetched by the sender."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from pki.core.errors import KeymailboxError
from pki.server.api import answers, bodies, calls, problems
from pki.server.facts import ReceiptRecord
from pki.server.services import mailbox, receipts

router = APIRouter(prefix="/v1", tags=["receipts"])


class Answer(bodies.Message):
    """One answer: a SignedData over KeyPackageReceipt or KeyPackageError, in DER and base64."""

    deposit_id: bodies.AnyId
    receipt: bodies.Base64Text


class Answers(bodies.Message):
    """Answers to hand in together."""

    items: Annotated[list[Answer], Field(min_length=1, max_length=100)]


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
    result = await call.answering.submit((call.caller, deposit_id, call.body))
    if isinstance(result, KeymailboxError):
        raise result
    return calls.answer(receipt_object(result), 201, Location=f"/v1/deposits/{deposit_id}/receipt")


@router.post(
    "/receipts",
    summary="Hand in receipts and refusals",
    responses=answers.tells(answers.HandedIn),
    openapi_extra=bodies.takes(Answers),
)
async def hand_in_many(call: calls.Signed) -> Response:
    """Store answers that the recipient signed, by one commit; each is told for itself, in the order given."""
    told = bodies.parse(call.request, call.body, Answers)
    # What is no base64 is no receipt either: it is told for itself, as other bytes that cannot be read are.
    items = [(call.caller, item.deposit_id, bodies.unb64(item.receipt) or b"") for item in told.items]
    results = await calls.run(receipts.answer_all, call.deps, items)
    return calls.answer({"items": [_item(name, result) for (_, name, _), result in zip(items, results, strict=True)]})


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


def _item(deposit_id: str, result: ReceiptRecord | KeymailboxError) -> dict[str, Any]:
    if isinstance(result, KeymailboxError):
        return {"deposit_id": deposit_id, "error": problems.problem(result)}
    return {"deposit_id": deposit_id, "kind": result.kind}


def receipt_object(record: ReceiptRecord) -> dict[str, Any]:
    """Return a receipt as JSON."""
    return {
        "deposit_id": record.deposit_id,
        "kind": record.kind,
        "reason": record.reason,
        "signed_at": calls.time(record.signed_at),
        "receipt": bodies.b64(record.der),
    }
