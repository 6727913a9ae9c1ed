"""The distribution report: who was given which key, when, under which certificate, and what the recipient signed."""

from __future__ import annotations

import base64
import csv
import io
import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime

from pki.core.errors import UsageError
from pki.core.tenants import TenantName
from pki.server.facts import ReportRow
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
    body_deleted_at: str | None


def distribution(
    deps: Deps, tenant: TenantName | None = None, since: datetime | None = None, until: datetime | None = None
) -> list[Line]:
    """Return what a tenant, or anybody, sent or was sent from ``since`` until before ``until``, in order of arrival."""
    return list(lines(deps, tenant, since, until))


def lines(
    deps: Deps, tenant: TenantName | None = None, since: datetime | None = None, until: datetime | None = None
) -> Iterator[Line]:
    """Yield what `distribution` returns, from one snapshot, without holding more than a batch of it."""
    for moment in (since, until):
        if moment is not None and moment.tzinfo is None:
            raise UsageError("A time in a report has a zone", on=moment.isoformat(), hint="2030-01-31T00:00:00Z")
    with deps.store.read() as unit:
        for row in deposit_store.report_rows(unit, tenant=tenant, since=since, until=until):
            yield _line(row)


def json_parts(lines: Iterable[Line]) -> Iterator[str]:
    """Yield the report as one JSON object, line by line."""
    yield f'{{\n  "format": {json.dumps(FORMAT)},\n  "rows": ['
    between = "\n"
    for line in lines:
        yield between + textwrap.indent(json.dumps(asdict(line), indent=2, ensure_ascii=False), "    ")
        between = ",\n"
    yield "]\n}\n" if between == "\n" else "\n  ]\n}\n"


def csv_parts(lines: Iterable[Line]) -> Iterator[str]:
    """Yield the report as CSV, line by line."""
    names = [field.name for field in fields(Line)]
    yield csv_of(names, [])
    for line in lines:
        yield _csv_row([cell(getattr(line, name)) for name in names])


def to_json(lines: Iterable[Line]) -> str:
    """Return the report as one JSON object."""
    return "".join(json_parts(lines))


def to_csv(lines: Iterable[Line]) -> str:
    """Return the report as CSV."""
    return "".join(csv_parts(lines))


def csv_of(names: Sequence[str], lines: Iterable[object]) -> str:
    """Return these members of each line as CSV (RFC 4180) that a spreadsheet takes for text: formulas are quoted."""
    return _csv_row(names) + "".join(_csv_row([cell(getattr(line, name)) for name in names]) for line in lines)


def _csv_row(cells: Sequence[object]) -> str:
    out = io.StringIO()
    csv.writer(out).writerow(cells)
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
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, titles first, as columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def cell(value: str | int | bool | None) -> str | int:
    """Return what stands in a cell of a CSV, never a formula (OWASP, CSV injection)."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
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
        signed_at=text_of(deposit.signing_time),
        received_at=text_of(deposit.received_at),
        available_at=None if deposit.sequence is None else _maybe(deposit.validated_at),
        collected_at=_maybe(deposit.collected_at),
        settled_at=_maybe(deposit.settled_at),
        expires_at=text_of(deposit.expires_at),
        recipient_certificate=deposit.certificate_fingerprint,
        sender_certificate=deposit.sender_fingerprint,
        rejected_code=deposit.rejected_code,
        supersedes=deposit.supersedes,
        superseded_by=deposit.superseded_by,
        receipt_kind=None if receipt is None else receipt.kind,
        receipt_reason=None if receipt is None else receipt.reason,
        receipt_signed_at=None if receipt is None else text_of(receipt.signed_at),
        receipt=None if receipt is None else base64.b64encode(receipt.der).decode("ascii"),
        body_deleted_at=_maybe(deposit.body_deleted_at),
    )


def _maybe(moment: datetime | None) -> str | None:
    return None if moment is None else text_of(moment)


def text_of(moment: datetime) -> str:
    """Return a time as reports have it: ISO 8601 in UTC."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
