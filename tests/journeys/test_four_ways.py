"""Page, long poll, stream and webhook tell one recipient the same events in the same order, without a gap."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pki.core.errors import KeymailboxError
from pki.server.adapters.notifiers.webhook import WebhookNotifier
from pki.server.services import jobs, notices, webhooks
from pki.tenant.agent import Agent
from tests.kit.desk import Desk
from tests.kit.ears import Ears, once
from tests.kit.members import Members, signed_call
from tests.kit.processes import Installation, wait_until
from tests.kit.services import Services, drop_database, new_database
from tests.kit.site import Homes, Site

pytest_plugins = ["tests.kit.api_fixtures"]

AVAILABLE = "keymailbox.deposit.available"
_HEALED = 120.0


def send(sender: Agent, to: Sequence[Agent], count: int) -> None:
    """Send keys to each, however often something is away."""
    for number in range(count):
        name = sender.create_key(f"{sender.address.tenant}-{number}")
        sender.send_key(name, [one.address for one in to], wait=0)
    while any(one.state in ("planned", "prepared") for one in sender.sent()):
        try:
            sender.resume()
        except KeymailboxError:
            continue


def listening(agent: Agent) -> Ears:
    """Return the ears of an agent, with its webhook."""
    ears = Ears(agent)
    made = signed_call(agent, "POST", "/v1/webhooks", json.dumps({"url": ears.hook, "types": [AVAILABLE]}).encode())
    assert made.status_code == 201, made.text
    return ears


def play(senders: Sequence[Agent], recipients: Sequence[Agent], count: int, meanwhile: Callable[[], None]) -> None:
    """Let everybody send at once, and compare what each recipient hears in each way."""
    with ExitStack() as open_:
        ears = [open_.enter_context(listening(one)) for one in recipients]
        threads = [threading.Thread(target=send, args=(one, recipients, count)) for one in senders]
        for thread in threads:
            thread.start()
        meanwhile()
        for thread in threads:
            thread.join(_HEALED)
            assert not thread.is_alive()
        wanted = len(senders) * count
        for one, agent in zip(ears, recipients, strict=True):
            wait_until(lambda a=agent: len([v for v in a.mailbox() if v.sequence]) == wanted, _HEALED)  # type: ignore[misc]

            def told(heard: list[tuple[int, str, str]]) -> list[str]:
                return [subject for _, kind, subject in heard if kind == AVAILABLE]

            wait_until(lambda o=one: len(told(o.page())) == wanted, _HEALED)  # type: ignore[misc]
            page = one.page()
            wait_until(lambda o=one, p=page: len(o.streamed) >= len(p) and len(o.polled) >= len(p), _HEALED)  # type: ignore[misc]
            wait_until(lambda o=one: len(told(once(o.posted))) >= wanted, _HEALED)  # type: ignore[misc]
            assert one.streamed[: len(page)] == page
            assert one.polled[: len(page)] == page
            positions = [position for position, _, _ in page]
            assert positions == sorted(set(positions))
            available = [item for item in page if item[1] == AVAILABLE]
            assert once(one.posted) == available
            mailbox = agent.mailbox()
            assert [view.sequence for view in mailbox] == list(range(1, wanted + 1))
            assert [view.id for view in mailbox] == [subject for _, _, subject in available]


@pytest.fixture
def production(services: Services, tmp_path: Path) -> Iterator[Installation]:
    """All processes on PostgreSQL and RabbitMQ, two validators among them, of this test's own."""
    database = new_database(services.postgres.url)
    try:
        with Installation(tmp_path / "four", database, services.rabbitmq.url) as installed:
            installed.start("api", "relay", "validator", "validator-2", "worker", "issuer", "sequencer", "beat")
            yield installed
    finally:
        drop_database(database)


def test_four_ways_while_the_api_restarts_and_the_sequencer_is_killed(production: Installation, tmp_path: Path) -> None:
    """Three senders, two recipients; the sequencer dies by kill -9 and the API begins anew in the middle."""
    with Members(production, tmp_path / "homes") as members:
        senders = [members.enrol(f"s{number}/kms") for number in range(3)]
        recipients = [members.enrol(f"r{number}/kms") for number in range(2)]

        def meanwhile() -> None:
            wait_until(lambda: production.sql("SELECT 1 FROM events WHERE type = %s", AVAILABLE), _HEALED)
            production.kill("sequencer")
            production.stop("api")
            production.start("api")
            production.start("sequencer")

        play(senders, recipients, 12, meanwhile)


def test_four_ways_on_one_machine(homes: Homes, tmp_path: Path) -> None:
    """The same on SQLite, with everything in one process."""
    with Site(homes.new(), "", log_level="error", webhook_allow_private=True) as site, Desk(site, tmp_path) as desk:
        senders = [desk.enrol(f"s{number}/kms") for number in range(2)]
        recipients = [desk.enrol("r0/kms"), desk.enrol("r1/kms")]
        with sequenced(site):
            play(senders, recipients, 8, lambda: None)


@contextmanager
def sequenced(site: Site) -> Iterator[None]:
    """Number events and tell webhooks by threads of their own."""
    stop = threading.Event()
    notifier = WebhookNotifier(allow_private=True)

    def number() -> None:
        while not stop.wait(0.01):
            notices.sequence_events(site.deps, None)

    def tell() -> None:
        def handle(deps: object, batch: object) -> dict[int, None]:
            assert isinstance(batch, list)
            webhooks.deliver(site.deps, notifier, [job.subject for job in batch])
            return {job.id: None for job in batch}

        while not stop.wait(0.01):
            jobs.run(site.deps, webhooks.QUEUE, {webhooks.JOB: handle})

    threads = [threading.Thread(target=one) for one in (number, tell, tell)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
