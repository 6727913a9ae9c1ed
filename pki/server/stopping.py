"""A process that was told to stop ends, whatever holds it up."""

from __future__ import annotations

import json
import os
import signal
from datetime import UTC, datetime

STOP_SECONDS = 38.0
"""For how long a process may stop in order; `compose.yaml` and systemd kill it after 40."""
FORCED_SECONDS = 5.0
"""And for how long once it was told a second time, if it does not end at once."""


def end_within(seconds: float) -> None:
    """End this process with code 1 after ``seconds``, unless it has ended by itself; called again, the last one holds.

    A database, a broker or a token that stands still may hold up a thread for longer than anybody waits. What is under
    way is in the database: leases run out, and others take it up. For the main thread, also in a handler of signals.
    """
    signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _end(_number: int, _frame: object) -> None:
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    line = {"event": "stop_overdue", "logger": "stopping", "level": "error", "timestamp": at}
    # Not by the log, whose lock a thread may hold that stands still.
    os.write(2, json.dumps(line).encode() + b"\n")
    os._exit(1)
