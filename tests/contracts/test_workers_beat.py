"""Ticks: each once a period, however many beats there are; on both databases."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest

from pki.server.adapters.linter import PkiLinter
from pki.server.adapters.profiles import FileProfiles
from pki.server.bootstrap import SystemClock
from pki.server.facts import Job
from pki.server.services.deps import Deps
from pki.server.settings import load_settings
from pki.server.store import outbox
from pki.server.store.engine import Store
from tests.kit.facts import NOW
from tests.kit.threads import together
from workers.beat import Beat, Tick, schedule, tick

HOURLY = Tick("rotate", "purge", timedelta(hours=1))


@pytest.fixture
def deps(store: Store, tmp_path: Path) -> Deps:
    """A store with its clock."""
    return Deps(store, load_settings(home=tmp_path), SystemClock(), PkiLinter(), FileProfiles(tmp_path))


def test_a_tick_is_written_once_a_period(deps: Deps) -> None:
    """A second beat, and the same one again, find it done; the next period is another tick."""
    assert tick(deps, HOURLY, NOW)
    assert not tick(deps, HOURLY, NOW)
    assert not tick(deps, HOURLY, HOURLY.period(NOW))
    assert tick(deps, HOURLY, NOW + timedelta(hours=1))
    assert [(job.kind, job.subject) for job in _jobs(deps, "rotate")] == [
        ("purge", "2030-05-17T12:00:00+00:00"),
        ("purge", "2030-05-17T13:00:00+00:00"),
    ]


def test_beats_at_once_write_one_tick(deps: Deps) -> None:
    """Of eight beats that tick together, one writes the job."""
    assert sorted(together(8, lambda _: tick(deps, HOURLY, NOW))) == [False] * 7 + [True]
    assert len(_jobs(deps, "rotate")) == 1


def test_a_beat_begins_with_the_period_that_runs(deps: Deps) -> None:
    """At the start everything is due once: a revocation list that lapsed while nobody beat comes at once."""
    beat = Beat(deps)
    thread = threading.Thread(target=beat.run)
    thread.start()
    wanted = {(one.queue, one.kind) for one in schedule(deps.settings)}
    found: set[tuple[str, str]] = set()
    for _ in range(500):
        found |= {(job.queue, job.kind) for one in schedule(deps.settings) for job in _jobs(deps, one.queue)}
        if found == wanted:
            break
        threading.Event().wait(0.02)
    beat.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert found == wanted


def _jobs(deps: Deps, queue: str) -> list[Job]:
    later = max(NOW, deps.clock.now()) + timedelta(days=1)
    with deps.store.unit() as unit:
        return outbox.claim(unit, queue, 100, now=later, lease=timedelta(seconds=1))
