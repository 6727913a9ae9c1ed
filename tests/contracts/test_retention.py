"""Bodies are deleted when their time is over, and not before; what proves who sent and who answered stays."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url, text

from pki.core import counterfoils
from pki.core.deposits import DepositState
from pki.core.errors import KeymailboxError, NotFoundError
from pki.core.ids import DepositId
from pki.core.receipts import RefusalReason, parse_receipt
from pki.server.facts import DepositRecord
from pki.server.services import mailbox, report, retention, rotation
from pki.server.services.deposits import validate, withdraw
from pki.server.services.jobs import run
from pki.server.services.retention import Cleared
from pki.server.store import bodies
from pki.server.store import deposits as deposit_store
from pki.server.store.engine import Store
from tests.contracts.conftest import Databases
from tests.kit.killing import kill_clearing
from tests.kit.mail import ACME, GLOBEX, INITECH, Office, answer, codes, compose
from tests.kit.services import login
from tests.kit.threads import together
from workers.handlers import Hands

S = DepositState
WEEKS = timedelta(weeks=1)
OPEN = (S.RECEIVED, S.AVAILABLE, S.COLLECTED, S.QUARANTINED)


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Three certified instances, and shelves for this week and the next ones."""
    opened = Office(store, database_url, tmp_path)
    retention.prepare(opened.deps)
    return opened


def settle(office: Office, deposit_id: DepositId, refusal: RefusalReason | None = None) -> None:
    """Collect and answer one of acme's deposits."""
    mailbox.collect(office.deps, office.caller(ACME), ACME.address, [deposit_id])
    der = answer(ACME, office.record(deposit_id), refusal=refusal)
    mailbox.receipt(office.deps, office.caller(ACME), deposit_id, der)


def late(office: Office) -> datetime:
    """Return when a deposit expires that outlives its week for long."""
    return office.clock.now().replace(microsecond=0) + timedelta(days=80)


def one_of_each(office: Office) -> Mapping[DepositState, DepositId]:
    """Return a deposit in each state; those that are open expire in 80 days."""
    found = {}
    expires = late(office)
    (found[S.ACKNOWLEDGED], found[S.REFUSED], found[S.COLLECTED], found[S.WITHDRAWN], found[S.AVAILABLE]) = (
        office.send_available(GLOBEX, ACME, 5, expires=expires)
    )
    settle(office, found[S.ACKNOWLEDGED])
    settle(office, found[S.REFUSED], RefusalReason.NOT_WANTED)
    mailbox.collect(office.deps, office.caller(ACME), ACME.address, [found[S.COLLECTED]])
    withdraw(office.deps, office.caller(GLOBEX), found[S.WITHDRAWN])
    (found[S.REJECTED],) = office.send(GLOBEX, ACME, key=INITECH.key)
    validate(office.deps, [found[S.REJECTED]])
    (found[S.EXPIRED],) = office.send_available(GLOBEX, ACME, expires=expires - timedelta(days=79))
    (found[S.QUARANTINED],) = office.send_available(GLOBEX, INITECH, expires=expires)
    (found[S.RECEIVED],) = office.send(GLOBEX, ACME, expires=expires)
    with office.store.unit() as unit:
        deposit_store.quarantine_for(unit, [INITECH.kem_ski.hex()], office.clock.now())
    office.clock.go_on(days=1)
    rotation.expire(office.deps)
    assert {office.record(name).state: name for name in found.values()} == found
    return found


def held(office: Office, ids: Mapping[DepositState, DepositId]) -> set[DepositState]:
    """Return the states in which a deposit still has its body."""
    return {state for state, name in ids.items() if office.record(name).body}


def weeks(office: Office) -> list[int]:
    """Return the weeks that have a partition of their own, counted from this one."""
    with office.store.read() as unit:
        return [week - bodies.week_of(office.clock.now()) for week, apart in bodies.shelves(unit) if apart]


def test_what_is_settled_goes_and_what_is_open_stays(office: Office) -> None:
    """Thirty days after a deposit was settled its body is gone, whatever became of it; no other is touched."""
    ids = one_of_each(office)
    before = {state: office.record(name) for state, name in ids.items()}
    assert retention.retain(office.deps) == Cleared()
    office.clock.go_on(days=28)
    assert retention.retain(office.deps).deleted == 0
    office.clock.go_on(days=9)
    done = retention.retain(office.deps)
    assert done == Cleared(5, *((4, 1) if office.store.dialect == "postgresql" else (0, 0)))
    assert held(office, ids) == set(OPEN)
    for state in OPEN:
        assert office.record(ids[state]) == before[state]
    again = retention.retain(office.deps)
    assert again == Cleared() and held(office, ids) == set(OPEN)


def test_what_outlived_its_week_goes_when_its_time_is_over(office: Office) -> None:
    """A deposit that is collected late is kept past its week, can be handed out, and goes after its own period."""
    (found,) = office.send_available(GLOBEX, ACME, expires=late(office))
    office.clock.go_on(days=60)
    retention.retain(office.deps)
    (answered,) = mailbox.collect(office.deps, office.caller(ACME), ACME.address, [found])
    assert isinstance(answered, tuple)
    body = answered[1]
    assert body == office.record(found).body
    settle(office, found)
    office.clock.go_on(days=29)
    retention.retain(office.deps)
    assert office.record(found).body == body
    office.clock.go_on(days=2)
    assert retention.retain(office.deps).deleted == 1
    assert office.record(found).body is None
    with office.store.read() as unit:
        assert unit.connection.execute(text("SELECT count(*) FROM bodies")).scalar_one() == 0


def test_the_evidence_stays_and_verifies(office: Office) -> None:
    """After the body is gone: who signed what, with its digest; who answered; and all that the report says."""
    (found, other) = office.send_available(GLOBEX, ACME, 2)
    settle(office, found)
    before = office.record(found)
    (line,) = [line for line in report.distribution(office.deps) if line.deposit_id == found]
    office.clock.go_on(days=45)
    deleted = office.clock.now()
    retention.retain(office.deps)
    kept = retention.counterfoil(office.deps, found)
    assert kept.deleted_at == deleted and kept.der is not None
    proof = counterfoils.parse(kept.der).verify(GLOBEX.key.public)
    assert (proof.id, proof.context.recipient, proof.context.key_id) == (found, ACME.address, before.key_id)
    assert before.body is not None
    proof.match(before.body)
    signed = mailbox.receipt_of(office.deps, office.caller(GLOBEX), found)
    parse_receipt(signed.der).verify(ACME.key.public, recipient=ACME.address, deposit=found, sha512=before.body_sha512)
    (after,) = [line for line in report.distribution(office.deps) if line.deposit_id == found]
    assert after.body_deleted_at == report.text_of(deleted)
    assert after.receipt == line.receipt == base64.b64encode(signed.der).decode()
    assert {k: v for k, v in vars(after).items() if k != "body_deleted_at"} == {
        k: v for k, v in vars(line).items() if k != "body_deleted_at"
    }
    # What still has its body proves the same.
    there = retention.counterfoil(office.deps, other)
    assert there.der is not None and counterfoils.parse(there.der).verify(GLOBEX.key.public).id == other


def test_what_was_never_verified_has_no_counterfoil(office: Office) -> None:
    """Of a rejected deposit digests and reason stay: a signature that is nobody's proves nothing."""
    (found,) = office.send(GLOBEX, ACME, key=INITECH.key)
    validate(office.deps, [found])
    office.clock.go_on(days=45)
    assert retention.retain(office.deps).deleted == 1
    record = office.record(found)
    assert record.body is None and record.rejected_code and record.body_sha256
    for name in (found, "00" * 16):
        with pytest.raises(NotFoundError):
            retention.counterfoil(office.deps, name)


def test_who_asks_afterwards_is_told(office: Office) -> None:
    """Pages, status and collection say that the body was deleted and when; before that nothing is said."""
    (found, other) = office.send_available(GLOBEX, ACME, 2)
    settle(office, found)
    caller, sender = office.caller(ACME), office.caller(GLOBEX)
    assert codes(mailbox.collect(office.deps, caller, ACME.address, [found])) == ["illegal-state"]
    assert mailbox.status(office.deps, caller, found).body_deleted_at is None
    office.clock.go_on(days=45)
    when = office.clock.now()
    retention.retain(office.deps)

    def marks(records: list[DepositRecord]) -> dict[DepositId, object]:
        return {record.id: record.body_deleted_at for record in records}

    assert marks(mailbox.page(office.deps, caller, ACME.address)) == {found: when, other: None}
    assert marks(mailbox.sent(office.deps, sender)[0]) == {found: when, other: None}
    assert marks([mailbox.status(office.deps, sender, found)]) == {found: when}
    answers = mailbox.collect(office.deps, caller, ACME.address, [found, other])
    assert codes(answers) == ["deleted", "expired"]


def test_bytes_that_were_altered_are_not_deleted(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    """What is not what was deposited stays, for people to see, and no counterfoil is cut from it."""
    (found, sound) = office.send_available(GLOBEX, ACME, 2)
    for name in (found, sound):
        settle(office, name)
    with office.store.unit() as unit:
        unit.connection.execute(
            text("UPDATE bodies SET body = :body WHERE deposit_id = :id"), {"id": found, "body": compose(GLOBEX, ACME)}
        )
    office.clock.go_on(days=45)
    assert retention.retain(office.deps).deleted == 1
    assert office.record(found).body is not None and office.record(sound).body is None
    assert found in caplog.text
    assert retention.retain(office.deps).deleted == 0 and office.record(found).body is not None


def test_a_missing_body_is_our_fault(office: Office) -> None:
    """A deposit whose bytes are lost is neither rejected nor marked as collected: people have to see it."""
    (waiting,) = office.send(GLOBEX, ACME)
    (there,) = office.send_available(GLOBEX, ACME)
    with office.store.unit() as unit:
        unit.connection.execute(text("DELETE FROM bodies"))
    assert isinstance(validate(office.deps, [waiting])[waiting], LookupError)
    assert codes(mailbox.collect(office.deps, office.caller(ACME), ACME.address, [there])) == ["error"]
    assert [office.record(name).state for name in (waiting, there)] == [S.RECEIVED, S.AVAILABLE]


def test_much_is_done_in_several_jobs(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job looks at so many and leaves another for the rest, until nothing is left."""
    monkeypatch.setattr(retention, "_PAGE", 2)
    monkeypatch.setattr(retention, "_PAGES", 2)
    ids = office.send_available(GLOBEX, ACME, 9)
    for name in ids[:8]:
        settle(office, name)
    office.clock.go_on(days=45)
    # The first by their ids, which are random; what is still open has its place among them.
    deleted = sum(one in ids[:8] for one in sorted(ids)[:4])
    assert retention.retain(office.deps) == Cleared(deleted, 0, 0, more=True) or office.store.dialect == "postgresql"
    hands = Hands(office.deps, ["rotate"])
    for _ in range(10):
        run(office.deps, "rotate", hands.handlers("rotate"))
    assert [bool(office.record(name).body) for name in ids] == [False] * 8 + [True]
    assert not office.jobs("rotate")


def test_two_workers_at_once(office: Office) -> None:
    """Both come to an end, each body is deleted once, and nothing is lost."""
    ids = one_of_each(office)
    office.clock.go_on(days=40)
    done = together(3, lambda _: retention.retain(office.deps))
    # Where all of them stood in each other's way, a shelf is left to the next time.
    done.append(retention.retain(office.deps))
    assert held(office, ids) == set(OPEN)
    assert sum(one.dropped for one in done) == (2 if office.store.dialect == "postgresql" else 0)
    with office.store.read() as unit:
        assert unit.connection.execute(text("SELECT count(*) FROM counterfoils")).scalar_one() == 5


def test_a_worker_is_killed_anywhere(office: Office, database_url: str, tmp_path: Path) -> None:
    """At each commit: what has to stay is there, what is deleted has its counterfoil, and the next one ends it."""
    ids = one_of_each(office)
    office.clock.go_on(days=40)
    now = office.clock.now()
    deaths = 0
    for commit in range(1, 30):
        for when in ("before", "after"):
            ended = kill_clearing(("commit", commit, when), home=tmp_path, url=database_url, now=now)
            assert set(OPEN) <= held(office, ids)
            with office.store.read() as unit:
                when_deleted = bodies.deleted_at(unit, list(ids.values()))
            assert all(office.record(name).body or name in when_deleted for name in ids.values())
            assert ended in (0, -9)
            deaths += ended == -9
        if ended == 0:
            break
    assert deaths >= 10 and ended == 0
    assert held(office, ids) == set(OPEN)
    assert office.store.dialect == "sqlite" or min(weeks(office)) > -6


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
class TestShelves:
    """Partitions on PostgreSQL."""

    def test_are_made_ahead_of_time(self, office: Office) -> None:
        """This week's and the next four's, once, and further ones as weeks pass."""
        assert weeks(office) == [0, 1, 2, 3, 4]
        assert retention.prepare(office.deps) == 0
        office.clock.go_on(weeks=2)
        assert retention.prepare(office.deps) == 2
        assert weeks(office) == [-2, -1, 0, 1, 2, 3, 4]

    def test_a_body_that_has_none_is_no_worse(self, office: Office) -> None:
        """When nobody made them for months, what comes lies with what is kept, and goes when its time is over."""
        office.clock.go_on(weeks=10)
        (found, other) = office.send_available(
            GLOBEX, ACME, 2, signing_time=office.clock.now(), expires=office.clock.now() + timedelta(days=80)
        )
        settle(office, found)
        retention.prepare(office.deps)
        assert 0 not in weeks(office) and 1 in weeks(office)
        assert office.record(found).body
        office.clock.go_on(days=31)
        assert retention.retain(office.deps).deleted == 1
        assert office.record(found).body is None and office.record(other).body

    def test_a_reader_that_does_not_let_go_puts_it_off(
        self, office: Office, database_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The shelf stays for the next run; those who read and deposit meanwhile do not wait for it for long."""
        (found,) = office.send_available(GLOBEX, ACME)
        settle(office, found)
        office.clock.go_on(days=45)
        server = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(server) as reader:
            reader.execute("SELECT count(*) FROM bodies")
            assert retention.retain(office.deps).dropped == 0
            assert "in use" in caplog.text
        assert retention.retain(office.deps).dropped == 2
        assert office.record(found).body is None

    def test_workers_that_own_nothing_do_it_all(
        self, databases: Databases, store: Store, database_url: str, tmp_path: Path
    ) -> None:
        """Partitions are made, cleared and dropped under the workers' login; the API's reads its callers' bodies."""
        whose = make_url(databases.templates["postgresql"]).database
        workers, api = (Store(login(database_url, f"{whose}_{who}")) for who in ("workers", "api"))
        try:
            office = Office(workers, database_url, tmp_path)
            assert retention.prepare(office.deps) == 5
            found, kept = office.send_available(GLOBEX, ACME, 2, expires=late(office))
            settle(office, found)
            office.clock.go_on(days=45)
            assert retention.retain(office.deps) == Cleared(1, 1, 2)
            deps = replace(office.deps, store=api.scoped([ACME.address.tenant]))
            answers = mailbox.collect(deps, office.caller(ACME), ACME.address, [found, kept])
            assert codes(answers) == ["deleted", "ok"]
            for statement in ("DELETE FROM bodies", "DELETE FROM counterfoils", "SELECT keymailbox_drop_shelf(3200)"):
                with pytest.raises(KeymailboxError), api.unit() as unit:
                    unit.connection.execute(text(statement))
        finally:
            workers.close()
            api.close()

    def test_a_deposit_is_collected_while_its_shelf_is_cleared(self, office: Office) -> None:
        """Whoever collects at any moment gets the bytes."""
        ids = office.send_available(GLOBEX, ACME, 20, expires=late(office))
        office.clock.go_on(days=45)
        whole: list[bool] = []

        def work(number: int) -> None:
            if number == 0:
                retention.retain(office.deps)
                return
            for name in ids[number - 1 :: 3]:
                for one in mailbox.collect(office.deps, office.caller(ACME), ACME.address, [name]):
                    whole.append(isinstance(one, tuple) and len(one[1]) == one[0].size)

        together(4, work)
        assert whole == [True] * 20 and all(office.record(name).body for name in ids)


def test_what_came_before_the_shelves_goes_too(store: Store, database_url: str, tmp_path: Path) -> None:
    """Bodies in the rows of deposits, as an earlier release wrote them, are read, deleted and proved like others."""
    office = Office(store, database_url, tmp_path)
    (found, waits) = office.send_available(GLOBEX, ACME, 2, expires=late(office))
    with store.unit() as unit:
        unit.connection.execute(
            text("UPDATE deposits SET body = (SELECT body FROM bodies WHERE deposit_id = deposits.id)")
        )
        unit.connection.execute(text("DELETE FROM bodies"))
    settle(office, found)
    office.clock.go_on(days=45)
    assert retention.retain(office.deps).deleted == 1
    assert office.record(found).body is None and office.record(waits).body
    kept = retention.counterfoil(office.deps, found)
    assert kept.der is not None and counterfoils.parse(kept.der).verify(GLOBEX.key.public).id == found
