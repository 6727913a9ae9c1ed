"""Jobs are done, tried again or given up, and none is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from pki.core.errors import ForbiddenError, UnavailableError
from pki.server.ports import Job
from pki.server.services import jobs
from pki.server.services.deps import Deps
from pki.server.store import outbox
from pki.server.store.engine import Store
from tests.kit.mail import Office
from tests.kit.threads import together


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Services with a clock to turn."""
    return Office(store, database_url, tmp_path)


class Work:
    """A handler that answers as it was told, and remembers what it saw."""

    def __init__(self, **wrong: Exception) -> None:
        self.seen: list[str] = []
        self.wrong = wrong

    def __call__(self, deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
        """Do nothing, and say so."""
        self.seen += [job.subject for job in batch]
        return {job.id: self.wrong.get(job.subject) for job in batch}


def add(office: Office, *subjects: str, kind: str = "work") -> None:
    """Queue jobs."""
    with office.store.unit() as unit:
        outbox.add(unit, "validate", kind, subjects, now=office.clock.now())


def dead(office: Office) -> dict[str, str | None]:
    """Return what was given up, and why."""
    with office.store.read() as unit:
        return {job.subject: job.error for job in outbox.dead(unit)}


def test_a_batch_is_handed_over_and_finished(office: Office) -> None:
    """Each handler gets its kind in one call; what is done is gone."""
    add(office, "a", "b")
    add(office, "c", kind="other")
    work, other = Work(), Work()
    handlers = {"work": work, "other": other}
    assert jobs.run(office.deps, "validate", handlers) == 3
    assert (work.seen, other.seen) == (["a", "b"], ["c"])
    assert jobs.run(office.deps, "validate", handlers) == 0
    assert not office.jobs("validate")


def test_the_limit_bounds_a_claim(office: Office) -> None:
    """The rest waits for the next call."""
    add(office, *"abcde")
    work = Work()
    assert [jobs.run(office.deps, "validate", {"work": work}, limit=2) for _ in range(4)] == [2, 2, 1, 0]
    assert work.seen == list("abcde")


def test_a_failure_is_tried_again_later(office: Office) -> None:
    """Its own pause grows as 2^attempts, give or take a fifth; the others are finished."""
    add(office, "good", "bad")
    work = Work(bad=UnavailableError())
    jobs.run(office.deps, "validate", {"work": work})
    for attempt in (1, 2, 3):
        pause = 2**attempt
        office.clock.go_on(seconds=pause * 0.79)
        assert jobs.run(office.deps, "validate", {"work": work}) == 0
        office.clock.go_on(seconds=pause * 0.42)
        assert jobs.run(office.deps, "validate", {"work": work}) == 1
    assert work.seen == ["good", *["bad"] * 4]


def test_pauses_are_an_hour_at_most() -> None:
    """The back-off does not grow without end."""
    assert [jobs.pause(attempts).total_seconds() for attempts in (1, 2, 11, 12, 99)] == [2, 4, 2048, 3600, 3600]


def test_a_hopeless_job_is_given_up_after_ten_attempts(office: Office) -> None:
    """It stays for people to see, with the reason, and can be replayed with all its attempts."""
    add(office, "bad")
    work = Work(bad=UnavailableError("The broker is away"))
    while not dead(office):
        jobs.run(office.deps, "validate", {"work": work})
        office.clock.go_on(hours=2)
    assert len(work.seen) == jobs.MAX_ATTEMPTS == 10
    assert dead(office) == {"bad": "unavailable: The broker is away"}
    with office.store.unit() as unit:
        assert outbox.replay(unit, [job.id for job in outbox.dead(unit)], office.clock.now()) == 1
    work.wrong.clear()
    assert jobs.run(office.deps, "validate", {"work": work}) == 1
    assert not dead(office)


def test_what_is_forbidden_is_given_up_at_once(office: Office) -> None:
    """Another attempt would not help."""
    add(office, "bad")
    jobs.run(office.deps, "validate", {"work": Work(bad=ForbiddenError())})
    assert list(dead(office)) == ["bad"]


def test_a_handler_that_breaks_loses_nothing(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    """All of its jobs are tried again, other kinds are finished; of a foreign error only type and place are kept."""

    def breaks(deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
        raise RuntimeError("the secret is 1234")

    add(office, "a", "b")
    add(office, "c", kind="other")
    assert jobs.run(office.deps, "validate", {"work": breaks, "other": Work()}) == 3
    office.clock.go_on(seconds=3)
    left = office.jobs("validate")
    assert sorted((job.subject, job.error) for job in left) == [("a", "RuntimeError"), ("b", "RuntimeError")]
    assert "1234" not in caplog.text
    assert "breaks" in caplog.text


def test_a_job_without_an_answer_or_a_handler_is_tried_again(office: Office) -> None:
    """Silence is no success, and a kind that is not known here waits for a worker that knows it."""
    add(office, "a")
    add(office, "b", kind="unheard-of")
    jobs.run(office.deps, "validate", {"work": lambda deps, batch: {}})
    office.clock.go_on(seconds=3)
    assert sorted(job.subject for job in office.jobs("validate")) == ["a", "b"]


def test_a_job_that_takes_its_worker_down_is_given_up(office: Office) -> None:
    """Claimed ten times and never concluded, it is not handed out an eleventh time."""
    add(office, "poison")
    for _ in range(jobs.MAX_ATTEMPTS):
        with office.store.unit() as unit:
            assert outbox.claim(unit, "validate", 1, now=office.clock.now(), lease=timedelta(seconds=1))
        office.clock.go_on(seconds=2)
    work = Work()
    assert jobs.run(office.deps, "validate", {"work": work}) == 1
    assert not work.seen
    assert list(dead(office)) == ["poison"]


def test_workers_at_once_do_each_job_once(office: Office) -> None:
    """No job is seen twice, none is left."""
    add(office, *(str(number) for number in range(60)))
    work = Work()

    def drain(_: int) -> int:
        count = 0
        while found := jobs.run(office.deps, "validate", {"work": work}, limit=7):
            count += found
        return count

    assert sum(together(6, drain)) == 60
    assert sorted(work.seen, key=int) == [str(number) for number in range(60)]
