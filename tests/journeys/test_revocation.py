"""Revocation through real processes: how soon every agent refuses, what becomes of mail, two officers' commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from pki.core.crl import Reason
from pki.core.errors import KeymailboxError
from pki.core.ids import Fingerprint
from pki.core.x509 import CertificateKind
from pki.tenant.agent import Agent
from tests.kit.lookout import Lookout, looking
from tests.kit.members import Members
from tests.kit.processes import Installation, wait_until

_AT_WORK: Final = (
    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND state <> 'idle' AND backend_type = 'client backend'"
)

REVOCATIONS = 20
LIMIT = 60.0
"""Seconds from the request until every agent refuses (zero-trust, attack 38)."""

pytestmark = pytest.mark.parametrize("installation", ["rabbitmq"], indirect=True, scope="session")


@dataclass(frozen=True)
class Scene:
    """Two senders and the one whose keys are stolen, at one installation."""

    installation: Installation
    members: Members
    senders: tuple[Agent, Agent]
    victim: Agent


@pytest.fixture(scope="module")
def scene(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Three instances of three tenants, enrolled for this module."""
    with Members(installation, tmp_path_factory.mktemp("revocation")) as members:
        first, second, victim = (members.enrol(f"{name}/kms") for name in ("initech", "hooli", "stark"))
        yield Scene(installation, members, (first, second), victim)


def active(agent: Agent) -> Fingerprint:
    """Return the agent's encryption certificate."""
    found = agent.journal.own.active(CertificateKind.ENCRYPTION.value)
    assert found is not None
    return found.fingerprint


def test_every_agent_refuses_within_a_minute(scene: Scene) -> None:
    """Attack 38: twenty times, from the request until both refuse, whether the directory still shows it or not."""
    taken: dict[str, list[float]] = {"honest": [], "stale": []}
    with (
        looking(scene.senders[0], scene.members.home("initech/kms"), scene.victim.address) as one,
        looking(scene.senders[1], scene.members.home("hooli/kms"), scene.victim.address) as other,
    ):
        for _ in range(REVOCATIONS):
            old = active(scene.victim)
            for lookout in (one, other):
                wait_until(partial(sees, lookout, old), LIMIT)
            asked = time.monotonic()
            scene.victim.revoke(old, Reason.KEY_COMPROMISE)
            for lookout in (one, other):
                for way, times in taken.items():
                    times.append(wait_until(partial(gone, lookout, asked, old, way), LIMIT))
            scene.victim.publish()
    for way, times in taken.items():
        median, worst = sorted(times)[len(times) // 2], max(times)
        print(f"{way} directory: {len(times)} refusals, median {median:.2f} s, slowest {worst:.2f} s")
        assert len(times) == 2 * REVOCATIONS
        assert worst <= LIMIT


def sees(lookout: Lookout, wanted: Fingerprint) -> bool:
    """Say whether the last look would wrap for this, either way."""
    return bool(lookout.seen) and (lookout.seen[-1].honest, lookout.seen[-1].stale) == (wanted, wanted)


def gone(lookout: Lookout, asked: float, old: Fingerprint, way: str) -> float | None:
    """Return how long after the request the first look refused, None before."""
    for one in lookout.since(asked):
        told = getattr(one, way)
        if told != old:
            # A look that began before the revocation and asked for the list after it refuses, too.
            assert told in {"honest": ("not-found", "certificate-revoked"), "stale": ("certificate-revoked",)}[way], one
            return one.at - asked
    return None


def test_the_mail_is_wrapped_again(scene: Scene) -> None:
    """Attack 38: what waits is held back at the revocation, and reaches the owner under the next key alone."""
    sender, victim = scene.senders[0], scene.victim
    name = sender.create_key("drill")
    [delivery] = sender.send_key(name, [victim.address]).delivered
    old = active(victim)
    foreseen = json.loads(scene.installation.command("drill", "compromise", str(victim.address), "--dry-run", "--json"))
    assert [one["id"] for one in foreseen["quarantined"]] == [delivery.deposit_id]
    assert foreseen["rewrapped_by"] == {str(sender.address): 1}
    victim.revoke(old, Reason.KEY_COMPROMISE)
    [held] = scene.installation.sql("SELECT state FROM deposits WHERE id = %s", delivery.deposit_id)
    assert held == ("quarantined",)
    assert victim.receive().taken == []
    victim.publish()
    again = wait_until(lambda: sender.rewrap_quarantined().delivered, 30)
    assert len(again) == 1
    taken = wait_until(lambda: victim.receive().taken, 30)
    assert [one.kind for one in taken] == ["receipt"]
    assert victim.load_key(name).key == sender.load_key(name).key


def test_two_officers_at_their_terminals(scene: Scene, tmp_path: Path) -> None:
    """Ordered, servers killed, the approval killed too, and approved again: revoked once, listed, the owner told."""
    installation, victim = scene.installation, scene.victim
    for name in ("ann", "bob"):
        (tmp_path / f"{name}.pass").write_text(f"the passphrase of {name}")
        officer(installation, tmp_path, name, "officer", "create", name, "--out", str(tmp_path / f"{name}.key"))
        installation.command("officer", "add", name, "--key", str(tmp_path / f"{name}.key.pub"), private=True)
    order = ("revoke", "order", str(victim.address), "--reason", "key-compromise", "--because", "It was leaked")
    given = json.loads(officer(installation, tmp_path, "ann", *order, *signed(tmp_path, "ann"), "--json"))
    assert usable(installation) == 2
    for name in ("api", "issuer", "validator", "worker"):
        installation.kill(name)
    approve = ("revoke", "approve", given["order"], *signed(tmp_path, "bob"), "--json")
    for pause in (0.4, 0.8, 1.2):
        with subprocess.Popen(
            [sys.executable, "-m", "workers.cli", *approve],
            env=environment(installation, tmp_path, "bob"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
        whole(installation, given["order"])
    # A commit that was asked for just before the kill is PostgreSQL's to end.
    wait_until(lambda: not installation.sql(_AT_WORK))
    if not installation.sql("SELECT 1 FROM orders WHERE id = %s AND executed_at IS NOT NULL", given["order"]):
        done = json.loads(officer(installation, tmp_path, "bob", *approve))
        assert len(done["revoked"]) >= 2
    whole(installation, given["order"])
    assert usable(installation) == 0
    installation.start("api", "issuer", "validator", "worker")
    wait_until(lambda: refusal(scene.senders[1], victim) == "unknown-recipient", 30)
    alarms = wait_until(lambda: victim.revoked_by_others(), 30)
    assert all(alarm.detail.endswith("was revoked by operator: ann, bob: It was leaked") for alarm in alarms)
    findings = json.loads(doctor(installation))["findings"]
    assert [one["ok"] for one in findings if one["check"] == "revocations"] == [True]


def usable(installation: Installation) -> int:
    """Count the active certificates of the victim."""
    statement = "SELECT count(*) FROM certificates WHERE address = 'stark/kms' AND state = 'active'"
    [(count,)] = installation.sql(statement)
    return int(count)


def whole(installation: Installation, order: str) -> None:
    """Demand that an order was carried out with all that belongs to it, or not at all."""
    # At one moment: what a killed client had sent may still be committed.
    [(executed, proofs, states, told)] = installation.sql(
        "SELECT (SELECT executed_at IS NOT NULL FROM orders WHERE id = %s),"
        " (SELECT count(*) FROM revocations WHERE order_id = %s),"
        " (SELECT count(*) FROM certificates WHERE state = 'revoked' AND revoked_by LIKE %s),"
        " (SELECT count(*) FROM events WHERE type = 'keymailbox.order.approved' AND subject = %s)",
        order,
        order,
        "operator:%",
        order,
    )
    assert (bool(executed), bool(proofs), bool(states)) in ((True, True, True), (False, False, False))
    assert proofs == states
    assert told == int(executed)


def refusal(sender: Agent, recipient: Agent) -> str:
    """Return why a sender would not wrap."""
    try:
        sender.directory.encryption_of(sender.peer(recipient.address))
    except KeymailboxError as error:
        return error.code
    return ""


def signed(room: Path, name: str) -> tuple[str, ...]:
    """Return the options with which an officer signs."""
    return "--officer", name, "--key", str(room / f"{name}.key")


def environment(installation: Installation, room: Path, name: str) -> dict[str, str]:
    """Return what an officer's terminal knows: no CA passphrase."""
    return installation.environment() | {"KMB_OFFICER_PASSPHRASE_FILE": str(room / f"{name}.pass")}


def officer(installation: Installation, room: Path, name: str, *arguments: str) -> str:
    """Run a command as an officer."""
    done = subprocess.run(
        [sys.executable, "-m", "workers.cli", *arguments],
        env=environment(installation, room, name),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def doctor(installation: Installation) -> str:
    """Return what the doctor says, whatever else is wanting."""
    done = subprocess.run(
        [sys.executable, "-m", "workers.cli", "doctor", "--json"],
        env=installation.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout
