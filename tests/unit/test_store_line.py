"""The line before SQLite's one writer: nobody is passed over, and nobody who has left is waited for."""

from __future__ import annotations

import threading

from pki.server.store.line import Line
from tests.kit.processes import wait_until


def queued(line: Line, count: int) -> None:
    """Wait until so many wait."""
    wait_until(lambda: len(line._waiting) == count, 10)


def test_first_come_first_served() -> None:
    """Who has just let go comes last, however quick."""
    line, served = Line(), []
    assert line.acquire(1)

    def take(number: int) -> None:
        assert line.acquire(10)
        served.append(number)
        line.release()

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=take, args=(number,)))
        threads[-1].start()
        queued(line, number + 1)
    line.release()
    assert line.acquire(10)
    served.append(99)
    line.release()
    for thread in threads:
        thread.join(10)
    assert served == [0, 1, 2, 3, 4, 99]


def test_who_gave_up_is_passed_over() -> None:
    """After its time it leaves the line, and the one behind it is next."""
    line, served = Line(), []
    assert line.acquire(1)
    assert not line.acquire(0.01)
    assert not line._waiting

    def take() -> None:
        served.append(line.acquire(10))
        line.release()

    thread = threading.Thread(target=take)
    thread.start()
    queued(line, 1)
    line.release()
    thread.join(10)
    assert served == [True]
    assert line.acquire(0)
