"""Contract of CMP's exchanges: hostile messages, the same ones again, workers that die, and revocation."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from pki.core import asn1, keys
from pki.core.certificates import CertificateState
from pki.core.cmp.types import Fail
from pki.core.crl import verify_crl
from pki.core.errors import MalformedError, ProfileError, SealError, SettingsError, UnavailableError
from pki.core.kem import KemAlgorithm
from pki.core.signatures import SignatureAlgorithm
from pki.core.tenants import parse_address
from pki.core.x509 import CertificateKind
from pki.server.adapters import registration
from pki.server.ports import CaKeys
from pki.server.services import certificates, doctor, rotation, status
from pki.server.services.cmp import exchanges, handling
from pki.server.store import certificates as certificate_store
from pki.server.store import exchanges as exchange_store
from pki.server.store import outbox, tenants
from pki.server.store.engine import Store
from tests.kit import forge, forge_cmp, tlv
from tests.kit.authority import new_signing_key
from tests.kit.counter import Client, Counter
from tests.kit.office import PASSPHRASE, Office, open_office
from tests.kit.plain import plain
from tests.kit.threads import together

EU_WEST, MAIN = parse_address("acme/eu-west"), parse_address("globex/main")
COMPOSITE = KemAlgorithm.COMPOSITE
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA."""
    return open_office(store, tmp_path)


@pytest.fixture
def counter(office: Office) -> Counter:
    """Where CMP messages are answered."""
    return Counter(office)


@pytest.fixture
def acme(counter: Counter) -> Client:
    """An instance with an identity certificate."""
    client = Client(counter, EU_WEST).invited()
    client.enrol()
    return client


def certified(office: Office) -> list[CertificateState]:
    """Return the states of eu-west's encryption certificates."""
    with office.deps.store.read() as unit:
        return [one.state for one in certificate_store.history(unit, EU_WEST, CertificateKind.ENCRYPTION)]


def wish(client: Client, **changes: object) -> bytes:
    """Return a request for a new encryption key."""
    return client.wish(COMPOSITE, keys.generate(COMPOSITE), **changes)


def test_a_transaction_is_opened_once(office: Office, acme: Client) -> None:
    """Another message with a transactionID that is in use is refused (CMP-009)."""
    fields = acme.fields
    assert acme.counter.post(wish(acme, **fields)).kind == "cp"
    reply = acme.counter.post(wish(acme, **fields))
    assert (reply.kind, reply.failure) == ("error", Fail.TRANSACTION_ID_IN_USE)
    assert certified(office) == [CertificateState.UNPROVED]


def test_the_same_message_has_the_same_answer(office: Office, acme: Client) -> None:
    """However often it comes, at once or later, it is done once, and answered with the same bytes."""
    der = wish(acme)
    digests = together(4, lambda _: acme.counter.hand_in(der))
    assert len(set(digests)) == 1
    together(4, lambda _: handling.handle(acme.counter.desk, digests))
    first = acme.counter.reply(digests[0])
    assert first.kind == "cp"
    assert acme.counter.post(der).der == first.der
    assert certified(office) == [CertificateState.UNPROVED]


def test_a_confirmation_whose_worker_dies_is_answered_all_the_same(office: Office, acme: Client) -> None:
    """Before the answer is stored nothing of the transaction is over: whoever takes the message up confirms it, too."""
    fields, private = acme.fields, keys.generate(COMPOSITE)
    reply = acme.counter.post(acme.wish(COMPOSITE, private, **fields))
    digest = acme.counter.hand_in(acme.confirmation(reply, fields, reply.opened(COMPOSITE, private), acme.signature))
    desk = acme.counter.desk
    message = handling._waiting(desk, digest)
    assert message is not None
    # It has done everything but store its answer.
    handling._respond(desk, message, digest)
    assert certified(office) == [CertificateState.ACTIVE]
    assert handling.handle(desk, [digest]) == {digest: None}
    assert acme.counter.reply(digest).kind == "pkiconf"
    again = acme.counter.post(acme.confirmation(reply, fields, reply.opened(COMPOSITE, private), acme.signature))
    assert again.kind == "error"


def test_a_message_that_was_recorded_does_not_come_back(office: Office, acme: Client) -> None:
    """When the exchange is forgotten, its request is known all the same: no second certificate."""
    der = wish(acme)
    assert acme.counter.post(der).kind == "cp"
    office.clock.step(timedelta(hours=1))
    assert rotation.purge(office.deps) >= 2
    reply = acme.counter.post(der)
    assert (reply.kind, reply.failure) == ("error", Fail.TRANSACTION_ID_IN_USE)
    assert certified(office) == [CertificateState.UNPROVED]


def test_nobody_asks_for_somebody_else(office: Office, acme: Client) -> None:
    """A good signature is good for the address of its key only; who signs as another is not known (CMP-008)."""
    globex = Client(acme.counter, MAIN).invited()
    globex.enrol()
    reply = acme.counter.post(wish(globex, subject=acme.name))
    assert (reply.kind, reply.failure, reply.protected) == ("error", Fail.NOT_AUTHORIZED, True)
    reply = acme.counter.post(wish(globex, subject=acme.name, sender=acme.fields["sender"]))
    assert (reply.failure, reply.protected) == (Fail.BAD_MESSAGE_CHECK, False)
    assert certified(office) == []


def test_an_invitation_is_for_its_tenant(office: Office, counter: Counter) -> None:
    """A secret of one tenant enrols nobody of another, and stays good."""
    client = Client(counter, MAIN)
    client.reference, client.secret = office.invite("acme")
    reply = counter.post(client.enrolment())
    assert (reply.kind, reply.failure, reply.protected) == ("error", Fail.NOT_AUTHORIZED, True)
    client.address = EU_WEST
    assert counter.post(client.enrolment()).kind == "ip"


def test_an_altered_message_is_not_known(office: Office, acme: Client) -> None:
    """A bit that was changed anywhere in what is protected makes it nobody's message."""
    der = bytearray(wish(acme))
    place = der.rindex(acme.name) + 12
    der[place] ^= 1
    reply = acme.counter.post(bytes(der))
    assert (reply.failure, reply.protected) == (Fail.BAD_MESSAGE_CHECK, False)


def test_an_identity_that_is_not_active_is_not_known(office: Office, acme: Client) -> None:
    """Revoked or expired, the identity key speaks no more; nor does a key identifier of another key."""
    reply = acme.counter.post(wish(acme, key=bytes(20)))
    assert (reply.failure, reply.protected) == (Fail.BAD_MESSAGE_CHECK, False)
    identity = certificates.lookup(office.deps, EU_WEST).identity
    office.clock.step(timedelta(days=2000))
    assert acme.counter.post(wish(acme)).failure == Fail.BAD_MESSAGE_CHECK
    office.clock.step(-timedelta(days=2000))
    assert acme.counter.post(acme.revocation(identity.der)).kind == "rp"
    assert acme.counter.post(wish(acme)).failure == Fail.BAD_MESSAGE_CHECK


@pytest.mark.parametrize("late", [timedelta(hours=49), -timedelta(minutes=10)])
def test_an_old_time_is_refused(office: Office, acme: Client, late: timedelta) -> None:
    """messageTime, or notBefore under a secret, lies within 48 hours (REQ-007)."""
    reply = acme.counter.post(wish(acme, time=office.clock.now() - late))
    assert (reply.kind, reply.failure) == ("error", Fail.BAD_TIME)
    globex = Client(acme.counter, MAIN).invited()
    reply = globex.counter.post(globex.enrolment(start=office.clock.now() - late))
    assert (reply.kind, reply.failure) == ("error", Fail.BAD_TIME)
    assert globex.counter.post(globex.enrolment()).kind == "ip"


def test_what_a_message_may_not_ask_for(office: Office, acme: Client) -> None:
    """Each refusal is protected, has a reason, and changes nothing."""
    invited = Client(acme.counter, MAIN).invited()
    identity, unknown = certificates.lookup(office.deps, EU_WEST).identity.der, tlv.seq(tlv.seq(tlv.oid("1.2.3")))
    encrypted = forge_cmp.message(
        forge_cmp.IR,
        tlv.seq(forge_cmp.asked(forge_cmp.template(invited.name), forge_cmp.ENCRYPTED)),
        invited.mac,
        **invited.fields,
    )
    for der, failure in (
        (encrypted, Fail.BAD_CERT_TEMPLATE),
        (invited.revocation(identity, protect=invited.mac), Fail.NOT_AUTHORIZED),
        (wish(acme, recipient=forge_cmp.general(forge.name(("2.5.4.3", "Other CA")))), Fail.NOT_AUTHORIZED),
        (forge_cmp.message(forge_cmp.GENM, unknown, acme.signature, **acme.fields), Fail.BAD_REQUEST),
        (forge_cmp.message(1, tlv.seq(), acme.signature, **acme.fields), Fail.BAD_REQUEST),
    ):
        reply = acme.counter.post(der)
        assert (reply.kind, reply.failure, reply.protected) == ("error", failure, True), reply.text
        assert reply.text
    assert certified(office) == []


def test_the_cas_certificates_are_told(office: Office, acme: Client) -> None:
    """A genm for them is answered with the issuing CA's and the root's; an error message ends the transaction."""
    asking = tlv.seq(tlv.seq(tlv.oid(forge_cmp.CA_CERTS)))
    reply = acme.counter.post(forge_cmp.message(forge_cmp.GENM, asking, acme.signature, **acme.fields))
    assert reply.kind == "genp"
    for der in (office.deps.chain.issuing, office.deps.chain.root):
        assert der in reply.der
    fields = acme.fields
    acme.counter.post(wish(acme, **fields))
    complaint = tlv.seq(tlv.seq(tlv.integer(2)))
    told = forge_cmp.message(23, complaint, acme.signature, **{**fields, "nonce": bytes(16)})
    assert acme.counter.post(told).kind == "pkiconf"
    with office.deps.store.read() as unit:
        transaction = exchange_store.transaction(unit, fields["transaction"].hex())
    assert transaction is not None
    assert transaction.state == "closed"


def test_the_owner_revokes(office: Office, acme: Client) -> None:
    """An rr revokes with its evidence, and the list has it; again changes nothing; others' certificates stay."""
    private = keys.generate(COMPOSITE)
    certificate = acme.publish(COMPOSITE, private)
    globex = Client(acme.counter, MAIN).invited()
    globex.enrol()
    reply = acme.counter.post(globex.revocation(certificate))
    assert (reply.kind, reply.failure) == ("error", Fail.BAD_CERT_ID)
    assert "REV-002" in reply.text
    stale = acme.revocation(certificate, time=office.clock.now() - timedelta(hours=25))
    assert acme.counter.post(stale).failure == Fail.BAD_TIME
    assert certified(office) == [CertificateState.ACTIVE]
    assert acme.counter.post(acme.revocation(certificate)).kind == "rp"
    assert acme.counter.post(acme.revocation(certificate, 4)).kind == "rp"
    assert certified(office) == [CertificateState.REVOKED]
    record = status.publish(office.deps, office.keys)
    listed = verify_crl(record.der, issuing_der=office.deps.chain.issuing, now=office.clock.now())
    assert [int(one.reason) for one in listed.revoked.values()] == [1]


def test_a_revocation_that_came_with_certificates_is_evidence(office: Office, acme: Client) -> None:
    """What nothing protects is left out of what is kept."""
    certificate = acme.publish(COMPOSITE, keys.generate(COMPOSITE))
    along = tlv.context(1, tlv.seq(certificate))
    assert acme.counter.post(acme.revocation(certificate, along=along)).kind == "rp"
    record = status.publish(office.deps, office.keys)
    assert len(verify_crl(record.der, issuing_der=office.deps.chain.issuing, now=office.clock.now()).revoked) == 1


class Away:
    """A CA's key that is away."""

    def __init__(self, certificate_der: bytes) -> None:
        self.certificate_der = certificate_der

    def sign(self, message: bytes, /) -> bytes:
        """Sign nothing."""
        raise UnavailableError("The token is away")


def test_a_key_that_is_away_and_a_worker_that_dies(office: Office, counter: Counter) -> None:
    """Half way, nothing is answered and nothing lost: the next worker ends what the first began, once."""
    office.work()
    client = Client(counter, EU_WEST).invited()
    digest = counter.hand_in(client.enrolment())
    away = handling.Desk(office.deps, CaKeys(Away(office.signer.certificate_der)), counter.opener)
    [error] = handling.handle(away, [digest]).values()
    assert isinstance(error, UnavailableError)
    assert exchanges.look(office.deps, digest) is None
    with office.deps.store.read() as unit:
        assert len(tenants.list_instances(unit)) == 1
    assert handling.handle(counter.desk, [digest]) == {digest: None}
    reply = counter.reply(digest)
    assert reply.certificate == certificates.lookup(office.deps, EU_WEST).identity.der
    assert handling.handle(counter.desk, [digest]) == {digest: None}
    assert counter.reply(digest).der == reply.der
    assert office.told().count("certificate.issued") == 1


def test_who_repeats_a_message_wakes_another_worker(office: Office, acme: Client) -> None:
    """A message without an answer has a job again when it comes again, but not without end."""
    der = wish(acme)
    before = len(office.jobs())
    for _ in range(40):
        acme.counter.hand_in(der)
    assert len(office.jobs()) - before == 17


def test_strangers_fill_no_table(office: Office, acme: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no message is not stored, and of messages that wait there are only so many."""
    with pytest.raises(MalformedError):
        acme.counter.hand_in(tlv.seq())
    with pytest.raises(ProfileError, match="CMP-001"):
        acme.counter.hand_in(wish(acme, along=tlv.context(1, tlv.seq(tlv.octets(bytes(70_000))))))
    monkeypatch.setattr(exchanges, "MOST_WAITING", 2)
    acme.counter.hand_in(wish(acme))
    acme.counter.hand_in(wish(acme))
    with pytest.raises(UnavailableError):
        acme.counter.hand_in(wish(acme))
    office.clock.step(timedelta(hours=1))
    acme.counter.hand_in(wish(acme))


def test_what_strangers_send_is_not_kept(office: Office, acme: Client) -> None:
    """An answered message is gone, and the answer to somebody unknown after a minute, without anybody's purge."""

    def kept() -> list[tuple[int, int]]:
        with office.deps.store.read() as unit:
            rows = unit.connection.exec_driver_sql("SELECT length(request), length(response) FROM cmp_exchanges")
            return [(row[0], row[1]) for row in rows]

    office.clock.step(timedelta(hours=1))
    stranger = Client(acme.counter, MAIN, "0" * 16, "guess")
    along = tlv.context(1, tlv.seq(tlv.octets(bytes(50_000))))
    acme.counter.post(stranger.enrolment(along=along))
    [(message, answer)] = kept()
    assert message == 0
    assert answer < 600
    office.clock.step(timedelta(minutes=2))
    acme.counter.post(wish(acme))
    assert [message for message, _ in kept()] == [0]


def test_a_message_that_expired_unanswered_is_taken_anew(office: Office, acme: Client) -> None:
    """After the issuer was away for long, the same bytes are answered all the same."""
    der = wish(acme)
    acme.counter.hand_in(der)
    office.clock.step(timedelta(minutes=20))
    assert acme.counter.post(der).kind == "cp"


def test_one_message_does_not_hold_up_the_others(office: Office, acme: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something unforeseen happens to one, it is tried again, and the next one is answered."""
    first, second = acme.counter.hand_in(wish(acme)), acme.counter.hand_in(wish(acme))
    compose = handling.messages.compose
    failing = [ZeroDivisionError()]

    def once(*words: Any, **named: Any) -> bytes:
        if failing:
            raise failing.pop()
        return compose(*words, **named)

    monkeypatch.setattr(handling.messages, "compose", once)
    results = handling.handle(acme.counter.desk, [first, second])
    assert isinstance(results[first], ZeroDivisionError)
    assert results[second] is None
    assert handling.handle(acme.counter.desk, [first, second]) == {first: None, second: None}
    assert acme.counter.reply(first).kind == acme.counter.reply(second).kind == "cp"


def test_secrets_that_take_long_hold_up_nothing(office: Office, acme: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what strangers make expensive, a little is done at a time; the rest waits behind everything else."""
    monkeypatch.setattr(handling, "ROUNDS_AT_ONCE", 2500)
    office.work()
    strangers = [
        acme.counter.hand_in(acme.enrolment(protect=forge_cmp.by_secret(b"guess", rounds=1000, honest=1)))
        for _ in range(5)
    ]
    honest = acme.counter.hand_in(wish(acme))
    for done in ([0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4]):
        jobs = [job for job in office.jobs() if job.kind == exchanges.JOB]
        digests = list(dict.fromkeys(job.subject for job in jobs))
        with office.deps.store.unit() as unit:
            outbox.finish(unit, [job.id for job in jobs])
        assert set(handling.handle(acme.counter.desk, digests).values()) == {None}
        answered = [place for place, one in enumerate(strangers) if exchanges.look(office.deps, one)]
        assert answered == done
        # Who is known by a key does not wait for them.
        assert acme.counter.reply(honest).kind == "cp"
        put_off = [strangers.index(job.subject) for job in office.jobs() if job.kind == exchanges.JOB]
        assert put_off == [place for place in range(5) if place not in done]


def test_a_recorded_message_with_its_signatures_other_form_does_not_come_back(office: Office, counter: Counter) -> None:
    """ECDSA signatures have two forms, so that the bytes differ; the transactionID is known while the time is good."""
    key = new_signing_key(SignatureAlgorithm.ECDSA_P256)
    client = Client(counter, EU_WEST, identity=key).invited()
    assert counter.post(
        forge_cmp.message(forge_cmp.P10CR, plain(EU_WEST, key), client.mac, **client.fields)
    ).certificate
    client.reference = ""
    signatures: list[bytes] = []

    def protect(message: bytes) -> bytes:
        signatures.append(key.sign(message))
        return signatures[-1]

    algorithm, fields, private = asn1.encode(key.public.algorithm.identifier), client.fields, keys.generate(COMPOSITE)
    first = counter.post(client.wish(COMPOSITE, private, protect=(algorithm, protect), **fields))
    assert first.kind == "cp", first.text
    r, s = decode_dss_signature(signatures[0])
    other = encode_dss_signature(r, P256_ORDER - s)
    again = client.wish(COMPOSITE, private, protect=(algorithm, lambda _: other), **fields)
    for hours in (0, 1, 24, 22):
        office.clock.step(timedelta(hours=hours))
        rotation.purge(office.deps)
        assert counter.post(again).failure == Fail.TRANSACTION_ID_IN_USE
    office.clock.step(timedelta(hours=2))
    rotation.purge(office.deps)
    assert counter.post(again).kind == "error"
    with office.deps.store.read() as unit:
        assert len(certificate_store.history(unit, EU_WEST)) == 2


def test_secrets_are_forgotten(office: Office, counter: Counter) -> None:
    """A sealed secret is kept no longer than its invitation is good."""
    client = Client(counter, EU_WEST).invited()

    def kept() -> bool:
        with office.deps.store.read() as unit:
            found = tenants.invitation(unit, client.reference)
        assert found is not None
        assert client.secret.encode() not in (found.sealed_secret or b"")
        return found.sealed_secret is not None

    assert kept()
    rotation.purge(office.deps)
    assert kept()
    office.clock.step(timedelta(days=365))
    rotation.purge(office.deps)
    assert not kept()


def test_one_invitations_secret_is_not_anothers(office: Office, counter: Counter) -> None:
    """Whoever edits the table cannot put one invitation's sealed secret under another's reference."""
    mine = Client(counter, EU_WEST).invited()
    other = Client(counter, MAIN).invited()
    with office.deps.store.unit() as unit:
        theirs = tenants.invitation(unit, other.reference)
        assert theirs is not None
        changed = tenants.invitations.update().where(tenants.invitations.c.reference == mine.reference)
        unit.connection.execute(changed.values(sealed_secret=theirs.sealed_secret, secret_hash=theirs.secret_hash))
    forged = Client(counter, EU_WEST, mine.reference, other.secret, new_signing_key())
    assert counter.post(forged.enrolment()).failure == Fail.BAD_MESSAGE_CHECK


def test_a_registration_key_is_made_once(office: Office, counter: Counter) -> None:
    """Made again, it stays; without its public half it gives that again, without the private one it is another key."""
    folder = office.deps.settings.home / "ca"
    sealed, public = folder / "private" / "registration.key.sealed", folder / "registration.der"
    first = sealed.read_bytes(), public.read_bytes()
    registration.create(office.deps.settings.home, PASSPHRASE)
    assert [one.ok for one in doctor.examine(office.deps) if one.check == "cmp"] == [True]
    public.unlink()
    assert [one.ok for one in doctor.examine(office.deps) if one.check == "cmp"] == [False]
    registration.create(office.deps.settings.home, PASSPHRASE)
    assert (sealed.read_bytes(), public.read_bytes()) == first
    assert sealed.stat().st_mode & 0o777 == 0o600
    client = Client(counter, EU_WEST).invited()
    sealed.unlink()
    with pytest.raises(SettingsError, match="registration key"):
        registration.RegistrationKey(office.deps.settings.home, PASSPHRASE)
    registration.create(office.deps.settings.home, PASSPHRASE)
    assert public.read_bytes() != first[1]
    counter.opener = registration.RegistrationKey(office.deps.settings.home, PASSPHRASE)
    assert "registration.der" not in repr(counter.opener)
    assert counter.post(client.enrolment()).failure == Fail.BAD_MESSAGE_CHECK
    assert counter.post(client.invited().enrolment()).kind == "ip"
    with pytest.raises(SealError):
        registration.RegistrationKey(office.deps.settings.home, b"another passphrase")


def test_two_make_the_registration_key_at_once(office: Office) -> None:
    """Both see the same key afterwards, whole."""
    home = office.deps.settings.home
    together(4, lambda _: registration.create(home, PASSPHRASE))
    registration.RegistrationKey(home, PASSPHRASE)
    assert [path.name for path in (home / "ca").glob(".*")] == []
