"""Officers with keys of their own, at a server whose CA signs their list."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from pki.core.crl import Reason
from pki.core.ids import Fingerprint
from pki.core.orders import LIFETIME, CapLift, Content, RevocationOrder, compose_approval, compose_order
from pki.core.signers import SigningKey
from pki.server.facts import OrderRecord
from pki.server.ports import CaKeys
from pki.server.services import officers, orders
from pki.server.services.deps import Deps
from pki.server.services.orders import Outcome
from tests.kit.authority import new_signing_key
from tests.kit.office import SteppedClock


class Place(Protocol):
    """A server whose services are called directly, with the CA's key."""

    @property
    def deps(self) -> Deps:
        """What the services need."""

    @property
    def keys(self) -> CaKeys:
        """What the issuer holds."""


class Bureau:
    """The persons who may order: each a name and a key."""

    def __init__(self, office: Place, *names: str) -> None:
        """Make these persons officers, where the clock can be moved a while ago."""
        self.office = office
        self.keys: dict[str, SigningKey] = {}
        for name in names:
            self.add(name)
        if isinstance(office.deps.clock, SteppedClock):
            office.deps.clock.step(timedelta(minutes=1))

    def add(self, name: str, key: SigningKey | None = None) -> SigningKey:
        """Make a person an officer."""
        self.keys[name] = key or new_signing_key()
        officers.add(self.office.deps, self.office.keys, name, self.keys[name].public.spki)
        return self.keys[name]

    def revocation(
        self,
        name: str,
        wanted: Sequence[Fingerprint],
        reason: Reason = Reason.KEY_COMPROMISE,
        *,
        because: str = "Your key was seen in a public place",
        ago: timedelta = timedelta(0),
    ) -> RevocationOrder:
        """Return what an officer has to say."""
        now = (self.office.deps.clock.now() - ago).replace(microsecond=0)
        return RevocationOrder(name, because, now, now + LIFETIME, reason, tuple(sorted(wanted)))

    def lift(self, name: str, count: int, lasts: timedelta = timedelta(hours=1)) -> CapLift:
        """Return an order to lift the cap."""
        now = self.office.deps.clock.now().replace(microsecond=0)
        return CapLift(name, "Many are affected", now, now + LIFETIME, count, lasts)

    def signed(self, content: Content) -> bytes:
        """Return an order, signed by the officer whom it names."""
        return compose_order(content, self.keys[content.officer])

    def give(self, content: Content) -> OrderRecord:
        """Give an order."""
        return orders.give(self.office.deps, self.signed(content))

    def approval(self, name: str, record: OrderRecord, key: SigningKey | None = None) -> bytes:
        """Return an approval, signed by the officer."""
        now = self.office.deps.clock.now().replace(microsecond=0)
        return compose_approval(record.id, name, key or self.keys[name], now)

    def approve(self, name: str, record: OrderRecord) -> Outcome:
        """Approve an order."""
        return orders.approve(self.office.deps, self.approval(name, record))

    def revoke(self, *wanted: Fingerprint, by: Sequence[str] = ("ann", "bob")) -> Outcome:
        """Revoke certificates as two officers."""
        return self.approve(by[1], self.give(self.revocation(by[0], wanted)))
