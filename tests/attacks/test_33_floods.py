"""Attack 33: somebody fills another's mailbox, or floods the server, which others must not feel."""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Iterator

import pytest

from pki.core.errors import KeymailboxError, NotWelcomeError, QuotaError
from pki.core.senders import SenderMode, SenderPolicy
from pki.tenant.agent import Agent
from tests.kit.flood import CONNECTIONS, bodies, feel, flooded
from tests.kit.members import Members
from tests.kit.processes import Installation
from tests.kit.services import Services, drop_database, new_database


@pytest.fixture(scope="module")
def members(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    """Tenants at a server of real processes, on PostgreSQL and RabbitMQ."""
    room = tmp_path_factory.mktemp("floods")
    database = new_database(services.postgres.url)
    try:
        with Installation(room / "server", database, services.rabbitmq.url) as installed:
            installed.command("tenant", "invite", "victim")
            limits = ("--set", "pair-deposits=20", "--set", "mailbox-deposits=1000")
            installed.command("tenant", "limits", "victim", *limits)
            installed.start()
            with Members(installed, room) as made:
                yield made
            installed.stop()
    finally:
        drop_database(database)


def _sent(sender: Agent, to: Agent, count: int) -> list[type[KeymailboxError] | None]:
    answers: list[type[KeymailboxError] | None] = []
    for body in bodies(sender, to.address, count):
        try:
            sender.client.deposit(body, idempotency_key=secrets.token_hex(16))
            answers.append(None)
        except KeymailboxError as error:
            answers.append(type(error))
    return answers


def test_a_mailbox_is_not_filled_by_one(members: Members) -> None:
    """A stranger gets its pair's share and no more, others go on writing; who chooses its senders is rid of it."""
    victim, friend, stranger = (members.enrol(f"{name}/main") for name in ("victim", "friend", "stranger"))
    assert _sent(stranger, victim, 25) == [None] * 20 + [QuotaError] * 5
    assert _sent(friend, victim, 1) == [None]
    for waiting in stranger.client.sent(state="received")[0]:
        # What is judged when there is a list is judged by it.
        assert stranger.client.status(waiting.id, wait=20).state == "available"
    victim.client.set_senders(victim.address, SenderPolicy(SenderMode.LISTED, ("friend",)))
    assert _sent(stranger, victim, 1) == [NotWelcomeError]
    assert _sent(friend, victim, 1) == [None]
    # What was there before the list is answered, and then the mailbox is empty.
    received = victim.receive(wait=20)
    while len(received.taken) < 22:
        more = victim.receive(wait=20)
        assert more.taken, "the mailbox has less than was accepted"
        received.taken.extend(more.taken)
    assert {str(one.sender) for one in received.taken} == {"friend/main", "stranger/main"}


def test_a_flood_is_felt_by_nobody_else(members: Members) -> None:
    """Deposits, polls, garbage, large and unsigned bodies from one tenant: another's deposits and polls all succeed.

    How much longer they take, `bench/flood.py` measures; here a bound that a machine with other work keeps too.
    """
    quiet, other = members.enrol("quiet/main"), members.enrol("other/main")
    flood = members.enrol("flood/main")
    alone = feel(quiet, other.address, 10)
    # More refusals than a process has connections that deposit: it went on after the first of each.
    enough = {"429": CONNECTIONS // 4 + 1, "deposit 202": 1, "unsigned 401": 1}
    with flooded(members.home("flood/main"), flood.address, enough=enough) as felt:
        meanwhile = feel(quiet, other.address, 10)
        deadline = time.monotonic() + 120
        # With nobody else there it is turned away for nothing.
        while not felt.has_enough() and time.monotonic() < deadline:
            feel(quiet, other.address, 1)
    told = felt.told
    assert statistics.median(meanwhile.deposits) <= 10 * statistics.median(alone.deposits) + 2000
    # It was served, turned away with 429, and for what it did not sign with 401; never with an error of ours.
    assert all(told[answer] >= 2 * count for answer, count in enough.items()), told
    assert not {status for status in told if status.isdigit() and status >= "500"}, told
