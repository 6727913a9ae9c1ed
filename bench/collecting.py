"""Deposits collected a second beside the bare SELECT of as many bytes, and polls of an empty mailbox."""

from __future__ import annotations

import json
import time

from bench import load
from bench.figures import Figure, beside
from bench.sites import BenchSite

PAGE = 50
_PATIENCE = 180.0


def await_available(site: BenchSite, count: int) -> list[str]:
    """Return the ids of all that is available to the recipient, once it is ``count``; raises RuntimeError."""
    recipient = site.agent("globex/bench")
    ids: list[str] = []
    after, end = 0, time.perf_counter() + _PATIENCE
    while len(ids) < count:
        if time.perf_counter() > end:
            raise RuntimeError(f"only {len(ids)} of {count} deposits were validated in {_PATIENCE:.0f} s")
        items, after = recipient.client.page(recipient.address, after=after, limit=500, wait=5)
        ids += [one.id for one in items if one.state == "available"]
    return ids


def collected(site: BenchSite, ids: list[str], select: float) -> Figure:
    """Return the rate at which deposits are handed out, from two connections, 50 a request."""
    recipient = site.agent("globex/bench")
    path = f"/v1/mailboxes/{recipient.address}/collection"
    requests = [
        load.signed(
            recipient, "POST", path, json.dumps({"ids": ids[first : first + PAGE]}).encode(), "application/json"
        )
        for first in range(0, len(ids), PAGE)
    ]
    done = load.run(site.url, requests, 2).demand_good()
    items = [item for body in done.bodies for item in json.loads(body)["items"]]
    good = sum("body" in item for item in items)
    if good != len(ids):
        raise RuntimeError(f"only {good} of {len(ids)} deposits were handed out")
    name = f"{site.name}: deposits collected, {PAGE} a request"
    return beside(name, good / done.seconds, "1/s", select, 0.5)


def polled(site: BenchSite, empty: float, polls: int, clients: int) -> Figure:
    """Return the rate of polls that find nothing."""
    idle = site.agent("initech/idle")
    requests = [load.signed(idle, "GET", f"/v1/mailboxes/{idle.address}?after=0") for _ in range(polls)]
    done = load.run(site.url, requests, clients).demand_good()
    return beside(f"{site.name}: polls of an empty mailbox, {clients} clients", done.rate, "1/s", empty, 0.6)
