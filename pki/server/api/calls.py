"""The shared dependency of signed routes: body under the cap, signature checked, services run in the thread pool."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
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
from pki.server import tracing
from pki.server.api import bodies, shares
from pki.server.api.entrance import SMALL, Entrance
from pki.server.api.gathering import Gathering
from pki.server.api.places import Places
from pki.server.api.problems import UNSPENT
from pki.server.api.shares import LARGE, STRANGERS
from pki.server.api.waiting import Waiting
from pki.server.facts import Caller, ReceiptRecord
from pki.server.services.calls import Ticket
from pki.server.services.deposits import Accepted, Arrival
from pki.server.services.deps import Deps
from pki.server.services.receipts import Answer
from pki.server.settings import Settings

Answering = Gathering[Answer, ReceiptRecord | KeymailboxError]
FEW = 20
"""So many items are written between two other requests."""
_READING = frozenset({"GET", "HEAD"})

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
    """One authenticated request; ``ticket`` is spent, unless whoever asked for it `verified` spends it."""

    ticket: Ticket
    body: bytes
    request: Request
    deps: Deps

    @property
    def caller(self) -> Caller:
        """Who signed."""
        return self.ticket.caller

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
    def places(self) -> Places:
        """The places of who waits."""
        places: Places = self.request.app.state.places
        return places

    @property
    def entrance(self) -> Entrance:
        """Where signed requests come in, and deposits are gathered."""
        return entrance_of(self.request)

    async def spend(self) -> None:
        """Use up the ticket of one that was only `verified`. Raises AccessError, ReplayedError, UnavailableError."""
        self._spent()
        await self.entrance.spend(self.ticket, reading=self.request.method in _READING)

    async def poll(self) -> int:
        """Return the last number in the caller's own mailbox, and spend the ticket with it; raises as `spend` does."""
        self._spent()
        return await self.entrance.poll(self.ticket)

    def _spent(self) -> None:
        self.request.scope.pop(UNSPENT, None)

    async def hand(self, items: Sequence[Arrival | KeymailboxError]) -> list[Accepted | KeymailboxError]:
        """Hand in deposits that were read, and spend the ticket with them; one answer for each.

        What is wrong goes this way too: such a request is good once as well. Raises what is wrong with the ticket, and
        UnavailableError.
        """
        self._spent()
        return await self.entrance.accept(items, self.ticket)

    async def briefly(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what takes time for each byte of the body: here when there are few, else in the thread pool."""
        return function(*args, **kwargs) if len(self.body) <= SMALL else await run(function, *args, **kwargs)

    @property
    def answering(self) -> Answering:
        """Where receipts that arrive together are gathered."""
        answering: Answering = self.request.app.state.answering
        return answering

    async def until(
        self, topics: Collection[str], wait: float, look: Callable[[], Awaitable[T]], enough: Callable[[T], bool]
    ) -> T:
        """Return what ``look`` finds, once it is ``enough``, or after ``wait`` seconds, cut to the server's limit.

        Raises BusyError when there is something to wait for, and no place.
        """
        seconds = min(wait, self.deps.settings.long_poll_max)
        if seconds <= 0:
            return await look()
        with self.places.one(self.address):
            return await self.waiting.until(self.request, topics, seconds, look, enough)


def deps_of(request: Request) -> Deps:
    """Return what the services need."""
    deps: Deps = request.app.state.deps
    return deps


def entrance_of(request: Request) -> Entrance:
    """Return where signed requests come in."""
    entrance: Entrance = request.app.state.entrance
    return entrance


async def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a service in the thread pool."""
    return await run_in_threadpool(tracing.wrapped(function), *args, **kwargs)


async def signed(request: Request) -> Call:
    """Authenticate a request (RFC 9421). Raises AccessError, ReplayedError, TooLargeError, UnavailableError."""
    call = await verified(request)
    await call.spend()
    return call


async def stranger(request: Request) -> None:
    """Wait for the turn of a request that anybody may make, among those from its address. Raises BusyError."""
    await entrance_of(request).shares.turn(request.scope, STRANGERS + _peer(request))


def _is_large(named: Mapping[str, str]) -> bool:
    declared = named.get("content-length", "")
    return "transfer-encoding" in named if not declared else not declared.isdigit() or int(declared[:19]) > SMALL


def _peer(request: Request) -> str:
    return request.client.host if request.client else ""


async def verified(request: Request, largest: int | None = None) -> Call:
    """Check a request's signature and no more: whoever asks for this spends the ticket with what it is for.

    ``largest`` is how many bytes of a body are read, where that is not the settings' usual limit.
    """
    deps, entrance = deps_of(request), entrance_of(request)
    named = headers(request)
    # Refused by what it says of itself, before its body is read; counted for whom it is proved to be from.
    entrance.look(named)
    if _is_large(named):
        # Reading takes long, and whose it is, is not proved yet.
        await entrance.shares.turn(request.scope, LARGE + _peer(request))
    body = await signed_body(request, deps.settings, largest)
    shares.end(request.scope)
    ticket = await entrance.verify(request.method, url(request), named, body)
    instance = ticket.caller.instance
    await entrance.take_turn(request.scope, ticket, len(body))
    structlog.contextvars.bind_contextvars(caller=str(instance.address))
    call = Call(ticket, body, request, deps.scoped([instance.tenant]))
    request.scope[UNSPENT] = call.spend
    return call


async def _verified(request: Request) -> Call:
    return await verified(request)


async def signed_body(request: Request, settings: Settings, largest: int | None = None) -> bytes:
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
    return await bodies.read(request, largest or settings.max_body_bytes)


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


async def long_answer(content: object, items: int) -> Response:
    """Return JSON of so many items; of many in the thread pool, where it holds up no other request."""
    return answer(content) if items <= FEW else await run(answer, content)


def cached(request: Request, content: bytes, media_type: str, etag: str, cache_control: str) -> Response:
    """Return content with an ETag, or 304 when the client has it (RFC 9110 §13.1.2)."""
    known = unchanged(request, etag, cache_control)
    return known or Response(content, 200, {"ETag": f'"{etag}"', "Cache-Control": cache_control}, media_type)


def unchanged(request: Request, etag: str, cache_control: str) -> Response | None:
    """Return 304 when the client has what this ETag names."""
    quoted = f'"{etag}"'
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if quoted not in known and "*" not in known:
        return None
    return Response(status_code=304, headers={"ETag": quoted, "Cache-Control": cache_control})


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


def moment(given: datetime | None, field: str) -> datetime | None:
    """Return a time that a client names, to the second in UTC; raises UsageError for one without a zone."""
    if given is None:
        return None
    # Of the year 9999 some hours are not there in UTC, and more are not where the recipient is.
    if given.tzinfo is not None and 2000 <= given.year < 9999:
        return given.astimezone(UTC).replace(microsecond=0)
    raise UsageError("A time has a zone", on=field, hint=f"{field}: 2030-01-31T12:00:00Z")


def maybe_time(moment: datetime | None) -> str | None:
    """Return a time or null."""
    return None if moment is None else time(moment)


Signed = Annotated[Call, Depends(signed)]
Verified = Annotated[Call, Depends(_verified)]
