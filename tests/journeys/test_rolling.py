"""Each process is restarted in turn, and nobody who uses the server sees an error; then all stop and leave nothing."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pki.core.ids import DepositId
from pki.server.api.bodies import b64
from pki.tenant.agent import Agent
from tests.kit.daemons import free_port
from tests.kit.flood import bodies
from tests.kit.front import balancer
from tests.kit.members import Members, signed_call
from tests.kit.processes import Installation, wait_until
from tests.kit.services import Services, drop_database, new_database

TWICE = ("api-1", "api-2", "validator-1", "validator-2")
ONCE = ("worker", "issuer", "sequencer", "relay", "beat")
SECONDS = 60.0


@pytest.fixture
def doubled(services: Services, tmp_path: Path) -> Iterator[Installation]:
    """Two APIs behind haproxy, two validators, and one of the others."""
    database = new_database(services.postgres.url)
    try:
        with Installation(tmp_path / "server", database, services.rabbitmq.url) as installed:
            installed.ports = {name: free_port() for name in ("api-1", "api-2")}
            installed.variables |= {"KMB_DRAIN_SECONDS": "5", "KMB_PUBLIC_URL": installed.url}
            installed.start(*TWICE, *ONCE)
            with balancer(tmp_path, installed.port, list(installed.ports.values())):
                yield installed
    finally:
        drop_database(database)


@dataclass
class Client:
    """Does one thing again and again until it is told to stop; what goes wrong is kept."""

    name: str
    once: Callable[[], None]
    stop: threading.Event = field(default_factory=threading.Event)
    done: int = 0
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self.run, name=self.name, daemon=True)
        self.thread.start()

    def goes_on(self) -> None:
        """Wait until it has done something with what there is now, or something went wrong."""
        before = self.done
        wait_until(lambda: self.done > before or self.wrong, SECONDS)

    def run(self) -> None:
        """Go on whatever happens."""
        while not self.stop.is_set():
            try:
                self.once()
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
            else:
                self.done += 1
            # A client among others on a small machine.
            time.sleep(0.02)


@dataclass
class Strict:
    """Calls once each time, as a client without retries; every answer but a 2xx is an error."""

    agent: Agent
    bodies: Iterator[bytes]
    sent: list[DepositId]

    def __call__(self) -> None:
        """Deposit two keys, ask for what is its own, wait for news."""
        items = [{"body": b64(next(self.bodies)), "idempotency_key": secrets.token_hex(8)} for _ in range(2)]
        answer = signed_call(self.agent, "POST", "/v1/deposits/batch", json.dumps({"items": items}).encode())
        assert answer.status_code == 200, (answer.status_code, answer.text)
        self.sent += [DepositId(one["id"]) for one in answer.json()["items"]]
        for path in ("/v1/sent", f"/v1/mailboxes/{self.agent.address}?wait=2&after=100000", "/v1/certificates"):
            answer = signed_call(self.agent, "GET", path)
            assert 200 <= answer.status_code < 300, (path, answer.status_code, answer.text)


def test_a_rolling_restart_is_not_seen(doubled: Installation, tmp_path: Path) -> None:
    """Every process is stopped and started again in turn: no call fails, deposits included, each handed over once."""
    sent: list[DepositId] = []
    with Members(doubled, tmp_path / "tenants") as members:
        acme, globex, strict = (members.enrol(name) for name in ("acme/eu-west", "globex/main", "initech/strict"))

        def send() -> None:
            name = acme.create_key(f"key-{secrets.token_hex(8)}")
            sent.extend(one.deposit_id for one in acme.send_key(name, [globex.address]).delivered)

        def receive() -> None:
            globex.receive(wait=2)

        clients = [
            Client("sender", send),
            Client("recipient", receive),
            Client("strict", Strict(strict, bodies(strict, globex.address, 10_000), sent)),
        ]
        codes: dict[str, int] = {}
        for name in (*TWICE, *ONCE):
            codes |= doubled.stop(name)
            doubled.start(name)
            if name in doubled.ports:
                # As an operator waits: until the balancer sends requests there again.
                wait_until(lambda: 'route="/v1/' in doubled.told(name).text, SECONDS)  # noqa: B023  waited for here
            for client in clients:
                client.goes_on()
            assert not wrong(clients), (name, wrong(clients))
        for client in clients:
            client.stop.set()
        for client in clients:
            client.thread.join(SECONDS)
            assert not client.thread.is_alive(), client.name
        assert not wrong(clients)
        assert set(codes.values()) == {0}, codes
        wait_until(lambda: globex.receive(wait=1) and not waiting(doubled), SECONDS)
    assert len(sent) == len(set(sent)) > len(codes)
    told = doubled.sql(
        "SELECT subject, type, count(*) FROM events WHERE type IN"
        " ('keymailbox.deposit.available', 'keymailbox.deposit.acknowledged') GROUP BY subject, type"
    )
    assert sorted(subject for subject, _, count in told for _ in range(count)) == sorted(2 * [str(one) for one in sent])
    assert {count for *_, count in told} == {1}
    stopped = doubled.stop()
    assert set(stopped.values()) == {0}, stopped
    assert doubled.sql("SELECT * FROM jobs WHERE lease_until > now()") == []
    assert doubled.sql("SELECT * FROM leases") == []


def wrong(clients: list[Client]) -> list[tuple[str, list[str]]]:
    """What went wrong, by client."""
    return [(client.name, client.wrong) for client in clients if client.wrong]


def waiting(installation: Installation) -> list[tuple[object, ...]]:
    """Deposits that are not answered yet."""
    return installation.sql("SELECT id, state FROM deposits WHERE state IN ('received', 'available', 'collected')")
