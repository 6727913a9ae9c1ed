"""What goes wrong around an agent, and neither loses, leaks nor wedges anything: removal, clocks, disks, rejections."""

from __future__ import annotations

import errno
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pki.core.agreement import EcAlgorithm
from pki.core.crl import Reason
from pki.core.errors import AccessError, KeymailboxError, NotFoundError, UnavailableError
from pki.core.packages import KeyMaterial
from pki.core.senders import SenderMode, SenderPolicy
from pki.core.x509 import CertificateKind
from pki.tenant.agent import Agent
from pki.tenant.journal import Journal
from tests.kit.desk import Desk, RestingSite, Wire, encryption, impatient, path_ends, turn
from tests.kit.mail import Clock
from tests.kit.memory_holder import MemoryHolder

pytest_plugins = ["tests.kit.api_fixtures"]


def test_who_is_removed_while_its_mail_is_wrapped_again_gets_neither(
    desk: Desk, site: RestingSite, acme: Agent, globex: Agent, clock: Clock
) -> None:
    """The first deposit is not superseded before the second is available: both are taken back."""
    initech = desk.enrol("initech/lab")
    acme.send_key(acme.create_key("k"), [globex.address, initech.address])
    desk.settle()
    globex.publish()
    clock.go_on(hours=7)
    site.rests = True
    assert len(acme.rewrap_quarantined().delivered) == 1
    acme.rotate_key("k", except_=["globex"], wait=0)
    site.rests = False
    desk.settle()
    turn(acme)
    assert {one.state for one in globex.mailbox()} == {"withdrawn"}
    assert globex.receive().taken == []


def test_nothing_is_wrapped_again_for_who_was_removed(
    desk: Desk, site: RestingSite, acme: Agent, globex: Agent, clock: Clock
) -> None:
    """Not though the deposit that took another's place was rejected, and the other is quarantined."""
    initech = desk.enrol("initech/lab")
    acme.send_key(acme.create_key("k"), [globex.address, initech.address])
    desk.settle()
    old = encryption(globex)
    globex.publish()
    clock.go_on(hours=7)
    site.rests = True
    acme.rewrap_quarantined()
    globex.client.set_senders(globex.address, SenderPolicy(SenderMode.LISTED, ("initech/lab",)))
    site.rests = False
    desk.settle()
    globex.client.set_senders(globex.address, SenderPolicy())
    # The command is cut off before it takes anything back.
    wire = Wire()
    wire.cut = path_ends("/withdrawal")
    desk.reopen(acme, wire).rotate_key("k", except_=["globex"])
    globex.revoke(old.fingerprint, Reason.SUPERSEDED)
    desk.settle()
    assert acme.rewrap_quarantined().delivered == []
    assert globex.receive().taken == []


def test_a_wrong_clock_fails_no_deposit(desk: Desk, acme: Agent, globex: Agent, clock: Clock) -> None:
    """What waited for the server is sent when the clock is right again."""
    wire = Wire()
    wire.cut = path_ends("/v1/deposits")
    acme.create_key("k")
    desk.reopen(acme, wire).send_key(acme.find_key("k"), [globex.address])
    wrong = Agent(desk.context(acme), acme.holder, clock=lambda: clock.now() - timedelta(minutes=10), sleep=impatient)
    with wrong:
        did = turn(wrong)
    assert [type(error) for _, error in did.resumed.failed] == [AccessError]
    assert [one.state for one in turn(acme).resumed.delivered] == ["received"]


def test_what_a_rotation_cannot_send_raises_an_alarm(desk: Desk, acme: Agent, globex: Agent) -> None:
    """Also when an agent finds it out, long after the command; it goes when the key has arrived."""
    acme.send_key(acme.create_key("k"), [globex.address])
    desk.settle()
    globex.receive()
    acme.receipts()
    wire = Wire()
    wire.cut = path_ends("/v1/deposits")
    assert len(desk.reopen(acme, wire).rotate_key("k").failed) == 1
    globex.revoke(encryption(globex).fingerprint, Reason.CESSATION_OF_OPERATION)
    # Its bytes are made anew: a day has passed.
    wire.cut = path_ends(f"/v1/directory/{globex.address}")
    [planned] = [one for one in acme.sent() if one.name.version == 2]
    acme.journal.sent.move(planned.deposit_id, "planned")
    assert [type(error) for _, error in turn(acme).resumed.failed] == [NotFoundError]
    assert [(one.kind, one.subject) for one in acme.alarms()] == [("unsent", "k v2 globex/main")]
    globex.publish()
    acme.send_key(acme.find_key("k"), [globex.address])
    desk.settle()
    globex.receive()
    turn(acme)
    turn(acme)
    assert acme.alarms() == []


def test_what_is_rejected_after_it_was_taken_raises_an_alarm(
    desk: Desk, site: RestingSite, acme: Agent, globex: Agent
) -> None:
    """The certificate was revoked between: nobody would look at the deposit again."""
    site.rests = True
    acme.send_key(acme.create_key("k"), [globex.address], wait=0)
    globex.revoke(encryption(globex).fingerprint, Reason.KEY_COMPROMISE)
    site.rests = False
    desk.settle()
    did = turn(acme)
    assert [(one.kind, one.subject) for one in did.overdue] == [("unsent", "k v1 globex/main")]
    [one] = acme.sent()
    assert (one.state, one.detail.partition(":")[0]) == ("rejected", "certificate-revoked")
    assert turn(acme).overdue == []
    # A person has seen it, and does what it says: the same once more is told once more.
    acme.journal.alarms.note(acme.journal.alarms.all()[0].raised_at)
    globex.publish()
    site.rests = True
    acme.send_key(acme.find_key("k"), [globex.address], wait=0)
    globex.revoke(encryption(globex).fingerprint, Reason.KEY_COMPROMISE)
    site.rests = False
    desk.settle()
    assert [each.kind for each in turn(acme).overdue] == ["unsent"]


def test_a_request_of_a_clock_that_was_ahead_is_made_anew(desk: Desk, acme: Agent, globex: Agent, clock: Clock) -> None:
    """The server did not take it, and would not before that time comes."""
    ahead = Agent(desk.context(acme), acme.holder, clock=lambda: clock.now() + timedelta(days=3), sleep=impatient)
    with ahead:
        for kind in (CertificateKind.ENCRYPTION, CertificateKind.IDENTITY):
            with pytest.raises(KeymailboxError):
                ahead.renew(kind, wait=1)
    for kind in (CertificateKind.ENCRYPTION, CertificateKind.IDENTITY):
        assert acme.renew(kind).kind == kind.value


def test_a_full_disk_of_the_holder_stops_no_other_step(
    desk: Desk, acme: Agent, globex: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deposit waits, undecided, and is taken when there is room."""
    acme.send_key(acme.create_key("k"), [globex.address])
    desk.settle()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(globex.holder, "store_key", full)
        did = turn(globex)
    assert did.failed == [] and "rewrap" in did.done
    [held] = did.received.held
    assert isinstance(held.error, UnavailableError) and os.strerror(errno.ENOSPC) in str(held.error)
    assert [one.kind for one in turn(globex).received.taken] == ["receipt"]


def test_a_journal_that_cannot_be_read_refuses_no_deposit(
    desk: Desk, acme: Agent, globex: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing about the deposit, which waits."""
    acme.send_key(acme.create_key("k"), [globex.address])
    desk.settle()

    def unread(*_: object) -> None:
        raise UnavailableError("The journal cannot be read")

    with monkeypatch.context() as patched:
        patched.setattr(globex.journal.own, "certificates", unread)
        received = globex.receive()
    assert (received.taken, len(received.held)) == ([], 1)
    assert [one.kind for one in globex.receive().taken] == ["receipt"]


def test_a_journal_that_cannot_be_written_is_not_called_damaged(tmp_path: Path) -> None:
    """Whoever believed that would restore a backup because a disk is full."""
    place = tmp_path / "journal.sqlite"
    place.mkdir()
    with pytest.raises(UnavailableError, match="cannot be written"):
        Journal(place)


def test_a_receipt_is_for_the_deposit_whose_key_was_stored(
    desk: Desk, acme: Agent, globex: Agent, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes take two keys of one name, and the one that comes too late is killed before it refuses."""
    name = acme.create_key("k", b"A" * 32)
    acme.send_key(name, [globex.address])
    assert isinstance(acme.holder, MemoryHolder)
    acme.holder._shared[name] = KeyMaterial(b"B" * 32)
    acme.send_key(name, [globex.address])
    desk.settle()
    first, second = globex.mailbox()
    other = desk.reopen(globex)
    note = globex.journal.taking.note

    def late(one: Any) -> None:
        if one.deposit_id == first.id:
            [got] = other.client.collect(other.address, [second.id])
            assert got.body is not None
            _, taken = other._mailbox._opener.decide(second, got.body, {}, clock.now())
            assert taken.kind == "receipt"
        note(one)

    class Killed(BaseException):
        """The process is gone."""

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(globex.journal.taking, "note", late)
        patched.setattr(globex.journal.seen, "decide", killed)
        with pytest.raises(Killed):
            globex.receive()
    taken = {one.deposit_id: one.kind for one in globex.receive().taken}
    assert taken[first.id] == "refusal"
    assert globex.holder.load_key(name).key == b"B" * 32
    assert sorted(one.kind for one in acme.receipts().settled) == ["receipt", "refusal"]


def test_what_was_allowed_by_hand_is_wrapped_again(desk: Desk, acme: Agent, globex: Agent) -> None:
    """The hint of a deposit that waits, since its recipient has a classical key now, helps that deposit, too."""
    acme.send_key(acme.create_key("k"), [globex.address])
    desk.settle()
    globex.revoke(encryption(globex).fingerprint, Reason.SUPERSEDED)
    desk.settle()
    globex.publish(EcAlgorithm.P_256)
    [(_, error)] = acme.rewrap_quarantined().waiting
    assert "--allow-classical" in error.hint
    acme.send_key(acme.find_key("k"), [globex.address], allow_classical=True)
    desk.settle()
    assert len(acme.rewrap_quarantined().delivered) == 1
    desk.settle()
    assert acme.rewrap_quarantined().waiting == []
    assert acme.sent()[0].state == "superseded"


def test_an_answer_to_what_the_server_has_forgotten_holds_up_nothing(
    desk: Desk, acme: Agent, globex: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a backup was restored: it raises an alarm, and new mail is read."""
    acme.send_key(acme.create_key("a"), [globex.address])
    desk.settle()
    wire = Wire()
    wire.cut = path_ends("/v1/receipts")
    with pytest.raises(UnavailableError):
        desk.reopen(globex, wire).receive()
    wire.cut = lambda request: False
    [forgotten] = globex.mailbox()

    def edited(request: Any, status: int, content: bytes) -> tuple[int, bytes]:
        gone = status, content
        if request.url.path == f"/v1/deposits/{forgotten.id}":
            gone = 404, b'{"status": 404, "code": "not-found", "title": "gone"}'
        if request.url.path == "/v1/receipts" and forgotten.id.encode() in request.content:
            told = b'{"items": [{"deposit_id": "%s", "error": {"status": 404, "code": "not-found", "title": "gone"}}]}'
            gone = 200, told % forgotten.id.encode()
        return gone

    wire.change = edited
    acme.send_key(acme.create_key("b"), [globex.address])
    desk.settle()
    received = desk.reopen(globex, wire).receive()
    assert ("unanswered", forgotten.id) in received.alarms
    assert [one.name.key_id for one in received.taken if one.name] == ["b"]


def test_a_mailbox_that_was_set_back_raises_an_alarm(desk: Desk, acme: Agent, globex: Agent) -> None:
    """What comes next would get numbers that were read already; the alarm goes when the server knows them again."""
    acme.send_key(acme.create_key("a"), [globex.address])
    desk.settle()
    wire = Wire()
    reader = desk.reopen(globex, wire)
    assert [one.kind for one in reader.receive().taken] == ["receipt"]
    assert reader.receive().alarms == {}

    def forgotten(request: Any, status: int, content: bytes) -> tuple[int, bytes]:
        asked = request.url.path == f"/v1/mailboxes/{globex.address}"
        return (200, b'{"items": [], "next": 0}') if asked else (status, content)

    wire.change = forgotten
    assert list(desk.reopen(globex, wire).receive().alarms) == [("set back", "1")]
    assert list(reader.receive().alarms) == [("set back", "1")]
    assert [one.kind for one in reader.alarms()] == ["set back"]
    wire.change = None
    assert reader.receive().alarms == {}
    assert reader.alarms() == []
