"""The Celery application's settings, on each broker."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from kombu import Connection

from pki.core.errors import SettingsError, UnavailableError, UsageError
from pki.server.settings import load_settings
from tests.kit.daemons import free_port
from workers.app import QUEUES, TASK, make_app
from workers.consumer import asking_often
from workers.worker import KEYLESS, parse_queues, run


@pytest.mark.parametrize("url", ["amqp://guest@127.0.0.1//", "redis://127.0.0.1/0", "memory://"])
def test_nothing_that_is_acknowledged_is_lost(tmp_path: Path, url: str) -> None:
    """Late acknowledgements, one message at a time, JSON only, no results, no remote control."""
    conf = make_app(load_settings(home=tmp_path, broker_url=url)).conf
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert conf.worker_prefetch_multiplier == 1
    assert conf.broker_connection_max_retries is None
    assert conf.accept_content == ["json"]
    assert conf.task_ignore_result
    assert not conf.worker_enable_remote_control
    assert conf.worker_pool_start_method == "spawn"
    assert [queue.name for queue in conf.task_queues] == [f"keymailbox.{name}" for name in QUEUES]


def test_rabbitmq_queues_are_replicated_and_lose_nothing_quietly(tmp_path: Path) -> None:
    """Quorum queues, each with a dead-letter exchange; publishes are confirmed."""
    settings = load_settings(home=tmp_path, broker_url="amqp://127.0.0.1//", queue_prefix="kmb-test")
    conf = make_app(settings).conf
    for queue in conf.task_queues:
        assert queue.name.startswith("kmb-test.")
        assert queue.queue_arguments["x-queue-type"] == "quorum"
        assert queue.queue_arguments["x-dead-letter-exchange"] == "kmb-test.dead"
    assert conf.broker_transport_options["confirm_publish"]


def test_another_process_gets_the_same_application(tmp_path: Path) -> None:
    """A spawned child rebuilds it; what it works with, it has to open itself."""
    app = make_app(load_settings(home=tmp_path, broker_url="redis://127.0.0.1/0"))
    copy = pickle.loads(pickle.dumps(app))
    assert copy.conf.task_acks_late
    copy.loader.import_default_modules()
    assert TASK in copy.tasks
    with pytest.raises(UnavailableError):
        copy.tasks[TASK]("validate")


def test_an_unknown_broker_is_refused(tmp_path: Path) -> None:
    """What was not tried is not supported; the URL, which may hold a password, is not repeated."""
    with pytest.raises(SettingsError) as refused:
        make_app(load_settings(home=tmp_path, broker_url="sqs://key:secret@"))
    assert "secret" not in f"{refused.value} {refused.value.on} {refused.value.hint}"


@pytest.mark.parametrize("text", ["", ",", "valdate", "issue,nothing"])
def test_unknown_queues_are_refused(text: str) -> None:
    """With the command as it should be."""
    with pytest.raises(UsageError) as refused:
        parse_queues(text)
    assert refused.value.hint.startswith("kmb-server worker --queues ")


def test_queues_are_read_in_order_and_once() -> None:
    """Blanks and repetitions do not matter."""
    assert parse_queues(" notify, validate,notify ") == ("notify", "validate")
    assert parse_queues(",".join(KEYLESS)) == KEYLESS


def test_a_worker_of_its_own_needs_a_broker(tmp_path: Path) -> None:
    """On memory:// nobody would wake it."""
    with pytest.raises(UsageError):
        run(load_settings(home=tmp_path), ("validate",), 1)


def test_a_broker_that_is_away_is_asked_for_every_second() -> None:
    """However long it is away: a worker is at work again soon after it is back."""
    pauses: list[float] = []

    def failed(error: Exception, pause: float) -> None:
        pauses.append(pause)
        if len(pauses) == 4:
            raise LookupError

    with Connection(f"amqp://guest@127.0.0.1:{free_port()}//") as connection, pytest.raises(LookupError):
        asking_often(connection).ensure_connection(failed, None)
    assert pauses == [1.0] * 4
