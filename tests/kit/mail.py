"""Services on a real store with real keys: instances whose certificates are in the directory, and a clock to turn."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pki.core import deposits, receipts
from pki.core.certificates import CertificateRecord, CertificateState
from pki.core.deposits import DepositState
from pki.core.errors import KeymailboxError
from pki.core.events import Event
from pki.core.ids import DepositId, Fingerprint, KeyId, fingerprint
from pki.core.receipts import RefusalReason
from pki.core.signers import SigningKey
from pki.core.tenants import parse_address
from pki.core.x509 import CertificateKind, parse_certificate
from pki.server.adapters.linter import PkiLinter
from pki.server.adapters.profiles import FileProfiles
from pki.server.facts import Caller, DepositRecord, Instance, Job
from pki.server.ports import CA_FOLDER, ISSUING_FILE, ROOT_FILE
from pki.server.services.deposits import Accepted, Answer, Handed, Incoming, accept, accept_all, read, validate
from pki.server.services.deps import Deps
from pki.server.settings import load_settings
from pki.server.store import certificates as certificate_store
from pki.server.store import deposits as deposit_store
from pki.server.store import events as event_store
from pki.server.store import limits as limit_store
from pki.server.store import outbox, tenants
from pki.server.store.engine import Store
from tests.kit import authority
from tests.kit.authority import KEY, NOW, Party

ACME = authority.acme()
GLOBEX = authority.globex()
INITECH = Party(authority.authority(), parse_address("initech/lab"), 13)
FOREIGN = Party(authority.Authority(seed=101), parse_address("globex/main"), 14)
"""Calls itself globex/main, with certificates of another CA."""


class Clock:
    """Shows the time that it was set to."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def now(self) -> datetime:
        """Return the time."""
        return self.moment

    def go_on(self, **delta: float) -> None:
        """Let time pass."""
        self.moment += timedelta(**delta)


class Office:
    """A server's services with acme/eu-west, globex/main and initech/lab enrolled and certified."""

    def __init__(self, store: Store, url: str, home: Path, **settings: Any) -> None:
        folder = home / CA_FOLDER
        folder.mkdir(parents=True)
        (folder / ROOT_FILE).write_bytes(authority.authority().root_der)
        (folder / ISSUING_FILE).write_bytes(authority.authority().issuing_der)
        self.store = store
        self.clock = Clock(NOW + timedelta(seconds=1, microseconds=250))
        self.deps = Deps(
            store, load_settings(home=home, database_url=url, **settings), self.clock, PkiLinter(), FileProfiles(home)
        )
        for party in (ACME, GLOBEX, INITECH):
            self.enrol(party)

    def enrol(self, party: Party) -> None:
        """Put an instance and its active certificates into the directory."""
        with self.store.unit() as unit:
            tenants.insert_tenant(unit, party.address.tenant, NOW)
            tenants.insert_instance(unit, self.caller(party).instance)
        self.certify(party, CertificateKind.IDENTITY)
        self.certify(party, CertificateKind.ENCRYPTION)

    def certify(
        self, party: Party, kind: CertificateKind, *, state: CertificateState = CertificateState.ACTIVE
    ) -> Fingerprint:
        """Put one of a party's certificates into the directory."""
        identity = kind is CertificateKind.IDENTITY
        parsed = parse_certificate(party.identity_der if identity else party.encryption_der)
        record = CertificateRecord(
            fingerprint=parsed.fingerprint,
            address=party.address,
            kind=kind,
            serial=parsed.serial,
            der=parsed.der,
            request_der=party.identity_request if identity else party.encryption_request,
            state=state,
            not_before=parsed.not_before,
            not_after=parsed.not_after,
            issued_at=parsed.not_before,
            ski=parsed.ski.hex(),
        )
        with self.store.unit() as unit:
            certificate_store.insert_certificate(unit, record)
        return parsed.fingerprint

    def move(self, party: Party, kind: CertificateKind, state: CertificateState) -> None:
        """Change the state of one of a party's certificates."""
        der = party.identity_der if kind is CertificateKind.IDENTITY else party.encryption_der
        with self.store.unit() as unit:
            certificate_store.set_certificate_state(unit, fingerprint(der), state, now=self.clock.now(), reason=1)

    @staticmethod
    def caller(party: Party) -> Caller:
        """Return the party as one whose request was authenticated."""
        access_key = hashlib.sha256(str(party.address).encode()).digest()
        return Caller(
            Instance(
                address=party.address,
                tenant=party.address.tenant,
                identity_spki=party.spki,
                access_key=access_key,
                access_key_id=hashlib.sha256(access_key).hexdigest()[:32],
                enrolled_at=NOW,
            )
        )

    def accept(self, sender: Party, *bodies: bytes) -> list[Accepted | KeymailboxError]:
        """Hand in deposits, each with an idempotency key of its own."""
        return accept(self.deps, self.caller(sender), [Incoming(body, secrets.token_hex(8)) for body in bodies])

    def accept_together(self, *given: tuple[Party, Incoming]) -> list[Answer]:
        """Hand in deposits of several senders in one commit, a request each."""
        handed = [Handed([read(self.deps, self.caller(sender), item)]) for sender, item in given]
        return [answer for found in accept_all(self.deps, handed) if isinstance(found, list) for answer in found]

    def send(self, sender: Party, to: Party, count: int = 1, **changes: Any) -> list[DepositId]:
        """Hand in sound deposits and return their ids."""
        answers = self.accept(sender, *(compose(sender, to, **changes) for _ in range(count)))
        assert all(isinstance(answer, Accepted) for answer in answers), answers
        return [answer.id for answer in answers if isinstance(answer, Accepted)]

    def send_available(self, sender: Party, to: Party, count: int = 1, **changes: Any) -> list[DepositId]:
        """Hand in deposits and validate them."""
        ids = self.send(sender, to, count, **changes)
        validate(self.deps, ids)
        assert {self.record(found).state for found in ids} == {DepositState.AVAILABLE}
        return ids

    def send_for(self, sender: Party, to: Party, supersedes: DepositId) -> Accepted | KeymailboxError:
        """Hand in a deposit in another's place."""
        item = Incoming(compose(sender, to), secrets.token_hex(8), supersedes)
        (answer,) = accept(self.deps, self.caller(sender), [item])
        return answer

    def record(self, deposit_id: DepositId) -> DepositRecord:
        """Return a deposit as it is stored, with its body."""
        with self.store.read() as unit:
            found = deposit_store.deposit(unit, deposit_id, with_body=True)
        assert found is not None
        return found

    def events(self) -> list[Event]:
        """Return what happened and was not numbered yet."""
        with self.store.read() as unit:
            return event_store.unsequenced(unit, 10_000)

    def told(self, deposit_id: str) -> list[str]:
        """Return the types of a subject's events, in order, without their prefix."""
        return [event.type.value.rpartition(".")[2] for event in self.events() if event.subject == deposit_id]

    def jobs(self, queue: str) -> list[Job]:
        """Claim what is due in a queue for a moment that is over at once."""
        with self.store.unit() as unit:
            return outbox.claim(unit, queue, 10_000, now=self.clock.now(), lease=timedelta(0))


def compose(sender: Party, to: Party, **changes: Any) -> bytes:
    """Return a deposit with a fresh id; ``changes`` for what is not as it should be."""
    context = deposits.Context(
        sender=changes.get("claims", sender.address),
        recipient=changes.get("recipient", to.address),
        key_id=KeyId(changes.get("key_id", "orders-2030")),
        key_version=changes.get("key_version", 3),
        purpose=changes.get("purpose", "orders"),
        expires=changes.get("expires", NOW + timedelta(days=30)),
    )
    key: SigningKey = changes.get("key", sender.key)
    return deposits.compose(
        changes.get("material", KEY),
        context,
        package_id=changes.get("package_id") or secrets.token_bytes(16),
        recipient=to.recipient,
        signer_ski=changes.get("ski", sender.ski),
        sign=key.sign,
        signing_time=changes.get("signing_time", NOW),
    )


def answer(
    recipient: Party,
    record: DepositRecord,
    *,
    refusal: RefusalReason | None = None,
    by: Party | None = None,
    signing_time: datetime = NOW,
) -> bytes:
    """Return the recipient's receipt or refusal; ``by`` is who signs when it is not the recipient."""
    signer = by or recipient
    common: dict[str, Any] = {"signer_ski": signer.ski, "sign": signer.key.sign, "signing_time": signing_time}
    if refusal is None:
        return receipts.compose_receipt(record.id, record.body_sha512, recipient.address, **common)
    return receipts.compose_refusal(record.id, record.body_sha512, recipient.address, refusal, **common)


def codes(answers: Sequence[object]) -> list[str]:
    """Return the stable codes of errors, and ``ok`` for the rest."""
    return [found.code if isinstance(found, KeymailboxError) else "ok" for found in answers]


@contextmanager
def tallied(store: Store, database_url: str, path: Path) -> Iterator[Office]:
    """An office where, whatever was done there, what is counted in the end is what there is."""
    made = Office(store, database_url, path)
    yield made
    with store.read() as unit:
        assert limit_store.differing(unit) == []
