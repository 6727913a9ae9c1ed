"""The shared dependency of signed routes: body under the cap, signature checked, services run in the thread pool."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ParamSpec, TypeVar

import structlog
from fastapi import Depends, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from pki.core.errors import AccessError, KeymailboxError, UsageError
from pki.core.tenants import Address, parse_address
from pki.server.api import bodies
from pki.server.api.gathering import Gathering
from pki.server.api.waiting import Waiting
from pki.server.ports import Caller
from pki.server.services import access
from pki.server.services.deposits import Accepted, Incoming
from pki.server.services.deps import Deps
from pki.server.settings import Settings

Accepting = Gathering[tuple[Caller, Incoming], Accepted | KeymailboxError]

P = ParamSpec("P")
T = TypeVar("T")

Wait = Annotated[float, Query(ge=0, description="Seconds to wait for news, cut to the server's limit")]
Limit = Annotated[int, Query(ge=1, le=500, description="The most items of a page")]
Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="A SHA-256 in hex")]
Id = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="An id in hex")]
Label = Annotated[str, Path(max_length=31)]
Cursor = Annotated[str, Query(pattern="^[0-9a-f]{0,32}$", description="What the last page gave as next")]
Position = Annotated[int, Query(ge=0, le=2**62 - 1, description="The number of the last item seen")]


@dataclass(frozen=True)
class Call:
    """One authenticated request."""

    caller: Caller
    body: bytes
    request: Request
    deps: Deps

    @property
    def address(self) -> Address:
        """The caller's address."""
        return self.caller.instance.address

    @property
    def waiting(self) -> Waiting:
        """Where to wait for news."""
        waiting: Waiting = self.request.app.state.waiting
        return waiting

    @property
    def accepting(self) -> Accepting:
        """Where deposits that arrive together are gathered."""
        accepting: Accepting = self.request.app.state.accepting
        return accepting

    def seconds(self, wait: float) -> float:
        """Return how long this request may wait."""
        return min(wait, self.deps.settings.long_poll_max)


def deps_of(request: Request) -> Deps:
    """Return what the services need."""
    deps: Deps = request.app.state.deps
    return deps


async def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a service in the thread pool."""
    return await run_in_threadpool(function, *args, **kwargs)


async def signed(request: Request) -> Call:
    """Authenticate a request (RFC 9421). Raises AccessError, ReplayedError, TooLargeError, UnavailableError."""
    deps = deps_of(request)
    body = await signed_body(request, deps.settings)
    caller = await run(access.authenticate, deps, request.method, url(request), headers(request), body)
    structlog.contextvars.bind_contextvars(caller=str(caller.instance.address))
    return Call(caller, body, request, deps)


async def signed_body(request: Request, settings: Settings) -> bytes:
    """Read the body of a request that claims to be signed for this server; others are turned away unread."""
    if not request.headers.get("signature") or not request.headers.get("signature-input"):
        raise AccessError("The request is not signed", on="signature-input", hint="sign it as RFC 9421 says; kmb does")
    if request.headers.get("host", "").lower() not in settings.authorities:
        raise AccessError(
            "The request is meant for another host", on=settings.url, hint=f"use the server's address {settings.url}"
        )
    if "#" in url(request):
        # A fragment is cut off by who verifies and read as query by who routes.
        raise UsageError("The request target has a fragment", hint="write # as %23")
    return await bodies.read(request, settings.max_body_bytes)


def url(request: Request) -> str:
    """Return the URL as the client wrote it: the signature covers these very characters."""
    path = request.scope.get("raw_path") or request.scope["path"].encode()
    query = request.scope.get("query_string", b"")
    host = request.headers.get("host", "")
    return f"{request.scope['scheme']}://{host}{path.decode('latin-1')}" + (
        f"?{query.decode('latin-1')}" if query else ""
    )


def headers(request: Request) -> dict[str, str]:
    """Return the header fields, names in lower case, repeated ones joined (RFC 9110 §5.3)."""
    joined: dict[str, str] = {}
    for name, value in request.headers.items():
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def answer(content: object, status: int = 200, **fields: str) -> Response:
    """Return JSON; keyword names become header fields, ``_`` a hyphen."""
    named = {"Cache-Control": "no-store"} | {name.replace("_", "-"): value for name, value in fields.items()}
    return Response(json.dumps(content, separators=(",", ":")), status, named, bodies.JSON)


def cached(request: Request, content: bytes, media_type: str, etag: str, cache_control: str) -> Response:
    """Return content with an ETag, or 304 when the client has it (RFC 9110 §13.1.2)."""
    quoted = f'"{etag}"'
    fields = {"ETag": quoted, "Cache-Control": cache_control}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if quoted in known or "*" in known:
        return Response(status_code=304, headers=fields)
    return Response(content, 200, fields, media_type)


def cached_json(request: Request, told: Mapping[str, Any]) -> Response:
    """Return JSON with an ETag of its own content, for this caller alone."""
    body = json.dumps(told, separators=(",", ":")).encode()
    return cached(request, body, bodies.JSON, hashlib.sha256(body).hexdigest()[:32], "private, no-cache")


def expect_nothing(call: Call) -> None:
    """Raise UsageError for a body where none is read."""
    if call.body not in (b"", b"{}"):
        raise UsageError("This request takes no body", hint="send it without a body")


def address_in(tenant: str, instance: str) -> Address:
    """Return the address that a path names; raises BadAddressError."""
    return parse_address(f"{tenant}/{instance}")


def time(moment: datetime) -> str:
    """Return a time as RFC 3339 in UTC."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def maybe_time(moment: datetime | None) -> str | None:
    """Return a time or null."""
    return None if moment is None else time(moment)


Signed = Annotated[Call, Depends(signed)]
