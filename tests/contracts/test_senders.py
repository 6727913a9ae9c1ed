"""Recipients choose whom they take deposits from; who is turned away learns nothing else."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from pki.core.deposits import DepositState
from pki.core.errors import BadAddressError, KeymailboxError, NotFoundError, NotWelcomeError, UsageError
from pki.core.senders import SenderMode, SenderPolicy
from pki.server.services import deposits, doctor, limits, mailbox, notices, senders
from pki.server.store import events as event_store
from pki.server.store.engine import Store
from tests.contracts.test_notices_events import validator
from tests.kit.authority import NOW, Party
from tests.kit.mail import ACME, GLOBEX, INITECH, Office, answer, codes, compose

KNOWN, LISTED = SenderMode.KNOWN, SenderMode.LISTED


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Three certified instances."""
    return Office(store, database_url, tmp_path)


def choose(office: Office, recipient: Party, mode: SenderMode, *listed: str, **limits: Any) -> SenderPolicy:
    """Have a recipient choose."""
    wanted = SenderPolicy(mode, listed, **limits)
    return senders.set_policy(office.deps, office.caller(recipient), recipient.address, wanted)


def acknowledge(office: Office, sender: Party) -> None:
    """Have acme acknowledge a deposit."""
    (deposit_id,) = office.send_available(sender, ACME)
    mailbox.collect(office.deps, office.caller(ACME), ACME.address, [deposit_id])
    mailbox.receipt(office.deps, office.caller(ACME), deposit_id, answer(ACME, office.record(deposit_id)))


def sends(office: Office, sender: Party, to: Party = ACME) -> str:
    """Return what comes of a deposit."""
    (code,) = codes(office.accept(sender, compose(sender, to)))
    return code


def test_without_a_choice_anyone_is_welcome(office: Office) -> None:
    """First contact is possible, and the policy says so."""
    assert sends(office, GLOBEX) == "ok"
    assert senders.policy(office.deps, office.caller(ACME), ACME.address) == SenderPolicy()


@pytest.mark.parametrize("listed", ["globex", "globex/main"])
def test_listed_takes_the_list_alone(office: Office, listed: str) -> None:
    """A tenant on it stands for all its instances, an address for itself."""
    acknowledge(office, INITECH)
    choose(office, ACME, LISTED, listed)
    assert (sends(office, GLOBEX), sends(office, INITECH)) == ("ok", "not-welcome")
    choose(office, ACME, LISTED, "globex/other")
    assert sends(office, GLOBEX) == "not-welcome"


def test_known_takes_whom_it_has_answered(office: Office) -> None:
    """A deposit that was acknowledged makes its sender known; one that only came does not."""
    acknowledge(office, GLOBEX)
    office.send_available(INITECH, ACME)
    choose(office, ACME, KNOWN)
    assert (sends(office, GLOBEX), sends(office, INITECH)) == ("ok", "not-welcome")


def test_known_takes_whom_it_wrote_to(office: Office) -> None:
    """Its own deposit makes the other known, one that was refused does not."""
    choose(office, ACME, KNOWN)
    choose(office, INITECH, LISTED)
    assert (sends(office, ACME, GLOBEX), sends(office, ACME, INITECH)) == ("ok", "not-welcome")
    assert (sends(office, GLOBEX), sends(office, INITECH)) == ("ok", "not-welcome")


def test_known_takes_the_list_too(office: Office) -> None:
    """First contact with somebody in particular."""
    choose(office, ACME, KNOWN, "initech")
    assert (sends(office, GLOBEX), sends(office, INITECH)) == ("not-welcome", "ok")


def test_the_answer_says_no_more(office: Office) -> None:
    """Mode, list and limits are the same to who is not welcome, and so is a full mailbox."""
    limits.allow(office.deps, ACME.address, {"mailbox-deposits": 0})
    told = set()
    for mode in (KNOWN, LISTED):
        choose(office, ACME, mode, "initech", max_bytes=16 * 1024)
        (error,) = office.accept(GLOBEX, compose(GLOBEX, ACME))
        assert isinstance(error, NotWelcomeError)
        told.add((error.message, error.on, error.hint, error.retry_after))
    assert told == {("The recipient does not take deposits from you.", "", "", None)}


def test_a_recipient_bounds_size_and_lifetime(office: Office) -> None:
    """What is too large or lasts too long is refused with the limit."""
    choose(office, ACME, SenderMode.ANYONE, max_lifetime=timedelta(days=7))
    late, soon = compose(GLOBEX, ACME), compose(GLOBEX, ACME, expires=NOW + timedelta(days=7))
    answers = office.accept(GLOBEX, late, soon)
    assert codes(answers) == ["outside-period", "ok"]
    assert isinstance(answers[0], KeymailboxError) and "7 days" in answers[0].message
    choose(office, ACME, SenderMode.ANYONE, max_bytes=16 * 1024)
    large = compose(GLOBEX, ACME, material=_material(20_000))
    answers = office.accept(GLOBEX, large, compose(GLOBEX, ACME))
    assert codes(answers) == ["too-large", "ok"]


def _material(size: int) -> Any:
    from dataclasses import replace

    from tests.kit.authority import KEY

    return replace(KEY, key=bytes(size))


def test_what_is_under_way_is_judged_by_the_new_policy(office: Office) -> None:
    """Not validated yet: rejected. In the mailbox: it stays."""
    (available,) = office.send_available(GLOBEX, ACME)
    (received,) = office.send(GLOBEX, ACME)
    (other,) = office.send(INITECH, ACME)
    choose(office, ACME, LISTED, "initech")
    deposits.validate(office.deps, [received, other])
    record = office.record(received)
    assert (record.state, record.rejected_code) == (DepositState.REJECTED, "not-welcome")
    assert office.record(available).state is DepositState.AVAILABLE
    assert office.record(other).state is DepositState.AVAILABLE


def test_only_the_recipient_sees_and_changes_it(office: Office) -> None:
    """To everybody else there is nothing."""
    choose(office, ACME, LISTED, "globex")
    for caller in (GLOBEX, INITECH):
        with pytest.raises(NotFoundError):
            senders.policy(office.deps, office.caller(caller), ACME.address)
        with pytest.raises(NotFoundError):
            senders.set_policy(office.deps, office.caller(caller), ACME.address, SenderPolicy())
    assert senders.policy(office.deps, office.caller(ACME), ACME.address).listed == ("globex",)


def test_a_change_is_told_without_the_list(office: Office) -> None:
    """Once, to the recipient, as the schema says; the same again is no change."""
    for _ in range(2):
        choose(office, ACME, KNOWN, "initech", "globex", "globex", max_lifetime=timedelta(days=30))
    limits.allow(office.deps, ACME.address, {"pair-deposits": 5, "sender-daily": None})
    notices.sequence_events(office.deps, None)
    with office.store.read() as unit:
        found = event_store.after(unit, 0, 10)
    assert [item.event.type.value.partition(".")[2] for item in found] == ["senders.changed"] + ["limits.changed"] * 2
    assert "globex" not in str([item.event for item in found[:1]])
    assert found[0].event.audience == (str(ACME.address),)
    for item in found:
        checked: jsonschema_rs.Draft202012Validator = validator(item.event.type.value)
        checked.validate(notices.cloudevent(office.deps, item))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"listed": ("no/such/thing",)}, BadAddressError),
        ({"listed": ("Acme",)}, BadAddressError),
        ({"listed": tuple(f"t{number}" for number in range(1001))}, UsageError),
        ({"max_bytes": 100}, UsageError),
        ({"max_lifetime": timedelta(minutes=1)}, UsageError),
    ],
)
def test_a_policy_that_cannot_be_meant(wrong: dict[str, Any], error: type[KeymailboxError]) -> None:
    """What would shut a mailbox by mistake is refused."""
    with pytest.raises(error):
        SenderPolicy(LISTED, **wrong)


def test_doctor_finds_a_wrong_count(office: Office) -> None:
    """And names the command that mends it."""
    from sqlalchemy import update

    from pki.server.store.tables import tallies

    office.send(GLOBEX, ACME)
    assert [one.ok for one in doctor.examine(office.deps) if one.check == "limits"] == [True]
    with office.store.unit() as unit:
        unit.connection.execute(update(tallies).values(deposits=3))
    (finding,) = [one for one in doctor.examine(office.deps) if one.check == "limits"]
    assert not finding.ok and finding.hint == "kmb-server tenant recount" and "4 counts" in finding.detail
