"""The tenant's memory: pins, what was sent, what was decided, cursors, alarms; one file that survives a kill.

Each method is one transaction, on the disk when it returns. The tenant's side writes its intention here before it
speaks to the server, so that whatever was interrupted can be taken up again.
"""

from __future__ import annotations

from pathlib import Path

from pki.tenant.records.alarms import Alarms
from pki.tenant.records.database import Database
from pki.tenant.records.issuers import Issuers
from pki.tenant.records.lists import RevocationLists
from pki.tenant.records.marks import Marks
from pki.tenant.records.own import Own
from pki.tenant.records.pins import Pins
from pki.tenant.records.rotations import Rotations
from pki.tenant.records.seen import SeenDeposits
from pki.tenant.records.sent import SentDeposits
from pki.tenant.records.taking import Takings


class Journal:
    """One open journal, a table for each noun."""

    def __init__(self, path: Path) -> None:
        """Open the journal, or make it."""
        self._database = Database(path)
        self.pins = Pins(self._database)
        self.own = Own(self._database)
        self.sent = SentDeposits(self._database)
        self.rotations = Rotations(self._database)
        self.seen = SeenDeposits(self._database)
        self.taking = Takings(self._database)
        self.marks = Marks(self._database)
        self.alarms = Alarms(self._database)
        self.issuers = Issuers(self._database)
        self.lists = RevocationLists(self._database)

    def check(self) -> None:
        """Raise SettingsError when the file is damaged."""
        self._database.check()

    def close(self) -> None:
        """Close the file."""
        self._database.close()
