"""The trail is verified from where it was left off, at a cost that does not grow, and what was verified comes again."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from pki.core.errors import VerificationError
from pki.server.services import doctor, notices, trail
from pki.server.services.jobs import run
from pki.server.services.trail import Verified
from pki.server.store.engine import Store
from tests.kit.mail import ACME, GLOBEX, Office
from workers.handlers import Hands


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Three certified instances, and forty events."""
    opened = Office(store, database_url, tmp_path)
    happen(opened)
    return opened


def happen(office: Office) -> None:
    """Let forty more events be numbered."""
    office.send_available(GLOBEX, ACME, 20)
    assert notices.sequence_events(office.deps, None) == 40


def edit(office: Office, statement: str) -> None:
    """Do what somebody does who has the database."""
    with office.store.unit() as unit:
        unit.connection.execute(text(statement))


def test_what_is_new_is_verified_once(office: Office) -> None:
    """The second time goes on where the first stopped; an empty trail is no worse."""
    assert trail.verify(office.deps) == Verified(40, 0)
    assert trail.verify(office.deps) == Verified(40, 40)
    happen(office)
    assert trail.verify(office.deps).position == 80
    assert trail.verify_all(office.deps) == 80


def test_an_empty_trail_verifies(store: Store, database_url: str, tmp_path: Path) -> None:
    """Nothing happened, nothing is wrong, and nothing is remembered."""
    office = Office(store, database_url, tmp_path)
    assert trail.verify(office.deps) == Verified(0, 0)
    happen(office)
    assert trail.verify(office.deps) == Verified(40, 0)


def test_the_cost_of_a_day_does_not_grow(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the trail is, so many new and so many old events are looked at, and the rest has jobs of its own."""
    monkeypatch.setattr(trail, "_AT_ONCE", 15)
    assert trail.verify(office.deps) == Verified(15, 0, more=True)
    hands = Hands(office.deps, ["report"])
    for _ in range(5):
        run(office.deps, "report", hands.handlers("report"))
    assert not office.jobs("report")
    seen = [trail.verify(office.deps).again for _ in range(6)]
    # Round after round, the whole of it again.
    assert seen == [40, 15, 30, 40, 15, 30]


@pytest.mark.parametrize("position", [1, 17, 40])
def test_an_old_event_that_was_edited_is_found_in_its_turn(
    office: Office, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    """Not at once, but before the round is over; and by who looks at everything."""
    monkeypatch.setattr(trail, "_AT_ONCE", 40)
    trail.verify(office.deps)
    monkeypatch.setattr(trail, "_AT_ONCE", 15)
    edit(office, f"UPDATE events SET subject = 'x' WHERE position = {position}")
    with pytest.raises(VerificationError, match=f"position {position}"):
        for _ in range(4):
            trail.verify(office.deps)
    with pytest.raises(VerificationError, match=f"position {position}"):
        trail.verify_all(office.deps)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM event_audience WHERE position > 30; DELETE FROM events WHERE position > 30",
        "UPDATE events SET chain = (SELECT chain FROM events WHERE position = 1) WHERE position = 40",
    ],
    ids=["cut off", "chained anew"],
)
def test_a_trail_that_ends_otherwise_is_found_at_once(office: Office, statement: str) -> None:
    """The anchor is a position and the chain's value there: both have to be as they were."""
    trail.verify(office.deps)
    for part in statement.split(";"):
        edit(office, part)
    for verify in (trail.verify, trail.verify_all):
        with pytest.raises(VerificationError):
            verify(office.deps)


def test_a_new_event_that_was_edited_is_found_at_once(office: Office) -> None:
    """And the anchor stays before it, so that the next time finds it, too."""
    trail.verify(office.deps)
    happen(office)
    edit(office, "UPDATE events SET subject = 'x' WHERE position = 55")
    for _ in range(2):
        with pytest.raises(VerificationError, match="position 55"):
            trail.verify(office.deps)


def test_the_doctor_tells(office: Office) -> None:
    """How far it was verified; all of it on demand, and what is wrong there."""
    trail.verify(office.deps)
    happen(office)
    assert [one.detail.split(" are")[0] for one in trail.examine(office.deps)] == ["40 of 80 events"]
    assert [one.ok for one in doctor.examine(office.deps, full=True) if one.check == "trail"] == [True, True]
    edit(office, "UPDATE events SET subject = 'x' WHERE position = 1")
    assert [one.ok for one in doctor.examine(office.deps, full=True) if one.check == "trail"] == [True, False]
