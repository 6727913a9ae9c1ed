"""Attack 33: one request that cannot be stored, among many that came with it, must not make each of them dear."""

from __future__ import annotations

import secrets
from datetime import timedelta

from pki.core import deposits as core
from pki.core.errors import KeymailboxError, ReplayedError
from pki.core.ids import DepositId, KeyId
from pki.server.facts import Caller
from pki.server.services import calls, deposits
from pki.server.services.deposits import Accepted, Handed, Incoming
from pki.server.store import limits, tenants
from tests.kit.site import KEY, Instance, Site, now
from tests.kit.statements import counted

pytest_plugins = ["tests.kit.api_fixtures"]


def handed(site: Site, sender: Instance, body: bytes) -> Handed:
    """Return a deposit as the API hands it on."""
    with site.deps.store.read() as unit:
        found = tenants.instance(unit, sender.address)
    assert found is not None and found.access_key_id is not None
    caller = Caller(found)
    ticket = calls.Ticket(caller, found.access_key_id, secrets.token_hex(16), now() + timedelta(minutes=6))
    return Handed([deposits.read(site.served, caller, Incoming(body, secrets.token_hex(8)))], ticket)


def under_id(sender: Instance, deposit_id: DepositId) -> bytes:
    """Return a deposit from somebody to himself under an id of his choice."""
    context = core.Context(
        sender=sender.address,
        recipient=sender.address,
        key_id=KeyId("mine"),
        key_version=1,
        purpose="encrypt",
        expires=now() + timedelta(days=1),
    )
    return core.compose(
        KEY,
        context,
        package_id=bytes.fromhex(deposit_id),
        recipient=sender.recipient,
        signer_ski=sender.ski,
        sign=sender.identity.sign,
        signing_time=now(),
    )


def test_an_id_that_another_tenant_has_used(site: Site, acme: Instance, globex: Instance, initech: Instance) -> None:
    """It is refused alone, its request is used up, and those that came with it are stored by one more commit at most.

    On PostgreSQL the API does not see the other's deposit, and finds out only when it stores.
    """
    theirs, body = globex.compose(globex)
    assert globex.deposit(body).status_code == 202
    hostile = [handed(site, initech, under_id(initech, theirs)) for _ in range(3)]
    good = [handed(site, acme, acme.compose(acme)[1]) for _ in range(37)]
    mixed = [good[0], hostile[0], *good[1:20], hostile[1], *good[20:], hostile[2]]
    with counted(site.served.store) as told:
        answers = deposits.accept_all(site.served, mixed)
    assert told.commits <= 2 and told.count <= 50
    outcomes: list[list[str]] = []
    for answer in answers:
        assert not isinstance(answer, KeymailboxError)
        outcomes.append([one.state if isinstance(one, Accepted) else one.code for one in answer])
    refused = [place for place, one in enumerate(mixed) if one in hostile]
    assert outcomes == [["replayed" if place in refused else "received"] for place in range(len(mixed))]
    for again in deposits.accept_all(site.served, hostile):
        assert isinstance(again, ReplayedError) and "request" in again.message
    with site.deps.store.read() as unit:
        assert limits.differing(unit) == []
        told_of = limits.found(unit, [(str(initech.address), "")])
    assert all((one.deposits, one.today, one.accepted) == (0, 0, 0) for one in told_of.values())
