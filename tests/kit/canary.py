"""Searches all that an operator has for secrets that must not be there, in whatever form they would have leaked."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import kombu
import psycopg
import redis
from psycopg import sql

from pki.core.sealing import unseal
from pki.tenant.agent import Agent

_PIECE = 32
"""Longer secrets are searched for piece by piece: a part of a key is a leak too."""


def forms(secret: bytes) -> Mapping[str, bytes]:
    """Return how ``secret`` looks in a file: raw, hex, and base64 of either alphabet at each of its three offsets."""
    found = {"raw": secret, "hex": binascii.hexlify(secret), "HEX": binascii.hexlify(secret).upper()}
    for offset in range(3):
        # Only the characters that the secret alone decides, whatever stands before and after it.
        first, last = -(-offset * 8 // 6), (offset + len(secret)) * 8 // 6
        padded = bytes(offset) + secret
        found[f"base64+{offset}"] = base64.b64encode(padded)[first:last]
        found[f"base64url+{offset}"] = base64.urlsafe_b64encode(padded)[first:last]
    return found


def search(places: Mapping[str, bytes], secrets: Mapping[str, bytes]) -> list[str]:
    """Return each finding as ``secret in place as form``."""
    return [
        f"{name} in {place} as {form}"
        for name, secret in secrets.items()
        for start in range(0, len(secret), _PIECE)
        for form, pattern in forms(secret[start : start + _PIECE]).items()
        for place, content in places.items()
        if len(pattern) >= 16 and pattern in content
    ]


def unsealed(folder: Path, passphrase: bytes) -> dict[str, bytes]:
    """Return everything in a folder's sealed files, by file name."""
    return {
        path.name: unseal(path.read_bytes(), passphrase, purpose=json.loads(path.read_bytes())["purpose"])
        for path in sorted(folder.rglob("*.sealed"))
    }


def secrets_of(agent: Agent) -> dict[str, bytes]:
    """Return every private key and every shared key that an instance has, and its passphrase."""
    passphrase = agent.context.key_file.read_bytes().strip()
    found = {f"{agent.address} {name}": secret for name, secret in unsealed(agent.context.keys, passphrase).items()}
    shared = {f"{agent.address} key {name}": agent.load_key(name).key for name in agent.shared_keys()}
    return {**found, **shared, f"{agent.address} passphrase": passphrase}


def database(libpq_url: str) -> bytes:
    """Return every row of every table, as text (where bytes are hex) and in binary (where they are raw)."""
    parts: list[bytes] = []
    with psycopg.connect(libpq_url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            for form in ("text", "binary"):
                # Not the table by its name: of one that is in partitions, that copies nothing.
                copy = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT (FORMAT {})")
                copy = copy.format(sql.Identifier(table), sql.SQL(form))
                with connection.cursor().copy(copy) as rows:
                    parts += [bytes(block) for block in rows]
    return b"\n".join(parts)


_BASE64 = re.compile(rb"[A-Za-z0-9+/]{24,}")


class Tap(Protocol):
    """Hears all that goes through a broker."""

    def heard(self) -> bytes:
        """Return all that was heard until now."""


@contextlib.contextmanager
def tap(broker_url: str, prefix: str) -> Iterator[Tap]:
    """Listen to everything that an installation sends through its broker, from now on."""
    listener = _redis_tap(broker_url, prefix) if broker_url.startswith("redis") else _bound(broker_url, prefix)
    with listener as tapped:
        yield tapped


class _Bound:
    def __init__(self, queue: kombu.Queue) -> None:
        self._queue = queue
        self._messages: list[bytes] = []

    def heard(self) -> bytes:
        while (message := self._queue.get(no_ack=True)) is not None:
            self._messages += [_bytes(message.body), repr(message.headers).encode(), repr(message.properties).encode()]
        return b"\n".join(self._messages)


@contextlib.contextmanager
def _bound(url: str, prefix: str) -> Iterator[Tap]:
    wake = kombu.Exchange(f"{prefix}.wakeups", type="topic", durable=True)
    events = kombu.Exchange(f"{prefix}.events", type="topic", durable=True)
    with kombu.Connection(url) as connection, connection.channel() as channel:
        queue = kombu.Queue(f"{prefix}.tap", bindings=[kombu.binding(one, routing_key="#") for one in (wake, events)])
        bound = queue.bind(channel)
        bound.declare()
        try:
            yield _Bound(bound)
        finally:
            bound.delete()


class _Redis:
    def __init__(self) -> None:
        self.commands: list[bytes] = []

    def heard(self) -> bytes:
        commands = list(self.commands)
        # A message's body is in base64 there, and would hide what is in it.
        inside = [base64.b64decode(found + b"==") for command in commands for found in _BASE64.findall(command)]
        return b"\n".join(commands + inside)


@contextlib.contextmanager
def _redis_tap(url: str, prefix: str) -> Iterator[Tap]:
    tapped = _Redis()
    client = redis.Redis.from_url(url)
    stopping = threading.Event()

    def listen(monitor: Any) -> None:
        for command in monitor.listen():
            if stopping.is_set():
                return
            tapped.commands.append(_bytes(command["command"]))

    # Its annotations are missing.
    watch: Any = client.monitor
    with watch() as monitor:
        thread = threading.Thread(target=listen, args=(monitor,), name="tap", daemon=True)
        thread.start()
        try:
            # Where nobody is bound, an event is not even sent.
            with _bound(url, prefix):
                yield tapped
        finally:
            stopping.set()
            client.ping()
            thread.join(10)
    client.close()


def _bytes(text: object) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode()
