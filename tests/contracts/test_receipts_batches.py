"""Receipts of many recipients are stored by one commit, and each fares as if it had come alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from pki.core.certificates import CertificateState
from pki.core.deposits import DepositState
from pki.core.errors import KeymailboxError
from pki.core.ids import DepositId
from pki.core.receipts import RefusalReason
from pki.core.x509 import CertificateKind
from pki.server.facts import ReceiptRecord
from pki.server.services import mailbox, receipts
from pki.server.store.engine import Store
from tests.kit.authority import Party
from tests.kit.mail import ACME, GLOBEX, INITECH, Office, answer, codes
from tests.kit.statements import counted
from tests.kit.threads import together


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Three certified instances."""
    return Office(store, database_url, tmp_path)


def collected(office: Office, sender: Party, to: Party, count: int = 1) -> list[DepositId]:
    """Return deposits that their recipient has collected."""
    ids = office.send_available(sender, to, count)
    mailbox.collect(office.deps, office.caller(to), to.address, ids)
    return ids


def answers(office: Office, by: Party, ids: list[DepositId]) -> list[receipts.Answer]:
    """Return what a recipient hands in."""
    return [(office.caller(by), found, answer(by, office.record(found))) for found in ids]


def test_each_fares_as_if_it_had_come_alone(office: Office) -> None:
    """Good ones settle, of several recipients; bad ones get their own errors, in the order in which they came."""
    (mine, uncollected), (theirs,) = office.send_available(GLOBEX, ACME, 2), collected(office, ACME, INITECH)
    mailbox.collect(office.deps, office.caller(ACME), ACME.address, [mine])
    der = answer(ACME, office.record(mine))
    refusal = answer(INITECH, office.record(theirs), refusal=RefusalReason.NOT_WANTED)
    results = receipts.answer_all(
        office.deps,
        [
            (office.caller(ACME), "no id", der),
            (office.caller(ACME), mine, b"\x30\x80"),
            (office.caller(ACME), mine, der),
            (office.caller(INITECH), mine, der),
            (office.caller(INITECH), theirs, refusal),
            (office.caller(ACME), uncollected, answer(ACME, office.record(uncollected))),
            (office.caller(ACME), mine, answer(ACME, office.record(mine), by=INITECH)),
        ],
    )
    assert codes(results) == ["not-found", "malformed", "ok", "not-found", "ok", "illegal-state", "wrong-party"]
    assert [found.kind for found in results if isinstance(found, ReceiptRecord)] == ["receipt", "refusal"]
    states = [office.record(found).state for found in (mine, theirs, uncollected)]
    assert states == [DepositState.ACKNOWLEDGED, DepositState.REFUSED, DepositState.AVAILABLE]
    assert [record.deposit_id for record in mailbox.receipts(office.deps, office.caller(GLOBEX))[0]] == [mine]


def test_the_first_answer_in_a_batch_counts(office: Office) -> None:
    """The same once more is the same, another one is refused; one receipt and one event are left."""
    (found,) = collected(office, GLOBEX, ACME)
    [first] = answers(office, ACME, [found])
    other = (first[0], found, answer(ACME, office.record(found), refusal=RefusalReason.NOT_WANTED))
    results = receipts.answer_all(office.deps, [first, other, first])
    assert codes(results) == ["ok", "conflict", "ok"]
    assert results[0] == results[2]
    assert office.told(found) == ["received", "available", "collected", "acknowledged"]


def test_a_signer_revoked_meanwhile_settles_nothing(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate's row is looked at again where the receipt is stored."""
    ids = collected(office, GLOBEX, ACME, 2)
    handed_in = answers(office, ACME, ids)
    assert codes(receipts.answer_all(office.deps, handed_in[:1])) == ["ok"]
    prove = receipts._prove

    def revoked_then(*arguments: object) -> object:
        proved = prove(*arguments)  # type: ignore[arg-type]  # handed on as they come
        office.move(ACME, CertificateKind.IDENTITY, CertificateState.REVOKED)
        return proved

    monkeypatch.setattr(receipts, "_prove", revoked_then)
    assert codes(receipts.answer_all(office.deps, handed_in[1:])) == ["certificate-revoked"]
    assert office.record(ids[1]).state is DepositState.COLLECTED


def test_a_hundred_cost_the_statements_of_one(office: Office) -> None:
    """Whatever is in a batch, the database is asked as often, and commits once."""
    one, hundred = collected(office, GLOBEX, ACME), collected(office, GLOBEX, ACME, 100)
    work = [answers(office, ACME, ids) for ids in (one, hundred)]
    told = []
    for handed_in in work:
        with counted(office.store, here=True) as found:
            results = receipts.answer_all(office.deps, handed_in)
        assert not any(isinstance(result, KeymailboxError) for result in results)
        told.append((found.count, found.commits))
    assert told[0] == told[1] != (0, 0)


def test_batches_at_once_settle_each_once(office: Office) -> None:
    """Six that hand in the same leave one receipt and one event each, numbered without gaps."""
    ids = collected(office, GLOBEX, ACME, 12)
    handed_in = answers(office, ACME, ids)
    together(6, lambda number: receipts.answer_all(office.deps, handed_in[number:] + handed_in[:number]))
    assert all(office.told(found)[-1] == "acknowledged" for found in ids)
    assert len({record.deposit_id for record in mailbox.receipts(office.deps, office.caller(GLOBEX))[0]}) == 12
