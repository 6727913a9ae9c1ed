"""A batch of deposits costs few statements, and what is remembered between batches lets nothing in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from pki.core.certificates import CertificateState
from pki.core.deposits import DepositState
from pki.core.ids import DepositId, Fingerprint, fingerprint
from pki.core.x509 import CertificateKind, parse_certificate
from pki.server.ports import CA_FOLDER, ISSUING_FILE
from pki.server.services import signers, validation
from pki.server.services.deposits import Validated, validate
from pki.server.store import outbox, tables
from pki.server.store.engine import Store
from tests.kit import authority
from tests.kit.authority import Party
from tests.kit.mail import ACME, GLOBEX, INITECH, Office
from tests.kit.statements import counted
from workers.handlers import Hands


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Three certified instances."""
    return Office(store, database_url, tmp_path)


def warm(office: Office) -> None:
    """Validate something, so that the parties' certificates are remembered."""
    office.send_available(GLOBEX, ACME)


def verdict(office: Office, deposit_id: DepositId) -> tuple[str, str | None]:
    """Validate one deposit; return its state and code."""
    result = validate(office.deps, [deposit_id])[deposit_id]
    assert isinstance(result, Validated), result
    return result.state.value, result.code


def test_a_hundred_cost_the_statements_of_one(office: Office) -> None:
    """Whoever sent them to whomever: the database is asked as often for a hundred as for one, and commits as often."""
    hands = Hands(office.deps, ["validate"])
    everybody = [(GLOBEX, ACME), (INITECH, GLOBEX), (ACME, INITECH)]
    for sender, to in everybody:
        office.send(sender, to)
    hands.drain("validate")
    told = []
    for counts in ((1, 0, 0), (50, 30, 19)):
        for (sender, to), count in zip(everybody, counts, strict=True):
            office.send(sender, to, count)
        with counted(office.store, here=True) as found:
            hands.drain("validate")
        assert not office.jobs("validate")
        told.append((found.count, found.commits))
    assert told[0] == told[1] != (0, 0)


def test_the_verdict_and_the_end_of_the_job_are_one_commit(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be struck off is not validated either; the next delivery does both."""
    (found,) = office.send(GLOBEX, ACME)
    finish = outbox.finish

    def breaks(_unit: object, ids: Sequence[int]) -> None:
        if ids:
            raise RuntimeError

    monkeypatch.setattr(outbox, "finish", breaks)
    hands = Hands(office.deps, ["validate"])
    hands.drain("validate")
    assert office.record(found).state is DepositState.RECEIVED
    monkeypatch.setattr(outbox, "finish", finish)
    office.clock.go_on(seconds=5)
    hands.drain("validate")
    assert office.record(found).state is DepositState.AVAILABLE
    assert not office.jobs("validate")


def test_one_that_cannot_be_committed_stays_behind_alone(office: Office) -> None:
    """A mailbox whose counter was set back refuses its next number; the others of the batch do not wait for it."""
    office.send_available(GLOBEX, ACME, 2)
    with office.store.unit() as unit:
        behind = tables.mailboxes.c.address == str(ACME.address)
        unit.connection.execute(update(tables.mailboxes).where(behind).values(last_sequence=0))
    stuck, good = office.send(GLOBEX, ACME, 2), office.send(GLOBEX, INITECH, 7)
    results = validate(office.deps, [*stuck, *good])
    assert all(isinstance(results[found], Exception) for found in stuck)
    assert {office.record(found).state for found in stuck} == {DepositState.RECEIVED}
    assert {office.record(found).state for found in good} == {DepositState.AVAILABLE}
    assert sorted(office.record(found).sequence or 0 for found in good) == list(range(1, 8))


@pytest.mark.parametrize("party", [GLOBEX, ACME], ids=["sender", "recipient"])
def test_revoked_between_verification_and_commit(office: Office, party: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    """A remembered certificate that is revoked while signatures are being verified counts as revoked."""
    warm(office)
    kind = CertificateKind.IDENTITY if party is GLOBEX else CertificateKind.ENCRYPTION
    ids = office.send(GLOBEX, ACME, 3)
    judge = validation._judge
    seen: list[object] = []

    def revoked_then(*arguments: object) -> object:
        sound = judge(*arguments)  # type: ignore[arg-type]  # handed on as they come
        if not seen:
            office.move(party, kind, CertificateState.REVOKED)
        seen.append(sound)
        return sound

    monkeypatch.setattr(validation, "_judge", revoked_then)
    results = validate(office.deps, ids)
    assert all(isinstance(sound, validation._Sound) for sound in seen)
    assert [found.code for found in results.values() if isinstance(found, Validated)] == ["certificate-revoked"] * 3


def test_a_remembered_certificate_expires(office: Office) -> None:
    """The clock is looked at each time."""
    warm(office)
    (found,) = office.send(
        GLOBEX, ACME, signing_time=office.clock.now(), expires=office.clock.now() + timedelta(days=9)
    )
    leaf = parse_certificate(GLOBEX.identity_der)
    later = Office.__new__(Office)
    later.__dict__ |= office.__dict__
    clock = type(office.clock)(leaf.not_after + timedelta(seconds=1))
    result = validate(replace(office.deps, clock=clock), [found])[found]
    assert isinstance(result, Validated)
    assert (result.state, result.code) == (DepositState.REJECTED, "expired")


def test_a_remembered_certificate_needs_its_issuing_ca(office: Office) -> None:
    """The chain is looked at each time: where the issuing CA is another one, nothing that is remembered helps."""
    warm(office)
    (found,) = office.send(GLOBEX, ACME)
    folder = office.deps.settings.home / CA_FOLDER
    (folder / ISSUING_FILE).write_bytes(authority.Authority(seed=101).issuing_der)
    assert verdict(office, found) == ("rejected", "bad-certificate")


@pytest.mark.parametrize("warmed", [True, False])
def test_a_row_that_tells_of_another_certificate_proves_nothing(office: Office, warmed: bool) -> None:
    """Who moves a certificate's row to another's key gets nothing by it, remembered or not."""
    signers._parsed._known.clear()
    if warmed:
        warm(office)
        office.send_available(INITECH, ACME)
    (found,) = office.send(GLOBEX, ACME)
    table = tables.certificates
    mine, theirs = (fingerprint(party.identity_der) for party in (GLOBEX, INITECH))
    with office.store.unit() as unit:
        unit.connection.execute(update(table).where(table.c.fingerprint == mine).values(ski="00" * 20, state="retired"))
        moved = {"ski": GLOBEX.ski.hex(), "address": str(GLOBEX.address)}
        unit.connection.execute(update(table).where(table.c.fingerprint == theirs).values(moved))
    assert verdict(office, found) == ("rejected", "bad-certificate")


def test_bytes_that_were_exchanged_are_seen_by_who_has_not_seen_the_right_ones(office: Office) -> None:
    """A certificate's row with another one's bytes is refused, and they are not remembered."""
    signers._parsed._known.clear()
    (found,) = office.send(GLOBEX, ACME)
    table = tables.certificates
    mine = fingerprint(GLOBEX.identity_der)
    with office.store.unit() as unit:
        unit.connection.execute(update(table).where(table.c.fingerprint == mine).values(der=INITECH.identity_der))
    assert verdict(office, found) == ("rejected", "bad-certificate")
    assert signers._parsed.find(mine) is None
    assert signers._parsed.find(fingerprint(INITECH.identity_der)) is None


def test_what_is_remembered_has_a_bound() -> None:
    """The oldest in use goes first, however many there are."""
    parsed = parse_certificate(GLOBEX.identity_der)
    remembered = signers._Parsed(3)
    names = [Fingerprint(f"{number:064x}") for number in range(5)]
    for name in names[:3]:
        remembered.keep(replace(parsed, fingerprint=name))
    assert remembered.find(names[0]) is not None
    for name in names[3:]:
        remembered.keep(replace(parsed, fingerprint=name))
    assert len(remembered) == 3
    assert [remembered.find(name) is not None for name in names] == [True, False, False, True, True]
