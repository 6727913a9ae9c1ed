"""Deposits accepted a second, one a request and many, beside the bare durable insert of as many bytes."""

from __future__ import annotations

import base64
import json
import secrets

from bench import load
from bench.figures import Figure, beside
from bench.sites import BenchSite, composed
from pki.tenant.agent import Agent

_BATCH = 50
_GOALS = {32: 0.30, 128: 0.50}


def single(sender: Agent, recipient: Agent, deposits: int) -> list[bytes]:
    """Return requests that hand in one deposit each."""
    return [
        load.signed(sender, "POST", "/v1/deposits", body, "application/cms", {"Idempotency-Key": secrets.token_hex(16)})
        for body in composed(sender, recipient, deposits)
    ]


def accepted(site: BenchSite, insert: float, deposits: int, clients: int) -> Figure:
    """Return the rate of one deposit a request over ``clients`` connections."""
    requests = single(site.agent("acme/bench"), site.agent("globex/bench"), deposits)
    done = load.run(site.url, requests, clients).demand_good()
    name = f"{site.name}: deposits accepted, one a request, {clients} clients"
    return beside(name, done.rate, "1/s", insert, _GOALS.get(clients))


def accepted_in_batches(site: BenchSite, insert: float, deposits: int) -> Figure:
    """Return the rate of the batch endpoint, from four connections."""
    sender, recipient = site.agent("acme/bench"), site.agent("globex/bench")
    bodies = composed(sender, recipient, deposits)
    requests = []
    for first in range(0, len(bodies), _BATCH):
        items = [
            {"idempotency_key": secrets.token_hex(16), "body": base64.b64encode(body).decode()}
            for body in bodies[first : first + _BATCH]
        ]
        content = json.dumps({"items": items}).encode()
        requests.append(load.signed(sender, "POST", "/v1/deposits/batch", content, "application/json"))
    done = load.run(site.url, requests, 4).demand_good()
    answers = [item for body in done.bodies for item in json.loads(body)["items"]]
    good = sum("error" not in item for item in answers)
    if good != len(bodies):
        raise RuntimeError(f"only {good} of {len(bodies)} deposits were accepted: {answers[:1]}")
    return beside(f"{site.name}: deposits accepted, {_BATCH} a request", good / done.seconds, "1/s", insert, 1.0)
