"""Contract of an agent whose certificate others revoke: a person hears of it, and what is used next is new."""

from __future__ import annotations

import pytest

from pki.core import crl
from pki.core.crl import Reason
from pki.core.errors import NotFoundError, UnknownRecipientError
from pki.core.ids import Fingerprint
from pki.core.x509 import CertificateKind
from pki.server.services import status
from pki.tenant.agent import Agent
from tests.kit.bureau import Bureau
from tests.kit.desk import Desk, Wire, edit, path_ends
from tests.kit.processes import wait_until
from tests.kit.site import now

pytest_plugins = ["tests.kit.api_fixtures"]

BECAUSE = "Your key was seen in a public place"


@pytest.fixture
def globex(desk: Desk) -> Agent:
    """Whose certificates are revoked."""
    return desk.enrol("globex/main")


def fingerprint(agent: Agent, kind: CertificateKind) -> Fingerprint:
    """Return the agent's active certificate of a kind."""
    found = agent.journal.own.active(kind.value)
    assert found is not None
    return found.fingerprint


def await_list(desk: Desk, count: int) -> None:
    """Wait until so many certificates are on the list."""

    def out() -> bool:
        record = status.latest_crl(desk.site.deps)
        issuing = desk.site.deps.chain.issuing
        return record is not None and len(crl.verify_crl(record.der, issuing_der=issuing, now=now()).revoked) == count

    wait_until(out, 20)


def test_the_owner_hears_who_and_why(desk: Desk, globex: Agent) -> None:
    """Two officers revoke: the agent's next round raises the alarm, takes a new certificate, and its peers go on."""
    acme = desk.enrol("acme/eu-west")
    acme.peer(globex.address)
    bureau = Bureau(desk.site, "ann", "bob")
    old = fingerprint(globex, CertificateKind.ENCRYPTION)
    given = bureau.give(bureau.revocation("ann", [old], because=BECAUSE))
    assert globex.revoked_by_others() == []
    bureau.approve("bob", given)
    with pytest.raises(NotFoundError):
        acme.directory.encryption_of(acme.peer(globex.address))
    await_list(desk, 1)
    [one] = globex.run(once=True)
    [alarm] = one.revoked
    assert (alarm.kind, alarm.subject) == ("revoked", old)
    assert alarm.detail == f"the encryption certificate was revoked by operator: ann, bob: {BECAUSE}"
    assert globex.alarms() == [alarm]
    assert [cert.kind for cert in one.renewed] == ["encryption"]
    assert fingerprint(globex, CertificateKind.ENCRYPTION) != old
    assert globex.revoked_by_others() == []
    globex.note_alarms()
    assert globex.alarms() == []
    assert acme.send_key(acme.create_key("k"), [globex.address]).failed == []


def test_an_identity_that_was_revoked(desk: Desk, globex: Agent) -> None:
    """All that the instance has is gone: it is alarmed about each, and cannot come back by its old key."""
    bureau = Bureau(desk.site, "ann", "bob")
    both = {kind: fingerprint(globex, kind) for kind in (CertificateKind.IDENTITY, CertificateKind.ENCRYPTION)}
    bureau.revoke(*both.values())
    await_list(desk, 2)
    [one] = globex.run(once=True)
    assert {alarm.subject for alarm in one.revoked} == set(both.values())
    assert "renew" in {step for step, _ in one.failed}
    with pytest.raises(UnknownRecipientError, match="identity certificate was revoked on 20") as caught:
        desk.enrol("acme/eu-west").peer(globex.address)
    assert "kmb peer show globex/OTHER" in caught.value.hint


def test_what_it_revoked_itself_is_no_alarm(desk: Desk, globex: Agent) -> None:
    """An owner knows what it did; when somebody else did it with its key, it does not."""
    old = fingerprint(globex, CertificateKind.ENCRYPTION)
    globex.revoke(old, Reason.SUPERSEDED)
    assert globex.revoked_by_others() == []
    globex.publish()
    twin = desk.reopen(globex)
    active = fingerprint(globex, CertificateKind.ENCRYPTION)
    twin.journal.own.mark_revoked = lambda fingerprint: None  # type: ignore[method-assign]  # killed before it wrote
    twin.revoke(active, Reason.KEY_COMPROMISE)
    [alarm] = globex.revoked_by_others()
    assert alarm.detail == "the encryption certificate was revoked by owner"


def test_a_server_that_only_says_so(desk: Desk, globex: Agent) -> None:
    """What stands on no list is told to a person, and the certificate is used on."""
    wire = Wire()
    seen = desk.reopen(globex, wire)
    active = fingerprint(globex, CertificateKind.ENCRYPTION)

    def lie(body: dict[str, list[dict[str, object]]]) -> dict[str, list[dict[str, object]]]:
        return {"items": [one | {"state": "revoked", "because": "\x1b[31mha"} for one in body["items"]]}

    wire.change = edit(path_ends("/v1/certificates", method="GET"), lie)
    found = seen.revoked_by_others()
    assert {alarm.subject for alarm in found} >= {active}
    assert all(alarm.detail.isprintable() for alarm in found)
    assert fingerprint(seen, CertificateKind.ENCRYPTION) == active
