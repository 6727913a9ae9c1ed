"""Server-sent events (WHATWG HTML §9.2): what the page of events tells, as it happens, page by page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from pki.core.errors import UsageError
from pki.core.events import EventType
from pki.server.api import calls, shares
from pki.server.facts import SequencedEvent
from pki.server.services import notices

MEDIA_TYPE = "text/event-stream"
LONGEST_SECONDS = 900.0
"""A stream ends by then, and its client signs anew: a key that was taken away is noticed."""
HEARTBEAT_SECONDS = 15.0
RETRY_MILLISECONDS = 1000
_PAGE = 100
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_DIGITS = 19


class EventStream(EventSourceResponse):
    """The events past a position that an instance may hear of. It holds a place, and neither thread nor transaction."""

    def __init__(self, call: calls.Call, after: int, kind: EventType | None) -> None:
        """``kind`` leaves out events of other types."""
        self._call = call
        self._told = _tell(call, after, kind)
        super().__init__(self._told, headers=_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer until the deadline, the server's end, or the client's."""
        shares.rest(self._call.request)
        with self._call.places.one(self._call.address):
            async with aclosing(self._told):
                await super().__call__(scope, receive, send)


def position(text: str | None) -> int | None:
    """Return the position in a Last-Event-ID; UsageError for what is none."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) < 1 << 62):
        raise UsageError("Last-Event-ID is not a position of ours", on=text[:40], hint="send the id of the last event")
    return int(text)


async def _tell(call: calls.Call, after: int, kind: EventType | None) -> AsyncGenerator[bytes, None]:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LONGEST_SECONDS
    own = str(call.address)
    with call.waiting.listening([notices.topic(own), notices.RUNG]) as rung:
        # The first thing that a client learns is where it is.
        yield format_sse_event(id=str(after), retry=RETRY_MILLISECONDS)
        while True:
            # Cleared before looking: a ring between the look and the wait is not missed.
            rung.clear()
            # Types are sorted out here: what ends the stream is seen whatever the client asked for.
            found, following = await calls.run(notices.page, call.deps, call.caller, after, _PAGE)
            wanted = [item for item in found if kind in (None, item.event.type)]
            if wanted:
                yield b"".join(_encoded(call, item) for item in wanted)
            if following > max([after, *(item.position for item in wanted)]):
                yield format_sse_event(id=str(following))
            after = following
            if any(item.event.type is EventType.CERTIFICATE_REVOKED for item in found):
                # The access key may be gone with it: who goes on listening signs again.
                return
            remaining = deadline - loop.time()
            if remaining <= 0 or call.waiting.closed:
                return
            if len(found) == _PAGE:
                continue
            try:
                await asyncio.wait_for(rung.wait(), min(remaining, HEARTBEAT_SECONDS))
            except TimeoutError:
                yield format_sse_event(comment="")


def _encoded(call: calls.Call, item: SequencedEvent) -> bytes:
    told = {**notices.cloudevent(call.deps, item), "position": item.position}
    data = json.dumps(told, separators=(",", ":"))
    return format_sse_event(id=str(item.position), event=item.event.type.value, data_str=data)
