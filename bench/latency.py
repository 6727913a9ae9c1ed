"""How long a key takes: accepted to available, and deposited to a verified receipt, with both agents on a stream."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import load, reading
from bench.figures import Figure, beside, limited
from bench.sites import BenchSite
from pki.tenant.agent import Agent

_PATIENCE = 60.0
_GOALS = {"available": (30.0, 150.0), "receipt": (150.0, 500.0)}
"""Milliseconds at the median and at the 99th percentile."""
_LOOK = 0.002
"""Seconds between looks into the sender's journal."""


@contextmanager
def running(agent: Agent, log: Path) -> Iterator[None]:
    """Have ``kmb agent run`` run for an instance, as a process of its own, that only events wake."""
    command = [sys.executable, "-m", "pki.tenant.cli", "agent", "run", "--interval", "600"]
    with log.open("wb") as written:
        environment = {**os.environ, "KMB_HOME": str(agent.context.folder.parents[1])}
        process = subprocess.Popen(command, env=environment, stdout=written, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.terminate()
            try:
                code = process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
    if code != 0:
        raise RuntimeError(f"the agent failed: {log.read_text()[-1000:]}")


def measure(
    site: BenchSite,
    sender: Agent,
    recipient: Agent,
    *,
    exchanges: int,
    under: str,
    rate: float = 0.0,
    requests: Sequence[bytes] = (),
) -> list[Figure]:
    """Send ``exchanges`` keys one after another and return both times, in milliseconds, and what was accepted besides.

    When the server accepted and validated is read in its database, that the receipt was verified in the sender's
    journal. ``rate`` deposits a second are handed in besides: ``requests``, which are signed before. ``under`` says in
    the figures' names what load that is.
    """
    times: list[float] = []
    ids: list[str] = []
    stop = threading.Event()
    traffic = threading.Thread(target=load.pace, args=(site.url, requests, rate or 1.0, 16, stop.is_set), daemon=True)
    with running(recipient, site.folder / "recipient.log"), running(sender, site.folder / "sender.log"):
        # Both listen when the first has come back.
        _exchange(sender, recipient)
        traffic.start()
        try:
            for _ in range(exchanges):
                deposit, took = _exchange(sender, recipient)
                times.append(took)
                ids.append(deposit)
        finally:
            stop.set()
            traffic.join(_PATIENCE)
    handled, besides = reading.exchanged(site.database, ids)
    figures = [
        *_figures(f"{site.name}: accepted → available, {under}", handled, *_GOALS["available"]),
        *_figures(f"{site.name}: deposit → verified receipt, agents on a stream, {under}", times, *_GOALS["receipt"]),
    ]
    if rate:
        figures.append(beside(f"{site.name}: deposits accepted besides, {under}", besides, "1/s", rate))
    return figures


def _exchange(sender: Agent, recipient: Agent) -> tuple[str, float]:
    """Send one key; return its deposit, and after how many milliseconds the sender's agent had verified the receipt."""
    name = sender.create_key(f"latency-{time.time_ns()}")
    began = time.perf_counter()
    [delivery] = sender.send_key(name, [recipient.address], wait=0).delivered
    while True:
        sent = sender.journal.sent.of(delivery.deposit_id)
        if sent is not None and sent.state == "acknowledged":
            return delivery.deposit_id, (time.perf_counter() - began) * 1000
        if time.perf_counter() > began + _PATIENCE:
            raise RuntimeError("no receipt came back")
        time.sleep(_LOOK)


def _figures(name: str, times: list[float], p50: float, p99: float) -> list[Figure]:
    found = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    return [limited(f"{name}, p50", found[49], "ms", p50), limited(f"{name}, p99", found[98], "ms", p99)]
