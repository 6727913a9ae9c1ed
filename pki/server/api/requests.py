"""Certificate requests: submitted, followed, and proved."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from pki.core.certificates import RequestState
from pki.core.ids import RequestId
from pki.server.api import answers, bodies, calls
from pki.server.services import certificates

router = APIRouter(prefix="/v1/certificate-requests", tags=["certificates"])


class Proof(bodies.Message):
    """That the certificate could be decrypted."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@router.post(
    "",
    status_code=202,
    summary="Request a certificate",
    responses=answers.tells(answers.Submitted, 202),
    openapi_extra=bodies.takes_binary(bodies.PKCS10, "A certification request in DER"),
)
async def submit(call: calls.Signed) -> Response:
    """Take a request; the same bytes again are the same request."""
    bodies.expect(call.request, bodies.PKCS10)
    record = await calls.run(certificates.submit_request, call.deps, call.caller, call.body)
    path = f"/v1/certificate-requests/{record.id}"
    return calls.answer({"id": record.id, "state": record.state.value}, 202, Location=path)


@router.get("/{request_id}", summary="Follow a request", responses=answers.tells(answers.Request))
async def follow(call: calls.Signed, request_id: calls.Digest, wait: calls.Wait = 0) -> Response:
    """Return the request's state; with ``wait``, once it is decided."""

    async def look() -> certificates.RequestStatus:
        return await calls.run(certificates.status, call.deps, call.caller, RequestId(request_id))

    status = await call.until(
        [f"request:{request_id}"], wait, look, lambda found: found.request.state is not RequestState.PENDING
    )
    return calls.answer(request_object(status))


@router.post(
    "/{request_id}/proof",
    summary="Prove possession",
    responses=answers.tells(answers.Request),
    openapi_extra=bodies.takes(Proof),
)
async def prove(call: calls.Signed, request_id: calls.Digest) -> Response:
    """Show the digest of the certificate that came encrypted to its own key; it becomes active."""
    told = bodies.parse(call.request, call.body, Proof)
    status = await calls.run(certificates.prove, call.deps, call.caller, RequestId(request_id), told.sha256)
    return calls.answer(request_object(status))


def request_object(status: certificates.RequestStatus) -> dict[str, Any]:
    """Return a request as JSON; the service hides an encryption certificate until possession was proved."""
    record, certificate = status.request, status.certificate
    return {
        "id": record.id,
        "kind": record.kind.value,
        "address": str(record.address),
        "state": record.state.value,
        "reason": record.reason,
        "certificate": bodies.b64(certificate.der) if certificate is not None else None,
        "fingerprint": certificate.fingerprint if certificate is not None else None,
        "challenge": bodies.b64(record.challenge) if record.challenge is not None and certificate is None else None,
        "certificate_state": status.certificate_state.value if status.certificate_state is not None else None,
    }
