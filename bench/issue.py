"""`make bench-issue`: certificates a second through the real queue and store, beside the same key's bare signature.

In the same run, on the same machine: cfssl (Debian's golang-cfssl, PostgreSQL) and django-ca (in an environment of its
own, PostgreSQL), which issue for the same kind of request.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from bench import issuing, others
from bench.figures import Figure, beside, table, write
from pki.core.ids import request_id
from pki.core.signatures import SignatureAlgorithm
from pki.server import bootstrap
from pki.server.ports import Finding
from pki.server.services import issuing as service
from pki.server.services.deps import Deps
from pki.server.settings import Settings, load_settings
from tests.kit.processes import Installation
from tests.kit.services import Services, drop_database, new_database
from tests.kit.tokens import KEY_LABEL, forget, soft_token
from workers.embedded import Embedded

_RESULTS = Path("bench/results/issue.json")
S = SignatureAlgorithm


@dataclass(frozen=True)
class Case:
    """An issuing CA's key, and the clients' identity keys that go with it."""

    name: str
    label: str
    clients: SignatureAlgorithm
    in_token: bool = False


CASES = (
    Case("ML-DSA-65 in a file", "ml-dsa-65", S.ML_DSA_65),
    Case("P-256 in a file", "p-256", S.ECDSA_P256),
    Case("P-384 in SoftHSM", "p-384", S.ECDSA_P256, in_token=True),
)


class Issuers(Installation):
    """A home whose issuing CA was made in a ceremony, with its key where the case says."""

    label = ""

    def __enter__(self) -> Self:
        """Hold the ceremony, then make what a server needs besides."""
        self.logs.mkdir(parents=True)
        self.passphrase.touch(0o600)
        self.passphrase.write_text("a passphrase for the bench alone")
        words = ("--token",) if self.token else ()
        self.hold_ceremony(*words, "--algorithm", self.label)
        self.command("init", private=True)
        return self

    def settings(self) -> Settings:
        """Return the settings of its processes, for this one."""
        named: dict[str, object] = {
            "home": self.home,
            "database_url": self.database_url,
            "passphrase": self.passphrase.read_text(),
        }
        if self.token is not None:
            named |= {
                "pkcs11_module": self.token.module,
                "pkcs11_token": self.token.label,
                "pkcs11_key": KEY_LABEL,
                "token_pin": self.token.pin,
            }
        return load_settings(**named)


class _Nothing:
    """A linter that looks at nothing, to see what looking costs."""

    def findings(self, _certificate_der: bytes, /) -> tuple[Finding, ...]:
        """Return nothing."""
        return ()


def main() -> None:
    """Measure, print a table, and write bench/results/issue.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000, help="how many certificates each part issues")
    parser.add_argument("--issuers", type=int, default=2, help="how many issuer processes work side by side")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long a bare signature is measured")
    options = parser.parse_args()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="keymailbox-issue-") as name, Services() as services:
        room = Path(name)
        peers = {
            "cfssl + PostgreSQL": others.cfssl(room / "cfssl", services.postgres.url, options.requests),
            "django-ca + PostgreSQL": others.django_ca(services.postgres.url, min(options.requests, 300)),
        }
        for peer, measured in peers.items():
            figures.append(Figure(f"{peer}: P-256 certificates", measured.rate, "1/s"))
            figures.append(Figure(f"{peer}: CPU for a P-256 certificate, PostgreSQL's aside", measured.cpu, "µs"))
        for case in CASES:
            figures += _case(case, room / case.label, services, options, peers)
    write(figures, _RESULTS)
    print(table(figures))
    print(f"\nwritten to {_RESULTS}")


def _case(
    case: Case, room: Path, services: Services, options: argparse.Namespace, peers: dict[str, others.Peer]
) -> list[Figure]:
    room.mkdir()
    token = soft_token(room / "token") if case.in_token else None
    if token is not None:
        os.environ |= token.environment
        forget()
    database = new_database(services.postgres.url)
    installation = Issuers(room / "production", database, services.rabbitmq.url, token=token, direct=True)
    installation.label = case.label
    installation.variables |= token.settings if token else {}
    figures = []
    try:
        with installation:
            with _deps(installation.settings()) as deps:
                bare = issuing.signatures(bootstrap.ca_keys(deps.settings).current.sign, options.seconds)
                figures.append(Figure(f"{case.name}, bare: signatures, one after another", bare, "1/s"))
                installation.start("relay", *(f"issuer-{number}" for number in range(options.issuers)))
                figures += _queue(f"{case.name}, PostgreSQL + RabbitMQ", deps, case, bare, peers, options.requests)
                installation.stop()
                figures += _inside(case, deps, options.requests // 2, options.seconds)
            figures += _sqlite(case, installation, room, bare, options.requests)
    finally:
        drop_database(database)
    return figures


def _queue(where: str, deps: Deps, case: Case, bare: float, peers: dict[str, others.Peer], count: int) -> list[Figure]:
    # The first ones load what is loaded late.
    issuing.rate(deps, issuing.identity_requests(issuing.enrolled(deps, 50, case.clients, "warm")))
    members = issuing.enrolled(deps, count, case.clients)
    identity = issuing.rate(deps, issuing.identity_requests(members))
    encryption = issuing.rate(deps, issuing.encryption_requests(deps, members))
    figures = [
        beside(f"{where}: identity certificates", identity, "1/s", bare, 0.7 if case.label == "ml-dsa-65" else None),
        beside(f"{where}: encryption certificates", encryption, "1/s", bare),
    ]
    if case.label == "p-256":
        goals = {"cfssl": 3.0, "django-ca": 20.0}
        figures += [
            beside(f"{where}: identity certificates, beside {peer}", identity, "1/s", one.rate, goals[peer.split()[0]])
            for peer, one in peers.items()
        ]
    return figures


def _inside(case: Case, deps: Deps, count: int, seconds: float) -> list[Figure]:
    """Measure one process's own work on a certificate, with and without the linter: CPU time, no queue.

    CPU time hardly depends on what else the machine does, where certificates a second do.
    """
    members = issuing.enrolled(deps, count, case.clients, "inside")
    keys = bootstrap.ca_keys(deps.settings)
    costs = {}
    for what, chosen in (("warm", deps), ("linted", deps), ("not linted", replace(deps, linter=_Nothing()))):
        some = members[: count // 5] if what == "warm" else members
        asked = issuing.identity_requests(some)
        issuing.stored(deps, asked, queued=False)
        ids = [request_id(der) for _, _, der in asked]
        start = time.process_time()
        for first in range(0, len(ids), 100):
            service.issue(chosen, keys, ids[first : first + 100])
        costs[what] = (time.process_time() - start) / len(ids) * 1e6
        time.sleep(1.1)  # a request that says another second is another request
    bare = issuing.cpu(keys.current.sign, seconds)
    name = f"{case.name}: CPU of the issuer for an identity certificate"
    return [
        Figure(f"{case.name}, bare: CPU of a signature", bare, "µs"),
        beside(f"{name}, linted, in bare signatures", costs["linted"], "µs", bare),
        beside(f"{name}, without the linter, in bare signatures", costs["not linted"], "µs", bare),
    ]


def _sqlite(case: Case, installation: Issuers, room: Path, bare: float, count: int) -> list[Figure]:
    settings = installation.settings().model_copy(update={"database_url": f"sqlite:///{room / 'one.sqlite'}"})
    with _deps(settings) as deps:
        deps.store.migrate()
        work = Embedded(deps)
        work.start()
        try:
            issuing.rate(deps, issuing.identity_requests(issuing.enrolled(deps, 50, case.clients, "warm")))
            members = issuing.enrolled(deps, count, case.clients)
            value = issuing.rate(deps, issuing.identity_requests(members))
        finally:
            work.stop()
    return [beside(f"{case.name}, SQLite, one process: identity certificates", value, "1/s", bare)]


@contextmanager
def _deps(settings: Settings) -> Iterator[Deps]:
    deps = bootstrap.build(settings)
    try:
        yield deps
    finally:
        deps.store.close()


if __name__ == "__main__":
    main()
