"""Webhooks are told what concerns their owner, signed, with patience, and with an end."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import jsonschema_rs
import pytest
import standardwebhooks

from pki.core.errors import ForbiddenError, KeymailboxError, NotFoundError, UnavailableError, UsageError
from pki.core.events import EventType
from pki.server.facts import Delivery, Webhook
from pki.server.services import jobs, notices, webhooks
from pki.server.store import events as event_store
from pki.server.store import outbox
from pki.server.store.engine import Store
from tests.kit.mail import ACME, GLOBEX, INITECH, Office
from tests.kit.threads import together

SCHEMAS = Path(__file__).parents[2] / "schemas" / "events"
URL = "https://hooks.acme.example/in?token=t0ken"


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Three certified instances."""
    return Office(store, database_url, tmp_path)


class Receiver:
    """A notifier that remembers what was posted and answers as it is told."""

    def __init__(self, answer: int | Exception = 204) -> None:
        self.answer = answer
        self.posts: list[tuple[str, Mapping[str, str], bytes]] = []
        self._lock = threading.Lock()

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Take a post."""
        with self._lock:
            self.posts.append((url, headers, body))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def work(office: Office, receiver: Receiver) -> int:
    """Number events and do what is due in the queue, as a worker does."""
    notices.sequence_events(office.deps, None)

    def handle(deps: object, batch: object) -> Mapping[int, Exception | None]:
        assert isinstance(batch, list)
        again = [job.subject for job in batch if job.error]
        webhooks.deliver(office.deps, receiver, [job.subject for job in batch], again=again)
        return {job.id: None for job in batch}

    return jobs.run(office.deps, webhooks.QUEUE, {webhooks.JOB: handle})


def deliveries(office: Office) -> list[Delivery]:
    """Return the deliveries of all jobs and dead jobs."""
    with office.store.read() as unit:
        ids = list(unit.connection.exec_driver_sql("SELECT id FROM deliveries").scalars())
        return event_store.deliveries_by_ids(unit, ids)


def dead(office: Office) -> list[str]:
    """Return the types of events that tell of a dead webhook, with their subjects."""
    found = notices.events(office.deps, office.caller(ACME), limit=500)
    return [item.event.subject for item in found if item.event.type is EventType.WEBHOOK_DEAD]


def test_a_post_is_a_signed_cloudevent(office: Office) -> None:
    """The receiver verifies it with the published library and the secret that it was told once."""
    hook = webhooks.register(office.deps, office.caller(ACME), URL)
    (found,) = office.send_available(GLOBEX, ACME)
    receiver = Receiver()
    assert work(office, receiver) == 1
    ((url, headers, body),) = receiver.posts
    assert url == URL
    checker = standardwebhooks.Webhook(hook.secret)
    expected = checker.sign(headers["webhook-id"], office.clock.now(), body.decode())
    assert headers["webhook-signature"] == expected
    assert headers["webhook-timestamp"] == str(int(office.clock.now().timestamp()))
    told = json.loads(body)
    assert (told["type"], told["subject"], told["id"]) == ("keymailbox.deposit.available", found, headers["webhook-id"])
    assert [(one.state, one.attempts) for one in deliveries(office)] == [("delivered", 1)]


def test_what_was_delivered_is_not_posted_again(office: Office) -> None:
    """A second delivery of the job does nothing."""
    webhooks.register(office.deps, office.caller(ACME), URL)
    office.send_available(GLOBEX, ACME)
    receiver = Receiver()
    work(office, receiver)
    ids = [one.id for one in deliveries(office)]
    webhooks.deliver(office.deps, receiver, [*ids, "ab" * 16])
    assert len(receiver.posts) == 1


def test_a_webhook_hears_its_owners_events_of_its_types(office: Office) -> None:
    """Neither others' events, nor types that it did not ask for."""
    caller = office.caller(GLOBEX)
    webhooks.register(office.deps, caller, "https://all.example/")
    webhooks.register(office.deps, caller, "https://one.example/", ["keymailbox.deposit.available"])
    webhooks.register(office.deps, office.caller(INITECH), "https://other.example/")
    office.send_available(GLOBEX, ACME)
    receiver = Receiver()
    work(office, receiver)
    assert sorted(url for url, _, _ in receiver.posts) == ["https://all.example/"] * 2 + ["https://one.example/"]


def test_a_receiver_that_is_away_is_tried_again(office: Office) -> None:
    """With the same id and a fresh signature, until it takes it."""
    webhooks.register(office.deps, office.caller(ACME), URL)
    office.send_available(GLOBEX, ACME)
    receiver = Receiver(500)
    for answer in (500, 302, UnavailableError("no answer"), RuntimeError("surprise"), 200):
        receiver.answer = answer
        work(office, receiver)
        office.clock.go_on(minutes=10)
    assert len(receiver.posts) == 5
    assert len({headers["webhook-id"] for _, headers, _ in receiver.posts}) == 1
    assert len({headers["webhook-signature"] for _, headers, _ in receiver.posts}) == 5
    assert [(one.state, one.attempts, one.last_error) for one in deliveries(office)] == [("delivered", 5, None)]
    assert not dead(office)


def test_ten_failures_end_in_a_dead_letter(office: Office) -> None:
    """Its owner reads so among the events and is not posted about it; a person can replay it."""
    hook = webhooks.register(office.deps, office.caller(ACME), URL)
    office.send_available(GLOBEX, ACME)
    receiver = Receiver(503)
    for _ in range(12):
        work(office, receiver)
        office.clock.go_on(hours=2)
    assert len(receiver.posts) == 10
    assert [(one.state, one.attempts) for one in deliveries(office)] == [("dead", 10)]
    assert dead(office) == [hook.id]
    last = notices.events(office.deps, office.caller(ACME), limit=500)[-1]
    schema = json.loads((SCHEMAS / f"{last.event.type.value}.schema.json").read_text())
    jsonschema_rs.validate(schema, notices.cloudevent(office.deps, last), validate_formats=True)
    with office.store.unit() as unit:
        assert outbox.replay(unit, [job.id for job in outbox.dead(unit)], office.clock.now()) == 1
    receiver.answer = 200
    work(office, receiver)
    assert [one.state for one in deliveries(office)] == ["delivered"]


def test_a_forbidden_target_is_given_up_at_once(office: Office) -> None:
    """The operator's network is not knocked at ten times."""
    webhooks.register(office.deps, office.caller(ACME), URL)
    office.send_available(GLOBEX, ACME)
    receiver = Receiver(ForbiddenError("not on the public internet"))
    for _ in range(3):
        work(office, receiver)
        office.clock.go_on(hours=2)
    assert len(receiver.posts) == len(dead(office)) == 1
    with office.store.read() as unit:
        assert len(outbox.dead(unit, webhooks.QUEUE)) == 1


def test_a_receiver_that_is_gone_is_told_no_more(office: Office) -> None:
    """Status 410 disables the webhook (Standard Webhooks), and leaves no dead letter."""
    webhooks.register(office.deps, office.caller(ACME), URL)
    office.send_available(GLOBEX, ACME)
    receiver = Receiver(410)
    work(office, receiver)
    office.send_available(GLOBEX, ACME)
    work(office, receiver)
    (hook,) = webhooks.listed(office.deps, office.caller(ACME))
    assert hook.disabled_at is not None
    assert len(receiver.posts) == 1
    with office.store.read() as unit:
        assert not outbox.dead(unit)


def test_one_bad_receiver_does_not_harm_the_others(office: Office) -> None:
    """Each delivery of a batch has its own outcome."""
    for name in ("good", "bad"):
        webhooks.register(office.deps, office.caller(ACME), f"https://{name}.example/")
    office.send_available(GLOBEX, ACME, 5)

    class Half(Receiver):
        def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
            super().post(url, headers, body)
            return 200 if "good" in url else 500

    work(office, Half())
    assert sorted(one.state for one in deliveries(office)) == ["delivered"] * 5 + ["pending"] * 5


def test_a_removed_webhook_hears_nothing_more(office: Office) -> None:
    """What was under way to it is done with, even while it is being posted."""
    caller = office.caller(ACME)
    hook = webhooks.register(office.deps, caller, URL)
    office.send_available(GLOBEX, ACME, 2)

    class Meanwhile(Receiver):
        def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
            super().post(url, headers, body)
            if webhooks.listed(office.deps, caller):
                with suppress(NotFoundError):
                    webhooks.remove(office.deps, caller, hook.id)
            return 500

    assert work(office, Meanwhile()) == 1
    assert webhooks.listed(office.deps, caller) == []
    office.clock.go_on(hours=1)
    office.send_available(GLOBEX, ACME)
    receiver = Receiver()
    assert work(office, receiver) == 0
    assert not receiver.posts


def test_a_webhook_is_its_owners(office: Office) -> None:
    """Another neither lists nor removes it; a repr shows no secret."""
    hook = webhooks.register(office.deps, office.caller(ACME), URL, [EventType.DEPOSIT_AVAILABLE.value] * 2)
    assert hook.types == ("keymailbox.deposit.available",)
    assert hook.secret.startswith("whsec_")
    assert hook.secret not in repr(hook)
    assert webhooks.listed(office.deps, office.caller(GLOBEX)) == []
    for party, wanted in ((GLOBEX, hook.id), (ACME, "ab" * 16), (ACME, "x\x00")):
        with pytest.raises(NotFoundError):
            webhooks.remove(office.deps, office.caller(party), wanted)
    assert webhooks.listed(office.deps, office.caller(ACME)) == [hook]
    webhooks.remove(office.deps, office.caller(ACME), hook.id)
    assert webhooks.listed(office.deps, office.caller(ACME)) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/",
        "ftp://hooks.example/",
        "file:///etc/passwd",
        "https://",
        "https:///path",
        "https://user:secret@hooks.example/",
        "https://hooks.example/#here",
        "https://hooks.example:99999/",
        "https://hooks example/",
        "https://hööks.example/",
        "https://[::1/",
        "//hooks.example/",
        "https://hooks.example/" + "a" * 2000,
        "",
    ],
)
def test_a_url_has_a_form(office: Office, url: str) -> None:
    """What could lead elsewhere, or hold a password, is refused before it is stored."""
    with pytest.raises(UsageError):
        webhooks.register(office.deps, office.caller(ACME), url)
    assert webhooks.listed(office.deps, office.caller(ACME)) == []


def test_types_are_known_ones(office: Office) -> None:
    """A type that never comes, and none at all, are mistakes."""
    for types in (["keymailbox.deposit.avaliable"], []):
        with pytest.raises(UsageError):
            webhooks.register(office.deps, office.caller(ACME), URL, types)


def test_an_address_has_ten_webhooks_at_most(office: Office) -> None:
    """The eleventh is refused, another address's first is not."""
    made: list[Webhook | KeymailboxError] = []
    for _ in range(10):
        made.append(webhooks.register(office.deps, office.caller(ACME), URL))
    with pytest.raises(UsageError, match="at most 10"):
        webhooks.register(office.deps, office.caller(ACME), URL)
    webhooks.register(office.deps, office.caller(GLOBEX), URL)


def test_thirty_at_once_are_ten_as_well(office: Office) -> None:
    """Those that come together do not all count before the first is there."""

    def register(_: int) -> Webhook | KeymailboxError:
        try:
            return webhooks.register(office.deps, office.caller(ACME), URL)
        except UsageError as error:
            return error

    made = together(30, register)
    assert sum(isinstance(one, Webhook) for one in made) == 10
    assert len(webhooks.listed(office.deps, office.caller(ACME))) == 10
