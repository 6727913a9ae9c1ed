"""A process that was told to stop ends, whatever holds it up."""

from __future__ import annotations

import json
import os
import select
import signal
from datetime import UTC, datetime

STOP_SECONDS = 38.0
"""For how long a process may stop in order; `compose.yaml` kills it after 40."""
FORCED_SECONDS = 5.0
"""And for how long once it was told a second time, if it does not end at once."""


def end_within(seconds: float) -> None:
    """End this process with code 1 after ``seconds``, unless it has ended by itself; called again, the sooner holds.

    A database, a broker or a token that stands still may hold up a thread for longer than anybody waits. What is under
    way is in the database: leases run out, and others take it up. For the main thread, also in a handler of signals.
    """
    signal.signal(signal.SIGALRM, _end)
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    signal.setitimer(signal.ITIMER_REAL, min(left, seconds) if left else seconds)


def told_before() -> bool:
    """Tell whether this process was told to stop already."""
    return signal.getitimer(signal.ITIMER_REAL)[0] > 0


def _end(_number: int, _frame: object) -> None:
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    line = {"event": "stop_overdue", "logger": "stopping", "level": "error", "timestamp": at}
    try:
        # Not by the log, whose lock a thread may hold that stands still; nor where nobody reads.
        if select.select((), (2,), (), 0)[1]:
            os.write(2, json.dumps(line).encode() + b"\n")
    finally:
        os._exit(1)
