"""Attack 36: somebody holds streams and sockets open; others do not notice, and the server's memory does not grow."""

from __future__ import annotations

import asyncio
import resource
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from pki.core import httpsig
from pki.tenant.agent import Agent, utc_now
from tests.kit.members import Members, signed_call
from tests.kit.processes import Installation, wait_until
from tests.kit.services import Services, drop_database, new_database

_FILES = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 20_000)
"""What this process, and the server after it, may have open."""
IDLE = min(4000, _FILES // 2)
"""Sockets that say nothing."""
STREAMS = min(1000, _FILES // 4)
"""Streams, signed and idle: 5,000 sockets together, where so many may be open."""
_ROOM = 96 * 1024 * 1024
"""Bytes that all of them may cost the server."""


@pytest.fixture
def server(services: Services, tmp_path: Path) -> Iterator[Installation]:
    """The API, and who issues certificates, with room for many streams of each tenant."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    database = new_database(services.postgres.url)
    try:
        with Installation(tmp_path / "held", database, services.rabbitmq.url) as installed:
            installed.variables["KMB_WAITING_PER_ADDRESS"] = str(STREAMS)
            installed.variables["KMB_WAITING_PER_TENANT"] = str(STREAMS)
            installed.start("api", "relay", "issuer", "sequencer")
            yield installed
    finally:
        drop_database(database)


def resident(server: Installation) -> int:
    """Return the API's memory in bytes."""
    pages = Path(f"/proc/{server.running['api'].process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


async def opened(agent: Agent, count: int, wait: float = 60) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open streams, each with a signature of its own, and read where each begins."""
    url = f"{agent.context.server}/v1/events/stream"
    host = httpx2.URL(url).netloc.decode()
    gate = asyncio.Semaphore(16)

    async def one() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with gate:
            signed = httpsig.sign_request(
                "GET",
                url,
                {},
                b"",
                key_id=httpsig.key_id(agent.holder.access_public()),
                sign=agent.holder.sign_request,
                created=utc_now(),
                nonce=secrets.token_hex(16),
            )
            head = "".join(f"{name}: {value}\r\n" for name, value in ({"Host": host} | signed).items())
            reader, writer = await asyncio.open_connection("127.0.0.1", int(host.rpartition(":")[2]))
            writer.write(f"GET /v1/events/stream HTTP/1.1\r\n{head}\r\n".encode())
            try:
                answer = await asyncio.wait_for(reader.readuntil(b"\nretry: 1000"), wait)
            except BaseException:
                writer.close()
                raise
            assert answer.startswith(b"HTTP/1.1 200"), answer
            return reader, writer

    return list(await asyncio.gather(*(one() for _ in range(count))))


def test_held_sockets_and_streams_cost_nobody_else_anything(server: Installation, tmp_path: Path) -> None:
    """4,000 silent sockets and 1,000 idle streams: the next stream is refused, others' calls go on, memory stays."""
    with Members(server, tmp_path / "homes") as members:
        flood, other = members.enrol("flood/kms"), members.enrol("acme/kms")
        assert signed_call(other, "GET", "/v1/events").status_code == 200
        before = resident(server)
        sockets = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(IDLE)]

        async def attack() -> None:
            streams = await opened(flood, STREAMS)
            refused = await asyncio.to_thread(signed_call, flood, "GET", "/v1/events/stream")
            assert (refused.status_code, refused.json()["code"]) == (429, "busy")
            for _ in range(20):
                answer = await asyncio.to_thread(signed_call, other, "GET", "/v1/events")
                assert answer.status_code == 200
            assert resident(server) - before < _ROOM, (before, resident(server))
            for _, writer in streams:
                writer.close()
            for _, writer in streams:
                await writer.wait_closed()

        asyncio.run(attack())
        try:
            # The silent ones are cut off by then, and the places of the others are free again.
            end = time.monotonic() + 60
            for one in sockets:
                one.settimeout(max(0.1, end - time.monotonic()))
                assert one.recv(1) == b""
        finally:
            for one in sockets:
                one.close()
        wait_until(lambda: asyncio.run(again(flood)))


async def again(agent: Agent) -> bool:
    """Tell whether there is a place for a stream again."""
    try:
        [(_, writer)] = await opened(agent, 1, wait=10)
    except (OSError, asyncio.IncompleteReadError):
        return False
    writer.close()
    await writer.wait_closed()
    return True
