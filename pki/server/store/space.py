"""The space that SQLite's file takes: given back to the disk in small steps, by whoever clears up."""

from __future__ import annotations

from sqlalchemy import text

from pki.server.store.engine import Unit

_SPARE_PAGES = 1000
_SPARE_SHARE = 0.05
_STEP = 2000
_GIVE_BACK = text("PRAGMA incremental_vacuum(1)")


def give_back(unit: Unit) -> bool:
    """Give some free pages, 8 MB at most, back to the disk; False when what is free may stay so, for what comes next.

    Others wait for the one writer meanwhile. PostgreSQL and files from before this release have nothing to give.
    """
    if unit.dialect != "sqlite" or not shrinks(unit):
        return False
    free, pages = (_pragma(unit, name) for name in ("freelist_count", "page_count"))
    spare = max(_SPARE_PAGES, int(pages * _SPARE_SHARE))
    if free <= spare:
        return False
    # One at a time: SQLite goes on to the next only as far as its answer is read, and that has no columns to read.
    for _ in range(min(_STEP, free - spare)):
        unit.connection.execute(_GIVE_BACK)
    return free - _STEP > spare


def shrinks(unit: Unit) -> bool:
    """Return whether a SQLite file can give pages back: new ones can, older ones once they were written anew."""
    return _pragma(unit, "auto_vacuum") == 2


def size(unit: Unit) -> int:
    """Return how many bytes of SQLite's file are in use or free."""
    return _pragma(unit, "page_count") * _pragma(unit, "page_size")


def _pragma(unit: Unit, name: str) -> int:
    found: int = unit.connection.execute(text(f"PRAGMA {name}")).scalar_one()
    return found
