"""The two profiles: what the server accepts, and what a recipient may open from elsewhere."""

from __future__ import annotations

from enum import StrEnum


class Profile(StrEnum):
    """How much of the standards an object may use; docs/rules.md says for each rule which profile it is of."""

    STRICT = "strict"
    """What keymailbox makes and what the server accepts."""
    READ = "read"
    """What a recipient may open from other people's tools, offline; never weaker than authenticated encryption."""
