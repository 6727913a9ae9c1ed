"""Each step of each use case fails, not done or done and denied; then all goes on, and every invariant holds.

Each commit, signature, post and publication always does; of the statements, which leave nothing without their commit,
a run of all tests has one in five fail, others each time, and `make test-crash` each one.
"""

from __future__ import annotations

from pki.core.errors import UnavailableError
from tests.crash import bounds, directory, mail, telling
from tests.crash.attempts import Case
from tests.kit.invariants import broken
from tests.kit.steps import How
from tests.kit.town import EVERY, SEED, Town, patiently

CASES = {**directory.CASES, **mail.CASES, **bounds.CASES, **telling.CASES}
_MOST = 500
"""More steps than any use case has: work that never ends is found, too."""


def each_step_fails(place: Town, name: str, how: How) -> None:
    """Fail the first step of a case, then the second, and so on, until nothing is left that could fail."""
    print(f"KMB_TEST_STATEMENTS={EVERY} KMB_TEST_SEED={SEED}")
    failed = []
    for number in range(1, _MOST):
        step = fail(place, CASES[name], number, how)
        if not step:
            break
        failed.append(step)
    assert failed, "there was no step to fail"
    assert len(failed) < _MOST - 1
    kinds = {one.partition(" ")[0] for one in failed}
    expected = {"commit", *BESIDES.get(name, ()), *(["statement"] if how is How.NOT_DONE else [])}
    assert kinds >= expected, kinds


BESIDES = {
    "issue": ["sign"],
    "publish": ["sign"],
    "message": ["sign"],
    "sequence": ["publish"],
    "deliver": ["post"],
    "tell_again": ["post"],
    "relay": ["wake"],
}
"""What else can fail besides statements and commits."""


def fail(place: Town, case: Case, number: int, how: How) -> str:
    """Do a case with one step failing; return which it was, nothing when the work has no such step."""
    attempt = case(place)
    with place.steps.failing(number, how):
        try:
            attempt.work()
        except UnavailableError:
            assert place.steps.failed
    step = place.steps.failed
    # At every moment, also before anybody has gone on.
    wrong = broken(place.deps.store)
    assert [one for one in wrong if not (attempt.given_up and " is dead: " in one)] == [], step
    if attempt.again is not None and step:
        patiently(attempt.again)
    place.recover()
    attempt.check()
    return step
