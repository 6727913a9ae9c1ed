"""After a journey, nothing that the operator has holds a shared key, a private key, or a passphrase."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

import kombu
import pytest

from tests.kit import canary
from tests.kit.members import Pair
from tests.kit.processes import Installation, wait_until


def test_nothing_of_the_tenants_is_with_the_operator(pair: Pair) -> None:
    """Database, broker, logs and home, searched for every key of both tenants, in every form."""
    name = pair.acme.create_key(f"canary-{secrets.token_hex(4)}")
    campaign = pair.acme.send_key(name, [pair.globex.address])
    taken = pair.globex.receive(wait=20).taken
    pair.acme.receipts()
    assert campaign.delivered[0].deposit_id in {one.deposit_id for one in taken}
    # The places hold the journey: what is not secret is found.
    deposit = campaign.delivered[0].deposit_id.encode()
    places = wait_until(lambda: _told(pair, deposit), 60)

    wanted = canary.secrets_of(pair.acme) | canary.secrets_of(pair.globex)

    assert canary.search(places, wanted) == []
    assert len(wanted) >= 2 * len(("identity", "access", "encryption", "package", "key", "passphrase"))


def test_the_cas_keys_are_in_no_place_but_sealed(pair: Pair) -> None:
    """The CA's private keys and their passphrase are not in database, broker, logs, or home."""
    installation = pair.installation
    passphrase = installation.passphrase.read_bytes().strip()
    wanted = canary.unsealed(installation.home, passphrase) | {"passphrase": passphrase}
    assert len(wanted) == 4
    assert canary.search(_places(pair), wanted) == []


@pytest.mark.parametrize("form", sorted(canary.forms(bytes(32))))
def test_the_search_finds_what_is_planted(pair: Pair, form: str) -> None:
    """A canary in the database, at the broker, and in a log is found in each, in every form."""
    bird = secrets.token_bytes(32)
    shape = canary.forms(bird)[form]
    installation = pair.installation
    installation.sql("CREATE TABLE IF NOT EXISTS planted (content bytea)")
    installation.sql("INSERT INTO planted VALUES (%s)", b"before" + shape + b"after")
    log = installation.logs / "planted.log"
    log.write_bytes(b"before" + shape + b"after")
    try:
        _plant(installation, shape)
        found = wait_until(lambda: _found(pair, bird))
    finally:
        installation.sql("DROP TABLE planted")
        log.unlink()
    assert {f"bird in {place} as {form}" for place in ("database", "broker", "logs")} <= set(found)


def test_the_search_finds_half_a_key_inside_of_base64() -> None:
    """A part of a long key, in the middle of somebody's base64, is a finding."""
    seed = secrets.token_bytes(64)
    for shift in range(3):
        hidden = base64.b64encode(bytes(shift + 6) + seed[32:] + b"rest")
        assert f"seed in file as base64+{shift}" in canary.search({"file": b"x" + hidden}, {"seed": seed})


def _told(pair: Pair, deposit: bytes) -> Mapping[str, bytes] | None:
    """Return the places once the event about a deposit has gone through the broker."""
    places = _places(pair)
    assert deposit in places["database"]
    return places if deposit in places["broker"] and b"keymailbox.drain" in places["broker"] else None


def _places(pair: Pair) -> Mapping[str, bytes]:
    installation = pair.installation
    return {
        "database": canary.database(installation.libpq_url),
        "broker": pair.tap.heard(),
        "logs": installation.logged(),
        "home": b"\n".join(path.read_bytes() for path in _files(installation.home)),
    }


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _found(pair: Pair, bird: bytes) -> list[str] | None:
    found = canary.search(_places(pair), {"bird": bird})
    time.sleep(0.05)
    return found if len({line.split()[2] for line in found}) == 3 else None


def _plant(installation: Installation, shape: bytes) -> None:
    """Publish what no process of ours would, on the exchange for listeners."""
    exchange = kombu.Exchange(f"{installation.prefix}.events", type="topic", durable=True)
    with kombu.Connection(installation.broker_url) as connection:
        queue = kombu.Queue(f"{installation.prefix}.planted", exchange, routing_key="planted", durable=True)
        with connection.channel() as channel:
            queue.bind(channel).declare()
            kombu.Producer(channel, exchange).publish(
                b"before" + shape + b"after",
                routing_key="planted",
                content_type="application/data",
                content_encoding="binary",
            )
            queue.bind(channel).delete()
