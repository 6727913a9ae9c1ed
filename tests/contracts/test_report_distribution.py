"""The report says who was given which key and shows what the recipient signed, and no spreadsheet runs it."""

from __future__ import annotations

import base64
import csv
import io
import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pki.core import receipts
from pki.core.errors import UsageError
from pki.core.ids import DepositId
from pki.core.receipts import RefusalReason
from pki.core.tenants import parse_tenant
from pki.core.x509 import parse_certificate
from pki.server.services import mailbox, report
from pki.server.services.deposits import validate
from pki.server.store.engine import Store
from tests.kit.mail import ACME, GLOBEX, INITECH, Office, answer


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Three certified instances."""
    return Office(store, database_url, tmp_path)


def settle(office: Office, deposit_id: DepositId, refusal: RefusalReason | None = None) -> bytes:
    """Let acme collect and answer."""
    caller = office.caller(ACME)
    mailbox.collect(office.deps, caller, ACME.address, [deposit_id])
    der = answer(ACME, office.record(deposit_id), refusal=refusal)
    mailbox.receipt(office.deps, caller, deposit_id, der)
    return der


def test_a_line_tells_the_whole_way(office: Office) -> None:
    """Key, version, purpose, times, certificates, and the receipt itself, whose signature an auditor can check."""
    (found,) = office.send_available(GLOBEX, ACME)
    office.clock.go_on(minutes=5)
    der = settle(office, found)
    (line,) = report.distribution(office.deps)
    assert (line.deposit_id, line.sender, line.recipient) == (found, "globex/main", "acme/eu-west")
    assert (line.key_id, line.key_version, line.purpose) == ("orders-2030", 3, "orders")
    assert (line.state, line.sequence, line.receipt_kind, line.receipt_reason) == ("acknowledged", 1, "receipt", None)
    assert line.recipient_certificate == parse_certificate(ACME.encryption_der).fingerprint
    assert line.sender_certificate == parse_certificate(GLOBEX.identity_der).fingerprint
    assert line.received_at == "2030-05-17T12:30:16.000250Z"
    assert line.collected_at == line.settled_at == "2030-05-17T12:35:16.000250Z"
    assert line.receipt_signed_at == "2030-05-17T12:30:15Z"
    assert line.receipt == base64.b64encode(der).decode()
    record = office.record(found)
    proved = receipts.parse_receipt(base64.b64decode(line.receipt)).verify(
        ACME.key.public, recipient=ACME.address, deposit=found, sha512=record.body_sha512
    )
    assert proved.deposit_id == found


def test_what_did_not_arrive_is_told_as_well(office: Office) -> None:
    """Refused, rejected and waiting deposits stand there with why."""
    (refused,) = office.send_available(GLOBEX, ACME)
    settle(office, refused, RefusalReason.NOT_WANTED)
    office.clock.go_on(seconds=1)
    rejected = office.send(GLOBEX, ACME, key=INITECH.key)
    validate(office.deps, rejected)
    office.clock.go_on(seconds=1)
    office.send(GLOBEX, ACME)
    lines = report.distribution(office.deps)
    assert [line.state for line in lines] == ["refused", "rejected", "received"]
    assert [line.receipt_reason for line in lines] == ["not-wanted", None, None]
    assert [line.rejected_code for line in lines] == [None, "bad-signature", None]
    assert lines[1].available_at is None


def test_tenant_and_time_narrow_it_down(office: Office) -> None:
    """A tenant's report has what it sent and was sent; from is inclusive, until is not."""
    start = office.clock.now()
    ids = []
    for sender, to in ((GLOBEX, ACME), (ACME, INITECH), (GLOBEX, INITECH)):
        ids += office.send(sender, to)
        office.clock.go_on(hours=1)
    hour = timedelta(hours=1)

    def found(tenant: str | None = None, since: datetime | None = None, until: datetime | None = None) -> list[str]:
        name = None if tenant is None else parse_tenant(tenant)
        return [line.deposit_id for line in report.distribution(office.deps, name, since, until)]

    assert found() == ids
    assert found("acme") == ids[:2]
    assert found("initech", start + hour) == ids[1:]
    assert found(None, start + hour, start + 2 * hour) == ids[1:2]
    assert found("acm") == []
    with pytest.raises(UsageError):
        found(None, datetime(2030, 1, 1))


def test_json_and_csv_hold_the_same(office: Office) -> None:
    """Every column of every line is in both."""
    for _ in range(2):
        settle(office, office.send_available(GLOBEX, ACME)[0])
    office.send(GLOBEX, INITECH)
    lines = report.distribution(office.deps)
    told = json.loads(report.to_json(lines))
    assert told["format"] == "keymailbox-distribution/1"
    rows = list(csv.DictReader(io.StringIO(report.to_csv(lines))))
    assert [{name: "" if value is None else str(value) for name, value in row.items()} for row in told["rows"]] == rows
    assert len(report.to_table(lines).splitlines()) == 4
    assert report.to_csv([]).startswith("deposit_id,sender,")


@pytest.mark.parametrize(
    "purpose", ["=1+1", "+1", "-1", "@SUM(A1)", "＝1+1", " =cmd|' /C calc'!A0", '=HYPERLINK("https://evil.invalid")']
)
def test_a_purpose_is_never_a_formula(office: Office, purpose: str) -> None:
    """What a tenant writes is text to the spreadsheet of an auditor, and unchanged in JSON."""
    office.send(GLOBEX, ACME, purpose=purpose)
    lines = report.distribution(office.deps)
    (row,) = csv.DictReader(io.StringIO(report.to_csv(lines)))
    assert row["purpose"] == "'" + purpose
    assert json.loads(report.to_json(lines))["rows"][0]["purpose"] == purpose
