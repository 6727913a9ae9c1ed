"""The tenant's side of limits: what does not fit stays in the journal, and the command chooses the senders."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pki.core.errors import NotWelcomeError, QuotaError
from pki.server.services import limits
from pki.tenant import output
from pki.tenant.agent import Agent
from pki.tenant.cli import app
from pki.tenant.output import exit_code
from tests.kit.desk import Desk

pytest_plugins = ["tests.kit.api_fixtures"]


def test_what_does_not_fit_is_sent_later(desk: Desk) -> None:
    """A quota is told with its time; the deposit stays in the journal, and a later round brings it."""
    acme, globex = desk.enrol("acme/eu-west"), desk.enrol("globex/main")
    limits.allow(desk.site.deps, globex.address, {"pair-deposits": 1})
    acme.send_key(acme.create_key("first"), [globex.address])
    campaign = acme.send_key(acme.create_key("second"), [globex.address])
    [(_, error)] = campaign.failed
    assert isinstance(error, QuotaError)
    assert error.retry_after == limits.LATER_SECONDS
    assert exit_code(error) == output.AWAY
    assert [one.state for one in acme.sent()][1:] == ["prepared"]
    desk.settle()
    assert [one.kind for one in globex.receive(wait=5).taken] == ["receipt"]
    resumed = acme.resume()
    assert resumed is not None and [one.recipient for one in resumed.delivered] == [globex.address]
    desk.settle()
    assert [one.kind for one in globex.receive(wait=5).taken] == ["receipt"]


def test_the_command_chooses(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kmb mailbox senders` sets and shows; whoever is not welcome learns just that."""
    acme, globex = desk.enrol("acme/eu-west"), desk.enrol("globex/main")

    def kmb(agent: Agent, *arguments: str) -> object:
        monkeypatch.setattr("pki.tenant.commands.senders.open_agent", lambda: _Kept(agent))
        result = CliRunner().invoke(app, ["mailbox", "senders", *arguments, "--json"])
        assert result.exit_code == 0, (result.output, result.exception)
        return json.loads(result.stdout)

    assert kmb(globex, "show") == {"mode": "anyone", "listed": [], "max_bytes": None, "max_days": None}
    told = kmb(globex, "set", "listed", "--allow", "initech", "--max-days", "30")
    assert told == {"mode": "listed", "listed": ["initech"], "max_bytes": None, "max_days": 30}
    name = acme.create_key("orders")
    [(_, error)] = acme.send_key(name, [globex.address]).failed
    assert isinstance(error, NotWelcomeError)
    assert exit_code(error) == output.REFUSED
    kmb(globex, "set", "known", "--allow", "acme/eu-west")
    assert not acme.send_key(name, [globex.address]).failed


class _Kept:
    """An agent that is open already, and stays so."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def __enter__(self) -> Agent:
        return self._agent

    def __exit__(self, *_: object) -> None:
        return
