"""What every use case is given."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pki.core.errors import SettingsError
from pki.server.ports import CA_FOLDER, ISSUING_FILE, ROOT_FILE, CaChain, Clock
from pki.server.settings import Settings
from pki.server.store.engine import Store


@dataclass(frozen=True)
class Deps:
    """The store, the settings and a clock of one server process; threads share it."""

    store: Store
    settings: Settings
    clock: Clock

    @cached_property
    def chain(self) -> CaChain:
        """The CA's certificates, read from ``home`` once; raises SettingsError before ``kmb-server init``."""
        folder = self.settings.home / CA_FOLDER
        try:
            return CaChain(root=(folder / ROOT_FILE).read_bytes(), issuing=(folder / ISSUING_FILE).read_bytes())
        except OSError as error:
            raise SettingsError(
                f"The CA's certificates cannot be read: {error.strerror}",
                on=str(folder),
                hint=f"kmb-server init --home {self.settings.home}",
            ) from None
