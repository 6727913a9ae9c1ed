"""Contract of crashes: an issuer that is killed at any step loses nothing, and signs nothing that is forgotten."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from pki.core import kem, x509
from pki.core.certificates import CertificateRecord, CertificateState, RequestState
from pki.core.crl import verify_crl
from pki.core.ids import RequestId
from pki.core.tenants import parse_address
from pki.server.services import certificates, status
from pki.server.store import certificates as certificate_store
from pki.server.store import requests as request_store
from pki.server.store import tables
from pki.server.store.engine import Store
from tests.kit.killing import STEPS, kill
from tests.kit.office import PASSPHRASE, Kms, Office, open_office

ACME = parse_address("acme/eu-west")


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA."""
    return open_office(store, tmp_path)


@pytest.fixture
def batch(office: Office) -> list[RequestId]:
    """One renewal of an identity and three encryption keys, of two instances."""
    acme, globex = Kms(ACME), Kms(parse_address("globex/main"))
    for kms in (acme, globex):
        office.settle(kms)
    office.clock.step(timedelta(seconds=1))
    ders = [(globex, globex.encryption_request(office, kem.generate())) for _ in range(2)]
    ders.append((acme, acme.encryption_request(office, kem.generate())))
    ders.append((acme, acme.identity_request(office.clock.now())))
    return [certificates.submit_request(office.deps, kms.caller(office), der).id for kms, der in ders]


def killed(office: Office, url: str, memory: Path, step: str) -> list[bytes]:
    """Kill an issuer at a step; return what its key had signed by then."""
    ended = kill(
        step,
        home=office.deps.settings.home,
        url=url,
        passphrase=PASSPHRASE.decode(),
        now=office.clock.now(),
        memory=memory,
    )
    assert ended == -9, ended
    return [bytes.fromhex(line) for line in memory.read_text().split()] if memory.exists() else []


def prepared(office: Office, batch: list[RequestId]) -> dict[RequestId, tuple[int | None, bytes | None]]:
    """Return what is stored to be signed."""
    with office.deps.store.read() as unit:
        return {one.record.id: (one.serial, one.tbs) for one in request_store.held(unit, batch)}


def issued(office: Office) -> list[CertificateRecord]:
    """Return all certificates."""
    with office.deps.store.read() as unit:
        fingerprints = unit.connection.execute(select(tables.certificates.c.fingerprint)).scalars().all()
        found = [certificate_store.certificate(unit, one) for one in fingerprints]
    return [one for one in found if one is not None]


@pytest.mark.parametrize("step", STEPS)
def test_an_issuer_killed_at_any_step(
    office: Office, batch: list[RequestId], database_url: str, tmp_path: Path, step: str
) -> None:
    """What was signed is known by its serial the moment it is signed; the next issuer finishes with the same bytes."""
    before = {one.fingerprint for one in issued(office)}
    signed = killed(office, database_url, tmp_path / "memory", step)
    stored = prepared(office, batch)
    assert {x509.parse_certificate(x509.assemble(one, bytes(3309))).serial for one in signed} <= {
        serial for serial, _ in stored.values()
    }
    assert set(signed) <= {tbs for _, tbs in stored.values()}
    # All of a transaction or nothing of it.
    assert len({serial is None for serial, _ in stored.values()}) == 1
    assert len({one.fingerprint for one in issued(office)} - before) in (0, 4)
    office.clock.step(timedelta(minutes=2))
    while office.work():
        pass
    new = [one for one in issued(office) if one.fingerprint not in before]
    assert len(new) == len({one.serial for one in new}) == 4
    for key, (serial, tbs) in prepared(office, batch).items():
        assert (serial, tbs) == stored[key] or stored[key] == (None, None)
        [mine] = [one for one in new if one.serial == serial]
        assert x509.parse_certificate(mine.der).tbs == tbs
        assert office.told(about=key) == ["certificate.requested", "certificate.issued"]
    with office.deps.store.read() as unit:
        identities = [one.state for one in certificate_store.history(unit, ACME, x509.CertificateKind.IDENTITY)]
    assert sorted(identities) == [CertificateState.ACTIVE, CertificateState.RETIRED]
    assert office.jobs() == []


@pytest.mark.parametrize("step", ["after the first signature", "after the last signature"])
def test_what_was_signed_by_a_killed_issuer_is_revoked_when_its_request_is_refused(
    office: Office, batch: list[RequestId], database_url: str, tmp_path: Path, step: str
) -> None:
    """Somebody may have the signature: the serial is on the list as soon as the certificate is not issued after all."""
    signed = killed(office, database_url, tmp_path / "memory", step)
    assert signed
    with office.deps.store.unit() as unit:
        # What speaks against a request may come to light between two attempts; here its bytes are lost.
        unit.connection.execute(update(tables.requests).where(tables.requests.c.id.in_(batch)).values(der=b"lost"))
    office.clock.step(timedelta(minutes=2))
    while office.work():
        pass
    with office.deps.store.read() as unit:
        states = {one.record.state for one in request_store.held(unit, batch)}
    assert states == {RequestState.REJECTED}
    latest = status.latest_crl(office.deps)
    assert latest is not None
    listed = verify_crl(latest.der, issuing_der=office.deps.chain.issuing, now=office.clock.now()).revoked
    assert {x509.parse_certificate(x509.assemble(one, bytes(3309))).serial for one in signed} <= set(listed)
