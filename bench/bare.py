"""The bare costs: a verification, a durable insert of six kilobytes, reading them again, an empty route."""

from __future__ import annotations

import math
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import uvicorn
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench import load
from tests.kit.daemons import free_port
from tests.kit.processes import answers, wait_until

_BODY = bytes(6000)


def verifications(seconds: float) -> float:
    """Return ML-DSA-65 verifications a second on one core."""
    key = MLDSA65PrivateKey.generate()
    message = bytes(500)
    signature, public = key.sign(message), key.public_key()
    return _rate(lambda: public.verify(signature, message), seconds)


def sqlite_inserts(folder: Path, seconds: float) -> float:
    """Return durable inserts a second, one a commit, one writer (WAL, synchronous=FULL)."""
    connection = sqlite3.connect(folder / "bare.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE bare (id INTEGER PRIMARY KEY, body BLOB)")
    try:
        return _rate(lambda: connection.execute("INSERT INTO bare (body) VALUES (?)", (_BODY,)), seconds)
    finally:
        connection.close()


def postgresql_inserts(url: str, clients: int, seconds: float) -> float:
    """Return durable inserts a second, one a commit, from ``clients`` connections of pgbench.

    The bytes are stored as they are: deposits cannot be compressed, and these must not be.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS bare (id bigserial PRIMARY KEY, body bytea)")
        connection.execute("ALTER TABLE bare ALTER body SET STORAGE EXTERNAL")
    tool = shutil.which("pgbench") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/pgbench")), None)
    if tool is None:
        raise RuntimeError(
            "pgbench is not there, and the ceiling is measured with it. Next: apt-get install postgresql"
        )
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write("INSERT INTO bare (body) VALUES (convert_to(repeat('x', 6000), 'UTF8'));\n")
        script.flush()
        options = [
            "-n",
            "-M",
            "prepared",
            "-c",
            str(clients),
            "-j",
            "2",
            "-T",
            str(math.ceil(seconds)),
            "-f",
            script.name,
        ]
        done = subprocess.run([tool, *options, url], capture_output=True, text=True, check=True)
    found = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"pgbench says no rate: {done.stdout[-300:]}")
    return float(found[1])


def postgresql_selects(url: str, bodies: Sequence[bytes], size: int) -> float:
    """Return bodies a second that psycopg reads again by their ids, ``size`` a statement."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE bare_bodies (id text PRIMARY KEY, body bytea)")
        connection.execute("ALTER TABLE bare_bodies ALTER body SET STORAGE EXTERNAL")
        rows = [(f"{number:032x}", body) for number, body in enumerate(bodies)]
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO bare_bodies VALUES (%s, %s)", rows)
        query = "SELECT id, body FROM bare_bodies WHERE id = ANY(%s)"
        rate = _reads(rows, size, lambda ids: connection.execute(query, (ids,)).fetchall())
        connection.execute("DROP TABLE bare_bodies")
    return rate


def sqlite_selects(folder: Path, bodies: Sequence[bytes], size: int) -> float:
    """Return bodies a second that sqlite3 reads again by their ids, ``size`` a statement."""
    with closing(sqlite3.connect(folder / "bare-bodies.sqlite")) as connection:
        connection.execute("CREATE TABLE bare_bodies (id TEXT PRIMARY KEY, body BLOB)")
        rows = [(f"{number:032x}", body) for number, body in enumerate(bodies)]
        connection.executemany("INSERT INTO bare_bodies VALUES (?, ?)", rows)
        connection.commit()

        def read(ids: list[str]) -> list[object]:
            query = f"SELECT id, body FROM bare_bodies WHERE id IN ({','.join('?' * len(ids))})"
            return connection.execute(query, ids).fetchall()

        return _reads(rows, size, read)


def _reads(rows: Sequence[tuple[str, bytes]], size: int, read: Callable[[list[str]], list[object]]) -> float:
    began = time.perf_counter()
    count = sum(len(read([name for name, _ in rows[first : first + size]])) for first in range(0, len(rows), size))
    if count != len(rows):
        raise RuntimeError(f"only {count} of {len(rows)} bodies were read")
    return count / (time.perf_counter() - began)


@contextmanager
def empty_route() -> Iterator[str]:
    """Serve one empty JSON answer with the same web server and framework, in a process of its own; the URL of it."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "bench.bare", str(port)], stdin=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/"))
        yield url
    finally:
        process.terminate()
        process.wait(10)


def answered(url: str, count: int, clients: int) -> float:
    """Return answers a second to the same small request, with the load generator that measures us."""
    return load.run(url, [load.plain_request("GET", f"{url}/")] * count, clients).demand_good().rate


def _serve(port: int) -> None:
    async def empty(request: Request) -> Response:
        return Response(b'{"items":[],"next":0}', media_type="application/json")

    app = Starlette(routes=[Route("/", empty)])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def _rate(work: Callable[[], object], seconds: float) -> float:
    work()
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        work()
        count += 1
    return count / spent


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
