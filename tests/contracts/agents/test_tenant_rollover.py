"""The issuing CA is rolled over under agents at work: nothing is stranded, and whoever lies about it is found out."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from pki.core.authorities import ca_key_identifier
from pki.core.crl import Reason
from pki.core.errors import CertificateError, ExpiredError, KeymailboxError, RevokedError, StaleError
from pki.core.signatures import SignatureAlgorithm
from pki.core.x509 import CertificateKind, parse_certificate, verify_chain
from pki.server.facts import CaChain
from pki.server.services import status
from pki.tenant.agent import Agent
from tests.kit.desk import Change, Desk, Wire, edit, path_ends
from tests.kit.rollover import another_issuing_ca, issuer_of, roll_over
from tests.kit.site import Homes, Site, now

pytest_plugins = ["tests.kit.api_fixtures"]

COUNT = itertools.count()
BOTH = (CertificateKind.IDENTITY, CertificateKind.ENCRYPTION)
SHOWN = path_ends("/v1/ca")
LISTED = path_ends("/globex/main", method="GET")


@dataclass
class Stage:
    """Acme and globex, who exchanged keys before, between and after; initech, who renewed nothing."""

    desk: Desk
    acme: Agent
    globex: Agent
    initech: Agent
    chain: CaChain
    wire: Wire
    sender: Agent

    def send(self, agent: Agent, to: Agent) -> str:
        """Send one more key, and return its id there."""
        name = agent.create_key(f"k{next(COUNT)}")
        campaign = agent.send_key(name, [to.address])
        assert campaign.failed == []
        return name.key_id

    def refused(self) -> KeymailboxError:
        """Return why acme does not send to globex; nothing may have left."""
        self.sender.authority._shown = None
        campaign = self.sender.send_key(self.sender.create_key(f"k{next(COUNT)}"), [self.globex.address])
        ((_, error),) = campaign.failed
        assert campaign.delivered == []
        return error


def kinds(agent: Agent) -> list[str]:
    """Return what an agent's alarms are about."""
    return [alarm.kind for alarm in agent.alarms()]


def active(agent: Agent, kind: CertificateKind) -> bytes:
    """Return an agent's active certificate."""
    found = agent.journal.own.active(kind.value)
    assert found is not None
    return found.der


@pytest.fixture(scope="module")
def everybody(homes: Homes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Keys under way from before the roll-over, and a globex half under each of the two issuing CAs."""
    with Site(homes.new(), "", log_level="error") as site, Desk(site, tmp_path_factory.mktemp("room")) as desk:
        acme, globex, initech = (desk.enrol(one) for one in ("acme/eu-west", "globex/main", "initech/lab"))
        name = acme.create_key("before")
        assert acme.send_key(name, [globex.address]).failed == []
        assert kinds(acme) == kinds(globex) == []
        chain = roll_over(site.settings, SignatureAlgorithm.ECDSA_P384)
        status.publish(site.deps, site.keys)
        wire = Wire()
        yield Stage(desk, acme, globex, initech, chain, wire, desk.reopen(acme, wire))


@pytest.fixture
def stage(everybody: Stage) -> Iterator[Stage]:
    """Nobody lies before a test or after it."""
    everybody.wire.honest()
    everybody.sender.authority._shown = None
    yield everybody
    everybody.wire.honest()
    everybody.sender.authority._shown = None
    for alarm in everybody.sender.alarms():
        everybody.sender.journal.alarms.clear(alarm.kind, alarm.subject)


def test_keys_travel_before_between_and_after(stage: Stage) -> None:
    """Certificates of the former CA go on, new ones are the new one's, and each agent says that there is a new CA."""
    acme, globex = stage.acme, stage.globex
    for agent in (acme, globex):
        agent.authority._shown = None
    stage.send(acme, globex)
    assert kinds(acme) == ["issuing-ca"]
    assert ca_key_identifier(stage.chain.issuing) in {one.ski for one in acme.journal.issuers.all()}
    # Between: globex's new encryption certificate is the new CA's, its identity still the former one's.
    globex.publish()
    assert issuer_of(stage.chain, active(globex, CertificateKind.ENCRYPTION)) == "current"
    assert issuer_of(stage.chain, active(globex, CertificateKind.IDENTITY)) == "former"
    stage.send(acme, globex)
    stage.send(globex, acme)
    # After: both of both.
    for agent in (acme, globex):
        agent.renew(CertificateKind.IDENTITY)
        agent.publish()
        assert {issuer_of(stage.chain, active(agent, kind)) for kind in BOTH} == {"current"}
    stage.send(acme, globex)
    received = globex.receive()
    assert received.held == []
    assert [taken.kind for taken in received.taken] == ["receipt"] * 4
    assert "before" in {taken.name.key_id for taken in received.taken if taken.name}
    assert [taken.kind for taken in acme.receive().taken] == ["receipt"]
    assert len(acme.receipts().settled) == 4
    assert kinds(acme) == kinds(globex) == ["issuing-ca"]
    acme.note_alarms()
    stage.send(acme, globex)
    assert kinds(acme) == []


def test_who_enrols_in_between_has_nothing_to_compare(stage: Stage) -> None:
    """The issuing CAs that are there at enrolment are no news."""
    newcomer = stage.desk.enrol(f"umbrella/x{next(COUNT)}")
    newcomer.peer(stage.initech.address)
    assert kinds(newcomer) == []
    assert {one.der for one in newcomer.journal.issuers.all()} == set(stage.chain.all)


def test_a_revocation_under_the_former_ca_reaches_agents(stage: Stage) -> None:
    """Its list goes on being published, and is the one that counts for its certificates."""
    victim = stage.desk.enrol(f"victim/x{next(COUNT)}")
    old = stage.initech
    assert issuer_of(stage.chain, active(old, CertificateKind.ENCRYPTION)) == "former"
    victim.peer(old.address)
    certificate = old.certificates(CertificateKind.ENCRYPTION)[0]
    # What the directory would show if the operator held the revocation back there alone.
    shown = dict(old.client._get(f"/v1/directory/{old.address}").json())
    old.revoke(certificate.fingerprint, Reason.KEY_COMPROMISE)
    status.publish(stage.desk.site.deps, stage.desk.site.keys)
    stage.wire.change = edit(path_ends("/initech/lab", method="GET"), lambda entry: shown)
    with pytest.raises(RevokedError):
        stage.sender.peer(old.address)


def hide(*which: bytes) -> Change:
    """The server shows some issuing CAs to nobody, or to us at least not."""
    hidden = {base64.b64encode(one).decode() for one in which}

    def change(told: dict[str, Any]) -> dict[str, Any]:
        current, *former = [one for one in (told["issuing"], *told["former"]) if one not in hidden]
        return told | {"issuing": current, "former": former}

    return edit(SHOWN, change)


def test_an_issuing_ca_that_is_relied_on_does_not_vanish(stage: Stage) -> None:
    """ICA-004: as long as a certificate of the former CA counts, a server that hides the CA is refused and reported."""
    stage.sender.peer(stage.globex.address)
    stage.wire.change = hide(stage.chain.former[0])
    error = stage.refused()
    assert isinstance(error, CertificateError)
    assert error.rule == "ICA-004"
    assert "kmb-server ca list" in error.hint
    assert "issuing-ca-hidden" in kinds(stage.sender)
    # It stays refused, and is good again once it is shown again.
    assert stage.refused().rule == "ICA-004"
    stage.wire.honest()
    stage.sender.authority._shown = None
    stage.sender.peer(stage.globex.address)


def test_a_certificate_of_an_issuing_ca_that_is_not_shown(stage: Stage) -> None:
    """CRT-007: what the server says of its CA and what it lists have to agree."""
    stranger_wire = Wire()
    stranger = stage.desk.enrol(f"stranger/x{next(COUNT)}", stranger_wire)
    listed = stage.globex.client.listing(stage.globex.address)
    hidden = listed.identity.issuing
    assert hidden is not None
    stranger.journal._database._db.execute("DELETE FROM issuers")
    stranger.authority._first = next(one for one in stage.chain.all if one != hidden)
    stranger.authority._shown = None
    stranger_wire.change = hide(hidden)
    with pytest.raises(CertificateError) as caught:
        stranger.peer(stage.globex.address)
    assert caught.value.rule == "CRT-007"


def test_an_issuing_ca_under_another_root(stage: Stage) -> None:
    """CRT-014: it is not taken, whether the server shows it as current or as former; nothing of it is remembered."""
    foreign = base64.b64encode(another_issuing_ca()).decode()
    before = stage.sender.journal.issuers.all()
    for where in ("issuing", "former"):
        stage.wire.change = edit(SHOWN, lambda told, at=where: told | {at: foreign if at == "issuing" else [foreign]})
        error = stage.refused()
        assert isinstance(error, CertificateError)
        assert error.rule == "CRT-014"
    assert stage.sender.journal.issuers.all() == before


def test_more_issuing_cas_than_can_be(stage: Stage) -> None:
    """Verifying costs time, so a server does not decide how much."""
    stage.wire.change = edit(SHOWN, lambda told: told | {"former": told["former"] * 40})
    assert isinstance(stage.refused(), CertificateError)


def test_another_root_is_refused(stage: Stage) -> None:
    """The root was pinned at enrolment, and is never looked up again."""
    stage.wire.change = edit(SHOWN, lambda told: told | {"root": told["issuing"]})
    assert "another root" in stage.refused().message


def test_the_wrong_list_for_an_issuing_ca(stage: Stage) -> None:
    """The other one's list, an older one of its own, one past the limit of freshness: each fails closed."""
    site = stage.desk.site
    own, other = (ca_key_identifier(one) for one in stage.chain.all)
    stage.sender.peer(stage.globex.address)

    def swapped(request: httpx2.Request, code: int, body: bytes) -> tuple[int, bytes]:
        wanted = own.hex() in request.url.path
        return (code, site.http.get(f"/v1/crl/{other.hex()}").content) if wanted else (code, body)

    stage.wire.change = swapped
    assert isinstance(stage.refused(), CertificateError)
    kept = site.http.get(f"/v1/crl/{own.hex()}").content
    status.publish(site.deps, site.keys)
    stage.wire.honest()
    stage.sender.peer(stage.globex.address)
    # The numbers of one issuing CA say nothing of the other's.
    marks = {ski: stage.sender.journal.marks.number(f"crl {ski.hex()}") for ski in (own, other)}
    assert min(marks.values()) > 0
    stage.wire.change = lambda request, code, body: (code, kept if own.hex() in request.url.path else body)
    assert isinstance(stage.refused(), StaleError)


def test_what_has_expired_may_vanish(stage: Stage) -> None:
    """After its end an issuing CA vouches for nothing (CRT-003), so nothing is amiss when it is no longer shown."""
    ended = now() + timedelta(days=11 * 365)
    assert stage.sender.authority.shown(ended) == stage.chain.all
    stage.wire.change = hide(stage.chain.former[0])
    assert stage.sender.authority.shown(ended, anew=True) == stage.chain.all[:1]
    listed = stage.sender.client.listing(stage.globex.address)
    with pytest.raises(ExpiredError):
        verify_chain(
            parse_certificate(listed.identity.certificate),
            issuing_der=stage.chain.issuing,
            root_der=stage.chain.root,
            now=ended,
        )


def test_each_issuing_ca_has_a_list_of_its_own(stage: Stage) -> None:
    """The former one's too, under its own key."""
    shown = stage.sender.authority.shown(now())
    assert shown == stage.chain.all
    lists = [stage.sender.authority.crl(one, now()) for one in shown]
    assert [one.issuer for one in lists] == [ca_key_identifier(one) for one in shown]
