"""The disk under the database is full: what writes is refused cleanly, what reads goes on, and room heals it."""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest

from pki.core import httpsig
from pki.core.errors import KeymailboxError
from pki.core.tenants import parse_address
from pki.server.settings import load_settings
from pki.server.store.engine import Store
from pki.tenant.agent import Agent
from pki.tenant.enrolment import Invitation
from tests.kit.acknowledged import Acknowledged
from tests.kit.daemons import NOBODY, free_port, remove
from tests.kit.invariants import broken
from tests.kit.members import Inviting
from tests.kit.processes import STOP_SECONDS, Installation, answers, invite, wait_until
from tests.kit.services import Services, new_database, own_postgres
from tests.kit.small_disk import SmallDisk, small_disk

_HEALED = 40.0
_READS = 400
"""More than the pages of the database have room left for nonces."""


@dataclass
class Place:
    """A running server whose database lies on a small disk."""

    disk: SmallDisk
    server: Inviting
    database_url: str
    processes: list[subprocess.Popen[bytes]]


@contextmanager
def production(room: Path, services: Services, disk: SmallDisk, stack: ExitStack) -> Iterator[Place]:
    """All processes of production, on PostgreSQL; its log of changes lies elsewhere, as it should."""
    logs = Path(tempfile.mkdtemp(prefix="keymailbox-wal-", dir="/var/tmp"))
    logs.chmod(0o755)
    stack.callback(remove, logs)
    database = own_postgres(disk.path / "state", logs / "wal")
    stack.callback(database.stop)
    url = new_database(database.url)
    with Installation(room / "server", url, services.rabbitmq.url) as installed:
        installed.start()
        yield Place(disk, installed, url, [one.process for one in installed.running.values()])


@dataclass
class Development:
    """A running ``kmb-server dev``."""

    url: str
    home: Path

    def invite(self, tenant: str) -> dict[str, str]:
        """Return an invitation."""
        return invite(load_settings(home=self.home), tenant)


@contextmanager
def development(room: Path, services: Services, disk: SmallDisk, stack: ExitStack) -> Iterator[Place]:
    """One process, on SQLite."""
    home, port = disk.path / "home", free_port()
    with (room / "log").open("wb") as log:
        command = [sys.executable, "-m", "workers.cli", "dev", "--home", str(home), "--port", str(port)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        server = Development(f"http://127.0.0.1:{port}", home)
        wait_until(lambda: answers(f"{server.url}/readyz"))
        yield Place(disk, server, load_settings(home=home).database_url, [process])
        process.terminate()
        assert process.wait(STOP_SECONDS) == 0, (room / "log").read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("serving", "megabytes"), [(development, 32), (production, 160)], ids=["sqlite", "postgresql"])
def test_a_full_disk(services: Services, tmp_path: Path, serving: object, megabytes: int) -> None:
    """503 `full` with Retry-After for a deposit, reads as ever and each once, and nothing is half done."""
    assert callable(serving)
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(megabytes))
        place: Place = stack.enter_context(serving(tmp_path, services, disk, stack))
        wire = Acknowledged()
        acme = stack.enter_context(_enrol(place.server, tmp_path, "acme/eu-west", wire))
        globex = stack.enter_context(_enrol(place.server, tmp_path, "globex/main", wire))
        _hand_over(acme, globex)

        disk.fill()
        before = len(wire.deposits)
        wait_until(lambda: _refused(acme, globex, wire), _HEALED)
        assert set(wire.away) == {"full"}
        for _ in range(_READS):
            acme.client.sent(limit=1)
        assert globex.mailbox()
        url, headers = _signed(acme, f"/v1/mailboxes/{acme.address}")
        with httpx2.Client(trust_env=False, verify=NOBODY, timeout=30) as client:
            assert client.get(url, headers=headers).status_code == 200
            assert client.get(url, headers=headers).json()["code"] == "replayed"
        assert not wire.faults

        disk.free()
        began = time.monotonic()
        wait_until(lambda: _heals(acme, globex), _HEALED)
        print(f"healed {time.monotonic() - began:.1f} s after there was room")
        with httpx2.Client(trust_env=False, verify=NOBODY, timeout=30) as client:
            # What was read while nothing could be written is not read again now.
            assert client.get(url, headers=headers).json()["code"] == "replayed"
        wait_until(lambda: _done(acme, globex), _HEALED)
        assert len(wire.deposits) > before
        assert not wire.faults
        assert all(one.poll() is None for one in place.processes)
        store = Store(place.database_url)
        stack.callback(store.close)
        wait_until(lambda: not broken(store, settled=True), 3 * _HEALED)
        with store.read() as unit:
            there = set(unit.connection.exec_driver_sql("SELECT id FROM deposits").scalars())
        assert wire.deposits <= there


def _enrol(server: Inviting, room: Path, address: str, wire: Acknowledged) -> Agent:
    invited = server.invite(address.partition("/")[0])
    return Agent.enroll(
        parse_address(address),
        server=server.url,
        invitation=Invitation(invited["reference"], invited["secret"]),
        home=room / address.replace("/", "."),
        transport=wire,
        sleep=lambda seconds: time.sleep(min(seconds, 0.05)),
    )


def _hand_over(acme: Agent, globex: Agent) -> None:
    sent = acme.send_key(acme.create_key(f"key-{secrets.token_hex(8)}"), [globex.address])
    assert sent.delivered[0].state == "available"


def _refused(acme: Agent, globex: Agent, wire: Acknowledged) -> bool:
    """Send until the server says that it is full; what it accepts until then it has found room for."""
    with suppress(KeymailboxError):
        acme.send_key(acme.create_key(f"key-{secrets.token_hex(8)}"), [globex.address], wait=0)
    return bool(wire.away)


def _heals(acme: Agent, globex: Agent) -> bool:
    try:
        _hand_over(acme, globex)
    except (KeymailboxError, IndexError, AssertionError):
        return False
    return True


def _done(acme: Agent, globex: Agent) -> bool:
    acme.resume()
    taken = globex.receive().taken
    acme.receipts()
    return not taken and not [one for one in acme.sent() if one.receipt is None]


def _signed(agent: Agent, path: str) -> tuple[str, dict[str, str]]:
    """Return a request that is signed once, to be sent twice."""
    url = agent.context.server + path
    headers = httpsig.sign_request(
        "GET",
        url,
        {},
        b"",
        key_id=httpsig.key_id(agent.holder.access_public()),
        sign=agent.holder.sign_request,
        created=datetime.now(UTC),
        nonce=secrets.token_hex(16),
    )
    return url, dict(headers)
