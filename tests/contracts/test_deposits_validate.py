"""Validation lets nothing into a mailbox that is not sound, and what it does twice it does once."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from pki.core.certificates import CertificateState
from pki.core.deposits import DepositState
from pki.core.errors import IllegalMoveError, KeymailboxError, NotFoundError
from pki.core.events import EventType
from pki.core.ids import DepositId
from pki.core.x509 import CertificateKind, parse_certificate
from pki.server.services.deposits import Accepted, Validated, validate, withdraw
from pki.server.store import certificates as certificate_store
from pki.server.store import deposits as deposit_store
from pki.server.store.engine import Store
from pki.server.store.tables import deposits
from tests.kit.authority import NOW, Party, authority
from tests.kit.mail import ACME, FOREIGN, GLOBEX, INITECH, Office, codes, compose
from tests.kit.threads import together


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Three certified instances."""
    return Office(store, database_url, tmp_path)


def judged(office: Office, body: bytes, sender: Party = GLOBEX) -> tuple[str, str]:
    """Hand in and validate; return state and code, and check that a rejected one is nowhere to be collected."""
    (answer,) = office.accept(sender, body)
    assert isinstance(answer, Accepted), answer
    result = validate(office.deps, [answer.id])[answer.id]
    assert isinstance(result, Validated), result
    record = office.record(answer.id)
    assert (record.state, record.rejected_code, record.sequence) == (result.state, result.code, result.sequence)
    if result.state is DepositState.REJECTED:
        assert record.sequence is None
        assert record.rejected_detail
        assert office.told(answer.id) == ["received", "rejected"]
        (rejected,) = [event for event in office.events() if event.type is EventType.DEPOSIT_REJECTED]
        assert rejected.audience == (str(sender.address),)
    return result.state.value, result.code or ""


def test_sound_deposits_become_available_in_their_order(office: Office) -> None:
    """Each mailbox counts from 1 without gaps, in the order of arrival, and both sides hear of it."""
    first = office.send(GLOBEX, ACME, 3)
    office.clock.go_on(seconds=1)
    other = office.send(GLOBEX, INITECH, 2)
    office.clock.go_on(seconds=1)
    last = office.send(INITECH, ACME, 2)
    results = validate(office.deps, [*last, *other, *first])
    numbers = {found: office.record(found).sequence for found in [*first, *other, *last]}
    assert sorted(numbers[found] or 0 for found in first) == [1, 2, 3]
    assert sorted(numbers[found] or 0 for found in other) == [1, 2]
    assert sorted(numbers[found] or 0 for found in last) == [4, 5]
    assert all(results[found] == Validated(found, DepositState.AVAILABLE, numbers[found]) for found in numbers)
    record = office.record(first[0])
    assert record.certificate_fingerprint == parse_certificate(ACME.encryption_der).fingerprint
    assert record.sender_fingerprint == parse_certificate(GLOBEX.identity_der).fingerprint
    assert record.validated_at == office.clock.now()
    (told,) = [event for event in office.events() if (event.subject, event.type.value[-9:]) == (first[0], "available")]
    assert told.audience == (str(GLOBEX.address), str(ACME.address))


def test_a_second_delivery_changes_nothing(office: Office) -> None:
    """Rows and events stay as they are, whatever was validated."""
    good = office.send(GLOBEX, ACME, 2)
    bad = office.send(GLOBEX, ACME, key=INITECH.key)
    first = validate(office.deps, [*good, *bad])
    before = ([office.record(found) for found in [*good, *bad]], office.events())
    office.clock.go_on(minutes=1)
    assert validate(office.deps, [*good, *bad, *good]) == first
    assert ([office.record(found) for found in [*good, *bad]], office.events()) == before


def test_unknown_ids_have_no_result(office: Office) -> None:
    """A forged message about a deposit that is not there does nothing."""
    assert validate(office.deps, [DepositId("00" * 16)]) == {}


def test_workers_at_once_validate_once(office: Office) -> None:
    """Six workers that are woken for the same and for other deposits leave one number and one event each."""
    ids = office.send(GLOBEX, ACME, 12)
    together(6, lambda number: validate(office.deps, ids[number:] + ids[:number]))
    assert sorted(office.record(found).sequence or 0 for found in ids) == list(range(1, 13))
    assert all(office.told(found) == ["received", "available"] for found in ids)


def test_no_altered_byte_gets_in(office: Office) -> None:
    """A deposit with one bit flipped anywhere is refused at the door or rejected."""
    bodies = []
    for step in range(48):
        body = bytearray(compose(GLOBEX, ACME))
        place = (step * len(body)) // 48 + secrets.randbelow(len(body) // 48)
        body[min(place, len(body) - 1)] ^= 1 << secrets.randbelow(8)
        bodies.append(bytes(body))
    answers = office.accept(GLOBEX, *bodies)
    ids = [found.id for found in answers if isinstance(found, Accepted)]
    assert len(ids) > 20
    results = validate(office.deps, ids)
    assert {found.state for found in results.values() if isinstance(found, Validated)} == {DepositState.REJECTED}
    assert len(results) == len(ids)
    assert set(codes(answers)) - {"ok"} <= {
        "malformed",
        "outside-profile",
        "algorithm-not-allowed",
        "wrong-party",
        "unknown-recipient",
        "bad-address",
        "bad-request",
    }


def test_a_signature_by_somebody_else_is_rejected(office: Office) -> None:
    """Neither another's key under the sender's name, nor another's certificate, passes for the sender."""
    assert judged(office, compose(GLOBEX, ACME, key=INITECH.key)) == ("rejected", "bad-signature")


def test_a_signature_with_anothers_certificate_is_rejected(office: Office) -> None:
    """A certified instance cannot speak for another."""
    body = compose(INITECH, ACME, claims=GLOBEX.address)
    assert judged(office, body) == ("rejected", "wrong-party")


def test_a_foreign_certificate_is_rejected(office: Office) -> None:
    """A key that has no certificate here proves nothing."""
    assert judged(office, compose(FOREIGN, ACME)) == ("rejected", "bad-certificate")


def test_a_certificate_of_another_ca_is_rejected_even_in_our_table(office: Office) -> None:
    """Whoever writes a row into the directory has not got the CA's signature."""
    office.move(GLOBEX, CertificateKind.IDENTITY, CertificateState.RETIRED)
    office.certify(FOREIGN, CertificateKind.IDENTITY)
    state, code = judged(office, compose(FOREIGN, ACME))
    assert (state, code) == ("rejected", "bad-certificate")


def test_a_revoked_sender_is_rejected(office: Office) -> None:
    """What a revoked key signed is worth nothing."""
    office.move(GLOBEX, CertificateKind.IDENTITY, CertificateState.REVOKED)
    assert judged(office, compose(GLOBEX, ACME)) == ("rejected", "certificate-revoked")


def test_an_expired_sender_is_rejected(office: Office) -> None:
    """The certificate's time counts, whether or not its row says so yet."""
    office.clock.go_on(days=370)
    now = office.clock.now()
    body = compose(GLOBEX, ACME, signing_time=now, expires=now + timedelta(days=1))
    assert judged(office, body) == ("rejected", "expired")


def test_a_retired_identity_still_proves(office: Office) -> None:
    """A deposit that was under way while the sender renewed is not stranded."""
    office.move(GLOBEX, CertificateKind.IDENTITY, CertificateState.RETIRED)
    assert judged(office, compose(GLOBEX, ACME)) == ("available", "")


def test_a_wrap_for_somebody_else_is_rejected(office: Office) -> None:
    """Named for acme and wrapped for initech: acme could not open it, and initech must not."""
    assert judged(office, compose(GLOBEX, INITECH, recipient=ACME.address)) == ("rejected", "wrong-party")


def test_a_wrap_for_an_unknown_key_is_rejected(office: Office) -> None:
    """A key that was never certified gets nothing."""
    stranger = Party(authority(), ACME.address, 15)
    assert judged(office, compose(GLOBEX, stranger)) == ("rejected", "wrong-party")


def test_a_key_of_two_addresses_is_judged_for_the_right_one(office: Office) -> None:
    """What became of the same key elsewhere neither helps nor harms its recipient."""
    twin = Party(authority(), INITECH.address, ACME.seed)
    twin.__dict__["encryption_der"] = authority().issue(
        INITECH.address, ACME.kem_spki, CertificateKind.ENCRYPTION, serial=777
    )
    found = office.certify(twin, CertificateKind.ENCRYPTION, state=CertificateState.RETIRED)
    office.move(ACME, CertificateKind.ENCRYPTION, CertificateState.REVOKED)
    assert judged(office, compose(GLOBEX, ACME)) == ("rejected", "certificate-revoked")
    (deposit_id,) = office.send(GLOBEX, twin)
    validate(office.deps, [deposit_id])
    assert office.record(deposit_id).certificate_fingerprint == found


def test_a_wrap_for_an_unproved_key_is_rejected(office: Office) -> None:
    """A certificate whose owner has not decrypted yet gets nothing."""
    stranger = Party(authority(), ACME.address, 15)
    office.certify(stranger, CertificateKind.ENCRYPTION, state=CertificateState.UNPROVED)
    assert judged(office, compose(GLOBEX, stranger)) == ("rejected", "bad-certificate")


def test_a_wrap_for_a_revoked_key_is_rejected(office: Office) -> None:
    """The sender has to look the recipient up again."""
    office.move(ACME, CertificateKind.ENCRYPTION, CertificateState.REVOKED)
    assert judged(office, compose(GLOBEX, ACME)) == ("rejected", "certificate-revoked")


def test_a_wrap_for_a_retired_key_is_available(office: Office) -> None:
    """Renewing strands nothing."""
    office.move(ACME, CertificateKind.ENCRYPTION, CertificateState.RETIRED)
    assert judged(office, compose(GLOBEX, ACME)) == ("available", "")


@pytest.mark.parametrize(
    ("expires", "signed", "code"),
    [
        (timedelta(minutes=-1), timedelta(0), "expired"),
        (timedelta(days=91), timedelta(0), "outside-profile"),
        (timedelta(days=1), timedelta(days=-2), "stale"),
        (timedelta(days=1), timedelta(minutes=10), "stale"),
    ],
    ids=["expired", "lives-too-long", "signed-long-ago", "signed-in-the-future"],
)
def test_times_out_of_bounds_are_rejected(office: Office, expires: timedelta, signed: timedelta, code: str) -> None:
    """Expiry and signing time are checked against the server's clock."""
    now = office.clock.now()
    body = compose(GLOBEX, ACME, expires=now + expires, signing_time=now + signed)
    assert judged(office, body) == ("rejected", code)


def test_waiting_for_a_worker_does_not_make_a_deposit_stale(office: Office) -> None:
    """Workers that were away for three days still let in what was fresh when it came."""
    ids = office.send(GLOBEX, ACME)
    office.clock.go_on(days=3)
    validate(office.deps, ids)
    assert office.record(ids[0]).state is DepositState.AVAILABLE


def test_a_bad_one_does_not_hold_up_the_others(office: Office) -> None:
    """Verdicts of a batch are each deposit's own."""
    good, bad = office.send(GLOBEX, ACME, 3), office.send(GLOBEX, ACME, 2, key=INITECH.key)
    validate(office.deps, [*bad, *good])
    assert [office.record(found).state.value for found in [*good, *bad]] == ["available"] * 3 + ["rejected"] * 2
    assert sorted(office.record(found).sequence or 0 for found in good) == [1, 2, 3]


def test_a_row_that_was_edited_is_rejected(office: Office) -> None:
    """What the row says must be what the sender signed."""
    ids = office.send(GLOBEX, ACME, 2)
    with office.store.unit() as unit:
        from sqlalchemy import text

        unit.connection.execute(text("UPDATE deposits SET key_version = 9 WHERE id = :id"), {"id": ids[0]})
        unit.connection.execute(
            text("UPDATE bodies SET body = (SELECT body FROM bodies WHERE deposit_id = :other) WHERE deposit_id = :id"),
            {"id": ids[1], "other": ids[0]},
        )
    validate(office.deps, ids)
    assert [office.record(found).rejected_code for found in ids] == ["conflict", "conflict"]


def test_revocation_and_validation_at_once_leave_nothing_available(office: Office) -> None:
    """Whichever is first, no deposit for the revoked key can be collected after both."""
    ids = office.send(GLOBEX, ACME, 10)
    record = parse_certificate(ACME.encryption_der)

    def work(number: int) -> None:
        if number:
            validate(office.deps, ids[number::4])
            return
        with office.store.unit() as unit:
            now = office.clock.now()
            certificate_store.set_certificate_state(
                unit, record.fingerprint, CertificateState.REVOKED, now=now, reason=1
            )
            deposit_store.quarantine_for(unit, [record.ski.hex()], now)

    together(4, work)
    validate(office.deps, ids)
    assert {office.record(found).state.value for found in ids} <= {"quarantined", "rejected"}


def quarantined(office: Office) -> DepositId:
    """Return a deposit that a revocation holds back, with a successor key for its recipient."""
    (found,) = office.send_available(GLOBEX, ACME)
    with office.store.unit() as unit:
        assert deposit_store.quarantine_for(unit, [ACME.kem_ski.hex()], office.clock.now()) == [found]
    return found


def test_a_successor_takes_the_place_of_a_quarantined_deposit(office: Office) -> None:
    """The old one is superseded when the new one is available, and not before."""
    old = quarantined(office)
    answer = office.send_for(GLOBEX, ACME, old)
    assert isinstance(answer, Accepted)
    assert office.record(old).state is DepositState.QUARANTINED
    validate(office.deps, [answer.id])
    stored = office.record(old)
    assert (stored.state, stored.superseded_by) == (DepositState.SUPERSEDED, answer.id)
    assert office.record(answer.id).supersedes == old
    assert office.told(old)[-1] == "superseded"


def test_the_first_successor_wins(office: Office) -> None:
    """Of two that were both taken in, as an earlier release did, the second is delivered and takes nobody's place."""
    old = quarantined(office)
    first = office.send_for(GLOBEX, ACME, old)
    with office.store.unit() as unit:
        unit.connection.execute(update(deposits).values(successor=None))
    second = office.send_for(GLOBEX, ACME, old)
    assert isinstance(first, Accepted)
    assert isinstance(second, Accepted)
    validate(office.deps, [first.id, second.id])
    assert {office.record(found).state for found in (first.id, second.id)} == {DepositState.AVAILABLE}
    assert office.record(old).superseded_by in (first.id, second.id)
    assert office.told(old).count("superseded") == 1


def test_a_successor_of_a_withdrawn_deposit_is_just_delivered(office: Office) -> None:
    """What became of the old one meanwhile stands."""
    old = quarantined(office)
    answer = office.send_for(GLOBEX, ACME, old)
    assert isinstance(answer, Accepted)
    withdraw(office.deps, office.caller(GLOBEX), old)
    validate(office.deps, [answer.id])
    assert office.record(answer.id).state is DepositState.AVAILABLE
    assert office.record(old).state is DepositState.WITHDRAWN


def test_a_sender_withdraws_what_is_not_collected(office: Office) -> None:
    """The same again changes nothing, and validation leaves it alone."""
    (fresh,), (ready,) = office.send(GLOBEX, ACME), office.send_available(GLOBEX, ACME)
    for found in (fresh, ready, fresh):
        assert withdraw(office.deps, office.caller(GLOBEX), found).state is DepositState.WITHDRAWN
    assert validate(office.deps, [fresh])[fresh] == Validated(fresh, DepositState.WITHDRAWN)
    assert office.told(fresh) == ["received", "withdrawn"]
    last = {event.subject: event.audience for event in office.events() if event.type is EventType.DEPOSIT_WITHDRAWN}
    assert last == {fresh: (str(GLOBEX.address),), ready: (str(GLOBEX.address), str(ACME.address))}


def test_nobody_else_withdraws(office: Office) -> None:
    """Recipient and strangers are told that there is no such deposit."""
    (found,) = office.send_available(GLOBEX, ACME)
    for party in (ACME, INITECH):
        with pytest.raises(NotFoundError):
            withdraw(office.deps, office.caller(party), found)
    with pytest.raises(NotFoundError):
        withdraw(office.deps, office.caller(GLOBEX), "no id")


def test_what_was_collected_is_not_withdrawn(office: Office) -> None:
    """It is too late, and the error says where it stands."""
    (found,) = office.send_available(GLOBEX, ACME)
    with office.store.unit() as unit:
        deposit_store.set_state(unit, [found], DepositState.COLLECTED, now=NOW)
    with pytest.raises(IllegalMoveError, match="collected"):
        withdraw(office.deps, office.caller(GLOBEX), found)


def test_a_fault_of_ours_leaves_the_deposit_received(office: Office) -> None:
    """Without the CA's certificates nothing is rejected: the job is tried again."""
    ids = office.send(GLOBEX, ACME)
    settings = office.deps.settings.model_copy(update={"home": office.deps.settings.home / "gone"})
    with pytest.raises(KeymailboxError, match="CA's certificates"):
        validate(replace(office.deps, settings=settings), ids)
    assert office.record(ids[0]).state is DepositState.RECEIVED
