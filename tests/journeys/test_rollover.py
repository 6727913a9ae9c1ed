"""The issuing CA is rolled over under running processes and tenants at work: no restart, and nothing is stranded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from pki.core.authorities import ca_key_identifier
from pki.core.crl import Reason
from pki.core.errors import KeymailboxError
from pki.core.x509 import CertificateKind, parse_certificate
from pki.server.hierarchy import read_chain
from pki.tenant.agent import Agent
from tests.kit.members import Members
from tests.kit.processes import Installation, wait_until
from tests.kit.rollover import issuer_of
from tests.kit.services import Services, drop_database, new_database

IDENTITY, ENCRYPTION = CertificateKind.IDENTITY, CertificateKind.ENCRYPTION


@dataclass(frozen=True)
class Company:
    """A site whose root is kept apart, and three tenants."""

    site: Installation
    acme: Agent
    globex: Agent
    initech: Agent

    def send(self, name: str) -> None:
        """Send globex a key of acme's."""
        campaign = self.acme.send_key(self.acme.create_key(name), [self.globex.address])
        assert campaign.failed == []


@pytest.fixture(scope="module")
def company(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    """All processes of production; the first issuing CA was made in a ceremony, too."""
    database = new_database(services.postgres.url)
    try:
        with Installation(tmp_path_factory.mktemp("rolled"), database, services.rabbitmq.url, apart=True) as site:
            site.start()
            with Members(site, tmp_path_factory.mktemp("members")) as members:
                yield Company(site, *(members.enrol(one) for one in ("acme/eu-west", "globex/main", "initech/lab")))
            codes = site.stop()
            assert {code for name, code in codes.items() if name != "api"} == {0}, codes
    finally:
        drop_database(database)


def test_keys_travel_before_between_and_after(company: Company) -> None:
    """What was sent before opens, new certificates are the new CA's, and a revocation under the old one counts."""
    site, acme, globex, initech = company.site, company.acme, company.globex, company.initech
    processes = {name: one.process.pid for name, one in site.running.items()}
    company.send("before")
    acme.peer(initech.address)
    assert acme.alarms() == []

    site.hold_ceremony("--algorithm", "p-384")
    chain = read_chain(site.home)
    assert len(chain.all) == 2
    assert not (site.home / "root").exists()
    acme.authority._shown = globex.authority._shown = None
    # Its first list comes before its first certificate, without anybody's asking.
    wait_until(lambda: acme.client.crl(ca_key_identifier(chain.issuing)), 30)

    company.send("between-to-the-old")
    assert [alarm.kind for alarm in acme.alarms()] == ["issuing-ca"]
    fresh = globex.publish()
    assert issuer_of(chain, fresh.der) == "current"
    company.send("between-to-the-new")
    for agent in (acme, globex):
        agent.renew(IDENTITY)
        agent.publish()
        assert {issuer_of(chain, one.der) for one in agent.certificates() if one.state == "active"} == {"current"}

    # The issuer is killed; what was asked for in the meantime it does under the new CA.
    site.kill("issuer")
    site.start("issuer")
    processes["issuer"] = site.running["issuer"].process.pid
    assert issuer_of(chain, globex.publish().der) == "current"
    company.send("after")
    names = {taken.name.key_id for taken in globex.receive(wait=20).taken if taken.name}
    assert names == {"before", "between-to-the-old", "between-to-the-new", "after"}
    assert len(acme.receipts().settled) == 4

    # A certificate of the former CA is revoked: on its list, and refused by those who know its owner.
    [victim] = initech.certificates(ENCRYPTION)
    assert issuer_of(chain, victim.der) == "former"
    initech.revoke(victim.fingerprint, Reason.KEY_COMPROMISE)
    former = chain.former[0]
    serial = parse_certificate(victim.der).serial
    listed = wait_until(lambda: serial in acme.authority.crl(former, datetime.now(UTC)).revoked, 30)
    assert listed
    assert acme.authority.crl(former, datetime.now(UTC)).issuer == ca_key_identifier(former)
    campaign = acme.send_key(acme.create_key("never"), [initech.address])
    ((_, error),) = campaign.failed
    assert isinstance(error, KeymailboxError)
    assert {name: one.process.pid for name, one in site.running.items()} == processes
    assert [alarm.kind for alarm in acme.alarms()] == ["issuing-ca"]
