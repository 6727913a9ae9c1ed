"""Contract of officers' orders (attacks 27 and 29): two persons, in time, within the cap, and the owner is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import jsonschema_rs
import pytest
from sqlalchemy import text

from pki.core import crl, x509
from pki.core import officers as core_officers
from pki.core.authorities import ca_key_identifier
from pki.core.certificates import CertificateRecord, CertificateState
from pki.core.crl import Crl, Reason
from pki.core.errors import (
    CertificateError,
    ConflictError,
    ForbiddenError,
    IllegalMoveError,
    KeymailboxError,
    NotFoundError,
    ProfileError,
    SignatureError,
    StaleError,
    UsageError,
)
from pki.core.events import EventType
from pki.core.ids import Fingerprint
from pki.core.officers import Officer
from pki.core.orders import OrderId
from pki.core.tenants import parse_address
from pki.server.facts import OrderRecord, RevocationRecord
from pki.server.hierarchy import encode_issuers
from pki.server.ports import CA_FOLDER, ISSUERS_FILE, OFFICERS_FILE, CaKeys
from pki.server.services import certificates, evidence, notices, officers, orders, status
from pki.server.services.evidence import Doubt
from pki.server.store import events as event_store
from pki.server.store import orders as order_store
from pki.server.store import revocations as evidence_store
from pki.server.store.engine import Store
from pki.server.store.tables import orders as table
from pki.server.store.tables import revocations
from tests.contracts.test_status_lists import Desk, desk
from tests.kit.authority import authority, new_signing_key
from tests.kit.bureau import Bureau
from tests.kit.office import Kms, Office, open_office
from tests.kit.threads import together

__all__ = ["desk"]

ACME, GLOBEX = parse_address("acme/eu-west"), parse_address("globex/main")
SCHEMAS = Path(__file__).parents[2] / "schemas" / "events"


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA, of which orders may revoke three certificates a day."""
    return open_office(store, tmp_path, order_cap=3)


@pytest.fixture
def kms(office: Office) -> Kms:
    """An instance with an identity certificate."""
    kms = Kms(ACME)
    office.settle(kms)
    return kms


@pytest.fixture
def bureau(office: Office) -> Bureau:
    """Three officers."""
    return Bureau(office, "ann", "bob", "eve")


def newest(office: Office) -> Crl:
    """Publish a list, and return it verified."""
    record = status.publish(office.deps, office.keys)
    return crl.verify_crl(record.der, issuing_der=office.deps.chain.issuing, now=office.clock.now())


def proof(office: Office, *, again: bool = False) -> evidence.Proof:
    """Return what the issuer would list, and what it doubts."""
    with office.deps.store.read() as unit:
        return evidence.proved(office.deps, unit, office.clock.now(), again=again, counted=True)


def state(office: Office, record: CertificateRecord) -> CertificateState:
    """Return a certificate's state."""
    return certificates.by_fingerprint(office.deps, record.fingerprint).state


def test_two_officers_revoke(office: Office, kms: Kms, bureau: Bureau) -> None:
    """Nothing happens before the second; then all that an owner's revocation does, and the owner is told why."""
    record = office.publish(kms)
    given = bureau.give(bureau.revocation("ann", [record.fingerprint]))
    assert state(office, record) is CertificateState.ACTIVE
    assert record.serial not in newest(office).revoked
    done = bureau.approve("bob", given)
    assert [item.fingerprint for item in done.revoked] == [record.fingerprint]
    found = certificates.by_fingerprint(office.deps, record.fingerprint)
    assert (found.state, found.revoked_by, found.because, found.revocation_reason) == (
        CertificateState.REVOKED,
        "operator: ann, bob",
        "Your key was seen in a public place",
        Reason.KEY_COMPROMISE,
    )
    assert [job.kind for job in office.jobs()] == ["crl"]
    assert newest(office).revoked[record.serial].reason is Reason.KEY_COMPROMISE
    assert proof(office, again=True).suspicions == []
    while notices.sequence_events(office.deps, None):
        continue
    heard = notices.events(office.deps, kms.caller(office), limit=500)
    [told] = [one for one in heard if one.event.type is EventType.CERTIFICATE_REVOKED]
    assert (told.event.data["revoked_by"], told.event.data["because"]) == (found.revoked_by, found.because)
    with office.deps.store.read() as unit:
        everything = event_store.after(unit, 0, 1000)
    kinds = {one.event.type.removeprefix("keymailbox.") for one in everything}
    assert {"officer.added", "order.given", "order.approved"} <= kinds
    for one in everything:
        schema = json.loads((SCHEMAS / f"{one.event.type}.schema.json").read_text())
        jsonschema_rs.validate(schema, json.loads(json.dumps(notices.cloudevent(office.deps, one))))


def test_one_person_is_not_two(office: Office, kms: Kms, bureau: Bureau) -> None:
    """ORD-005: not the same officer twice, nor under another's name, nor a stranger, nor one key under two names."""
    record = office.publish(kms)
    given = bureau.give(bureau.revocation("ann", [record.fingerprint]))
    stranger = new_signing_key()
    cases: list[tuple[type[KeymailboxError], bytes]] = [
        (ForbiddenError, bureau.approval("ann", given)),
        (SignatureError, bureau.approval("bob", given, bureau.keys["ann"])),
        (SignatureError, bureau.approval("bob", given, stranger)),
        (ForbiddenError, bureau.approval("mallory", given, stranger)),
    ]
    for expected, der in cases:
        with pytest.raises(KeymailboxError) as caught:
            orders.approve(office.deps, der)
        assert type(caught.value) is expected
    with pytest.raises(ConflictError):
        bureau.add("ann-too", bureau.keys["ann"])
    with pytest.raises(ConflictError):
        bureau.add("ann", stranger)
    assert state(office, record) is CertificateState.ACTIVE
    assert office.jobs() == []


def test_an_order_is_the_officers_own(office: Office, kms: Kms, bureau: Bureau) -> None:
    """ORD-003, -004: nobody gives one in another's name; altered, old, of nothing or of too much, it is none."""
    record = office.publish(kms)
    good = bureau.revocation("ann", [record.fingerprint])
    der = bureau.signed(good)
    bureau.keys["mallory"] = new_signing_key()
    bureau.keys["bob-really"] = bureau.keys["bob"]
    late = bureau.signed(bureau.revocation("ann", [record.fingerprint], ago=timedelta(hours=25)))
    unknown = bureau.signed(bureau.revocation("ann", [Fingerprint("ab" * 32)]))
    cases: list[tuple[type[KeymailboxError], Callable[[], bytes]]] = [
        (ForbiddenError, lambda: bureau.signed(bureau.revocation("mallory", [record.fingerprint]))),
        (ForbiddenError, lambda: bureau.signed(bureau.revocation("bob-really", [record.fingerprint]))),
        (SignatureError, lambda: der[:-1] + bytes([der[-1] ^ 1])),
        (StaleError, lambda: late),
        (NotFoundError, lambda: unknown),
        (ProfileError, lambda: bureau.signed(bureau.revocation("ann", []))),
        (ProfileError, lambda: bureau.signed(bureau.revocation("ann", [record.fingerprint], because=""))),
        (ProfileError, lambda: bureau.signed(bureau.revocation("ann", [record.fingerprint], because="a\nb"))),
        (ProfileError, lambda: bureau.signed(bureau.revocation("ann", [record.fingerprint], because="a" * 501))),
    ]
    for expected, make in cases:
        with pytest.raises(KeymailboxError) as caught:
            orders.give(office.deps, make())
        assert type(caught.value) is expected, caught.value
    with office.deps.store.read() as unit:
        with pytest.raises(NotFoundError):
            orders.find(unit, "00000000")


def test_an_order_waits_for_a_day(office: Office, kms: Kms, bureau: Bureau) -> None:
    """ORD-006: approved too late, or with an approval of another day, it does nothing; killed in between, it waits."""
    record = office.publish(kms)
    given = bureau.give(bureau.revocation("ann", [record.fingerprint]))
    assert bureau.give(bureau.revocation("ann", [record.fingerprint])).id != given.id
    early = bureau.approval("bob", given)
    office.clock.step(timedelta(hours=23))
    with pytest.raises(StaleError):
        orders.approve(office.deps, early)
    office.clock.step(timedelta(hours=1))
    with pytest.raises(StaleError):
        bureau.approve("bob", given)
    assert orders.standing(given, office.clock.now()) == "expired"
    assert state(office, record) is CertificateState.ACTIVE
    assert bureau.revoke(record.fingerprint).revoked


def test_approved_twice_at_once(office: Office, kms: Kms, bureau: Bureau) -> None:
    """One approval is carried out, once; the same one again changes nothing, another one is told that it came late."""
    record = office.publish(kms)
    given = bureau.give(bureau.revocation("ann", [record.fingerprint]))
    same = bureau.approval("bob", given)
    outcomes = together(4, lambda _: orders.approve(office.deps, same))
    assert sorted(len(outcome.revoked) for outcome in outcomes) == [0, 0, 0, 1]
    with pytest.raises(IllegalMoveError):
        bureau.approve("eve", given)
    assert office.told(about=record.fingerprint).count("certificate.revoked") == 1


def test_two_orders_at_once_keep_the_cap(office: Office, kms: Kms, bureau: Bureau) -> None:
    """ORD-007: of two orders that fit alone and not together, approved at the same time, one is refused."""
    wanted = [office.publish(kms).fingerprint for _ in range(4)]
    given = [bureau.give(bureau.revocation("ann", wanted[:2])), bureau.give(bureau.revocation("ann", wanted[2:]))]

    def approve(number: int) -> int:
        try:
            return len(bureau.approve(("bob", "eve")[number], given[number]).revoked)
        except ForbiddenError as error:
            assert error.rule == "ORD-007"
            return 0

    assert sorted(together(2, approve)) == [0, 2]
    assert len(newest(office).revoked) == 2


def test_masses_are_not_revoked_by_two_alone(office: Office, kms: Kms, bureau: Bureau) -> None:
    """Attack 29, ORD-007: the fourth in a day is refused with the next command, until two officers lift the cap."""
    wanted = [office.publish(kms).fingerprint for _ in range(6)]
    assert len(bureau.revoke(*wanted[:2]).revoked) == 2
    newest(office)
    with pytest.raises(ForbiddenError) as caught:
        bureau.give(bureau.revocation("ann", wanted[2:4]))
    assert caught.value.rule == "ORD-007"
    assert caught.value.hint.startswith("kmb-server revoke lift-cap --count 4 --for 1h")
    bureau.approve("bob", bureau.give(bureau.lift("ann", 5)))
    assert len(bureau.revoke(*wanted[2:4]).revoked) == 2
    with pytest.raises(ForbiddenError) as caught:
        bureau.give(bureau.revocation("ann", wanted[4:6]))
    # With a lift in force as well, what is told is enough.
    assert caught.value.message == "Orders may revoke 5 certificates in 24 hours"
    assert caught.value.on == "4 are spent, 2 more are wanted"
    assert caught.value.hint.startswith("kmb-server revoke lift-cap --count 6 --for 1h")
    office.clock.step(timedelta(hours=2))
    with pytest.raises(ForbiddenError):
        bureau.give(bureau.revocation("ann", wanted[4:5]))
    assert len(newest(office).revoked) == 4
    office.clock.step(timedelta(hours=25))
    assert proof(office).room == 3
    assert len(bureau.revoke(*wanted[4:6]).revoked) == 2


def test_owners_are_not_capped(office: Office, kms: Kms, bureau: Bureau) -> None:
    """What owners revoke themselves counts nothing, and is listed whatever the cap."""
    wanted = [office.publish(kms).fingerprint for _ in range(5)]
    bureau.revoke(*wanted[:1])
    newest(office)
    for one in wanted[1:]:
        certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, one))
        newest(office)
    assert len(newest(office).revoked) == 5
    assert proof(office).room == 2


def test_the_issuer_counts_for_itself(office: Office, kms: Kms, bureau: Bureau) -> None:
    """ORD-007 again in the issuer: orders that a looser process has carried out are not listed above the cap."""
    wanted = [office.publish(kms).fingerprint for _ in range(5)]
    settings = office.deps.settings.model_copy(update={"order_cap": 100})
    other = Bureau(replace(office, deps=replace(office.deps, settings=settings)))
    other.keys = bureau.keys
    bureau.revoke(*wanted[:2])
    office.clock.step(timedelta(seconds=1))
    other.revoke(*wanted[2:])
    assert len(newest(office).revoked) == 2
    found = proof(office)
    assert {one.on for one in found.suspicions if one.doubt is Doubt.BROKEN} == set(wanted[2:])
    assert all(one.error is not None and one.error.rule == "ORD-007" for one in found.suspicions)
    with office.deps.store.unit() as unit:
        unit.connection.execute(text("DELETE FROM revocations"))
        unit.connection.execute(text("UPDATE orders SET executed_at = NULL"))
    assert proof(office).room == 1


def test_who_was_removed_orders_no_more(office: Office, kms: Kms, bureau: Bureau) -> None:
    """ORD-003: neither gives nor approves, nor is an order approved whose giver is gone; what was done stays proved."""
    first, second = office.publish(kms), office.publish(kms)
    bureau.revoke(first.fingerprint, by=("eve", "ann"))
    given = bureau.give(bureau.revocation("eve", [second.fingerprint]))
    waiting = bureau.give(bureau.revocation("ann", [second.fingerprint]))
    office.clock.step(timedelta(minutes=1))
    officers.remove(office.deps, office.keys, "eve")
    office.clock.step(timedelta(minutes=1))
    for attempt in (
        lambda: bureau.approve("ann", given),
        lambda: bureau.approve("eve", waiting),
        lambda: bureau.give(bureau.revocation("eve", [second.fingerprint])),
    ):
        with pytest.raises(ForbiddenError) as caught:
            attempt()
        assert caught.value.rule == "ORD-003"
    assert first.serial in newest(office).revoked
    assert proof(office, again=True).suspicions == []
    with pytest.raises(NotFoundError):
        officers.remove(office.deps, office.keys, "eve")
    with pytest.raises(ConflictError):
        bureau.add("eve")


def test_an_order_of_before_does_not_come_back(office: Office, kms: Kms, bureau: Bureau) -> None:
    """Who has a removed officer's key dates nothing back: a day later an order comes on no list for the first time."""
    record = office.publish(kms)
    given = bureau.give(bureau.revocation("eve", [record.fingerprint]))
    bureau.approve("ann", given)
    office.clock.step(timedelta(minutes=1))
    officers.remove(office.deps, office.keys, "eve")
    assert record.serial in {one.serial for one in proof(office).entries.values()}
    office.clock.step(timedelta(hours=25))
    found = proof(office)
    assert found.entries == {}
    assert [one.doubt for one in found.suspicions] == [Doubt.BROKEN]


def test_the_list_of_officers_is_the_cas(office: Office, kms: Kms, bureau: Bureau) -> None:
    """ORD-001, -002: edited, signed by somebody else, or an older one put back, nobody is an officer by it."""
    path = office.deps.settings.home / CA_FOLDER / OFFICERS_FILE
    record, good = office.publish(kms), path.read_bytes()
    given = bureau.give(bureau.revocation("ann", [record.fingerprint]))
    bureau.add("joe")
    newer = path.read_bytes()

    class Stranger:
        certificate_der = office.signer.certificate_der

        def sign(self, message: bytes, /) -> bytes:
            return authority().key.sign(message)

    officers_of_strangers = open_office(office.deps.store, office.deps.settings.home)
    with pytest.raises(SignatureError):
        officers.add(officers_of_strangers.deps, CaKeys(Stranger()), "mallory", new_signing_key().public.spki)
    strange = path.read_bytes()
    for content, expected in (
        (strange, SignatureError),
        (newer[:-1] + bytes([newer[-1] ^ 1]), SignatureError),
        (newer.replace(b"joe", b"jim"), SignatureError),
        (good, StaleError),
        (b"", KeymailboxError),
        (b"\x30" * 2000, KeymailboxError),
    ):
        path.write_bytes(content)
        with pytest.raises(expected):
            bureau.approve("bob", given)
    path.unlink()
    with pytest.raises(StaleError):
        bureau.approve("bob", given)
    assert state(office, record) is CertificateState.ACTIVE
    path.write_bytes(newer)
    assert bureau.approve("bob", given).revoked


def test_a_ca_that_the_root_did_not_sign_makes_no_officers(office: Office, kms: Kms) -> None:
    """ORD-002: who can write the home, and has no passphrase, puts a CA of their own among the former ones."""
    record, now = office.publish(kms), office.clock.now().replace(microsecond=0)
    rogue = new_signing_key()
    tbs = x509.ca_tbs(
        "keymailbox issuing 00000000",
        rogue.public.spki,
        issuer_der=None,
        serial=5,
        not_before=now - timedelta(days=100),
        # Over, so that the issuer looks for no key of it.
        not_after=now - timedelta(days=1),
        path_length=0,
    )
    forged = x509.assemble(tbs, rogue.sign(tbs))
    bureau = Bureau(office)
    bureau.keys = {name: new_signing_key() for name in ("ann", "bob")}
    listed = [Officer(name, key.public, now - timedelta(hours=1)) for name, key in bureau.keys.items()]
    for issued in (now - timedelta(days=50), now):
        tbs = core_officers.officers_tbs(1, ca_key_identifier(forged), issued, listed)
        folder = office.deps.settings.home / CA_FOLDER
        (folder / OFFICERS_FILE).write_bytes(core_officers.assemble(tbs, rogue.sign(tbs), forged))
        (folder / ISSUERS_FILE).write_bytes(encode_issuers((office.deps.chain.issuing, forged)))
        assert forged in office.deps.chain.all
        with pytest.raises(CertificateError, match="chain"):
            bureau.give(bureau.revocation("ann", [record.fingerprint]))
    assert state(office, record) is CertificateState.ACTIVE


def test_the_list_of_officers_outlives_the_ca_that_signed_it(desk: Desk) -> None:
    """The next issuing CA signs it anew, while the former can still be asked for; again changes nothing."""
    Bureau(desk, "ann", "bob")
    path = desk.deps.settings.home / CA_FOLDER / OFFICERS_FILE
    officers.sign_anew(desk.deps, desk.keys)
    first = path.read_bytes()
    desk.roll_over(0, 1)
    for _ in range(2):
        officers.sign_anew(desk.deps, desk.keys)
    second = path.read_bytes()
    desk.roll_over(0)
    with desk.deps.store.read() as unit:
        found = officers.read(desk.deps, unit)
    assert ([one.name for one in found.listed], found.number) == (["ann", "bob"], 3)
    for old, expected in ((first, CertificateError), (second.replace(b"bob", b"bop"), SignatureError)):
        path.write_bytes(old)
        with pytest.raises(expected):
            officers.sign_anew(desk.deps, desk.keys)
    path.unlink()
    with pytest.raises(StaleError):
        officers.sign_anew(desk.deps, desk.keys)


def test_without_officers_there_are_no_orders(office: Office, kms: Kms) -> None:
    """Where nobody was made an officer, the next command says how."""
    record = office.publish(kms)
    lonely = Bureau(office)
    lonely.keys["ann"] = new_signing_key()
    with pytest.raises(NotFoundError) as caught:
        lonely.give(lonely.revocation("ann", [record.fingerprint]))
    assert "officer add" in caught.value.hint
    for name, spki, expected in (
        ("Ann", new_signing_key().public.spki, UsageError),
        ("ann", b"", KeymailboxError),
        ("ann", authority().issuing_der, KeymailboxError),
    ):
        with pytest.raises(expected):
            officers.add(office.deps, office.keys, name, spki)


def test_several_are_made_officers_at_once(office: Office) -> None:
    """Nobody is lost when lists are written side by side, and no name is given twice."""

    def add(number: int) -> int:
        try:
            return officers.add(
                office.deps, office.keys, f"officer-{number // 2}", new_signing_key().public.spki
            ).number
        except ConflictError:
            return 0

    numbers = together(6, add)
    assert sorted(numbers) == [0, 0, 0, 1, 2, 3]
    with office.deps.store.read() as unit:
        assert {one.name for one in officers.read(office.deps, unit).listed} == {f"officer-{n}" for n in range(3)}


EDITS: dict[str, tuple[object, ...]] = {
    "id": ("ab" * 32, ""),
    "kind": ("lift",),
    "der": (b"", b"\x30\x00"),
    "approval": (None, b"", b"\x30\x00"),
    "ordered_by": ("mallory",),
    "approved_by": (None, "mallory"),
    "because": ("nothing",),
    "created_at": ("2001-01-01", "2099-01-01"),
    "expires_at": ("2001-01-01", "2099-01-01"),
    "executed_at": (None, "2001-01-01", "2099-01-01"),
}
HARMLESS = {"kind", "ordered_by", "approved_by", "because", "created_at", "expires_at", "executed_at"}


def test_the_edits_are_of_every_column() -> None:
    """The list above leaves no column out."""
    assert set(EDITS) == set(table.c.keys())


@pytest.mark.parametrize("column", list(EDITS))
def test_an_edited_order_proves_no_more_than_before(office: Office, kms: Kms, bureau: Bureau, column: str) -> None:
    """Attack 15: an edited order revokes what two officers signed, or nothing, and that is told."""
    record, other, mine = (office.publish(kms) for _ in range(3))
    done = bureau.revoke(record.fingerprint).order
    foreign = bureau.give(bureau.revocation("ann", [mine.fingerprint]))
    with office.deps.store.read() as unit:
        [proofs] = evidence_store.many(unit, [record.fingerprint])
    values = [*EDITS[column]]
    values += {
        "der": [foreign.der],
        "approval": [
            bureau.approval("ann", done),
            bureau.approval("bob", foreign),
            bureau.approval("bob", done, new_signing_key()),
        ],
    }.get(column, [])
    for value in values:
        if isinstance(value, str) and column.endswith("_at"):
            value = datetime.fromisoformat(value + "T00:00:00+00:00")
        with office.deps.store.unit() as unit:
            if column == "id":
                unit.connection.execute(revocations.update().values(order_id=None))
            unit.connection.execute(table.update().where(table.c.id == done.id).values({column: value}))
            if column == "id":
                unit.connection.execute(revocations.update().values(order_id=value))
        found = proof(office)
        listed = {one.serial for one in found.entries.values()}
        assert listed == ({record.serial} if column in HARMLESS else set())
        assert bool(found.suspicions) is (column not in HARMLESS)
        with office.deps.store.unit() as unit:
            unit.connection.execute(revocations.update().values(order_id=None))
            unit.connection.execute(table.delete().where(table.c.id != foreign.id))
            order_store.insert(unit, done)
            assert done.approval is not None
            assert done.executed_at is not None
            order_store.approve(unit, done.id, done.approval, "bob", done.executed_at)
            unit.connection.execute(revocations.update().values(order_id=proofs.order_id))
    assert other


def test_an_order_is_for_what_it_names(office: Office, kms: Kms, bureau: Bureau) -> None:
    """An approved order of one certificate, put beside others by hand, proves nothing of them (ORD-004)."""
    record, victim = office.publish(kms), office.publish(kms)
    done = bureau.revoke(record.fingerprint).order
    newest(office)
    lift = bureau.approve("bob", bureau.give(bureau.lift("ann", 100))).order
    for order_id in (done.id, lift.id, OrderId("ab" * 32), OrderId("")):
        row = RevocationRecord(victim.fingerprint, evidence.ORDER, victim.der, office.clock.now(), order_id=None)
        with office.deps.store.unit() as unit:
            unit.connection.execute(text("DELETE FROM revocations WHERE fingerprint = :f"), {"f": victim.fingerprint})
            evidence_store.insert(unit, [row])
            if order_id in (done.id, lift.id):
                unit.connection.execute(
                    text("UPDATE revocations SET order_id = :o WHERE fingerprint = :f"),
                    {"o": order_id, "f": victim.fingerprint},
                )
        found = proof(office)
        assert victim.serial not in {one.serial for one in found.entries.values()}
        assert (Doubt.BROKEN, victim.fingerprint) in {(one.doubt, one.on) for one in found.suspicions}


def given_orders(office: Office) -> list[OrderRecord]:
    """Return all orders."""
    with office.deps.store.read() as unit:
        return order_store.newest(unit, 100)


def test_what_an_order_reaches(office: Office, kms: Kms, bureau: Bureau) -> None:
    """For an address all that can be revoked, for a certificate what falls with it; nothing twice, nothing else."""
    private = office.publish(kms)
    other = Kms(GLOBEX)
    office.settle(other)
    office.publish(other)
    identity = certificates.lookup(office.deps, ACME).identity
    with office.deps.store.read() as unit:
        everything = orders.reach(unit, [ACME], Reason.SUPERSEDED)
        lost = orders.reach(unit, [identity.fingerprint, ACME], Reason.KEY_COMPROMISE)
        alone = orders.reach(unit, [identity.fingerprint], Reason.SUPERSEDED)
        with pytest.raises(NotFoundError):
            orders.reach(unit, [Fingerprint("ab" * 32)], Reason.SUPERSEDED)
        with pytest.raises(NotFoundError):
            orders.reach(unit, [parse_address("acme/none")], Reason.SUPERSEDED)
    assert {one.fingerprint for one in everything} == {identity.fingerprint, private.fingerprint}
    assert everything == lost
    assert alone == [identity]
    bureau.revoke(*(one.fingerprint for one in lost))
    with office.deps.store.read() as unit, pytest.raises(IllegalMoveError):
        orders.reach(unit, [ACME], Reason.SUPERSEDED)
    assert [one.ordered_by for one in given_orders(office)] == ["ann"]


def test_what_the_owner_revoked_meanwhile_is_passed_over(office: Office, kms: Kms, bureau: Bureau) -> None:
    """Between order and approval the owner was quicker: the rest is carried out, and nothing left is an error."""
    first, second = office.publish(kms), office.publish(kms)
    both = bureau.give(bureau.revocation("ann", [first.fingerprint, second.fingerprint]))
    one = bureau.give(bureau.revocation("ann", [first.fingerprint]))
    certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, first.fingerprint, Reason.SUPERSEDED))
    assert [item.fingerprint for item in bureau.approve("bob", both).revoked] == [second.fingerprint]
    with pytest.raises(IllegalMoveError):
        bureau.approve("bob", one)
    assert certificates.by_fingerprint(office.deps, first.fingerprint).revoked_by == "owner"
