"""The server's use cases on a real store with a real CA, and KMS instances that use them, all under one clock."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509 import load_der_x509_certificate

from pki.core import envelope, httpsig, kem, requests, revocations
from pki.core.certificates import CertificateRecord, proof_of_decryption
from pki.core.crl import Reason
from pki.core.errors import KeymailboxError
from pki.core.ids import Fingerprint, RequestId
from pki.core.kem import KemAlgorithm
from pki.core.signers import SigningKey
from pki.core.tenants import Address, parse_address
from pki.server.adapters.linter import PkiLinter
from pki.server.adapters.profiles import FileProfiles
from pki.server.adapters.signers.file import FileKeys
from pki.server.adapters.signers.held import HeldKey, hold
from pki.server.adapters.signers.home import create_ca
from pki.server.facts import Caller, Job, RequestRecord
from pki.server.ports import CaKeys
from pki.server.services import access, calls, certificates, status
from pki.server.services.access import Enrolment, EnrolmentResult
from pki.server.services.deps import Deps
from pki.server.settings import Settings
from pki.server.store import events as event_store
from pki.server.store import outbox
from pki.server.store.engine import Store
from tests.kit.authority import NOW, new_signing_key

PASSPHRASE = b"correct horse"


@dataclass
class SteppedClock:
    """A clock that stands still until it is moved."""

    time: datetime = NOW

    def now(self) -> datetime:
        """Return the time."""
        return self.time

    def step(self, by: timedelta) -> None:
        """Move on."""
        self.time += by


def authenticate(deps: Deps, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Caller:
    """Check a signed request and use it up, as the API does, with a keyring of its own."""
    keyring = calls.Keyring()
    key_id = httpsig.claimed_key({name.lower(): value for name, value in headers.items()})
    for instance in calls.find(deps, [key_id] if key_id else []):
        if instance is not None:
            keyring.remember(instance)
    ticket = calls.verify(deps, keyring, method, url, headers, body)
    (error,) = calls.spend_for_changes(deps, [ticket])
    if error is not None:
        raise error
    return ticket.caller


@dataclass
class Office:
    """A server without HTTP and workers: tests call what those would call."""

    deps: Deps
    signer: HeldKey
    clock: SteppedClock

    @property
    def keys(self) -> CaKeys:
        """What the issuer process holds."""
        return CaKeys(self.signer)

    def invite(self, tenant: str) -> tuple[str, str]:
        """Return reference and secret of a fresh invitation."""
        invitation, secret = access.invite(self.deps, parse_address(f"{tenant}/x").tenant)
        return invitation.reference, secret

    def enrol(self, kms: Kms) -> EnrolmentResult:
        """Enrol an instance."""
        return access.enroll(self.deps, kms.enrolment(*self.invite(kms.address.tenant), now=self.clock.now()))

    def work(self) -> dict[RequestId, RequestRecord | KeymailboxError]:
        """Do the due jobs of the queue `issue`."""
        now = self.clock.now()
        with self.deps.store.unit() as unit:
            jobs = outbox.claim(unit, certificates.QUEUE, 100, now=now, lease=timedelta(minutes=5))
        wanted = [RequestId(job.subject) for job in jobs if job.kind == certificates.ISSUE_JOB]
        results = dict(certificates.issue(self.deps, self.keys, wanted))
        if any(job.kind == certificates.CRL_JOB for job in jobs):
            status.publish(self.deps, self.keys)
        failed = {key for key, result in results.items() if isinstance(result, KeymailboxError)}
        with self.deps.store.unit() as unit:
            outbox.finish(unit, [job.id for job in jobs if job.subject not in failed])
        return results

    def settle(self, kms: Kms) -> Caller:
        """Enrol an instance and give it its identity certificate."""
        self.enrol(kms)
        self.work()
        return kms.caller(self)

    def publish(self, kms: Kms, private: bytes | None = None) -> CertificateRecord:
        """Give a settled instance an active encryption certificate."""
        caller = kms.caller(self)
        private = private or kem.generate()
        record = certificates.submit_request(self.deps, caller, kms.encryption_request(self, private))
        self.work()
        status = certificates.prove(self.deps, caller, record.id, kms.decrypt(self, record.id, private))
        assert status.certificate is not None
        return status.certificate

    def jobs(self, queue: str = certificates.QUEUE) -> list[Job]:
        """Return the due jobs of a queue, and leave them as they were."""
        with self.deps.store.unit() as unit:
            jobs = outbox.claim(unit, queue, 1000, now=self.clock.now(), lease=timedelta(0))
            return [job for job in jobs if job.queue == queue]

    def told(self, *, about: str | None = None) -> list[str]:
        """Return the types of the events that were written, in order, without their common prefix."""
        with self.deps.store.read() as unit:
            found = event_store.unsequenced(unit, 10_000)
        return [e.type.value.removeprefix("keymailbox.") for e in found if about in (None, e.subject)]


@dataclass(frozen=True)
class Kms:
    """One KMS instance: its identity and its access key, and what it sends."""

    address: Address
    identity: SigningKey = field(default_factory=new_signing_key)
    access_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def spki(self) -> bytes:
        """The identity key."""
        return self.identity.public.spki

    @property
    def ski(self) -> bytes:
        """The identity key's identifier."""
        return kem.ski(self.spki)

    @property
    def access_public(self) -> bytes:
        """The raw public half of the access key."""
        return self.access_key.public_key().public_bytes_raw()

    def identity_request(self, now: datetime) -> bytes:
        """Return a request for the identity certificate."""
        algorithm = self.identity.public.algorithm
        return requests.identity_request(
            self.address, self.spki, sign=self.identity.sign, signing_time=now, algorithm=algorithm
        )

    def enrolment(self, reference: str, secret: str, *, now: datetime) -> Enrolment:
        """Return what an invitation is answered with."""
        return Enrolment(reference, secret, self.address, self.access_public, self.identity_request(now))

    def caller(self, office: Office) -> Caller:
        """Return this instance as an authenticated caller."""
        return authenticate(office.deps, *self.call(office, "GET", "/v1/mailboxes"))

    def call(
        self, office: Office, method: str, path: str, body: bytes = b"", *, created: datetime | None = None
    ) -> tuple[str, str, Mapping[str, str], bytes]:
        """Return a signed request."""
        url = f"https://mailbox.test{path}"
        headers = httpsig.sign_request(
            method,
            url,
            {},
            body,
            key_id=httpsig.key_id(self.access_public),
            sign=self.access_key.sign,
            created=created or office.clock.now(),
            nonce=secrets.token_hex(16),
        )
        return method, url, headers, body

    def statement(self, office: Office) -> requests.Statement:
        """Name the active identity certificate, as RFC 9883 does."""
        listing = certificates.lookup(office.deps, self.address)
        issuer = load_der_x509_certificate(listing.issuing).subject.public_bytes()
        return requests.Statement(issuer, listing.identity.serial)

    def encryption_request(
        self,
        office: Office,
        private: bytes,
        *,
        algorithm: KemAlgorithm = KemAlgorithm.COMPOSITE,
        statement: requests.Statement | None = None,
        signed: datetime | None = None,
    ) -> bytes:
        """Return a request for an encryption certificate."""
        return requests.encryption_request(
            self.address,
            kem.spki(algorithm, kem.public_from_private(algorithm, private)),
            statement or self.statement(office),
            sign=self.identity.sign,
            signing_time=signed or office.clock.now(),
        )

    def decrypt(
        self, office: Office, request_id: RequestId, private: bytes, algorithm: KemAlgorithm = KemAlgorithm.COMPOSITE
    ) -> str:
        """Return the hash of the certificate that the challenge holds."""
        challenge = certificates.status(office.deps, self.caller(office), request_id).request.challenge
        assert challenge is not None
        ski = kem.ski(kem.spki(algorithm, kem.public_from_private(algorithm, private)))
        der = envelope.unwrap(envelope.parse(challenge), ski, lambda alg, sent: kem.decapsulate(alg, private, sent))
        return proof_of_decryption(der)

    def revocation(
        self,
        office: Office,
        wanted: Fingerprint,
        reason: Reason = Reason.KEY_COMPROMISE,
        *,
        signed: datetime | None = None,
    ) -> bytes:
        """Return a signed wish to revoke."""
        return revocations.compose_revocation(
            wanted, reason, signer_ski=self.ski, sign=self.identity.sign, signing_time=signed or office.clock.now()
        )


def open_office(store: Store, home: Path, **settings: Any) -> Office:
    """Return an office on a migrated store; all offices of a test run have the same CA, which takes a while to make."""
    files, signer = _authority()
    for name, content in files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    clock = SteppedClock()
    deps = Deps(store, Settings(home=home, **settings), clock, PkiLinter(), FileProfiles(home))
    return Office(deps, signer, clock)


@lru_cache(maxsize=1)
def _authority() -> tuple[Mapping[Path, bytes], HeldKey]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        chain = create_ca(home, PASSPHRASE, NOW - timedelta(days=1))
        files = {path.relative_to(home): path.read_bytes() for path in home.rglob("*") if path.is_file()}
        return files, hold(FileKeys(home, PASSPHRASE), chain.issuing)
