"""Certificate requests on their way through the issuer, in batches: held, prepared, settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, or_, select, update

from pki.core.certificates import RequestState
from pki.core.ids import Fingerprint, RequestId
from pki.core.tenants import Address
from pki.server.facts import RequestRecord
from pki.server.store import rows
from pki.server.store.certificates import request_of, serial_text
from pki.server.store.engine import Unit
from pki.server.store.tables import requests


@dataclass(frozen=True)
class Held:
    """A request with what was stored to be signed for it: serial and to-be-signed bytes, both or neither."""

    record: RequestRecord
    serial: int | None
    tbs: bytes | None


@dataclass(frozen=True)
class Settled:
    """What became of a request; ``fingerprint`` and ``challenge`` for an issued one, ``reason`` for a rejected one."""

    id: RequestId
    state: RequestState
    reason: str | None = None
    fingerprint: Fingerprint | None = None
    challenge: bytes | None = None


@dataclass(frozen=True)
class Abandoned:
    """A serial that was fixed, and perhaps signed, for a request that was rejected afterwards."""

    serial: int
    tbs: bytes
    at: datetime


def held(unit: Unit, ids: Sequence[RequestId], *, lock: bool = False) -> list[Held]:
    """Return the requests that exist, by id, held until the end of the unit when ``lock``."""
    found = []
    for chunk in rows.chunks(sorted(set(ids))):
        statement = select(requests).where(requests.c.id.in_(chunk)).order_by(requests.c.id)
        if lock:
            statement = statement.with_for_update()
        for row in unit.connection.execute(statement).mappings():
            serial = None if row["serial"] is None else int(row["serial"], 16)
            found.append(Held(request_of(row), serial, row["tbs"]))
    return found


def pending(unit: Unit, address: Address) -> list[RequestRecord]:
    """Return the requests of an address that are under way, oldest first."""
    statement = select(requests).where(
        requests.c.address == str(address), requests.c.state == RequestState.PENDING.value
    )
    return [request_of(row) for row in unit.connection.execute(statement.order_by(requests.c.created_at)).mappings()]


def prepare(unit: Unit, new: Sequence[tuple[RequestId, int, bytes]]) -> None:
    """Store what the CA is about to sign for requests that this unit holds and for which nothing was stored before."""
    values = [{"id": request_id, "serial": serial_text(serial), "tbs": tbs} for request_id, serial, tbs in new]
    rows.update_each(unit, requests, values, requests.c.id)


def settle(unit: Unit, settled: Sequence[Settled], now: datetime) -> None:
    """Write down what became of requests that this unit holds."""
    values = [
        {
            "id": one.id,
            "state": one.state.value,
            "reason": rows.detail(one.reason),
            "fingerprint": one.fingerprint,
            "challenge": one.challenge,
            "settled_at": now,
        }
        for one in settled
    ]
    rows.update_each(unit, requests, values, requests.c.id)


def reopen(unit: Unit, request_id: RequestId) -> bool:
    """Make a settled request pending again, as old as it is; False where it has to stay as it is.

    A certificate that was issued is known by itself; an abandoned serial is known by its request alone, which stays.
    """
    settled = or_(
        requests.c.state == RequestState.ISSUED.value,
        and_(requests.c.state == RequestState.REJECTED.value, requests.c.serial.is_(None)),
    )
    values = dict.fromkeys(("reason", "fingerprint", "challenge", "serial", "tbs", "settled_at"))
    statement = update(requests).where(requests.c.id == request_id, settled)
    return bool(unit.connection.execute(statement.values(values | {"state": RequestState.PENDING.value})).rowcount)


def abandoned(unit: Unit) -> list[Abandoned]:
    """Return what was prepared and then rejected: a signature may exist, so revocation lists name these serials."""
    statement = (
        select(requests.c.serial, requests.c.tbs, requests.c.settled_at, requests.c.created_at)
        .where(requests.c.state == RequestState.REJECTED.value, requests.c.serial.is_not(None))
        .order_by(requests.c.settled_at, requests.c.id)
    )
    return [
        Abandoned(int(row.serial, 16), row.tbs, row.settled_at or row.created_at)
        for row in unit.connection.execute(statement)
    ]
