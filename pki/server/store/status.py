"""Revocation lists, one series of numbers for each issuing CA."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import delete, select

from pki.core.errors import ConflictError
from pki.server.facts import CrlHead, CrlRecord
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.tables import crls

_KEPT = 16
"""Publications that stay beside the newest one's base: what was served a moment ago can still be looked at."""


def insert_crl(unit: Unit, crl: CrlRecord) -> None:
    """Store a publication, and forget what is long superseded; raises ConflictError when its number is taken."""
    row = {
        "issuer": crl.issuer,
        "number": crl.number,
        "der": crl.der,
        "this_update": crl.this_update,
        "next_update": crl.next_update,
        "base": crl.base,
        "delta": crl.delta,
    }
    if not rows.insert_new(unit, crls, [row], crls.c.number):
        raise ConflictError("The CRL's number is taken", on=str(crl.number))
    old = [crls.c.issuer == crl.issuer, crls.c.number < crl.number - _KEPT]
    if crl.base is not None:
        # Lists that lie between a base and the newest ones are not needed either.
        old.append(crls.c.number != crl.base)
    unit.connection.execute(delete(crls).where(*old))


def latest_crl(unit: Unit, issuer: str) -> CrlRecord | None:
    """Return an issuing CA's newest publication."""
    return next(newest_crls(unit, issuer), None)


def newest_crls(unit: Unit, issuer: str) -> Iterator[CrlRecord]:
    """Yield an issuing CA's publications, newest first, each fetched when it is asked for: they may be long."""
    statement = select(crls).where(crls.c.issuer == issuer).order_by(crls.c.number.desc()).limit(1)
    row = unit.connection.execute(statement).mappings().one_or_none()
    while row is not None:
        yield CrlRecord(**row)
        row = unit.connection.execute(statement.where(crls.c.number < row["number"])).mappings().one_or_none()


def newest(unit: Unit, issuer: str) -> CrlHead | None:
    """Return an issuing CA's newest publication without its bytes."""
    columns = (crls.c.issuer, crls.c.number, crls.c.this_update, crls.c.next_update, crls.c.base)
    statement = select(*columns).where(crls.c.issuer == issuer).order_by(crls.c.number.desc()).limit(1)
    row = unit.connection.execute(statement).mappings().one_or_none()
    return None if row is None else CrlHead(**row)


def heads(unit: Unit) -> list[CrlHead]:
    """Return each issuing CA's newest publication without its bytes."""
    issuers = unit.connection.execute(select(crls.c.issuer).distinct().order_by(crls.c.issuer)).scalars().all()
    return [head for issuer in issuers if (head := newest(unit, issuer)) is not None]


def crl(unit: Unit, issuer: str, number: int) -> CrlRecord | None:
    """Return one of an issuing CA's publications."""
    statement = select(crls).where(crls.c.issuer == issuer, crls.c.number == number)
    row = unit.connection.execute(statement).mappings().one_or_none()
    return None if row is None else CrlRecord(**row)
