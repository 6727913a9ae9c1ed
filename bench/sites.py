"""The two servers that are measured: the embedded one on SQLite, and all processes on PostgreSQL with RabbitMQ."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pki.core.deposits import Context, compose
from pki.core.ids import KeyId
from pki.core.packages import KeyMaterial
from pki.core.tenants import parse_address
from pki.tenant.agent import Agent
from pki.tenant.enrolment import Invitation
from tests.kit.daemons import free_port
from tests.kit.processes import Installation, answers, wait_until
from tests.kit.services import Services, drop_database, new_database

SQLITE = "SQLite"
PRODUCTION = "PostgreSQL + RabbitMQ"


@dataclass
class BenchSite:
    """A running server. ``database`` is SQLAlchemy's URL; ``processes`` by role."""

    name: str
    url: str
    database: str
    folder: Path
    processes: Callable[[], Mapping[str, int]]
    invite: Callable[[str], Invitation]
    open: ExitStack
    installation: Installation | None = None
    _agents: dict[str, Agent] = field(default_factory=dict)

    def agent(self, address: str) -> Agent:
        """Return an enrolled instance, the same one each time."""
        if address not in self._agents:
            tenant, _, instance = address.partition("/")
            agent = enrolled(self.url, address, self.invite(tenant), self.folder / f"{tenant}-{instance}")
            self._agents[address] = self.open.enter_context(agent)
        return self._agents[address]


def enrolled(server: str, address: str, invitation: Invitation, home: Path) -> Agent:
    """Enrol an instance in a home of its own."""
    os.environ["KMB_HOME"] = str(home)
    os.environ.pop("KMB_PASSPHRASE_FILE", None)
    return Agent.enroll(parse_address(address), server=server, invitation=invitation)


def composed(sender: Agent, recipient: Agent, count: int, *, key: str = "bench") -> list[bytes]:
    """Return sound deposits of a 32-byte key, about 6 kB each."""
    certificate = sender.directory.encryption_of(sender.peer(recipient.address))
    ski = sender.holder.identity_public().ski
    now = datetime.now(UTC)
    material = KeyMaterial(secrets.token_bytes(32))
    batch = secrets.token_hex(4)
    return [
        compose(
            material,
            Context(
                sender.address, recipient.address, KeyId(f"{key}-{batch}-{number}"), 1, "bench", now + timedelta(days=1)
            ),
            package_id=secrets.token_bytes(16),
            recipient=certificate.recipient,
            signer_ski=ski,
            sign=sender.holder.sign,
            signing_time=now,
        )
        for number in range(count)
    ]


@contextmanager
def embedded(folder: Path) -> Iterator[BenchSite]:
    """Run ``kmb-server dev``, again when it has run in this folder: one process, SQLite."""
    folder.mkdir(exist_ok=True)
    port, home = free_port(), folder / "server"
    with (folder / "server.log").open("ab") as log, ExitStack() as stack:
        command = [sys.executable, "-m", "workers.cli", "dev", "--home", str(home), "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=_clean())
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: answers(f"{url}/readyz"))
            yield BenchSite(
                SQLITE,
                url,
                f"sqlite:///{home / 'keymailbox.sqlite'}",
                folder,
                lambda: {"dev": process.pid},
                lambda tenant: _invite(home, tenant),
                stack,
            )
        finally:
            stack.close()
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@contextmanager
def production(folder: Path, services: Services, *processes: str) -> Iterator[BenchSite]:
    """Run the named processes (all when none is) of an installation on a database of its own."""
    folder.mkdir()
    database = new_database(services.postgres.url)
    try:
        installation = Installation(folder / "installation", database, services.rabbitmq.url, direct=True)
        with installation, ExitStack() as stack:
            installation.start(*processes)
            yield BenchSite(
                PRODUCTION,
                installation.url,
                database,
                folder,
                lambda: {name: one.process.pid for name, one in installation.running.items()},
                lambda tenant: _invitation(installation.invite(tenant)),
                stack,
                installation,
            )
    finally:
        drop_database(database)


def _invite(home: Path, tenant: str) -> Invitation:
    command = [sys.executable, "-m", "workers.cli", "tenant", "invite", tenant, "--home", str(home), "--json"]
    return _invitation(json.loads(subprocess.run(command, check=True, capture_output=True, env=_clean()).stdout))


def _invitation(told: Mapping[str, str]) -> Invitation:
    return Invitation(told["reference"], told["secret"])


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("KMB_")}
