"""Writes our own vectors: `python -m tests.vectors.make` those that are missing, `--all` every one anew."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

from pki.core.errors import KeymailboxError
from tests.kit import forge
from tests.kit import forge_pki as pki
from tests.kit.authority import NOW
from tests.kit.forge_classical import pkcs8
from tests.kit.vectors import FOLDER, FORMAT, Vector, digest, run
from tests.vectors.cases import Case
from tests.vectors.cases.certificates import (
    RSA_ISSUING,
    certificates,
    certificates_by_rsa,
    crl_by_rsa,
    lists,
    receipts,
    requests,
    revocations,
)
from tests.vectors.cases.cmp import endorsements, messages
from tests.vectors.cases.deposits import deposits
from tests.vectors.cases.envelopes import envelopes
from tests.vectors.cases.issuers import issuing_requests
from tests.vectors.cases.orders import approvals, lists_of_officers, officers, orders, the_order
from tests.vectors.cases.packages import packages
from tests.vectors.cases.readers import ML_KEM_768, ML_KEM_1024, P256, P384, RSA, readers
from tests.vectors.cases.status import deltas, questions

MAKERS: tuple[Callable[[], Iterator[Case]], ...] = (
    deposits,
    envelopes,
    readers,
    packages,
    certificates,
    certificates_by_rsa,
    lists,
    deltas,
    questions,
    requests,
    issuing_requests,
    messages,
    endorsements,
    receipts,
    revocations,
    lists_of_officers,
    orders,
    approvals,
)
DEFAULTS: dict[str, dict[str, str]] = {
    "deposit": {
        "sender": "acme-identity",
        "recipient": "globex-encryption",
        "private": "globex-encryption-key",
        "crl": "crl",
        "profile": "strict",
    },
    "envelope": {"private": "globex-encryption-key", "profile": "strict"},
    "package": {"address": "globex/main", "profile": "strict"},
    "certificate": {
        "address": "globex/main",
        "use": "identity",
        "request": "globex-identity-request",
        "identity": "globex-identity",
        "crl": "crl",
    },
    "crl": {},
    "crl-delta": {"full": "crl", "full-issuing": "issuing"},
    "ocsp-request": {},
    "request": {"identity": "globex-identity"},
    "issuing-request": {},
    "cmp": {},
    "receipt": {
        "identity": "globex-identity",
        "address": "globex/main",
        "deposit-id": pki.DEPOSIT_ID.hex(),
        "deposit-sha512": pki.DEPOSIT_SHA512.hex(),
    },
    "revocation": {"identity": "globex-identity"},
    "officers": {},
    "order": {"officers": "officers"},
    "approval": {"officers": "officers", "order": "order"},
}
CHAINED = {"deposit", "certificate"}


def keys() -> Iterator[tuple[str, Vector]]:
    """Yield what the vectors share: certificates, requests, lists and private keys, all from fixed seeds."""
    root = ("Test root", pki.ROOT)
    for name, kind, body in (
        ("root", "certificate", pki.ca("Test root", pki.ROOT, root, serial=1, path=1)),
        ("issuing", "certificate", pki.ca("Test issuing CA", pki.ISSUING, root, serial=2, path=0)),
        ("issuing-rsa", "certificate", pki.ca("Test issuing CA", RSA_ISSUING, root, serial=5, path=0)),
        ("issuing-no-ca", "certificate", pki.ca("Test issuing CA", pki.ISSUING, root, serial=3, path=0, basic=False)),
        (
            "issuing-of-another-root",
            "certificate",
            pki.ca("Test issuing CA", pki.ISSUING, ("Test root", pki.STRANGER), serial=4, path=0),
        ),
        ("issuing-next", "certificate", pki.ca("Test issuing CA 2", pki.STRANGER, root, serial=5, path=0)),
        ("acme-identity", "certificate", pki.certificate("acme/eu-west", pki.ACME, serial=1001)),
        ("globex-identity", "certificate", pki.certificate(serial=1002)),
        ("globex-encryption", "certificate", pki.certificate(key=pki.GLOBEX_KEY, serial=1003)),
        ("globex-identity-request", "request", pki.request()),
        ("globex-encryption-request", "request", pki.request(key=pki.GLOBEX_KEY)),
        ("globex-old-request", "request", pki.request(at=NOW - 3 * pki.DAY)),
        ("forged", "request", pki.request(key=pki.GLOBEX_KEY, sign=pki.STRANGER.sign)),
        ("crl", "crl", pki.crl()),
        ("crl-rsa", "crl", crl_by_rsa()),
        ("crl-next", "crl", pki.crl(issuer=forge.name(("2.5.4.3", "Test issuing CA 2")), sign=pki.STRANGER.sign)),
        ("crl-acme-revoked", "crl", pki.crl([1001])),
        ("crl-globex-revoked", "crl", pki.crl([4711])),
        ("officers", "officers", officers()),
        ("order", "order", the_order()),
    ):
        yield name, Vector({"keymailbox-vector": FORMAT, "kind": kind}, body)
    for name, algorithm, body in (
        ("globex-encryption-key", pki.GLOBEX_KEY.algorithm.title, pki.GLOBEX_KEY.pkcs8),
        ("ml-kem-768-key", ML_KEM_768.algorithm.title, ML_KEM_768.pkcs8),
        ("ml-kem-1024-key", ML_KEM_1024.algorithm.title, ML_KEM_1024.pkcs8),
        ("p-256-key", "ECDH P-256", pkcs8(P256.key)),
        ("p-384-key", "ECDH P-384", pkcs8(P384.key)),
        ("rsa-3072-key", "RSA", RSA.given),
    ):
        header = {"keymailbox-vector": FORMAT, "kind": "private-key", "algorithm": algorithm}
        yield name, Vector(header, body)


def described(case: Case) -> Vector:
    """Return the vector of a case with what comes of it; a case that breaks another rule is an error."""
    chain = {"issuing": "issuing", "root": "root"} if case.kind in CHAINED else {}
    chain = (
        {"issuing": "issuing"}
        if case.kind in {"crl", "crl-delta", "ocsp-request", "officers", "order", "approval"}
        else chain
    )
    header = {
        "keymailbox-vector": FORMAT,
        "kind": case.kind,
        "expect": "refused" if case.rule else "accepted",
        "why": case.why,
        "now": NOW.isoformat(),
        **chain,
        **DEFAULTS[case.kind],
        **case.more,
    }
    try:
        content = run(Vector(header, case.body))
    except KeymailboxError as error:
        if (error.rule or "-") != case.rule:
            raise SystemExit(
                f"{case.kind} {case.name}: meant to break {case.rule or 'nothing'}, but {error}"
            ) from error
        header["rule"] = case.rule
        header["code"] = error.code
    else:
        if case.rule:
            raise ValueError(f"{case.kind} {case.name}: meant to break {case.rule}, but nothing is wrong with it")
        if content is not None:
            header["content-sha256"] = digest(content)
    return Vector(header, case.body)


def name_of(case: Case) -> str:
    """Return the file's name: rule first, so that they stand in order."""
    if not case.rule:
        return f"accepted/{case.kind}-{case.name}.txt"
    return f"refused/{case.rule if case.rule != '-' else 'none'}-{case.kind}-{case.name}.txt"


def main(arguments: list[str]) -> None:
    """Write the files, and say how many."""
    parser = argparse.ArgumentParser(prog="python -m tests.vectors.make", description=__doc__)
    parser.add_argument("--all", action="store_true", help="write those that are there, too")
    anew = parser.parse_args(arguments).all
    written, failed = 0, False
    for folder in ("keys", "accepted", "refused"):
        (FOLDER / folder).mkdir(exist_ok=True)
    for name, vector in keys():
        path = FOLDER / "keys" / f"{name}.txt"
        if anew or not path.exists():
            path.write_text(vector.dump())
            written += 1
    for maker in MAKERS:
        for case in maker():
            path = FOLDER / name_of(case)
            if anew or not path.exists():
                try:
                    path.write_text(described(case).dump())
                    written += 1
                except ValueError as wrong:
                    print(f"vectors: {wrong}", file=sys.stderr)
                    failed = True
    print(f"vectors: {written} written")
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1:])
