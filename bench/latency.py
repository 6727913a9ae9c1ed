"""How long a key takes: accepted to available, and deposited to a verified receipt, with both agents on a stream."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime

import psycopg

from bench import load
from bench.figures import Figure, limited
from pki.tenant.agent import Agent
from pki.tenant.contexts import Context

_PATIENCE = 60.0
_GOALS = {"available": (30.0, 150.0), "receipt": (150.0, 500.0)}
"""Milliseconds at the median and at the 99th percentile."""


class Running:
    """An agent that does its rounds in a thread, on a stream, with a journal and a holder opened for it alone."""

    def __init__(self, context: Context, seen: Callable[[Agent], None]) -> None:
        """Begin; ``seen`` is called after each round."""
        self._stop = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(context, seen), daemon=True)
        self._thread.start()
        if not self._ready.wait(_PATIENCE):
            raise RuntimeError("the agent did not begin")

    def close(self) -> None:
        """Stop after the step at hand."""
        self._stop = True
        self._thread.join(_PATIENCE)

    def _run(self, context: Context, seen: Callable[[Agent], None]) -> None:
        with Agent.open(context) as agent:
            for one in agent.run(interval=600, stop=lambda: self._stop):
                if one.failed:
                    raise RuntimeError(f"the agent failed: {one.failed}")
                seen(agent)
                self._ready.set()


def measure(
    sender: Agent,
    recipient: Agent,
    *,
    database: str,
    exchanges: int = 100,
    rate: float = 0.0,
    requests: Sequence[bytes] = (),
) -> list[Figure]:
    """Send ``exchanges`` keys one after another and return both times, in milliseconds.

    ``database`` is read for when the server accepted and validated. ``rate`` deposits a second are handed in
    besides: ``requests``, which are signed before.
    """
    settled: dict[str, float] = {}

    def seen(agent: Agent) -> None:
        now = time.perf_counter()
        for one in agent.journal.sent.all("acknowledged"):
            settled.setdefault(one.deposit_id, now)

    running = [Running(recipient.context, lambda agent: None), Running(sender.context, seen)]
    stop = threading.Event()
    server = sender.context.server
    traffic = threading.Thread(target=load.pace, args=(server, requests, rate or 1.0, 16, stop.is_set), daemon=True)
    traffic.start()
    times: list[float] = []
    ids: list[str] = []
    try:
        for number in range(exchanges):
            name = sender.create_key(f"latency-{time.time_ns()}-{number}")
            began = time.perf_counter()
            [delivery] = sender.send_key(name, [recipient.address], wait=0).delivered
            while delivery.deposit_id not in settled:
                if time.perf_counter() > began + _PATIENCE:
                    raise RuntimeError("no receipt came back")
                time.sleep(0.001)
            times.append((settled[delivery.deposit_id] - began) * 1000)
            ids.append(delivery.deposit_id)
    finally:
        stop.set()
        for one in running:
            one.close()
        traffic.join(_PATIENCE)
    under = f", {rate:.0f} deposits/s besides" if rate else ", nothing besides"
    return [
        *_figures(f"accepted → available{under}", _validated(database, ids), *_GOALS["available"]),
        *_figures(f"deposit → verified receipt, agents on a stream{under}", times, *_GOALS["receipt"]),
    ]


def _figures(name: str, times: list[float], p50: float, p99: float) -> list[Figure]:
    found = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    return [limited(f"{name}, p50", found[49], "ms", p50), limited(f"{name}, p99", found[98], "ms", p99)]


def _validated(database: str, ids: list[str]) -> list[float]:
    url = database.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(url) as connection:
        found: list[tuple[datetime, datetime]] = connection.execute(
            "SELECT received_at, validated_at FROM deposits WHERE id = ANY(%s)", (ids,)
        ).fetchall()
    return [(validated - received).total_seconds() * 1000 for received, validated in found]
