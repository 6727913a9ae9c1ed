"""The doctor finds what is wanting by what it leads to, and says what to type; each check joins one list."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from pki.core.events import EventType
from pki.server.adapters import broker
from pki.server.services import doctor, upkeep
from pki.server.services.events import event
from pki.server.services.findings import Finding
from pki.server.store import events as event_store
from pki.server.store import outbox
from pki.server.store.engine import Store
from tests.kit.facts import ACME
from tests.kit.mail import Office
from workers import beat


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Services with a clock to turn."""
    return Office(store, database_url, tmp_path)


def found(office: Office, check: str) -> list[Finding]:
    """What the doctor says of one thing."""
    return [one for one in doctor.examine(office.deps) if one.check == check]


def test_each_check_is_one_entry() -> None:
    """Names are used once, and the database is looked at before what reads its tables."""
    names = [name for name, _ in doctor.CHECKS]
    assert len(names) == len(set(names))
    assert names.index("database") < min(names.index(one) for one in ("crl", "ocsp", "queues", "clock", "dead", "beat"))


def test_nobody_works(office: Office) -> None:
    """A job that is due for more than a minute has nobody who looks after it, whatever runs."""
    with office.store.unit() as unit:
        outbox.add(unit, "validate", "deposit", ["a"], now=office.clock.now())
    assert [one.ok for one in found(office, "queues")] == [True]
    office.clock.go_on(seconds=upkeep.LATE_SECONDS + 1)
    [late] = found(office, "queues")
    assert (late.ok, late.detail) == (False, "validate: 1 due, the oldest for 61 s")
    assert late.hint.endswith("kmb-server worker --queues validate")


def test_nobody_numbers(office: Office) -> None:
    """An event without a number for more than a minute."""
    [fine] = found(office, "sequencer")
    assert fine.ok
    with office.store.unit() as unit:
        event_store.append(unit, [event(EventType.DEPOSIT_RECEIVED, "a", office.clock.now(), ACME)])
    office.clock.go_on(seconds=upkeep.LATE_SECONDS + 1)
    [late] = found(office, "sequencer")
    assert (late.ok, late.hint) == (False, "kmb-server worker --queues sequence")


def test_nobody_ticks(office: Office) -> None:
    """The beat is known by its last tick."""
    assert [one.detail for one in found(office, "beat")] == ["no beat has run yet"]
    for due in beat.schedule(office.deps.settings):
        beat.tick(office.deps, due, office.clock.now())
    assert [one.ok for one in found(office, "beat")] == [True]
    office.clock.go_on(minutes=5)
    [late] = found(office, "beat")
    assert (late.ok, late.hint) == (False, "kmb-server beat")


def test_what_was_given_up(office: Office) -> None:
    """Dead jobs are counted by queue."""
    with office.store.unit() as unit:
        outbox.add(unit, "report", "chain", ["a", "b"], now=office.clock.now())
        for job in outbox.claim(unit, "report", 2, now=office.clock.now(), lease=timedelta(minutes=1)):
            outbox.bury(unit, job, now=office.clock.now(), error="x")
    [told] = found(office, "dead")
    assert (told.ok, told.detail, told.hint) == (False, "jobs were given up: 2 of report", "kmb-server dead list")


def test_the_clock(office: Office) -> None:
    """PostgreSQL's machine has a clock of its own, SQLite's has ours."""
    # A few seconds apart are none, and it takes a moment to look.
    office.clock.moment = event_time(office) + timedelta(seconds=4)
    assert [one.ok for one in found(office, "clock")] == [True]
    office.clock.go_on(minutes=1)
    [told] = found(office, "clock")
    assert told.ok is (office.store.dialect == "sqlite"), told


def event_time(office: Office) -> datetime:
    """The database's time, or ours."""
    if office.store.dialect == "sqlite":
        return office.clock.now()
    with office.store.read() as unit:
        return event_store.database_time(unit)


class Usage(NamedTuple):
    """What a file system has."""

    total: int
    used: int
    free: int


def test_the_disk(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a GiB it is time to make room."""
    assert [one.check for one in found(office, "disk")] == ["disk"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 << 30, 99 << 30, 1 << 29))
    assert [one.ok for one in found(office, "disk")] == [False]


def test_the_broker_in_this_process() -> None:
    """memory:// is never away."""
    assert "this process" in broker.examine("memory://", "keymailbox")
