"""Connections with limits: a request that others may see end elsewhere is refused, who asks or takes nothing cut off.

What is refused here is answered in bare text, with a warning in the log; the routes, and the figures, do not see it.
What is taken although it is not quite HTTP is in ADR 28.
"""

from __future__ import annotations

import asyncio

import httptools
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD_SECONDS = 30.0
"""From the connection, or the last answer, to the end of the next request's head, once anything of it has come."""
STALLED_SECONDS = 30.0
"""How long what the kernel did not take at once waits for its reader, also when the connection is closed meanwhile."""
MOST_HEAD = 64 * 1024
"""Bytes of a request's head; also of whatever else comes without being a piece of a body, such as trailers."""
_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE"})
"""HTTP's, without CONNECT (RFC 9110 §9, RFC 5789). Those of RTSP and others, which llhttp knows too, are refused."""


class _RefusedError(Exception):
    """A request that is not answered by a route; it leaves the parser as the cause of its error."""

    def __init__(self, status: int = 400) -> None:
        self.status = status


class Connection(HttpToolsProtocol):
    """uvicorn's protocol on llhttp, with what llhttp leaves open (ADR 28), and with two deadlines more.

    The deadline for bodies is where bodies are read.
    """

    _head: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _kept = 0
    """Bytes since the last that were of use: the parser may keep them all."""
    _in_body = False
    _last = False
    """Nothing that comes now is read: this connection ends with the answer that is under way."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Wait for a request, and not for ever."""
        super().connection_made(transport)
        # From the first byte: closing waits for a reader as well, and for ever.
        transport.set_write_buffer_limits(high=0)
        self._head = self.loop.call_later(HEAD_SECONDS, self._cut)

    def data_received(self, data: bytes) -> None:
        """Read; a head that drips is cut off as well."""
        self._unset_keepalive_if_required()
        self._kept += len(data)
        if not self._last:
            self._read(data)
        if self._kept > MOST_HEAD and not self.transport.is_closing():
            if self._last:
                self._cut()
            else:
                self._refuse(431)
        if self._under_way():
            self._head = _cancel(self._head)
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self._cut)

    def pause_writing(self) -> None:
        """There is something in the buffer: its reader has a while to take it."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALLED_SECONDS, self._cut)

    def resume_writing(self) -> None:
        """All of it is taken."""
        super().resume_writing()
        self._stalled = _cancel(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._head = _cancel(self._head)
        self._stalled = _cancel(self._stalled)
        super().connection_lost(exc)

    # The parser's calls

    def on_message_begin(self) -> None:
        """A request begins; one that does not wait for the answer before it is left unread."""
        if self._under_way():
            # uvicorn would keep all that a read has brought, and not tell the first when its client is gone.
            self._end_after_answer()
            raise _RefusedError
        self._in_body = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head; trailers are nobody's (RFC 9110 §6.5.1)."""
        if not self._in_body:
            # llhttp leaves blanks at the end. A coding with a tab there it refuses too late: once its head was taken.
            coding = name.lower() == b"transfer-encoding"
            super().on_header(name, value if coding else value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """Refuse what others might read in another way, and start what is left."""
        self._check()
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # RFC 9110 §10.1.1
            self.app = self._answer_1_0
        super().on_headers_complete()
        # Taken apart as it is written: uvicorn's way loses a fragment, which routes refuse.
        raw_path, _, query = self.url.partition(b"?")
        self.scope["raw_path"], self.scope["query_string"] = raw_path, query
        self._kept = 0
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._kept = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete, and what comes now is the next."""
        self._kept = 0
        super().on_message_complete()

    # What comes of it

    def _check(self) -> None:
        version, size, hosts, codings, length = self.parser.get_http_version(), len(self.url), 0, [], b"0"
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                codings.append(value.lower())
            elif name == b"content-length":
                length = value
        if size > MOST_HEAD:
            raise _RefusedError(431)
        # llhttp takes also 0.9 and 2.0, and does not ask for a host.
        if not (version == "1.1" and hosts == 1) and not (version == "1.0" and hosts <= 1 and not codings):
            raise _RefusedError
        # What else is written there is a coding that nobody undoes; llhttp looks at the last alone.
        if codings not in ([], [b"chunked"]):
            raise _RefusedError
        # For a switch of protocols llhttp stops here, and would read the body as the next request.
        if self.parser.should_upgrade() and (codings or length != b"0"):
            raise _RefusedError
        # The other forms are for proxies (RFC 9112 §3.2).
        if self.parser.get_method() not in _METHODS or not self.url.startswith(b"/"):
            raise _RefusedError

    async def _answer_1_0(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer who knows no chunks (RFC 9112 §6.1): what has no length ends with the connection."""
        cycle, has_length = self.cycle, True

        async def told(message: Message) -> None:
            nonlocal has_length
            if message["type"] == "http.response.start":
                has_length = any(name.lower() == b"content-length" for name, _ in message["headers"])
                if not has_length:
                    cycle.chunked_encoding = False
            elif not has_length:
                # uvicorn wants a length then: each piece is as long as it is.
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await self.config.loaded_app(scope, receive, told)

    def _read(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Answered as if it had not asked. llhttp has lost where the next request begins.
            self._end_after_answer()
        except httptools.HttpParserError as error:
            if not self._last:
                cause = error.__context__
                self._refuse(cause.status if isinstance(cause, _RefusedError) else 400)

    def _under_way(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _end_after_answer(self) -> None:
        self._last = True
        self.cycle.keep_alive = False
        if self.cycle.response_complete:
            self.transport.close()

    def _refuse(self, status: int) -> None:
        self.logger.warning("Invalid HTTP request received.")
        if self._under_way():
            started = self.cycle.response_started
            # Whoever is at work hears that nobody waits for it any more.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if started:
                self._cut()
                return
        text = b"Invalid HTTP request received."
        fields = (b"content-type: text/plain; charset=utf-8", b"content-length: %d" % len(text), b"connection: close")
        self.transport.write(STATUS_LINE[status] + b"\r\n".join([*fields, b"", text]))
        self.transport.close()

    def _cut(self) -> None:
        # Not closed in order: that would wait for what is in the buffer.
        self.transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
