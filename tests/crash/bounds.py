"""What bounds a mailbox: limits and shares, whom it takes, who takes whose place, and by when an answer is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from pki.core.errors import ConflictError, KeymailboxError, QuotaError
from pki.core.events import EventType
from pki.core.senders import SenderMode, SenderPolicy
from pki.server.services import campaigns, limits, senders
from pki.server.services.campaigns import Standing
from pki.server.services.deposits import Accepted, accept
from pki.server.store import limits as limit_store
from tests.crash.attempts import Attempt, Case, client
from tests.kit.town import Town

_SHARE = "share-deposits"


def rule(town: Town) -> Attempt:
    """An operator sets a limit and takes another back, and the mailbox's owner puts one policy in another's place.

    Whoever did not hear of it says it again.
    """
    caller, address = town.caller(town.globex), town.globex.kms.address
    limits.allow(town.deps, address, {_SHARE: 7, "pair-bytes": 9})
    senders.set_policy(town.deps, caller, address, SenderPolicy(SenderMode.KNOWN, ("acme", "umbrella/main")))
    wanted = SenderPolicy(SenderMode.LISTED, ("acme/eu-west", "hooli"), max_bytes=100_000)

    def work() -> None:
        limits.allow(town.deps, address, {_SHARE: 1000, "pair-bytes": None})
        senders.set_policy(town.deps, caller, address, wanted)

    def check() -> None:
        found = {one.limit.name: (one.value, one.own) for one in limits.show(town.deps, address)}
        assert found[_SHARE] == (1000, True)
        assert not found["pair-bytes"][1]
        policy = senders.policy(town.deps, caller, address)
        assert replace(policy, changed_at=None) == wanted

    return client(work, check)


def accept_within(town: Town) -> Attempt:
    """Of two for one place one is accepted, and takes it; besides, one gets in, and the next is over the limit.

    Whatever was counted by attempts that came to nothing is counted no more.
    """
    [old] = town.deliver(town.acme, town.globex)
    items = [town.compose(town.acme, town.globex, supersedes=old) for _ in range(2)]
    items += [town.compose(town.acme, town.globex) for _ in range(2)]
    before = _held(town)
    # For the moment the successor is there with the old one.
    limits.allow(town.deps, town.globex.kms.address, {_SHARE: before + 2})
    answers: list[Accepted | KeymailboxError] = []

    def work() -> None:
        answers[:] = accept(town.deps, town.caller(town.acme), items)

    def check() -> None:
        successor, late, new, over = answers
        assert isinstance(successor, Accepted)
        assert isinstance(new, Accepted)
        assert isinstance(late, ConflictError)
        assert isinstance(over, QuotaError)
        assert [town.state(one) for one in (old, successor.id, new.id)] == ["superseded", "available", "available"]
        assert _held(town) == before + 1

    return client(work, check)


def not_welcome(town: Town) -> Attempt:
    """A deposit whose sender is not welcome any more when it is judged."""
    caller, address = town.caller(town.globex), town.globex.kms.address
    senders.set_policy(town.deps, caller, address, SenderPolicy())
    [found] = town.send(town.acme, town.globex)
    senders.set_policy(town.deps, caller, address, SenderPolicy(SenderMode.LISTED, ("hooli",)))

    def check() -> None:
        record = town.record(found)
        assert (record.state, record.rejected_code, record.sequence) == ("rejected", "not-welcome", None)

    return Attempt(lambda: town.hands.drain("validate"), check)


def overdue(town: Town) -> Attempt:
    """A rotation's deadline passes without an answer: both are told once, and the report says who is late."""
    now = town.clock.now()
    item = replace(town.compose(town.acme, town.globex), respond_by=now + timedelta(minutes=10))
    [answer] = accept(town.deps, town.caller(town.acme), [item])
    assert isinstance(answer, Accepted)
    town.hands.drain("validate")
    town.clock.step(timedelta(minutes=11))
    town.tick("expire")

    def check() -> None:
        assert town.told(answer.id).count(EventType.DEPOSIT_OVERDUE.value) == 1
        [line] = campaigns.rotation(town.deps, town.acme.kms.address.tenant, "orders")
        assert line.standing == Standing.OVERDUE

    return Attempt(lambda: town.hands.drain("rotate"), check)


def _held(town: Town) -> int:
    """Return how many deposits acme, as a tenant, has in globex's mailbox without an answer."""
    place = (str(town.acme.kms.address.tenant), str(town.globex.kms.address))
    with town.deps.store.read() as unit:
        found = limit_store.found(unit, [place]).get(place)
    return 0 if found is None else found.deposits


CASES: Mapping[str, Case] = {one.__name__: one for one in (rule, accept_within, not_welcome, overdue)}
