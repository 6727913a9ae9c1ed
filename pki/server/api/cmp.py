"""CMP over HTTP (RFC 9811): a message is posted, its answer comes back; the process that issues makes it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from pki.core.cmp.messages import MAX_MESSAGE
from pki.core.errors import NotFoundError, UnavailableError
from pki.server.api import answers, bodies, calls
from pki.server.api.waiting import Waiting
from pki.server.services.cmp import exchanges

router = APIRouter(prefix="/.well-known/cmp", tags=["cmp"])

PKIXCMP = "application/pkixcmp"
_WAIT_SECONDS = 25.0


@router.post(
    "",
    summary="Exchange CMP messages",
    response_class=Response,
    responses=answers.tells_binary(PKIXCMP, "The PKIMessage that answers, in DER."),
    openapi_extra=bodies.takes_binary(PKIXCMP, "A PKIMessage in DER"),
)
async def exchange(request: Request) -> Response:
    """Answer a message; the same bytes again get the same answer, and 503 says that they should come again."""
    bodies.expect(request, PKIXCMP)
    deps = calls.deps_of(request)
    body = await bodies.read(request, MAX_MESSAGE)
    stored = await calls.run(exchanges.submit, deps, body)
    waiting: Waiting = request.app.state.waiting

    async def look() -> bytes | None:
        return await calls.run(exchanges.look, deps, stored.digest)

    seconds = min(_WAIT_SECONDS, deps.settings.long_poll_max)
    found = await waiting.until(request, [f"cmp:{stored.digest}"], seconds, look, lambda answer: answer is not None)
    if found is None:
        raise UnavailableError("The CA does not answer now", hint="send the same message again")
    return Response(found, 200, {"Cache-Control": "no-cache"}, PKIXCMP)


@router.post(
    "/p/{label}", summary="Exchange CMP messages of a profile", responses=answers.tells_binary(PKIXCMP, "None.")
)
async def profile(label: str) -> Response:
    """Answer that there are no such profiles (RFC 9811 §3.4): what is asked for says which certificate it is."""
    raise NotFoundError("There are no CMP profiles here", on=label[:40], hint="openssl cmp -path .well-known/cmp")
