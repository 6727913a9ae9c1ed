"""What the doctor tells: one finding for each thing that was looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pki.server.services.deps import Deps


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, what was found, and what to do where it is not ok."""

    check: str
    ok: bool
    detail: str
    hint: str = ""


Check = Callable[[Deps], Iterator[Finding]]
"""Looks at one thing; what it raises is a finding too."""
