"""Rotations from the sender's side: who has the new version, who is behind, who was removed, and kills in between."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from pki.core.crl import Reason
from pki.core.errors import ConflictError, NotFoundError, UsageError
from pki.core.tenants import Address, parse_address
from pki.core.x509 import CertificateKind
from pki.server.services import limits
from pki.tenant import deposits
from pki.tenant.agent import Agent
from pki.tenant.records.sent import Sent
from tests.kit.desk import Desk, Wire, path_ends
from tests.kit.mail import Clock
from tests.kit.memory_holder import MemoryHolder
from tests.kit.site import now

pytest_plugins = ["tests.kit.api_fixtures"]


class Killed(BaseException):
    """The process is gone: nothing of ours catches it."""


def standings(agent: Agent, name: str = "k") -> dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Return where each recipient stands, as the journal knows after asking for receipts."""
    agent.receipts()
    return {str(one.recipient): (one.standing, one.holds, one.may_hold) for one in agent.standings(name)}


def versions(agent: Agent) -> list[int]:
    """Return the versions of the key that the holder has."""
    return sorted(one.version for one in agent.shared_keys())


def kill(monkeypatch: pytest.MonkeyPatch, target: object, method: str) -> None:
    """Let the process be killed when it gets to a step; once."""

    def killed(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise Killed

    monkeypatch.setattr(target, method, killed)


def killed_while_sending(desk: Desk, agent: Agent, to: list[Address], monkeypatch: pytest.MonkeyPatch) -> Agent:
    """Send a key and kill its rotation when it is planned and nothing is sent; return the agent as it starts again."""
    agent.send_key(agent.create_key("k"), to)
    kill(monkeypatch, agent.journal.sent, "prepare")
    with pytest.raises(Killed):
        agent.rotate_key("k")
    return desk.reopen(agent)


def test_a_rotation_is_followed_to_its_end(desk: Desk, acme: Agent, globex: Agent) -> None:
    """Straggler, then current by a verified receipt; who was removed holds what it signed for."""
    initech = desk.enrol("initech/lab")
    acme.send_key(acme.create_key("k"), [globex.address, initech.address])
    globex.receive()
    initech.receive()
    acme.rotate_key("k", except_=["initech"], deadline=now() + timedelta(days=7))
    assert standings(acme) == {"globex/main": ("straggler", (1,), ()), "initech/lab": ("removed", (1,), ())}
    (overview,) = acme.overviews()
    assert (overview.name.version, overview.counts) == (2, {"straggler": 1, "removed": 1})
    globex.receive()
    assert standings(acme)["globex/main"] == ("current", (1, 2), ())
    with pytest.raises(NotFoundError):
        acme.standings("another")


def test_both_ends_know_the_deadline_and_who_missed_it(acme: Agent, globex: Agent, clock: Clock, desk: Desk) -> None:
    """The recipient sees it in its mailbox; past it the sender's agent raises one alarm, which a receipt takes back."""
    acme.send_key(acme.create_key("k"), [globex.address])
    globex.receive()
    deadline = (now() + timedelta(hours=1)).replace(microsecond=0)
    acme.rotate_key("k", deadline=deadline)
    assert [one.respond_by for one in globex.mailbox()] == [None, deadline]
    assert next(acme.run(once=True)).overdue == []
    clock.go_on(hours=2)
    (alarm,) = next(acme.run(once=True)).overdue
    assert (alarm.kind, alarm.subject) == ("overdue", "k v2 globex/main")
    assert standings(acme)["globex/main"] == ("overdue", (1,), ())
    # Once: whoever runs the agent all day is not told all day.
    assert next(acme.run(once=True)).overdue == []
    globex.receive()
    next(acme.run(once=True))
    next(acme.run(once=True))
    assert (standings(acme)["globex/main"], acme.alarms()) == (("current", (1, 2), ()), [])
    with pytest.raises(UsageError):
        acme.rotate_key("k", deadline=clock.now())


@pytest.mark.parametrize("again", ["the command", "the agent"])
def test_killed_before_the_key_is_made(
    desk: Desk, acme: Agent, globex: Agent, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    """Nothing came of it: the next rotation makes version 2."""
    acme.send_key(acme.create_key("k"), [globex.address])
    kill(monkeypatch, acme.holder, "store_key")
    with pytest.raises(Killed):
        acme.rotate_key("k")
    reopened = desk.reopen(acme)
    if again == "the agent":
        assert next(reopened.run(once=True)).failed == []
    assert (versions(reopened), len(reopened.sent())) == ([1], 1)
    assert [one.name.version for one in reopened.rotate_key("k").delivered] == [2]
    assert versions(reopened) == [1, 2]


@pytest.mark.parametrize("again", ["the command", "the agent"])
def test_killed_before_it_is_planned(
    desk: Desk, acme: Agent, globex: Agent, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    """The version that was made is the one that is sent, to those that were meant; there is no third."""
    initech = desk.enrol("initech/lab")
    acme.send_key(acme.create_key("k"), [globex.address, initech.address])
    kill(monkeypatch, acme.journal.sent, "plan")
    with pytest.raises(Killed):
        acme.rotate_key("k", except_=["initech"])
    assert versions(acme) == [1, 2]
    reopened = desk.reopen(acme)
    with pytest.raises(ConflictError):
        reopened.rotate_key("k")
    if again == "the agent":
        assert next(reopened.run(once=True)).failed == []
    else:
        assert len(reopened.rotate_key("k", except_=["initech"]).delivered) == 1
    desk.settle()
    assert versions(reopened) == [1, 2]
    assert [one.name.version if one.name else 0 for one in globex.receive().taken] == [1, 2]
    assert initech.receive().taken == []


def test_killed_while_it_is_sent(desk: Desk, acme: Agent, globex: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is planned is carried out, each deposit once."""
    initech = desk.enrol("initech/lab")
    reopened = killed_while_sending(desk, acme, [globex.address, initech.address], monkeypatch)
    assert next(reopened.run(once=True)).failed == []
    assert next(reopened.run(once=True)).failed == []
    desk.settle()
    for agent in (globex, initech):
        assert [one.name.version if one.name else 0 for one in agent.receive().taken] == [1, 2]
    assert set(standings(reopened).values()) == {("current", (1, 2), ())}


@pytest.mark.parametrize("end", ["killed", "cut off"])
def test_the_same_command_goes_on_with_what_is_not_sent(
    desk: Desk, acme: Agent, globex: Agent, monkeypatch: pytest.MonkeyPatch, clock: Clock, end: str
) -> None:
    """With the same exceptions and as long to answer it makes no other version; once all is sent, it does."""
    initech, umbrella = desk.enrol("initech/lab"), desk.enrol("umbrella/hq")
    acme.send_key(acme.create_key("k"), [globex.address, initech.address, umbrella.address])
    week = timedelta(days=7)
    if end == "killed":
        kill(monkeypatch, acme.journal.sent, "prepare")
        with pytest.raises(Killed):
            acme.rotate_key("k", except_=["initech"], deadline=clock.now() + week)
    else:
        wire = Wire()
        wire.cut = path_ends("/v1/deposits", "/v1/deposits/batch")
        broken = desk.reopen(acme, wire)
        assert len(broken.rotate_key("k", except_=["initech"], deadline=clock.now() + week).failed) == 2
    reopened = desk.reopen(acme)
    clock.go_on(seconds=30)
    campaign = reopened.rotate_key("k", except_=["initech"], deadline=clock.now() + week)
    assert {(str(one.recipient), one.name.version) for one in campaign.delivered} == {
        ("globex/main", 2),
        ("umbrella/hq", 2),
    }
    desk.settle()
    assert versions(reopened) == [1, 2]
    assert [one.name.version if one.name else 0 for one in globex.receive().taken] == [1, 2]
    assert standings(reopened)["initech/lab"][0] == "removed"
    again = reopened.rotate_key("k", deadline=clock.now() + week)
    assert {one.name.version for one in again.delivered} == {3}


def test_killed_between_two_recipients(
    desk: Desk, acme: Agent, globex: Agent, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """One has it, the other was not tried: the same command sends the rest, tells of both, and is another one then."""
    initech = desk.enrol("initech/lab")
    acme.send_key(acme.create_key("k"), [globex.address, initech.address])
    prepare = acme.journal.sent.prepare

    def second(one: Sent, **how: Any) -> Sent:
        if one.recipient == initech.address:
            raise Killed
        return prepare(one, **how)

    with monkeypatch.context() as patched:
        patched.setattr(deposits, "_TOGETHER", 1)
        patched.setattr(acme.journal.sent, "prepare", second)
        with pytest.raises(Killed):
            acme.rotate_key("k")
    reopened = desk.reopen(acme)
    told = [(str(one.recipient), one.name.version) for one in reopened.rotate_key("k").delivered]
    assert told == [("globex/main", 2), ("initech/lab", 2)]
    assert sorted(str(one.recipient) for one in acme.sent() if one.name.version == 2) == ["globex/main", "initech/lab"]
    assert versions(reopened) == [1, 2]
    assert {one.name.version for one in reopened.rotate_key("k").delivered} == {3}


def test_what_was_interrupted_is_not_sent_by_hand(
    desk: Desk, acme: Agent, globex: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is left out is not planned yet: it goes to nobody before that, and after it to whom it is sent."""
    initech, umbrella = desk.enrol("initech/lab"), desk.enrol("umbrella/hq")
    acme.send_key(acme.create_key("k"), [globex.address, initech.address])
    kill(monkeypatch, acme.journal.sent, "plan")
    with pytest.raises(Killed):
        acme.rotate_key("k", except_=["initech"])
    reopened = desk.reopen(acme)
    with pytest.raises(ConflictError):
        reopened.send_key(reopened.find_key("k"), [umbrella.address])
    assert next(reopened.run(once=True)).failed == []
    assert len(reopened.send_key(reopened.find_key("k"), [umbrella.address]).delivered) == 1
    desk.settle()
    assert standings(reopened)["initech/lab"][0] == "removed"
    assert initech.receive().taken == []


def test_a_day_later_the_same_command_is_the_next_rotation(
    desk: Desk, acme: Agent, globex: Agent, clock: Clock
) -> None:
    """Also when the only recipient was full all the time."""
    acme.send_key(acme.create_key("k"), [globex.address])
    limits.allow(desk.site.deps, globex.address, {"pair-deposits": 1})
    for _ in range(2):
        assert [recipient for recipient, _ in acme.rotate_key("k").failed] == [globex.address]
        assert versions(acme) == [1, 2]
    clock.go_on(hours=25)
    acme.rotate_key("k")
    assert versions(acme) == [1, 2, 3]


def test_a_full_mailbox_does_not_hold_up_the_next_rotation(desk: Desk, acme: Agent, globex: Agent) -> None:
    """Each was tried and one was full: the same command is the next rotation, and both come when there is room."""
    initech = desk.enrol("initech/lab")
    acme.send_key(acme.create_key("k"), [globex.address, initech.address])
    desk.settle()
    globex.receive()
    limits.allow(desk.site.deps, initech.address, {"pair-deposits": 1})
    for version in (2, 3):
        campaign = acme.rotate_key("k")
        assert [(one.recipient, one.name.version) for one in campaign.delivered] == [(globex.address, version)]
        assert [recipient for recipient, _ in campaign.failed] == [initech.address]
        next(acme.run(once=True))
    limits.allow(desk.site.deps, initech.address, {"pair-deposits": 9})
    next(acme.run(once=True))
    desk.settle()
    assert {one.name.version if one.name else 0 for one in initech.receive().taken} == {1, 2, 3}


def test_who_must_not_have_it_does_not_wait_for_what_was_interrupted(
    desk: Desk, acme: Agent, globex: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rotation is begun at once, and what was planned for who is removed is not sent."""
    initech = desk.enrol("initech/lab")
    reopened = killed_while_sending(desk, acme, [globex.address, initech.address], monkeypatch)
    assert [one.name.version for one in reopened.rotate_key("k", except_=["initech"]).delivered] == [3]
    next(reopened.run(once=True))
    desk.settle()
    assert initech.receive().taken == []


@pytest.mark.parametrize("other", [timedelta(days=8), None])
def test_another_deadline_is_another_rotation(
    acme: Agent, globex: Agent, desk: Desk, monkeypatch: pytest.MonkeyPatch, clock: Clock, other: timedelta | None
) -> None:
    """Killed before it was planned, with a deadline: the same goes on, another is told what is in its way."""
    acme.send_key(acme.create_key("k"), [globex.address])
    week = timedelta(days=7)
    kill(monkeypatch, acme.journal.sent, "plan")
    with pytest.raises(Killed):
        acme.rotate_key("k", deadline=clock.now() + week)
    reopened = desk.reopen(acme)
    with pytest.raises(ConflictError):
        reopened.rotate_key("k", deadline=None if other is None else clock.now() + other)
    assert [one.name.version for one in reopened.rotate_key("k", deadline=clock.now() + week).delivered] == [2]


def test_the_removed_get_nothing_more_of_what_is_under_way(desk: Desk, acme: Agent, globex: Agent) -> None:
    """Quarantined, it is not wrapped again; not sent yet, it is not sent; collected, it stands in the report."""
    initech, umbrella = desk.enrol("initech/lab"), desk.enrol("umbrella/hq")
    for agent in (initech, globex):
        acme.send_key(acme.create_key("k", version=1) if agent is initech else acme.find_key("k"), [agent.address])
    wire = Wire()
    wire.cut = path_ends("/v1/deposits")
    desk.reopen(acme, wire).send_key(acme.find_key("k"), [umbrella.address])
    held = next(one for one in initech.certificates(CertificateKind.ENCRYPTION) if one.state == "active")
    initech.revoke(held.fingerprint, Reason.KEY_COMPROMISE)
    initech.publish()
    acme.rotate_key("k", except_=["initech", "umbrella"])
    next(acme.run(once=True))
    desk.settle()
    assert (initech.receive().taken, umbrella.receive().taken) == ([], [])
    assert {name: one[0] for name, one in standings(acme).items()} == {
        "globex/main": "straggler",
        "initech/lab": "removed",
        "umbrella/hq": "removed",
    }
    # What never arrived is asked for until its bytes are too old.
    assert {one.state for one in acme.sent() if one.recipient != globex.address} == {"withdrawn", "prepared"}


def test_the_removed_may_hold_what_they_took_before(desk: Desk, acme: Agent, globex: Agent) -> None:
    """Collected and not answered is told apart from what was signed for."""
    acme.send_key(acme.create_key("k"), [globex.address])
    globex.client.collect(globex.address, [acme.sent()[0].deposit_id])
    acme.rotate_key("k", except_=["globex"])
    assert standings(acme) == {"globex/main": ("removed", (), (1,))}


def test_who_was_never_there_is_not_behind(desk: Desk, acme: Agent, globex: Agent) -> None:
    """A name that was mistyped once is no holder: rotations send it nothing, and nobody waits for it."""
    nobody = parse_address("globex/mistyped")
    sent = acme.send_key(acme.create_key("k"), [globex.address, nobody])
    assert [recipient for recipient, _ in sent.failed] == [nobody]
    assert standings(acme)[str(nobody)][0] == "failed"
    desk.settle()
    globex.receive()
    acme.rotate_key("k")
    assert {name: one[0] for name, one in standings(acme).items()} == {
        "globex/main": "straggler",
        "globex/mistyped": "failed",
    }


def test_what_waits_for_a_renewed_key_is_wrapped_again(desk: Desk, acme: Agent, globex: Agent, clock: Clock) -> None:
    """Hours after the recipient renewed its key, uncollected mail is under the new one, and the old one drained."""
    acme.send_key(acme.create_key("k"), [globex.address])
    old = next(one for one in globex.certificates(CertificateKind.ENCRYPTION))
    globex.publish()
    assert globex.waiting()[old.fingerprint] == 1
    # Looked up a moment ago: not asked again at every turn.
    assert next(acme.run(once=True)).rewrapped.delivered == []
    clock.go_on(hours=7)
    assert len(next(acme.run(once=True)).rewrapped.delivered) == 1
    desk.settle()
    assert globex.waiting()[old.fingerprint] == 0
    assert [one.state for one in globex.mailbox()] == ["superseded", "available"]
    assert [one.kind for one in globex.receive().taken] == ["receipt"]
    assert standings(acme) == {"globex/main": ("current", (1,), ())}
    clock.go_on(hours=7)
    assert next(acme.run(once=True)).rewrapped.delivered == []


def test_a_holder_of_memory_forgets_nothing_between_agents(desk: Desk, acme: Agent) -> None:
    """What these tests rest on: an agent opened again has the same keys."""
    assert isinstance(acme.holder, MemoryHolder)
    acme.create_key("k")
    assert versions(desk.reopen(acme)) == [1]
