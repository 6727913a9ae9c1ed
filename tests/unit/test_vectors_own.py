"""Our own vectors: every file is what its header says, and every rule has one or needs more than bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pki.core.errors import KeymailboxError
from pki.core.policy import RULES
from tests.kit.vectors import FOLDER, digest, load, own, run

FILES = own()
MORE_THAN_BYTES = {
    "REQ-006": "whether an identity certificate is active, the directory knows",
    "REQ-007": "the issuer compares it with its clock when it takes the request up",
    "ISS-001": "the linter is the server's, and what is built here passes it",
    "ISS-002": "what was stored is known where it is signed",
    "CMP-009": "what was answered before, the store knows",
    "CMP-011": "whose certificate it is, the directory knows",
    "ISS-003": "the profile is the operator's",
    "ICA-004": "what was shown before, the agent's journal knows",
    "DEP-011": "which ids were seen before, the store knows",
    "REV-002": "whose certificate it is, the directory knows",
    "REV-003": "what proves a revocation, the store has",
    "ORD-007": "how many certificates orders have revoked, the lists and the store say",
}
"""Rules that no file can break, and why."""


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.name}-{path.stem}" for path in FILES])
def test_a_vector(path: Path) -> None:
    """An accepted object holds what is said; a refused one breaks the rule that is said, with the code that is said."""
    vector = load(path)
    header = vector.header
    assert header["expect"] == path.parent.name
    if header["expect"] == "accepted":
        content = run(vector)
        assert (None if content is None else digest(content)) == header.get("content-sha256")
        return
    with pytest.raises(KeymailboxError) as caught:
        run(vector)
    assert (caught.value.rule or "-", caught.value.code) == (header["rule"], header["code"])
    assert path.stem.startswith("none" if header["rule"] == "-" else header["rule"])


def test_every_rule_has_a_vector() -> None:
    """Each rule is broken by a file, or cannot be broken by bytes alone."""
    broken = {load(path).header.get("rule", "-") for path in FILES} - {"-"}
    assert broken | set(MORE_THAN_BYTES) == set(RULES)
    assert not broken & set(MORE_THAN_BYTES)


def test_the_files_are_as_they_were_written() -> None:
    """Reading a file and writing it again gives the same text, so that there is one way to write a vector."""
    for path in [*FILES, *(FOLDER / "keys").glob("*.txt")]:
        assert load(path).dump() == path.read_text(), path
