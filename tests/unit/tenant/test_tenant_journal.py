"""The journal remembers, and a kill at any point leaves it whole."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pki.core.errors import ReplayedError, SettingsError
from pki.core.ids import DepositId, Fingerprint, KeyId, RequestId
from pki.core.signatures import SignatureAlgorithm
from pki.core.tenants import parse_address
from pki.tenant.journal import Journal
from pki.tenant.ports import KeyName
from pki.tenant.records.own import OwnCertificate, OwnRequest
from pki.tenant.records.pins import Pin
from pki.tenant.records.seen import Seen
from pki.tenant.records.sent import Sent
from tests.kit.authority import new_signing_key

NOW = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)
DAY = timedelta(days=1)
ACME = parse_address("acme/eu-west")
GLOBEX = parse_address("globex/main")
INITECH = parse_address("initech/lab")
KEY = KeyId("orders")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """An empty journal."""
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def again(journal: Journal, tmp_path: Path) -> Iterator[Journal]:
    """The same journal in another connection."""
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


def deposit(number: int, to: object = GLOBEX, version: int = 1, **changes: object) -> Sent:
    """A planned deposit."""
    values = {
        "deposit_id": DepositId(f"{number:032x}"),
        "recipient": to,
        "name": KeyName(ACME, KEY, version),
        "purpose": "test",
        "expires_at": NOW + timedelta(days=1),
        "planned_at": NOW,
    }
    return Sent(**(values | changes))  # type: ignore[arg-type]  # any field


def seen(number: int, sequence: int, kind: str = "receipt") -> Seen:
    """A decision."""
    return Seen(DepositId(f"{number:032x}"), sequence, ACME, b"digest", kind, "", b"answer")


def test_a_journal_of_the_first_release_is_read(tmp_path: Path) -> None:
    """What was sent before there were classical keys was allowed for none; the next one may be."""
    path = tmp_path / "journal.sqlite"
    with closing(Journal(path)) as journal:
        journal.sent.plan([deposit(1)])
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE sent DROP COLUMN allow_classical")
        db.execute("DROP TABLE issuers")
        db.execute("DROP TABLE lists")
        db.execute("DROP TABLE rotations")
        db.execute("DROP TABLE taking")
        db.execute("PRAGMA user_version = 1")
    db.close()
    with closing(Journal(path)) as journal:
        journal.sent.plan([deposit(2, INITECH, allow_classical=True)])
        assert [one.allow_classical for one in journal.sent.all()] == [False, True]
        assert journal.sent.classical(ACME, KEY) == {INITECH}
        assert journal.issuers.see(b"one", b"certificate", NOW)


def test_issuing_cas_are_remembered(journal: Journal) -> None:
    """Each is new once; what is relied on only grows, and for none that was never seen."""
    assert journal.issuers.see(b"one", b"first", NOW)
    assert not journal.issuers.see(b"one", b"another", NOW + DAY)
    assert journal.issuers.see(b"two", b"second", NOW)
    for until in (NOW + 3 * DAY, NOW + DAY):
        journal.issuers.rely(b"one", until)
    journal.issuers.rely(b"three", NOW)
    found = [(one.ski, one.der, one.first_seen) for one in journal.issuers.all()]
    assert found == [(b"one", b"first", NOW), (b"two", b"second", NOW)]
    assert [one.relied_until > NOW for one in journal.issuers.all()] == [True, False]
    assert journal.issuers.all()[0].relied_until == NOW + 3 * DAY


def test_it_is_for_the_owner_alone_and_durable(journal: Journal, tmp_path: Path) -> None:
    """Mode 0600, write-ahead log, full synchronisation."""
    assert stat.S_IMODE((tmp_path / "journal.sqlite").stat().st_mode) == 0o600
    database = journal._database._db
    assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert database.execute("PRAGMA synchronous").fetchone()[0] == 2
    journal.check()


ONE = new_signing_key().public
TWO = new_signing_key(SignatureAlgorithm.ECDSA_P256).public


def test_pins_of_earlier_journals(journal: Journal) -> None:
    """A raw ML-DSA-65 key, as journals held it before there were others, is the same key, and no change of it."""
    with journal._database.write() as db:
        db.execute("INSERT INTO pins VALUES (?, ?, 'confirmed', ?)", (str(GLOBEX), ONE.raw, "2026-05-04T12:30:00Z"))
    pin = journal.pins.of(GLOBEX)
    assert pin is not None
    assert (pin.identity_key, pin.fingerprint) == (ONE, hashlib.sha256(ONE.raw).hexdigest())
    journal.pins.confirm(GLOBEX, ONE, NOW)
    assert journal._database.all("SELECT id FROM pin_changes") == []
    assert journal.pins.of(GLOBEX) == Pin(GLOBEX, ONE, "confirmed", NOW)


def test_first_contact_pins_once(journal: Journal, again: Journal) -> None:
    """The first key stands, whoever comes second."""
    assert journal.pins.of(GLOBEX) is None
    assert journal.pins.first(GLOBEX, ONE, NOW).how == "first-contact"
    assert again.pins.first(GLOBEX, TWO, NOW).identity_key == ONE


def test_a_confirmed_change_is_written_down(journal: Journal) -> None:
    """The new key stands in the place of the old one, and the old one is not forgotten."""
    journal.pins.first(GLOBEX, ONE, NOW)
    journal.pins.confirm(GLOBEX, TWO, NOW)
    pin = journal.pins.of(GLOBEX)
    assert pin is not None
    assert (pin.identity_key, pin.how) == (TWO, "confirmed")
    changes = journal._database.all("SELECT address, before, after FROM pin_changes")
    assert changes == [("globex/main", ONE.spki, TWO.spki)]
    journal.pins.confirm(GLOBEX, TWO, NOW)
    assert len(journal._database.all("SELECT id FROM pin_changes")) == 1


def test_a_new_certificate_retires_the_old_one_of_its_kind(journal: Journal) -> None:
    """One active certificate a kind; the request is done in the same step."""
    for number, kind in enumerate(("identity", "encryption", "encryption")):
        request = OwnRequest(RequestId(f"{number:064x}"), kind, b"der", b"ski")
        journal.own.add_request(request, NOW)
        assert journal.own.open_request(kind) == request
        certificate = OwnCertificate(
            Fingerprint(f"{number:064x}"), kind, b"der", b"ski", NOW, NOW + timedelta(days=number)
        )
        journal.own.add_certificate(certificate, request.id, NOW)
        assert journal.own.open_request(kind) is None
    assert [(one.kind, one.state) for one in journal.own.certificates()] == [
        ("encryption", "active"),
        ("encryption", "retired"),
        ("identity", "active"),
    ]
    active = journal.own.active("encryption")
    assert active is not None
    journal.own.mark_revoked(active.fingerprint)
    assert journal.own.active("encryption") is None


def test_the_bytes_of_a_deposit_are_fixed_once(journal: Journal, again: Journal) -> None:
    """Of two processes that wrap the same plan, both send the bytes of the first."""
    one = deposit(1)
    journal.sent.plan([one])
    first = journal.sent.prepare(one, body=b"first", sha512=b"1", certificate="c", now=NOW)
    second = again.sent.prepare(one, body=b"second", sha512=b"2", certificate="c", now=NOW)
    assert first == second
    assert (second.body, second.state, second.prepared_at) == (b"first", "prepared", NOW)


def test_a_deposit_is_replaced_once(journal: Journal) -> None:
    """Two processes that wrap a quarantined deposit again plan one between them, until that one fails."""
    old = DepositId("f" * 32)
    journal.sent.plan([deposit(1, supersedes=old)])
    journal.sent.plan([deposit(2, supersedes=old)])
    assert [one.deposit_id for one in journal.sent.all()] == [deposit(1).deposit_id]
    journal.sent.move(deposit(1).deposit_id, "failed")
    journal.sent.plan([deposit(2, supersedes=old)])
    following = journal.sent.replacing(old)
    assert following is not None
    assert following.deposit_id == deposit(2).deposit_id


def test_holders_are_those_who_were_not_removed(journal: Journal) -> None:
    """Who never took any version is no holder, who was removed is none until the key is sent there again."""
    journal.sent.plan([deposit(1), deposit(2, INITECH), deposit(3, ACME)])
    journal.sent.move(deposit(3).deposit_id, "refused")
    assert journal.sent.holders(ACME, KEY, NOW) == [GLOBEX, INITECH]
    second, third = KeyName(ACME, KEY, 2), KeyName(ACME, KEY, 3)
    journal.sent.plan([deposit(4, GLOBEX, 2)], name=second, removed=[INITECH])
    assert journal.sent.holders(ACME, KEY, NOW) == [GLOBEX]
    journal.sent.plan([], name=third, removed=[GLOBEX])
    assert journal.sent.holders(ACME, KEY, NOW) == []
    journal.sent.plan([deposit(6, INITECH, 3)])
    assert journal.sent.holders(ACME, KEY, NOW) == [INITECH]
    assert journal.sent.holders(GLOBEX, KEY, NOW) == []


def test_who_was_to_get_it_under_a_revoked_certificate_is_a_holder_to_be(journal: Journal) -> None:
    """As long as there is time for another certificate, and for no other reason of a rejection."""
    one, other = deposit(1), deposit(2, INITECH)
    journal.sent.plan([one, other])
    journal.sent.move(one.deposit_id, "rejected", "certificate-revoked: The certificate is revoked. [DEP-007]")
    journal.sent.move(other.deposit_id, "rejected", "not-welcome: certificate-revoked")
    assert journal.sent.holders(ACME, KEY, NOW) == [GLOBEX]
    assert [each.deposit_id for each in journal.sent.rejected_for_certificate(NOW)] == [one.deposit_id]
    assert journal.sent.holders(ACME, KEY, one.expires_at) == []
    assert journal.sent.rejected_for_certificate(one.expires_at) == []


def test_nothing_is_planned_in_anothers_place_for_who_was_removed(journal: Journal) -> None:
    """Whoever decided to, did so before; what takes nothing's place is another matter."""
    journal.sent.plan([deposit(1)])
    journal.sent.plan([], name=KeyName(ACME, KEY, 2), removed=[GLOBEX])
    journal.sent.plan([deposit(2, supersedes=deposit(1).deposit_id)])
    assert journal.sent.replacing(deposit(1).deposit_id) is None
    journal.sent.plan([deposit(3, version=2, supersedes=deposit(1).deposit_id)])
    assert journal.sent.replacing(deposit(1).deposit_id) is not None


def test_the_first_decision_stands(journal: Journal, again: Journal) -> None:
    """Two processes that open the same deposit give one answer."""
    assert journal.seen.decide(seen(1, 1), NOW).kind == "receipt"
    assert again.seen.decide(seen(1, 1, "refusal"), NOW).kind == "receipt"
    assert [one.deposit_id for one in journal.seen.unanswered()] == [seen(1, 1).deposit_id]
    journal.seen.mark_answered([seen(1, 1).deposit_id])
    assert journal.seen.unanswered() == []


def test_a_number_belongs_to_one_deposit(journal: Journal) -> None:
    """The server cannot give a number twice."""
    journal.seen.decide(seen(1, 7), NOW)
    with pytest.raises(ReplayedError):
        journal.seen.decide(seen(2, 7), NOW)


def test_some_numbers_only_grow(journal: Journal) -> None:
    """The highest number ever seen is what counts."""
    assert [journal.marks.grow("crl", number) for number in (3, 5, 4)] == [3, 5, 5]
    assert journal.marks.number("crl") == 5
    assert journal.marks.number("mailbox") == 0


def test_holes_and_alarms(journal: Journal) -> None:
    """A hole stays open until it is filled; the same alarm twice is one."""
    journal.marks.note_holes([4, 5], NOW)
    journal.marks.note_holes([5], NOW)
    journal.marks.fill_hole(4, NOW)
    assert journal.marks.open_holes() == [5]
    journal.alarms.sound("missing", "5", "first", NOW)
    journal.alarms.sound("missing", "5", "second", NOW)
    assert [(one.subject, one.detail) for one in journal.alarms.all()] == [("5", "first")]
    journal.alarms.note(NOW)
    assert journal.alarms.all() == []
    journal.alarms.sound("missing", "5", "again", NOW)
    assert [one.detail for one in journal.alarms.all()] == ["again"]
    journal.alarms.clear("missing", "5")
    assert journal.alarms.all() == []


def test_what_is_no_journal_is_said(tmp_path: Path) -> None:
    """A damaged file, and one of a newer release, are refused."""
    (tmp_path / "bad.sqlite").write_bytes(b"this is no database, and long enough to be looked at" * 30)
    with pytest.raises(SettingsError):
        Journal(tmp_path / "bad.sqlite")
    Journal(tmp_path / "new.sqlite").close()
    with sqlite3.connect(tmp_path / "new.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(SettingsError, match="newer"):
        Journal(tmp_path / "new.sqlite")


def test_a_kill_at_any_point_leaves_it_whole(tmp_path: Path) -> None:
    """A writer is killed 12 times in the midst: what it said was written is there, and every row is whole."""
    path, said = tmp_path / "journal.sqlite", tmp_path / "said"
    said.touch()
    root = Path(__file__).parents[3]
    chance = random.Random(7)
    for _ in range(12):
        with said.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("writer.py")), str(path)],
                stdout=out,
                env=os.environ | {"PYTHONPATH": str(root)},
            )
        before = said.stat().st_size
        deadline = time.monotonic() + 20
        while said.stat().st_size == before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    journal = Journal(path)
    journal.check()
    acknowledged = [line for line in said.read_text().splitlines(keepends=True) if line.endswith("\n")]
    assert len(acknowledged) >= 12
    for line in acknowledged:
        one = journal.sent.of(DepositId(line.strip()))
        assert one is not None
        assert (one.state, one.body) == ("prepared", b"body of " + one.deposit_id.encode())
    for one in journal.sent.all():
        # A plan is of two: all or none.
        pair = f"{int(one.deposit_id, 16) ^ 1:032x}"
        assert journal.sent.of(DepositId(pair)) is not None
        assert one.state == "planned" or one.body == b"body of " + one.deposit_id.encode()
    journal.close()
