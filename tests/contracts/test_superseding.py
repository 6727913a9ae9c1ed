"""What takes another's place: one at a time for each, and within the limits whatever becomes of the two."""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pki.core.deposits import WAITING, DepositState
from pki.core.errors import ConflictError, KeymailboxError
from pki.core.ids import DepositId
from pki.core.tenants import parse_address
from pki.server.facts import DepositRecord
from pki.server.services import deposits, limits, mailbox, rotation
from pki.server.services.deposits import Accepted, Incoming
from pki.server.services.validation import SUPERSEDABLE
from pki.server.store import deposits as deposit_store
from pki.server.store.engine import Store
from tests.kit import authority
from tests.kit.authority import Party
from tests.kit.mail import ACME, GLOBEX, INITECH, Office, answer, codes, compose, tallied
from tests.kit.statements import counted
from tests.kit.threads import together

_WIDE = "x" * 120
"""A purpose that makes a deposit some hundred bytes larger than it usually is."""
_LAB = Party(authority.authority(), parse_address("globex/lab"), 44)
"""Another instance of globex, which shares with it what globex may have in a mailbox."""
_SENDERS = {party.address: party for party in (GLOBEX, _LAB, INITECH)}


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Iterator[Office]:
    """Three certified instances."""
    with tallied(store, database_url, tmp_path) as made:
        yield made


def instead(old: DepositId, **changes: Any) -> Incoming:
    """Return globex's deposit in the place of another."""
    return Incoming(compose(GLOBEX, ACME, **changes), secrets.token_hex(8), old)


def hand_in(office: Office, *items: Incoming) -> list[Accepted | KeymailboxError]:
    """Hand in deposits of globex in one request."""
    return deposits.accept(office.deps, office.caller(GLOBEX), list(items))


def allow(office: Office, **values: int) -> None:
    """Set limits of acme."""
    named = {name.replace("_", "-"): value for name, value in values.items()}
    limits.allow(office.deps, ACME.address.tenant, named)


def held(office: Office, sender: Party = GLOBEX) -> int:
    """Return how many deposits of a sender acme has without an answer."""
    return sum(one.sender == sender.address and one.state in WAITING for one in all_of(office))


def all_of(office: Office) -> list[DepositRecord]:
    """Return all deposits, as the table has them."""
    with office.store.read() as unit:
        found = unit.connection.exec_driver_sql("SELECT id FROM deposits").scalars().all()
        return deposit_store.many(unit, [DepositId(one) for one in found])


def test_one_at_a_time(office: Office) -> None:
    """A second that names the same one is refused while the first is on its way, also in one batch; it is told why."""
    (old,) = office.send_available(GLOBEX, ACME)
    first, second = hand_in(office, instead(old), instead(old))
    assert isinstance(first, Accepted)
    assert isinstance(second, ConflictError)
    (third,) = hand_in(office, instead(old))
    assert isinstance(third, ConflictError)
    assert third.on == old and first.id in third.hint
    deposits.validate(office.deps, [first.id])
    assert codes(hand_in(office, instead(old), instead(first.id))) == ["illegal-state", "ok"]


def test_what_is_refused_takes_no_place(office: Office) -> None:
    """In one batch and of several requests together: the first that is accepted has the place, whoever asked before."""
    ids = office.send_available(GLOBEX, ACME, 2)
    allow(office, pair_bytes=2 * len(compose(GLOBEX, ACME)))
    answers = hand_in(office, instead(ids[0], purpose=_WIDE), instead(ids[0]), instead(ids[0]))
    assert codes(answers) == ["quota", "ok", "conflict"]
    _, second, third = answers
    assert isinstance(second, Accepted) and isinstance(third, ConflictError)
    assert third.on == ids[0] and second.id in third.hint
    items = [instead(ids[1], purpose=_WIDE), instead(ids[1]), instead(ids[1])]
    assert codes(office.accept_together(*((GLOBEX, item) for item in items))) == ["quota", "ok", "conflict"]


def test_twenty_at_once(office: Office) -> None:
    """Of twenty that want the same place at the same moment, one is accepted."""
    (old,) = office.send_available(GLOBEX, ACME)
    items = [instead(old) for _ in range(20)]
    answers = together(20, lambda number: hand_in(office, items[number])[0])
    assert sorted(codes(answers)) == ["conflict"] * 19 + ["ok"]
    assert held(office) == 2


def test_the_place_is_sought_while_the_first_is_judged(office: Office) -> None:
    """Accepting and validating at once, again and again: never are two successors of one deposit taken in."""
    allow(office, pair_deposits=1)
    (old,) = office.send_available(GLOBEX, ACME)

    def work(number: int) -> None:
        if number % 2:
            hand_in(office, instead(old))
        else:
            deposits.validate(office.deps, [one.id for one in all_of(office)])

    for _ in range(5):
        together(6, work)
        deposits.validate(office.deps, [one.id for one in all_of(office)])
        assert held(office) == 1
        [old] = [one.id for one in all_of(office) if one.state is DepositState.AVAILABLE]


def _rejected(office: Office, first: DepositId) -> None:
    deposits.validate(office.deps, [first])


def _withdrawn(office: Office, first: DepositId) -> None:
    deposits.withdraw(office.deps, office.caller(GLOBEX), first)


def _expired(office: Office, first: DepositId) -> None:
    office.clock.go_on(hours=1)
    rotation.expire(office.deps)


@pytest.mark.parametrize(
    ("way", "state", "changes"),
    [
        (_rejected, DepositState.REJECTED, {"key": INITECH.key}),
        (_withdrawn, DepositState.WITHDRAWN, {}),
        (_expired, DepositState.EXPIRED, {}),
    ],
)
def test_another_may_try(
    office: Office, way: Callable[[Office, DepositId], None], state: DepositState, changes: dict[str, Any]
) -> None:
    """When the first came to nothing, the old one still has its place, and a second may take it."""
    allow(office, pair_deposits=1, mailbox_deposits=1)
    (old,) = office.send_available(GLOBEX, ACME)
    soon = office.clock.now().replace(microsecond=0) + timedelta(minutes=30)
    (first,) = hand_in(office, instead(old, expires=soon, **changes))
    assert isinstance(first, Accepted)
    way(office, first.id)
    assert office.record(first.id).state is state
    assert (held(office), office.record(old).state) == (1, DepositState.AVAILABLE)
    (second,) = hand_in(office, instead(old, signing_time=office.clock.now().replace(microsecond=0)))
    assert isinstance(second, Accepted)
    deposits.validate(office.deps, [second.id])
    assert (held(office), office.record(old).state) == (1, DepositState.SUPERSEDED)


def test_five_and_eight(office: Office) -> None:
    """What five hold, eight cannot take over: when all is judged, the limit holds again."""
    allow(office, pair_deposits=5)
    ids = office.send_available(GLOBEX, ACME, 5)
    answers = [hand_in(office, instead(ids[number % 5]))[0] for number in range(8)]
    assert codes(answers) == ["ok"] * 5 + ["conflict"] * 3
    assert held(office) == 10
    deposits.validate(office.deps, [one.id for one in answers if isinstance(one, Accepted)])
    assert held(office) == 5
    assert codes(office.accept(GLOBEX, compose(GLOBEX, ACME))) == ["quota"]


def test_what_is_larger_needs_room_for_the_difference(office: Office) -> None:
    """In bytes the place of another is as large as that one was."""
    small, large = compose(GLOBEX, ACME), compose(GLOBEX, ACME, purpose=_WIDE)
    (old,) = office.send_available(GLOBEX, ACME)
    allow(office, pair_bytes=len(large) - 1)
    assert codes(hand_in(office, instead(old, purpose=_WIDE))) == ["quota"]
    allow(office, pair_bytes=len(large))
    (first,) = hand_in(office, instead(old, purpose=_WIDE))
    assert isinstance(first, Accepted)
    deposits.validate(office.deps, [first.id])
    allow(office, pair_bytes=len(small))
    # Of a limit that was lowered, both together may have no more than twice, either.
    assert codes(hand_in(office, instead(first.id))) == ["quota"]
    allow(office, pair_bytes=len(large))
    assert codes(hand_in(office, instead(first.id))) == ["ok"]


def test_a_hundred_cost_the_statements_of_one(office: Office) -> None:
    """Whatever is in a batch, the database is asked as often, and commits once."""
    ids = office.send_available(GLOBEX, ACME, 142)
    allow(office, pair_bytes=142 * len(compose(GLOBEX, ACME)))
    # Alone, and with one before that is too large and one after that comes too late.
    for expected, olds in ((["ok"], ids[:101]), (["quota", "ok", "conflict"], ids[101:])):
        told = []
        for some in (olds[:1], olds[1:]):
            batch = [instead(old, purpose=_WIDE if code == "quota" else "orders") for old in some for code in expected]
            with counted(office.store, here=True) as found:
                assert codes(hand_in(office, *batch)) == expected * len(some)
            told.append((found.count, found.commits))
        assert told[0] == told[1] != (0, 0)


class Walk:
    """Three senders, two of one tenant, and one mailbox: a random step after the other, and a look at what is held."""

    def __init__(self, office: Office, seed: int, most: Mapping[str, int]) -> None:
        self.office = office
        self.most = most
        self.random = random.Random(seed)
        self.steps: list[Callable[[], None]] = [
            *[self.send] * 4,
            *[self.replace] * 6,
            *[self.validate] * 3,
            *[self.collect] * 2,
            *[self.settle] * 3,
            self.withdraw,
            self.quarantine,
            self.expire,
        ]
        self.accepted = 0
        self.over: Counter[str] = Counter()

    def go(self, steps: int) -> None:
        """Take steps, and check after each."""
        for _ in range(steps):
            self.random.choice(self.steps)()
            self.check()

    def check(self) -> None:
        """Each deposit beyond a limit stands in for one that is there as well; and there never are twice as many."""
        records = {one.id: one for one in all_of(self.office)}
        globex, initech, acme = {GLOBEX.address, _LAB.address}, {INITECH.address}, ACME.address
        mine, waiting = SUPERSEDABLE | {DepositState.RECEIVED}, frozenset(WAITING)
        for scope, senders, states in (
            *(("sender", {one}, mine) for one in _SENDERS),
            *(("pair", {one}, waiting) for one in _SENDERS),
            ("share", globex, waiting),
            ("share", initech, waiting),
            ("mailbox", globex | initech, waiting),
        ):
            there = {one.id: one for one in records.values() if one.sender in senders and one.state in states}
            assert all(one.recipient == acme for one in there.values())
            size = sum(one.size for one in there.values())
            pairs = [(one.size, there[old].size) for one in there.values() if (old := _before(one, records, there))]
            bounds = (len(there), len(pairs), "deposits"), (size, sum(min(pair) for pair in pairs), "bytes")
            for is_, twice, unit in bounds:
                most = self.most[f"{scope}-{unit}"]
                assert is_ - twice <= most, (scope, senders, unit, is_, twice)
                assert is_ <= 2 * most, (scope, senders, unit, is_)
                self.over[scope] += is_ > most

    def send(self) -> None:
        """Something new, of any sender."""
        self._hand_in(self.random.choice(list(_SENDERS.values())), None)

    def replace(self) -> None:
        """Something in the place of whatever may give it, perhaps for the second time, perhaps forged."""
        if found := self._any(SUPERSEDABLE):
            self._hand_in(_SENDERS[found.sender], found.id, **({"key": ACME.key} if self.random.random() < 0.2 else {}))

    def validate(self) -> None:
        """Some of what has arrived."""
        arrived = self._all(frozenset({DepositState.RECEIVED}))
        deposits.validate(self.office.deps, [one.id for one in arrived if self.random.random() < 0.7])

    def collect(self) -> None:
        """What may have a successor on its way."""
        if found := self._any(frozenset({DepositState.AVAILABLE})):
            mailbox.collect(self.office.deps, self.office.caller(ACME), ACME.address, [found.id])

    def settle(self) -> None:
        """An answer to what was collected."""
        if found := self._any(frozenset({DepositState.COLLECTED})):
            der = answer(ACME, found, signing_time=self._now)
            mailbox.receipt(self.office.deps, self.office.caller(ACME), found.id, der)

    def withdraw(self) -> None:
        """Whatever may be, old or new."""
        if found := self._any(SUPERSEDABLE | {DepositState.RECEIVED}):
            deposits.withdraw(self.office.deps, self.office.caller(_SENDERS[found.sender]), found.id)

    def quarantine(self) -> None:
        """All that is available, now and then: it cannot be collected any more."""
        if self.random.random() < 0.7:
            return
        with self.office.store.unit() as unit:
            deposit_store.quarantine_for(unit, [ACME.kem_ski.hex()], self.office.clock.now())

    def expire(self) -> None:
        """What was given little time."""
        self.office.clock.go_on(minutes=5)
        rotation.expire(self.office.deps)

    @property
    def _now(self) -> Any:
        return self.office.clock.now().replace(microsecond=0)

    def _hand_in(self, sender: Party, old: DepositId | None, **changes: Any) -> None:
        body = compose(
            sender,
            ACME,
            package_id=self.random.randbytes(16),
            purpose="x" * self.random.randint(1, 120),
            signing_time=self._now,
            expires=self._now + timedelta(minutes=self.random.choice((9, 60, 600))),
            **changes,
        )
        item = Incoming(body, secrets.token_hex(8), old)
        (told,) = deposits.accept(self.office.deps, self.office.caller(sender), [item])
        assert isinstance(told, Accepted) or told.code in {"quota", "conflict"}
        self.accepted += isinstance(told, Accepted)

    def _all(self, states: frozenset[DepositState]) -> list[DepositRecord]:
        return sorted((one for one in all_of(self.office) if one.state in states), key=lambda one: one.id)

    def _any(self, states: frozenset[DepositState]) -> DepositRecord | None:
        found = self._all(states)
        return self.random.choice(found) if found else None


def _before(
    one: DepositRecord, records: Mapping[DepositId, DepositRecord], there: Mapping[DepositId, DepositRecord]
) -> DepositId | None:
    """Return the nearest of those that this deposit came after, one taking another's place, that is still there."""
    old = one.supersedes
    while old is not None and old not in there:
        old = records[old].supersedes
    return old


@pytest.mark.parametrize("seed", [4, 9])
@pytest.mark.parametrize("unit", ["deposits", "bytes"])
def test_limits_hold_on_a_random_walk(office: Office, unit: str, seed: int) -> None:
    """In whatever order deposits come, replace one another, and end: what is held stays within its bounds."""
    size = len(compose(GLOBEX, ACME, purpose="x" * 60))
    office.enrol(_LAB)
    most = {"sender": 4, "pair": 3, "share": 4, "mailbox": 6}
    values = {f"{scope}-{unit}": number * (1 if unit == "deposits" else size) for scope, number in most.items()}
    for address in (ACME.address, *_SENDERS):
        limits.allow(office.deps, address, values)
    plenty = {f"{scope}-{other}": 1 << 40 for scope in most for other in ("deposits", "bytes")}
    walk = Walk(office, seed, plenty | values)
    walk.go(120)
    # It has been where it matters.
    assert walk.accepted > 10
    assert walk.over["pair"] and walk.over["share"] and walk.over["mailbox"]
