"""The certificate report says what is out, what should have been renewed, and what mail still waits under each key."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta
from pathlib import Path

import jsonschema_rs
import pytest
from sqlalchemy import update

from pki.core import kem
from pki.core.certificates import CertificateKind, CertificateState
from pki.core.deposits import DepositState
from pki.core.tenants import parse_address, parse_tenant
from pki.core.x509 import parse_certificate
from pki.server.services import certificates, inventory, mailbox, report, rotation
from pki.server.store import deposits as deposit_store
from pki.server.store import tables
from pki.server.store.engine import Store
from tests.kit import mail
from tests.kit.mail import ACME, GLOBEX, answer
from tests.kit.office import Kms, Office, open_office

SCHEMA = Path(__file__).parents[2] / "schemas" / "report-certificates.schema.json"
DAY = timedelta(days=1)


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA."""
    return open_office(store, tmp_path)


@pytest.fixture
def post(store: Store, database_url: str, tmp_path: Path) -> mail.Office:
    """Three certified instances that send."""
    return mail.Office(store, database_url, tmp_path)


def test_overdue_is_what_is_in_use_past_two_thirds(office: Office) -> None:
    """The moment counts to the second; what was renewed is not overdue, and what expired for good has ended."""
    kms, other = Kms(parse_address("acme/eu-west")), Kms(parse_address("globex/main"))
    office.settle(kms)
    office.settle(other)
    office.publish(kms)
    start = inventory.certificates(office.deps)
    assert [one.address for one in start] == ["acme/eu-west", "acme/eu-west", "globex/main"]
    assert not any(one.overdue or one.ended for one in start)
    assert {one.days_left for one in start} == {364}
    office.clock.time = office.clock.time - timedelta(minutes=5) + 365 * DAY * 2 / 3 - timedelta(seconds=1)
    assert inventory.certificates(office.deps, overdue=True) == []
    office.clock.step(timedelta(seconds=1))
    assert len(inventory.certificates(office.deps, overdue=True)) == 3
    assert len(inventory.certificates(office.deps, parse_tenant("globex"), overdue=True)) == 1
    certificates.submit_request(office.deps, kms.caller(office), kms.identity_request(office.clock.now()))
    office.work()
    office.publish(kms)
    late = inventory.certificates(office.deps, overdue=True)
    assert [(one.address, one.kind, one.state) for one in late] == [("globex/main", "identity", "active")]
    office.clock.step(130 * DAY)
    [gone] = inventory.certificates(office.deps, overdue=True)
    assert (gone.overdue, gone.ended, gone.state, gone.days_left < 0) == (False, True, "active", True)
    rotation.expire(office.deps)
    everything = inventory.certificates(office.deps)
    assert [one.state for one in everything].count("expired") == 3
    [still] = [one for one in everything if one.ended]
    assert (still.address, still.state) == ("globex/main", "expired")


def test_formats_hold_the_same_and_the_json_keeps_its_schema(office: Office) -> None:
    """Every column of every line is in JSON and CSV; a cell is never a formula."""
    kms = Kms(parse_address("acme/eu-west"))
    office.settle(kms)
    office.publish(kms)
    office.publish(kms)
    lines = inventory.certificates(office.deps)
    told = json.loads(inventory.to_json(lines, office.clock.now()))
    jsonschema_rs.validate(json.loads(SCHEMA.read_text()), told, validate_formats=True)
    rows = list(csv.DictReader(io.StringIO(inventory.to_csv(lines))))
    plain = {True: "yes", False: "no"}
    assert [
        {name: plain[value] if isinstance(value, bool) else str(value) for name, value in row.items()}
        for row in told["rows"]
    ] == rows
    table = inventory.to_table(lines).splitlines()
    assert len(table) == 4
    assert sum("drained" in line for line in table) == 1
    for text in ("=1+1", "+1", "-1", "@SUM(A1)", "\tx"):
        assert report.cell(text) == "'" + text


def waiting(post: mail.Office) -> dict[str, tuple[int, int, int, int, int]]:
    """Return what waits under each of acme's encryption certificates, by state: all, then by where they stand."""
    return {
        one.state: (one.waiting, one.received, one.available, one.collected, one.quarantined)
        for one in inventory.certificates(post.deps, parse_tenant("acme"))
        if one.kind == "encryption"
    }


def test_draining_counts_what_is_not_answered(post: mail.Office) -> None:
    """From received to collected a deposit waits; answered, expired or withdrawn it does not."""
    first, second, third = post.send_available(GLOBEX, ACME, 3)
    post.send(GLOBEX, ACME)
    post.move(ACME, CertificateKind.ENCRYPTION, CertificateState.RETIRED)
    assert waiting(post) == {"retired": (4, 1, 3, 0, 0)}
    caller = post.caller(ACME)
    mailbox.collect(post.deps, caller, ACME.address, [first, second])
    assert waiting(post) == {"retired": (4, 1, 1, 2, 0)}
    mailbox.receipt(post.deps, caller, first, answer(ACME, post.record(first)))
    assert waiting(post) == {"retired": (3, 1, 1, 1, 0)}
    with post.store.unit() as unit:
        deposit_store.set_state(unit, [third], DepositState.QUARANTINED, now=post.clock.now())
    assert waiting(post) == {"retired": (3, 1, 0, 1, 1)}
    assert "draining 3" in inventory.to_table(inventory.certificates(post.deps))
    post.clock.go_on(days=60)
    rotation.expire(post.deps)
    assert waiting(post) == {"retired": (1, 0, 0, 1, 0)}, "what was collected waits for its answer for ever"
    mailbox.receipt(post.deps, caller, second, answer(ACME, post.record(second)))
    assert waiting(post) == {"retired": (0, 0, 0, 0, 0)}
    assert "drained" in inventory.to_table(inventory.certificates(post.deps))


def test_an_owner_sees_its_own_and_nobody_elses(post: mail.Office) -> None:
    """Newest first, with what waits under each key; an identity has no mail."""
    post.send_available(GLOBEX, ACME, 2)
    found = inventory.held(post.deps, post.caller(ACME))
    ours = {parse_certificate(der).fingerprint for der in (ACME.identity_der, ACME.encryption_der)}
    assert {one.certificate.fingerprint for one in found} == ours
    mailed = {one.certificate.kind: dict(one.waiting) for one in found}
    assert mailed == {CertificateKind.IDENTITY: {}, CertificateKind.ENCRYPTION: {DepositState.AVAILABLE: 2}}
    assert [one.waiting for one in inventory.held(post.deps, post.caller(GLOBEX))] == [{}, {}]


def test_thousands_are_read_page_by_page(office: Office) -> None:
    """1,203 certificates of one address and of many come in order, each once."""
    kms = Kms(parse_address("acme/eu-west"))
    office.settle(kms)
    [one] = inventory.certificates(office.deps)
    with office.deps.store.unit() as unit:
        row = dict(unit.connection.execute(tables.certificates.select()).mappings().one())
        values = [
            row
            | {
                "fingerprint": f"{number:064x}",
                "serial": f"{number:040x}",
                "address": "acme/eu-west" if number % 3 else f"acme/n{number}",
                "state": "retired",
            }
            for number in range(1202)
        ]
        unit.connection.execute(tables.certificates.insert(), values)
        unit.connection.execute(update(tables.certificates).values(issued_at=row["issued_at"]))
    lines = inventory.certificates(office.deps)
    assert len(lines) == len({line.fingerprint for line in lines}) == 1203
    assert [line.address for line in lines] == sorted(line.address for line in lines)
    assert one in lines


def test_an_encryption_key_of_a_request_under_way_is_not_listed(office: Office) -> None:
    """What was never proved is in no report."""
    kms = Kms(parse_address("acme/eu-west"))
    office.settle(kms)
    certificates.submit_request(office.deps, kms.caller(office), kms.encryption_request(office, kem.generate()))
    office.work()
    assert [line.kind for line in inventory.certificates(office.deps)] == ["identity"]
