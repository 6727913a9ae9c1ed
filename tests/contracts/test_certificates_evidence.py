"""Contract of evidence (attacks 15, 24, 29): the list is made from what owners signed, whatever the rows say."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import jsonschema_rs
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import text

from pki.core import crl, kem, x509
from pki.core.certificates import CertificateRecord
from pki.core.crl import Crl, Reason
from pki.core.events import EventType
from pki.core.ids import fingerprint
from pki.core.kem import KemAlgorithm
from pki.core.revocations import compose_revocation
from pki.core.signatures import Sign
from pki.core.tenants import Address, parse_address
from pki.core.x509 import CertificateKind
from pki.server.facts import RevocationRecord
from pki.server.services import certificates, evidence, notices, status
from pki.server.services.evidence import Doubt
from pki.server.store import certificates as certificate_store
from pki.server.store import revocations as evidence_store
from pki.server.store.engine import Store
from pki.server.store.tables import revocations
from tests.contracts.conftest import Databases
from tests.kit.authority import NOW, new_signing_key
from tests.kit.leaves import leaf_tbs
from tests.kit.office import Kms, Office, open_office

ACME, GLOBEX = parse_address("acme/eu-west"), parse_address("globex/main")
SCHEMA = Path(__file__).parents[2] / "schemas" / "events" / "keymailbox.revocation.doubted.schema.json"


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA."""
    return open_office(store, tmp_path)


@pytest.fixture
def kms(office: Office) -> Kms:
    """An instance with an identity certificate."""
    kms = Kms(ACME)
    office.settle(kms)
    return kms


def newest(office: Office) -> Crl:
    """Publish a list, and return it verified."""
    record = status.publish(office.deps, office.keys)
    return crl.verify_crl(record.der, issuing_der=office.deps.chain.issuing, now=office.clock.now())


def doubts(office: Office, *, again: bool = False) -> list[tuple[Doubt, str]]:
    """Return what is suspicious."""
    with office.deps.store.read() as unit:
        found = evidence.proved(office.deps, unit, office.clock.now(), again=again)
    return [(one.doubt, one.on) for one in found.suspicions]


def edit(office: Office, statement: str, **values: object) -> None:
    """Change the database as its administrator can."""
    with office.deps.store.unit() as unit:
        assert unit.connection.execute(text(statement), values).rowcount


def revoked(office: Office, kms: Kms, reason: Reason = Reason.KEY_COMPROMISE) -> CertificateRecord:
    """Return a certificate that its owner has revoked, and that is on no list yet."""
    record = office.publish(kms)
    certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, record.fingerprint, reason))
    return record


def test_the_owners_request_is_kept(office: Office, kms: Kms) -> None:
    """What the owner signed lies beside what it did, with all that is needed to verify it; the row says who it was."""
    record = office.publish(kms)
    wish = kms.revocation(office, record.fingerprint)
    done = certificates.revoke(office.deps, kms.caller(office), wish)
    assert (done.revoked_by, done.because) == ("owner", None)
    with office.deps.store.read() as unit:
        [kept] = evidence_store.many(unit, [record.fingerprint])
    assert (kept.evidence, kept.request, kept.certificate, kept.named) == ("owner", wish, record.der, None)
    assert newest(office).revoked[record.serial].reason is Reason.KEY_COMPROMISE
    assert doubts(office, again=True) == []


def test_what_falls_with_a_key_is_proved_by_the_same_request(office: Office, kms: Kms) -> None:
    """A lost identity takes the encryption keys along, a lost key its other certificates; each is proved by itself."""
    private = kem.generate()
    first = office.publish(kms, private)
    office.clock.step(timedelta(days=1))
    second = office.publish(kms, private)
    other = office.publish(kms)
    certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, first.fingerprint))
    assert set(newest(office).revoked) == {first.serial, second.serial}
    identity = certificates.lookup(office.deps, ACME).identity
    certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, identity.fingerprint))
    assert set(newest(office).revoked) == {one.serial for one in (first, second, other, identity)}
    assert doubts(office, again=True) == []


def test_a_row_that_says_revoked_proves_nothing(office: Office, kms: Kms) -> None:
    """Attack 29, REV-003: who edits the state revokes nobody; log, event and the owner say so, once."""
    record = office.publish(kms)
    edit(office, "UPDATE certificates SET state = 'revoked' WHERE fingerprint = :f", f=record.fingerprint)
    assert record.serial not in newest(office).revoked
    assert record.serial not in newest(office).revoked
    assert doubts(office) == [(Doubt.UNPROVED, record.fingerprint)]
    assert office.told(about=record.fingerprint).count("revocation.doubted") == 1
    while notices.sequence_events(office.deps, None):
        continue
    told = notices.events(office.deps, kms.caller(office))
    [alarm] = [one for one in told if one.event.type is EventType.REVOCATION_DOUBTED]
    jsonschema_rs.validate(
        json.loads(SCHEMA.read_text()), json.loads(json.dumps(notices.cloudevent(office.deps, alarm)))
    )
    office.clock.step(timedelta(days=8))
    newest(office)
    assert office.told(about=record.fingerprint)[-1] == "revocation.doubted"


def test_certificates_that_are_deleted_are_not_all_taken_for_given_up(
    office: Office, kms: Kms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack 29: what there never was a certificate of, rows alone say; so few are listed in a day, and it is told."""
    monkeypatch.setattr(evidence, "MOST_GIVEN_UP", 2)
    records = [office.publish(kms) for _ in range(5)]
    for record in records:
        edit(office, "UPDATE requests SET state = 'rejected' WHERE fingerprint = :f", f=record.fingerprint)
        edit(office, "DELETE FROM certificates WHERE fingerprint = :f", f=record.fingerprint)
    for _ in range(2):
        assert len(newest(office).revoked) == 2
        assert [doubt for doubt, _ in doubts(office)] == [Doubt.UNPROVED] * 3
    # Nor does it help to do away with those that are listed.
    for serial in newest(office).revoked:
        edit(office, "DELETE FROM requests WHERE serial = :s", s=f"{serial:040x}")
    assert len(newest(office).revoked) == 2
    office.clock.step(timedelta(days=1, minutes=1))
    assert len(newest(office).revoked) == 4


def test_a_request_that_is_called_rejected_revokes_nobody(office: Office, kms: Kms) -> None:
    """Attack 29: the serial of a certificate that there is is not taken for one that was given up."""
    record = office.publish(kms)
    edit(office, "UPDATE requests SET state = 'rejected' WHERE fingerprint = :f", f=record.fingerprint)
    for _ in range(2):
        assert record.serial not in newest(office).revoked
        assert doubts(office) == [(Doubt.UNPROVED, f"{record.serial:x}")]
        edit(office, "UPDATE certificates SET serial = 'ab' WHERE fingerprint = :f", f=record.fingerprint)


def test_a_revocation_is_not_taken_back(office: Office, kms: Kms) -> None:
    """Attack 24: before and after it was listed, the state may say what it likes; the certificate is listed."""
    record = revoked(office, kms)
    edit(office, "UPDATE certificates SET state = 'retired' WHERE fingerprint = :f", f=record.fingerprint)
    for _ in range(2):
        assert record.serial in newest(office).revoked
    assert doubts(office) == [(Doubt.TAKEN_BACK, record.fingerprint)]


def test_a_listed_certificate_stays_listed(office: Office, kms: Kms) -> None:
    """Attack 24: with its evidence, and even its own row, gone, what the CA has signed before is said again."""
    record = revoked(office, kms)
    assert record.serial in newest(office).revoked
    edit(office, "DELETE FROM revocations")
    edit(office, "UPDATE certificates SET state = 'retired' WHERE fingerprint = :f", f=record.fingerprint)
    assert record.serial in newest(office).revoked
    assert set(doubts(office)) == {(Doubt.MISSING, record.fingerprint), (Doubt.TAKEN_BACK, record.fingerprint)}
    edit(office, "DELETE FROM certificates WHERE fingerprint = :f", f=record.fingerprint)
    assert record.serial in newest(office).revoked
    office.clock.step(timedelta(days=400))
    assert doubts(office)


def test_a_list_of_somebody_else_is_no_list(office: Office, kms: Kms) -> None:
    """An edited list is passed over, and said to be one; the one before counts."""
    record = revoked(office, kms)
    last = status.latest_crl(office.deps)
    assert last is not None
    assert record.serial in newest(office).revoked
    edit(office, "DELETE FROM revocations")
    for changed in (b"\x30\x00", last.der):
        number = status.publish(office.deps, office.keys).number
        edit(office, "UPDATE crls SET der = :d WHERE number = :n", d=changed, n=number)
        assert (Doubt.LIST, str(number)) in doubts(office)
        assert record.serial in newest(office).revoked


EDITS: dict[str, tuple[object, ...]] = {
    "fingerprint": ("ab" * 32, "", "A" * 64),
    "evidence": ("order", "legacy", "", "owner ", "\u2603"),
    "certificate": (b"", b"\x30\x00"),
    "request": (None, b"", b"\x30\x00"),
    "signer": (None, b"", b"\x30\x00"),
    "named": (b"", b"\x30\x00"),
    "endorsement": (None, b"", b"\x30\x00"),
    "order_id": (None,),
    "created_at": (NOW - timedelta(days=999), NOW + timedelta(days=999)),
}
HARMLESS = {"order_id", "created_at"}


def test_the_edits_are_of_every_column() -> None:
    """The list above leaves no column out."""
    assert set(EDITS) == set(revocations.c.keys())


@pytest.mark.parametrize("column", list(EDITS))
def test_an_edited_column_proves_no_more_than_before(office: Office, kms: Kms, column: str) -> None:
    """Attack 15: evidence that was changed, or is about another, revokes nobody and is told; what was listed stays."""
    other = Kms(GLOBEX)
    office.settle(other)
    record = office.publish(kms)
    mine, theirs = office.publish(kms), office.publish(other)
    for who, lost in ((kms, record), (other, theirs)):
        certificates.revoke(office.deps, who.caller(office), who.revocation(office, lost.fingerprint))
    with office.deps.store.read() as unit:
        [own] = evidence_store.many(unit, [record.fingerprint])
        [foreign] = evidence_store.many(unit, [theirs.fingerprint])
    values = [*EDITS[column]]
    if column in ("certificate", "request", "signer", "endorsement"):
        values.append(getattr(foreign, column))
    values += {"certificate": [mine.der], "named": [mine.der, theirs.der], "fingerprint": [mine.fingerprint]}.get(
        column, [mine.request_der] if column == "endorsement" else []
    )
    for value in values:
        for undo in (False, True):
            with office.deps.store.unit() as unit:
                kept = {name: getattr(own, name) for name in EDITS}
                at = revocations.c.fingerprint.not_in([theirs.fingerprint])
                unit.connection.execute(revocations.update().where(at).values(kept if undo else {column: value}))
            with office.deps.store.read() as unit:
                found = evidence.proved(office.deps, unit, office.clock.now())
            listed = {one.serial for one in found.entries.values()}
            assert listed == ({record.serial, theirs.serial} if undo or column in HARMLESS else {theirs.serial})
            assert bool(found.suspicions) is not (undo or column in HARMLESS)
    assert record.serial in newest(office).revoked
    edit(office, "UPDATE revocations SET evidence = 'none'")
    assert record.serial in newest(office).revoked
    assert doubts(office) == []
    assert {doubt for doubt, _ in doubts(office, again=True)} == {Doubt.BROKEN}


def made_up(office: Office, address: Address, spki: bytes, kind: CertificateKind, serial: int, sign: Sign) -> bytes:
    """Return a certificate that names our CA as its issuer."""
    tbs = leaf_tbs(
        serial=serial,
        issuer_der=office.deps.chain.issuing,
        address=address,
        spki=spki,
        not_before=NOW,
        not_after=NOW + timedelta(days=30),
        kind=kind,
    )
    return x509.assemble(tbs, sign(tbs))


def test_nobody_elses_word_counts(office: Office, kms: Kms) -> None:
    """Attack 27: no other tenant's signature, and nothing made up around a serial or an address, is proof."""
    victim, other = office.publish(kms), Kms(GLOBEX)
    office.settle(other)
    now = office.clock.now()
    with office.deps.store.read() as unit:
        [signer] = certificate_store.by_ski(unit, other.ski.hex())
        [identity] = certificate_store.by_ski(unit, kms.ski.hex())
    spki = kem.spki(KemAlgorithm.COMPOSITE, kem.public_from_private(KemAlgorithm.COMPOSITE, kem.generate()))
    strange = new_signing_key().sign
    faked = made_up(office, GLOBEX, spki, CertificateKind.ENCRYPTION, victim.serial, strange)
    # Who has the CA's key as well can make up an identity, but does not revoke the one that there is.
    rogue = made_up(office, ACME, other.spki, CertificateKind.IDENTITY, 4711, office.signer.sign)
    unsigned = made_up(office, ACME, other.spki, CertificateKind.IDENTITY, 4711, strange)
    for certificate, named, by in (
        (victim.der, None, signer.der),
        (victim.der, None, identity.der),  # it says that the victim signed it
        (victim.der, None, unsigned),
        (identity.der, None, signer.der),
        (identity.der, None, rogue),
        (victim.der, signer.der, signer.der),
        (faked, None, signer.der),
        (victim.der, faked, signer.der),
    ):
        row = RevocationRecord(
            fingerprint=fingerprint(certificate),
            evidence=evidence.OWNER,
            certificate=certificate,
            created_at=now,
            request=compose_revocation(
                fingerprint(named or certificate),
                Reason.KEY_COMPROMISE,
                signer_ski=kms.ski if by == identity.der else other.ski,
                sign=other.identity.sign,
                signing_time=now,
            ),
            signer=by,
            named=named,
        )
        with office.deps.store.unit() as unit:
            unit.connection.execute(revocations.delete())
            evidence_store.insert(unit, [row])
            found = evidence.proved(office.deps, unit, now)
        assert found.entries == {}
        assert [(one.doubt, one.on) for one in found.suspicions] == [(Doubt.BROKEN, row.fingerprint)]


def test_an_identity_of_somebody_else_at_the_address_revokes_nothing(office: Office, kms: Kms) -> None:
    """REV-002: who edits the database can have a key of their own certified as the owner's, and signs in vain."""
    mine, again = office.publish(kms), office.publish(kms)
    rogue = replace(kms, identity=new_signing_key())
    edit(office, "UPDATE instances SET identity_spki = :spki", spki=rogue.spki)
    request = certificates.submit_request(office.deps, kms.caller(office), rogue.identity_request(office.clock.now()))
    office.work()
    identity = certificates.lookup(office.deps, ACME).identity
    assert identity.request_der == request.der
    certificates.revoke(office.deps, rogue.caller(office), rogue.revocation(office, mine.fingerprint))
    # It tries with what it endorsed itself, too, and with another's endorsement.
    forged = rogue.encryption_request(office, kem.generate())
    for endorsement in (mine.request_der, forged, again.request_der, None):
        edit(office, "UPDATE revocations SET endorsement = :der", der=endorsement)
        assert newest(office).revoked == {}
        assert (Doubt.BROKEN, mine.fingerprint) in doubts(office)
    certificates.revoke(office.deps, rogue.caller(office), rogue.revocation(office, identity.fingerprint))
    assert set(newest(office).revoked) == {identity.serial}


@pytest.mark.parametrize("reason", [Reason.KEY_COMPROMISE, Reason.SUPERSEDED])
def test_an_owners_word_is_not_stretched(office: Office, kms: Kms, reason: Reason) -> None:
    """REV-002: the request for one certificate is not proof for another key's, nor a mild one for what hangs below."""
    first, second = office.publish(kms), office.publish(kms)
    identity = certificates.lookup(office.deps, ACME).identity
    named = first if reason is Reason.KEY_COMPROMISE else identity
    certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, named.fingerprint, reason))
    with office.deps.store.unit() as unit:
        [proof] = evidence_store.many(unit, [named.fingerprint])
        more = replace(proof, fingerprint=second.fingerprint, certificate=second.der, named=named.der)
        evidence_store.insert(unit, [more])
        found = evidence.proved(office.deps, unit, office.clock.now())
    assert {one.serial for one in found.entries.values()} == {named.serial}
    assert (Doubt.BROKEN, second.fingerprint) in {(one.doubt, one.on) for one in found.suspicions}


def test_what_was_revoked_before_there_was_evidence(office: Office, kms: Kms) -> None:
    """A legacy row keeps what the CA has listed on the list, and proves nothing of what it has not."""
    old, never = revoked(office, kms), office.publish(kms)
    assert old.serial in newest(office).revoked
    edit(office, "UPDATE revocations SET evidence = 'legacy', request = NULL, signer = NULL")
    with office.deps.store.unit() as unit:
        row = RevocationRecord(never.fingerprint, evidence.LEGACY, never.der, office.clock.now())
        evidence_store.insert(unit, [row])
    assert set(newest(office).revoked) == {old.serial}
    assert doubts(office, again=True) == [(Doubt.BROKEN, never.fingerprint)]


def test_an_expired_certificate_leaves_the_list(office: Office, kms: Kms) -> None:
    """After its end and a list's lifetime, and not because a row says that it has ended (attack 24)."""
    record = revoked(office, kms)
    edit(office, "UPDATE certificates SET not_after = not_before")
    assert record.serial in newest(office).revoked
    office.clock.step(timedelta(days=364))
    assert record.serial in newest(office).revoked
    office.clock.step(timedelta(days=3))
    assert record.serial not in newest(office).revoked
    assert doubts(office, again=True) == []


def test_the_migration_keeps_what_was_revoked(databases: Databases, dialect: str, tmp_path: Path) -> None:
    """What a release without evidence had revoked and listed is still on the next list, and nobody is alarmed."""
    old = open_office(Store(databases.migrated(dialect)), tmp_path)
    kms = Kms(ACME)
    old.settle(kms)
    record = revoked(old, kms)
    assert record.serial in newest(old).revoked
    # Back to the schema of before, rows and all.
    edit(old, "DROP TABLE revocations")
    edit(old, "DROP TABLE orders")
    for column in ("revoked_by", "because"):
        edit(old, f"ALTER TABLE certificates DROP COLUMN {column}")
    with old.deps.store.unit() as unit:
        with Operations.context(MigrationContext.configure(unit.connection)):
            for name in ("0006_evidence", "0009_endorsements"):
                import_module(f"pki.server.store.migrations.versions.{name}").upgrade()
    with old.deps.store.read() as unit:
        [kept] = evidence_store.many(unit, [record.fingerprint])
    assert (kept.evidence, kept.certificate, kept.request) == (evidence.LEGACY, record.der, None)
    assert record.serial in newest(old).revoked
    assert doubts(old, again=True) == []
    old.deps.store.close()
