"""OCSP over HTTP (RFC 6960 §A.1, RFC 5019 §5): open to everybody, and bounded."""

from __future__ import annotations

import base64
import binascii
import hashlib
from datetime import datetime
from email.utils import format_datetime
from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from pki.core.errors import CertificateError, KeymailboxError, TooLargeError, UnavailableError
from pki.core.ocsp import MAX_REQUEST_BYTES, Refusal, refuse
from pki.server import metrics
from pki.server.api import answers, bodies, calls
from pki.server.api.gathering import Gathering
from pki.server.api.waiting import Waiting
from pki.server.services import ocsp
from pki.server.services.deps import Deps
from pki.server.services.ocsp import Prepared, Question

router = APIRouter(prefix="/v1/ocsp", tags=["authority"])

REQUEST, RESPONSE = "application/ocsp-request", "application/ocsp-response"

WAIT_SECONDS = 3.0
"""How long the issuer is waited for; then what was made before is good enough, or the client tries again later."""
_MOST_WAITING = 512
"""Clients of one process that wait for the issuer."""
_CACHED_SECONDS = 10
"""How long others may keep a response: no longer than a revocation takes to be seen."""
_NOT_KEPT = {"Cache-Control": "no-store"}


class Asking:
    """Where questions to the issuer are gathered, and how many clients wait for their answers; one for a process."""

    def __init__(self, deps: Deps, waiting: Waiting) -> None:
        self._deps = deps
        self._waiting = waiting
        self._gathering: Gathering[Question, bool] = Gathering(partial(ocsp.ask, deps))
        self._count = 0

    async def ask(self, request: Request, question: Question) -> bytes | None:
        """Return the issuer's answer, or None when there is no room or it does not come in time."""
        if self._count >= _MOST_WAITING:
            return None
        self._count += 1
        try:
            if not await self._gathering.submit(question):
                return None

            async def look() -> bytes | None:
                return await calls.run(ocsp.answered, self._deps, question)

            topics = [f"ocsp:{question.id}"]
            return await self._waiting.until(request, topics, WAIT_SECONDS, look, lambda found: found is not None)
        finally:
            self._count -= 1


@router.post(
    "",
    summary="The status of certificates",
    response_class=Response,
    responses=answers.tells_binary(RESPONSE, "An OCSPResponse in DER, or one that says why there is none."),
    openapi_extra=bodies.takes_binary(REQUEST, "An OCSPRequest in DER (RFC 6960 §4.1)"),
)
async def post(request: Request) -> Response:
    """Answer a request; with a nonce freshly, unless too many ask at once (RFC 9654 §2.1)."""
    bodies.expect(request, REQUEST)
    try:
        der = await bodies.read(request, MAX_REQUEST_BYTES)
    except TooLargeError:
        return _refuse(Refusal.MALFORMED)
    return await _answer(request, der)


@router.get(
    "/{encoded:path}",
    summary="The status of certificates, cacheable",
    response_class=Response,
    responses=answers.tells_binary(RESPONSE, "An OCSPResponse in DER, or one that says why there is none.", etag=True),
)
async def get(request: Request, encoded: str) -> Response:
    """Answer a request that stands in the path in base64 (RFC 5019 §5)."""
    try:
        der = base64.b64decode(encoded[: 2 * MAX_REQUEST_BYTES], validate=True)
    except (binascii.Error, ValueError):
        return _refuse(Refusal.MALFORMED)
    return await _answer(request, der)


async def _answer(request: Request, der: bytes) -> Response:
    deps = calls.deps_of(request)
    try:
        question = await calls.run(ocsp.read, deps, der)
        prepared = None
        if question.request.nonce is None:
            prepared, question = await calls.run(ocsp.prepared, deps, question)
        if prepared is None:
            asking: Asking = request.app.state.asking
            fresh = await asking.ask(request, question)
            if fresh is not None:
                metrics.ocsp_responses.labels("fresh").inc()
                return Response(fresh, 200, _NOT_KEPT, RESPONSE)
            prepared, _ = await calls.run(ocsp.prepared, deps, question)
    except CertificateError:
        return _refuse(Refusal.UNAUTHORIZED)
    except UnavailableError:
        return _refuse(Refusal.TRY_LATER)
    except KeymailboxError:
        return _refuse(Refusal.MALFORMED)
    if prepared is None:
        return _refuse(Refusal.TRY_LATER)
    metrics.ocsp_responses.labels("prepared").inc()
    return _cached(request, prepared, deps.clock.now())


def _cached(request: Request, prepared: Prepared, now: datetime) -> Response:
    """Return a response as RFC 5019 §6.2 wants it cached."""
    seconds = max(0, min(_CACHED_SECONDS, int((prepared.next_update - now).total_seconds())))
    policy = f"max-age={seconds}, public, no-transform, must-revalidate"
    answer = calls.cached(request, prepared.der, RESPONSE, hashlib.sha256(prepared.der).hexdigest()[:32], policy)
    answer.headers["Last-Modified"] = format_datetime(prepared.this_update, usegmt=True)
    answer.headers["Expires"] = format_datetime(prepared.next_update, usegmt=True)
    return answer


def _refuse(why: Refusal) -> Response:
    """Say why there is no response (RFC 6960 §4.2.1): with 200, as its readers expect, and not for caches."""
    metrics.ocsp_responses.labels(why.name.lower()).inc()
    return Response(refuse(why), 200, _NOT_KEPT, RESPONSE)
