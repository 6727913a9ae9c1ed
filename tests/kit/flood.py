"""A flood from one tenant, in processes of its own, and what it is like for another tenant meanwhile."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import secrets
import select
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from pki.core import httpsig
from pki.core.deposits import Context, compose
from pki.core.ids import KeyId
from pki.core.packages import KeyMaterial
from pki.core.tenants import Address, parse_address
from pki.tenant import contexts
from pki.tenant.agent import Agent

CONNECTIONS = 64
_BIG = 1024 * 1024


@dataclass
class Felt:
    """What a tenant felt, in milliseconds: a deposit until it was available, and a poll that brought nothing."""

    deposits: list[float] = field(default_factory=list)
    polls: list[float] = field(default_factory=list)

    @property
    def deposit_p99(self) -> float:
        """The 99th percentile."""
        return _p99(self.deposits)

    @property
    def poll_p99(self) -> float:
        """The 99th percentile."""
        return _p99(self.polls)


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[-1] if len(values) > 1 else values[0]


def bodies(sender: Agent, to: Address, count: int) -> Iterator[bytes]:
    """Make sound deposits, one at a time."""
    certificate = sender.directory.encryption_of(sender.peer(to))
    ski = sender.holder.identity_public().ski
    material = KeyMaterial(secrets.token_bytes(32))
    for number in range(count):
        now = datetime.now(UTC)
        yield compose(
            material,
            Context(sender.address, to, KeyId(f"flood-{number}"), 1, "flood", now + timedelta(days=1)),
            package_id=secrets.token_bytes(16),
            recipient=certificate.recipient,
            signer_ski=ski,
            sign=sender.holder.sign,
            signing_time=now,
        )


def feel(sender: Agent, to: Address, count: int, pause: float = 0.02) -> Felt:
    """Deposit ``count`` times, one after another, and poll in between; any error is raised."""
    felt = Felt()
    key_id = httpsig.key_id(sender.holder.access_public())
    for body in list(bodies(sender, to, count)):
        start = time.perf_counter()
        found = sender.client.deposit(body, idempotency_key=secrets.token_hex(16))
        state = sender.client.status(found, wait=20).state
        felt.deposits.append((time.perf_counter() - start) * 1000)
        assert state == "available", (state, key_id)
        start = time.perf_counter()
        sender.client.page(sender.address, after=1 << 40)
        felt.polls.append((time.perf_counter() - start) * 1000)
        time.sleep(pause)
    return felt


class Flood:
    """What a running flood tells: when it has had enough, and at its end what it was answered."""

    def __init__(self, running: Sequence[subprocess.Popen[bytes]]) -> None:
        self.told: Counter[str] = Counter()
        self._waiting = list(running)

    def has_enough(self) -> bool:
        """Tell whether each process has been answered what it is to be answered."""
        for one in list(self._waiting):
            assert one.stdout is not None
            if select.select([one.stdout], [], [], 0)[0]:
                assert one.stdout.readline() == b"enough\n", "the flood has ended by itself"
                self._waiting.remove(one)
        return not self._waiting


@contextlib.contextmanager
def flooded(
    home: Path, to: Address, *, processes: int = 2, seconds: float = 600, enough: Mapping[str, int] | None = None
) -> Iterator[Flood]:
    """Have the tenant whose home this is flood for the time of the block; then it tells what it was answered.

    It is on another machine, as it were: these processes give way to everybody else on this one. Where others leave
    them next to nothing, a block goes on until each process ``has_enough`` of each of these answers.
    """
    command = [sys.executable, "-m", "tests.kit.flood", "--to", str(to), "--seconds", str(seconds)]
    command += ["--enough", json.dumps(dict(enough or {}))]
    with _idle_group() as group:
        running = [
            subprocess.Popen(
                command,
                bufsize=0,  # What was not read yet is seen by select.
                env={**os.environ, "KMB_HOME": str(home)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                preexec_fn=partial(_give_way, group),
            )
            for _ in range(processes)
        ]
        flood = Flood(running)
        try:
            for one in running:
                assert one.stdout is not None and one.stdout.readline() == b"flooding\n"
            yield flood
        except BaseException:
            for one in running:
                one.kill()
            raise
        finally:
            for one in running:
                # The end of its input is the end of the flood.
                assert one.stdin is not None
                one.stdin.close()
                one.stdin = None
            _go_first(group, [one.pid for one in running])
            for one in running:
                output, _ = one.communicate(timeout=180)
                for line in output.splitlines():
                    if line.startswith(b"{"):
                        flood.told.update(json.loads(line))


@contextlib.contextmanager
def _idle_group() -> Iterator[Path | None]:
    """Return a control group whose processes run only when nobody else on this machine wants to; None without one.

    SCHED_IDLE alone does not do it: Linux shares the cores between sessions first (sched(7), autogroup), and only then
    between the processes of one. A control group can be idle as a whole, where we may make one (root, as a rule).
    """
    group = next(filter(None, map(_made_idle, ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup"))), None)
    try:
        yield group
    finally:
        if group is not None:
            # Somebody is still in it where the block failed: that is what is to be told.
            with contextlib.suppress(OSError):
                group.rmdir()


def _made_idle(parent: str) -> Path | None:
    group = Path(parent) / f"kmb-flood-{secrets.token_hex(4)}"
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        # Opened, not created: without the cpu controller there is no such file.
        with (group / "cpu.idle").open("r+") as idle:
            idle.write("1")
    except OSError:
        group.rmdir()
        return None
    return group


def _give_way(group: Path | None) -> None:
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _go_first(group: Path | None, processes: Sequence[int]) -> None:
    """Let processes that gave way run as others do, so that they come to their end."""
    # Those that have ended meanwhile are not there.
    with contextlib.suppress(OSError):
        if group is not None:
            (group / "cpu.idle").write_text("0")
    for process in processes:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(process, os.SCHED_OTHER, os.sched_param(0))


class _Flood:
    """Connections that ask without a pause, and heed nothing that they are told."""

    def __init__(self, agent: Agent, to: Address, seconds: float) -> None:
        self.agent = agent
        self.url = urlsplit(agent.context.server)
        self.bodies = bodies(agent, to, 1 << 30)
        self.end = time.monotonic() + seconds
        self.told: Counter[str] = Counter()
        self._more = asyncio.Event()

    async def run(self, connections: int, enough: Counter[str]) -> None:
        """Flood until the input ends, and say when there was ``enough`` of each answer."""
        tasks = [asyncio.create_task(self._connection(number)) for number in range(connections)]
        print("flooding", flush=True)
        tasks.append(asyncio.create_task(self._tell(enough)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.end - time.monotonic()):
                await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, enough: Counter[str]) -> None:
        while not enough <= self.told:
            self._more.clear()
            await self._more.wait()
        print("enough", flush=True)

    async def _connection(self, number: int) -> None:
        kinds = ("deposit", "deposit", "poll", "long", "garbage", "unsigned", "big", "open")
        kind = kinds[number % len(kinds)]
        while True:
            try:
                reader, writer = await asyncio.open_connection(self.url.hostname, self.url.port)
                try:
                    while await self._ask(kind, reader, writer):
                        pass
                finally:
                    writer.close()
            except (OSError, asyncio.IncompleteReadError, ValueError):
                self.told["cut"] += 1
                await asyncio.sleep(0.05)

    async def _ask(self, kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(self._request(kind))
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        status = head[9:12].decode()
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        await reader.readexactly(int(lines.get(b"content-length", b"0")))
        self.told[status] += 1
        self.told[f"{kind} {status}"] += 1
        self._more.set()
        return lines.get(b"connection") != b"close"

    def _request(self, kind: str) -> bytes:
        method, path, body, headers = "POST", "/v1/deposits", b"", {"content-type": "application/cms"}
        headers["idempotency-key"] = secrets.token_hex(16)
        if kind == "deposit":
            body = next(self.bodies)
        elif kind == "garbage":
            body = random.randbytes(6000)
        elif kind in ("poll", "long"):
            query = "after=0&limit=500" if kind == "poll" else f"after={1 << 40}&wait=1"
            method, path, headers = "GET", f"/v1/mailboxes/{self.agent.address}?{query}", {}
        elif kind in ("unsigned", "big"):
            body = bytes(6000 if kind == "unsigned" else _BIG)
        else:
            method, path, headers = "GET", "/v1/ca", {}
        server = self.agent.context.server
        if kind not in ("unsigned", "open"):
            headers |= httpsig.sign_request(
                method,
                server + path,
                headers,
                body,
                key_id=httpsig.key_id(self.agent.holder.access_public()),
                sign=self.agent.holder.sign_request,
                created=datetime.now(UTC),
                nonce=secrets.token_hex(16),
            )
        lines = [f"{method} {path} HTTP/1.1", f"host: {self.url.netloc}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body


def main() -> None:
    """Flood as the tenant of ``KMB_HOME``; tell at the end what was answered, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=parse_address, required=True)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--enough", type=json.loads, default={})
    options = parser.parse_args()
    with Agent.open(contexts.load(contexts.choose())) as agent:
        flood = _Flood(agent, options.to, options.seconds)
        asyncio.run(flood.run(options.connections, Counter(options.enough)))
    print(json.dumps(flood.told))


if __name__ == "__main__":
    main()
