"""No two test processes are given the same port, also while nobody listens on it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.kit import daemons
from tests.kit.daemons import free_port

_NEIGHBOUR = """
from tests.kit import daemons
daemons._PORTS = ({first}, {first} + 8)
print(*(daemons.free_port() for _ in range(5)), flush=True)
input()
"""


def test_a_port_is_one_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process has drawn is not drawn here until it has ended; nor is anything drawn twice."""
    first = free_port()
    monkeypatch.setattr(daemons, "_PORTS", (first, first + 8))
    with subprocess.Popen(
        [sys.executable, "-c", _NEIGHBOUR.format(first=first)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as neighbour:
        assert neighbour.stdout is not None
        theirs = {int(port) for port in neighbour.stdout.readline().split()}
        ours: list[int] = []
        with pytest.raises(OSError, match="no loopback port"):
            for _ in range(9):
                ours.append(free_port())
        neighbour.communicate("\n", timeout=30)
    assert len(theirs) == 5
    assert len(ours) <= 2 and len(set(ours)) == len(ours)
    assert not theirs & {first, *ours}
    # Gone with its process.
    assert free_port() in theirs
