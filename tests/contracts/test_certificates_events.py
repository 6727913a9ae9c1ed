"""Contract of the events about instances and certificates: each says what its schema says, to whom it concerns."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import jsonschema_rs

from pki.core import kem
from pki.core.tenants import parse_address
from pki.server.services import certificates, notices, renewals, rotation
from pki.server.store import events as event_store
from pki.server.store.engine import Store
from tests.kit.office import Kms, open_office

SCHEMAS = Path(__file__).parents[2] / "schemas" / "events"
ACME = parse_address("acme/eu-west")
TOLD = {
    "tenant.invited",
    "instance.enrolled",
    "certificate.requested",
    "certificate.issued",
    "certificate.activated",
    "certificate.retired",
    "certificate.rejected",
    "certificate.revoked",
    "certificate.expiring",
    "certificate.expired",
    "crl.published",
}


def test_each_event_keeps_its_schema_and_its_audience(store: Store, tmp_path: Path) -> None:
    """One of each kind happens; all validate, and nobody but the owner hears of a certificate."""
    office = open_office(store, tmp_path)
    kms, other = Kms(ACME), Kms(parse_address("globex/main"))
    office.settle(kms)
    office.settle(other)
    office.publish(kms)
    record = office.publish(kms)
    certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, record.fingerprint))
    office.work()
    certificates.submit_request(office.deps, kms.caller(office), kms.encryption_request(office, kem.generate()))
    office.clock.step(timedelta(hours=49))
    office.work()
    office.clock.step(timedelta(days=340))
    renewals.remind(office.deps)
    office.clock.step(timedelta(days=26))
    rotation.expire(office.deps)
    while notices.sequence_events(office.deps, None):
        continue
    with store.read() as unit:
        happened = event_store.after(unit, 0, 1000)
        heard = {item.event.id for item in event_store.after(unit, 0, 1000, audience=other.address)}
    assert {item.event.type.removeprefix("keymailbox.") for item in happened} == TOLD
    for item in happened:
        told = notices.cloudevent(office.deps, item)
        schema = json.loads((SCHEMAS / f"{item.event.type}.schema.json").read_text())
        jsonschema_rs.validate(schema, json.loads(json.dumps(told)), validate_formats=True)
    assert all(item.event.data["address"] == str(other.address) for item in happened if item.event.id in heard)
