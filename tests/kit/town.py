"""A server's services with workers at every queue, whose steps may fail; and instances that repeat what went wrong."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import func, select

from pki.core import deposits, kem, receipts
from pki.core.certificates import CertificateRecord
from pki.core.envelope import Recipient
from pki.core.errors import UnavailableError
from pki.core.ids import DepositId, KeyId
from pki.core.kem import KemAlgorithm
from pki.core.receipts import RefusalReason
from pki.core.tenants import parse_address
from pki.server.facts import Caller, DepositRecord
from pki.server.ports import CaKeys, SecretOpener
from pki.server.services import mailbox
from pki.server.services.deposits import Accepted, Incoming, accept
from pki.server.services.deps import Deps
from pki.server.store import deposits as deposit_store
from pki.server.store import events as event_store
from pki.server.store import tables
from tests.kit.authority import KEY
from tests.kit.bureau import Bureau
from tests.kit.counter import Counter
from tests.kit.invariants import broken
from tests.kit.office import PASSPHRASE, Kms, Office, open_office
from tests.kit.sink import Sink, sink
from tests.kit.steps import SteppedNotifier, SteppedPublisher, SteppedSigner, SteppedStore, Steps
from workers.app import QUEUES
from workers.beat import schedule, tick
from workers.handlers import Hands

T = TypeVar("T")

EVERY = int(os.environ.get("KMB_TEST_STATEMENTS", "5"))
"""One in so many statements fails in its turn; `make test-crash` has each of them fail."""
SEED = int(os.environ.get("KMB_TEST_SEED") or secrets.randbits(32))
_PATIENCE = 12
"""How often leases and pauses may have to end until workers are done with what a failure left."""
_ROUNDS = 4
"""How often one queue's work may make work for another before time has to pass."""


class SteppedHands(Hands):
    """Workers for all queues, whose publishes, posts and signatures are steps."""

    def __init__(self, deps: Deps, keys: CaKeys, publisher: SteppedPublisher, notifier: SteppedNotifier) -> None:
        super().__init__(deps, QUEUES)
        self._signers = keys
        self.__dict__ |= {"_publisher": publisher, "_notifier": notifier}

    def opens(self, opener: SecretOpener) -> None:
        """Hold a registration key from now on."""
        self._opener = opener

    def _ca(self) -> CaKeys:
        return self._signers


@dataclass
class Resident:
    """One instance with its keys, enrolled and certified."""

    kms: Kms
    private: bytes = field(default_factory=kem.generate, repr=False)
    certificate: CertificateRecord | None = None

    @property
    def recipient(self) -> Recipient:
        """What others wrap to."""
        public = kem.public_from_private(KemAlgorithm.COMPOSITE, self.private)
        return Recipient(kem.ski(kem.spki(KemAlgorithm.COMPOSITE, public)), KemAlgorithm.COMPOSITE, public)


class Town:
    """Everything of a server but HTTP, on one database, under one clock."""

    def __init__(self, office: Office, steps: Steps, signer: SteppedSigner, hands: SteppedHands, ear: Sink) -> None:
        self.office = office
        self.signer = signer
        self.deps = office.deps
        self.clock = office.clock
        self.steps = steps
        self.hands = hands
        self.ear = ear
        self.bureau: Bureau | None = None
        """The officers, once there are any."""
        self.counter: Counter | None = None
        """Where CMP messages are handed in, once somebody does."""
        self._neighbours: dict[str, Resident] = {}
        self.mark = 0
        """A position in the trail, for who looks at what came after it."""
        self.acme = self.settle("acme/eu-west")
        self.globex = self.settle("globex/main")
        self.recover()

    def settle(self, address: str) -> Resident:
        """Return a new instance with both certificates."""
        made = Resident(Kms(parse_address(address)))
        self.office.settle(made.kms)
        made.certificate = self.office.publish(made.kms, made.private)
        return made

    def newcomer(self) -> Resident:
        """Return an instance of a new name with both certificates."""
        return self.settle(f"{name('initech')}/main")

    def neighbour(self, called: str) -> Resident:
        """Return an instance that is settled when it is first asked for, and stays: settling takes a while."""
        if called not in self._neighbours:
            self._neighbours[called] = self.settle(f"neighbours/{called}")
        return self._neighbours[called]

    def caller(self, who: Resident) -> Caller:
        """Return an instance as one that has just signed a request."""
        return who.kms.caller(self.office)

    def compose(self, sender: Resident, to: Resident, **changes: object) -> Incoming:
        """Return a deposit as it is sent."""
        context = deposits.Context(
            sender=sender.kms.address,
            recipient=to.kms.address,
            key_id=KeyId(str(changes.get("key_id", "orders"))),
            key_version=1,
            purpose="encrypt",
            expires=(self.clock.now() + timedelta(days=float(str(changes.get("days", 30))))).replace(microsecond=0),
        )
        body = deposits.compose(
            KEY,
            context,
            package_id=secrets.token_bytes(16),
            recipient=to.recipient,
            signer_ski=sender.kms.ski,
            sign=sender.kms.identity.sign,
            signing_time=self.clock.now(),
        )
        supersedes = changes.get("supersedes")
        return Incoming(body, secrets.token_hex(8), None if supersedes is None else str(supersedes))

    def send(self, sender: Resident, to: Resident, count: int = 1, **changes: object) -> list[DepositId]:
        """Hand deposits in that are accepted."""
        items = [self.compose(sender, to, **changes) for _ in range(count)]
        answers = accept(self.deps, self.caller(sender), items)
        assert all(isinstance(one, Accepted) for one in answers), answers
        return [one.id for one in answers if isinstance(one, Accepted)]

    def deliver(self, sender: Resident, to: Resident, count: int = 1, **changes: object) -> list[DepositId]:
        """Hand deposits in that become available."""
        ids = self.send(sender, to, count, **changes)
        self.hands.drain("validate")
        return ids

    def hand_over(self, sender: Resident, to: Resident) -> DepositId:
        """Hand a deposit in that is collected."""
        [found] = self.deliver(sender, to)
        mailbox.collect(self.deps, self.caller(to), to.kms.address, [found])
        return found

    def answer(self, who: Resident, deposit_id: DepositId, refusal: RefusalReason | None = None) -> bytes:
        """Return a signed receipt or refusal."""
        sha512 = self.record(deposit_id).body_sha512
        common = {"signer_ski": who.kms.ski, "sign": who.kms.identity.sign, "signing_time": self.clock.now()}
        if refusal is None:
            return receipts.compose_receipt(deposit_id, sha512, who.kms.address, **common)
        return receipts.compose_refusal(deposit_id, sha512, who.kms.address, refusal, **common)

    def record(self, deposit_id: DepositId) -> DepositRecord:
        """Return a deposit as it is stored."""
        with self.deps.store.read() as unit:
            found = deposit_store.deposit(unit, deposit_id, with_body=True)
        assert found is not None
        return found

    def state(self, deposit_id: DepositId) -> str:
        """Return where a deposit stands."""
        return self.record(deposit_id).state.value

    def tick(self, *kinds: str) -> None:
        """Let the beat write what is due because time has passed: jobs of these kinds, or of all."""
        now = self.clock.now()
        for due in schedule(self.deps.settings):
            if not kinds or due.kind in kinds:
                tick(self.deps, due, now)

    def jobs(self) -> set[tuple[str, str]]:
        """Return kind and subject of all jobs that there are."""
        with self.deps.store.read() as unit:
            found = unit.connection.execute(select(tables.jobs.c.kind, tables.jobs.c.subject))
            return {(row.kind, row.subject) for row in found}

    def recover(self) -> None:
        """Let time pass for leases and pauses to end, and workers work, until nothing is left for them."""
        left = ["nobody looked"]
        for _ in range(_PATIENCE):
            for _ in range(_ROUNDS):
                due = self.due()
                for queue in due:
                    self.hands.drain(queue)
                if not due:
                    break
            left = broken(self.deps.store, settled=True)
            if not left:
                return
            self.clock.step(timedelta(minutes=2))
            # The beat finds what was forgotten.
            self.tick("look", "events")
        raise AssertionError("\n".join(left))

    def due(self) -> list[str]:
        """Return the queues that somebody would be woken for."""
        with self.deps.store.read() as unit:
            alive = (tables.jobs.c.dead_at.is_(None), tables.jobs.c.due_at <= self.clock.now())
            queues = list(unit.connection.execute(select(tables.jobs.c.queue).where(*alive).distinct()).scalars())
            last, read = event_store.head(unit, lock=False)[0], event_store.cursor(unit, "exchange")
            if event_store.unsequenced_count(unit) or read < last:
                queues.append("sequence")
        return queues

    def told(self, subject: str) -> list[str]:
        """Return the types of a subject's events."""
        with self.deps.store.read() as unit:
            events = tables.events
            return list(unit.connection.execute(select(events.c.type).where(events.c.subject == subject)).scalars())

    def settled_with_bodies(self) -> list[datetime]:
        """Return when deposits were settled whose bodies are still there."""
        with self.deps.store.read() as unit:
            deposits, bodies = tables.deposits, tables.bodies
            both = deposits.join(bodies, bodies.c.deposit_id == deposits.c.id)
            statement = select(deposits.c.settled_at).select_from(both).where(deposits.c.settled_at.is_not(None))
            return list(unit.connection.execute(statement).scalars())

    def last_position(self) -> int:
        """Return the newest event's position."""
        with self.deps.store.read() as unit:
            return event_store.head(unit, lock=False)[0]

    def known_tbs(self) -> set[bytes]:
        """Return what is stored to be signed, or was signed."""
        with self.deps.store.read() as unit:
            return set(unit.connection.execute(select(tables.requests.c.tbs)).scalars())

    def count(self, table: str) -> int:
        """Return how many rows a table has."""
        with self.deps.store.read() as unit:
            statement = select(func.count()).select_from(tables.metadata.tables[table])
            return unit.connection.execute(statement).scalar_one()


def name(stem: str) -> str:
    """Return a name that nobody has."""
    return f"{stem}-{secrets.token_hex(6)}"


def patiently(call: Callable[[], T]) -> T:
    """Do what a client does: repeat the very same request while the server says that it is away."""
    for _ in range(5):
        try:
            return call()
        except UnavailableError:
            continue
    return call()


@contextmanager
def town(url: str, home: Path, broker_url: str, prefix: str, **settings: Any) -> Iterator[Town]:
    """Open a town on a migrated database without rows."""
    steps = Steps(every=EVERY, seed=SEED)
    store = SteppedStore(url, steps)
    office = open_office(
        store, home, passphrase=PASSPHRASE.decode(), webhook_allow_private=True, order_cap=100_000, **settings
    )
    signer = SteppedSigner(office.signer, steps)
    publisher = SteppedPublisher(broker_url, prefix, steps)
    with sink() as ear:
        hands = SteppedHands(office.deps, CaKeys(signer), publisher, SteppedNotifier(steps))
        try:
            yield Town(office, steps, signer, hands, ear)
        finally:
            publisher.close()
            store.close()
