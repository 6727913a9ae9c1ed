"""The agent's process is killed (SIGKILL) at each step of its work, and started again: nothing is lost, or done twice.

Never is there a receipt for a key that is not in the holder, and in the end no key without a receipt.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from pki.core.packages import KeyMaterial
from pki.core.tenants import parse_address
from pki.server.store import receipts as receipt_store
from pki.tenant.agent import Agent
from pki.tenant.contexts import default_name, load
from pki.tenant.enrolment import Invitation
from pki.tenant.ports import KeyName
from tests.kit.desk import Desk
from tests.kit.memory_holder import MemoryHolder
from tests.kit.mortal_agent import agent as started
from tests.kit.processes import wait_until
from tests.kit.site import Homes, Site

pytest_plugins = ["tests.kit.api_fixtures"]

GLOBEX = "globex/main"
_PATIENCE = 90.0
_MOST = 60


class Place:
    """A sender in this process, a recipient in processes that die, and a server that remembers everything."""

    def __init__(self, desk: Desk, room: Path) -> None:
        self.desk = desk
        self.acme = desk.enrol("acme/eu-west")
        self.home = room / "globex"
        self.log = room / "agent.log"
        invitation, secret = desk.site.invite("globex")
        told = Invitation(invitation.reference, secret)
        Agent.enroll(parse_address(GLOBEX), server=desk.site.url, invitation=told, home=self.home).close()
        self.sent: dict[str, KeyName] = {}
        self.compared: set[KeyName] = set()

    def send(self) -> str:
        """Send one more key, which waits in the mailbox then; return its deposit."""
        name = self.acme.create_key(f"key-{len(self.sent)}")
        [delivery] = self.acme.send_key(name, [parse_address(GLOBEX)]).delivered
        assert delivery.state == "available"
        self.sent[delivery.deposit_id] = name
        return delivery.deposit_id

    def waiting(self) -> str | None:
        """Return a deposit that has no receipt yet, if there is one."""
        return next((one for one in self.sent if one not in self.receipted()), None)

    def receipted(self) -> list[str]:
        """Return the deposits for which the server has a receipt, each as often as it has one."""
        with self.desk.site.deps.store.read() as unit:
            found = receipt_store.of_sender(unit, self.acme.address, after=0, limit=500)
        assert {record.kind for _, record in found} <= {"receipt"}
        return [record.deposit_id for _, record in found]

    def held(self) -> list[KeyName]:
        """Return what is in the holder, as a new process finds it, having compared each key once."""
        with Agent.open(load(default_name(parse_address(GLOBEX)), base=self.home)) as opened:
            names = list(opened.shared_keys())
            # Each was sealed by another process, and costs a derivation of its own to open.
            for name in set(names) - self.compared:
                assert opened.load_key(name) == self.acme.load_key(name)
                self.compared.add(name)
        return names

    def check(self) -> None:
        """No receipt without its key in the holder."""
        answered = self.receipted()
        assert len(answered) == len(set(answered))
        missing = {self.sent[one] for one in answered} - set(self.held())
        assert not missing, f"receipts without keys: {missing}"

    def live(self, deposit: str) -> None:
        """Start the agent, wait until it has answered, and stop it in order."""
        if deposit in self.receipted():
            return
        process = started(self.home, self.log)
        try:
            wait_until(lambda: deposit in self.receipted() or not process.is_alive(), _PATIENCE)
            assert process.is_alive(), self.log.read_text()[-3000:]
        finally:
            ended(process)
        assert process.exitcode == 0, self.log.read_text()[-3000:]


def ended(process: BaseProcess) -> None:
    """Stop a process in order."""
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
    process.join(_PATIENCE)


@pytest.fixture(scope="module")
def place(homes: Homes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server on SQLite, and both enrolled."""
    room = tmp_path_factory.mktemp("mortal")
    with Site(homes.new(), "", log_level="error") as site, Desk(site, room) as desk:
        yield Place(desk, room)


@pytest.mark.parametrize(
    ("kind", "when"),
    [("store", "before"), ("store", "after"), ("disk", "before"), ("journal", "after"), ("call", "after")],
)
def test_a_kill_at_each_step_loses_nothing(place: Place, kind: str, when: str) -> None:
    """Before the key is stored and after it, after each commit of the journal, after each call that was answered."""
    for number in range(1, _MOST):
        # What one left is taken up by the next, which dies a step later: more is sent only when nothing waits.
        deposit = place.waiting() or place.send()
        process = started(place.home, place.log, (kind, number, when))
        wait_until(lambda p=process, d=deposit: not p.is_alive() or d in place.receipted(), _PATIENCE)
        ended(process)
        place.check()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, place.log.read_text()[-3000:]
    else:
        raise AssertionError("the agent never came to an end of its steps")
    assert number > 1
    for deposit in place.sent:
        place.live(deposit)
    assert sorted(place.receipted()) == sorted(place.sent)
    assert sorted(place.held()) == sorted(place.sent.values())
    settled = place.acme.receipts()
    assert settled.alarms == []
    assert {one.deposit_id for one in place.acme.sent() if one.state == "acknowledged"} == set(place.sent)


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


class MortalHolder(MemoryHolder):
    """Dies right after it has stored a key, if it is told to."""

    dies = False

    def store_key(self, name: KeyName, material: KeyMaterial) -> None:
        """Store, and perhaps die."""
        super().store_key(name, material)
        if self.dies:
            raise Killed


@pytest.mark.parametrize("trouble", ["expired", "sender revoked"])
def test_what_was_stored_is_receipted_whatever_happens_meanwhile(homes: Homes, tmp_path: Path, trouble: str) -> None:
    """Killed between storing and noting, and back when deposit or sender are no longer good: no refusal is signed."""
    with Site(homes.new(), "", log_level="error") as site, Desk(site, tmp_path) as desk:
        acme = desk.enrol("acme/eu-west")
        invitation, secret = site.invite("globex")
        holder = MortalHolder()
        told = Invitation(invitation.reference, secret)
        address = parse_address(GLOBEX)
        home = desk.home(GLOBEX)
        globex = Agent.enroll(address, server=site.url, invitation=told, home=home, holder=holder)
        name = acme.create_key("k")
        acme.send_key(name, [globex.address])
        holder.dies = True
        with pytest.raises(Killed):
            globex.receive()
        globex.close()
        holder.dies = False
        late = timedelta(days=40) if trouble == "expired" else timedelta()
        if trouble != "expired":
            from pki.core.crl import Reason
            from pki.core.x509 import CertificateKind

            [identity] = acme.certificates(CertificateKind.IDENTITY)
            acme.revoke(identity.fingerprint, Reason.KEY_COMPROMISE)
        with Agent(load(default_name(address), base=home), holder, clock=lambda: site.deps.clock.now() + late) as again:
            [decision] = again._mailbox._opener.recovered(again._clock())
            assert (decision.kind, decision.name, decision.reason) == ("receipt", name, "")
            assert again.journal.taking.all() == []
            [seen] = again.journal.seen.unanswered()
            assert seen.kind == "receipt"
            assert again._mailbox._opener.recovered(again._clock()) == []
