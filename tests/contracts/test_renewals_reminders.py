"""Whoever does not renew is reminded 30, 7 and 1 days before the end, once each, whatever crashes or runs twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import standardwebhooks
from sqlalchemy import func, select, text, update

from pki.core.certificates import CertificateKind, CertificateState
from pki.core.errors import KeymailboxError
from pki.core.events import EventType
from pki.core.tenants import parse_address
from pki.server.facts import Caller, Webhook
from pki.server.services import notices, renewals, rotation, webhooks
from pki.server.services.deps import Deps
from pki.server.store import certificates as certificate_store
from pki.server.store import events as event_store
from pki.server.store import tables, tenants
from pki.server.store.engine import Store
from tests.kit.office import Kms, Office, open_office
from tests.kit.threads import together
from workers.beat import schedule, tick
from workers.handlers import Hands

ACME = parse_address("acme/eu-west")
DAY = timedelta(days=1)
SCHEMA = Path(__file__).parents[2] / "schemas" / "events" / "keymailbox.certificate.expiring.schema.json"


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA and one instance, which has an identity certificate for 365 days and does not renew it."""
    made = open_office(store, tmp_path)
    made.settle(Kms(ACME))
    return made


def reminders(office: Office) -> list[int]:
    """Return the thresholds of all reminders, in the order in which they were written."""
    with office.deps.store.read() as unit:
        found = event_store.unsequenced(unit, 10_000)
        kept = unit.connection.execute(select(func.count()).select_from(tables.reminders)).scalar_one()
    days = [one.data["days"] for one in found if one.type is EventType.CERTIFICATE_EXPIRING]
    assert kept == len(days), "a row for each event, and an event for each row"
    return [int(str(one)) for one in days]


def lifetime(office: Office, life: timedelta) -> None:
    """Give all certificates another end."""
    with office.deps.store.unit() as unit:
        for one in certificate_store.history(unit, ACME):
            row = tables.certificates.c.fingerprint == one.fingerprint
            end = one.not_before + life
            unit.connection.execute(update(tables.certificates).where(row).values(not_after=end))


def until(office: Office, left: timedelta) -> None:
    """Move the clock to ``left`` before the identity certificate's end."""
    with office.deps.store.read() as unit:
        [active] = certificate_store.history(unit, ACME, CertificateKind.IDENTITY)
    office.clock.time = active.not_after - left


def test_each_threshold_is_told_once(office: Office) -> None:
    """Somebody looks every 10 hours in the last weeks, and after: three reminders, the first when 30 days are left."""
    with office.deps.store.read() as unit:
        [active] = certificate_store.history(unit, ACME)
    told = []
    for left in (364, 200, 100):
        until(office, left * DAY)
        assert renewals.remind(office.deps) == 0
    until(office, 35 * DAY)
    while office.clock.now() < active.not_after + 3 * DAY:
        if renewals.remind(office.deps):
            told.append(active.not_after - office.clock.now())
        rotation.expire(office.deps)
        office.clock.step(timedelta(hours=10))
    assert reminders(office) == [30, 7, 1]
    assert all(
        timedelta(0) <= days * DAY - left < timedelta(hours=10) for days, left in zip((30, 7, 1), told, strict=True)
    )


def test_of_what_was_missed_only_the_nearest_is_told(office: Office) -> None:
    """A server that was down over two thresholds sends one reminder, and the later ones in their time."""
    until(office, 5 * DAY)
    assert renewals.remind(office.deps) == 1
    assert renewals.remind(office.deps) == 0
    until(office, 20 * DAY)  # the clock was put right: nobody hears of 30 days after 7
    assert renewals.remind(office.deps) == 0
    until(office, DAY)
    assert renewals.remind(office.deps) == 1
    assert reminders(office) == [7, 1]


def test_workers_at_once_remind_once(office: Office) -> None:
    """Of eight that look at the same time one writes the reminder."""
    until(office, 29 * DAY)
    assert sum(together(8, lambda _: renewals.remind(office.deps))) == 1
    assert reminders(office) == [30]


def test_what_is_renewed_or_over_is_not_told(office: Office) -> None:
    """A successor retires the certificate, and one that has expired is another event."""
    kms = Kms(parse_address("globex/main"))
    office.settle(kms)
    first = office.publish(kms)
    office.clock.step(timedelta(hours=1))
    office.publish(kms)
    with office.deps.store.unit() as unit:
        row = tables.certificates.c.fingerprint == first.fingerprint
        unit.connection.execute(update(tables.certificates).where(row).values(not_after=office.clock.now() + DAY / 2))
        assert certificate_store.certificate(unit, first.fingerprint, lock=True) is not None
    assert renewals.remind(office.deps) == 0
    until(office, timedelta(0))
    assert renewals.remind(office.deps) == 1, "the successor lives an hour longer"
    until(office, -DAY)
    assert renewals.remind(office.deps) == 0
    assert reminders(office) == [1]


@pytest.mark.parametrize(
    ("life", "expected"),
    [(365, [30, 7, 1]), (91, [30, 7, 1]), (90, [7, 1]), (22, [7, 1]), (21, [1]), (4, [1]), (3, [])],
)
def test_short_lives_have_few_thresholds(office: Office, life: int, expected: list[int]) -> None:
    """A threshold that does not come after two thirds of the life makes no sense: nobody is late then."""
    lifetime(office, life * DAY)
    for left in (40, 29, 8, 6.9, 6.5, 2, 0.9, 0.5, 0.1):
        if left < life:
            until(office, left * DAY)
            renewals.remind(office.deps)
    assert reminders(office) == expected


def test_a_reminder_that_failed_half_way_is_written_whole_the_next_time(office: Office) -> None:
    """Row and event come together or not at all."""
    until(office, 29 * DAY)
    with office.deps.store.unit() as unit:
        unit.connection.execute(text("ALTER TABLE event_audience RENAME TO away"))
    with pytest.raises(KeymailboxError):
        renewals.remind(office.deps)
    with office.deps.store.unit() as unit:
        unit.connection.execute(text("ALTER TABLE away RENAME TO event_audience"))
    assert reminders(office) == []
    assert renewals.remind(office.deps) == 1
    assert reminders(office) == [30]


def test_many_are_reminded_page_by_page(office: Office) -> None:
    """Short-lived certificates that are never told do not stand in the way of five hundred that are."""
    with office.deps.store.unit() as unit:
        [kept] = certificate_store.history(unit, ACME)
        for number in range(750):
            short = number % 3 == 0
            start = kept.not_before + timedelta(days=340, seconds=number) if short else kept.not_before
            other = replace(
                kept,
                fingerprint=f"{number:064x}",
                address=parse_address(f"t{number}/x"),
                serial=number + 1,
                not_before=start,
                state=CertificateState.ACTIVE,
            )
            certificate_store.insert_certificate(unit, other)
    until(office, 20 * DAY)
    assert renewals.remind(office.deps) == 501
    assert renewals.remind(office.deps) == 0


class Ear(BaseHTTPRequestHandler):
    """Takes posts; the first one it takes and answers with an error."""

    posts: list[tuple[dict[str, str], bytes]]

    def do_POST(self) -> None:
        """Remember a post."""
        body = self.rfile.read(int(self.headers["content-length"]))
        self.posts.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(503 if len(self.posts) == 1 else 204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def ear() -> Iterator[HTTPServer]:
    """A receiver on loopback."""
    Ear.posts = []
    server = HTTPServer(("127.0.0.1", 0), Ear)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


def test_beat_worker_and_webhook_bring_it_to_the_owner(office: Office, ear: HTTPServer) -> None:
    """The tick is written, the worker reminds, the post is tried until it is taken; its id stays the same."""
    settings = office.deps.settings.model_copy(update={"webhook_allow_private": True})
    deps = replace(office.deps, settings=settings)
    until(office, 7 * DAY)
    hook = register(deps, ear)
    hands = Hands(deps, ["rotate", "notify"])
    for _ in range(2):
        for due in schedule(settings):
            if due.queue == "rotate":
                tick(deps, due, office.clock.now())
        hands.drain("rotate")
        notices.sequence_events(deps, None)
        hands.drain("notify")
        office.clock.step(timedelta(minutes=5))
    hands.drain("notify")
    assert len(Ear.posts) == 2
    assert Ear.posts[0][0]["webhook-id"] == Ear.posts[1][0]["webhook-id"]
    headers, body = Ear.posts[-1]
    when = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    signer = standardwebhooks.Webhook(hook.secret)
    assert signer.sign(headers["webhook-id"], when, body.decode()) == headers["webhook-signature"]
    told = json.loads(body)
    jsonschema_rs.validate(json.loads(SCHEMA.read_text()), told, validate_formats=True)
    assert (told["data"]["days"], told["data"]["kind"], told["data"]["address"]) == (7, "identity", str(ACME))


def register(deps: Deps, ear: HTTPServer) -> Webhook:
    """Ask for reminders alone."""
    with deps.store.read() as unit:
        instance = tenants.instance(unit, ACME)
    assert instance is not None
    url = f"http://127.0.0.1:{ear.server_port}/"
    return webhooks.register(deps, Caller(instance), url, [EventType.CERTIFICATE_EXPIRING.value])
