"""The previous release lives on the new schema, beside the new one, until nothing of it is left; nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.members import Members
from tests.kit.previous import Tenant, unpack
from tests.kit.processes import ROLES, Installation, wait_until
from tests.kit.services import Services, drop_database, new_database

SECONDS = 60.0


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The previous release's code."""
    return unpack(tmp_path_factory.mktemp("previous") / "code")


@pytest.fixture
def old(services: Services, tmp_path: Path, code: Path) -> Iterator[Installation]:
    """An installation that the previous release has made, and whose processes are all its own."""
    database = new_database(services.postgres.url)
    try:
        with Installation(tmp_path / "server", database, services.rabbitmq.url, code=code) as installed:
            installed.start()
            yield installed
    finally:
        drop_database(database)


def change(installed: Installation, *names: str, to: Path | None) -> None:
    """Stop processes, and start them again with other code: None is this release's."""
    installed.stop(*names)
    installed.codes |= dict.fromkeys(names, to)
    installed.start(*names)


def exchange(sender: Tenant, recipient: Tenant, name: str) -> str:
    """Hand a key over: made, sent, received, receipted, believed; return the deposit's id."""
    sender.run("key", "create", name)
    sent = sender.run("key", "send", name, "--to", recipient.address)
    [deposit] = [row["deposit"] for row in sent]
    taken = recipient.run("mailbox", "receive", "--wait", "20")
    assert deposit in json.dumps(taken)
    rows = {row["deposit"]: row["state"] for row in sender.run("receipt", "list")}
    assert rows[deposit] == "acknowledged"
    return str(deposit)


def test_both_releases_work_on_the_new_schema(old: Installation, tmp_path: Path, code: Path) -> None:
    """A whole exchange in each mix of old and new processes; what the old ones left, the new ones finish."""
    people = iter(range(100))

    def enrol(name: str) -> Tenant:
        made = Tenant(code, tmp_path / "tenants" / str(next(people)), name)
        made.enroll(old.url, json.loads(old.command("tenant", "invite", name.partition("/")[0], "--json")))
        return made

    acme, globex = enrol("acme/eu-west"), enrol("globex/main")
    settled = [exchange(acme, globex, "before")]
    acme.run("key", "create", "left")
    [left] = [row["deposit"] for row in acme.run("key", "send", "left", "--to", globex.address)]

    # The schema is the new release's, and all processes are old.
    old.codes["migrate"] = None
    old.command("migrate")
    assert [row["deposit"] for row in acme.run("receipt", "list")] == [settled[0], left]
    initech = enrol("initech/old-on-new")
    settled.append(exchange(acme, initech, "old-on-new"))

    # New workers behind an old API.
    change(old, "validator", "worker", "sequencer", "relay", "issuer", "beat", to=None)
    umbrella = enrol("umbrella/new-workers")
    settled.append(exchange(umbrella, initech, "new-workers"))

    # A new API in front of old workers.
    change(old, "validator", "worker", "sequencer", "relay", "issuer", "beat", to=code)
    change(old, "api", to=None)
    hooli = enrol("hooli/new-api")
    settled.append(exchange(hooli, umbrella, "new-api"))
    settled.append(exchange(acme, initech, "new-api"))

    # Nothing old is left but the tenants' agents; what was deposited before is still there.
    change(old, *(name for name in ROLES if name != "api"), to=None)
    old.command("migrate", "--finish")
    assert left in json.dumps(globex.run("mailbox", "receive", "--wait", "20"))
    settled += [left, exchange(globex, acme, "after")]
    with Members(old, tmp_path / "members") as members:
        agent = members.enrol("aperture/new-agent")
        campaign = agent.send_key(agent.create_key("new-agent"), [agent.context.address])
        assert [one.state for one in campaign.delivered] == ["available"]
        assert [one.kind for one in agent.receive(wait=20).taken] == ["receipt"]
        settled += [str(one.deposit_id) for one in campaign.delivered]

    states = dict(old.sql("SELECT id, state FROM deposits"))
    assert states == dict.fromkeys(settled, "acknowledged")
    wait_until(lambda: not old.sql("SELECT 1 FROM events WHERE position IS NULL"), SECONDS)
    wait_until(lambda: not old.sql("SELECT 1 FROM jobs WHERE due_at <= now()"), SECONDS)
    assert old.sql("SELECT queue, kind, error FROM jobs WHERE dead_at IS NOT NULL") == []
    told = old.sql(
        "SELECT subject, count(*) FROM events WHERE type = 'keymailbox.deposit.acknowledged' GROUP BY subject"
    )
    assert sorted(told) == sorted((one, 1) for one in settled)
