"""RabbitMQ dies while its queues are declared: some are left as a name without a queue, or a queue without a leader."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import kombu
import pytest

from pki.core.ids import DepositId
from pki.server.settings import load_settings
from pki.tenant.agent import Agent
from tests.kit.brokers import OwnBroker, own_broker, served_by
from tests.kit.daemons import free_port
from tests.kit.processes import Installation, wait_until
from tests.kit.services import Services
from workers import broken
from workers.app import QUEUES, make_app
from workers.broken import Watch, remove_broken

_HEALED = 180.0
_TIMES = 3


@pytest.fixture
def broker() -> Iterator[OwnBroker]:
    """A RabbitMQ of our own."""
    with own_broker("rabbitmq") as own:
        yield own


@pytest.fixture
def site(broker: OwnBroker, services: Services, tmp_path: Path) -> Iterator[tuple[Installation, Agent, Agent]]:
    """A server on that RabbitMQ, a sender and a recipient; all processes still have to stop in order."""
    with served_by(broker, services, tmp_path) as served:
        yield served


def test_the_broker_dies_while_its_queues_are_declared(
    broker: OwnBroker, site: tuple[Installation, Agent, Agent]
) -> None:
    """Work goes on without a person: what cannot be consumed is deleted and declared once more."""
    installed, acme, globex = site
    names = [f"{installed.prefix}.{queue}" for queue in QUEUES]
    for number in range(_TIMES):
        # Nobody deletes what another one has not made anew yet.
        wait_until(lambda: _consumed(broker.url, names), _HEALED)
        _delete(broker.url, names)
        wait_until(lambda: _consumed(broker.url, names), _HEALED)
        broker.crash()
        key = acme.create_key(f"half-made-{number}")
        [sent] = acme.send_key(key, [globex.address], wait=0).delivered
        wait_until(partial(_available, acme, sent.deposit_id), _HEALED)


def test_a_queue_that_answers_nothing_is_made_anew(broker: OwnBroker, site: tuple[Installation, Agent, Agent]) -> None:
    """As one that has no leader: nothing is confirmed, nothing comes out, and nobody is told that anything is wrong."""
    installed, acme, globex = site
    installed.stop("validator")
    broker.stall(f"{installed.prefix}.validate")
    with ThreadPoolExecutor(1) as threads:
        # It is ready when it listens.
        listening = threads.submit(installed.start, "validator")
        [sent] = acme.send_key(acme.create_key("stalled"), [globex.address], wait=0).delivered
        wait_until(partial(_available, acme, sent.deposit_id), _HEALED)
        listening.result()
    assert _said(installed, "relay", b'"queue_deleted"')


def test_a_queue_that_is_gone_without_a_word_is_read_again(
    broker: OwnBroker, site: tuple[Installation, Agent, Agent]
) -> None:
    """The consumer is not told; its worker finds out by itself, and declares the queue as soon as that is possible."""
    installed, acme, globex = site
    name = f"{installed.prefix}.validate"
    broker.forget(name)
    wait_until(lambda: _said(installed, "validator", b'"unread"'), _HEALED)
    broker.clear(name)
    [sent] = acme.send_key(acme.create_key("forgotten"), [globex.address], wait=0).delivered
    wait_until(partial(_available, acme, sent.deposit_id), _HEALED)
    assert _consumed(broker.url, [name])


def test_what_nobody_reads_is_seen(services: Services) -> None:
    """A queue that is not there, one that nobody reads, and one that is read; a broker that is away says nothing."""
    url = services.rabbitmq.url
    with kombu.Connection(url) as connection, connection.channel() as channel:
        read, unread = (
            kombu.Queue(f"kmb-test-{secrets.token_hex(4)}", channel=channel, auto_delete=True, durable=False)
            for _ in range(2)
        )
        for queue in (read, unread):
            queue.declare()
        with kombu.Consumer(channel, [read]):
            watch = Watch(partial(kombu.Connection, url), ["kmb-test-missing", read.name, unread.name])
            away = Watch(partial(kombu.Connection, f"amqp://127.0.0.1:{free_port()}"), [unread.name])
            for one in (watch, away):
                one.start()
            wait_until(lambda: watch.lost, _HEALED)
            assert watch.lost == {"kmb-test-missing", unread.name}
            assert away.lost == frozenset()
            for one in (watch, away):
                one.stop()
        unread.delete()


def test_a_worker_stops_although_its_queue_answers_nothing(
    broker: OwnBroker, site: tuple[Installation, Agent, Agent]
) -> None:
    """It is in the middle of its work, or does not get so far as to begin; nobody mends the queue meanwhile."""
    installed, _, _ = site
    installed.stop("relay")
    broker.stall(f"{installed.prefix}.issue")
    assert installed.stop("issuer") == {"issuer": 0}

    with ThreadPoolExecutor(1) as threads:
        starting = threads.submit(installed.start, "issuer")
        # It consumes the queue by then, and asks for something else in vain.
        wait_until(lambda: _said(installed, "issuer", b"Global QoS"), _HEALED)
        one = installed.running["issuer"]
        one.ask_to_stop()
        assert one.stopped() == 0
        assert not _said(installed, "issuer", b" ready.")
        with pytest.raises(AssertionError, match="issuer ended with 0"):
            starting.result()
    del installed.running["issuer"]


@pytest.mark.filterwarnings("ignore:You're running the worker with superuser privileges")
def test_a_queue_that_is_gone_ends_no_worker(services: Services) -> None:
    """It may be deleted between its declaration and its consumption; what is declared otherwise ends the worker."""
    url = services.rabbitmq.url
    app = make_app(load_settings(broker_url=url))
    # Else Celery lets no error of a channel come so far.
    assert app.conf.broker_channel_error_retry
    worker = app.Worker(pool="solo", without_mingle=True, without_gossip=True, without_heartbeat=True).consumer
    with kombu.Connection(url) as connection:
        queue = kombu.Queue("kmb-test-gone", channel=connection.default_channel, exclusive=True)
        with pytest.raises(connection.channel_errors, match="NOT_FOUND") as gone:
            queue.consume("", lambda _body, _message: None)
    with kombu.Connection(url) as connection:
        kombu.Queue("kmb-test-gone", channel=connection.default_channel, exclusive=True).queue_declare()
        other = kombu.Queue("kmb-test-gone", channel=connection.channel(), exclusive=True, max_length=5)
        with pytest.raises(connection.channel_errors, match="PRECONDITION") as otherwise:
            other.queue_declare()
    worker.connection = app.connection_for_read()
    worker.on_connection_error_after_connected(gone.value)
    with pytest.raises(connection.channel_errors, match="PRECONDITION"):
        worker.on_connection_error_after_connected(otherwise.value)


def test_only_what_nobody_can_consume_is_removed(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound queue stays, with what is in it, consumed or not; one that is not there is no trouble."""
    # A broker that has much to do is none that says nothing.
    monkeypatch.setattr(broken, "_ANSWER_SECONDS", 60.0)
    url = services.rabbitmq.url
    with kombu.Connection(url) as connection, connection.channel() as channel:
        read, unread = (
            kombu.Queue(f"kmb-test-{name}", channel=channel, durable=True, queue_arguments={"x-queue-type": "quorum"})
            for name in ("read", "unread")
        )
        try:
            for queue in (read, unread):
                queue.declare()
            kombu.Producer(channel).publish("a wake-up", routing_key=unread.name)
            with kombu.Consumer(channel, [read]):
                remove_broken(partial(kombu.Connection, url), ["kmb-test-missing", read.name, unread.name])
                assert _consumed(url, [read.name])
            wait_until(unread.get)
        finally:
            for queue in (read, unread):
                queue.delete()


def _available(sender: Agent, deposit: DepositId) -> bool:
    return sender.client.status(deposit, wait=5).state == "available"


def _said(installed: Installation, name: str, what: bytes) -> bool:
    return name in installed.running and what in installed.running[name].log.read_bytes()


def _delete(url: str, names: list[str]) -> None:
    with kombu.Connection(url) as connection, connection.channel() as channel:
        for name in names:
            kombu.Queue(name, channel=channel).delete()


def _consumed(url: str, names: list[str]) -> bool:
    """Tell whether each of the queues is there and somebody reads it."""
    with kombu.Connection(url) as connection:
        for name in names:
            try:
                with connection.channel() as channel:
                    if kombu.Queue(name, channel=channel).queue_declare(passive=True).consumer_count == 0:
                        return False
            except connection.channel_errors:
                return False
    return True
