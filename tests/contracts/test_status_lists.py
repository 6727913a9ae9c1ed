"""Contract of revocation lists: numbered for each issuing CA, full and delta, and over HTTP."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Column, MetaData, Table, create_engine, insert, select

from pki.core import crl
from pki.core.authorities import ca_key_identifier
from pki.core.certificates import CertificateRecord
from pki.core.crl import Crl, DeltaCrl, Reason
from pki.core.errors import CertificateError, SettingsError, UnavailableError
from pki.core.tenants import parse_address
from pki.server.adapters.linter import PkiLinter
from pki.server.adapters.profiles import FileProfiles
from pki.server.facts import CrlRecord
from pki.server.ports import CaKeys
from pki.server.services import certificates, doctor, status
from pki.server.services.deps import Deps
from pki.server.settings import Settings
from pki.server.store import certificates as store_certificates
from pki.server.store import ocsp as store_ocsp
from pki.server.store import schema, tables
from pki.server.store import status as store_status
from pki.server.store.engine import Store
from tests.contracts.conftest import Databases
from tests.kit.issuers import HeldSigner, Issuers
from tests.kit.killing import kill
from tests.kit.office import PASSPHRASE, Kms, Office, SteppedClock, open_office
from tests.kit.site import Site, code, now
from tests.kit.threads import together

pytest_plugins = ["tests.kit.api_fixtures"]

ISSUERS = Issuers()


@dataclass
class Desk(Office):
    """An office whose issuing CAs change."""

    held: CaKeys

    @property
    def keys(self) -> CaKeys:
        """What the issuer process holds now."""
        return self.held

    def roll_over(self, *numbers: int) -> None:
        """Go over to these issuing CAs, the first one current."""
        ISSUERS.write(self.deps.settings.home, *numbers)
        self.held = ISSUERS.keys_of(*numbers)


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA."""
    return open_office(store, tmp_path)


@pytest.fixture
def desk(store: Store, tmp_path: Path) -> Desk:
    """A server whose first issuing CA is number 1; number 0 is the one to come."""
    ISSUERS.write(tmp_path, 1)
    clock = SteppedClock()
    deps = Deps(store, Settings(home=tmp_path), clock, PkiLinter(), FileProfiles(tmp_path))
    return Desk(deps, None, clock, ISSUERS.keys_of(1))  # type: ignore[arg-type]  # it has no signer in a file


def issuer_of(number: int) -> tuple[str, bytes]:
    """Return name and certificate of an issuing CA."""
    der = ISSUERS.keys_of(number).current.certificate_der
    return ca_key_identifier(der).hex(), der


def full(office: Office, record: CrlRecord | None, issuing: bytes | None = None) -> Crl:
    """Return what a publication's full list says."""
    assert record is not None
    issuing = issuing or office.deps.chain.issuing
    return crl.verify_crl(record.der, issuing_der=issuing, now=office.clock.now())


def delta(office: Office, record: CrlRecord | None) -> DeltaCrl:
    """Return what a publication's delta list says."""
    assert record is not None
    assert record.delta is not None
    found = crl.verify_delta(record.delta, issuing_der=office.deps.chain.issuing, now=office.clock.now())
    assert (found.number, found.base) == (record.number, record.base)
    return found


def revoke(office: Office, kms: Kms, record: CertificateRecord) -> None:
    """Revoke at the owner's wish; the list is not published yet."""
    wish = kms.revocation(office, record.fingerprint, Reason.SUPERSEDED)
    certificates.revoke(office.deps, kms.caller(office), wish)


def settled(office: Office, address: str = "acme/eu-west") -> tuple[Kms, CertificateRecord]:
    """Return an instance with an active encryption certificate."""
    kms = Kms(parse_address(address))
    office.settle(kms)
    return kms, office.publish(kms)


def test_each_publication_but_the_first_has_a_delta_list(office: Office) -> None:
    """Whoever holds the base, or any full list since, has with the delta list what the newest full list says."""
    kms, record = settled(office)
    first = status.latest_crl(office.deps)
    assert first is not None
    assert (first.number, first.base, first.delta) == (1, None, None)
    held = [full(office, first)]
    for _ in range(3):
        office.clock.step(timedelta(minutes=1))
        revoke(office, kms, record)
        newest = status.publish(office.deps, office.keys)
        assert newest.base == 1
        change = delta(office, newest)
        for one in held:
            assert crl.apply_delta(one, change) == full(office, newest)
        held.append(full(office, newest))
        record = office.publish(kms)
    assert len(held[-1].revoked) == 3


def test_a_base_is_replaced_when_nobody_may_hold_it(office: Office) -> None:
    """A full list that is out of date is built upon no more: the one before is."""
    settled(office)
    third = office.deps.settings.crl_lifetime / 3
    bases = []
    for _ in range(5):
        office.clock.step(third)
        bases.append(status.publish(office.deps, office.keys).base)
    assert bases == [1, 1, 3, 3, 5]


def test_a_base_is_replaced_when_the_delta_list_gets_long(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """When half of what is revoked is news, the delta list builds on the list before."""
    monkeypatch.setattr(status, "_SMALL_DELTA", 1)
    kms, record = settled(office)
    bases = []
    for _ in range(4):
        revoke(office, kms, record)
        newest = status.publish(office.deps, office.keys)
        bases.append((newest.base, len(delta(office, newest).revoked)))
        record = office.publish(kms)
    # Each new certificate's issuance publishes once more in between.
    assert bases == [(1, 1), (3, 1), (5, 1), (5, 2)]


def test_what_expired_leaves_by_the_delta_list(office: Office) -> None:
    """A certificate is on one list beyond its time; then the delta list says that it is gone."""
    kms, record = settled(office)
    revoke(office, kms, record)
    status.publish(office.deps, office.keys)
    office.clock.step(record.not_after - office.clock.now())
    before = status.publish(office.deps, office.keys)
    assert record.serial in full(office, before).revoked
    office.clock.step(office.deps.settings.crl_lifetime)
    after = status.publish(office.deps, office.keys)
    assert after.base == before.number
    assert delta(office, after).removed == {record.serial}
    assert crl.apply_delta(
        crl.verify_crl(before.der, issuing_der=office.deps.chain.issuing, now=before.this_update), delta(office, after)
    ) == full(office, after)


def test_issuing_cas_have_lists_of_their_own(desk: Desk) -> None:
    """After a roll-over each issuing CA lists what it issued, with numbers of its own; the former one goes on."""
    kms, old = settled(desk)
    desk.roll_over(0, 1)
    other, new = settled(desk, "globex/main")
    assert (old.issuer, new.issuer) == (issuer_of(1)[0], issuer_of(0)[0])
    revoke(desk, kms, old)
    revoke(desk, other, new)
    status.publish(desk.deps, desk.keys)
    lists = [full(desk, status.latest_crl(desk.deps, issuer_of(one)[0]), issuer_of(one)[1]) for one in (0, 1)]
    assert [set(one.revoked) for one in lists] == [{new.serial}, {old.serial}]
    assert [one.number for one in lists] == [2, 3]
    assert status.latest_crl(desk.deps) == status.latest_crl(desk.deps, issuer_of(0)[0])
    with pytest.raises(CertificateError):
        full(desk, status.latest_crl(desk.deps, issuer_of(0)[0]), issuer_of(1)[1])
    assert [one.detail for one in doctor.examine(desk.deps) if one.check == "crl" and not one.ok] == []


def test_a_key_that_is_away_holds_up_no_other(desk: Desk) -> None:
    """The others publish, and then it is said."""

    class Away(HeldSigner):
        """Nothing can be signed."""

        def sign(self, message: bytes, /) -> bytes:
            """Say so."""
            raise UnavailableError("away")

    desk.roll_over(0, 1)
    current = desk.keys.current
    assert isinstance(current, HeldSigner)
    broken = CaKeys(Away(current.certificate_der, current.key), desk.keys.former)
    with pytest.raises(UnavailableError):
        status.publish(desk.deps, broken)
    assert status.latest_crl(desk.deps, issuer_of(0)[0]) is None
    assert status.latest_crl(desk.deps, issuer_of(1)[0]) is not None


def test_two_issuers_at_once_skip_and_share_no_number(desk: Desk) -> None:
    """Each publication has a number of its own, none is left out, for each issuing CA."""
    desk.roll_over(0, 1)
    together(4, lambda _: status.publish(desk.deps, desk.keys))
    for one in (0, 1):
        with desk.deps.store.read() as unit:
            numbers = [record.number for record in store_status.newest_crls(unit, issuer_of(one)[0])]
        assert numbers == [4, 3, 2, 1]


@pytest.mark.parametrize(
    "step",
    [("sign", 1, "after"), ("sign", 2, "after"), ("commit", 2, "before"), ("commit", 2, "after")],
    ids=["full list signed", "delta list signed", "before both are stored", "both stored"],
)
def test_an_issuer_killed_while_it_publishes(
    office: Office, database_url: str, tmp_path: Path, step: tuple[str, int, str]
) -> None:
    """What could be seen has no gap, no number had two contents, and the next issuer publishes what is revoked."""
    kms, record = settled(office)
    office.work()
    revoke(office, kms, record)

    def visible() -> dict[int, tuple[bytes, bytes | None]]:
        with office.deps.store.read() as unit:
            issuer = ca_key_identifier(office.deps.chain.issuing).hex()
            return {one.number: (one.der, one.delta) for one in store_status.newest_crls(unit, issuer)}

    seen = visible()
    ended = kill(
        step,
        home=office.deps.settings.home,
        url=database_url,
        passphrase=PASSPHRASE.decode(),
        now=office.clock.now(),
        memory=tmp_path / "memory",
    )
    assert ended == -9
    after = visible()
    assert seen.items() <= after.items()
    assert sorted(after) == list(range(1, len(after) + 1))
    office.clock.step(timedelta(minutes=2))
    office.work()
    last = visible()
    assert after.items() <= last.items()
    assert sorted(last) == list(range(1, len(last) + 1))
    newest = status.latest_crl(office.deps)
    assert record.serial in full(office, newest).revoked
    assert record.serial in delta(office, newest).revoked


def test_a_list_that_somebody_put_there_is_not_built_upon(office: Office) -> None:
    """A row that is not ours counts as a number and as nothing else."""
    settled(office)
    own = status.latest_crl(office.deps)
    assert own is not None
    with office.deps.store.unit() as unit:
        planted = CrlRecord(9, b"planted", office.clock.now(), office.clock.now(), own.issuer, 1, b"planted")
        store_status.insert_crl(unit, planted)
    newest = status.publish(office.deps, office.keys)
    assert (newest.number, newest.base) == (10, 1)
    assert crl.apply_delta(full(office, own), delta(office, newest)) == full(office, newest)


def test_the_doctor_sees_that_nobody_publishes(office: Office) -> None:
    """Past the half of its life a list should long have been followed by another."""
    settled(office)

    def found() -> list[bool]:
        return [one.ok for one in doctor.examine(office.deps) if one.check == "crl"]

    assert found() == [True]
    office.clock.step(office.deps.settings.crl_lifetime / 2 + timedelta(seconds=1))
    assert found() == [False]
    office.deps.settings.home.joinpath("ca", "root.der").unlink()
    with pytest.raises(SettingsError):
        status.latest_crl(office.deps)


def test_lists_over_http(site: Site) -> None:
    """Each issuing CA's lists have an address and an ETag of their own; what is not there is not there."""
    issuer = ca_key_identifier(site.deps.chain.issuing).hex()
    assert code(site.http.get(f"/v1/crl/{issuer}")) == (404, "not-found")
    acme = site.instance("acme/eu-west")
    first = site.http.get(f"/v1/crl/{issuer}")
    assert (first.status_code, first.headers["content-type"]) == (200, "application/pkix-crl")
    assert first.content == site.http.get("/v1/crl").content
    assert code(site.http.get(f"/v1/crl/{issuer}/delta")) == (404, "not-found")
    assert acme.encryption_certificate
    status.publish(site.deps, site.keys)
    second = site.http.get(f"/v1/crl/{issuer}", headers={"If-None-Match": first.headers["etag"]})
    changed = site.http.get(f"/v1/crl/{issuer}/delta", headers={"If-None-Match": second.headers["etag"]})
    assert [second.status_code, changed.status_code] == [200, 200]
    for answer, path in ((second, f"/v1/crl/{issuer}"), (changed, f"/v1/crl/{issuer}/delta")):
        assert answer.headers["cache-control"] == "public, no-cache"
        again = site.http.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    issuing = site.deps.chain.issuing
    base = crl.verify_crl(first.content, issuing_der=issuing, now=now())
    found = crl.verify_delta(changed.content, issuing_der=issuing, now=now())
    assert crl.apply_delta(base, found) == crl.verify_crl(second.content, issuing_der=issuing, now=now())
    for wrong in ("00", "ff" * 20, "xyz", "0" * 65, issuer.upper()):
        assert site.http.get(f"/v1/crl/{wrong}").status_code in (400, 404)


def test_lists_and_certificates_of_before_say_who_signed_them(
    office: Office, databases: Databases, dialect: str
) -> None:
    """The migration reads it in their bytes; the numbers go on, and each listed certificate is due for a response."""
    _, record = settled(office)
    own = status.latest_crl(office.deps)
    assert own is not None
    engine = create_engine(databases.empty(dialect).replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        schema.upgrade(connection, "0006")
        old = MetaData()
        old.reflect(connection)
        with office.deps.store.read() as unit:
            (row,) = unit.connection.execute(
                select(tables.certificates).where(tables.certificates.c.fingerprint == record.fingerprint)
            ).mappings()
        listed = {"number": own.number, "der": own.der, "this_update": own.this_update, "next_update": own.next_update}
        for name, values in (("certificates", dict(row)), ("crls", listed)):
            columns = [column for column in tables.metadata.tables[name].columns if column.name in old.tables[name].c]
            before = Table(name, MetaData(), *(Column(column.name, column.type) for column in columns))
            connection.execute(insert(before), {one.name: values.get(one.name) for one in columns})
    with engine.begin() as connection:
        schema.upgrade(connection)
    engine.dispose()
    store = Store(str(engine.url.render_as_string(hide_password=False)))
    with store.read() as unit:
        assert store_status.latest_crl(unit, own.issuer) == replace(own, base=None, delta=None)
        assert store_certificates.certificate(unit, record.fingerprint) == record
        due = [(one.serial, one.algorithm, one.issuer) for one in store_ocsp.due(unit, office.clock.now(), 9)]
    assert due == [(record.serial, "sha1", own.issuer)]
    store.close()
