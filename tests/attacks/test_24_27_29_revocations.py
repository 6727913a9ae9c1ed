"""Attacks 24, 27, 29: who administers database or application takes no revocation back, and revokes nobody."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from sqlalchemy import text
from typer.testing import CliRunner

from pki.core.crl import Reason
from pki.core.errors import KeymailboxError, RevokedError
from pki.core.events import EventType
from pki.core.ids import Fingerprint
from pki.server.facts import Job
from pki.server.services import certificates, evidence, status
from pki.server.store import events
from pki.tenant.agent import Agent
from tests.kit.desk import Desk, Wire
from tests.kit.processes import wait_until
from tests.kit.site import Homes, Site, now
from workers.cli import app
from workers.handlers import Hands

pytest_plugins = ["tests.kit.api_fixtures"]

VICTIM = "globex/main"
PROCESSES = {"api", "dev", "worker", "relay", "beat"}
"""Serve until they are stopped; what they may do is all that the tests of the server are about."""
ROUTES = {
    "init": "",
    "migrate": "",
    "doctor": "",
    "version": "",
    "ca init": "--root root",
    "ca request": "--out request.csr",
    "ca sign-issuing": "--root root --request request.csr --out issuing.pem",
    "ca install": "issuing.pem",
    "ca list": "",
    "tenant invite": "globex",
    "tenant list": "",
    "tenant limits": "globex --set pair-deposits=500",
    "tenant recount": "",
    "report distribution": "",
    "report certificates": "",
    "report rotation": "",
    "report counterfoil": "00000000000000000000000000000000",
    "dead list": "",
    "dead replay": "--all",
    "dead show": "1",
    "dead discard": "1",
    "officer create": "mallory --out mallory.key",
    "officer add": "mallory --key mallory.key.pub",
    "officer remove": "ann",
    "officer list": "",
    "revoke order": f"{VICTIM} --reason key-compromise --because x --officer mallory --key mallory.key",
    "revoke lift-cap": "--count 1000 --for 1h --because x --officer mallory --key mallory.key",
    "revoke approve": "00000000 --officer mallory --key mallory.key",
    "revoke list": "",
    "revoke show": "00000000",
    "profile list": "",
    "profile show": "identity",
    "profile check": "none.toml",
    "drill compromise": f"{VICTIM} --dry-run",
}


@pytest.fixture
def desk(homes: Homes, tmp_path: Path) -> Iterator[Desk]:
    """A server on SQLite, its workers working."""
    with Site(homes.new(), "", log_level="error") as site, Desk(site, tmp_path) as opened:
        yield opened


def commands(cli: typer.Typer, prefix: str = "") -> Iterator[str]:
    """Yield the names of all commands."""
    for command in cli.registered_commands:
        named = command.callback.__name__.replace("_", "-") if command.callback else ""
        yield prefix + (command.name or named)
    for group in cli.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, f"{prefix}{group.name} ")


def edit(desk: Desk, statement: str, **values: object) -> None:
    """Change the database as its administrator can."""
    with desk.site.deps.store.unit() as unit:
        unit.connection.execute(text(statement), values)


def look(agent: Agent, at: Agent) -> Fingerprint:
    """Return what an agent would wrap for."""
    return agent.directory.encryption_of(agent.peer(at.address)).parsed.fingerprint


def lists(desk: Desk) -> int:
    """Let the issuer publish, and return how many certificates are listed."""
    status.publish(desk.site.deps, desk.site.keys)
    with desk.site.deps.store.read() as unit:
        return len(evidence.proved(desk.site.deps, unit, desk.site.deps.clock.now()).entries)


def test_no_command_is_forgotten() -> None:
    """Each thing that an operator can type is tried below."""
    assert set(commands(app)) == set(ROUTES) | PROCESSES


def test_27_no_route_of_the_operator_reaches_a_tenant(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the home, the database and every command, but neither the CA's passphrase nor two officers: no effect."""
    acme, globex = desk.enrol("acme/eu-west"), desk.enrol(VICTIM)
    before = look(acme, globex)
    for name, content in (("wrong", "guessed by mallory"), ("mallory.passphrase", "a passphrase of mallory's")):
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    environment = {
        "KMB_HOME": str(desk.site.settings.home),
        "KMB_PASSPHRASE_FILE": str(tmp_path / "wrong"),
        "KMB_ROOT_PASSPHRASE_FILE": str(tmp_path / "wrong"),
        "KMB_OFFICER_PASSPHRASE_FILE": str(tmp_path / "mallory.passphrase"),
    }
    for command, arguments in ROUTES.items():
        result = CliRunner(env=environment).invoke(app, [*command.split(), *shlex.split(arguments)])
        assert result.exception is None or isinstance(result.exception, KeymailboxError | SystemExit), command
        shown = certificates.lookup(desk.site.deps, globex.address).encryption
        assert shown is not None, command
        assert shown.fingerprint == before, command
    assert lists(desk) == 0
    assert look(acme, globex) == before
    assert globex.revoked_by_others() == []
    assert acme.send_key(acme.create_key("k"), [globex.address]).failed == []


def test_29_the_rows_revoke_nobody(desk: Desk) -> None:
    """All certificates are called revoked in the database: not one is listed, and what was seen is used on."""
    acme, globex = desk.enrol("acme/eu-west"), desk.enrol(VICTIM)
    before = look(acme, globex)
    edit(desk, "UPDATE certificates SET state = 'revoked', revocation_reason = 1, revoked_at = issued_at")
    assert lists(desk) == 0
    with pytest.raises(KeymailboxError):
        look(acme, globex)
    edit(desk, "UPDATE certificates SET state = 'active', revocation_reason = NULL, revoked_at = NULL")
    assert look(acme, globex) == before


def test_24_a_revocation_is_not_stripped(desk: Desk) -> None:
    """Its row, its evidence and the answer of the directory are put back: the list still says so, and nobody wraps."""
    wire = Wire()
    acme, globex = desk.enrol("acme/eu-west", wire), desk.enrol(VICTIM)
    old = look(acme, globex)
    globex.revoke(old, Reason.KEY_COMPROMISE)
    wait_until(lambda: lists(desk) == 1, 20)
    edit(desk, "UPDATE certificates SET state = 'active', revoked_at = NULL WHERE fingerprint = :f", f=old)
    for statement in ("SELECT 1", "DELETE FROM revocations", "DELETE FROM orders"):
        edit(desk, statement)
        assert lists(desk) == 1
        with pytest.raises(RevokedError):
            look(acme, globex)


def test_24_the_issuer_looks_again(desk: Desk) -> None:
    """Evidence that is spoilt after its certificate was listed is found with the beat's lists, and the owner told."""
    globex = desk.enrol(VICTIM)
    globex.revoke(look(desk.enrol("acme/eu-west"), globex), Reason.KEY_COMPROMISE)
    wait_until(lambda: lists(desk) == 1, 20)
    edit(desk, "UPDATE revocations SET request = signer")
    hands = Hands(desk.site.deps, ["issue"])
    for subject, told in (("crl", 0), (now().isoformat(), 1), (now().isoformat(), 1)):
        hands.handlers("issue")["crl"](desk.site.deps, [Job(1, "issue", "crl", subject, 1, now())])
        with desk.site.deps.store.read() as unit:
            found = events.unsequenced(unit, 10_000)
        assert [one.audience for one in found if one.type is EventType.REVOCATION_DOUBTED] == [(VICTIM,)] * told
