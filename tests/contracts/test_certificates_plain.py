"""Contract of requests that say no time: some tools sign one for good, and it renews what it was made for, no more."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from pki.core import requests
from pki.core.certificates import CertificateRecord, CertificateState, RequestState
from pki.core.crl import Reason
from pki.core.errors import AccessError, ConflictError, EnrolmentError, RevokedError
from pki.core.ids import RequestId, request_id
from pki.core.signatures import SignatureAlgorithm
from pki.core.tenants import parse_address
from pki.core.x509 import CertificateKind
from pki.server.facts import RequestRecord
from pki.server.services import access, est, issuing
from pki.server.services.est import Credentials
from pki.server.store import certificates as certificate_store
from pki.server.store import outbox, tables
from pki.server.store import requests as request_store
from pki.server.store.engine import Store
from tests.kit.authority import new_signing_key
from tests.kit.office import Kms, Office, open_office
from tests.kit.plain import plain
from tests.kit.threads import together

ACME = parse_address("acme/eu-west")


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA."""
    return open_office(store, tmp_path)


@pytest.fixture
def kms() -> Kms:
    """An instance whose tool makes the same bytes each time: Ed25519 signs without chance."""
    return Kms(ACME, identity=new_signing_key(SignatureAlgorithm.ED25519))


def enrolled(office: Office, kms: Kms) -> CertificateRecord:
    """Enrol by EST and return the identity certificate."""
    est.enroll(office.deps, Credentials(*office.invite("acme")), plain(ACME, kms.identity))
    office.work()
    return active(office)


def active(office: Office, kind: CertificateKind = CertificateKind.IDENTITY) -> CertificateRecord:
    """Return the certificate in use."""
    with office.deps.store.read() as unit:
        found = certificate_store.active(unit, ACME, kind)
    assert found is not None
    return found


def again(office: Office, kms: Kms, client: CertificateRecord) -> RequestRecord:
    """Send the very same request once more."""
    return est.renew(office.deps, client.der, plain(ACME, kms.identity))


def revoke(office: Office, record: CertificateRecord, reason: Reason) -> None:
    """Revoke as the directory would."""
    with office.deps.store.unit() as unit:
        certificate_store.set_certificate_state(
            unit, record.fingerprint, CertificateState.REVOKED, now=office.clock.now(), reason=int(reason)
        )


def test_the_same_request_renews_when_it_is_due(office: Office, kms: Kms) -> None:
    """Before the last third of its life it is the same certificate, after that a new one, with a new serial."""
    first = enrolled(office, kms)
    assert again(office, kms, first).fingerprint == first.fingerprint
    assert office.jobs() == []
    office.clock.step(timedelta(days=250))
    assert again(office, kms, first).state is RequestState.PENDING
    assert again(office, kms, first).state is RequestState.PENDING
    assert len(office.jobs()) == 1
    office.work()
    second = active(office)
    assert (second.ski, second.request_der) == (first.ski, first.request_der)
    assert second.serial != first.serial
    assert again(office, kms, second).fingerprint == second.fingerprint
    with office.deps.store.read() as unit:
        before = certificate_store.certificate(unit, first.fingerprint)
    assert before is not None
    assert before.state is CertificateState.RETIRED


def test_a_renewal_is_taken_up_once_when_many_ask_at_once(office: Office, kms: Kms) -> None:
    """Eight times the same bytes at the same time: one job, one new certificate."""
    first = enrolled(office, kms)
    office.clock.step(timedelta(days=250))
    together(8, lambda _: again(office, kms, first))
    assert len(office.jobs()) == 1
    office.work()
    with office.deps.store.read() as unit:
        assert len(certificate_store.history(unit, ACME)) == 2


def test_a_lost_key_does_not_come_back(office: Office, kms: Kms) -> None:
    """Superseded, the certificate may be renewed by its old request; with the key lost, no request brings one."""
    first = enrolled(office, kms)
    office.clock.step(timedelta(days=250))
    again(office, kms, first)
    office.work()
    second = active(office)
    revoke(office, second, Reason.SUPERSEDED)
    again(office, kms, first)
    office.work()
    third = active(office)
    revoke(office, third, Reason.KEY_COMPROMISE)
    with pytest.raises(RevokedError):
        again(office, kms, first)
    with pytest.raises(AccessError):
        again(office, kms, third)
    office.work()
    with office.deps.store.read() as unit:
        assert certificate_store.active(unit, ACME, CertificateKind.IDENTITY) is None


def test_an_expired_certificate_stands_for_nobody(office: Office, kms: Kms) -> None:
    """Who let it run out needs another way in than its certificate."""
    first = enrolled(office, kms)
    office.clock.step(timedelta(days=366))
    with pytest.raises(AccessError) as caught:
        again(office, kms, first)
    assert "expired" in caught.value.message


def rejected(office: Office, der: bytes) -> None:
    """Have the issuer reject a request before it fixes a serial for it."""
    jobs = [job.id for job in office.jobs()]
    with office.deps.store.unit() as unit:
        unit.connection.execute(
            update(tables.requests)
            .where(tables.requests.c.id == request_id(der))
            .values(state=RequestState.REJECTED.value, reason="lint")
        )
        outbox.finish(unit, jobs)


def test_an_enrolment_that_was_rejected_is_not_the_end(office: Office, kms: Kms) -> None:
    """Who used the invitation, with the same key, may ask again until there is a certificate; then it is shown that."""
    told = Credentials(*office.invite("acme"))
    first = plain(ACME, kms.identity)
    est.enroll(office.deps, told, first)
    other = kms.identity_request(office.clock.now())
    assert est.enroll(office.deps, told, other).id == request_id(first)
    rejected(office, first)
    assert est.enroll(office.deps, told, other).state is RequestState.PENDING
    rejected(office, other)
    assert est.enroll(office.deps, told, first).state is RequestState.PENDING
    office.work()
    issued = active(office)
    for der in (first, other, kms.identity_request(office.clock.now() - timedelta(hours=1))):
        assert est.enroll(office.deps, told, der).fingerprint == issued.fingerprint
    thief = new_signing_key(SignatureAlgorithm.ED25519)
    with pytest.raises(EnrolmentError):
        est.enroll(office.deps, told, plain(ACME, thief))


def test_a_request_whose_serial_was_given_up_stays_rejected(office: Office, kms: Kms) -> None:
    """That serial is known by its request alone and has to stay on the revocation lists."""
    first = enrolled(office, kms)
    office.clock.step(timedelta(days=250))
    request = again(office, kms, first)
    issuing.prepare(office.deps, office.keys, [RequestId(request.id)], office.clock.now())
    revoke(office, first, Reason.KEY_COMPROMISE)
    office.work()
    with office.deps.store.read() as unit:
        found = certificate_store.request(unit, request.id)
    assert found is not None
    assert found.state is RequestState.REJECTED
    with office.deps.store.unit() as unit:
        assert not request_store.reopen(unit, request.id)


def test_an_identity_key_is_no_access_key(office: Office, kms: Kms) -> None:
    """One Ed25519 key for both would be one key for two uses: neither way round."""
    now = office.clock.now()
    request = access.identity_request(plain(ACME, kms.identity), ACME, now)
    reference, secret = office.invite("acme")
    with pytest.raises(ConflictError), office.deps.store.unit() as unit:
        invitation = access.usable(unit, reference, secret, now, tenant=ACME.tenant)
        access.admit(unit, invitation, request, kms.identity.public.raw, now)
    first = enrolled(office, kms)
    wish = requests.access_request(ACME, kms.spki, sign=kms.identity.sign, signing_time=now)
    with pytest.raises(ConflictError):
        est.renew(office.deps, first.der, wish)
