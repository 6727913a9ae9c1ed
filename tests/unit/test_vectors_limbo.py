"""Paths of certificates tried against C2SP x509-limbo: what it refuses is refused, and more is refused for a reason."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pki.core import authorities, links, paths
from pki.core.errors import KeymailboxError
from pki.core.links import Link

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "vectors" / "limbo" / "cases.json"
PAGE = ROOT / "docs" / "paths.md"
WHEN = datetime(2026, 1, 1, tzinfo=UTC)
TAKEN = "taken"

STRICTER: Mapping[str, str] = {
    "cve::cve-2024-0567": "A certificate has no authority key identifier",
    "rfc5280::validity::notafter-fractional": "A certificate has expired",
    "webpki::cryptographydotio-chain": "An RSA key has 3072 to 4096 bits",
}
"""What x509-limbo takes and we refuse, apart from name constraints, with what the refusal says."""
CONSTRAINED = "A certificate sets limits that are not obeyed here"


@dataclass(frozen=True)
class Case:
    """One case, and how it is answered here."""

    name: str
    expected: str
    now: datetime
    leaf: bytes
    untrusted: tuple[bytes, ...]
    trusted: tuple[bytes, ...]

    @property
    def pair(self) -> bool:
        """Whether there is one root and one certificate between it and the leaf."""
        return len(self.untrusted) == len(self.trusted) == 1

    def path(self) -> str:
        """Return ``taken``, or why there is no path, as `kmb object verify` looks for one."""
        try:
            trust, untrusted = _readable(self.trusted), _readable(self.untrusted)
            paths.find(links.parse(self.leaf), trust=trust, untrusted=untrusted, now=self.now)
        except KeymailboxError as error:
            return error.message
        return TAKEN

    def authorities(self) -> str:
        """Return ``taken``, or why these are no root and issuing CA."""
        try:
            authorities.verify_authorities(issuing_der=self.untrusted[0], root_der=self.trusted[0], now=self.now)
        except KeymailboxError as error:
            return error.message
        return TAKEN

    def row(self) -> str:
        """Return what docs/paths.md says of it."""
        limbo = TAKEN if self.expected == "SUCCESS" else "refused"
        both = "–" if not self.pair else TAKEN if self.authorities() == TAKEN else "refused"
        return f"| `{self.name}` | {limbo} | {self.path()} | {both} |"


def _readable(ders: tuple[bytes, ...]) -> list[Link]:
    found = []
    for der in ders:
        try:
            found.append(links.parse(der))
        except KeymailboxError:
            # What came along and cannot be read is passed over, as in a SignedData.
            continue
    return found


@cache
def cases() -> Mapping[str, Case]:
    """Return all cases by name."""
    told: dict[str, Any] = json.loads(CASES.read_text())
    return {
        one["id"]: Case(
            one["id"],
            one["expected"],
            datetime.fromisoformat(one["time"]) if "time" in one else WHEN,
            b64decode(one["leaf"]),
            tuple(map(b64decode, one["untrusted"])),
            tuple(map(b64decode, one["trusted"])),
        )
        for one in told["cases"]
    }


def test_all_cases_are_there() -> None:
    """None was lost on the way, and both answers are wanted."""
    wanted = [one.expected for one in cases().values()]
    assert (len(wanted), wanted.count("SUCCESS"), wanted.count("FAILURE")) == (138, 38, 100)


@pytest.mark.parametrize("name", cases())
def test_a_path_is_answered_as_limbo_does_or_refused(name: str) -> None:
    """Nothing is taken that x509-limbo refuses; what is refused beyond that is one of four things."""
    case = cases()[name]
    said = case.path()
    if case.expected == "FAILURE":
        assert said != TAKEN
    elif name in STRICTER:
        assert said == STRICTER[name]
    elif "::nc::" in name:
        assert said in (TAKEN, CONSTRAINED)
    else:
        assert said == TAKEN


@pytest.mark.parametrize("name", [name for name, case in cases().items() if case.pair])
def test_root_and_issuing_ca_are_not_taken_where_the_path_is_refused_for_them(name: str) -> None:
    """What directory and agents ask is never less: only where the leaf is at fault are the two above it taken."""
    case = cases()[name]
    if case.authorities() == TAKEN:
        assert case.path() == TAKEN or name == "rfc5280::validity::expired-leaf"


def test_the_page_says_what_is_so() -> None:
    """docs/paths.md has one row for each case, and it is right."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert rows == [case.row() for case in cases().values()]
