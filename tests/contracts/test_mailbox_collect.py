"""A mailbox shows and hands out what is its owner's, without gaps, and nothing to anybody else."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from pki.core.deposits import DepositState
from pki.core.errors import AccessError, NotFoundError, ReplayedError, UsageError
from pki.core.ids import DepositId
from pki.core.receipts import ReceiptKind
from pki.server.services import calls, mailbox
from pki.server.services.deposits import validate, withdraw
from pki.server.store import deposits as deposit_store
from pki.server.store.engine import Store
from tests.kit.authority import Party
from tests.kit.mail import ACME, GLOBEX, INITECH, Office, answer, codes, compose
from tests.kit.statements import counted
from tests.kit.threads import together


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Three certified instances."""
    return Office(store, database_url, tmp_path)


def test_pages_follow_the_numbers(office: Office) -> None:
    """Every number appears once, whatever became of the deposit, and never a body."""
    ids = office.send_available(GLOBEX, ACME, 5)
    office.send(GLOBEX, ACME)
    caller = office.caller(ACME)
    withdraw(office.deps, office.caller(GLOBEX), office_sequence(office, ids, 2))
    pages = [mailbox.page(office.deps, caller, ACME.address, after, 2) for after in (0, 2, 4, 5)]
    assert [[item.sequence for item in page] for page in pages] == [[1, 2], [3, 4], [5], []]
    assert [item.state.value for item in pages[0]] == ["available", "withdrawn"]
    assert all(item.body is None for page in pages for item in page)


def office_sequence(office: Office, ids: list[DepositId], number: int) -> DepositId:
    """Return the deposit with a number."""
    return next(found for found in ids if office.record(found).sequence == number)


def ticket(office: Office, party: Party) -> calls.Ticket:
    """Return the ticket of a fresh request of a party."""
    caller = office.caller(party)
    key_id = caller.instance.access_key_id
    assert key_id is not None
    return calls.Ticket(caller, key_id, secrets.token_hex(16), office.clock.now() + timedelta(minutes=5))


def test_polls_are_used_up_and_answered_together(office: Office) -> None:
    """Each is told its own mailbox's last number, or what is wrong with its ticket; forty cost as much as four."""
    office.send_available(GLOBEX, ACME, 3)
    office.send_available(ACME, GLOBEX, 1)
    memory = calls.Memory()
    asked = [ticket(office, party) for party in (INITECH, GLOBEX, ACME)]
    stranger = replace(ticket(office, ACME), key_id="somebody else's")
    with counted(office.store) as few:
        told = mailbox.poll(office.deps, memory, [*asked, stranger])
    assert told[:3] == [0, 1, 3] and isinstance(told[3], AccessError)
    assert [type(one) for one in mailbox.poll(office.deps, memory, asked)] == [ReplayedError] * 3
    with counted(office.store) as many:
        assert mailbox.poll(office.deps, memory, [ticket(office, ACME) for _ in range(40)]) == [3] * 40
    assert many.count == few.count <= 4
    assert (few.commits, many.commits) == (1, 1)


def test_a_mailbox_is_its_owners(office: Office) -> None:
    """Another's mailbox, and one that is not there, give the same answer."""
    (found,) = office.send_available(GLOBEX, ACME)
    messages = set()
    for party in (GLOBEX, INITECH):
        with pytest.raises(NotFoundError) as page:
            mailbox.page(office.deps, office.caller(party), ACME.address)
        with pytest.raises(NotFoundError) as collected:
            mailbox.collect(office.deps, office.caller(party), ACME.address, [found])
        messages |= {page.value.message, collected.value.message}
    assert len(messages) == 1
    assert office.record(found).state is DepositState.AVAILABLE


@pytest.mark.parametrize(("after", "limit"), [(-1, 10), (1 << 62, 10), (0, 0), (0, 501)])
def test_a_page_has_bounds(office: Office, after: int, limit: int) -> None:
    """Neither endless pages nor numbers that no database holds."""
    with pytest.raises(UsageError):
        mailbox.page(office.deps, office.caller(ACME), ACME.address, after, limit)


def test_collecting_hands_out_the_senders_bytes(office: Office) -> None:
    """The bytes are those that were deposited; the first time counts, and a lost answer can be asked for again."""
    body = compose(GLOBEX, ACME)
    office.accept(GLOBEX, body)
    found = DepositId(office.jobs("validate")[0].subject)
    validate(office.deps, [found])
    first = mailbox.collect(office.deps, office.caller(ACME), ACME.address, [found])
    office.clock.go_on(minutes=1)
    again = mailbox.collect(office.deps, office.caller(ACME), ACME.address, [found, found])
    assert first == again
    ((record, handed),) = [item for item in first if isinstance(item, tuple)]
    assert (handed, record.state, record.body) == (body, DepositState.COLLECTED, None)
    assert record.collected_at is not None
    assert office.told(found) == ["received", "available", "collected"]


def test_each_item_fails_on_its_own(office: Office) -> None:
    """What is not there, not the caller's, not validated, gone or over is told beside what is handed out."""
    good, gone, held = office.send_available(GLOBEX, ACME, 3)
    (others,) = office.send_available(GLOBEX, INITECH)
    (fresh,) = office.send(GLOBEX, ACME)
    withdraw(office.deps, office.caller(GLOBEX), gone)
    with office.store.unit() as unit:
        deposit_store.set_state(unit, [held], DepositState.QUARANTINED, now=office.clock.now())
    asked = [good, gone, held, others, fresh, "ab" * 16, "not an id\x00"]
    answers = mailbox.collect(office.deps, office.caller(ACME), ACME.address, asked)
    states, nobodys = ["ok", "illegal-state", "illegal-state"], ["not-found"] * 4
    assert codes(answers) == states + nobodys
    assert office.record(good).state is DepositState.COLLECTED
    assert office.record(others).state is DepositState.AVAILABLE


def test_an_expired_deposit_is_not_handed_out(office: Office) -> None:
    """Its time counts, whether or not somebody came by to change its state."""
    (found,) = office.send_available(GLOBEX, ACME)
    office.clock.go_on(days=31)
    assert codes(mailbox.collect(office.deps, office.caller(ACME), ACME.address, [found])) == ["expired"]
    assert office.record(found).state is DepositState.AVAILABLE


def test_a_collection_has_bounds(office: Office) -> None:
    """Not more than a hundred at once, and not nothing."""
    for ids in ([], [secrets.token_hex(16)] * 101):
        with pytest.raises(UsageError):
            mailbox.collect(office.deps, office.caller(ACME), ACME.address, ids)


def test_an_answer_is_not_larger_than_a_server_can_bear(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is told so, stays available and comes with the next call; a large one comes alone."""
    ids = office.send_available(GLOBEX, ACME, 3)
    size = office.record(ids[0]).size
    monkeypatch.setattr(mailbox, "MAX_COLLECTED_BYTES", 2 * size + 100)
    caller = office.caller(ACME)
    assert codes(mailbox.collect(office.deps, caller, ACME.address, ids)) == ["ok", "ok", "too-large"]
    assert office.record(ids[2]).state is DepositState.AVAILABLE
    monkeypatch.setattr(mailbox, "MAX_COLLECTED_BYTES", 10)
    assert codes(mailbox.collect(office.deps, caller, ACME.address, ids[2:])) == ["ok"]


def test_collecting_at_once_counts_once(office: Office) -> None:
    """Six agents of one instance all get the bytes, and there is one event for each deposit."""
    ids = office.send_available(GLOBEX, ACME, 6)
    caller = office.caller(ACME)
    answers = together(
        6, lambda number: mailbox.collect(office.deps, caller, ACME.address, ids[number:] + ids[:number])
    )
    assert all(codes(found) == ["ok"] * 6 for found in answers)
    assert all(office.told(found).count("collected") == 1 for found in ids)


def test_a_status_is_for_sender_and_recipient(office: Office) -> None:
    """The recipient sees what reached the mailbox; everybody else, and any other id, gets the same not-found."""
    (found,) = office.send(GLOBEX, ACME)
    (bad,) = office.send(GLOBEX, ACME, key=INITECH.key)
    assert mailbox.status(office.deps, office.caller(GLOBEX), found).state is DepositState.RECEIVED
    hidden = [(ACME, found), (ACME, bad), (INITECH, found), (GLOBEX, "ab" * 16), (GLOBEX, "x")]
    for party, wanted in hidden:
        with pytest.raises(NotFoundError):
            mailbox.status(office.deps, office.caller(party), wanted)
    validate(office.deps, [found, bad])
    assert mailbox.status(office.deps, office.caller(ACME), found).sequence == 1
    assert mailbox.status(office.deps, office.caller(GLOBEX), bad).rejected_code == "bad-signature"
    with pytest.raises(NotFoundError):
        mailbox.status(office.deps, office.caller(ACME), bad)


def test_a_sender_lists_what_it_sent(office: Office) -> None:
    """Oldest first, by state, from cursor to cursor, and only its own."""
    ids = []
    for _ in range(3):
        ids += office.send(GLOBEX, ACME)
        office.clock.go_on(seconds=1)
    office.send(INITECH, ACME)
    validate(office.deps, ids[:1])
    caller = office.caller(GLOBEX)
    first, cursor = mailbox.sent(office.deps, caller, limit=2)
    rest, last = mailbox.sent(office.deps, caller, after=cursor)
    assert [item.id for item in [*first, *rest]] == ids
    assert mailbox.sent(office.deps, caller, after=last) == ([], last)
    assert [item.id for item in mailbox.sent(office.deps, caller, DepositState.AVAILABLE)[0]] == ids[:1]
    for cursor in ("ab" * 16, "nonsense"):
        with pytest.raises(NotFoundError):
            mailbox.sent(office.deps, caller, after=cursor)


def test_a_sender_lists_the_answers(office: Office) -> None:
    """In the order in which they came, from cursor to cursor, and only for its own deposits."""
    ids = office.send_available(GLOBEX, ACME, 3)
    theirs = office.send_available(INITECH, ACME)
    caller = office.caller(ACME)
    mailbox.collect(office.deps, caller, ACME.address, [*ids, *theirs])
    for found in [*reversed(ids), *theirs]:
        mailbox.receipt(office.deps, caller, found, answer(ACME, office.record(found)))
    first, cursor = mailbox.receipts(office.deps, office.caller(GLOBEX), limit=2)
    rest, last = mailbox.receipts(office.deps, office.caller(GLOBEX), cursor)
    assert [found.deposit_id for found in [*first, *rest]] == list(reversed(ids))
    assert {found.kind for found in first} == {ReceiptKind.RECEIPT.value}
    assert mailbox.receipts(office.deps, office.caller(GLOBEX), last) == ([], last)
    for bad in ("-1", "²", "1e3", "9" * 19):
        with pytest.raises(UsageError):
            mailbox.receipts(office.deps, caller, bad)
