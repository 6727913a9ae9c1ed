"""A broker of a test's own, that may be killed or stand still, and a server with two tenants on it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest.mock import patch

from pki.tenant.agent import Agent
from tests.kit.daemons import Daemon
from tests.kit.members import Members
from tests.kit.processes import Installation
from tests.kit.services import Services, drop_database, new_database

BrokerKind = Literal["rabbitmq", "redis"]


@dataclass
class OwnBroker:
    """RabbitMQ or Redis: where it is, and the process that runs now."""

    url: str
    daemon: Daemon

    def crash(self) -> None:
        """Kill -9 it; it is started again, and may not answer yet."""
        self.daemon = self.daemon.crash()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Have it stand still: connections stay, new ones are taken by the machine, and nothing is answered."""
        group = self.daemon.process.pid
        os.killpg(group, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(group, signal.SIGCONT)

    def stall(self, queue: str) -> None:
        """Have a queue's process in RabbitMQ stand still."""
        self._evaluate(f"sys:suspend('%2F_{queue}')")

    def forget(self, queue: str) -> None:
        """Have RabbitMQ know a queue no more, without a word to who consumes it."""
        self._evaluate(f'rabbit_amqqueue:internal_delete(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>), <<"test">>)')

    def clear(self, queue: str) -> None:
        """Take away what is left of a queue that was forgotten, so that it can be declared again."""
        self._evaluate(f"ra:force_delete_server(quorum_queues, {{'%2F_{queue}', node()}})")

    def _evaluate(self, expression: str) -> None:
        place = Path(f"/proc/{self.daemon.process.pid}")
        told = (place / "environ").read_text().split("\0")
        subprocess.run(
            ["/usr/lib/rabbitmq/bin/rabbitmqctl", "eval", f"{expression}."],
            env=dict(item.split("=", 1) for item in told if "=" in item),
            user=place.stat().st_uid,
            group=place.stat().st_gid,
            extra_groups=[],
            capture_output=True,
            timeout=60,
            check=True,
        )


@contextmanager
def own_broker(kind: BrokerKind) -> Iterator[OwnBroker]:
    """Start a broker that nobody else uses."""
    with Services() as private:
        with patch.dict(os.environ, {"KMB_TEST_PRIVATE_SERVICES": "1"}):
            service = private.rabbitmq if kind == "rabbitmq" else private.redis
        broker = OwnBroker(service.url, service.daemons[0])
        try:
            yield broker
        finally:
            broker.daemon.stop()


@contextmanager
def served_by(broker: OwnBroker, services: Services, room: Path) -> Iterator[tuple[Installation, Agent, Agent]]:
    """A server on that broker, a sender and a recipient; what still runs at the end has to stop in order."""
    database = new_database(services.postgres.url)
    try:
        with Installation(room / "server", database, broker.url) as installed, Members(installed, room) as members:
            installed.start()
            yield installed, members.enrol("acme/eu-west"), members.enrol("globex/main")
            codes = installed.stop()
            assert set(codes.values()) <= {0}, codes
    finally:
        drop_database(database)
