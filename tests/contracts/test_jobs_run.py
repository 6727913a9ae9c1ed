"""Jobs are done, tried again or given up, and none is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from pki.core.errors import ForbiddenError, UnavailableError
from pki.server.facts import Job
from pki.server.services import jobs
from pki.server.services.deps import Deps
from pki.server.store import outbox
from pki.server.store.engine import Store
from tests.kit.mail import Office
from tests.kit.statements import counted
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


def test_one_that_takes_its_worker_down_takes_no_other_with_it(office: Office) -> None:
    """Jobs whose claims ran out are done one at a time: the innocent are finished, and only the killer is given up."""
    add(office, "a", "killer", *"bcdefgh")
    work = Work()

    def dies(deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
        if any(job.subject == "killer" for job in batch):
            raise KeyboardInterrupt
        return work(deps, batch)

    for _ in range(100):
        try:
            jobs.run(office.deps, "validate", {"work": dies})
        except KeyboardInterrupt:
            # As a worker that is killed: nobody concludes.
            office.clock.go_on(minutes=2)
    assert sorted(work.seen) == list("abcdefgh")
    assert list(dead(office)) == ["killer"]


def test_what_a_handler_has_struck_off_is_left_alone(office: Office) -> None:
    """Its jobs are gone with its own commit, and no other is made for them."""
    add(office, "a", "b")

    def strikes(deps: Deps, batch: Sequence[Job]) -> Mapping[int, jobs.Outcome]:
        with deps.store.unit() as unit:
            outbox.finish(unit, [job.id for job in batch])
        return {job.id: jobs.FINISHED for job in batch}

    with counted(office.store, here=True) as told:
        assert jobs.run(office.deps, "validate", {"work": strikes}) == 2
    assert told.commits == 2
    assert not office.jobs("validate")


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


def test_who_comes_too_late_leaves_the_job_to_who_has_it(office: Office) -> None:
    """A worker whose claim another has by now neither gives its jobs back, nor retries them, nor gives them up."""
    add(office, "a", "b")
    late = jobs.claim(office.deps, "validate", 10).mine
    office.clock.go_on(seconds=9)
    own = jobs.claim(office.deps, "validate", 10).mine
    jobs.work(office.deps, "validate", {}, late, stopping=lambda: True)
    jobs.work(office.deps, "validate", {"work": Work(a=UnavailableError("away"), b=ForbiddenError())}, late)
    assert not jobs.claim(office.deps, "validate", 10).mine
    assert not dead(office)
    work = Work()
    jobs.work(office.deps, "validate", {"work": work}, own)
    assert work.seen == ["a", "b"]
    assert not office.jobs("validate")


def test_what_was_not_begun_is_given_back(office: Office) -> None:
    """Who is told to stop ends the kind of job that it is at; the others are due at once, as before."""
    add(office, "a", "b")
    add(office, "c", "d", kind="other")
    stop: list[bool] = []
    work, other = Work(), Work()

    def last(deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
        stop.append(True)
        return work(deps, batch)

    assert jobs.run(office.deps, "validate", {"work": last, "other": other}, stopping=lambda: bool(stop)) == 4
    assert (work.seen, other.seen) == (["a", "b"], [])
    stop.clear()
    with office.store.unit() as unit:
        claimed = outbox.claim(unit, "validate", 10, now=office.clock.now(), lease=timedelta(minutes=1))
        assert [(job.subject, job.attempts) for job in claimed] == [("c", 1), ("d", 1)]
