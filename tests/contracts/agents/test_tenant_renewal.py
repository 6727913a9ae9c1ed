"""An agent that runs renews in time for as long as it runs, strands no mail, and finds its way back when it is late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from pki.core import links
from pki.core.certificates import CertificateKind, CertificateState, renewal_due
from pki.core.errors import UnavailableError, UnknownRecipientError
from pki.core.events import EventType
from pki.core.tenants import Address
from pki.server.facts import CertificateSummary
from pki.server.services import inventory, notices, renewals, rotation, status
from pki.server.store import events as event_store
from pki.server.store import renewals as renewal_store
from pki.tenant.agent import Agent
from pki.tenant.rounds import Round
from tests.kit.desk import Desk, Wire, path_ends
from tests.kit.office import SteppedClock
from tests.kit.processes import wait_until
from tests.kit.rollover import roll_over
from tests.kit.site import Homes, Site

pytest_plugins = ["tests.kit.api_fixtures"]

DAY = timedelta(days=1)
LIFE = 90 * DAY


@dataclass
class World:
    """A server and agents under one clock that stands still until it is moved."""

    desk: Desk
    clock: SteppedClock
    wires: dict[str, Wire] = field(default_factory=dict)

    def enrol(self, address: str) -> Agent:
        """Return an agent whose line can be cut."""
        self.wires[address] = Wire()
        return self.desk.enrol(address, self.wires[address])

    def go_on(self, by: timedelta) -> None:
        """Let time pass: certificates expire, lists are published, owners reminded, as the beat has it."""
        self.clock.step(by)
        deps = self.desk.site.deps
        status.publish(deps, self.desk.site.keys)
        rotation.expire(deps)
        renewals.remind(deps)
        notices.sequence_events(deps, None)

    def listed(self, address: Address, kind: str) -> list[CertificateSummary]:
        """Return the certificates of a use that the server lists, oldest first."""
        with self.desk.site.deps.store.read() as unit:
            return [one for one in renewal_store.summaries(unit, within=address) if one.kind.value == kind]

    def reminders(self) -> list[tuple[str, int]]:
        """Return who was reminded at which threshold."""
        with self.desk.site.deps.store.read() as unit:
            found = event_store.after(unit, 0, 10_000)
        return [
            (str(one.event.data["address"]), int(str(one.event.data["days"])))
            for one in found
            if one.event.type is EventType.CERTIFICATE_EXPIRING
        ]

    def active(self, agent: Agent, kind: str) -> CertificateSummary:
        """Return the one certificate in use, which has to be the one that the agent takes for it."""
        found = [one for one in self.listed(agent.address, kind) if one.state is CertificateState.ACTIVE]
        assert len(found) == 1, (agent.address, kind, found)
        own = agent.journal.own.active(kind)
        assert own is not None
        assert own.fingerprint == found[0].fingerprint
        return found[0]


@contextmanager
def world(homes: Homes, room: Path, life: timedelta = LIFE) -> Iterator[World]:
    """A server whose certificates last for ``life``."""
    clock = SteppedClock(datetime.now(UTC).replace(microsecond=0))
    with Site(homes.new(), "", clock=clock, log_level="error", certificate_lifetime=life) as site:
        with Desk(site, room) as desk:
            yield World(desk, clock)


def round_of(agent: Agent) -> Round:
    """Do one round."""
    return next(iter(agent.run(once=True)))


def test_a_year(homes: Homes, tmp_path: Path) -> None:
    """Every tenth day for a year: renewed at two thirds, one active at any time, all mail opened, nobody reminded."""
    with world(homes, tmp_path) as it:
        acme, globex = it.enrol("acme/eu-west"), it.enrol("globex/main")
        name = acme.create_key("orders-2026")
        sent, failed, taken = 0, list[int](), list[str]()
        for day in range(10, 370, 10):
            it.go_on(10 * DAY)
            # The server is away just when something is due; it is there again the next time.
            it.wires["acme/eu-west"].cut = path_ends("/certificate-requests") if day in (60, 190) else lambda _: False
            mine = round_of(acme)
            if mine.failed:
                [(step, error)] = mine.failed
                assert (step, type(error)) == ("renew", UnavailableError)
                failed.append(day)
            # Globex looks half as often, so that keys change while mail is under way.
            taken += opened(round_of(globex)) if day % 20 == 0 else []
            campaign = acme.send_key(name, [globex.address])
            assert [one.state for one in campaign.delivered] == ["available"]
            sent += 1
            for agent in (acme, globex):
                for kind in ("identity", "encryption"):
                    assert it.clock.now() < it.active(agent, kind).renewal_due + 20 * DAY
        taken += opened(round_of(globex))
        assert failed == [60, 190]
        assert len(set(taken)) == sent == 36
        round_of(acme)
        assert {one.state for one in acme.sent()} == {"acknowledged"}
        for agent, count in ((acme, 6), (globex, 7)):
            for kind in ("identity", "encryption"):
                every = it.listed(agent.address, kind)
                assert len(every) == count
                for before, after in pairwise(every):
                    assert before.renewal_due <= after.issued_at < before.renewal_due + 20 * DAY
                assert {one.state for one in every[:3]} == {CertificateState.EXPIRED}
        lines = inventory.certificates(it.desk.site.deps)
        assert not any(one.overdue or one.ended or one.waiting for one in lines)
        assert it.reminders() == []


def test_who_was_away_for_a_year_comes_back_and_opens_its_mail(homes: Homes, tmp_path: Path) -> None:
    """Identity and encryption certificate have both expired: both are renewed, and what came before is opened."""
    with world(homes, tmp_path) as it:
        acme, globex = it.enrol("acme/eu-west"), it.enrol("globex/main")
        it.go_on(85 * DAY)
        round_of(acme)
        name = acme.create_key("orders-2026")
        acme.send_key(name, [globex.address], lifetime=60 * DAY)
        it.go_on(30 * DAY)
        assert it.reminders().count(("globex/main", 7)) == 2, "at 85 days, five days before the end"
        with pytest.raises(UnknownRecipientError):
            acme.peer(globex.address)
        late = [one for one in inventory.certificates(it.desk.site.deps, overdue=True) if one.ended]
        assert sorted((one.address, one.kind) for one in late) == [
            ("globex/main", "encryption"),
            ("globex/main", "identity"),
        ]
        back = round_of(globex)
        assert [one.kind for one in back.renewed] == ["identity", "encryption"]
        assert opened(back) == [acme.sent()[0].deposit_id]
        assert globex.load_key(name) == acme.load_key(name)
        assert [one.state for one in it.listed(globex.address, "encryption")] == ["expired", "active"]
        assert acme.send_key(name, [globex.address]).failed == []
        assert not round_of(globex).renewed


def test_an_agent_tells_of_a_reminder_about_itself(homes: Homes, tmp_path: Path) -> None:
    """Once, and only while the certificate that it is about is still in use."""
    with world(homes, tmp_path) as it:
        acme = it.enrol("acme/eu-west")
        it.wires["acme/eu-west"].cut = path_ends("/certificate-requests")
        it.go_on(84 * DAY)
        told = round_of(acme)
        ends = it.active(acme, "identity").not_after
        assert {(one.kind, one.days) for one in told.reminders} == {("identity", 7), ("encryption", 7)}
        assert {one.not_after for one in told.reminders if one.kind == "identity"} == {ends}
        assert round_of(acme).reminders == []
        it.go_on(5.5 * DAY)
        it.wires["acme/eu-west"].honest()
        renewed = round_of(acme)
        assert len(renewed.renewed) == 2
        assert renewed.reminders == [], "what is renewed needs no reminder"
        assert len(it.reminders()) == 4


def test_near_the_end_of_the_ca_nobody_renews_for_nothing(homes: Homes, tmp_path: Path) -> None:
    """A certificate that lasts as long as the issuing CA is kept: a new one would end with it. The next CA is used."""
    with world(homes, tmp_path) as it:
        chain = it.desk.site.deps.chain
        end = links.parse(chain.issuing).not_after
        it.clock.time = end - 40 * DAY
        status.publish(it.desk.site.deps, it.desk.site.keys)
        acme = it.enrol("acme/eu-west")
        assert it.active(acme, "encryption").not_after == end
        own = acme.journal.own.active("encryption")
        assert own is not None
        for left in (13, 5, 1):
            it.go_on(end - left * DAY - it.clock.now())
            assert it.clock.now() > renewal_due(own.not_before, own.not_after)
            done = round_of(acme)
            assert (done.renewed, done.failed) == ([], [])
        assert len(it.listed(acme.address, "encryption")) == 1
        roll_over(it.desk.site.settings, at=it.clock.now())
        it.go_on(timedelta(hours=2))
        assert [one.kind for one in round_of(acme).renewed] == ["identity", "encryption"]
        assert it.active(acme, "encryption").not_after == it.active(acme, "identity").not_after > end
        assert round_of(acme).renewed == []


def test_the_identity_ends_first(homes: Homes, tmp_path: Path) -> None:
    """Nobody sends to who has no identity; it alone is renewed then, and the mail from before is opened."""
    with world(homes, tmp_path) as it:
        acme, globex = it.enrol("acme/eu-west"), it.enrol("globex/main")
        it.go_on(70 * DAY)
        round_of(acme)
        globex.publish()
        name = acme.create_key("orders-2026")
        acme.send_key(name, [globex.address], lifetime=60 * DAY)
        it.go_on(25 * DAY)
        with pytest.raises(UnknownRecipientError):
            acme.peer(globex.address)
        back = round_of(globex)
        assert [one.kind for one in back.renewed] == ["identity"]
        assert opened(back) == [acme.sent()[0].deposit_id]
        assert acme.send_key(name, [globex.address]).failed == []
        assert len(opened(round_of(globex))) == 1


def test_renewal_is_taken_up_where_it_was_cut(homes: Homes, tmp_path: Path) -> None:
    """The answer to the submission, or to the proof, is lost: the next round ends with one certificate, not two."""
    with world(homes, tmp_path) as it:
        acme = it.enrol("acme/eu-west")
        for lost in ("/certificate-requests", "/proof"):
            it.go_on(61 * DAY)
            before = len(it.listed(acme.address, "encryption"))
            it.wires["acme/eu-west"].deaf = path_ends(lost, method="POST")
            assert [step for step, _ in round_of(acme).failed] == ["renew"]
            it.wires["acme/eu-west"].honest()
            assert round_of(acme).failed == []
            assert len(it.listed(acme.address, "encryption")) == before + 1
            it.active(acme, "encryption")
            it.active(acme, "identity")


def test_a_request_that_names_an_earlier_identity_is_made_anew(homes: Homes, tmp_path: Path) -> None:
    """It was written down and never arrived, and the identity certificate was renewed before it was tried again."""
    with world(homes, tmp_path) as it:
        acme = it.enrol("acme/eu-west")
        wire = it.wires["acme/eu-west"]
        wire.cut = path_ends("/certificate-requests", method="POST")
        with pytest.raises(UnavailableError):
            acme.publish()
        wire.honest()
        acme.renew(CertificateKind.IDENTITY)
        published = acme.publish()
        assert it.active(acme, "encryption").fingerprint == published.fingerprint
        assert len(it.listed(acme.address, "encryption")) == 2


def test_an_identity_that_was_not_taken_yet_is_taken_first(homes: Homes, tmp_path: Path) -> None:
    """The server has issued it, and the answer was lost: a new encryption key is published under it all the same."""
    with world(homes, tmp_path) as it:
        acme = it.enrol("acme/eu-west")
        wire = it.wires["acme/eu-west"]
        wire.deaf = path_ends("/certificate-requests", method="POST")
        with pytest.raises(UnavailableError):
            acme.renew(CertificateKind.IDENTITY)
        wire.honest()
        wait_until(lambda: len(it.listed(acme.address, "identity")) == 2)
        published = acme.publish()
        assert it.active(acme, "encryption").fingerprint == published.fingerprint
        it.active(acme, "identity")


def opened(done: Round) -> list[str]:
    """Return the deposits that a round took, all of which it could open."""
    assert (done.failed, done.received.held, done.received.alarms) == ([], [], {})
    assert all(one.kind == "receipt" for one in done.received.taken)
    return [one.deposit_id for one in done.received.taken]
