"""How much memory each process of the server holds, children counted with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bench.figures import Figure, limited

_MOST = {"api": 150.0, "dev": 150.0, "validator": 120.0, "worker": 120.0, "issuer": 120.0, "sequencer": 120.0}
"""Megabytes that a process should hold at most; a worker's are those of its largest child."""


def resident(where: str, processes: Mapping[str, int], when: str) -> list[Figure]:
    """Return the resident set of each process (its largest, where it has children) in megabytes, as Linux counts it."""
    figures = []
    for name, pid in sorted(processes.items()):
        largest = max(_resident(one) for one in [pid, *_children(pid)])
        role = name.partition("-")[0]
        figures.append(limited(f"{where}: memory of {name}, {when}", largest, "MB", _MOST.get(role)))
    return figures


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_children(int(child))]
    return found


def _resident(pid: int) -> float:
    # The second number of statm is the resident set in pages (proc(5)).
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
