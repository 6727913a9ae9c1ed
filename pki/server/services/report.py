"""The distribution report: who was given which key, when, under which certificate, and what the recipient signed."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime

from pki.core.errors import UsageError
from pki.core.tenants import TenantName
from pki.server.ports import ReportRow
from pki.server.services.deps import Deps
from pki.server.store import deposits as deposit_store

FORMAT = "keymailbox-distribution/1"
# A spreadsheet takes a cell that begins like this for a formula (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


@dataclass(frozen=True)
class Line:
    """One handing over of a key; times in ISO 8601 (UTC), fingerprints and digests in hex, the receipt in base64."""

    deposit_id: str
    sender: str
    recipient: str
    key_id: str
    key_version: int
    purpose: str
    state: str
    sequence: int | None
    size: int
    sha256: str
    signed_at: str
    received_at: str
    available_at: str | None
    collected_at: str | None
    settled_at: str | None
    expires_at: str
    recipient_certificate: str | None
    sender_certificate: str | None
    rejected_code: str | None
    supersedes: str | None
    superseded_by: str | None
    receipt_kind: str | None
    receipt_reason: str | None
    receipt_signed_at: str | None
    receipt: str | None


def distribution(
    deps: Deps, tenant: TenantName | None = None, since: datetime | None = None, until: datetime | None = None
) -> list[Line]:
    """Return what a tenant, or anybody, sent or was sent from ``since`` until before ``until``, in order of arrival."""
    for moment in (since, until):
        if moment is not None and moment.tzinfo is None:
            raise UsageError("A time in a report has a zone", on=moment.isoformat(), hint="2030-01-31T00:00:00Z")
    with deps.store.read() as unit:
        return [_line(row) for row in deposit_store.report_rows(unit, tenant=tenant, since=since, until=until)]


def to_json(lines: Iterable[Line]) -> str:
    """Return the report as one JSON object."""
    return json.dumps({"format": FORMAT, "rows": [asdict(line) for line in lines]}, indent=2, ensure_ascii=False) + "\n"


def to_csv(lines: Iterable[Line]) -> str:
    """Return the report as CSV (RFC 4180) that a spreadsheet takes for text: what looks like a formula is quoted."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([field.name for field in fields(Line)])
    for line in lines:
        writer.writerow([_cell(getattr(line, field.name)) for field in fields(Line)])
    return out.getvalue()


def to_table(lines: Iterable[Line]) -> str:
    """Return the columns that people look at first, aligned."""
    titles = ("received", "sender", "recipient", "key", "purpose", "state", "collected", "answer", "signed")
    rows = [titles] + [
        (
            line.received_at[:16],
            line.sender,
            line.recipient,
            f"{line.key_id} v{line.key_version}",
            line.purpose,
            line.state,
            (line.collected_at or "-")[:16],
            (line.receipt_reason or line.receipt_kind or "-"),
            (line.receipt_signed_at or "-")[:16],
        )
        for line in lines
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    aligned = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{text.rstrip()}\n" for text in aligned)


def _cell(value: str | int | None) -> str | int:
    if value is None:
        return ""
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return "'" + value
    return value


def _line(row: ReportRow) -> Line:
    deposit, receipt = row.deposit, row.receipt
    return Line(
        deposit_id=deposit.id,
        sender=str(deposit.sender),
        recipient=str(deposit.recipient),
        key_id=deposit.key_id,
        key_version=deposit.key_version,
        purpose=deposit.purpose,
        state=deposit.state.value,
        sequence=deposit.sequence,
        size=deposit.size,
        sha256=deposit.body_sha256,
        signed_at=_moment(deposit.signing_time),
        received_at=_moment(deposit.received_at),
        available_at=None if deposit.sequence is None else _maybe(deposit.validated_at),
        collected_at=_maybe(deposit.collected_at),
        settled_at=_maybe(deposit.settled_at),
        expires_at=_moment(deposit.expires_at),
        recipient_certificate=deposit.certificate_fingerprint,
        sender_certificate=deposit.sender_fingerprint,
        rejected_code=deposit.rejected_code,
        supersedes=deposit.supersedes,
        superseded_by=deposit.superseded_by,
        receipt_kind=None if receipt is None else receipt.kind,
        receipt_reason=None if receipt is None else receipt.reason,
        receipt_signed_at=None if receipt is None else _moment(receipt.signed_at),
        receipt=None if receipt is None else base64.b64encode(receipt.der).decode("ascii"),
    )


def _maybe(moment: datetime | None) -> str | None:
    return None if moment is None else _moment(moment)


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
