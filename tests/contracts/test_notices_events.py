"""Events are numbered once, chained, published in order, and each says what its schema says."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import jsonschema_rs
import pytest
from sqlalchemy import select, text

from pki.core.deposits import DepositState
from pki.core.errors import UnavailableError, UsageError, VerificationError
from pki.core.events import Event, EventType
from pki.core.ids import EventId
from pki.core.receipts import RefusalReason
from pki.server.adapters.broker import structured
from pki.server.facts import SequencedEvent
from pki.server.services import events as told
from pki.server.services import mailbox, notices, rotation, trail
from pki.server.services.deposits import Accepted, Incoming, accept, validate, withdraw
from pki.server.store import deposits as deposit_store
from pki.server.store import events as event_store
from pki.server.store import tables
from pki.server.store.engine import Store
from tests.kit.mail import ACME, GLOBEX, INITECH, Office, answer, compose
from tests.kit.processes import wait_until
from tests.kit.threads import together

SCHEMAS = Path(__file__).parents[2] / "schemas" / "events"


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Three certified instances."""
    return Office(store, database_url, tmp_path)


class Exchange:
    """A publisher that remembers, and that is away when it is told so after some events."""

    def __init__(self) -> None:
        self.heard: list[Mapping[str, object]] = []
        self.away = False

    def publish(self, events: Sequence[Mapping[str, object]]) -> None:
        """Take events, or half of them when away."""
        if self.away:
            self.heard += events[: len(events) // 2]
            raise UnavailableError("The broker is away")
        self.heard += events


def play(office: Office) -> None:
    """Let one of each thing happen to deposits."""
    caller = office.caller(ACME)
    good, refused, gone, old = office.send_available(GLOBEX, ACME, 4)
    mailbox.collect(office.deps, caller, ACME.address, [good, refused])
    mailbox.receipt(office.deps, caller, good, answer(ACME, office.record(good)))
    refusal = answer(ACME, office.record(refused), refusal=RefusalReason.CANNOT_OPEN)
    mailbox.receipt(office.deps, caller, refused, refusal)
    withdraw(office.deps, office.caller(GLOBEX), gone)
    validate(office.deps, office.send(GLOBEX, ACME, key=INITECH.key))
    with office.store.unit() as unit:
        deposit_store.set_state(unit, [old], DepositState.QUARANTINED, now=office.clock.now())
        record = deposit_store.deposit(unit, old)
        assert record is not None
        event_store.append(unit, [told.of_deposit(EventType.DEPOSIT_QUARANTINED, record, office.clock.now())])
    successor = office.send_for(GLOBEX, ACME, old)
    assert isinstance(successor, Accepted)
    validate(office.deps, [successor.id])
    office.send_available(GLOBEX, INITECH)
    accept(office.deps, office.caller(GLOBEX), [Incoming(compose(GLOBEX, ACME), "late", None, office.clock.now())])
    rotation.expire(office.deps)
    office.clock.go_on(days=31)
    rotation.expire(office.deps)


def all_events(office: Office) -> list[SequencedEvent]:
    """Return all numbered events."""
    with office.store.read() as unit:
        return event_store.after(unit, 0, 1000)


def validator(kind: str) -> jsonschema_rs.Draft202012Validator:
    """Return the validator of a type's schema."""
    schema = json.loads((SCHEMAS / f"{kind}.schema.json").read_text())
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=True)


def test_every_type_has_a_schema() -> None:
    """One file for each type, and none besides; each is a valid schema that knows its own name."""
    assert {path.name for path in SCHEMAS.iterdir()} == {f"{kind.value}.schema.json" for kind in EventType}
    for kind in EventType:
        schema = json.loads((SCHEMAS / f"{kind.value}.schema.json").read_text())
        assert schema["properties"]["type"] == {"const": kind.value}
        jsonschema_rs.meta.validate(schema)


def test_each_emitted_event_keeps_its_schema(office: Office) -> None:
    """Whatever happens to deposits is told as its schema says, also in the bytes that listeners get."""
    play(office)
    notices.sequence_events(office.deps, None)
    found = all_events(office)
    deposit_types = {kind for kind in EventType if kind.value.startswith("keymailbox.deposit.")}
    assert {item.event.type for item in found} == deposit_types
    for item in found:
        cloud = notices.cloudevent(office.deps, item)
        validator(item.event.type.value).validate(cloud)
        assert json.loads(structured(cloud)) == cloud
        validator(item.event.type.value).validate({**cloud, "position": item.position})


def test_a_schema_refuses_what_it_does_not_know(office: Office) -> None:
    """Unknown and missing fields are errors: the schemas say something."""
    office.send_available(GLOBEX, ACME)
    notices.sequence_events(office.deps, None)
    item = all_events(office)[-1]
    cloud = notices.cloudevent(office.deps, item)
    data = dict(item.event.data)
    check = validator(item.event.type.value)
    for wrong in (data | {"more": 1}, {k: v for k, v in data.items() if k != "sequence"}, data | {"sender": "no"}):
        assert not check.is_valid({**cloud, "data": wrong})


def test_events_are_numbered_in_order_and_chained(office: Office) -> None:
    """Positions start at 1 without gaps, a second call adds nothing, and the chain verifies."""
    play(office)
    written = [event.id for event in office.events()]
    assert notices.sequence_events(office.deps, None) == len(written)
    assert notices.sequence_events(office.deps, None) == 0
    found = all_events(office)
    assert [item.event.id for item in found] == written
    assert [item.position for item in found] == list(range(1, len(written) + 1))
    assert trail.verify_all(office.deps) == len(written)


def test_an_empty_chain_verifies(office: Office) -> None:
    """Nothing happened, nothing is wrong."""
    assert trail.verify_all(office.deps) == 0


@pytest.mark.parametrize(
    "statement",
    [
        """UPDATE events SET data = '{"sender":"evil/one"}' WHERE position = 2""",
        "UPDATE events SET subject = 'x' WHERE position = 2",
        "UPDATE events SET type = 'keymailbox.deposit.expired' WHERE position = 2",
        "UPDATE event_audience SET address = 'evil/one' WHERE position = 2 AND rank = 0",
        "DELETE FROM event_audience WHERE position = 2",
        "UPDATE events SET position = 99 WHERE position = 2",
    ],
    ids=["data", "subject", "type", "audience-changed", "audience-removed", "moved"],
)
def test_an_edited_event_is_found(office: Office, statement: str) -> None:
    """Whoever edits the table cannot make the chain agree, short of writing all of it anew."""
    office.send_available(GLOBEX, ACME, 2)
    notices.sequence_events(office.deps, None)
    with office.store.unit() as unit:
        unit.connection.execute(text(statement.replace(":", "\\:")))
    with pytest.raises(VerificationError, match="position 2"):
        trail.verify_all(office.deps)


def test_sequencers_at_once_number_each_event_once(office: Office) -> None:
    """Six of them leave one chain."""
    office.send_available(GLOBEX, ACME, 20)
    counts = together(6, lambda _: notices.sequence_events(office.deps, None))
    assert sum(counts) == trail.verify_all(office.deps) == 40


def test_publishing_goes_on_where_it_was(office: Office) -> None:
    """What a broker that was away did not confirm comes again, in order, and nothing is left out."""
    office.send_available(GLOBEX, ACME, 3)
    exchange = Exchange()
    exchange.away = True
    with pytest.raises(UnavailableError):
        notices.sequence_events(office.deps, exchange)
    assert trail.verify_all(office.deps) == 6
    exchange.away = False
    assert notices.sequence_events(office.deps, exchange) == 0
    assert [event["sequence"] for event in exchange.heard] == ["1", "2", "3", *"123456"]
    notices.sequence_events(office.deps, exchange)
    assert len(exchange.heard) == 9


def test_publishers_at_once_forget_nothing(office: Office) -> None:
    """With six workers that are woken together every event goes out, and in order, once."""
    exchange = Exchange()

    def work(_: int) -> None:
        office.send_available(GLOBEX, ACME)
        notices.sequence_events(office.deps, exchange)

    together(6, work)
    assert [event["sequence"] for event in exchange.heard] == [str(number) for number in range(1, 13)]


def test_a_publisher_that_takes_long_keeps_its_turn(office: Office) -> None:
    """Its lease is renewed while it publishes, however long that takes: nobody publishes beside it."""
    office.send_available(GLOBEX, ACME)
    other = Exchange()

    class Slow(Exchange):
        def publish(self, events: Sequence[Mapping[str, object]]) -> None:
            """Take longer than the lease lasts, which is renewed on the way."""
            for _ in range(2):
                office.clock.go_on(seconds=7)
                wait_until(held)
                notices.sequence_events(office.deps, other)
            super().publish(events)

    def held() -> bool:
        with office.store.read() as unit:
            until = unit.connection.execute(select(tables.leases.c.until)).scalar_one()
        return bool(until > office.clock.now() + timedelta(seconds=7))

    exchange = Slow()
    notices.sequence_events(office.deps, exchange)
    assert (len(exchange.heard), other.heard) == (2, [])


def test_a_publisher_that_vanished_is_succeeded(office: Office) -> None:
    """Its lease ends by itself."""
    office.send_available(GLOBEX, ACME)
    with office.store.unit() as unit:
        event_store.acquire_lease(unit, "exchange", "vanished", office.clock.now(), timedelta(seconds=60))
    exchange = Exchange()
    notices.sequence_events(office.deps, exchange)
    assert not exchange.heard
    office.clock.go_on(seconds=61)
    notices.sequence_events(office.deps, exchange)
    assert len(exchange.heard) == 2


def test_events_are_for_their_audience(office: Office) -> None:
    """Sender and recipient read theirs from position to position; a stranger reads nothing."""
    office.send_available(GLOBEX, ACME, 2)
    notices.sequence_events(office.deps, None)
    mine = notices.events(office.deps, office.caller(GLOBEX), 0, 3)
    rest = notices.events(office.deps, office.caller(GLOBEX), mine[-1].position)
    assert [item.position for item in [*mine, *rest]] == [1, 2, 3, 4]
    heard = notices.events(office.deps, office.caller(ACME))
    assert {item.event.type for item in heard} == {EventType.DEPOSIT_AVAILABLE}
    assert notices.events(office.deps, office.caller(INITECH)) == []
    for after, limit in ((-1, 10), (0, 0), (0, 501), (1 << 62, 1)):
        with pytest.raises(UsageError):
            notices.events(office.deps, office.caller(ACME), after, limit)


def test_more_than_a_batch_is_numbered_and_published(office: Office) -> None:
    """Thirteen hundred events take several batches, and one chain."""
    now = office.clock.now()
    many = [
        Event(EventId(secrets.token_hex(16)), EventType.CRL_PUBLISHED, str(number), now, (), {"number": number})
        for number in range(1, 1301)
    ]
    with office.store.unit() as unit:
        event_store.append(unit, many)
    exchange = Exchange()
    assert notices.sequence_events(office.deps, exchange) == 1300
    assert [event["subject"] for event in exchange.heard] == [str(number) for number in range(1, 1301)]
    assert trail.verify_all(office.deps) == 1300
