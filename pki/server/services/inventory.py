"""The certificate report: what is listed and until when, what is overdue, what still waits under a key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from itertools import groupby

from pki.core.certificates import CertificateKind, CertificateState
from pki.core.deposits import DepositState
from pki.core.tenants import TenantName
from pki.server.facts import Caller, CertificateSummary
from pki.server.services.deps import Deps
from pki.server.services.report import aligned, csv_of, text_of
from pki.server.store import deposits as deposit_store
from pki.server.store import renewals as store

FORMAT = "keymailbox-certificates/1"


@dataclass(frozen=True)
class Line:
    """One listed certificate; times in ISO 8601 (UTC), fingerprint and serial in hex.

    ``days_left`` is in whole days, negative once it is over. ``overdue``: in use, with two thirds of its life over.
    ``ended``: it expired, and nothing came after it. ``waiting`` counts the deposits under its key that are not
    answered, and the four after it say where they stand; a key that has none is drained. All 0 for an identity.
    """

    fingerprint: str
    address: str
    kind: str
    state: str
    serial: str
    not_before: str
    not_after: str
    days_left: int
    renewal_due: str
    overdue: bool
    ended: bool
    waiting: int
    received: int
    available: int
    collected: int
    quarantined: int


@dataclass(frozen=True)
class Held:
    """A certificate of the caller's, and how many deposits wait under its key, by state."""

    certificate: CertificateSummary
    waiting: Mapping[DepositState, int]


def certificates(deps: Deps, tenant: TenantName | None = None, *, overdue: bool = False) -> list[Line]:
    """Return all listed certificates, or a tenant's, by address and age; ``overdue`` leaves out those in order."""
    now = deps.clock.now()
    with deps.store.read() as unit:
        waiting = deposit_store.waiting(unit)
        groups = groupby(store.summaries(unit, within=tenant), key=lambda one: one.address)
        lines = [line for _, group in groups for line in _of_address(list(group), waiting, now)]
    return [line for line in lines if line.overdue or line.ended] if overdue else lines


def held(deps: Deps, caller: Caller) -> list[Held]:
    """Return the caller's listed certificates, newest first, with what waits under their keys."""
    with deps.store.read() as unit:
        found = list(store.summaries(unit, within=caller.instance.address))
        keys = [one.ski for one in found if one.kind is CertificateKind.ENCRYPTION]
        waiting = deposit_store.waiting(unit, keys)
    return [Held(one, waiting.get(one.ski, {})) for one in reversed(found)]


def to_json(lines: Iterable[Line], now: datetime) -> str:
    """Return the report as one JSON object (schemas/report-certificates.schema.json)."""
    told = {"format": FORMAT, "at": text_of(now), "rows": [asdict(line) for line in lines]}
    return json.dumps(told, indent=2, ensure_ascii=False) + "\n"


def to_csv(lines: Iterable[Line]) -> str:
    """Return the report as CSV (RFC 4180), in which nothing is a formula."""
    return csv_of([field.name for field in fields(Line)], lines)


def to_table(lines: Iterable[Line]) -> str:
    """Return the columns that people look at first, aligned."""
    rows = [("address", "kind", "certificate", "state", "until", "days", "renewal", "mail")]
    rows += [
        (
            line.address,
            line.kind,
            line.fingerprint[:16],
            line.state,
            line.not_after[:10],
            str(line.days_left),
            "ended" if line.ended else "overdue" if line.overdue else "-",
            _mail(line),
        )
        for line in lines
    ]
    return aligned(rows)


def _mail(line: Line) -> str:
    if line.kind != CertificateKind.ENCRYPTION.value:
        return "-"
    if line.state == CertificateState.ACTIVE.value:
        return str(line.waiting)
    return f"draining {line.waiting}" if line.waiting else "drained"


def _of_address(
    found: list[CertificateSummary], waiting: Mapping[str, Mapping[DepositState, int]], now: datetime
) -> list[Line]:
    newest = {one.kind: one.fingerprint for one in found}
    return [_line(one, one.fingerprint == newest[one.kind], waiting.get(one.ski, {}), now) for one in found]


def _line(one: CertificateSummary, newest: bool, waiting: Mapping[DepositState, int], now: datetime) -> Line:
    mail = waiting if one.kind is CertificateKind.ENCRYPTION else {}
    in_use = one.state is CertificateState.ACTIVE
    # The beat marks what has expired a little later than it does.
    over = one.state is CertificateState.EXPIRED or (in_use and one.not_after <= now)
    return Line(
        fingerprint=one.fingerprint,
        address=str(one.address),
        kind=one.kind.value,
        state=one.state.value,
        serial=f"{one.serial:x}",
        not_before=text_of(one.not_before),
        not_after=text_of(one.not_after),
        days_left=(one.not_after - now) // timedelta(days=1),
        renewal_due=text_of(one.renewal_due),
        overdue=in_use and one.renewal_due <= now < one.not_after,
        ended=over and newest,
        waiting=sum(mail.values()),
        received=mail.get(DepositState.RECEIVED, 0),
        available=mail.get(DepositState.AVAILABLE, 0),
        collected=mail.get(DepositState.COLLECTED, 0),
        quarantined=mail.get(DepositState.QUARANTINED, 0),
    )
