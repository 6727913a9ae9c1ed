"""The objects of the vectors: each right but for the one thing that its header names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One vector to be: ``rule`` "" is accepted; "-" is refused without a rule. ``more`` adds to the kind's header."""

    name: str
    kind: str
    rule: str
    why: str
    body: bytes
    more: Mapping[str, str] = field(default_factory=dict)
