"""The tenant's side against a real server: the way of a key, from enrolment to receipt, with nobody interfering."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pki.core import x509
from pki.core.crl import Reason
from pki.core.errors import (
    AddressTakenError,
    CertificateError,
    ConflictError,
    KeymailboxError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from pki.core.kem import KemAlgorithm
from pki.core.signatures import IDENTITY, SignatureAlgorithm
from pki.core.tenants import parse_address
from pki.core.x509 import CertificateKind
from pki.tenant.agent import Agent
from pki.tenant.enrolment import Invitation
from pki.tenant.records.sent import Sent
from tests.kit.desk import Desk, Wire, impatient, path_ends
from tests.kit.memory_holder import MemoryHolder

pytest_plugins = ["tests.kit.api_fixtures"]


def last(agent: Agent) -> Sent:
    """Return the newest deposit."""
    return agent.sent()[-1]


def test_the_way_of_a_key(acme: Agent, globex: Agent) -> None:
    """Sent, validated, received, stored, receipted, and the receipt believed."""
    name = acme.create_key("orders-2026")
    campaign = acme.send_key(name, [globex.address], purpose="orders")
    assert campaign.failed == []
    assert [(one.state, one.peer is not None and one.peer.first_contact) for one in campaign.delivered] == [
        ("available", True)
    ]
    received = globex.receive()
    assert (received.held, received.alarms) == ([], {})
    (taken,) = received.taken
    assert (taken.kind, taken.name, taken.sender, taken.sequence) == ("receipt", name, acme.address, 1)
    assert globex.load_key(name) == acme.load_key(name)
    answers = acme.receipts()
    assert [(one.kind, one.recipient) for one in answers.settled] == [("receipt", globex.address)]
    assert (last(acme).state, last(acme).receipt is not None) == ("acknowledged", True)
    assert globex.receive().taken == []
    assert acme.receipts().settled == []


@pytest.mark.parametrize("algorithm", [KemAlgorithm.ML_KEM_768, KemAlgorithm.ML_KEM_1024])
def test_other_algorithms(acme: Agent, globex: Agent, algorithm: KemAlgorithm) -> None:
    """A recipient may publish a plain ML-KEM key."""
    globex.publish(algorithm)
    acme.send_key(acme.create_key("k"), [globex.address])
    assert [one.kind for one in globex.receive().taken] == ["receipt"]


@pytest.mark.parametrize("identity", sorted(IDENTITY, key=lambda one: one.name), ids=lambda one: one.label)
def test_other_identities(desk: Desk, globex: Agent, identity: SignatureAlgorithm) -> None:
    """An instance of any identity algorithm sends, receives, renews and revokes; nobody else has to do anything."""
    other = desk.enrol("initech/hq", identity=identity)
    assert globex.peer(other.address).identity.identity_key.algorithm is identity
    for sender, recipient in ((other, globex), (globex, other)):
        assert sender.send_key(sender.create_key("k"), [recipient.address]).failed == []
        assert [one.kind for one in recipient.receive().taken] == ["receipt"]
        assert [one.kind for one in sender.receipts().settled] == ["receipt"]
    other.renew(CertificateKind.IDENTITY)
    other.revoke(other.publish().fingerprint, Reason.SUPERSEDED)
    assert globex.pins()[0].identity_key == other.holder.identity_public()


def test_an_identity_s_algorithm_is_chosen_once(desk: Desk) -> None:
    """Enrolment that goes on with another algorithm than it began with says which one that was."""
    holder = MemoryHolder()
    holder.create_identity(SignatureAlgorithm.ED25519)
    invitation, secret = desk.site.invite("initech")
    with pytest.raises(ConflictError) as caught:
        Agent.enroll(
            parse_address("initech/hq"),
            server=desk.site.url,
            invitation=Invitation(invitation.reference, secret),
            home=desk.home("initech/hq"),
            holder=holder,
            clock=desk.site.deps.clock.now,
        )
    assert "--identity ed25519" in caught.value.hint


def test_renewal_strands_nothing(acme: Agent, globex: Agent) -> None:
    """What was wrapped for the old certificate still opens; what comes after is for the new one."""
    acme.send_key(acme.create_key("before"), [globex.address])
    old, new = last(acme).certificate, globex.publish()
    acme.send_key(acme.create_key("after"), [globex.address])
    assert (old, last(acme).certificate) == (globex.certificates()[1].fingerprint, new.fingerprint)
    assert [one.kind for one in globex.receive().taken] == ["receipt", "receipt"]


def test_an_identity_certificate_is_renewed_under_the_same_key(acme: Agent, globex: Agent) -> None:
    """The pin is of the key, so nobody has to confirm anything."""
    acme.peer(globex.address)
    globex.renew(CertificateKind.IDENTITY)
    acme.send_key(acme.create_key("k"), [globex.address])
    assert [one.kind for one in globex.receive().taken] == ["receipt"]
    assert [one.kind for one in acme.receipts().settled] == ["receipt"]


def test_an_access_certificate_is_for_who_wants_one(acme: Agent, globex: Agent) -> None:
    """It is of the key that signs our requests, is renewed once it is there, and concerns no peer."""
    assert [one.kind for one in globex.renew_due()] == []
    first = globex.renew(CertificateKind.ACCESS)
    parsed = x509.parse_certificate(first.der)
    assert (parsed.kind, parsed.spki[-32:]) == (CertificateKind.ACCESS, globex.holder.access_public())
    assert [one.kind for one in globex.certificates()] == ["access", "encryption", "identity"]
    acme.send_key(acme.create_key("k"), [globex.address])
    assert [one.kind for one in globex.receive().taken] == ["receipt"]


def test_an_encryption_certificate_is_renewed_with_another_key(globex: Agent) -> None:
    """Of the kind that it is, where the other kinds keep their key."""
    (old,) = globex.certificates(CertificateKind.ENCRYPTION)
    new = globex.renew(CertificateKind.ENCRYPTION)
    assert new.kind == "encryption"
    first, second = (x509.parse_certificate(one.der) for one in (old, new))
    assert first.spki != second.spki
    assert first.spki[:20] == second.spki[:20], "the same algorithm"


def test_a_revoked_certificate_is_wrapped_again(desk: Desk, acme: Agent, globex: Agent) -> None:
    """Undelivered mail is quarantined, waits for the successor, and arrives."""
    acme.send_key(acme.create_key("k"), [globex.address])
    first = last(acme)
    active = next(one for one in globex.certificates() if one.kind == "encryption")
    globex.revoke(active.fingerprint, Reason.KEY_COMPROMISE)
    assert globex.receive().taken == []
    assert [deposit for deposit, _ in acme.rewrap_quarantined().waiting] == [first.deposit_id]
    globex.publish()
    result = acme.rewrap_quarantined()
    assert (len(result.delivered), result.waiting) == (1, [])
    assert last(acme).supersedes == first.deposit_id
    desk.settle()
    assert [(one.kind, one.deposit_id) for one in globex.receive().taken] == [("receipt", last(acme).deposit_id)]
    assert [one.kind for one in acme.receipts().settled] == ["receipt"]
    assert acme.rewrap_quarantined().delivered == []


def test_a_rotation_leaves_out_whom_it_should(desk: Desk, acme: Agent, globex: Agent) -> None:
    """The next version goes to all holders but the removed one, who is no holder afterwards."""
    initech = desk.enrol("initech/lab")
    acme.send_key(acme.create_key("k"), [globex.address, initech.address])
    campaign = acme.rotate_key("k", except_=["initech"])
    assert [one.recipient for one in campaign.delivered] == [globex.address]
    assert campaign.name.version == 2
    assert [one.name.version if one.name else 0 for one in globex.receive().taken] == [1, 2]
    # What it had not collected by then was taken back.
    assert initech.receive().taken == []
    assert [one.recipient for one in acme.rotate_key("k").delivered] == [globex.address]
    with pytest.raises(UsageError):
        acme.rotate_key("k", except_=["initech"])
    # The last one removed stays removed, though the version that went to nobody is the newest.
    assert acme.rotate_key("k", except_=["globex/main"]).delivered == []
    assert acme.rotate_key("k").delivered == []


def test_a_rotation_needs_something_to_rotate(acme: Agent) -> None:
    """An unknown key, and one that is not made of random bytes."""
    with pytest.raises(NotFoundError):
        acme.rotate_key("nothing")
    acme.create_key("user-key", b"key", media_type="application/x-user-key")
    with pytest.raises(UsageError) as caught:
        acme.rotate_key("user-key")
    assert "--in FILE" in caught.value.hint


def test_the_same_name_for_another_key_is_refused(acme: Agent, globex: Agent) -> None:
    """A sender cannot replace a key that it has sent, and hears so with a signature."""
    name = acme.create_key("k", b"one key")
    acme.send_key(name, [globex.address])
    globex.receive()
    assert isinstance(acme.holder, MemoryHolder)
    acme.holder.forget(name)
    acme.create_key("k", b"another key", version=1)
    acme.send_key(name, [globex.address])
    assert [(one.kind, one.reason.partition(":")[0]) for one in globex.receive().taken] == [("refusal", "bad-package")]
    assert globex.load_key(name).key == b"one key"
    acme.receipts()
    assert (last(acme).state, last(acme).detail) == ("refused", "bad-package")


def test_a_peers_key_does_not_take_the_place_of_ours(acme: Agent, globex: Agent) -> None:
    """The same id of two owners is two keys, and ours is found first."""
    own = globex.create_key("k")
    acme.send_key(acme.create_key("k"), [globex.address])
    globex.receive()
    assert globex.find_key("k") == own
    theirs = globex.find_key("k", owner=acme.address)
    assert globex.load_key(own) != globex.load_key(theirs)


def test_unknown_recipients(acme: Agent) -> None:
    """The campaign says for whom it failed; nothing is left planned."""
    campaign = acme.send_key(acme.create_key("k"), [parse_address("nobody/here")])
    ((recipient, error),) = campaign.failed
    assert (str(recipient), error.code) == ("nobody/here", "unknown-recipient")
    assert last(acme).state == "failed"
    assert acme.resume() is None


@pytest.mark.parametrize("days", [0, 91, -1])
def test_lifetimes_have_bounds(acme: Agent, days: int) -> None:
    """From a minute to 90 days."""
    with pytest.raises(UsageError):
        acme.send_key(acme.create_key("k"), [acme.address], lifetime=timedelta(days=days))


def test_withdrawal(acme: Agent, globex: Agent) -> None:
    """What was not collected can be taken back, and the recipient goes on without it."""
    acme.send_key(acme.create_key("k"), [globex.address])
    assert acme.withdraw(last(acme).deposit_id).state == "withdrawn"
    received = globex.receive()
    assert (received.taken, received.alarms) == ([], {})


# Interruptions


def test_a_deposit_that_did_not_leave_is_sent_later(desk: Desk, acme: Agent, globex: Agent) -> None:
    """While the server is away the plan stays; afterwards another process carries it out."""
    wire = Wire()
    sender = desk.reopen(acme, wire)
    wire.cut = path_ends("/v1/deposits")
    campaign = sender.send_key(sender.create_key("k"), [globex.address])
    assert [type(error) for _, error in campaign.failed] == [UnavailableError]
    body = last(acme).body
    assert (last(acme).state, body is not None) == ("prepared", True)
    resumed = acme.resume()
    assert resumed is not None
    assert (len(resumed.delivered), last(acme).body) == (1, body)
    desk.settle()
    assert len(globex.mailbox()) == 1


def test_a_deposit_whose_answer_was_lost_is_one_deposit(desk: Desk, acme: Agent, globex: Agent) -> None:
    """Sent again under the same idempotency key, it is the same."""
    wire = Wire()
    sender = desk.reopen(acme, wire)
    wire.deaf = path_ends("/v1/deposits")
    assert len(sender.send_key(sender.create_key("k"), [globex.address]).failed) == 1
    resumed = acme.resume()
    assert resumed is not None
    assert resumed.failed == []
    desk.settle()
    assert len(globex.mailbox()) == 1


def test_a_receipt_whose_answer_was_lost_is_the_same_receipt(desk: Desk, acme: Agent, globex: Agent) -> None:
    """Decided once: the very same bytes are handed in again."""
    acme.send_key(acme.create_key("k"), [globex.address])
    wire = Wire()
    reader = desk.reopen(globex, wire)
    for interruption in (path_ends("/v1/receipts"), path_ends("/v1/receipts")):
        wire.deaf = interruption
        with pytest.raises(UnavailableError):
            reader.receive()
    assert len({request.content for request in wire.seen if request.url.path.endswith("/v1/receipts")}) == 1
    globex.receive()
    assert globex.journal.seen.unanswered() == []
    assert [one.kind for one in acme.receipts().settled] == ["receipt"]


def test_receipts_travel_together_or_one_by_one(desk: Desk, acme: Agent, globex: Agent) -> None:
    """What was received together is answered by one call; a server of before, which has none such, gets each alone."""
    wire = Wire()
    reader = desk.reopen(globex, wire)
    for number in range(3):
        acme.send_key(acme.create_key(f"k{number}"), [globex.address])
    assert [one.kind for one in reader.receive().taken] == ["receipt"] * 3
    assert [request.url.path for request in wire.seen if "receipt" in request.url.path] == ["/v1/receipts"]
    acme.send_key(acme.create_key("k"), [globex.address])
    choose = path_ends("/v1/receipts", method="POST")
    wire.change = lambda request, status, content: (405, b"{}") if choose(request) else (status, content)
    wire.cut = lambda request: False
    wire.seen.clear()
    [taken] = reader.receive().taken
    paths = [request.url.path for request in wire.seen if "receipt" in request.url.path]
    assert paths == ["/v1/receipts", f"/v1/deposits/{taken.deposit_id}/receipt"]
    assert len(acme.receipts().settled) == 4


def test_a_key_that_was_stored_before_the_kill_is_receipted(desk: Desk, acme: Agent, globex: Agent) -> None:
    """Killed between the holder and the journal, the deposit is opened again, and the holder has it once."""
    name = acme.create_key("k")
    acme.send_key(name, [globex.address])
    globex.holder.store_key(name, acme.load_key(name))
    assert [one.kind for one in desk.reopen(globex).receive().taken] == ["receipt"]
    assert list(globex.shared_keys()) == [name]


@pytest.mark.parametrize(
    "lost", ["/v1/enrolments", "/v1/certificate-requests", "/proof"], ids=["enrolment", "request", "proof"]
)
@pytest.mark.parametrize("arrived", [False, True], ids=["not arrived", "arrived"])
def test_an_enrolment_goes_on_where_it_stopped(desk: Desk, lost: str, arrived: bool) -> None:
    """Cut at any step, before or after the server heard of it, the same command finishes with the same keys."""
    invitation, secret = desk.site.invite("acme")
    wire, holder = Wire(), MemoryHolder()
    stop = path_ends(lost, method="POST")
    if arrived:
        wire.deaf = stop
    else:
        wire.cut = stop

    def enrol(transport: Wire | None) -> Agent:
        return Agent.enroll(
            parse_address("acme/eu-west"),
            server=desk.site.url,
            invitation=Invitation(invitation.reference, secret),
            home=desk.home("acme"),
            holder=holder,
            clock=desk.site.deps.clock.now,
            sleep=impatient,
            transport=transport,
        )

    if lost == "/v1/enrolments" and arrived:
        # The answer is lost, and the client finds out by asking that it was enrolled.
        agent = enrol(wire)
    else:
        with pytest.raises(UnavailableError):
            enrol(wire)
        try:
            agent = enrol(None)
        except ConflictError:
            # Enrolled by then: what is left is what the agent does by itself.
            agent = Agent(desk.context_of("acme/eu-west", desk.home("acme")), holder, clock=desk.site.deps.clock.now)
            assert next(agent.run(once=True)).failed == []
    with agent:
        assert sorted((one.kind, one.state) for one in agent.certificates()) == [
            ("encryption", "active"),
            ("identity", "active"),
        ]
        assert len(list(holder.encryption_skis())) == 1


def test_an_invitation_works_once(desk: Desk, acme: Agent) -> None:
    """Used, it is refused; and a taken address is not to be had."""
    invitation, secret = desk.site.invite("acme")
    with pytest.raises(AddressTakenError):
        Agent.enroll(
            acme.address,
            server=desk.site.url,
            invitation=Invitation(invitation.reference, secret),
            home=desk.home("other"),
            clock=desk.site.deps.clock.now,
        )


def test_another_root_is_refused(desk: Desk) -> None:
    """The fingerprint that the operator told decides, before anything is made or sent."""
    invitation, secret = desk.site.invite("acme")
    with pytest.raises(CertificateError):
        Agent.enroll(
            parse_address("acme/eu-west"),
            server=desk.site.url,
            invitation=Invitation(invitation.reference, secret),
            home=desk.home("acme"),
            root_fingerprint="00" * 32,
        )
    assert not desk.home("acme").exists()


def test_a_round_does_all_that_is_due(acme: Agent, globex: Agent) -> None:
    """One round receives, the next round of the other fetches the receipt."""
    acme.send_key(acme.create_key("k"), [globex.address])
    (round_,) = globex.run(once=True)
    assert ([one.kind for one in round_.received.taken], round_.failed) == (["receipt"], [])
    (round_,) = acme.run(once=True)
    assert ([one.kind for one in round_.answers.settled], round_.failed) == (["receipt"], [])


def test_a_step_that_fails_stops_no_other(desk: Desk, acme: Agent, globex: Agent) -> None:
    """Without the mailbox, receipts are fetched all the same."""
    acme.send_key(acme.create_key("k"), [globex.address])
    globex.receive()
    wire = Wire()
    wire.cut = lambda request: "/mailboxes/" in request.url.path
    (round_,) = desk.reopen(acme, wire).run(once=True)
    assert [(step, isinstance(error, KeymailboxError)) for step, error in round_.failed] == [("receive", True)]
    assert [one.kind for one in round_.answers.settled] == ["receipt"]
