"""The rotation report: who holds which versions of a key, who is behind, and what those hold who were removed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import StrEnum

from pki.core.deposits import DepositState
from pki.core.receipts import ReceiptKind
from pki.core.tenants import TenantName
from pki.server.facts import DepositRecord, ReportRow
from pki.server.services.deps import Deps
from pki.server.services.report import aligned, csv_of, text_of
from pki.server.store import deposits as deposit_store

FORMAT = "keymailbox-rotation/1"

_UNDER_WAY = frozenset(
    {DepositState.RECEIVED, DepositState.AVAILABLE, DepositState.COLLECTED, DepositState.QUARANTINED}
)


class Standing(StrEnum):
    """Where one recipient of a key stands."""

    CURRENT = "current"
    """It signed for the newest version."""
    STRAGGLER = "straggler"
    """The newest version is on its way, and it has not signed for it."""
    OVERDUE = "overdue"
    """The same, and the time is over by which the sender wanted an answer."""
    FAILED = "failed"
    """The newest version was sent, and refused, rejected, withdrawn or expired."""
    REMOVED = "removed"
    """It was not sent the newest version, and holds, or may hold, an earlier one."""


@dataclass(frozen=True)
class Line:
    """One recipient of one key. ``holds``: versions that it signed for; ``may_hold``: collected and not answered.

    ``given`` is the newest version that was sent to it, ``state`` the state of that deposit, ``newest`` the newest
    version sent to anybody; times in ISO 8601 (UTC).
    """

    sender: str
    key_id: str
    newest: int
    recipient: str
    standing: str
    given: int
    state: str
    deposit_id: str
    respond_by: str | None
    holds: str
    may_hold: str
    signed_at: str | None


@dataclass
class _Holding:
    last: DepositRecord
    holds: set[int] = field(default_factory=set)
    may_hold: set[int] = field(default_factory=set)
    signed_at: datetime | None = None


def rotation(deps: Deps, tenant: TenantName | None = None, key_id: str | None = None) -> list[Line]:
    """Return who stands where with each key that a tenant, or anybody, sent or was sent; by sender, key, recipient.

    The server knows deposits and receipts: that one erased what it signed for, nobody can show.
    """
    now = deps.clock.now()
    keys: dict[tuple[str, str], dict[str, _Holding]] = {}
    with deps.store.read() as unit:
        for row in deposit_store.report_rows(unit, tenant=tenant):
            if key_id is None or row.deposit.key_id == key_id:
                holders = keys.setdefault((str(row.deposit.sender), row.deposit.key_id), {})
                _count(holders, row)
    return [
        _line(sender, name, recipient, holding, max(one.last.key_version for one in holders.values()), now)
        for (sender, name), holders in sorted(keys.items())
        for recipient, holding in sorted(holders.items())
    ]


def behind(lines: Iterable[Line]) -> list[Line]:
    """Return those who have not signed for the newest version."""
    return [line for line in lines if line.standing != Standing.CURRENT]


def to_json(lines: Iterable[Line]) -> str:
    """Return the report as one JSON object (schemas/report-rotation.schema.json)."""
    rows = [asdict(line) | {"holds": _numbers(line.holds), "may_hold": _numbers(line.may_hold)} for line in lines]
    return json.dumps({"format": FORMAT, "rows": rows}, indent=2, ensure_ascii=False) + "\n"


def to_csv(lines: Iterable[Line]) -> str:
    """Return the report as CSV; versions with spaces between."""
    return csv_of([one.name for one in fields(Line)], lines)


def to_table(lines: Iterable[Line]) -> str:
    """Return the columns that people look at first, aligned."""
    titles: Sequence[str] = (
        "sender",
        "key",
        "recipient",
        "standing",
        "given",
        "state",
        "respond by",
        "holds",
        "signed",
    )
    rows = [titles] + [
        (
            line.sender,
            f"{line.key_id} v{line.newest}",
            line.recipient,
            line.standing,
            f"v{line.given}",
            line.state,
            (line.respond_by or "-")[:16],
            (line.holds or "-") + (f" (perhaps {line.may_hold})" if line.may_hold else ""),
            (line.signed_at or "-")[:16],
        )
        for line in lines
    ]
    return aligned(rows)


def _count(holders: dict[str, _Holding], row: ReportRow) -> None:
    deposit = row.deposit
    holding = holders.setdefault(str(deposit.recipient), _Holding(deposit))
    # Of two deposits of one version the later counts, and one that gave way to another never does.
    if _weight(deposit) >= _weight(holding.last):
        holding.last = deposit
    if row.receipt is not None and row.receipt.kind == ReceiptKind.RECEIPT.value:
        holding.holds.add(deposit.key_version)
        holding.signed_at = max(holding.signed_at or row.receipt.signed_at, row.receipt.signed_at)
    elif deposit.state is DepositState.COLLECTED:
        holding.may_hold.add(deposit.key_version)


def _weight(deposit: DepositRecord) -> tuple[int, bool]:
    return deposit.key_version, deposit.state is not DepositState.SUPERSEDED


def _line(sender: str, key: str, recipient: str, holding: _Holding, newest: int, now: datetime) -> Line:
    last = holding.last
    return Line(
        sender=sender,
        key_id=key,
        newest=newest,
        recipient=recipient,
        standing=_standing(holding, newest, now).value,
        given=last.key_version,
        state=last.state.value,
        deposit_id=last.id,
        respond_by=None if last.respond_by is None else text_of(last.respond_by),
        holds=_text(holding.holds),
        may_hold=_text(holding.may_hold - holding.holds),
        signed_at=None if holding.signed_at is None else text_of(holding.signed_at),
    )


def _standing(holding: _Holding, newest: int, now: datetime) -> Standing:
    last = holding.last
    if last.key_version < newest:
        return Standing.REMOVED
    if newest in holding.holds:
        return Standing.CURRENT
    if last.state not in _UNDER_WAY:
        return Standing.FAILED
    late = last.respond_by is not None and last.respond_by <= now
    return Standing.OVERDUE if late else Standing.STRAGGLER


def _text(versions: Iterable[int]) -> str:
    return " ".join(str(version) for version in sorted(versions))


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split()]
