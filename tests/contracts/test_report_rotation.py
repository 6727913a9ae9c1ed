"""The rotation report says who holds which versions, who is behind, and what those hold who were removed."""

from __future__ import annotations

import csv
import io
import json
import secrets
from datetime import timedelta
from pathlib import Path

import jsonschema_rs
import pytest

from pki.core.deposits import DepositState
from pki.core.errors import IllegalMoveError
from pki.core.events import EventType
from pki.core.ids import DepositId
from pki.core.receipts import RefusalReason
from pki.core.tenants import parse_tenant
from pki.server.services import campaigns, mailbox, rotation
from pki.server.services.campaigns import Line
from pki.server.services.deposits import Accepted, Incoming, accept, validate
from pki.server.store.engine import Store
from tests.kit.authority import NOW, Party
from tests.kit.mail import ACME, GLOBEX, INITECH, Office, answer, compose

SCHEMA = Path(__file__).parents[2] / "schemas" / "report-rotation.schema.json"
DAY = timedelta(days=1)


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Three certified instances."""
    return Office(store, database_url, tmp_path)


def send(office: Office, to: Party, version: int, *, days: float | None = None, supersedes: str | None = None) -> str:
    """Let globex send a version of its key, to be answered within ``days``."""
    by = None if days is None else NOW + days * DAY
    body = compose(GLOBEX, to, key_version=version)
    incoming = Incoming(body, secrets.token_hex(8), supersedes, by)
    (accepted,) = accept(office.deps, office.caller(GLOBEX), [incoming])
    assert isinstance(accepted, Accepted), accepted
    validate(office.deps, [accepted.id])
    return accepted.id


def collect(office: Office, party: Party, deposit: str) -> None:
    """Let a recipient take a deposit."""
    mailbox.collect(office.deps, office.caller(party), party.address, [deposit])


def sign(office: Office, party: Party, deposit: str, refusal: RefusalReason | None = None) -> None:
    """Let a recipient take a deposit and answer."""
    collect(office, party, deposit)
    der = answer(party, office.record(DepositId(deposit)), refusal=refusal)
    mailbox.receipt(office.deps, office.caller(party), deposit, der)


def told(office: Office) -> dict[str, Line]:
    """Return the report by recipient."""
    lines = campaigns.rotation(office.deps)
    assert {(line.sender, line.key_id) for line in lines} == {("globex/main", "orders-2030")}
    return {line.recipient: line for line in lines}


def overdue(office: Office) -> list[tuple[str, tuple[str, ...]]]:
    """Return who was told of what that no answer came."""
    return [(one.subject, one.audience) for one in office.events() if one.type is EventType.DEPOSIT_OVERDUE]


def test_who_holds_what_after_a_rotation(office: Office) -> None:
    """One signed for both versions, one is behind; when it has signed as well, nobody is."""
    for party in (ACME, INITECH):
        sign(office, party, send(office, party, 1))
    sign(office, ACME, send(office, ACME, 2, days=3))
    late = send(office, INITECH, 2, days=3)
    lines = told(office)
    assert (lines["acme/eu-west"].standing, lines["acme/eu-west"].holds) == ("current", "1 2")
    assert (lines["initech/lab"].standing, lines["initech/lab"].holds) == ("straggler", "1")
    office.clock.go_on(days=4)
    line = told(office)["initech/lab"]
    assert (line.standing, line.deposit_id, line.respond_by) == ("overdue", late, "2030-05-20T12:30:15Z")
    assert [one.recipient for one in campaigns.behind(campaigns.rotation(office.deps))] == ["initech/lab"]
    collect(office, INITECH, late)
    assert (told(office)["initech/lab"].holds, told(office)["initech/lab"].may_hold) == ("1", "2")
    sign(office, INITECH, late)
    assert campaigns.behind(campaigns.rotation(office.deps)) == []


def test_who_was_removed_still_holds_what_it_signed_for(office: Office) -> None:
    """It was sent nothing new; the report says which versions it has, and which it may have."""
    sign(office, INITECH, send(office, INITECH, 1))
    collect(office, INITECH, send(office, INITECH, 2))
    sign(office, ACME, send(office, ACME, 3))
    line = told(office)["initech/lab"]
    assert (line.standing, line.newest, line.given, line.state) == ("removed", 3, 2, "collected")
    assert (line.holds, line.may_hold) == ("1", "2")
    assert line.signed_at == "2030-05-17T12:30:15Z"


def test_what_was_refused_or_ended_is_failed(office: Office) -> None:
    """It will not arrive by itself."""
    sign(office, ACME, send(office, ACME, 1), RefusalReason.NOT_WANTED)
    send(office, INITECH, 1)
    office.clock.go_on(days=31)
    rotation.expire(office.deps)
    assert {name: (line.standing, line.holds) for name, line in told(office).items()} == {
        "acme/eu-west": ("failed", ""),
        "initech/lab": ("failed", ""),
    }


def test_a_tenant_sees_its_own_and_every_form_says_the_same(office: Office) -> None:
    """JSON keeps to its schema, CSV and table have the same lines."""
    sign(office, ACME, send(office, ACME, 1))
    send(office, INITECH, 1, days=1)
    assert [one.recipient for one in campaigns.rotation(office.deps, parse_tenant("acme"))] == ["acme/eu-west"]
    assert campaigns.rotation(office.deps, key_id="another") == []
    lines = campaigns.rotation(office.deps, key_id="orders-2030")
    found = json.loads(campaigns.to_json(lines))
    jsonschema_rs.validator_for(json.loads(SCHEMA.read_text()), validate_formats=True).validate(found)
    assert [row["holds"] for row in found["rows"]] == [[1], []]
    read = list(csv.DictReader(io.StringIO(campaigns.to_csv(lines))))
    assert [row["standing"] for row in read] == ["current", "straggler"]
    assert [line.split()[4] for line in campaigns.to_table(lines).splitlines()[1:]] == ["current", "straggler"]


def test_both_are_told_once_that_no_answer_came(office: Office) -> None:
    """The sender and, of what it could see, the recipient; not of what was answered, ended, or has no such time."""
    answered, waits, untimed = (send(office, ACME, version, days=days) for version, days in ((1, 1), (2, 1), (3, None)))
    sign(office, ACME, answered)
    incoming = Incoming(compose(GLOBEX, ACME, key_version=4), secrets.token_hex(8), None, NOW + DAY)
    (unseen,) = accept(office.deps, office.caller(GLOBEX), [incoming])
    assert isinstance(unseen, Accepted)
    assert rotation.expire(office.deps).overdue == 0
    office.clock.go_on(days=1)
    assert rotation.expire(office.deps).overdue == 2
    both, sender = ("globex/main", "acme/eu-west"), ("globex/main",)
    assert sorted(overdue(office)) == sorted([(waits, both), (unseen.id, sender)])
    assert rotation.expire(office.deps).overdue == 0
    assert office.record(DepositId(waits)).overdue_at == office.clock.now()
    assert office.record(DepositId(untimed)).overdue_at is None


def test_a_renewed_key_is_wrapped_for_again_before_it_is_collected(office: Office) -> None:
    """An available deposit gives way to its successor, at the moment when that is available; a collected one stays."""
    old = send(office, ACME, 1)
    new = send(office, ACME, 1, supersedes=old)
    stored = office.record(DepositId(old))
    assert (stored.state, stored.superseded_by) == (DepositState.SUPERSEDED, new)
    collect(office, ACME, new)
    late = Incoming(compose(GLOBEX, ACME, key_version=1), secrets.token_hex(8), new)
    (refused,) = accept(office.deps, office.caller(GLOBEX), [late])
    assert isinstance(refused, IllegalMoveError)
    assert [one.standing for one in told(office).values()] == ["straggler"]


def test_what_is_collected_while_its_successor_is_under_way_stands(office: Office) -> None:
    """Then the recipient gets both; neither is lost."""
    old = send(office, ACME, 1)
    item = Incoming(compose(GLOBEX, ACME, key_version=1), secrets.token_hex(8), old)
    (new,) = accept(office.deps, office.caller(GLOBEX), [item])
    assert isinstance(new, Accepted)
    collect(office, ACME, old)
    validate(office.deps, [new.id])
    assert office.record(DepositId(old)).state is DepositState.COLLECTED
    assert office.record(new.id).state is DepositState.AVAILABLE
