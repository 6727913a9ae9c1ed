"""Rules, their list, their tests and the types that only a check may make hold together."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pki.core.policy import LOOSER, RULES
from tests.kit import rulebook

HOUSE = Path(__file__).parents[2]
NUMBER = re.compile(r"\b(?:DER|SIG|ENV|PKG|CRT|CRL|REQ|ISS|ICA|DEP|RCP|REV|OCS|CMP|ORD)-\d{3}\b")

MAKERS = {
    "SignedObject": {("signing", "UnverifiedSigned.verify")},
    "VerifiedRequest": {("requests", "UnverifiedRequest.verify")},
    "IssuingRequest": {("issuers", "UnverifiedIssuingRequest.verify")},
    "VerifiedCertificate": {("certificates", "check_listed"), ("certificates", "check_parsed")},
    "VerifiedDeposit": {("policy", "verify_deposit")},
    "VerifiedReceipt": {("receipts", "UnverifiedReceipt.verify")},
    "VerifiedOrder": {("orders", "verify_order")},
    "Officers": {("officers", "UnverifiedOfficers.verify")},
    "VerifiedRevocation": {("revocations", "UnverifiedRevocation.verify")},
    "SignedRequest": {("httpsig", "_verified_quickly"), ("httpsig", "_verified_by_the_library")},
    "Crl": {("crl", "verify_crl"), ("crl", "apply_delta")},
    "DeltaCrl": {("crl", "verify_delta")},
}


def sources(*rooms: str) -> Iterator[Path]:
    """Return the Python files below some directories."""
    for room in rooms:
        yield from (HOUSE / room).rglob("*.py")


def test_the_documented_rules_are_the_rules() -> None:
    """docs/rules.md has each rule of `RULES` once, in the same words, and no other."""
    text = rulebook.PAGE.read_text().partition(rulebook.BEGIN)[0]
    rows = re.findall(r"^\| ([A-Z]{3}-\d{3}) \| (.*?) \| .+ \|$", text, re.MULTILINE)
    assert len(rows) == len(RULES)
    assert dict(rows) == dict(RULES)


def test_the_index_is_current() -> None:
    """docs/rules.md says of each rule where it is enforced and what breaks it; `make rules` writes that."""
    assert rulebook.PAGE.read_text() == rulebook.page(), "make rules"


def test_the_looser_rules_are_rules() -> None:
    """What the read profile loosens are rules that there are."""
    assert set(LOOSER) <= set(RULES)


def test_every_rule_is_enforced_and_tested() -> None:
    """Each rule stands in code beside its list and in a test; the code knows no rule that is not listed."""
    enforced = {number for path in sources("pki", "workers") for number in NUMBER.findall(_without_list(path))}
    tests = "".join(path.read_text() for path in sources("tests"))
    named = set(NUMBER.findall(tests)) - set(rulebook.ON_THE_SERVER)
    assert enforced == set(RULES)
    assert named | set(rulebook.ON_THE_SERVER) >= set(RULES)
    assert [name for name in rulebook.ON_THE_SERVER.values() if f"def {name}(" not in tests] == []


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_only_a_check_makes_a_verified_type(kind: str) -> None:
    """No code but the check itself constructs the type that says that the check was passed."""
    found = {
        (path.stem, where)
        for path in sources("pki", "workers", "demo", "bench")
        for name, where in _calls(ast.parse(path.read_text()), "")
        if name == kind
    }
    assert found == MAKERS[kind]


def _without_list(path: Path) -> str:
    # The list itself does not count as enforcement.
    before, _, rest = path.read_text().partition("RULES: Mapping")
    rest = rest.partition("\n}\n")[2]
    between, _, rest = rest.partition("LOOSER: Mapping")
    return before + between + rest.partition("\n}\n")[2]


def _calls(node: ast.AST, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        where = f"{where}.{node.name}".removeprefix(".")
    if isinstance(node, ast.Call):
        called = node.func
        yield (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")), where
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, where)
