"""Only the recipient's own signature over exactly these bytes settles a deposit, and it does so once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pki.core.certificates import CertificateState
from pki.core.deposits import DepositState
from pki.core.errors import ConflictError, IllegalMoveError, KeymailboxError, NotFoundError
from pki.core.ids import DepositId
from pki.core.receipts import RefusalReason
from pki.core.x509 import CertificateKind
from pki.server.services import mailbox
from pki.server.services.deposits import withdraw
from pki.server.store.engine import Store
from tests.kit.mail import ACME, FOREIGN, GLOBEX, INITECH, Office, answer
from tests.kit.threads import together


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Three certified instances."""
    return Office(store, database_url, tmp_path)


def collected(office: Office) -> DepositId:
    """Return a deposit that acme has collected."""
    (found,) = office.send_available(GLOBEX, ACME)
    mailbox.collect(office.deps, office.caller(ACME), ACME.address, [found])
    return found


def code(office: Office, deposit_id: DepositId, der: bytes) -> str:
    """Hand in a receipt for acme that must be refused; return the code, and check that nothing changed."""
    before = (office.record(deposit_id), office.events())
    with pytest.raises(KeymailboxError) as caught:
        mailbox.receipt(office.deps, office.caller(ACME), deposit_id, der)
    assert (office.record(deposit_id), office.events()) == before
    return caught.value.code


def test_a_receipt_acknowledges(office: Office) -> None:
    """Sender and recipient can fetch the bytes, and both hear of it."""
    found = collected(office)
    der = answer(ACME, office.record(found))
    office.clock.go_on(seconds=9)
    stored = mailbox.receipt(office.deps, office.caller(ACME), found, der)
    record = office.record(found)
    assert (record.state, record.settled_at) == (DepositState.ACKNOWLEDGED, office.clock.now())
    assert (stored.kind, stored.reason, stored.der) == ("receipt", None, der)
    for party in (GLOBEX, ACME):
        assert mailbox.receipt_of(office.deps, office.caller(party), found) == stored
    assert office.told(found)[-1] == "acknowledged"
    assert office.events()[-1].audience == (str(GLOBEX.address), str(ACME.address))


@pytest.mark.parametrize("reason", list(RefusalReason))
def test_a_refusal_tells_its_reason(office: Office, reason: RefusalReason) -> None:
    """Each reason is stored and told in its word."""
    found = collected(office)
    stored = mailbox.receipt(
        office.deps, office.caller(ACME), found, answer(ACME, office.record(found), refusal=reason)
    )
    assert (stored.kind, stored.reason) == ("refusal", reason.word)
    assert office.record(found).state is DepositState.REFUSED
    assert office.events()[-1].data["reason"] == reason.word


def test_the_same_receipt_again_changes_nothing(office: Office) -> None:
    """An answer that was lost on the way back is repeated."""
    found = collected(office)
    der = answer(ACME, office.record(found))
    first = mailbox.receipt(office.deps, office.caller(ACME), found, der)
    before = (office.record(found), office.events())
    office.clock.go_on(minutes=1)
    assert mailbox.receipt(office.deps, office.caller(ACME), found, der) == first
    assert (office.record(found), office.events()) == before


def test_another_answer_is_refused(office: Office) -> None:
    """What was acknowledged is not refused afterwards."""
    found = collected(office)
    mailbox.receipt(office.deps, office.caller(ACME), found, answer(ACME, office.record(found)))
    refusal = answer(ACME, office.record(found), refusal=RefusalReason.NOT_WANTED)
    assert code(office, found, refusal) == ConflictError.code


def test_a_receipt_for_somebody_elses_deposit_is_refused(office: Office) -> None:
    """Neither the sender nor a stranger settles acme's deposit: to them it is not there to be settled."""
    found = collected(office)
    for party in (GLOBEX, INITECH):
        der = answer(party, office.record(found))
        with pytest.raises(NotFoundError):
            mailbox.receipt(office.deps, office.caller(party), found, der)
    assert office.record(found).state is DepositState.COLLECTED


def test_a_receipt_that_names_another_deposit_is_refused(office: Office) -> None:
    """A receipt is not moved from one deposit to another, even of the same recipient."""
    found, other = collected(office), collected(office)
    assert code(office, found, answer(ACME, office.record(other))) == "wrong-party"


def test_a_receipt_for_other_bytes_is_refused(office: Office) -> None:
    """The digest is that of the deposit as the server has it."""
    found = collected(office)
    record = replace(office.record(found), body_sha512=bytes(64))
    assert code(office, found, answer(ACME, record)) == "wrong-party"


def test_a_receipt_in_anothers_name_is_refused(office: Office) -> None:
    """Whoever received it must be who it was for."""
    found = collected(office)
    assert code(office, found, answer(INITECH, office.record(found), by=ACME)) == "wrong-party"


def test_a_receipt_signed_by_somebody_else_is_refused(office: Office) -> None:
    """Another's certificate, a foreign one, and another's key under acme's name all fail."""
    found = collected(office)
    record = office.record(found)
    assert code(office, found, answer(ACME, record, by=INITECH)) == "wrong-party"
    assert code(office, found, answer(ACME, record, by=FOREIGN)) == "bad-certificate"
    forged = bytearray(answer(ACME, record))
    forged[-1] ^= 1
    assert code(office, found, bytes(forged)) == "bad-signature"


@pytest.mark.parametrize(
    ("change", "code_"),
    [(lambda der: der + b"\x00", "malformed"), (lambda der: der[:-1], "malformed"), (lambda der: b"", "malformed")],
    ids=["trailing", "truncated", "empty"],
)
def test_a_malformed_receipt_is_refused(office: Office, change: object, code_: str) -> None:
    """Its structure is checked before anything else."""
    found = collected(office)
    assert callable(change)
    assert code(office, found, change(answer(ACME, office.record(found)))) == code_


def test_an_oversized_receipt_is_refused(office: Office) -> None:
    """Its size is checked before its structure."""
    assert code(office, collected(office), bytes(20_000)) == "outside-profile"


def test_a_revoked_recipient_settles_nothing(office: Office) -> None:
    """A signature of a revoked key is worth nothing."""
    found = collected(office)
    office.move(ACME, CertificateKind.IDENTITY, CertificateState.REVOKED)
    assert code(office, found, answer(ACME, office.record(found))) == "certificate-revoked"


def test_only_what_was_collected_is_settled(office: Office) -> None:
    """Neither what lies in the mailbox still, nor what was taken back."""
    (found,) = office.send_available(GLOBEX, ACME)
    assert code(office, found, answer(ACME, office.record(found))) == IllegalMoveError.code
    withdraw(office.deps, office.caller(GLOBEX), found)
    assert code(office, found, answer(ACME, office.record(found))) == IllegalMoveError.code
    with pytest.raises(NotFoundError):
        mailbox.receipt_of(office.deps, office.caller(GLOBEX), found)


def test_answers_at_once_leave_one(office: Office) -> None:
    """Of a receipt and a refusal that come together, one counts, and it is what the sender reads."""
    found = collected(office)
    record = office.record(found)
    ders = [answer(ACME, record), answer(ACME, record, refusal=RefusalReason.NOT_WANTED)] * 3

    def hand_in(number: int) -> bytes | None:
        try:
            return mailbox.receipt(office.deps, office.caller(ACME), found, ders[number]).der
        except ConflictError:
            return None

    won = {der for der in together(6, hand_in) if der is not None}
    assert won == {mailbox.receipt_of(office.deps, office.caller(GLOBEX), found).der}
    assert len(office.told(found)) == 4
