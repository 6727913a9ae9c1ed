"""Contract of the drill: it says what the real thing then does, and leaves every row as it was."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema_rs
import pytest
from sqlalchemy import select

from pki.core.deposits import DepositState
from pki.core.errors import IllegalMoveError, NotFoundError
from pki.core.ids import DepositId, Fingerprint, KeyId
from pki.core.tenants import Address, parse_address
from pki.server.services import drill
from pki.server.store import certificates as certificate_store
from pki.server.store import deposits as deposit_store
from pki.server.store import receipts as receipt_store
from pki.server.store.engine import Store
from pki.server.store.tables import metadata
from tests.kit import facts
from tests.kit.bureau import Bureau
from tests.kit.office import Kms, Office, open_office

ACME, GLOBEX, HOOLI = map(parse_address, ("acme/eu-west", "globex/main", "hooli/lab"))
SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "drill.schema.json").read_text())


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA, and acme with both certificates."""
    office = open_office(store, tmp_path)
    kms = Kms(ACME)
    office.settle(kms)
    office.publish(kms)
    office.publish(kms)
    return office


def put(office: Office, sender: Address, to: Address, key: str, *states: DepositState, version: int = 1) -> DepositId:
    """Put a deposit into a mailbox, and move it on; the last certificate of ``to`` is what it is wrapped for."""
    now = office.clock.now()
    with office.deps.store.unit() as unit:
        found = [one for one in certificate_store.history(unit, to) if one.kind == "encryption"]
        ski = found[0].ski if found else "cc" * 20
        item = facts.deposit(sender, to, recipient_ski=ski, key_id=KeyId(key), key_version=version)
        deposit_store.insert(unit, [item])
        if states:
            deposit_store.assign_sequences(unit, [item.id])
        for state in states:
            deposit_store.set_state(unit, [item.id], state, now=now)
        if DepositState.ACKNOWLEDGED in states:
            receipt_store.insert(unit, [(sender, facts.receipt(item.id))])
    return item.id


def content(office: Office) -> dict[str, list[tuple[object, ...]]]:
    """Return every row of every table."""
    with office.deps.store.read() as unit:
        found = {}
        for name, table in metadata.tables.items():
            found[name] = sorted((tuple(row) for row in unit.connection.execute(select(table))), key=repr)
    return found


A, C, K = DepositState.AVAILABLE, DepositState.COLLECTED, DepositState.ACKNOWLEDGED


def test_the_drill_is_what_the_real_thing_does(office: Office) -> None:
    """What it foretells is revoked and quarantined, by the commands that it names; before, not a row has changed."""
    waiting = [put(office, GLOBEX, ACME, "orders", A), put(office, HOOLI, ACME, "bills", A)]
    arrived = put(office, GLOBEX, ACME, "late")
    put(office, GLOBEX, ACME, "had", A, C, K, version=2)
    put(office, GLOBEX, ACME, "had", A, C, K)
    put(office, GLOBEX, HOOLI, "had", A, C, K)
    put(office, HOOLI, ACME, "handed-out", A, C)
    put(office, HOOLI, ACME, "refused", A, C, DepositState.REFUSED)
    put(office, ACME, GLOBEX, "own", A, C, K)
    put(office, GLOBEX, HOOLI, "of others", A)
    bureau = Bureau(office, "ann", "bob")
    before = content(office)
    found = drill.compromise(office.deps, ACME)
    assert content(office) == before
    told = json.loads(json.dumps(drill.to_dict(found), default=lambda moment: moment.isoformat()))
    jsonschema_rs.validate(SCHEMA, told, validate_formats=True)
    assert {one["id"] for one in told["quarantined"]} == set(waiting)
    assert [one["id"] for one in told["refused"]] == [arrived]
    assert told["rewrapped_by"] == {"globex/main": 2, "hooli/lab": 1}
    rotations = {one["key_id"]: one for one in told["rotations"]}
    assert set(rotations) == {"had", "handed-out", "own"}
    assert rotations["had"]["command"] == "kmb key rotate had --except acme/eu-west"
    assert (rotations["had"]["owner"], rotations["had"]["key_version"]) == ("globex/main", 2)
    assert (rotations["had"]["proved"], rotations["had"]["holders"]) == (True, ["hooli/lab"])
    assert rotations["handed-out"]["proved"] is False
    assert (rotations["own"]["command"], rotations["own"]["holders"]) == ("kmb key rotate own", ["globex/main"])
    assert told["room"] == 10
    assert [command.split()[1:3] for command in told["commands"]] == [["revoke", "order"], ["revoke", "approve"]]
    shown = drill.to_text(found)
    for each in (*told["commands"], *waiting, "kmb key rotate own", "3 certificates revoked"):
        assert each in shown
    done = bureau.revoke(*(Fingerprint(one["fingerprint"]) for one in told["certificates"]))
    assert {one.fingerprint for one in done.revoked} == {one["fingerprint"] for one in told["certificates"]}
    with office.deps.store.read() as unit:
        held = [one for one in deposit_store.many(unit, waiting) if one.state is DepositState.QUARANTINED]
    assert len(held) == len(waiting)
    assert office.told().count("deposit.quarantined") == told["events"]["keymailbox.deposit.quarantined"]
    assert office.told().count("certificate.revoked") == told["events"]["keymailbox.certificate.revoked"]
    with pytest.raises(IllegalMoveError):
        drill.compromise(office.deps, ACME)


def test_more_than_the_cap(store: Store, tmp_path: Path) -> None:
    """Where orders may not revoke so many, the first command lifts the cap."""
    office = open_office(store, tmp_path, order_cap=1)
    kms = Kms(ACME)
    office.settle(kms)
    office.publish(kms)
    commands = drill.compromise(office.deps, ACME).commands
    assert [command.split()[2] for command in commands] == ["lift-cap", "approve", "order", "approve"]
    assert "--count 2 --for 1h" in commands[0]


def test_nobody_is_drilled_who_is_not_here(office: Office) -> None:
    """An unknown address is told apart from one that has nothing left."""
    with pytest.raises(NotFoundError):
        drill.compromise(office.deps, parse_address("acme/nowhere"))


def test_the_drill_cannot_write(office: Office) -> None:
    """Its transaction is one that the database lets nobody write in; on SQLite nothing asks it to."""
    with office.deps.store.read() as unit:
        assert not unit.writable
        if unit.dialect == "postgresql":
            with pytest.raises(Exception, match="read-only"):
                unit.connection.execute(metadata.tables["ticks"].insert().values(job="x", period="y"))
