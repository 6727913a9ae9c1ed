"""What every use case is given."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from pki.core.tenants import TenantName
from pki.server.facts import CaChain
from pki.server.hierarchy import read_chain, read_registration
from pki.server.ports import Clock, Linter, Profiles
from pki.server.settings import Settings
from pki.server.store.engine import Store


@dataclass(frozen=True)
class Deps:
    """Store, settings, clock, linter and certificate profiles of one server process; threads share it."""

    store: Store
    settings: Settings
    clock: Clock
    linter: Linter
    """What a certificate has to pass before it is signed; idle in all processes but the issuer."""
    profiles: Profiles
    """What certificates look like."""

    def scoped(self, tenants: Collection[TenantName]) -> Deps:
        """Return the same for work on behalf of some tenants: whatever a service asks the store for, it sees theirs."""
        return replace(self, store=self.store.scoped(tenants))

    @property
    def chain(self) -> CaChain:
        """The CA's certificates, read from ``home`` when they have changed; SettingsError before ``kmb-server init``.

        What decides something takes it once and stays with it.
        """
        return read_chain(self.settings.home)

    @property
    def registration(self) -> bytes | None:
        """The public half of the registration key, SubjectPublicKeyInfo in DER; None where none was made yet."""
        return read_registration(self.settings.home)
