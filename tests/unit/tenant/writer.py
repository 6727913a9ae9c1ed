"""Writes to a journal until it is killed, and says on stdout what is on the disk."""

from __future__ import annotations

import os
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path

from pki.core.ids import DepositId, KeyId
from pki.core.tenants import parse_address
from pki.tenant.journal import Journal
from pki.tenant.ports import KeyName
from pki.tenant.records.sent import Sent


def write(path: Path) -> None:
    """Plan deposits in pairs and prepare the first of each."""
    journal = Journal(path)
    now = datetime.now(UTC)
    acme, globex = parse_address("acme/eu-west"), parse_address("globex/main")
    while True:
        first = secrets.randbits(127) * 2
        pair = [
            Sent(DepositId(f"{first + place:032x}"), globex, KeyName(acme, KeyId("k"), 1), "", now, now)
            for place in (0, 1)
        ]
        journal.sent.plan(pair)
        body = b"body of " + pair[0].deposit_id.encode()
        journal.sent.prepare(pair[0], body=body, sha512=b"", certificate="", now=now)
        # One write: a kill between an id and its end would join two ids.
        os.write(1, f"{pair[0].deposit_id}\n".encode())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
