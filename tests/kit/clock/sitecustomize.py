"""Moves the clock of a server process, and of its children, by the seconds that stand in the file KMB_TEST_CLOCK."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pki.server import bootstrap

_FILE = Path(os.environ["KMB_TEST_CLOCK"])


def _now(self: bootstrap.SystemClock) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=float(_FILE.read_text() or 0))


bootstrap.SystemClock.now = _now  # type: ignore[method-assign]
