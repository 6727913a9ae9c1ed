"""Write ``schemas/openapi.json`` from the routes, or ``--check`` that it is up to date."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pki.server.api import problems, routes

_PATH = Path(__file__).parents[3] / "schemas" / "openapi.json"
_UNSIGNED = frozenset(
    {"/livez", "/readyz", "/version", "/metrics", "/v1/ca", "/v1/crl", "/v1/crl/{issuer}", "/v1/crl/{issuer}/delta"}
) | {"/v1/ocsp", "/v1/ocsp/{encoded}"}
_EST = f"{problems.EST}/"
_EST_SECURITY: dict[str, list[dict[str, list[str]]]] = {
    f"{_EST}simpleenroll": [{"invitation": []}, {"clientCertificate": []}],
    f"{_EST}simplereenroll": [{"clientCertificate": []}],
}
_INVITATION = {"type": "http", "scheme": "basic", "description": "RFC 7617: an invitation's reference and its secret"}
_CLIENT_CERTIFICATE = {
    "type": "mutualTLS",
    "description": "The identity or access certificate; a TLS front hands it on in Client-Cert (RFC 9440)",
}
_SIGNATURE = {
    "type": "http",
    "scheme": "signature",
    "description": (
        "RFC 9421, label kmb, alg ed25519, over @method, @authority, @path, @query and content-digest, "
        "with created, nonce and keyid; an enrolment is signed with the access key that it brings"
    ),
}


def describe() -> dict[str, Any]:
    """Return the API's description (OpenAPI 3.1)."""
    described = routes.build().openapi()
    components = described.setdefault("components", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        components.get("schemas", {}).pop(unused, None)
    components["securitySchemes"] = {
        "signature": _SIGNATURE,
        "invitation": _INVITATION,
        "clientCertificate": _CLIENT_CERTIFICATE,
    }
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path, operations in described["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            # Whatever a framework would say about bad input, here it is a problem.
            responses.pop("422", None)
            responses["default"] = {"description": "A problem (RFC 9457)", "content": problem}
            if path.startswith(_EST):
                responses["default"] = {"description": "What is wrong, in words", "content": {problems.PLAIN: {}}}
                operation["security"] = _EST_SECURITY.get(path, [])
            elif path not in _UNSIGNED:
                operation["security"] = [{"signature": []}]
    return described


def text() -> str:
    """Return the description as it is committed."""
    return json.dumps(describe(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write or check; 1 when the committed description is not what the code says."""
    parser = argparse.ArgumentParser(prog="python -m pki.server.api.openapi", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail when the file is out of date")
    parser.add_argument("--out", type=Path, default=_PATH, help="the file (default: schemas/openapi.json)")
    options = parser.parse_args(arguments)
    current = text()
    if not options.check:
        options.out.write_text(current)
        return 0
    if options.out.is_file() and options.out.read_text() == current:
        return 0
    sys.stderr.write(f"{options.out} is out of date\nhint: python -m pki.server.api.openapi\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
