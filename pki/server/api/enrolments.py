"""Enrolment: an invitation becomes an instance."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from pki.core.tenants import parse_address
from pki.server.api import answers, bodies, calls
from pki.server.services import access

router = APIRouter(prefix="/v1/enrolments", tags=["enrolment"])


class Enrolment(bodies.Message):
    """What an invited instance says of itself."""

    reference: Annotated[str, Field(max_length=200, pattern="^[!-~]+$")]
    secret: Annotated[str, Field(max_length=200, pattern="^[!-~]+$", repr=False)]
    address: Annotated[str, Field(max_length=80)]
    access_key: bodies.Base64
    identity_request: bodies.Base64


@router.post(
    "",
    status_code=201,
    summary="Enrol an instance",
    responses=answers.tells(answers.Enrolled, 201),
    openapi_extra=bodies.takes(Enrolment),
)
async def enrol(request: Request) -> Response:
    """Use an invitation, once; the request is signed with the access key that it brings."""
    deps = calls.deps_of(request)
    body = await calls.signed_body(request, deps.settings)
    told = bodies.parse(request, body, Enrolment)
    await calls.run(
        access.authenticate_enrolment,
        deps,
        request.method,
        calls.url(request),
        calls.headers(request),
        body,
        told.access_key,
    )
    enrolment = access.Enrolment(
        reference=told.reference,
        secret=told.secret,
        address=parse_address(told.address),
        access_key=told.access_key,
        identity_request=told.identity_request,
    )
    result = await calls.run(access.enroll, deps, enrolment)
    return calls.answer(
        {
            "address": str(result.instance.address),
            "request_id": result.request_id,
            "access_key_id": result.instance.access_key_id,
        },
        201,
    )
