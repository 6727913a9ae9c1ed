"""`make rules`: write at the end of docs/rules.md where each rule is enforced, and what breaks it."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from pki.core.policy import LOOSER, RULES

HOUSE = Path(__file__).parents[2]
PAGE = HOUSE / "docs" / "rules.md"
BEGIN = "<!-- written by `make rules`; tests/unit/test_core_rules.py holds it to the code -->"
NUMBER = re.compile(r"\b[A-Z]{3}-\d{3}\b")
_LISTS = {"RULES", "LOOSER"}
_NOT_TESTS = {"test_core_rules.py", "test_vectors_own.py"}

ON_THE_SERVER = {
    "REQ-006": "test_without_an_identity_certificate_there_is_no_encryption_certificate",
    "REQ-007": "test_a_request_that_waited_too_long_is_rejected",
    "ISS-001": "test_what_the_linter_finds_stops_the_signature",
    "CMP-009": "test_a_transaction_is_opened_once",
    "CMP-011": "test_what_is_replaced_is_the_senders",
    "DEP-011": "test_a_replayed_deposit_is_refused",
    "REV-002": "test_nobody_else_revokes",
    "REV-003": "test_a_row_that_says_revoked_proves_nothing",
}
"""The rules that need the store to decide, and their tests."""


def index() -> str:
    """Return the table: rule, profiles, the functions that raise it, the tests and vectors that break it."""
    code = _places("pki", "workers")
    tests = _places("tests", chosen="test_")
    for rule, name in ON_THE_SERVER.items():
        tests.setdefault(rule, []).extend(place for place in _defining(name) if place not in tests.get(rule, []))
    vectors = {path.stem[:7]: path for path in sorted((HOUSE / "tests" / "vectors" / "refused").glob("*.txt"))}
    lines = [
        BEGIN,
        "",
        "## Where each rule is",
        "",
        "| rule | profiles | enforced by | broken by | vector |",
        "| --- | --- | --- | --- | --- |",
    ]
    for rule in RULES:
        profiles = "strict, read" if rule not in LOOSER else "strict; looser in read"
        vector = f"`{vectors[rule].name}`" if rule in vectors else ""
        lines.append(f"| {rule} | {profiles} | {_few(code.get(rule, []))} | {_few(tests.get(rule, []))} | {vector} |")
    lines += [
        "",
        "## What the read profile loosens",
        "",
        "`strict` is what keymailbox makes and what the server accepts. `read` is what `kmb object open` takes from",
        "other people's tools (docs/adr/0008). It never takes what nothing authenticates. A rule that is not listed is",
        "the same in both.",
        "",
        "| rule | in `read` |",
        "| --- | --- |",
        *(f"| {rule} | {words} |" for rule, words in LOOSER.items()),
        "",
    ]
    return "\n".join(lines)


def page() -> str:
    """Return what docs/rules.md should be: its hand-written part, then the index."""
    written = PAGE.read_text().partition(BEGIN)[0].rstrip("\n")
    return f"{written}\n\n{index()}"


def _few(places: list[str]) -> str:
    shown = [f"`{place}`" for place in places[:2]]
    more = len(places) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _places(*rooms: str, chosen: str = "") -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for room in rooms:
        for path in sorted((HOUSE / room).rglob("*.py")):
            if path.name in _NOT_TESTS:
                continue
            for number, where in sorted(set(_numbers(ast.parse(path.read_text()), ""))):
                file = path.relative_to(HOUSE).with_suffix("").as_posix().removeprefix("tests/")
                if not where and path.name.startswith("test_"):
                    # A table of cases beside the test that walks it.
                    found[number].append(file)
                elif where and where.rpartition(".")[2].startswith(chosen):
                    found[number].append(f"{file}::{where}")
    return {number: _unique(places) for number, places in found.items()}


def _defining(name: str) -> list[str]:
    files = [path for path in (HOUSE / "tests").rglob("test_*.py") if f"def {name}(" in path.read_text()]
    return [f"{path.relative_to(HOUSE / 'tests').with_suffix('').as_posix()}::{name}" for path in sorted(files)]


def _unique(places: list[str]) -> list[str]:
    return [one for one in places if "::" in one or not any(other.startswith(f"{one}::") for other in places)]


def _numbers(node: ast.AST, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in _LISTS:
        return
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        where = f"{where}.{node.name}".removeprefix(".")
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 40:
        for number in NUMBER.findall(node.value):
            if number in RULES:
                yield number, where
    for child in ast.iter_child_nodes(node):
        yield from _numbers(child, where)


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"written: {PAGE.relative_to(HOUSE)}\n")
