"""The committed description of the API is what the code says."""

from __future__ import annotations

from pathlib import Path

from pki.server.api import openapi

UNSIGNED = {"/livez", "/readyz", "/version", "/metrics", "/v1/ca"}
STATUS = {"/v1/crl", "/v1/crl/{issuer}", "/v1/crl/{issuer}/delta", "/v1/ocsp", "/v1/ocsp/{encoded}"}


def test_the_committed_description_is_up_to_date() -> None:
    """After a change of routes: python -m pki.server.api.openapi."""
    assert openapi.main(["--check"]) == 0


def test_a_drift_is_found(tmp_path: Path) -> None:
    """The check fails on another text and on none, and writing mends it."""
    file = tmp_path / "openapi.json"
    assert openapi.main(["--check", "--out", str(file)]) == 1
    file.write_text(openapi.text().replace("deposit", "Deposit", 1))
    assert openapi.main(["--check", "--out", str(file)]) == 1
    assert openapi.main(["--out", str(file)]) == 0
    assert openapi.main(["--check", "--out", str(file)]) == 0


def test_it_is_openapi_3_1_with_problems_and_signatures() -> None:
    """Every operation has a summary and problems; every one but the public ones is signed. EST is told in words."""
    described = openapi.describe()
    assert described["openapi"].startswith("3.1")
    for path, operations in described["paths"].items():
        for operation in operations.values():
            assert operation["summary"]
            est = path.startswith("/.well-known/est/")
            told = "text/plain" if est else "application/problem+json"
            assert told in operation["responses"]["default"]["content"]
            assert "422" not in operation["responses"]
            assert ("security" in operation) == (est or path not in UNSIGNED | STATUS)
    ids = [one["operationId"] for operations in described["paths"].values() for one in operations.values()]
    assert len(ids) == len(set(ids))
