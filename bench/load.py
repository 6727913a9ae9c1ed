"""HTTP load from one thread: requests are signed and written out before the clock runs."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pki.core import httpsig
from pki.tenant.agent import Agent, utc_now

_PATIENCE = 240.0
"""Seconds that one run of load may take."""


@dataclass
class Load:
    """What came of it: requests a second, the time to each answer in seconds, answers by status, and their bodies."""

    seconds: float
    times: list[float]
    statuses: Counter[int]
    bodies: list[bytes] = field(repr=False)

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return sum(count for status, count in self.statuses.items() if status < 300) / self.seconds

    def demand_good(self) -> Load:
        """Raise RuntimeError when an answer was no good one: a rate of refusals is no figure."""
        bad = {status: count for status, count in self.statuses.items() if status >= 300}
        if bad:
            shown = next(body for body in self.bodies if b'"status"' in body)[:300] if self.bodies else b""
            raise RuntimeError(f"answers that were not expected: {bad} {shown!r}")
        return self


def signed(
    agent: Agent,
    method: str,
    path: str,
    body: bytes = b"",
    content_type: str = "",
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Return one request of an agent, ready for the wire; it is good for five minutes, and once."""
    url = agent.context.server + path
    plain = dict(headers or {}) | ({"Content-Type": content_type} if content_type else {})
    plain |= httpsig.sign_request(
        method,
        url,
        plain,
        body,
        key_id=httpsig.key_id(agent.holder.access_public()),
        sign=agent.holder.sign_request,
        created=utc_now(),
        nonce=secrets.token_hex(16),
    )
    return plain_request(method, url, body, plain)


def plain_request(method: str, url: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """Return a request as it is written to the wire (RFC 9112 §3)."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    fields = {"Host": parts.netloc, "Content-Length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body


def run(server: str, requests: Sequence[bytes], clients: int) -> Load:
    """Send all requests over ``clients`` connections, each one after another, and wait for every answer."""
    return asyncio.run(_run(server, requests, clients))


def pace(server: str, requests: Sequence[bytes], rate: float, clients: int, stop: Callable[[], bool]) -> Load:
    """Send requests at ``rate`` a second as long as there are any, or until ``stop``; late ones follow at once."""
    begin = time.perf_counter()

    async def due() -> AsyncIterator[bytes]:
        for number, request in enumerate(requests):
            await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
            if stop():
                return
            yield request

    return asyncio.run(_run(server, due(), clients))


async def _run(server: str, requests: Sequence[bytes] | AsyncIterator[bytes], clients: int) -> Load:
    parts = urlsplit(server)
    load = Load(0.0, [], Counter(), [])
    waiting = _Line(requests)
    streams = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(clients)]
    began = time.perf_counter()
    try:
        async with asyncio.timeout(_PATIENCE):
            await asyncio.gather(*(_client(reader, writer, waiting, load) for reader, writer in streams))
    finally:
        load.seconds = time.perf_counter() - began
        for _, writer in streams:
            writer.close()
    return load


class _Line:
    """What all clients take their next request from, one after another."""

    def __init__(self, requests: Sequence[bytes] | AsyncIterator[bytes]) -> None:
        self._requests = requests if isinstance(requests, AsyncIterator) else _each(requests)
        self._turn = asyncio.Lock()

    async def take(self) -> bytes | None:
        """Return the next request, None after the last."""
        async with self._turn:
            return await anext(self._requests, None)


async def _each(requests: Sequence[bytes]) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


async def _client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: _Line, load: Load) -> None:
    while (request := await waiting.take()) is not None:
        began = time.perf_counter()
        writer.write(request)
        status, body = await _answer(reader)
        load.times.append(time.perf_counter() - began)
        load.statuses[status] += 1
        load.bodies.append(body)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    fields = head.lower()
    place = fields.find(b"content-length:")
    if place < 0:
        raise RuntimeError(f"an answer without a length: {head[:200]!r}")
    size = int(fields[place + 15 : fields.index(b"\r\n", place)])
    return status, await reader.readexactly(size) if size else b""
