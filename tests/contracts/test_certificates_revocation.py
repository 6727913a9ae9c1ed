"""Contract of revocation: by the owner only, to the list, with its consequences."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from pki.core import crl, kem
from pki.core.certificates import CertificateState
from pki.core.crl import Crl, Reason
from pki.core.deposits import DepositState
from pki.core.errors import (
    CertificateError,
    IllegalMoveError,
    KeymailboxError,
    MalformedError,
    NotFoundError,
    RevokedError,
    SignatureError,
    StaleError,
    UnknownRecipientError,
    WrongPartyError,
)
from pki.core.ids import DepositId, Fingerprint
from pki.core.tenants import parse_address
from pki.server.services import certificates, rotation, status
from pki.server.services.deposits import Incoming, accept
from pki.server.store import deposits as deposit_store
from pki.server.store.engine import Store
from tests.kit import facts, mail
from tests.kit.office import Kms, Office, open_office
from tests.kit.processes import wait_until
from tests.kit.threads import together

ACME = parse_address("acme/eu-west")
GLOBEX = parse_address("globex/main")


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


def newest(office: Office) -> Crl:
    """Return the newest list, verified."""
    record = status.latest_crl(office.deps)
    assert record is not None
    return crl.verify_crl(record.der, issuing_der=office.deps.chain.issuing, now=office.clock.now())


def arrive(office: Office, ski: str, *, collected: bool = False, deposit_id: str | None = None) -> DepositId:
    """Put an available deposit for a key into acme's mailbox."""
    item = facts.deposit(GLOBEX, ACME, recipient_ski=ski, id=DepositId(deposit_id or secrets.token_hex(16)))
    with office.deps.store.unit() as unit:
        deposit_store.insert(unit, [item])
        deposit_store.assign_sequences(unit, [item.id])
        deposit_store.set_state(unit, [item.id], DepositState.AVAILABLE, now=office.clock.now())
        if collected:
            deposit_store.set_state(unit, [item.id], DepositState.COLLECTED, now=office.clock.now())
    return item.id


def state(office: Office, deposit_id: DepositId) -> DepositState:
    """Return a deposit's state."""
    with office.deps.store.read() as unit:
        record = deposit_store.deposit(unit, deposit_id)
    assert record is not None
    return record.state


def test_the_owner_revokes(office: Office, kms: Kms) -> None:
    """The certificate is not listed any more, is on the next list, and what waits for it is held back."""
    record = office.publish(kms)
    waiting, collected = arrive(office, record.ski), arrive(office, record.ski, collected=True)
    other = arrive(office, "cc" * 20)
    number = newest(office).number
    done = certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, record.fingerprint))
    assert (done.state, done.revoked_at, done.revocation_reason) == (
        CertificateState.REVOKED,
        office.clock.now(),
        Reason.KEY_COMPROMISE,
    )
    assert certificates.by_fingerprint(office.deps, record.fingerprint) == done
    assert certificates.lookup(office.deps, ACME).encryption is None
    assert state(office, waiting) is DepositState.QUARANTINED
    assert state(office, collected) is DepositState.COLLECTED
    assert state(office, other) is DepositState.AVAILABLE
    assert office.told(about=waiting) == ["deposit.quarantined"]
    assert [job.kind for job in office.jobs()] == ["crl"]
    office.work()
    listed = newest(office)
    assert listed.number == number + 1
    assert listed.revoked[record.serial].reason is Reason.KEY_COMPROMISE


def test_to_revoke_again_changes_nothing(office: Office, kms: Kms) -> None:
    """As after a lost answer; of many at once, one is written."""
    record = office.publish(kms)
    der = kms.revocation(office, record.fingerprint)
    caller = kms.caller(office)
    answers = together(4, lambda _: certificates.revoke(office.deps, caller, der))
    assert len({answer.revoked_at for answer in answers}) == 1
    assert office.told(about=record.fingerprint) == ["certificate.activated", "certificate.revoked"]
    assert len(office.jobs()) == 1


def test_nobody_else_revokes(office: Office, kms: Kms) -> None:
    """Neither another instance, nor who has the access key alone, nor an old or altered wish, nor for another path."""
    record, now = office.publish(kms), office.clock.now()
    stranger = Kms(GLOBEX)
    office.settle(stranger)
    caller = kms.caller(office)
    honest = kms.revocation(office, record.fingerprint)
    cases: list[tuple[type[KeymailboxError], Kms, bytes]] = [
        (NotFoundError, stranger, stranger.revocation(office, record.fingerprint)),
        (SignatureError, stranger, honest),
        (SignatureError, kms, stranger.revocation(office, record.fingerprint)),
        (SignatureError, kms, honest[:-1] + bytes([honest[-1] ^ 1])),
        (MalformedError, kms, honest + b"\0"),
        (MalformedError, kms, b""),
        (StaleError, kms, kms.revocation(office, record.fingerprint, signed=now - timedelta(hours=25))),
        (StaleError, kms, kms.revocation(office, record.fingerprint, signed=now + timedelta(minutes=6))),
        (NotFoundError, kms, kms.revocation(office, Fingerprint("ab" * 32))),
    ]
    for expected, who, der in cases:
        with pytest.raises(KeymailboxError) as caught:
            certificates.revoke(office.deps, who.caller(office), der)
        assert type(caught.value) is expected
    with pytest.raises(WrongPartyError):
        certificates.revoke(office.deps, caller, honest, wanted=Fingerprint("ab" * 32))
    assert certificates.lookup(office.deps, ACME).encryption == record
    assert office.jobs() == []


def test_a_lost_key_does_not_come_back(office: Office, kms: Kms) -> None:
    """Its other certificates go with it, and no new one is issued; a new key is welcome."""
    private = kem.generate()
    old = office.publish(kms, private)
    office.clock.step(timedelta(days=1))
    renewed = office.publish(kms, private)
    assert old.ski == renewed.ski
    certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, old.fingerprint))
    assert certificates.by_fingerprint(office.deps, renewed.fingerprint).state is CertificateState.REVOKED
    with pytest.raises(RevokedError):
        certificates.submit_request(office.deps, kms.caller(office), kms.encryption_request(office, private))
    office.work()
    assert {old.serial, renewed.serial} <= set(newest(office).revoked)
    assert office.publish(kms).state is CertificateState.ACTIVE


def test_a_request_for_a_key_that_is_lost_meanwhile_is_rejected(office: Office, kms: Kms) -> None:
    """The issuer looks again: between request and issue the key was revoked."""
    private = kem.generate()
    record = office.publish(kms, private)
    office.clock.step(timedelta(seconds=1))
    der = kms.encryption_request(office, private)
    request = certificates.submit_request(office.deps, kms.caller(office), der)
    certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, record.fingerprint))
    office.work()
    status = certificates.status(office.deps, kms.caller(office), request.id)
    assert status.request.state == "rejected"
    assert status.request.reason is not None
    assert status.request.reason.startswith("certificate-revoked")


def test_a_superseded_certificate_leaves_its_key_in_use(office: Office, kms: Kms) -> None:
    """A reason that is not about the key revokes this one certificate, and mail for the key goes on."""
    private = kem.generate()
    old = office.publish(kms, private)
    office.clock.step(timedelta(days=1))
    renewed = office.publish(kms, private)
    waiting = arrive(office, old.ski)
    certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, old.fingerprint, Reason.SUPERSEDED))
    assert certificates.lookup(office.deps, ACME).encryption == renewed
    assert state(office, waiting) is DepositState.AVAILABLE


def test_a_revoked_identity_ends_the_instance(office: Office, kms: Kms) -> None:
    """It is found no more, gets no more certificates, and nothing more is handed to whoever has its keys."""
    encryption = office.publish(kms)
    waiting = arrive(office, encryption.ski)
    listing = certificates.lookup(office.deps, ACME)
    statement = kms.statement(office)
    certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, listing.identity.fingerprint))
    with pytest.raises(UnknownRecipientError):
        certificates.lookup(office.deps, ACME)
    assert state(office, waiting) is DepositState.QUARANTINED
    caller = kms.caller(office)
    with pytest.raises(CertificateError):
        certificates.submit_request(
            office.deps, caller, kms.encryption_request(office, kem.generate(), statement=statement)
        )
    office.clock.step(timedelta(seconds=1))
    with pytest.raises(RevokedError):
        certificates.submit_request(office.deps, caller, kms.identity_request(office.clock.now()))
    office.work()
    assert listing.identity.serial in newest(office).revoked


def test_a_deposit_that_slips_through_is_held_back_with_the_list(office: Office, kms: Kms) -> None:
    """It became available while its certificate was being revoked: the publication finds it."""
    record = office.publish(kms)
    certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, record.fingerprint))
    late = arrive(office, record.ski)
    office.work()
    assert state(office, late) is DepositState.QUARANTINED


def test_lists_grow_in_number_and_outlast_their_certificates(office: Office, kms: Kms) -> None:
    """A certificate stays on the lists until its time is over, and a list that nobody renews becomes stale."""
    record = office.publish(kms)
    certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, record.fingerprint))
    numbers = together(4, lambda _: status.publish(office.deps, office.keys).number)
    assert len(set(numbers)) == 4
    assert newest(office).number == max(numbers)
    assert record.serial in newest(office).revoked
    office.clock.step(office.deps.settings.crl_lifetime + timedelta(seconds=1))
    with pytest.raises(StaleError):
        newest(office)
    office.clock.step(timedelta(days=366))
    status.publish(office.deps, office.keys)
    assert record.serial not in newest(office).revoked


def test_an_expired_certificate_is_not_revoked(office: Office, kms: Kms) -> None:
    """It is of no use to anybody any more."""
    record = office.publish(kms)
    office.clock.step(timedelta(days=366))
    rotation.expire(office.deps)
    with pytest.raises(IllegalMoveError):
        certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, record.fingerprint))


def _revoke_the_identity(office: Office, kms: Kms, skis: list[str]) -> Callable[[], object]:
    """All keys of an instance go at once."""
    der = kms.revocation(office, certificates.lookup(office.deps, ACME).identity.fingerprint)
    caller = kms.caller(office)
    return lambda: certificates.revoke(office.deps, caller, der)


def _publish_the_list(office: Office, kms: Kms, skis: list[str]) -> Callable[[], object]:
    """Two keys were revoked before; mail for them slipped through."""
    for record in certificates.history(office.deps, ACME):
        if record.ski in skis:
            certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, record.fingerprint))
    return lambda: status.publish(office.deps, office.keys)


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("way", [_revoke_the_identity, _publish_the_list])
def test_what_is_held_back_and_superseded_at_once_waits_in_one_line(
    office: Office, kms: Kms, way: Callable[[Office, Kms, list[str]], Callable[[], object]], turned: bool
) -> None:
    """Deposits for several keys are held in order of their ids, whichever key is which: nobody waits in a circle.

    On SQLite there is one writer at a time.
    """
    skis = [office.publish(kms).ski]
    office.clock.step(timedelta(seconds=1))
    skis = sorted([*skis, office.publish(kms).ski], reverse=turned)
    hold_back = way(office, kms, skis)
    first, second = (arrive(office, ski, deposit_id=f"{place}" * 32) for place, ski in enumerate(skis, start=1))
    sender = mail.Office.caller(mail.GLOBEX)
    items = [
        Incoming(mail.compose(mail.GLOBEX, mail.ACME, key_version=1), secrets.token_hex(8), old)
        for old in (first, second)
    ]
    with ThreadPoolExecutor(2) as pool:
        with office.deps.store.unit() as unit:
            deposit_store.many(unit, [first], lock=True)
            accepted = pool.submit(accept, office.deps, sender, items)
            wait_until(lambda: _waiting(office) == 1)
            held_back = pool.submit(hold_back)
            wait_until(lambda: _waiting(office) == 2)
        assert mail.codes(accepted.result()) == ["ok", "ok"]
        held_back.result()
    assert {state(office, one) for one in (first, second)} == {DepositState.QUARANTINED}


def _waiting(office: Office) -> int:
    """Return how many wait for a lock."""
    with office.deps.store.read() as unit:
        found = unit.connection.execute(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        )
        return int(found.scalar_one())
