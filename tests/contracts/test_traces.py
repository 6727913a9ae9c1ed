"""What follows from a request carries its id: jobs, events, posts of webhooks, and the lines of the log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import structlog
from sqlalchemy import select

from pki.core.errors import UnavailableError
from pki.core.events import EventType
from pki.server import tracing
from pki.server.facts import Job
from pki.server.services import deposits, jobs, notices, webhooks
from pki.server.services.deps import Deps
from pki.server.store import events as event_store
from pki.server.store import outbox, tables
from tests.kit.facts import ACME
from tests.kit.site import Instance, Site

pytest_plugins = ["tests.kit.api_fixtures"]
STRANGER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Receiver:
    """A notifier that takes everything, and remembers the header fields."""

    def __init__(self) -> None:
        self.heard: list[Mapping[str, str]] = []

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Take one post."""
        self.heard.append(headers | {"type": json.loads(body)["type"]})
        return 204


def lines(caught: list[Any], event: str) -> list[Any]:
    """The log's lines of one kind."""
    return [line for line in caught if line["event"] == event]


def work(site: Site, queue: str, handler: jobs.Handler, kind: str) -> None:
    """Do what is due in a queue, as a worker does."""
    while jobs.run(site.deps, queue, {kind: handler}):
        pass


def validate(deps: Deps, batch: Any) -> Mapping[int, Exception | None]:
    """Validate what the jobs name."""
    deposits.validate(deps, [job.subject for job in batch])
    return {job.id: None for job in batch}


def test_a_deposit_carries_its_request_to_the_webhook(site: Site, acme: Instance, globex: Instance) -> None:
    """The X-Request-Id of a deposit is in its job, its events, the webhook's post and the worker's line."""
    hook = {"url": "https://203.0.113.1/", "types": ["keymailbox.deposit.available"]}
    assert globex.post("/v1/webhooks", hook).status_code == 201
    ids = {}
    for _ in range(2):
        deposit_id, body = acme.compose(globex)
        answer = acme.deposit(body, traceparent=STRANGER)
        ids[deposit_id] = answer.headers["x-request-id"]
    assert len(set(ids.values())) == 2 and STRANGER[3:35] not in ids.values()
    with structlog.testing.capture_logs() as caught:
        work(site, "validate", validate, "deposit")
    [line] = lines(caught, "worked")
    assert (line["jobs"], line["failed"], line["requests"]) == (2, 0, sorted(ids.values()))
    with site.deps.store.read() as unit:
        told = [(event, trace) for event, trace in event_store.traced(unit, 1000) if event.subject in ids]
    assert len(told) == 4
    assert all(tracing.request_id(trace) == ids[event.subject] for event, trace in told)
    notices.sequence_events(site.deps, None)
    receiver = Receiver()
    work(
        site,
        "notify",
        lambda deps, batch: {job.id: webhooks.deliver(deps, receiver, [job.subject]) for job in batch},
        "webhook",
    )
    assert sorted(tracing.request_id(heard["traceparent"]) for heard in receiver.heard) == sorted(ids.values())


@pytest.mark.parametrize("answer", [500, 410])
def test_what_fails_does_so_for_its_own_request(site: Site, acme: Instance, globex: Instance, answer: int) -> None:
    """One job tells a webhook several requests' events: the retry of each, and what is said of it, is its request's."""
    hook = {"url": "https://203.0.113.1/", "types": ["keymailbox.deposit.available"]}
    assert globex.post("/v1/webhooks", hook).status_code == 201
    ids = [acme.deposit(acme.compose(globex)[1]).headers["x-request-id"] for _ in range(2)]
    tracing._current.set(None)
    work(site, "validate", validate, "deposit")
    notices.sequence_events(site.deps, None)

    class First(Receiver):
        def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
            """Take the first only."""
            return super().post(url, headers, body) if not self.heard else answer

    def tell(deps: Deps, batch: Any) -> Mapping[int, Exception | None]:
        webhooks.deliver(deps, First(), [job.subject for job in batch])
        return {job.id: None for job in batch}

    def waiting() -> list[str]:
        with site.deps.store.read() as unit:
            found = unit.connection.execute(select(tables.jobs.c.trace).where(tables.jobs.c.queue == "notify"))
            return [tracing.request_id(trace) for trace in found.scalars()]

    assert waiting() == ids[:1]
    jobs.run(site.deps, "notify", {"webhook": tell})
    with site.deps.store.read() as unit:
        said = [trace for one, trace in event_store.traced(unit, 100) if one.type is EventType.WEBHOOK_DEAD]
    assert [*waiting(), *map(tracing.request_id, said)] == ids[1:]


@pytest.fixture
def anew(site: Site) -> Iterator[Site]:
    """A server, and a thread that serves no request."""
    assert tracing.current() is None
    yield site
    assert tracing.current() is None


def test_each_failure_is_a_line(anew: Site) -> None:
    """A job that fails is told at each attempt, with what it was about, the code and the request that it comes from."""
    site, trace = anew, tracing.begin("HTTP").trace
    with site.deps.store.unit() as unit, tracing.carrying({"b": trace}):
        tracing._current.set(None)
        outbox.add(unit, "report", "chain", ["a", "b"], now=site.deps.clock.now())

    def away(deps: Deps, batch: Any) -> Mapping[int, Exception | None]:
        return {job.id: UnavailableError("The moon is away", on=str(ACME)) for job in batch}

    with structlog.testing.capture_logs() as caught:
        jobs.run(site.deps, "report", {"chain": away})
    [first, second] = lines(caught, "failed")
    assert {first["subject"], second["subject"]} == {"a", "b"}
    assert (first["attempt"], first["kind"], first["log_level"]) == (1, "chain", "warning")
    assert first["error"].startswith("unavailable: The moon is away")
    assert {line.get("request_id") for line in (first, second)} == {None, trace[3:35]}


@pytest.mark.parametrize(
    "text",
    ["", "00", STRANGER.upper(), f"{STRANGER}-x", STRANGER.replace("00-", "ff-", 1), f"00-{'0' * 32}-{'1' * 16}-01"],
)
def test_only_a_traceparent_is_one(text: str) -> None:
    """What a client sends as traceparent is looked at before it is linked to."""
    assert tracing._sound(STRANGER)
    assert not tracing._sound(text)


def test_one_request_is_a_batchs_own() -> None:
    """A batch of one request works under its id, of several under none, but for what is written about each."""
    one, other = (f"00-{digit * 32}-{digit * 16}-00" for digit in "ab")
    with tracing.batch("x", {"p": one, "q": one, "r": None}):
        assert tracing.of("p") == tracing.of("anything") == one
    with tracing.batch("x", {"p": one, "q": other}):
        assert (tracing.of("p"), tracing.of("q"), tracing.of("anything")) == (one, other, None)
    assert tracing.of("p") is None


def test_a_job_of_before_has_no_trace(site: Site) -> None:
    """A row that an earlier release wrote is a job like any other."""
    with site.deps.store.unit() as unit:
        outbox.add(unit, "report", "chain", ["a"], now=site.deps.clock.now())
    seen: list[Job] = []

    def look(deps: Deps, batch: Any) -> Mapping[int, Exception | None]:
        seen.extend(batch)
        return {job.id: None for job in batch}

    jobs.run(site.deps, "report", {"chain": look})
    assert [job.trace for job in seen] == [None]
