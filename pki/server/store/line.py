"""A line of threads before what one at a time may have: first come, first served."""

from __future__ import annotations

import threading
from collections import deque


class Line:
    """A lock that goes to whoever has waited longest: an ordinary one goes to whoever asks at the right moment.

    A thread that commits again and again would keep the others waiting until their time is over.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def acquire(self, timeout: float) -> bool:
        """Return True when it is this thread's turn, False after ``timeout`` seconds."""
        with self._lock:
            if not self._taken:
                self._taken = True
                return True
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        if turn.acquire(timeout=timeout):
            return True
        with self._lock:
            if turn not in self._waiting:
                # It was handed over just now.
                return True
            self._waiting.remove(turn)
            return False

    def release(self) -> None:
        """Hand it to the next in line."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False
