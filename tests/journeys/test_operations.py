"""Who operates it sees what every process does, in figures, spans and lines of logs; and no secret in any."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.kit import canary
from tests.kit.collector import Collector, Seen, collecting
from tests.kit.daemons import LOOPBACK
from tests.kit.members import Members, signed_call
from tests.kit.processes import Installation, wait_until
from tests.kit.services import Services, drop_database, new_database

SECRET_PATH = "/a-token-of-the-receivers-own"
SECONDS = 30.0


@dataclass
class Watched:
    """An installation whose spans are collected, and two tenants."""

    installation: Installation
    collector: Collector
    members: Members

    def __post_init__(self) -> None:
        self.acme = self.members.enrol("acme/eu-west")
        self.globex = self.members.enrol("globex/main")

    def lines(self) -> list[dict[str, Any]]:
        """All lines that the processes have logged, each with the process that did."""
        return [
            json.loads(line) | {"process": log.name.partition("-")[0]}
            for log in sorted(self.installation.logs.iterdir())
            for line in log.read_text().splitlines()
            if line.startswith("{")
        ]

    def figure(self, name: str, sample: str, **labels: str) -> float | None:
        """One figure of a process."""
        text = self.installation.told(name).text
        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        return next((one.value for one in samples if one.name == sample and one.labels.items() >= labels.items()), None)


@pytest.fixture(scope="module")
def watched(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """All processes on RabbitMQ, with a collector."""
    database = new_database(services.postgres.url)
    room = tmp_path_factory.mktemp("watched")
    try:
        with collecting() as collector:
            with Installation(room / "server", database, services.rabbitmq.url) as installed:
                installed.variables["KMB_OTLP_ENDPOINT"] = collector.url
                installed.start()
                with Members(installed, room / "tenants") as members:
                    yield Watched(installed, collector, members)
    finally:
        drop_database(database)


@pytest.fixture(scope="module")
def told(watched: Watched) -> dict[str, str]:
    """Send one key with a webhook at its recipient; return deposit, request id and the post's traceparent."""
    with sink() as (url, heard):
        wanted = {"url": url, "types": ["keymailbox.deposit.available"]}
        hook = signed_call(watched.globex, "POST", "/v1/webhooks", json.dumps(wanted).encode()).json()
        [delivery] = watched.acme.send_key(watched.acme.create_key("watched"), [watched.globex.address]).delivered
        wait_until(lambda: heard, SECONDS)
    [(trace,)] = watched.installation.sql(
        "SELECT trace FROM events WHERE subject = %s AND type = 'keymailbox.deposit.received'", delivery.deposit_id
    )
    return {
        "deposit": delivery.deposit_id,
        "request": trace[3:35],
        "posted": heard[0]["traceparent"],
        "hook": hook["id"],
        "secret": hook["secret"],
    }


def test_every_process_tells_its_figures(watched: Watched, told: dict[str, str]) -> None:
    """Each lives and is of use; the API counts requests, children of a worker their jobs, the relay what is due."""
    for name in watched.installation.running:
        assert watched.installation.told(name, "/livez").json() == {"status": "ok"}
        wait_until(lambda name=name: watched.installation.told(name, "/readyz").status_code == 200, SECONDS)
    accepted = watched.figure("api", "keymailbox_http_requests_total", route="/v1/deposits", status="202")
    assert accepted and accepted >= 1
    done = {"queue": "validate", "kind": "deposit", "outcome": "done"}
    wait_until(lambda: watched.figure("validator", "keymailbox_jobs_total", **done), SECONDS)
    # Counted once what came of the post is committed.
    wait_until(lambda: watched.figure("worker", "keymailbox_webhook_posts_total", outcome="delivered"), SECONDS)
    assert watched.figure("worker", "keymailbox_webhook_posts_total", outcome="delivered") == 1
    assert watched.figure("validator", "keymailbox_deposit_accepted_to_available_seconds_count") == 1
    assert (watched.figure("issuer", "keymailbox_certificates_total", kind="encryption") or 0) >= 2
    assert (watched.figure("sequencer", "keymailbox_events_sequenced_total") or 0) > 5
    assert watched.figure("relay", "keymailbox_queue_oldest_due_seconds", queue="validate") is not None
    assert watched.figure("relay", "keymailbox_broker_up") == 1
    # Only who knows says so.
    assert watched.figure("worker", "keymailbox_broker_up") is None
    assert watched.figure("worker", "keymailbox_queue_oldest_due_seconds") is None


def test_one_trace_from_the_request_to_the_webhook(watched: Watched, told: dict[str, str]) -> None:
    """HTTP, validation, numbering and the post hang together under the request's id, over four processes."""

    def of_the_request(name: str) -> Seen | None:
        spans = watched.collector.named(name)
        return next(
            (span for span in spans if told["request"] in (span.trace_id, *(one for one, _ in span.links))), None
        )

    names = ("POST /v1/deposits", "validate deposit", "events number", "notify webhook", "webhook post")
    spans = {name: wait_until(lambda name=name: of_the_request(name), SECONDS) for name in names}
    assert [spans[name].service.removeprefix("keymailbox-") for name in names] == [
        "api",
        "validator",
        "sequencer",
        "worker",
        "worker",
    ]
    http, post = spans[names[0]], spans["webhook post"]
    assert http.parent == "" and http.attributes["http.response.status_code"] == 202
    assert spans["validate deposit"].parent == http.span_id
    assert spans["notify webhook"].trace_id == post.trace_id == told["request"]
    # The event's own step is what its post follows from; the worker may have been woken for another.
    assert post.parent == spans["validate deposit"].span_id
    assert told["posted"] == f"00-{post.trace_id}-{post.span_id}-01"
    services = {span.service for span in watched.collector.spans}
    names = ("api", "validator", "worker", "issuer", "sequencer")
    assert {f"keymailbox-{name}" for name in names} <= services


def test_one_request_through_all_logs(watched: Watched, told: dict[str, str]) -> None:
    """The id of X-Request-Id finds the API's line and the workers': what was done for it, and where."""

    def found() -> dict[str, set[str]]:
        lines = [
            line for line in watched.lines() if told["request"] in (line.get("request_id"), *line.get("requests", ()))
        ]
        return {
            process: {str(line["event"]) for line in lines if line["process"] == process}
            for process in {line["process"] for line in lines}
        }

    wait_until(lambda: {"api", "validator", "worker"} <= found().keys(), SECONDS)
    assert found() == {"api": {"request"}, "validator": {"worked"}, "worker": {"worked"}}
    worked = {
        (line["queue"], line["kind"])
        for line in watched.lines()
        if line["event"] == "worked" and about(line, told["request"])
    }
    assert worked == {("validate", "deposit"), ("notify", "webhook")}
    for line in watched.lines():
        assert {"event", "level", "timestamp", "logger"} <= line.keys(), line


def test_nothing_secret_is_told(watched: Watched, told: dict[str, str]) -> None:
    """No key, no webhook's URL or secret, no address and no text of an error is in spans, figures or logs."""
    wait_until(lambda: watched.collector.named("webhook post"), SECONDS)
    spans = b"\n".join(watched.collector.raw)
    figures = "\n".join(watched.installation.told(name).text for name in watched.installation.running).encode()
    logs = watched.installation.logged()
    secrets = canary.secrets_of(watched.acme) | canary.secrets_of(watched.globex)
    secrets |= {"passphrase": watched.installation.passphrase.read_bytes(), "hook": told["secret"].encode()}
    places = {"spans": spans, "figures": figures, "logs": logs}
    assert not canary.search(places, secrets)
    for name, content in places.items():
        assert SECRET_PATH.encode() not in content, name
    for name in ("spans", "figures"):
        for address in (b"eu-west", b"globex/main", b"acme"):
            assert address not in places[name], (name, address)
    assert all(span.events == 0 for span in watched.collector.spans)


def about(line: dict[str, Any], request: str) -> bool:
    """Whether a line is about a request: alone, or among those of a batch."""
    return request in (line.get("request_id"), *line.get("requests", ()))


@contextmanager
def sink() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A receiver of webhooks that keeps the header fields."""
    heard: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            heard.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{LOOPBACK}:{server.server_address[1]}{SECRET_PATH}", heard
    finally:
        server.shutdown()
        server.server_close()
