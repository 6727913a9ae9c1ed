"""What was rejected because its certificate was revoked just before comes to its recipient by one way, or is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from pki.core.agreement import EcAlgorithm
from pki.core.crl import Reason
from pki.core.errors import AlgorithmError, KeymailboxError, NotFoundError, UnavailableError
from pki.core.senders import SenderMode, SenderPolicy
from pki.tenant.agent import Agent
from pki.tenant.campaigns import UNSENT
from pki.tenant.rewrapping import Rewrapped
from tests.kit.desk import Desk, RestingSite, Wire, encryption, path_ends, turn
from tests.kit.mail import Clock

pytest_plugins = ["tests.kit.api_fixtures"]


def reject(desk: Desk, site: RestingSite, sender: Agent, to: Agent, name: str = "k") -> None:
    """Send a key that is rejected: the certificate is revoked before it is validated."""
    site.rests = True
    known = {one.key_id for one in sender.shared_keys()}
    sender.send_key(sender.find_key(name) if name in known else sender.create_key(name), [to.address], wait=0)
    lose(desk, site, to)


def lose(desk: Desk, site: RestingSite, who: Agent) -> None:
    """Revoke what has been wrapped for just now, and then let the workers work."""
    who.revoke(encryption(who).fingerprint, Reason.SUPERSEDED)
    site.rests = False
    desk.settle()


def outpaced(desk: Desk, site: RestingSite, sender: Agent, to: Agent, clock: Clock) -> None:
    """Have a deposit whose successor, under a renewed key, is rejected; it itself is still there, under the old key."""
    sender.send_key(sender.create_key("k"), [to.address])
    desk.settle()
    to.publish()
    clock.go_on(hours=7)
    site.rests = True
    assert len(sender.rewrap_quarantined().delivered) == 1


def stranger_to(agent: Agent) -> None:
    """Let nobody write to an agent but somebody else."""
    agent.client.set_senders(agent.address, SenderPolicy(SenderMode.LISTED, ("initech/lab",)))


def states(agent: Agent) -> list[str]:
    """Return where all deposits of an agent stand, oldest first."""
    return [one.state for one in agent.sent()]


def test_when_there_is_another_certificate(
    desk: Desk, site: RestingSite, acme: Agent, globex: Agent, clock: Clock
) -> None:
    """Once, by itself; what was planned is sent after a cut; and the alarm goes when the key has arrived."""
    reject(desk, site, acme, globex)
    assert turn(acme).rewrapped == Rewrapped()
    globex.publish()
    clock.go_on(minutes=6)
    wire = Wire()
    wire.cut = path_ends("/v1/deposits")
    [(_, error)] = desk.reopen(acme, wire).rewrap_quarantined().waiting
    assert isinstance(error, UnavailableError)
    did = turn(acme)
    assert (did.rewrapped.delivered, [one.state for one in did.campaigns[0].delivered]) == ([], ["received"])
    assert states(acme) == ["rejected", "received"]
    assert [one.kind for one in acme.alarms()] == [UNSENT]
    desk.settle()
    assert [one.kind for one in globex.receive().taken] == ["receipt"]
    turn(acme)
    assert (acme.alarms(), len(acme.sent())) == ([], 2)


def test_at_once_where_there_is_a_certificate(desk: Desk, site: RestingSite, acme: Agent, globex: Agent) -> None:
    """Nobody hears an alarm of what was mended in the same round; the round tells of both."""
    reject(desk, site, acme, globex)
    globex.publish()
    did = turn(acme)
    assert did.done[-3:] == ["rejections", "rewrap", "alarms"]
    assert did.done.index("campaigns") < did.done.index("rewrap")
    assert [one.state for one in did.rejected] == ["rejected"]
    assert ([one.state for one in did.rewrapped.delivered], did.overdue) == (["received"], [])
    assert turn(acme).rewrapped == Rewrapped()


def test_an_older_version_is_not_sent(desk: Desk, site: RestingSite, acme: Agent, globex: Agent) -> None:
    """The next version is for who was to have this one, too; where it has no certificate, a person is told."""
    reject(desk, site, acme, globex)
    turn(acme)
    assert [type(error) for _, error in acme.rotate_key("k").failed] == [NotFoundError]
    globex.publish()
    assert turn(acme).rewrapped == Rewrapped()
    assert [(one.kind, one.subject) for one in acme.alarms()] == [(UNSENT, "k v2 globex/main")]
    acme.send_key(acme.find_key("k"), [globex.address])
    desk.settle()
    assert [one.name.version for one in globex.receive().taken] == [2]
    turn(acme)
    assert acme.alarms() == []


def test_a_version_that_is_only_made_overtakes_it(desk: Desk, site: RestingSite, acme: Agent, globex: Agent) -> None:
    """Whoever is to have the next one is decided there: killed in between, nothing of the older one goes out."""
    reject(desk, site, acme, globex)
    turn(acme)
    globex.publish()
    name = acme.find_key("k")
    acme.holder.store_key(type(name)(name.owner, name.key_id, 2), acme.holder.load_key(name))
    assert acme.rewrap_quarantined() == Rewrapped()


def test_who_is_left_out_of_the_next_version_gets_neither(
    desk: Desk, site: RestingSite, acme: Agent, globex: Agent
) -> None:
    """Though it holds no version: it was to get one."""
    reject(desk, site, acme, globex)
    turn(acme)
    acme.rotate_key("k", except_=["globex"])
    globex.publish()
    assert turn(acme).rewrapped == Rewrapped()
    assert globex.mailbox() == []


@pytest.mark.parametrize("moment", ["looked up", "handed in"])
@pytest.mark.parametrize("state", ["rejected", "quarantined"])
def test_who_is_removed_meanwhile_gets_nothing(
    desk: Desk, site: RestingSite, acme: Agent, globex: Agent, moment: str, state: str
) -> None:
    """A command removes a recipient while an agent looks it up, or just before its deposit arrives."""
    initech = desk.enrol("initech/lab")
    acme.send_key(acme.create_key("k"), [globex.address, initech.address])
    desk.settle()
    if state == "rejected":
        for one in (globex, initech):
            one.receive()
        acme.receipts()
        site.rests = True
        acme.rotate_key("k", wait=0)
    lose(desk, site, globex)
    turn(acme)
    globex.publish()
    acme.journal.marks.set(f"rejected:{globex.address}", "")
    wire = Wire()
    done: list[str] = []

    def meanwhile(request: httpx2.Request) -> bool:
        place = f"/v1/directory/{globex.address}" if moment == "looked up" else "/v1/deposits"
        if request.url.path == place and request.method in ("GET", "POST") and not done:
            done.append(moment)
            desk.reopen(acme).rotate_key("k", except_=["globex"], wait=0)
        return False

    wire.cut = meanwhile
    desk.reopen(acme, wire).rewrap_quarantined()
    desk.settle()
    assert done
    assert globex.receive().taken == []
    assert not {"received", "available", "collected"} & {
        one.state for one in acme.sent() if one.recipient == globex.address
    }


def test_what_is_not_taken_raises_an_alarm(desk: Desk, site: RestingSite, acme: Agent, globex: Agent) -> None:
    """The deposit that was to mend it fails for good."""
    reject(desk, site, acme, globex)
    globex.publish()
    stranger_to(globex)
    did = turn(acme)
    assert ([one.kind for one in did.overdue], states(acme)) == ([UNSENT], ["rejected", "failed"])
    assert turn(acme).overdue == []


def test_killed_after_planning(
    desk: Desk, site: RestingSite, acme: Agent, globex: Agent, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then the next certificate was revoked, too: it is told, and the one after that is taken."""

    class KilledError(BaseException):
        """Nobody catches it."""

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    reject(desk, site, acme, globex)
    globex.publish()
    with monkeypatch.context() as patched:
        patched.setattr(acme.journal.sent, "prepare", killed)
        with pytest.raises(KilledError):
            turn(acme)
    lose(desk, site, globex)
    assert [one.kind for one in turn(acme).overdue] == [UNSENT]
    globex.publish()
    clock.go_on(hours=7)
    turn(acme)
    desk.settle()
    assert [one.kind for one in globex.receive().taken] == ["receipt"]
    turn(acme)
    assert acme.alarms() == []


def test_what_a_person_tried_in_vain_keeps_nothing_from_it(
    desk: Desk, site: RestingSite, acme: Agent, globex: Agent, clock: Clock
) -> None:
    """There was no certificate yet; when there is one, the agent sends it all the same."""
    reject(desk, site, acme, globex)
    turn(acme)
    assert len(acme.send_key(acme.find_key("k"), [globex.address]).failed) == 1
    globex.publish()
    clock.go_on(minutes=6)
    assert len(turn(acme).rewrapped.delivered) == 1


def test_one_that_cannot_be_sent_keeps_no_other(
    desk: Desk, site: RestingSite, acme: Agent, globex: Agent, clock: Clock
) -> None:
    """To the same recipient, of whose next key only the other was allowed."""
    site.rests = True
    acme.send_key(acme.create_key("k"), [globex.address], wait=0)
    acme.send_key(acme.create_key("m"), [globex.address], wait=0, allow_classical=True)
    lose(desk, site, globex)
    globex.publish(EcAlgorithm.P_256)
    did = turn(acme)
    assert [one.name.key_id for one in did.rewrapped.delivered] == ["m"]
    assert [type(error) for _, error in did.rewrapped.waiting] == [AlgorithmError]
    assert turn(acme).rewrapped == Rewrapped()
    clock.go_on(minutes=6)
    assert len(turn(acme).rewrapped.waiting) == 1


def test_what_the_server_took_is_taken_back_though_its_answer_was_lost(desk: Desk, acme: Agent, globex: Agent) -> None:
    """And though the command that removed the recipient could not reach it."""
    initech = desk.enrol("initech/lab")
    acme.send_key(acme.create_key("k"), [globex.address, initech.address])
    desk.settle()
    for one in (globex, initech):
        one.receive()
    acme.receipts()
    wire = Wire()
    wire.deaf = lambda request: request.url.path.startswith("/v1/deposits") and request.method == "POST"
    assert len(desk.reopen(acme, wire).rotate_key("k", wait=0).failed) == 2
    wire.honest()
    wire.cut = path_ends("/withdrawal")
    [planned] = [one for one in acme.sent() if one.name.version == 2 and one.recipient == globex.address]
    desk.reopen(acme, wire).rotate_key("k", except_=["globex"], wait=0)
    with pytest.raises(KeymailboxError):
        acme._deposits.deliver(planned, datetime.now(UTC), 0)
    desk.settle()
    assert globex.receive().taken == []


@pytest.mark.parametrize("together", [False, True])
def test_what_arrives_after_the_removal_is_taken_back_though_nobody_heard(
    desk: Desk, acme: Agent, globex: Agent, clock: Clock, together: bool
) -> None:
    """The command asked the server too early, and the process that handed it in was cut off."""
    others = [desk.enrol(f"{name}/lab").address for name in (("initech", "umbrella") if together else ("initech",))]
    acme.send_key(acme.create_key("k"), [*others, globex.address] if together else others)
    desk.settle()
    name = acme.find_key("k")
    wire = Wire()
    done: list[str] = []

    def meanwhile(request: httpx2.Request) -> bool:
        if request.url.path.startswith("/v1/deposits") and request.method == "POST" and not done:
            done.append("handed in")
            desk.reopen(acme).rotate_key("k", except_=["globex"], wait=0)
        return False

    wire.cut = meanwhile
    wire.deaf = lambda request: request.url.path.startswith("/v1/deposits") and request.method == "POST"
    wanted = [globex.address, *others] if together else [globex.address]
    desk.reopen(acme, wire).send_key(name, wanted, wait=0)
    [mine] = [one for one in acme.sent() if one.recipient == globex.address][-1:]
    assert (done, mine.state) == (["handed in"], "prepared")
    turn(acme)
    desk.settle()
    assert globex.receive().taken == []
    assert {one.state for one in acme.sent() if one.deposit_id == mine.deposit_id} == {"withdrawn"}


def test_what_never_arrived_is_given_up_when_it_is_too_old(
    desk: Desk, acme: Agent, globex: Agent, clock: Clock
) -> None:
    """Until then it is asked for: somebody may be handing it in."""
    initech = desk.enrol("initech/lab")
    acme.send_key(acme.create_key("k"), [initech.address])
    desk.settle()
    wire = Wire()
    wire.cut = lambda request: request.url.path.startswith("/v1/deposits") and request.method == "POST"
    assert len(desk.reopen(acme, wire).send_key(acme.find_key("k"), [globex.address], wait=0).failed) == 1
    acme.rotate_key("k", except_=["globex"])
    turn(acme)
    mine = [one for one in acme.sent() if one.recipient == globex.address]
    assert [one.state for one in mine] == ["prepared"]
    clock.go_on(hours=25)
    turn(acme)
    assert [one.state for one in acme.sent() if one.recipient == globex.address] == ["failed"]


def test_who_was_removed_is_not_called_lost(desk: Desk, site: RestingSite, acme: Agent, globex: Agent) -> None:
    """Nobody is to send it anything."""
    reject(desk, site, acme, globex)
    assert [one.kind for one in turn(acme).overdue] == [UNSENT]
    acme.rotate_key("k", except_=["globex"])
    turn(acme)
    assert acme.alarms() == []


def test_who_has_signed_for_it_does_not_get_it_again(
    desk: Desk, site: RestingSite, acme: Agent, globex: Agent, clock: Clock
) -> None:
    """Its first deposit was quicker than the one that was to take its place."""
    outpaced(desk, site, acme, globex, clock)
    assert len(globex.receive().taken) == 1
    acme.receipts()
    lose(desk, site, globex)
    globex.publish()
    did = turn(acme)
    assert (did.rewrapped, did.overdue) == (Rewrapped(), [])


def test_what_is_still_there_is_what_is_replaced(
    desk: Desk, site: RestingSite, acme: Agent, globex: Agent, clock: Clock
) -> None:
    """It comes once: the successor of its successor takes its place, and nothing is called lost meanwhile."""
    outpaced(desk, site, acme, globex, clock)
    lose(desk, site, globex)
    globex.publish()
    did = turn(acme)
    assert (did.rewrapped, did.overdue) == (Rewrapped(), [])
    clock.go_on(hours=7)
    assert len(turn(acme).rewrapped.delivered) == 1
    desk.settle()
    assert len(globex.receive().taken) == 1
    turn(acme)
    assert states(acme)[1:] == ["rejected", "acknowledged"]


def test_what_was_taken_back_stays_so(desk: Desk, site: RestingSite, acme: Agent, globex: Agent, clock: Clock) -> None:
    """Though the deposit that was to take its place was rejected for a certificate."""
    outpaced(desk, site, acme, globex, clock)
    lose(desk, site, globex)
    acme.withdraw(acme.sent()[0].deposit_id)
    globex.publish()
    clock.go_on(hours=7)
    did = turn(acme)
    assert (did.rewrapped, did.overdue, acme.alarms()) == (Rewrapped(), [], [])


def test_a_successor_that_is_not_taken_is_not_made_each_round(
    desk: Desk, acme: Agent, globex: Agent, clock: Clock
) -> None:
    """A quarantined deposit's: it is told why, and tried again after some hours."""
    acme.send_key(acme.create_key("k"), [globex.address])
    desk.settle()
    globex.receive()
    acme.receipts()
    acme.rotate_key("k")
    desk.settle()
    globex.revoke(encryption(globex).fingerprint, Reason.SUPERSEDED)
    stranger_to(globex)
    desk.settle()
    globex.publish()
    rounds = [turn(acme) for _ in range(4)]
    assert (len(acme.sent()), sum(len(one.overdue) for one in rounds)) == (3, 1)
    assert all(len(one.rewrapped.waiting) == 1 for one in rounds)
    globex.client.set_senders(globex.address, SenderPolicy())
    clock.go_on(hours=7)
    assert len(turn(acme).rewrapped.delivered) == 1


@pytest.mark.parametrize("state", ["quarantined", "available"])
def test_what_the_server_has_forgotten_keeps_nothing_else(
    desk: Desk, acme: Agent, globex: Agent, clock: Clock, state: str
) -> None:
    """As after its database was set back."""
    initech = desk.enrol("initech/lab")
    acme.send_key(acme.create_key("k"), [globex.address])
    acme.send_key(acme.create_key("m"), [initech.address])
    desk.settle()
    first, second = acme.sent()
    acme.journal.sent.move(first.deposit_id, state)
    acme.journal.sent.move(second.deposit_id, "available")
    globex.publish()
    initech.publish()
    clock.go_on(hours=7)
    wire = Wire()
    wire.cut = lambda request: False

    def forgotten(request: httpx2.Request, status: int, content: bytes) -> tuple[int, bytes]:
        if request.url.path == f"/v1/deposits/{first.deposit_id}":
            return 404, b'{"status": 404, "code": "not-found", "title": "gone"}'
        return status, content

    wire.change = forgotten
    did = turn(desk.reopen(acme, wire))
    assert ("rewrap" in did.done, [one.recipient for one in did.rewrapped.delivered]) == (True, [initech.address])


def test_a_list_that_cannot_be_read_keeps_nothing_else(desk: Desk, acme: Agent, globex: Agent) -> None:
    """What is said of the rejected is a step of its own."""
    initech = desk.enrol("initech/lab")
    acme.send_key(acme.create_key("k"), [globex.address])
    acme.send_key(acme.create_key("m"), [initech.address], wait=0)
    desk.settle()
    globex.revoke(encryption(globex).fingerprint, Reason.SUPERSEDED)
    desk.settle()
    globex.publish()
    wire = Wire()

    def strange(request: httpx2.Request, status: int, content: bytes) -> tuple[int, bytes]:
        if request.url.path == "/v1/sent" and "state=rejected" in str(request.url):
            return 200, b'{"items": [{"id": "x"}], "next": null}'
        return status, content

    wire.change = strange
    did = turn(desk.reopen(acme, wire))
    assert [step for step, _ in did.failed] == ["rejections"]
    assert len(did.rewrapped.delivered) == 1


def test_one_that_cannot_be_taken_back_keeps_no_other(
    desk: Desk, acme: Agent, globex: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were for who was removed; the error of the first is told all the same."""
    initech = desk.enrol("initech/lab")
    acme.send_key(acme.create_key("k"), [globex.address, initech.address])
    desk.settle()
    first = acme.sent()[0]
    wire = Wire()

    def refused(request: httpx2.Request, status: int, content: bytes) -> tuple[int, bytes]:
        if request.url.path == f"/v1/deposits/{first.deposit_id}/withdrawal":
            return 403, b'{"status": 403, "code": "forbidden", "title": "no"}'
        return status, content

    wire.change = refused
    agent = desk.reopen(acme, wire)
    agent.rotate_key("k", except_=["globex", "initech"])
    assert [step for step, _ in turn(agent).failed] == ["campaigns"]
    assert states(acme) == ["available", "withdrawn"]
    with pytest.raises(KeymailboxError):
        agent.withdraw(first.deposit_id)


def test_a_newer_version_takes_back_the_alarms_of_older_ones(
    desk: Desk, site: RestingSite, acme: Agent, globex: Agent, clock: Clock
) -> None:
    """Nobody has to look at what was overtaken."""
    reject(desk, site, acme, globex)
    turn(acme)
    globex.publish()
    acme.rotate_key("k", deadline=clock.now() + timedelta(days=1))
    turn(acme)
    assert acme.alarms() == []
