"""RabbitMQ dies while its queues are being declared: some are left as a name that nobody can consume."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import kombu
import pytest

from pki.core.ids import DepositId
from pki.tenant.agent import Agent
from tests.kit.daemons import Daemon
from tests.kit.members import Members
from tests.kit.processes import Installation, wait_until
from tests.kit.services import Services, drop_database, new_database
from workers.app import QUEUES
from workers.consumer import remove_unread

_HEALED = 60.0
_TIMES = 3


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[Daemon]]]:
    """A RabbitMQ of our own, that may be killed: its URL, and the process that runs now."""
    with Services() as private:
        with monkeypatch.context() as patched:
            patched.setenv("KMB_TEST_PRIVATE_SERVICES", "1")
            service = private.rabbitmq
        running = list(service.daemons)
        try:
            yield service.url, running
        finally:
            running[0].stop()


def test_the_broker_dies_while_its_queues_are_declared(
    broker: tuple[str, list[Daemon]], services: Services, tmp_path: Path
) -> None:
    """Work goes on without a person: what cannot be consumed is deleted and declared once more."""
    url, running = broker
    database = new_database(services.postgres.url)
    try:
        with Installation(tmp_path / "server", database, url) as installed, Members(installed, tmp_path) as members:
            installed.start()
            acme, globex = members.enrol("acme/eu-west"), members.enrol("globex/main")
            names = [f"{installed.prefix}.{queue}" for queue in QUEUES]
            for number in range(_TIMES):
                _delete(url, names)
                wait_until(lambda: _consumed(url, names), _HEALED)
                running[0] = running[0].crash()
                key = acme.create_key(f"half-made-{number}")
                [sent] = acme.send_key(key, [globex.address], wait=0).delivered
                wait_until(partial(_available, acme, sent.deposit_id), _HEALED)
            codes = installed.stop()
            assert set(codes.values()) == {0}, codes
    finally:
        drop_database(database)


def test_only_what_nobody_consumes_is_removed(services: Services) -> None:
    """Another worker's queue stays, with what is in it; one that is not there is no trouble."""
    with kombu.Connection(services.rabbitmq.url) as connection, connection.channel() as channel:
        read, unread = (
            kombu.Queue(f"kmb-test-{name}", channel=channel, durable=True, queue_arguments={"x-queue-type": "quorum"})
            for name in ("read", "unread")
        )
        try:
            for queue in (read, unread):
                queue.declare()
            with kombu.Consumer(channel, [read]):
                remove_unread(connection, ["kmb-test-missing", read.name, unread.name])
                assert _consumed(services.rabbitmq.url, [read.name])
                assert not _consumed(services.rabbitmq.url, [unread.name])
        finally:
            read.delete()


def _available(sender: Agent, deposit: DepositId) -> bool:
    return sender.client.status(deposit, wait=5).state == "available"


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
