"""An agent and a command of the same instance at once: neither takes back what the other has written down."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from pki.core.errors import UsageError
from pki.tenant.agent import Agent
from tests.kit.desk import Desk, Wire, path_ends
from tests.kit.mail import Clock

pytest_plugins = ["tests.kit.api_fixtures"]

_OTHERS = ("globex/main", "initech/lab", "umbrella/hq")


@pytest.fixture
def others(desk: Desk) -> list[Agent]:
    """Who receives."""
    return [desk.enrol(name) for name in _OTHERS]


@pytest.fixture
def acme(desk: Desk, others: list[Agent]) -> Agent:
    """Who has sent them a key, for which they have signed."""
    sender = desk.enrol("acme/eu-west")
    sender.send_key(sender.create_key("k"), [one.address for one in others])
    desk.settle()
    for one in others:
        one.receive()
    sender.receipts()
    return sender


def first(monkeypatch: pytest.MonkeyPatch, target: object, method: str, other: Callable[[], object]) -> None:
    """Let another process come first, once, when this one gets to a step."""
    step = getattr(target, method)

    def late(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(target, method, step)
        other()
        return step(*args, **kwargs)

    monkeypatch.setattr(target, method, late)


def sent(agent: Agent) -> list[str]:
    """Return to whom version 2 was sent."""
    return sorted(str(one.recipient) for one in agent.sent() if one.name.version == 2)


def turn(agent: Agent) -> None:
    """Let the agent do what is due."""
    next(agent.run(once=True))


@pytest.mark.parametrize("quick", ["plans and sends", "plans"])
def test_command_and_agent_at_once_are_one_campaign(
    desk: Desk, acme: Agent, monkeypatch: pytest.MonkeyPatch, quick: str
) -> None:
    """The agent's turn comes just when the command has made the key: each recipient is sent it once."""
    wire = Wire()
    if quick == "plans":
        wire.cut = path_ends("/v1/deposits", "/v1/deposits/batch")
    agent = desk.reopen(acme, wire)
    first(monkeypatch, acme.journal.sent, "plan", lambda: turn(agent))
    campaign = acme.rotate_key("k", except_=["umbrella"])

    assert (campaign.name.version, campaign.failed) == (2, [])
    assert sorted(str(one.recipient) for one in campaign.delivered) == ["globex/main", "initech/lab"]
    assert sent(acme) == ["globex/main", "initech/lab"]
    assert {str(one.recipient): one.standing for one in acme.standings("k")} == {
        "globex/main": "straggler",
        "initech/lab": "straggler",
        "umbrella/hq": "removed",
    }


@pytest.mark.parametrize("without", [["umbrella"], ["initech", "umbrella"]], ids=["several", "one"])
def test_what_was_signed_for_stays_signed_for(
    desk: Desk,
    acme: Agent,
    others: list[Agent],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    without: list[str],
) -> None:
    """While the command wraps, the agent hands all over and the receipts come back: nobody is overdue for ever."""
    agent = desk.reopen(acme)

    def hand_over_and_settle() -> None:
        turn(agent)
        desk.settle()
        for one in others:
            one.receive()
        agent.receipts()

    first(monkeypatch, acme.journal.sent, "prepare", hand_over_and_settle)
    campaign = acme.rotate_key("k", except_=without, deadline=clock.now() + timedelta(days=7))

    assert campaign.failed == []
    assert {one.state for one in acme.sent()} == {"acknowledged"}
    clock.go_on(days=8)
    turn(agent)
    assert agent.alarms() == []
    stand = {one.standing for one in agent.standings("k") if one.recipient.tenant not in without}
    assert stand == {"current"}


def test_the_agent_forgets_no_rotation_that_begins(
    desk: Desk, acme: Agent, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its turn comes between intention and key: the rotation keeps its deadline, and nothing is made twice."""
    agent, deadline = desk.reopen(acme), clock.now() + timedelta(days=7)
    first(monkeypatch, acme.holder, "store_key", lambda: turn(agent))
    campaign = acme.rotate_key("k", deadline=deadline)
    assert ({one.name.version for one in campaign.delivered}, campaign.failed) == ({2}, [])
    [rotation] = acme.journal.rotations.all()
    assert (rotation.name.version, rotation.state, rotation.deadline) == (2, "running", deadline)
    assert {one.deadline for one in acme.standings("k")} == {deadline}


def test_an_intention_without_a_key_is_forgotten_in_the_end(
    desk: Desk, acme: Agent, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command was killed a day ago and not typed again."""
    with monkeypatch.context() as patched:
        patched.setattr(acme.holder, "store_key", None)
        with pytest.raises(TypeError):
            acme.rotate_key("k")
    turn(acme)
    assert len(acme.journal.rotations.all()) == 1
    clock.go_on(hours=25)
    turn(acme)
    assert acme.journal.rotations.all() == []


def test_going_on_sends_each_once_while_the_agent_does(
    desk: Desk, acme: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent hands over what the command has just found planned: each recipient is told once."""
    wire = Wire()
    wire.cut = path_ends("/v1/deposits", "/v1/deposits/batch")
    assert len(desk.reopen(acme, wire).rotate_key("k").failed) == 3
    command, agent = desk.reopen(acme), desk.reopen(acme)
    first(monkeypatch, command.journal.sent, "removed", lambda: turn(agent))
    first(monkeypatch, command.journal.sent, "of_key", lambda: None)
    campaign = command.rotate_key("k", wait=5)
    assert sorted(str(one.recipient) for one in campaign.delivered) == list(_OTHERS)
    assert {one.state for one in campaign.delivered} <= {"received", "available"}
    assert sent(acme) == list(_OTHERS)


def test_a_lifetime_that_no_deposit_has_is_refused_first(acme: Agent) -> None:
    """Nothing is written down that could not be sent, and would hold up the next rotation."""
    for lifetime in (timedelta(days=91), timedelta(seconds=59)):
        with pytest.raises(UsageError, match="90 days"):
            acme.rotate_key("k", lifetime=lifetime)
    assert acme.journal.rotations.all() == []
    assert {one.version for one in acme.shared_keys()} == {1}
    assert {one.name.version for one in acme.rotate_key("k").delivered} == {2}
