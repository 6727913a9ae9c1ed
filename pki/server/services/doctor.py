"""What a server needs to do its work, looked at one by one, for an operator who wonders."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cryptography import x509

from pki.core.errors import KeymailboxError
from pki.server.services.deps import Deps
from pki.server.store import certificates, outbox

_LAG_SECONDS = 60
_CA_WARNING_DAYS = 90


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, what was found, and what to do where it is not ok."""

    check: str
    ok: bool
    detail: str
    hint: str = ""


def examine(deps: Deps) -> list[Finding]:
    """Return all findings; a check that cannot be made is a finding too."""
    checks: tuple[tuple[str, Callable[[Deps], Iterator[Finding]]], ...] = (
        ("home", _home),
        ("ca", _ca),
        ("database", _database),
        ("crl", _crl),
        ("queues", _queues),
    )
    findings: list[Finding] = []
    for name, check in checks:
        try:
            findings += check(deps)
        except KeymailboxError as error:
            findings.append(Finding(name, False, str(error), error.hint or "kmb-server init"))
    return findings


def _home(deps: Deps) -> Iterator[Finding]:
    home = deps.settings.home
    if not home.is_dir():
        yield Finding("home", False, f"{home} is missing", f"kmb-server init --home {home}")
        return
    private = not home.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    detail = str(home) if private else f"{home} is open to other users of this machine"
    yield Finding("home", private, detail, "" if private else f"chmod 700 {home}")


def _ca(deps: Deps) -> Iterator[Finding]:
    certificate = x509.load_der_x509_certificate(deps.chain.issuing)
    left = (certificate.not_valid_after_utc - deps.clock.now()).days
    detail = f"the issuing certificate is good for {left} days"
    yield Finding("ca", left > _CA_WARNING_DAYS, detail, "kmb-server init in a new home, before it expires")


def _database(deps: Deps) -> Iterator[Finding]:
    version = deps.store.schema_version()
    detail = f"{deps.store.dialect}, schema {version}" if version else f"{deps.store.dialect} has no schema"
    yield Finding("database", version is not None, detail, "kmb-server migrate")


def _crl(deps: Deps) -> Iterator[Finding]:
    with deps.store.read() as unit:
        crl = certificates.latest_crl(unit)
    if crl is None:
        yield Finding("crl", False, "no revocation list was published yet", "kmb-server worker --queues issue")
        return
    fresh = crl.next_update > deps.clock.now()
    detail = f"number {crl.number}, good until {crl.next_update.isoformat(timespec='seconds')}"
    yield Finding("crl", fresh, detail, "kmb-server beat, and kmb-server worker --queues issue")


def _queues(deps: Deps) -> Iterator[Finding]:
    with deps.store.read() as unit:
        lag = outbox.lag(unit, deps.clock.now())
        dead = outbox.dead(unit)
    for queue, (count, oldest) in sorted(lag.items()):
        detail = f"{queue}: {count} due, the oldest for {oldest:.0f} s"
        yield Finding(
            "queues", oldest < _LAG_SECONDS, detail, f"kmb-server relay, and kmb-server worker --queues {queue}"
        )
    if not lag:
        yield Finding("queues", True, "nothing is due")
    if dead:
        yield Finding("dead", False, f"{len(dead)} jobs were given up", "kmb-server dead list")
