"""What is under way is counted exactly, on every way in and out, and a limit holds at its edge however many come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, text, update

from pki.core.certificates import CertificateState
from pki.core.deposits import DepositState
from pki.core.errors import ConflictError, KeymailboxError, QuotaError
from pki.core.ids import DepositId
from pki.core.receipts import RefusalReason
from pki.core.tenants import parse_address
from pki.core.x509 import CertificateKind
from pki.server.services import deposits, doctor, limits, mailbox, rotation
from pki.server.services.deposits import Accepted
from pki.server.store import deposits as deposit_store
from pki.server.store import limits as store_limits
from pki.server.store.engine import Store
from pki.server.store.tables import tallies
from tests.kit import authority
from tests.kit.authority import NOW, Party
from tests.kit.mail import ACME, GLOBEX, INITECH, Office, answer, codes, compose, tallied
from tests.kit.threads import together

Way = Callable[[Office, DepositId], None]


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Iterator[Office]:
    """Three certified instances."""
    with tallied(store, database_url, tmp_path) as made:
        yield made


def allow(office: Office, subject: str, **values: int | None) -> None:
    """Set limits of a tenant or an address."""
    named = {name.replace("_", "-"): value for name, value in values.items()}
    limits.allow(office.deps, limits.parse_subject(subject), named)


def waiting(office: Office, sender: str, recipient: str) -> tuple[int, int]:
    """Return how many deposits are under way, and how many bytes in thousands."""
    with office.store.read() as unit:
        found = store_limits.found(unit, [(sender, recipient)]).get((sender, recipient))
    return (0, 0) if found is None else (found.deposits, found.bytes // 1000)


def share(office: Office) -> tuple[int, int]:
    """Return what is under way of globex as a tenant in acme's mailbox."""
    return waiting(office, GLOBEX.address.tenant, str(ACME.address))


def counts(office: Office) -> tuple[int, int, int]:
    """Return how many are under way of globex, in acme's mailbox, and of the two."""
    globex, acme = str(GLOBEX.address), str(ACME.address)
    return waiting(office, globex, "")[0], waiting(office, "", acme)[0], waiting(office, globex, acme)[0]


EDGES = [
    ("globex", "sender-deposits"),
    (str(GLOBEX.address), "sender-daily"),
    ("acme", "mailbox-deposits"),
    (str(ACME.address), "pair-deposits"),
    ("acme", "share-deposits"),
]


@pytest.mark.parametrize(("subject", "name"), EDGES)
def test_a_limit_holds_at_its_edge(office: Office, subject: str, name: str) -> None:
    """Three of three get in, the fourth learns which limit it was and when to come again; others are not held."""
    limits.allow(office.deps, limits.parse_subject(subject), {name: 3})
    answers = office.accept(GLOBEX, *(compose(GLOBEX, ACME) for _ in range(5)))
    assert codes(answers) == ["ok", "ok", "ok", "quota", "quota"]
    (error,) = {type(one) for one in answers[3:]}
    assert error is QuotaError
    last = answers[4]
    assert isinstance(last, QuotaError) and last.retry_after
    assert codes(office.accept(INITECH, compose(INITECH, ACME))) == (
        ["quota"] if name == "mailbox-deposits" else ["ok"]
    )


@pytest.mark.parametrize("name", ["sender-bytes", "mailbox-bytes", "share-bytes", "pair-bytes"])
def test_bytes_are_counted(office: Office, name: str) -> None:
    """A deposit that would go over the limit is refused, a smaller one may still fit."""
    body = compose(GLOBEX, ACME)
    subject = "globex" if name == "sender-bytes" else "acme"
    limits.allow(office.deps, limits.parse_subject(subject), {name: 2 * len(body) + 10})
    assert codes(office.accept(GLOBEX, body, *(compose(GLOBEX, ACME) for _ in range(2)))) == ["ok", "ok", "quota"]


def test_five_instances_do_not_fill_a_mailbox(office: Office) -> None:
    """All instances of a tenant have one share of a mailbox, at once too; another tenant's deposits still get in."""
    allow(office, "acme", pair_deposits=2, share_deposits=4, mailbox_deposits=10)
    more = [Party(authority.authority(), parse_address(f"globex/kms-{number}"), 40 + number) for number in range(4)]
    for party in more:
        office.enrol(party)
    crowd = [GLOBEX, *more]
    bodies = [[compose(party, ACME) for _ in range(2)] for party in crowd]
    answers = together(5, lambda number: office.accept(crowd[number], *bodies[number]))
    told = [one for found in answers for one in found]
    assert sorted(codes(told)) == ["ok"] * 4 + ["quota"] * 6
    refused = next(one for one in told if isinstance(one, QuotaError))
    assert "4 deposits of your tenant's" in refused.message and refused.on == str(ACME.address) and refused.retry_after
    assert waiting(office, "globex", str(ACME.address))[0] == 4
    assert codes(office.accept(INITECH, compose(INITECH, ACME))) == ["ok"]
    [one] = [one for one in told if isinstance(one, Accepted)][:1]
    _acknowledged(office, one.id)
    assert waiting(office, "globex", str(ACME.address))[0] == 3


def test_by_default_no_tenant_fills_a_mailbox(office: Office) -> None:
    """Its share is below half of what fits, since what takes another's place may double it; doctor says otherwise."""

    def said() -> list[str]:
        return [one.detail for one in doctor.examine(office.deps) if "fill a mailbox" in one.detail]

    assert not said()
    settings = office.deps.settings.model_copy(update={"limit_share_bytes": 512 * 1024 * 1024})
    office.deps = replace(office.deps, settings=settings)
    assert len(said()) == 1


def test_twenty_at_the_last_place(office: Office) -> None:
    """Of twenty that come at once, exactly one gets it."""
    allow(office, "acme", pair_deposits=5)
    office.send(GLOBEX, ACME, 4)
    bodies = [compose(GLOBEX, ACME) for _ in range(20)]
    answers = together(20, lambda number: office.accept(GLOBEX, bodies[number])[0])
    assert sorted(codes(answers)) == ["ok"] + ["quota"] * 19
    assert counts(office) == (5, 5, 5)


def test_a_batch_is_answered_item_by_item(office: Office) -> None:
    """Of a batch over the limit the first ones get in, whoever they are for."""
    allow(office, "acme", pair_deposits=1)
    bodies = [compose(GLOBEX, ACME), compose(GLOBEX, INITECH), compose(GLOBEX, ACME), compose(GLOBEX, INITECH)]
    assert codes(office.accept(GLOBEX, *bodies)) == ["ok", "ok", "quota", "ok"]


def test_what_was_refused_may_come_again(office: Office) -> None:
    """A quota leaves neither id nor idempotency key behind."""
    allow(office, "acme", pair_deposits=1)
    first, second = office.send(GLOBEX, ACME), compose(GLOBEX, ACME)
    assert codes(office.accept(GLOBEX, second)) == ["quota"]
    deposits.withdraw(office.deps, office.caller(GLOBEX), first[0])
    assert codes(office.accept(GLOBEX, second)) == ["ok"]


def test_a_repeated_request_counts_once(office: Office) -> None:
    """Its answer was given before, also when there is no place any more."""
    allow(office, "acme", pair_deposits=1)
    item = deposits.Incoming(compose(GLOBEX, ACME), "the-same")
    assert codes(deposits.accept(office.deps, office.caller(GLOBEX), [item])) == ["ok"]
    (again,) = deposits.accept(office.deps, office.caller(GLOBEX), [item])
    assert isinstance(again, Accepted) and again.repeated
    assert counts(office) == (1, 1, 1)


def test_a_day_has_an_end(office: Office) -> None:
    """What was accepted yesterday does not count today, and the time to come again is after midnight."""
    allow(office, "globex", sender_daily=1)
    office.send(GLOBEX, ACME)
    (refused,) = office.accept(GLOBEX, compose(GLOBEX, ACME))
    assert isinstance(refused, QuotaError) and refused.retry_after is not None
    office.clock.moment += timedelta(seconds=refused.retry_after)
    office.send(GLOBEX, ACME, signing_time=office.clock.now())


def test_operators_choose(office: Office) -> None:
    """An address's own limit stands above its tenant's, that above the settings; none is back to those."""
    allow(office, "globex", sender_deposits=1)
    allow(office, str(GLOBEX.address), sender_deposits=2)
    office.send(GLOBEX, ACME, 2)
    assert codes(office.accept(GLOBEX, compose(GLOBEX, ACME))) == ["quota"]
    allow(office, str(GLOBEX.address), sender_deposits=None)
    shown = {one.limit.name: one for one in limits.show(office.deps, limits.parse_subject("globex"))}
    assert (shown["sender-deposits"].value, shown["sender-deposits"].own) == (1, True)
    allow(office, "globex", sender_deposits=None)
    office.send(GLOBEX, ACME, 2)


def test_operators_bound_size_and_lifetime(office: Office) -> None:
    """The smaller of what sender and recipient are allowed holds."""
    body = compose(GLOBEX, ACME)
    allow(office, "acme", deposit_bytes=len(body) - 1)
    assert codes(office.accept(GLOBEX, body)) == ["too-large"]
    allow(office, "acme", deposit_bytes=None, deposit_hours=24)
    later = {"expires": NOW + timedelta(hours=20)}
    assert codes(office.accept(GLOBEX, body, compose(GLOBEX, ACME, **later))) == ["outside-period", "ok"]


def _collected(office: Office, deposit_id: DepositId) -> Any:
    deposits.validate(office.deps, [deposit_id])
    mailbox.collect(office.deps, office.caller(ACME), ACME.address, [deposit_id])
    return office.record(deposit_id)


def _acknowledged(office: Office, deposit_id: DepositId) -> None:
    record = _collected(office, deposit_id)
    mailbox.receipt(office.deps, office.caller(ACME), deposit_id, answer(ACME, record))


def _refused(office: Office, deposit_id: DepositId) -> None:
    record = _collected(office, deposit_id)
    der = answer(ACME, record, refusal=next(iter(RefusalReason)))
    mailbox.receipt(office.deps, office.caller(ACME), deposit_id, der)


def _withdrawn(office: Office, deposit_id: DepositId) -> None:
    deposits.withdraw(office.deps, office.caller(GLOBEX), deposit_id)


def _rejected(office: Office, deposit_id: DepositId) -> None:
    office.move(GLOBEX, CertificateKind.IDENTITY, CertificateState.REVOKED)
    deposits.validate(office.deps, [deposit_id])


def _expired(office: Office, deposit_id: DepositId) -> None:
    office.clock.go_on(days=31)
    rotation.expire(office.deps)


def _superseded(office: Office, deposit_id: DepositId) -> None:
    _quarantined(office, deposit_id)
    new = office.send_for(GLOBEX, ACME, deposit_id)
    assert isinstance(new, Accepted)
    deposits.validate(office.deps, [new.id])
    _withdrawn(office, new.id)


def _quarantined(office: Office, deposit_id: DepositId) -> None:
    deposits.validate(office.deps, [deposit_id])
    with office.store.unit() as unit:
        assert deposit_store.quarantine_for(unit, [ACME.kem_ski.hex()], office.clock.now()) == [deposit_id]


@pytest.mark.parametrize(
    ("way", "state"),
    [
        (_acknowledged, DepositState.ACKNOWLEDGED),
        (_refused, DepositState.REFUSED),
        (_withdrawn, DepositState.WITHDRAWN),
        (_rejected, DepositState.REJECTED),
        (_expired, DepositState.EXPIRED),
        (_superseded, DepositState.SUPERSEDED),
    ],
)
def test_every_way_out_frees_the_place(office: Office, way: Way, state: DepositState) -> None:
    """Wherever a deposit ends, its place and its bytes are free."""
    (deposit_id,) = office.send(GLOBEX, ACME)
    assert counts(office) == (1, 1, 1)
    way(office, deposit_id)
    assert office.record(deposit_id).state is state
    assert counts(office) == (0, 0, 0)
    assert waiting(office, str(GLOBEX.address), str(ACME.address)) == (0, 0) == share(office)


def test_a_quarantined_deposit_keeps_its_place(office: Office) -> None:
    """It is still stored, for its sender to take back or to supersede, for which there is room over the limit."""
    allow(office, "acme", pair_deposits=1)
    (deposit_id,) = office.send(GLOBEX, ACME)
    _quarantined(office, deposit_id)
    assert counts(office) == (1, 1, 1)
    assert isinstance(office.send_for(GLOBEX, ACME, deposit_id), Accepted)
    assert isinstance(office.send_for(GLOBEX, ACME, deposit_id), ConflictError)
    assert codes(office.accept(GLOBEX, compose(GLOBEX, ACME))) == ["quota"]


def test_a_recipient_that_never_answers_holds_nobodys_own_quota(office: Office) -> None:
    """What was collected counts for the pair and the mailbox, and no more for its sender, who cannot take it back."""
    _collected(office, office.send(GLOBEX, ACME)[0])
    assert counts(office) == (0, 1, 1)


def test_counting_at_once(office: Office) -> None:
    """Accepting, withdrawing and expiring at once, across pairs in both directions, ends with exact counts."""
    parties = (ACME, GLOBEX, INITECH)

    def work(number: int) -> None:
        sender, to = parties[number % 3], parties[(number + 1 + number // 3 % 2) % 3]
        for _ in range(4):
            first, _second = office.send(sender, to, 2)
            deposits.withdraw(office.deps, office.caller(sender), first)

    together(9, work)
    with office.store.read() as unit:
        assert store_limits.differing(unit) == []
        found = store_limits.found(unit, [(str(one.address), "") for one in parties])
    assert [one.deposits for one in found.values()] == [12, 12, 12]


def test_a_wrong_count_is_found_and_mended(office: Office) -> None:
    """What somebody edited, or an earlier release did not count, is told and counted anew."""
    office.send(GLOBEX, ACME, 2)
    with office.store.unit() as unit:
        unit.connection.execute(update(tallies).where(tallies.c.sender == "").values(deposits=7))
        unit.connection.execute(update(tallies).where(tallies.c.recipient == "").values(bytes=-1))
    with office.store.read() as unit:
        assert len(store_limits.differing(unit)) == 2
    assert limits.mend(office.deps) == 2
    assert limits.mend(office.deps) == 0
    assert counts(office) == (2, 2, 2)


def test_what_was_there_is_counted_for_tenants(office: Office) -> None:
    """A database of before tenants had shares is migrated to the counts that it would have."""
    office.send(GLOBEX, ACME, 2)
    _acknowledged(office, office.send(GLOBEX, ACME)[0])
    office.send(INITECH, ACME)
    with office.store.unit() as unit:
        before = {row.sender: row.accepted for row in unit.connection.execute(select(tallies))}
        unit.connection.execute(delete(tallies).where(tallies.c.sender.in_(["globex", "initech"])))
        unit.connection.execute(text("UPDATE alembic_version SET version_num = '0018'"))
    office.store.migrate()
    with office.store.read() as unit:
        assert store_limits.differing(unit) == []
        assert {row.sender: row.accepted for row in unit.connection.execute(select(tallies))} == before
    assert share(office)[0] == 2


def test_an_error_says_what_it_is(office: Office) -> None:
    """Which limit, how much; how full a mailbox is, is not told."""
    allow(office, "acme", pair_deposits=0)
    (refused,) = office.accept(GLOBEX, compose(GLOBEX, ACME))
    assert isinstance(refused, KeymailboxError)
    assert "0 deposits of yours" in refused.message and refused.on == str(ACME.address)
    allow(office, "acme", pair_deposits=None, mailbox_deposits=0)
    (refused,) = office.accept(GLOBEX, compose(GLOBEX, ACME))
    assert isinstance(refused, KeymailboxError) and refused.message == "The recipient's mailbox is full"
