"""Workers at full strength: a backlog of deposits drained through RabbitMQ, and webhooks posted, beside bare costs."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import httpx2

from bench import bare, reading
from bench.figures import Figure, beside, within
from bench.sites import composed, embedded, enrolled
from pki.core.events import EventType
from pki.server import bootstrap
from pki.server.facts import Caller
from pki.server.services import notices, webhooks
from pki.server.services.deposits import Accepted, Incoming, accept
from pki.server.services.deps import Deps
from pki.server.services.events import event
from pki.server.settings import load_settings
from pki.server.store import events as event_store
from pki.server.store import tenants
from pki.server.store.engine import Store
from pki.tenant.agent import Agent
from pki.tenant.enrolment import Invitation
from tests.kit.daemons import NOBODY
from tests.kit.mail import ACME, Office
from tests.kit.processes import Installation, wait_until
from tests.kit.services import logins
from workers.handlers import Hands

_HOOKS = 10
_MEMORY_GOAL = 120.0
_PATIENCE = 600.0


def bare_verifications(seconds: float = 2.0) -> list[Figure]:
    """Return ML-DSA-65 verifications a second, on one core and on all: what validating is measured beside."""
    return [
        Figure("bare: ML-DSA-65 verifications, one core", bare.verifications(seconds), "1/s"),
        Figure("bare: ML-DSA-65 verifications, all cores", verifications_on_all_cores(seconds), "1/s"),
    ]


def validation(
    folder: Path, database: str, broker: str, deposits: int, verifications: Sequence[Figure]
) -> list[Figure]:
    """Return deposits validated a second, all checks included, from a backlog, by one worker process and by two.

    ``database`` is empty and on PostgreSQL, ``broker`` is RabbitMQ. Relay and workers are processes of their own; the
    database, the broker and they share the machine, as the bare ``verifications`` on all of its cores do not.
    """
    installation = Installation(folder, database, broker, direct=True)
    figures: list[Figure] = []
    _, login = logins(database)
    with installation:
        installation.start()
        agents = [_enrolled(installation, address, folder) for address in ("acme/bench", "globex/bench")]
        sender, recipient = agents
        bodies = composed(sender, recipient, 2 * deposits)
        for agent in agents:
            agent.close()
        installation.stop()
        deps = bootstrap.build(load_settings(home=installation.home, database_url=login))
        try:
            titles = ("one worker process", "two worker processes")
            for count, (title, ceiling) in enumerate(zip(titles, verifications, strict=True), 1):
                _backlog(deps, sender, bodies[(count - 1) * deposits : count * deposits])
                rate, memory = _drained(installation, count)
                goal = 0.75 if count == 2 else None
                figures.append(
                    beside(f"PostgreSQL + RabbitMQ: deposits validated, {title}", rate, "1/s", ceiling.value, goal)
                )
                name = f"memory after {deposits} deposits, {title}"
                figures.append(within(name, memory, "MB", _MEMORY_GOAL, memory / _MEMORY_GOAL, 1.0))
        finally:
            deps.store.close()
    return figures


def embedded_validation(folder: Path, deposits: int, verifications: Sequence[Figure]) -> list[Figure]:
    """Return deposits validated a second from a backlog by ``kmb-server dev``: one process, beside one core."""
    with embedded(folder) as site:
        sender = site.agent("acme/bench")
        bodies = composed(sender, site.agent("globex/bench"), deposits)
        database = site.database
    deps = bootstrap.build(load_settings(home=folder / "server", database_url=database))
    try:
        _backlog(deps, sender, bodies)
    finally:
        deps.store.close()
    begun = datetime.now(UTC)
    with embedded(folder):
        wait_until(lambda: reading.left(database, "validate") == 0, _PATIENCE)
    rate = reading.validated(database, begun)
    return [beside("SQLite: deposits validated, one process", rate, "1/s", verifications[0].value)]


def posts(where: str, folder: Path, database: str, count: int, seconds: float = 2.0) -> list[Figure]:
    """Return webhooks posted a second to ten receivers, beside a bare client's posts to one of them, one by one.

    ``database`` is empty. One process posts, in the order of the trail for each receiver; all ten are one server.
    """
    folder.mkdir()
    store = Store(database)
    store.migrate()
    try:
        office = Office(store, database, folder / "home", webhook_allow_private=True)
        with _sink() as url:
            for _ in range(_HOOKS):
                webhooks.register(office.deps, office.caller(ACME), url)
            bare_rate = _bare_posts(url, seconds)
            with store.unit() as unit:
                told = [
                    event(EventType.DEPOSIT_RECEIVED, secrets.token_hex(16), office.clock.now(), ACME.address)
                    for _ in range(count // _HOOKS)
                ]
                event_store.append(unit, told)
            notices.sequence_events(office.deps, None)
            hands = Hands(office.deps, ["notify"])
            begun = time.perf_counter()
            while office.jobs("notify"):
                hands.drain("notify")
            rate = len(told) * _HOOKS / (time.perf_counter() - begun)
        return [
            Figure(f"{where}, bare: posts by one httpx2 client, one by one", bare_rate, "1/s"),
            beside(f"{where}: webhooks posted, {_HOOKS} receivers, one process", rate, "1/s", bare_rate),
        ]
    finally:
        store.close()


def verifications_on_all_cores(seconds: float) -> float:
    """Return ML-DSA-65 verifications a second of as many processes as there are cores, at once."""
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(bare.verifications, [0.1] * cores))
        return sum(pool.map(bare.verifications, [seconds] * cores))


def _enrolled(installation: Installation, address: str, folder: Path) -> Agent:
    tenant = address.partition("/")[0]
    told = installation.invite(tenant)
    return enrolled(
        installation.url, address, Invitation(told["reference"], told["secret"]), folder / "tenants" / tenant
    )


def _backlog(deps: Deps, sender: Agent, bodies: list[bytes]) -> None:
    with deps.store.read() as unit:
        instance = tenants.instance(unit, sender.address)
    if instance is None:
        raise RuntimeError("the sender is not enrolled")
    for first in range(0, len(bodies), 100):
        some = [Incoming(body, secrets.token_hex(8)) for body in bodies[first : first + 100]]
        answers = accept(deps, Caller(instance), some)
        if not all(isinstance(answer, Accepted) for answer in answers):
            raise RuntimeError(f"not accepted: {answers[0]}")


def _drained(installation: Installation, workers: int) -> tuple[float, float]:
    """Have a backlog drained; return deposits a second, and MB."""
    names = ("validator", *(f"validator-{number}" for number in range(2, workers + 1)))
    begun = datetime.now(UTC)
    installation.start("relay", *names)
    wait_until(lambda: reading.left(installation.database_url, "validate") == 0, _PATIENCE)
    memory = max(_memory(installation.running[name].process.pid) for name in names)
    installation.stop("relay", *names)
    return reading.validated(installation.database_url, begun), memory


def _memory(parent: int) -> float:
    """Return the largest resident set among a process's children, in MB."""
    sizes = [0.0]
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            told = dict(line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line)
            if int(told["PPid"]) == parent:
                sizes.append(int(told["VmRSS"].split()[0]) / 1024)
    return max(sizes)


@contextmanager
def _sink() -> Iterator[str]:
    """Run a server on loopback that takes every post, in a process of its own; yield its URL."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_take, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/"
    finally:
        process.terminate()
        process.join()


def _take(ready: Connection) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


def _bare_posts(url: str, seconds: float) -> float:
    count, begun = 0, time.perf_counter()
    with httpx2.Client(trust_env=False, verify=NOBODY) as client:
        while (spent := time.perf_counter() - begun) < seconds:
            client.post(url, content=bytes(600))
            count += 1
    return count / spent
