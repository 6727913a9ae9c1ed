"""Figures beside their ceilings, as JSON and as a table."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import cpu_count
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One measured value; ``ceiling`` is the bare cost measured in the same run, ``goal`` a ratio to it."""

    name: str
    value: float
    unit: str
    ceiling: float | None = None
    ratio: float | None = None
    goal: float | None = None
    met: bool | None = None


def beside(name: str, value: float, unit: str, ceiling: float, goal: float | None = None) -> Figure:
    """Return a figure with its ratio to a ceiling of the same unit."""
    ratio = value / ceiling
    return Figure(name, value, unit, ceiling, round(ratio, 4), goal, None if goal is None else ratio >= goal)


def within(name: str, value: float, unit: str, floor: float, ratio: float, goal: float) -> Figure:
    """Return a cost with its ratio to a bare cost of the same unit, which should be at most ``goal``."""
    return Figure(name, value, unit, floor, round(ratio, 4), goal, ratio <= goal)


def limited(name: str, value: float, unit: str, most: float | None) -> Figure:
    """Return a figure that should be at most ``most`` of its own unit; the goal stands beside it as the ceiling."""
    if most is None:
        return Figure(name, round(value, 2), unit)
    return Figure(name, round(value, 2), unit, most, round(value / most, 4), 1.0, value <= most)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that is not exceeded by this share of all (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def write(figures: list[Figure], path: Path) -> None:
    """Write all figures with machine and commit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = f"{platform.machine()}, {cpu_count()} cores, Python {platform.python_version()}"
    content = {"machine": machine, "commit": commit, "figures": [asdict(figure) for figure in figures]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def read(path: Path) -> list[Figure]:
    """Return the figures that were written last; none before there are any."""
    return [Figure(**one) for one in json.loads(path.read_text())["figures"]] if path.exists() else []


def table(figures: list[Figure]) -> str:
    """Return the figures as aligned text."""
    lines = [f"{'figure':<58}{'value':>12} {'unit':<12}{'ceiling':>10}{'ratio':>8}{'goal':>7}"]
    for f in figures:
        ceiling = "" if f.ceiling is None else f"{f.ceiling:,.0f}"
        ratio = "" if f.ratio is None else f"{f.ratio:.2f}"
        goal = "" if f.goal is None else f"{f.goal:.2f}"
        mark = "" if f.met is None else (" met" if f.met else " not met")
        lines.append(f"{f.name:<58}{f.value:>12,.1f} {f.unit:<12}{ceiling:>10}{ratio:>8}{goal:>7}{mark}")
    return "\n".join(lines)
