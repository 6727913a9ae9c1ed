"""Contract of the directory: request, proof of decryption, look-up, renewal, expiry."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509 as certs
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from pki.core import crl, kem, requests, x509
from pki.core.certificates import CertificateState, RequestState, check_listed
from pki.core.deposits import DepositState
from pki.core.errors import (
    CertificateError,
    ConflictError,
    ExpiredError,
    IllegalMoveError,
    KeymailboxError,
    MalformedError,
    NotFoundError,
    ProfileError,
    SignatureError,
    StaleError,
    UnknownRecipientError,
    VerificationError,
    WrongPartyError,
)
from pki.core.ids import Fingerprint, RequestId, request_id
from pki.core.kem import MADE, KemAlgorithm
from pki.core.tenants import parse_address
from pki.server.facts import RequestRecord
from pki.server.services import certificates, rotation
from pki.server.services.status import latest_crl
from pki.server.store import deposits as deposit_store
from pki.server.store import events as event_store
from pki.server.store.engine import Store
from tests.kit import facts
from tests.kit.office import Kms, Office, open_office

ACME = parse_address("acme/eu-west")
GLOBEX = parse_address("globex/main")


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


def submit(office: Office, kms: Kms, private: bytes) -> RequestRecord:
    """Submit a request for an encryption certificate."""
    return certificates.submit_request(office.deps, kms.caller(office), kms.encryption_request(office, private))


@pytest.mark.parametrize("algorithm", MADE)
def test_an_encryption_certificate_is_active_when_it_was_decrypted(
    office: Office, kms: Kms, algorithm: KemAlgorithm
) -> None:
    """It comes encrypted to its own key; a sender who pinned the identity key accepts what is then listed."""
    private = kem.generate(algorithm)
    der = kms.encryption_request(office, private, algorithm=algorithm)
    caller = kms.caller(office)
    record = certificates.submit_request(office.deps, caller, der)
    assert record.state is RequestState.PENDING
    office.work()
    assert certificates.lookup(office.deps, ACME).encryption is None
    proof = kms.decrypt(office, record.id, private, algorithm)
    status = certificates.prove(office.deps, caller, record.id, proof)
    assert status.certificate_state is CertificateState.ACTIVE
    listing = certificates.lookup(office.deps, ACME)
    assert listing.encryption == status.certificate
    newest = latest_crl(office.deps)
    assert newest is not None
    assert listing.encryption is not None
    for found in (listing.identity, listing.encryption):
        check_listed(
            found.der,
            found.request_der,
            address=ACME,
            kind=found.kind,
            identity_key=kms.identity.public,
            issuing_der=listing.issuing,
            root_der=office.deps.chain.root,
            crl=crl.verify_crl(newest.der, issuing_der=listing.issuing, now=office.clock.now()),
            now=office.clock.now(),
        )
    assert office.told(about=record.id) == ["certificate.requested", "certificate.issued"]
    assert office.told(about=listing.encryption.fingerprint) == ["certificate.activated"]
    # Proved again, as after a lost answer: nothing more happens.
    told = office.told()
    assert certificates.prove(office.deps, caller, record.id, proof) == status
    assert office.told() == told


def test_an_unproved_certificate_shows_nowhere(office: Office, kms: Kms) -> None:
    """Its hash is the proof, so neither status, history, look-up nor events give it away."""
    private = kem.generate()
    record = submit(office, kms, private)
    result = office.work()[record.id]
    assert isinstance(result, RequestRecord)
    secret = result.fingerprint
    assert secret is not None
    status = certificates.status(office.deps, kms.caller(office), record.id)
    again = certificates.submit_request(office.deps, kms.caller(office), record.der)
    assert status.certificate is None
    assert status.certificate_state is CertificateState.UNPROVED
    assert status.request.fingerprint is None
    assert again.fingerprint is None
    assert secret not in [item.fingerprint for item in certificates.history(office.deps, ACME)]
    with pytest.raises(NotFoundError):
        certificates.by_fingerprint(office.deps, secret)
    with pytest.raises(NotFoundError):
        certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, secret))
    with office.deps.store.read() as unit:
        assert secret not in repr(event_store.unsequenced(unit, 1000))


def test_a_wrong_proof_activates_nothing(office: Office, kms: Kms) -> None:
    """Nor does a proof for somebody else's request, for one that is not issued, or for an identity."""
    private = kem.generate()
    record = submit(office, kms, private)
    caller = kms.caller(office)
    with pytest.raises(IllegalMoveError):
        certificates.prove(office.deps, caller, record.id, "00" * 32)
    office.work()
    for wrong in ("00" * 32, "", "ü", "\ud800", kms.decrypt(office, record.id, private)[:-1]):
        with pytest.raises(VerificationError):
            certificates.prove(office.deps, caller, record.id, wrong)
    stranger = Kms(GLOBEX)
    office.settle(stranger)
    right = kms.decrypt(office, record.id, private)
    with pytest.raises(NotFoundError):
        certificates.prove(office.deps, stranger.caller(office), record.id, right)
    with pytest.raises(NotFoundError):
        certificates.status(office.deps, stranger.caller(office), record.id)
    for odd in ("", "\x00", "ab" * 32, record.id.upper()):
        with pytest.raises(NotFoundError):
            certificates.status(office.deps, caller, RequestId(odd))
    identity = certificates.lookup(office.deps, ACME).identity
    with pytest.raises(IllegalMoveError):
        certificates.prove(office.deps, caller, request_id(identity.request_der), identity.fingerprint)
    assert certificates.lookup(office.deps, ACME).encryption is None


def test_a_renewal_retires_the_one_before(office: Office, kms: Kms) -> None:
    """Until the new one is proved, the old one is listed; after that it is retired, and still there for its mail."""
    old = office.publish(kms)
    private = kem.generate()
    record = submit(office, kms, private)
    office.work()
    assert certificates.lookup(office.deps, ACME).encryption == old
    proof = kms.decrypt(office, record.id, private)
    new = certificates.prove(office.deps, kms.caller(office), record.id, proof)
    listing = certificates.lookup(office.deps, ACME)
    assert listing.encryption == new.certificate
    assert certificates.by_fingerprint(office.deps, old.fingerprint).state is CertificateState.RETIRED
    assert [item.state for item in certificates.history(office.deps, ACME)].count(CertificateState.ACTIVE) == 2
    assert office.told(about=old.fingerprint) == ["certificate.activated", "certificate.retired"]


def test_a_retired_certificate_is_not_proved_back(office: Office, kms: Kms) -> None:
    """An old proof does not bring an old key back, and does not cost anybody the active one."""
    private = kem.generate()
    record = submit(office, kms, private)
    office.work()
    proof = kms.decrypt(office, record.id, private)
    certificates.prove(office.deps, kms.caller(office), record.id, proof)
    new = office.publish(kms)
    with pytest.raises(IllegalMoveError):
        certificates.prove(office.deps, kms.caller(office), record.id, proof)
    assert certificates.lookup(office.deps, ACME).encryption == new


def test_the_same_request_again_is_the_same_request(office: Office, kms: Kms) -> None:
    """The same bytes make one row and one job, before and after they were issued."""
    der = kms.encryption_request(office, kem.generate())
    caller = kms.caller(office)
    first = certificates.submit_request(office.deps, caller, der)
    assert certificates.submit_request(office.deps, caller, der) == first
    assert [job.subject for job in office.jobs()] == [first.id]
    office.work()
    assert certificates.submit_request(office.deps, caller, der).state is RequestState.ISSUED


def test_an_identity_certificate_is_renewed_with_the_enrolled_key_only(office: Office, kms: Kms) -> None:
    """A new identity key would break every peer's pin."""
    office.clock.step(timedelta(days=300))
    caller = kms.caller(office)
    record = certificates.submit_request(office.deps, caller, kms.identity_request(office.clock.now()))
    before = certificates.lookup(office.deps, ACME).identity
    office.work()
    after = certificates.lookup(office.deps, ACME).identity
    assert after.fingerprint != before.fingerprint
    assert after.ski == before.ski
    assert certificates.by_fingerprint(office.deps, before.fingerprint).state is CertificateState.RETIRED
    assert certificates.status(office.deps, caller, record.id).certificate == after
    with pytest.raises(SignatureError):
        certificates.submit_request(office.deps, caller, Kms(ACME).identity_request(office.clock.now()))


def _flipped(der: bytes) -> bytes:
    return der[:-1] + bytes([der[-1] ^ 1])


def _without_statement(kms: Kms, office: Office) -> bytes:
    key = kem.generate()
    spki = kem.spki(KemAlgorithm.COMPOSITE, kem.public_from_private(KemAlgorithm.COMPOSITE, key))
    return requests.identity_request(kms.address, spki, sign=kms.identity.sign, signing_time=office.clock.now())


def _low_order(kms: Kms, office: Office) -> bytes:
    public = kem.public_from_private(KemAlgorithm.COMPOSITE, kem.generate())[:-32] + bytes(32)
    spki = kem.spki(KemAlgorithm.COMPOSITE, public)
    statement = kms.statement(office)
    now = office.clock.now()
    return requests.encryption_request(kms.address, spki, statement, sign=kms.identity.sign, signing_time=now)


def _honest(kms: Kms, office: Office) -> bytes:
    return kms.encryption_request(office, kem.generate())


BAD: list[tuple[str, Callable[[Kms, Office], bytes], type[KeymailboxError]]] = [
    ("empty", lambda kms, office: b"", MalformedError),
    ("noise", lambda kms, office: secrets.token_bytes(3000), MalformedError),
    ("nested", lambda kms, office: b"\x30\x80" * 5000, MalformedError),
    ("huge length", lambda kms, office: b"\x30\x84\xff\xff\xff\xff", MalformedError),
    ("oversized", lambda kms, office: bytes(17 * 1024), ProfileError),
    ("trailing byte", lambda kms, office: _honest(kms, office) + b"\0", MalformedError),
    ("cut", lambda kms, office: _honest(kms, office)[:-1], MalformedError),
    ("altered signature", lambda kms, office: _flipped(_honest(kms, office)), SignatureError),
    ("without possession", _without_statement, ProfileError),
    ("low order key", _low_order, ProfileError),
    (
        "signed by somebody else",
        lambda kms, office: Kms(ACME).encryption_request(office, kem.generate(), statement=kms.statement(office)),
        SignatureError,
    ),
    (
        "for somebody else",
        lambda kms, office: Kms(GLOBEX, identity=kms.identity).encryption_request(
            office, kem.generate(), statement=kms.statement(office)
        ),
        WrongPartyError,
    ),
    (
        "another certificate in the statement",
        lambda kms, office: kms.encryption_request(
            office, kem.generate(), statement=requests.Statement(kms.statement(office).issuer_der, 4711)
        ),
        CertificateError,
    ),
    (
        "another issuer in the statement",
        lambda kms, office: kms.encryption_request(
            office, kem.generate(), statement=requests.Statement(x509.name_der(ACME), kms.statement(office).serial)
        ),
        CertificateError,
    ),
    (
        "old",
        lambda kms, office: kms.encryption_request(
            office, kem.generate(), signed=office.clock.now() - timedelta(hours=48)
        ),
        StaleError,
    ),
    (
        "early",
        lambda kms, office: kms.encryption_request(
            office, kem.generate(), signed=office.clock.now() + timedelta(minutes=6)
        ),
        StaleError,
    ),
]


def test_a_bad_request_is_refused_and_leaves_nothing(office: Office, kms: Kms) -> None:
    """Each has an error of its own; no row, no job, no event."""
    told, caller = office.told(), kms.caller(office)
    met: dict[str, type[KeymailboxError]] = {}
    for name, made, _ in BAD:
        with pytest.raises(KeymailboxError) as caught:
            certificates.submit_request(office.deps, caller, made(kms, office))
        met[name] = type(caught.value)
    assert met == {name: expected for name, _, expected in BAD}
    assert office.jobs() == []
    assert office.told() == told


def test_a_plain_request_for_another_key_is_refused(office: Office, kms: Kms) -> None:
    """A certificate request for P-256, signed with it, is one for an identity, and not for this instance's."""
    name = certs.Name.from_bytes(x509.name_der(ACME))
    key = ec.generate_private_key(ec.SECP256R1())
    der = certs.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    with pytest.raises(SignatureError):
        certificates.submit_request(office.deps, kms.caller(office), der.public_bytes(Encoding.DER))


def test_another_instances_key_is_not_certified(office: Office, kms: Kms) -> None:
    """A key that is listed for acme is not listed for globex too, and acme's own renewal of it is fine."""
    private = kem.generate()
    office.publish(kms, private)
    thief = Kms(GLOBEX)
    office.settle(thief)
    with pytest.raises(ConflictError):
        submit(office, thief, private)
    office.clock.step(timedelta(days=1))
    assert office.publish(kms, private).state is CertificateState.ACTIVE


def test_without_an_identity_certificate_there_is_no_encryption_certificate(office: Office) -> None:
    """An instance whose identity is still in the queue has to wait for it."""
    kms = Kms(ACME)
    office.enrol(kms)
    der = kms.encryption_request(office, kem.generate(), statement=requests.Statement(x509.name_der(ACME), 1))
    with pytest.raises(CertificateError) as caught:
        certificates.submit_request(office.deps, kms.caller(office), der)
    assert caught.value.rule == "REQ-006"


def test_nobody_is_found_at_an_unknown_address(office: Office, kms: Kms) -> None:
    """Unknown, and enrolled without certificates: the same answer."""
    office.enrol(Kms(GLOBEX))
    errors = []
    for address in (parse_address("nobody/here"), GLOBEX):
        with pytest.raises(UnknownRecipientError) as caught:
            certificates.lookup(office.deps, address)
        errors.append((caught.value.message, caught.value.hint))
        with pytest.raises(UnknownRecipientError):
            certificates.history(office.deps, address)
    assert len(set(errors)) == 1
    for odd in ("", "\x00", "ab" * 32):
        with pytest.raises(NotFoundError):
            certificates.by_fingerprint(office.deps, Fingerprint(odd))


def test_certificates_expire(office: Office, kms: Kms) -> None:
    """Past their time they are not listed, even before the worker has said so; then they are `expired`, once."""
    record = office.publish(kms)
    proof_waits = submit(office, kms, private := kem.generate())
    office.work()
    proof = kms.decrypt(office, proof_waits.id, private)
    office.clock.step(timedelta(days=365))
    with pytest.raises(UnknownRecipientError):
        certificates.lookup(office.deps, ACME)
    with pytest.raises(IllegalMoveError):
        certificates.prove(office.deps, kms.caller(office), proof_waits.id, proof)
    caller = kms.caller(office)
    statement = requests.Statement(
        x509.parse_certificate(record.der).issuer_der, certificates.history(office.deps, ACME)[-1].serial
    )
    with pytest.raises(ExpiredError):
        certificates.submit_request(
            office.deps, caller, kms.encryption_request(office, kem.generate(), statement=statement)
        )
    assert rotation.expire(office.deps).certificates == 3
    assert rotation.expire(office.deps).certificates == 0
    assert certificates.by_fingerprint(office.deps, record.fingerprint).state is CertificateState.EXPIRED
    assert office.told(about=record.fingerprint)[-1] == "certificate.expired"
    assert office.told().count("certificate.expired") == 2
    # A new identity certificate for the same key brings the instance back.
    certificates.submit_request(office.deps, caller, kms.identity_request(office.clock.now()))
    office.work()
    assert certificates.lookup(office.deps, ACME).identity.state is CertificateState.ACTIVE


def test_deposits_expire_in_batches(office: Office) -> None:
    """All that are due and none that are not, however many there are; sender and recipient hear of each."""
    due = [facts.deposit(GLOBEX, ACME, expires_at=office.clock.now()) for _ in range(450)]
    kept = facts.deposit(GLOBEX, ACME, expires_at=office.clock.now() + timedelta(seconds=1))
    with office.deps.store.unit() as unit:
        deposit_store.insert(unit, [*due, kept])
    assert rotation.expire(office.deps).deposits == 450
    assert rotation.expire(office.deps).deposits == 0
    with office.deps.store.read() as unit:
        states = {record.id: record.state for record in deposit_store.many(unit, [d.id for d in [*due, kept]])}
    assert {states[item.id] for item in due} == {DepositState.EXPIRED}
    assert states[kept.id] is DepositState.RECEIVED
    assert office.told().count("deposit.expired") == 450
