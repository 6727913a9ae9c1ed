"""Contract of issuing: one certificate for one request, whatever crashes or runs twice."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from pki.core import kem, x509
from pki.core.certificates import CertificateState, RequestState
from pki.core.errors import KeymailboxError, NotFoundError, UnavailableError
from pki.core.ids import RequestId, fingerprint
from pki.core.signatures import SignatureAlgorithm
from pki.core.tenants import parse_address
from pki.server.facts import RequestRecord
from pki.server.ports import CaKeys, CaSigner
from pki.server.services import certificates, est, issuing, status
from pki.server.services.drafting import Draft
from pki.server.services.est import Credentials
from pki.server.store import certificates as certificate_store
from pki.server.store import requests as request_store
from pki.server.store import tables
from pki.server.store.engine import Store
from tests.kit.authority import new_signing_key
from tests.kit.leaves import leaf_tbs
from tests.kit.office import Kms, Office, open_office
from tests.kit.plain import plain
from tests.kit.threads import together

ACME = parse_address("acme/eu-west")


@dataclass
class AwaySigner:
    """The office's key, which cannot be reached for the first ``failures`` signatures."""

    signer: CaSigner
    failures: int = 1
    turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def certificate_der(self) -> bytes:
        """The issuing CA's certificate."""
        return self.signer.certificate_der

    def sign(self, message: bytes, /) -> bytes:
        """Fail, or sign."""
        with self.turn:
            fails, self.failures = bool(self.failures), max(self.failures - 1, 0)
        if fails:
            raise UnavailableError("The signer is away")
        return self.signer.sign(message)


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA."""
    return open_office(store, tmp_path)


@pytest.fixture
def kms(office: Office) -> Kms:
    """An instance with an identity certificate."""
    kms = Kms(ACME)
    office.settle(kms)
    return kms


def submit(office: Office, kms: Kms) -> RequestId:
    """Submit a request for an encryption certificate."""
    der = kms.encryption_request(office, kem.generate())
    return certificates.submit_request(office.deps, kms.caller(office), der).id


def issued(result: RequestRecord | KeymailboxError) -> RequestRecord:
    """Return a result that is no error."""
    assert isinstance(result, RequestRecord)
    return result


def certificate_count(office: Office) -> int:
    """Return how many certificates the store has."""
    with office.deps.store.read() as unit:
        return unit.connection.execute(select(func.count()).select_from(tables.certificates)).scalar_one()


def prepared(office: Office, request_id: RequestId) -> tuple[int, bytes] | None:
    """Return serial and bytes that were stored before signing."""
    with office.deps.store.read() as unit:
        [one] = request_store.held(unit, [request_id])
        return None if one.serial is None or one.tbs is None else (one.serial, one.tbs)


def draft(office: Office, request_id: RequestId, at: datetime | None = None) -> Draft:
    """Return what is stored to be signed for a request that nothing speaks against."""
    [ready], _ = issuing.prepare(office.deps, office.keys, [request_id], at or office.clock.now())
    return ready


def test_two_workers_on_one_request_issue_one_certificate(office: Office, kms: Kms) -> None:
    """Whoever is late finds the first one's certificate, and says so."""
    request_id = submit(office, kms)
    before = certificate_count(office)
    answers = together(4, lambda _: issuing.issue(office.deps, office.keys, [request_id])[request_id])
    assert {issued(answer).fingerprint for answer in answers} == {issued(answers[0]).fingerprint}
    assert certificate_count(office) == before + 1
    assert office.told(about=request_id).count("certificate.issued") == 1


def test_of_two_signed_certificates_the_first_stays(office: Office, kms: Kms) -> None:
    """Both workers have prepared and signed: same serial, and only one of them enters the directory."""
    request_id, now = submit(office, kms), office.clock.now()
    first, second = draft(office, request_id), draft(office, request_id, now + timedelta(seconds=90))
    assert first.tbs == second.tbs
    [one], [two] = (issuing.sign(office.deps, [item], now)[0] for item in (first, second))
    assert one.der != two.der
    entered = [issuing.enter(office.deps, [item], now)[request_id] for item in (one, two)]
    assert issued(entered[0]).fingerprint == issued(entered[1]).fingerprint == fingerprint(one.der)
    assert certificate_count(office) == 2


def test_a_crash_between_prepare_and_sign_uses_the_same_serial(office: Office, kms: Kms) -> None:
    """The serial is in the store before the CA signs, and is the one that is issued, hours later too."""
    request_id = submit(office, kms)
    away = CaKeys(AwaySigner(office.signer))
    result = issuing.issue(office.deps, away, [request_id])[request_id]
    assert isinstance(result, UnavailableError)
    stored = prepared(office, request_id)
    assert stored is not None
    assert certificates.status(office.deps, kms.caller(office), request_id).request.state is RequestState.PENDING
    office.clock.step(timedelta(hours=20))
    record = issued(issuing.issue(office.deps, away, [request_id])[request_id])
    with office.deps.store.read() as unit:
        assert record.fingerprint is not None
        found = certificate_store.certificate(unit, record.fingerprint)
    assert found is not None
    assert found.serial == stored[0]
    assert x509.parse_certificate(found.der).tbs == stored[1]
    assert prepared(office, request_id) == stored


def test_one_failure_does_not_keep_the_others(office: Office, kms: Kms) -> None:
    """In a batch each request has its own answer."""
    first, second = submit(office, kms), submit(office, kms)
    away = CaKeys(AwaySigner(office.signer))
    unknown = RequestId("ab" * 32)
    odd = RequestId("\x00")
    results = issuing.issue(office.deps, away, [first, second, unknown, odd, second])
    assert list(results) == [first, second, unknown, odd]
    # Signatures are made side by side: either may be the one that failed.
    [failed], [good] = (
        [one for one in (first, second) if isinstance(results[one], UnavailableError) is away_for]
        for away_for in (True, False)
    )
    assert issued(results[good]).state is RequestState.ISSUED
    assert prepared(office, failed) is not None
    assert isinstance(results[unknown], NotFoundError)
    assert isinstance(results[odd], NotFoundError)


def test_a_key_that_is_away_is_not_asked_a_hundred_times(office: Office, kms: Kms) -> None:
    """A batch gives up after a few failures, so that it ends within its lease; all of it waits and is issued later."""
    ids = [submit(office, kms) for _ in range(40)]
    away = AwaySigner(office.signer, 1000)
    results = issuing.issue(office.deps, CaKeys(away), ids)
    assert all(isinstance(result, UnavailableError) for result in results.values())
    assert 1000 - away.failures <= 3 + 8
    away.failures = 0
    assert all(
        issued(result).state is RequestState.ISSUED for result in issuing.issue(office.deps, CaKeys(away), ids).values()
    )


def test_issuing_again_changes_nothing(office: Office, kms: Kms) -> None:
    """A job that is delivered twice has one effect."""
    request_id = submit(office, kms)
    first = issued(office.work()[request_id])
    told = office.told()
    assert issuing.issue(office.deps, office.keys, [request_id])[request_id] == first
    assert office.told() == told


def test_what_was_prepared_is_signed_only_if_it_follows_from_the_request(office: Office, kms: Kms) -> None:
    """Somebody who can write to the database cannot have the CA sign what nobody asked for."""
    victim, foreign = submit(office, kms), submit(office, kms)
    now = office.clock.now()
    issuing.prepare(office.deps, office.keys, [victim, foreign], now)
    other = prepared(office, foreign)
    assert other is not None
    with office.deps.store.unit() as unit:
        unit.connection.execute(update(tables.requests).where(tables.requests.c.id == victim).values(tbs=other[1]))
    record = issued(issuing.issue(office.deps, office.keys, [victim])[victim])
    assert record.state is RequestState.REJECTED
    assert record.reason is not None
    assert record.reason.startswith("bad-certificate")


def test_a_prepared_certificate_does_not_live_longer_than_ours_do(office: Office, kms: Kms) -> None:
    """Stored bytes with another end are not signed."""
    request_id = submit(office, kms)
    ready = draft(office, request_id)
    stored = prepared(office, request_id)
    assert stored is not None
    longer = leaf_tbs(
        serial=stored[0],
        issuer_der=office.signer.certificate_der,
        address=ACME,
        spki=ready.request.spki,
        not_before=office.clock.now() - timedelta(minutes=5),
        not_after=office.clock.now() + timedelta(days=3000),
        kind=ready.request.kind,
    )
    with office.deps.store.unit() as unit:
        unit.connection.execute(update(tables.requests).where(tables.requests.c.id == request_id).values(tbs=longer))
    assert issued(issuing.issue(office.deps, office.keys, [request_id])[request_id]).state is RequestState.REJECTED


def test_a_serial_is_not_stored_for_a_second_certificate(office: Office, kms: Kms) -> None:
    """Who writes another's serial beside a request, and moves that one's row away, has nothing signed by it."""
    victim, private, mallory = office.publish(kms), kem.generate(), Kms(parse_address("globex/main"))
    office.settle(mallory)
    der = mallory.encryption_request(office, private)
    request_id = certificates.submit_request(office.deps, mallory.caller(office), der).id
    ready = draft(office, request_id)
    again = leaf_tbs(
        serial=victim.serial,
        issuer_der=office.signer.certificate_der,
        address=mallory.address,
        spki=ready.request.spki,
        not_before=ready.parsed.not_before,
        not_after=ready.parsed.not_after,
        kind=ready.request.kind,
    )
    serial = f"{victim.serial:040x}"
    with office.deps.store.unit() as unit:
        for table in (tables.requests, tables.certificates):
            mine = table.c.fingerprint == victim.fingerprint
            unit.connection.execute(update(table).where(mine).values(serial="ab"))
        chosen = update(tables.requests).where(tables.requests.c.id == request_id)
        unit.connection.execute(chosen.values(tbs=again, serial=serial))
    assert issued(issuing.issue(office.deps, office.keys, [request_id])[request_id]).state is RequestState.REJECTED
    status.publish(office.deps, office.keys)
    with office.deps.store.read() as unit:
        listed = status.listed(office.deps, unit, office.deps.chain.issuing)
    assert listed is not None
    assert listed.revoked == {}


@pytest.mark.parametrize("begins", [timedelta(days=1), timedelta(days=3000), timedelta(days=3580)])
def test_a_prepared_certificate_begins_now(office: Office, begins: timedelta) -> None:
    """Stored bytes for years to come are not signed, not even where the request says no time; nor beyond the CA's."""
    key = new_signing_key(SignatureAlgorithm.ED25519)
    request_id = est.enroll(office.deps, Credentials(*office.invite("acme")), plain(ACME, key)).id
    ready = draft(office, request_id)
    later = leaf_tbs(
        serial=ready.serial,
        issuer_der=office.signer.certificate_der,
        address=ACME,
        spki=ready.request.spki,
        not_before=ready.parsed.not_before + begins,
        not_after=ready.parsed.not_after + begins,
        kind=ready.request.kind,
    )
    with office.deps.store.unit() as unit:
        unit.connection.execute(update(tables.requests).where(tables.requests.c.id == request_id).values(tbs=later))
    assert issued(issuing.issue(office.deps, office.keys, [request_id])[request_id]).state is RequestState.REJECTED


def test_a_request_that_waited_too_long_is_rejected(office: Office, kms: Kms) -> None:
    """A queue that stood still for two days makes requests worthless (docs/adr/0002)."""
    request_id = submit(office, kms)
    office.clock.step(timedelta(hours=48))
    record = issued(office.work()[request_id])
    assert record.state is RequestState.REJECTED
    assert record.reason is not None
    assert "REQ-007" in record.reason
    assert office.told(about=request_id) == ["certificate.requested", "certificate.rejected"]
    assert certificates.status(office.deps, kms.caller(office), request_id).request.reason == record.reason


def test_a_stored_request_is_verified_again(office: Office, kms: Kms) -> None:
    """The issuer believes no row: a request that the instance did not sign is rejected, whatever its state says."""
    mallory = Kms(ACME)
    forged = mallory.encryption_request(office, kem.generate(), statement=kms.statement(office))
    request_id = submit(office, kms)
    with office.deps.store.unit() as unit:
        unit.connection.execute(update(tables.requests).where(tables.requests.c.id == request_id).values(der=forged))
    record = issued(issuing.issue(office.deps, office.keys, [request_id])[request_id])
    assert record.state is RequestState.REJECTED
    assert record.reason is not None
    assert record.reason.startswith("bad-signature")


def test_two_identity_requests_at_once_leave_one_active(office: Office, kms: Kms) -> None:
    """Renewals that race end with one active certificate; who lost the race tries again."""
    ids = []
    for _ in range(4):
        office.clock.step(timedelta(seconds=1))
        der = kms.identity_request(office.clock.now())
        ids.append(certificates.submit_request(office.deps, kms.caller(office), der).id)
    together(4, lambda number: issuing.issue(office.deps, office.keys, [ids[number]]))
    for _ in range(4):
        issuing.issue(office.deps, office.keys, ids)
    with office.deps.store.read() as unit:
        states = [record.state for record in certificate_store.history(unit, ACME)]
    assert states.count(CertificateState.ACTIVE) == 1
    assert states.count(CertificateState.RETIRED) == 4


def test_serial_numbers_are_random_and_fit(office: Office, kms: Kms) -> None:
    """They are positive, have at most 20 bytes (RFC 5280 §4.1.2.2), and differ."""
    serials = [x509.parse_certificate(office.publish(kms).der).serial for _ in range(8)]
    assert len(set(serials)) == 8
    assert all(0 < serial < 1 << 159 for serial in serials)
    assert max(serials) > 1 << 150
