"""Contract of deposits, mailboxes and receipts."""

from __future__ import annotations

import random
import time
from dataclasses import asdict, replace

import pytest

from pki.core.deposits import DEPOSIT_MOVES, DepositState
from pki.core.errors import ConflictError, IllegalMoveError, NotFoundError, ReplayedError
from pki.core.ids import DepositId
from pki.core.tenants import Address, TenantName, parse_address
from pki.server.facts import NewDeposit
from pki.server.store import deposits, receipts
from pki.server.store.engine import Store
from tests.kit.facts import ACME, GLOBEX, NOW, at, deposit, receipt
from tests.kit.threads import together

S = DepositState
INITECH = parse_address("initech/a")


def _stored(store: Store, *new: NewDeposit) -> list[DepositId]:
    with store.unit() as unit:
        deposits.insert(unit, new)
    return [item.id for item in new]


def _available(store: Store, count: int = 1, recipient: Address = ACME) -> list[DepositId]:
    ids = _stored(store, *(deposit(recipient=recipient, received_at=at(number)) for number in range(count)))
    with store.unit() as unit:
        deposits.assign_sequences(unit, ids)
        deposits.set_state(unit, ids, S.AVAILABLE, now=NOW)
    return ids


def test_a_deposit_comes_back_as_it_was_stored(store: Store) -> None:
    """Every field, with the body only where it was asked for."""
    new = deposit(supersedes=DepositId("11" * 16), purpose="größe ✓")
    _stored(store, new, deposit())
    with store.read() as unit:
        record = deposits.deposit(unit, new.id, with_body=True)
        assert record is not None
        stored = asdict(record)
        assert {name: stored[name] for name in asdict(new)} == asdict(new)
        assert (record.state, record.sequence, record.validated_at) == (S.RECEIVED, None, None)
        light = deposits.deposit(unit, new.id)
        assert light == replace(record, body=None)
        assert deposits.deposit(unit, DepositId("00" * 16)) is None
        assert deposits.many(unit, []) == []
        assert len(deposits.many(unit, [new.id, new.id, DepositId("00" * 16)])) == 1
    assert new.body.hex() not in repr(record) and repr(new.body) not in repr(record)


def test_an_id_is_used_once_by_anybody(store: Store) -> None:
    """A clash refuses the whole batch, within it too."""
    first = deposit()
    _stored(store, first)
    for batch in ([deposit(), deposit(id=first.id)], [twin := deposit(), twin]):
        with pytest.raises(ReplayedError) as caught:
            _stored(store, *batch)
        assert batch[1].id in caught.value.on
        with store.read() as unit:
            assert deposits.deposit(unit, batch[0].id) is None
    _stored(store)


def test_an_idempotency_key_leads_to_its_deposit(store: Store) -> None:
    """It belongs to one sender, is taken once, and is forgotten some day."""
    (first,) = _stored(store, deposit())
    with store.unit() as unit:
        assert deposits.find_idempotent(unit, [(GLOBEX, "key")]) == {}
        deposits.insert_idempotency(unit, {(GLOBEX, "key"): ("ab", first)}, NOW)
        assert deposits.find_idempotent(unit, [(GLOBEX, "key"), (ACME, "key")]) == {(GLOBEX, "key"): ("ab", first)}
        with pytest.raises(ConflictError):
            deposits.insert_idempotency(unit, {(GLOBEX, "key"): ("cd", first)}, NOW)
        assert deposits.purge_idempotency(unit, NOW) == 0
        assert deposits.purge_idempotency(unit, at(1)) == 1


def test_sequences_are_given_in_order_and_kept(store: Store) -> None:
    """Each mailbox counts for itself from 1, in the order given; a second assignment changes nothing."""
    mine = _stored(store, *(deposit() for _ in range(3)))
    (other,) = _stored(store, deposit(recipient=INITECH))
    order = [mine[2], other, mine[0], mine[1]]
    with store.unit() as unit:
        given = deposits.assign_sequences(unit, order)
        assert given == {mine[2]: 1, other: 1, mine[0]: 2, mine[1]: 3}
    (late,) = _stored(store, deposit())
    with store.unit() as unit:
        assert deposits.assign_sequences(unit, [late, mine[0], late]) == {late: 4, mine[0]: 2}
        assert deposits.assign_sequences(unit, []) == {}
        with pytest.raises(NotFoundError):
            deposits.assign_sequences(unit, [DepositId("00" * 16)])
        record = deposits.deposit(unit, late)
    assert record is not None and record.sequence == 4


def test_sequences_have_no_gaps_under_concurrency(store: Store) -> None:
    """Threads number deposits of the same mailboxes, one in four fails after it: no hole and no double remains.

    A reader that follows the mailbox with a cursor meanwhile sees every number once and in order.
    """
    boxes = [ACME, GLOBEX, INITECH]
    batches = [
        _stored(store, *(deposit(sender=ACME, recipient=boxes[(number + turn) % 3]) for number in range(5)))
        for turn in range(24)
    ]
    seen: list[int] = []

    def assign(number: int) -> None:
        if number == 0:
            cursor = 0
            while len(seen) < 20:
                with store.read() as unit:
                    page = deposits.page(unit, ACME, cursor, 100)
                seen.extend(record.sequence or 0 for record in page)
                cursor = seen[-1] if seen else 0
                # A reader that never rests keeps the interpreter from those who write.
                time.sleep(0.002)
            return
        for turn, batch in enumerate(batches[(number - 1) :: 4]):
            for fails in [True, False] if turn % 4 == 0 else [False]:
                ids = random.Random(turn).sample(batch, len(batch))
                try:
                    with store.unit() as unit:
                        deposits.assign_sequences(unit, ids)
                        deposits.set_state(unit, ids, S.AVAILABLE, now=NOW)
                        if fails:
                            raise InterruptedError
                except InterruptedError:
                    continue

    together(5, assign)
    with store.read() as unit:
        for box in boxes:
            assert [record.sequence for record in deposits.page(unit, box, 0, 1000)] == list(range(1, 41))
    assert seen == list(range(1, len(seen) + 1))


@pytest.mark.parametrize("start", S)
def test_deposits_move_along_the_table_only(store: Store, start: DepositState) -> None:
    """From each state exactly the legal moves work; an illegal one changes none of the batch."""
    for to in S:
        ids = _stored(store, deposit(), deposit())
        way = _way(start)
        with store.unit() as unit:
            for step in way:
                deposits.set_state(unit, [ids[0]], step, now=NOW)
        if to in DEPOSIT_MOVES[start]:
            with store.unit() as unit:
                deposits.set_state(unit, [ids[0]], to, now=NOW)
        else:
            with pytest.raises(IllegalMoveError) as caught, store.unit() as unit:
                deposits.set_state(unit, ids, to, now=NOW)
            assert caught.value.on in ids
        with store.read() as unit:
            first, second = (deposits.deposit(unit, deposit_id) for deposit_id in ids)
        assert first is not None and first.state is (to if to in DEPOSIT_MOVES[start] else start)
        assert second is not None and second.state is S.RECEIVED


def _way(to: DepositState) -> list[DepositState]:
    """Return the moves that lead from ``received`` to ``to``."""
    ways: dict[DepositState, list[DepositState]] = {S.RECEIVED: []}
    while to not in ways:
        for state, way in list(ways.items()):
            for following in DEPOSIT_MOVES[state]:
                ways.setdefault(following, [*way, following])
    return ways[to]


def test_a_state_comes_with_its_time_and_facts(store: Store) -> None:
    """Validated, collected and settled are stamped; what is not a state's fact is refused."""
    ids = _stored(store, deposit(), deposit())
    with store.unit() as unit:
        deposits.set_state(
            unit, [ids[0]], S.AVAILABLE, now=at(1), certificate_fingerprint="cf", sender_fingerprint="sf"
        )
        deposits.set_state(unit, [ids[0]], S.COLLECTED, now=at(2))
        deposits.set_state(unit, [ids[0]], S.ACKNOWLEDGED, now=at(3))
        deposits.set_state(unit, [ids[1]], S.REJECTED, now=at(4), rejected_code="bad-signature", rejected_detail="x\0y")
        with pytest.raises(TypeError):
            deposits.set_state(unit, [ids[1]], S.REJECTED, now=at(4), body="x")
        with pytest.raises(NotFoundError):
            deposits.set_state(unit, [DepositId("00" * 16)], S.AVAILABLE, now=at(4))
        deposits.set_state(unit, [], S.AVAILABLE, now=at(4))
    with store.read() as unit:
        good, bad = (deposits.deposit(unit, deposit_id) for deposit_id in ids)
    assert good is not None and bad is not None
    assert (good.validated_at, good.collected_at, good.settled_at) == (at(1), at(2), at(3))
    assert (good.certificate_fingerprint, good.sender_fingerprint) == ("cf", "sf")
    assert (bad.validated_at, bad.collected_at, bad.settled_at) == (at(4), None, at(4))
    assert (bad.rejected_code, bad.rejected_detail) == ("bad-signature", "x\ufffdy")


def test_one_of_two_opposite_moves_wins(store: Store) -> None:
    """Collecting and withdrawing at the same moment: one is done, the other is refused."""
    for _ in range(5):
        (deposit_id,) = _available(store)

        def move(number: int, deposit_id: DepositId = deposit_id) -> bool:
            try:
                with store.unit() as unit:
                    deposits.set_state(unit, [deposit_id], [S.COLLECTED, S.WITHDRAWN][number], now=NOW)
            except IllegalMoveError:
                return False
            return True

        assert sorted(together(2, move)) == [False, True]


def test_a_page_is_what_comes_after_the_cursor(store: Store) -> None:
    """Numbered deposits of one mailbox in order, whatever their state; those not validated are not shown."""
    ids = _available(store, 5)
    _available(store, 2, INITECH)
    _stored(store, deposit())
    with store.unit() as unit:
        deposits.set_state(unit, [ids[1]], S.WITHDRAWN, now=NOW)
    with store.read() as unit:
        assert [record.id for record in deposits.page(unit, ACME, 0, 3)] == ids[:3]
        rest = deposits.page(unit, ACME, 3, 100)
        assert [(record.id, record.sequence, record.body) for record in rest] == [(ids[3], 4, None), (ids[4], 5, None)]
        assert deposits.page(unit, ACME, 5, 100) == []
        assert deposits.page(unit, GLOBEX, 0, 100) == []


def test_what_was_sent_is_listed_oldest_first(store: Store) -> None:
    """Pages go on where the last ended, also among deposits of the same moment."""
    ids = sorted(_stored(store, *(deposit() for _ in range(4))))
    ids += _stored(store, deposit(received_at=at(1)))
    (foreign,) = _stored(store, deposit(sender=INITECH))
    with store.unit() as unit:
        deposits.set_state(unit, [ids[2]], S.REJECTED, now=NOW)
    with store.read() as unit:
        assert [record.id for record in deposits.sent(unit, GLOBEX, limit=2)] == ids[:2]
        assert [record.id for record in deposits.sent(unit, GLOBEX, after=ids[1], limit=9)] == ids[2:]
        assert [record.id for record in deposits.sent(unit, GLOBEX, state=S.REJECTED, limit=9)] == [ids[2]]
        for cursor in (foreign, DepositId("00" * 16)):
            with pytest.raises(NotFoundError):
                deposits.sent(unit, GLOBEX, after=cursor, limit=9)


def test_quarantine_takes_what_is_available_for_a_key(store: Store) -> None:
    """Other keys, other states and what is under way to being validated stay."""
    hit = _available(store, 2)
    stay = _available(store, 2)
    with store.unit() as unit:
        deposits.set_state(unit, [stay[0]], S.COLLECTED, now=NOW)
    _stored(store, deposit())
    (other,) = _stored(store, deposit(recipient_ski="dd" * 20))
    with store.unit() as unit:
        deposits.set_state(unit, [other], S.AVAILABLE, now=NOW)
        assert deposits.quarantine_for(unit, ["aa" * 20], at(1)) == sorted([*hit, stay[1]])
        assert deposits.quarantine_for(unit, ["aa" * 20], at(1)) == []
        record = deposits.deposit(unit, other)
    assert record is not None and record.state is S.AVAILABLE


def test_open_deposits_expire(store: Store) -> None:
    """What is over and still open is due, oldest first; what is settled is not."""
    ids = _stored(store, *(deposit(expires_at=at(number)) for number in (3, 1, 2)))
    with store.unit() as unit:
        assert deposits.due_expiry(unit, at(0), 10) == []
        assert [record.id for record in deposits.due_expiry(unit, at(2), 10)] == [ids[1], ids[2]]
        assert len(deposits.due_expiry(unit, at(9), 1)) == 1
        deposits.set_state(unit, [ids[1]], S.EXPIRED, now=at(2))
        assert [record.id for record in deposits.due_expiry(unit, at(2), 10)] == [ids[2]]


def test_a_deposit_has_one_receipt(store: Store) -> None:
    """Receipts are listed to the sender, numbered without gaps; a second one is refused and takes no number."""
    ids = _available(store, 3)
    answers = [receipt(ids[0]), receipt(ids[1], kind="refusal", reason="cannot-open"), receipt(ids[2])]
    with store.unit() as unit:
        assert receipts.insert(unit, [(GLOBEX, answers[0])]) == [1]
    with pytest.raises(ReplayedError), store.unit() as unit:
        receipts.insert(unit, [(GLOBEX, receipt(ids[0])), (GLOBEX, answers[1])])
    with pytest.raises(ConflictError), store.unit() as unit:
        receipts.insert(unit, [(GLOBEX, receipt(DepositId("00" * 16)))])
    with store.unit() as unit:
        assert receipts.insert(unit, [(GLOBEX, answer) for answer in answers[1:]]) == [2, 3]
    with store.read() as unit:
        assert receipts.receipt(unit, ids[1]) == answers[1]
        assert receipts.receipt(unit, DepositId("00" * 16)) is None
        assert receipts.of_sender(unit, GLOBEX, after=1, limit=9) == [(2, answers[1]), (3, answers[2])]
        assert receipts.of_sender(unit, GLOBEX, after=0, limit=1) == [(1, answers[0])]
        assert receipts.of_sender(unit, ACME, after=0, limit=9) == []


def test_the_report_has_every_deposit_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order of arrival over many batches, filtered by tenant on either side and by time, with the receipt."""
    monkeypatch.setattr(deposits, "_REPORT_BATCH", 3)
    ids = _available(store, 8)
    lookalike = parse_address("acme-2/main")
    (elsewhere,) = _stored(store, deposit(sender=INITECH, recipient=lookalike, received_at=at(100)))
    answer = receipt(ids[4])
    with store.unit() as unit:
        receipts.insert(unit, [(GLOBEX, answer)])
    with store.read() as unit:
        everything = list(deposits.report_rows(unit))
        assert [row.deposit.id for row in everything] == [*ids, elsewhere]
        assert [row.receipt for row in everything] == [
            answer if row.deposit.id == ids[4] else None for row in everything
        ]
        for tenant in ("acme", "globex"):
            assert [row.deposit.id for row in deposits.report_rows(unit, tenant=TenantName(tenant))] == ids
        part = deposits.report_rows(unit, since=at(2), until=at(5))
        assert [row.deposit.id for row in part] == ids[2:5]
