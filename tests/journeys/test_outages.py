"""What was accepted is never lost: processes die, broker and database go away, and the work goes on by itself."""

from __future__ import annotations

import contextlib
import json
import threading
import time

import httpx2
import kombu
import psycopg
import pytest
import redis

from pki.core.ids import DepositId
from tests.kit.daemons import NOBODY
from tests.kit.members import Pair, signed_call
from tests.kit.processes import ROLES, Installation, answers, taken_away, wait_until
from tests.kit.sink import sink
from workers.app import QUEUES

_HEALED = 40.0


def test_a_worker_is_killed_in_the_middle(pair: Pair) -> None:
    """Kill -9 between claim and commit: another worker validates the deposit, once."""
    installation = pair.installation
    with psycopg.connect(installation.libpq_url) as holding:
        # Holds what the worker needs last, so that it waits there with its jobs claimed.
        holding.execute("LOCK TABLE mailboxes IN EXCLUSIVE MODE")
        deposit = _send(pair, "killed")
        wait_until(lambda: installation.sql(_STUCK), _HEALED)
        installation.kill("validator")
    assert _state(pair, deposit) == "received"

    installation.start("validator")

    _becomes_available(pair, deposit)
    # The job is struck off just after its effect: a worker killed between them does it again, and changes nothing.
    wait_until(lambda: not installation.sql("SELECT 1 FROM jobs WHERE subject = %s", deposit), _HEALED)
    told = installation.sql(
        "SELECT 1 FROM events WHERE subject = %s AND type = 'keymailbox.deposit.available'", deposit
    )
    assert len(told) == 1
    numbers = [view.sequence for view in pair.globex.mailbox()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_relay_is_killed(pair: Pair) -> None:
    """Deposits that arrive while nobody relays are found when somebody does again."""
    pair.installation.kill("relay")
    deposit = _send(pair, "unheard")
    pair.installation.start("relay")
    _becomes_available(pair, deposit)


def test_the_broker_is_emptied(pair: Pair) -> None:
    """Wake-ups that the broker lost cost nothing: a worker that begins looks by itself."""
    pair.installation.stop("validator")
    deposit = _send(pair, "forgotten")
    wait_until(lambda: pair.installation.sql("SELECT 1 FROM jobs WHERE subject = %s AND wakes > 0", deposit), _HEALED)
    _empty(pair.installation)
    # Nor does the relay wake anybody for now: it has done so for long, and nobody came.
    pair.installation.sql("UPDATE jobs SET wake_at = now() + interval '1 hour'")
    pair.installation.start("validator")
    _becomes_available(pair, deposit)


def test_the_broker_is_away(pair: Pair) -> None:
    """Deposits are accepted without a broker, and validated when it is back."""
    with taken_away(pair.installation.broker):
        deposits = [_send(pair, f"silent-{number}") for number in range(3)]
        wait_until(lambda: '"what": "broker"' in pair.installation.running["relay"].tail(), _HEALED)
        assert {_state(pair, deposit) for deposit in deposits} == {"received"}
        assert answers(f"{pair.installation.url}/readyz")
    for deposit in deposits:
        _becomes_available(pair, deposit)


def test_the_broker_goes_away_under_a_working_worker(pair: Pair) -> None:
    """A worker that cannot acknowledge is not deaf for ever after."""
    installation = pair.installation
    with psycopg.connect(installation.libpq_url) as holding:
        holding.execute("LOCK TABLE mailboxes IN EXCLUSIVE MODE")
        first = _send(pair, "unacknowledged")
        wait_until(lambda: installation.sql(_STUCK), _HEALED)
        with taken_away(installation.broker):
            holding.rollback()
            # By now its worker is done and cannot say so.
            time.sleep(1)
    # Celery stops such a task on RabbitMQ, if it was quick enough: then the claim has to end first.
    _becomes_available(pair, first)
    _becomes_available(pair, _send(pair, "heard-again"))


def test_validation_does_not_wait_for_a_webhook(pair: Pair) -> None:
    """While a receiver keeps a post waiting, a deposit becomes available: before any post has ended."""
    answering = threading.Event()
    with sink(answering) as receiver:
        wanted = json.dumps({"url": receiver.url, "types": ["keymailbox.deposit.available"]}).encode()
        hook = signed_call(pair.globex, "POST", "/v1/webhooks", wanted).json()["id"]
        try:
            for attempt in range(5):
                before, heard = _posts(pair), len(receiver.heard)
                _becomes_available(pair, _send(pair, f"told-slowly-{attempt}"))
                wait_until(lambda: len(receiver.heard) > heard, _HEALED)  # noqa: B023  at once
                _becomes_available(pair, _send(pair, f"not-held-up-{attempt}"))
                if _posts(pair) == before:
                    break
            else:
                pytest.fail("no deposit became available before a post had ended")
        finally:
            answering.set()
            signed_call(pair.globex, "DELETE", f"/v1/webhooks/{hook}")


def test_the_database_is_away(pair: Pair) -> None:
    """Without a database the API says 503 with Retry-After; all processes find it again by themselves."""
    url = pair.installation.url
    with taken_away(pair.installation.database):
        refused = httpx2.get(f"{url}/v1/crl", timeout=30, trust_env=False, verify=NOBODY)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["content-type"] == "application/problem+json"
        assert answers(f"{url}/readyz", 503)
        assert answers(f"{url}/livez")
    wait_until(lambda: answers(f"{url}/readyz"), _HEALED)
    _becomes_available(pair, _send(pair, "healed"))
    assert all(one.process.poll() is None for one in pair.installation.running.values())


def test_nothing_is_left_over(pair: Pair) -> None:
    """After all that, everything is delivered once and in order, no job is dead, and the chain of events is whole."""
    assert set(pair.installation.running) == set(ROLES)
    taken = []
    while received := pair.globex.receive().taken:
        taken += received
    assert len({one.deposit_id for one in taken}) == len(taken)
    assert pair.acme.alarms() == pair.globex.alarms() == []
    wait_until(lambda: pair.acme.receipts() is not None and not _open(pair), _HEALED)
    wait_until(lambda: not pair.installation.sql(_UNPUBLISHED), _HEALED)
    assert pair.installation.sql("SELECT 1 FROM jobs WHERE dead_at IS NOT NULL") == []
    numbers = [view.sequence for view in pair.globex.mailbox()]
    assert numbers == list(range(1, len(numbers) + 1))


_STUCK = (
    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    " AND state = 'active' AND pid <> pg_backend_pid()"
)
_UNPUBLISHED = (
    "SELECT 1 FROM events WHERE position IS NULL"
    " OR position > (SELECT position FROM cursors WHERE name = 'reader:exchange')"
)


def _send(pair: Pair, key: str) -> DepositId:
    """Hand a key over without waiting for its validation."""
    campaign = pair.acme.send_key(pair.acme.create_key(key), [pair.globex.address], wait=0)
    assert not campaign.failed
    return campaign.delivered[0].deposit_id


def _state(pair: Pair, deposit: DepositId) -> str:
    return pair.acme.client.status(deposit).state


def _becomes_available(pair: Pair, deposit: DepositId) -> None:
    wait_until(lambda: pair.acme.client.status(deposit, wait=5).state == "available", _HEALED)


def _posts(pair: Pair) -> list[str]:
    """Return how many posts to webhooks have ended, by what came of them, as the worker counts them."""
    figures = pair.installation.told("worker").text.splitlines()
    return [line for line in figures if line.startswith("keymailbox_webhook_posts_total")]


def _open(pair: Pair) -> list[tuple[object, ...]]:
    return pair.installation.sql("SELECT id FROM deposits WHERE state NOT IN ('acknowledged', 'superseded')")


def _empty(installation: Installation) -> None:
    names = [f"{installation.prefix}.{queue}" for queue in QUEUES]
    if installation.broker_url.startswith("redis"):
        with contextlib.closing(redis.Redis.from_url(installation.broker_url)) as client:
            client.delete(*(f"{installation.prefix}:{name}" for name in names))
        return
    with kombu.Connection(installation.broker_url) as connection, connection.channel() as channel:
        for name in names:
            kombu.Queue(name, channel=channel).purge()
