"""What a call costs, in units that do not depend on how busy the machine is: function calls and bytes."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType

TRIES = 3
"""Another thread's allocations are counted, too, and only ever add: the least of a few tries is the call's own."""


def calls(work: Callable[[], object]) -> int:
    """Return how many functions, of Python and of C, are called and returned from in this thread."""
    count = 0

    def counted(_frame: FrameType, _event: str, _argument: object) -> None:
        nonlocal count
        count += 1

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def memory(work: Callable[[], object]) -> int:
    """Return how many bytes are allocated at the peak; the work is done once before, so that caches are full."""
    work()
    tracemalloc.start()
    try:
        return min(_peak(work) for _ in range(TRIES))
    finally:
        tracemalloc.stop()


def _peak(work: Callable[[], object]) -> int:
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    work()
    return tracemalloc.get_traced_memory()[1] - before
