"""The main job against a running server: deposits accepted, validated and collected, and the time to a receipt."""

from __future__ import annotations

import os
import secrets
import statistics
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pki.core import httpsig
from pki.core.deposits import Context, compose
from pki.core.ids import KeyId
from pki.core.packages import KeyMaterial
from pki.core.tenants import Address, parse_address
from pki.tenant.agent import Agent, utc_now
from pki.tenant.client import AccessKey, Client
from pki.tenant.enrolment import Invitation

_PATIENCE = 120.0
"""Seconds that any one phase may take."""


@dataclass(frozen=True)
class Result:
    """Rates in deposits a second, times in milliseconds."""

    accepted: float
    validated: float
    collected: float
    empty_polls: float
    receipt_p50: float
    receipt_p99: float


def enrolled(server: str, address: str, invitation: Invitation, folder: Path) -> Agent:
    """Enrol an instance in a home of its own."""
    os.environ["KMB_HOME"] = str(folder)
    os.environ.pop("KMB_PASSPHRASE_FILE", None)
    return Agent.enroll(parse_address(address), server=server, invitation=invitation)


def measure(server: str, sender: Agent, recipient: Agent, *, deposits: int, clients: int, exchanges: int) -> Result:
    """Play the main job ``deposits`` times from ``clients`` connections, then ``exchanges`` times one after another."""
    bodies = _composed(sender, recipient.address, deposits)
    start = time.perf_counter()
    ids = _send(server, sender, bodies, clients)
    accepted = deposits / (time.perf_counter() - start)
    _await_available(recipient, deposits)
    validated = deposits / (time.perf_counter() - start)
    start = time.perf_counter()
    for first in range(0, deposits, 50):
        recipient.client.collect(recipient.address, ids[first : first + 50])
    collected = deposits / (time.perf_counter() - start)
    polls = _empty_polls(recipient, deposits)
    times = _exchanges(sender, recipient, exchanges)
    p99 = statistics.quantiles(times, n=100)[-1] if len(times) > 1 else times[0]
    return Result(accepted, validated, collected, polls, statistics.median(times), p99)


def _composed(sender: Agent, to: Address, count: int) -> list[bytes]:
    certificate = sender.directory.encryption_of(sender.peer(to))
    ski = sender.holder.identity_public().ski
    now = datetime.now(UTC)
    material = KeyMaterial(secrets.token_bytes(32))
    return [
        compose(
            material,
            Context(sender.address, to, KeyId(f"bench-{number}"), 1, "bench", now + timedelta(days=1)),
            package_id=secrets.token_bytes(16),
            recipient=certificate.recipient,
            signer_ski=ski,
            sign=sender.holder.sign,
            signing_time=now,
        )
        for number in range(count)
    ]


def _send(server: str, sender: Agent, bodies: list[bytes], clients: int) -> list[str]:
    access = AccessKey(httpsig.key_id(sender.holder.access_public()), sender.holder.sign_request)
    ids: list[str] = []

    def send(own: list[bytes]) -> None:
        client = Client(server, access, utc_now)
        try:
            for body in own:
                ids.append(client.deposit(body, idempotency_key=secrets.token_hex(16)))
        finally:
            client.close()

    threads = [threading.Thread(target=send, args=(bodies[number::clients],)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(ids) != len(bodies):
        raise RuntimeError(f"only {len(ids)} of {len(bodies)} deposits were accepted")
    return ids


def _await_available(recipient: Agent, count: int) -> None:
    seen, after, end = 0, 0, time.perf_counter() + _PATIENCE
    while seen < count:
        if time.perf_counter() > end:
            raise RuntimeError(f"only {seen} of {count} deposits were validated in {_PATIENCE:.0f} s")
        items, after = recipient.client.page(recipient.address, after=after, limit=100, wait=5)
        seen += len(items)


def _empty_polls(recipient: Agent, after: int) -> float:
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < 2:
        recipient.client.page(recipient.address, after=after + 1_000_000, limit=100, wait=0)
        count += 1
    return count / spent


def _exchanges(sender: Agent, recipient: Agent, count: int) -> list[float]:
    recipient.receive()  # what the throughput part left behind
    times = []
    for number in range(count):
        name = sender.create_key(f"exchange-{number}", secrets.token_bytes(32))
        start = time.perf_counter()
        sender.send_key(name, [recipient.address])
        settled = 0
        while not settled:
            recipient.receive(wait=10)
            settled = len(sender.receipts().settled)
            if time.perf_counter() - start > _PATIENCE:
                raise RuntimeError("no receipt came back")
        times.append((time.perf_counter() - start) * 1000)
    return times
