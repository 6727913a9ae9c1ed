"""What a server needs to do its work, looked at one by one, for an operator who wonders."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime

from cryptography import x509

from pki.core.authorities import ca_key_identifier
from pki.core.errors import KeymailboxError
from pki.core.x509 import CertificateKind
from pki.server.services import evidence, retention, status, trail, upkeep
from pki.server.services.deps import Deps
from pki.server.services.findings import Check
from pki.server.services.findings import Finding as Finding
from pki.server.services.limits import fillable
from pki.server.store import limits, ocsp

_SHOWN = 20
_LONG_AGO = datetime(1970, 1, 2, tzinfo=UTC)
_CA_WARNING_DAYS = 90


def examine(deps: Deps, *, full: bool = False) -> list[Finding]:
    """Return all findings; a check that cannot be made is one too. ``full`` looks at each event there ever was."""
    findings: list[Finding] = []
    for name, check in (*CHECKS, *(FULL if full else ())):
        try:
            findings += check(deps)
        except KeymailboxError as error:
            findings.append(Finding(name, False, str(error), error.hint or "kmb-server init"))
            if check is _database:
                # What follows reads its tables, and would say of each that it is away.
                break
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
    yield Finding(
        "ca",
        left > _CA_WARNING_DAYS,
        detail,
        "kmb-server ca request --out FILE, and the ceremony of docs/operations.md",
    )


def _profiles(deps: Deps) -> Iterator[Finding]:
    found = [deps.profiles.of(kind) for kind in CertificateKind]
    detail = ", ".join(
        f"{one.kind} {one.version}: {one.lasts(deps.settings.certificate_lifetime).days} days" for one in found
    )
    yield Finding("profiles", True, detail)


def _cmp(deps: Deps) -> Iterator[Finding]:
    found = deps.registration is not None
    detail = "invitations enrol by CMP too" if found else "there is no registration key: no secret enrols by CMP"
    yield Finding("cmp", found, detail, f"kmb-server init --home {deps.settings.home}, and restart the issuer")


def _database(deps: Deps) -> Iterator[Finding]:
    yield Finding("database", True, f"{deps.store.dialect}, schema {deps.store.demand_schema()}")


def _logins(deps: Deps) -> Iterator[Finding]:
    if deps.store.dialect == "sqlite":
        yield Finding("logins", True, "SQLite has none: the API's own checks keep tenants apart")
        return
    found = deps.store.standing()
    if found.api is None:
        # What was set up before there were several works on as it did.
        detail = "one for all, which owns the tables: row-level security holds for nobody (docs/operations.md, logins)"
        yield Finding("logins", True, detail)
        return
    for fault in found.faults:
        yield Finding("logins", False, fault, "set KMB_OWNER_DATABASE_URL, then: kmb-server migrate")
    if not found.faults:
        yield Finding("logins", True, f"row-level security holds for {found.api}; {found.workers} owns nothing")


def _crl(deps: Deps) -> Iterator[Finding]:
    # The current issuing CA's and each former one's: what they signed is still out.
    for issuing in deps.chain.all:
        issuer = ca_key_identifier(issuing).hex()
        crl = status.newest(deps, issuer)
        name = "" if issuing == deps.chain.issuing else f"former issuing CA {issuer[:16]}: "
        hint = "kmb-server beat, and kmb-server worker --queues issue"
        if crl is None:
            yield Finding("crl", False, f"{name}no revocation list was published yet", hint)
            continue
        # Published at each quarter of its life: past the half of it, nobody publishes.
        late = deps.clock.now() > crl.this_update + (crl.next_update - crl.this_update) / 2
        detail = f"{name}number {crl.number}, good until {crl.next_update.isoformat(timespec='seconds')}"
        yield Finding("crl", not late, f"{detail}, and no newer one" if late else detail, hint)


def _ocsp(deps: Deps) -> Iterator[Finding]:
    # Made anew at half of their life: a quarter later somebody should have.
    late = deps.clock.now() - deps.settings.crl_lifetime / 8
    with deps.store.read() as unit:
        count, oldest = ocsp.overdue(unit, late)
    if not count:
        yield Finding("ocsp", True, "the prepared responses are fresh")
        return
    # Those of a database from before OCSP have been due for ever.
    since = f", the first since {oldest:%Y-%m-%d %H:%M}Z" if oldest and oldest > _LONG_AGO else ""
    detail = f"{count} prepared responses are overdue{since}"
    yield Finding("ocsp", False, detail, "kmb-server beat, and kmb-server worker --queues issue")


def _revocations(deps: Deps) -> Iterator[Finding]:
    now = deps.clock.now()
    with deps.store.read() as unit:
        proof = evidence.proved(deps, unit, now, again=True, counted=True)
    if not proof.suspicions:
        detail = f"{len(proof.entries)} are proved; orders may revoke {proof.room} more certificates now"
        yield Finding("revocations", True, detail)
    for one in proof.suspicions[:_SHOWN]:
        hint = "restore what was edited from a backup, and find out who did it: docs/operations.md"
        yield Finding("revocations", False, f"{one.doubt}: {one.on}: {one.detail}", hint)
    if len(proof.suspicions) > _SHOWN:
        yield Finding("revocations", False, f"{len(proof.suspicions) - _SHOWN} more do not fit together", "see the log")


def _limits(deps: Deps) -> Iterator[Finding]:
    with deps.store.read() as unit:
        wrong = limits.differing(unit)
    if fillable(deps.settings):
        detail = "one tenant alone may fill a mailbox: its share is half of what fits, or more (docs/operations.md)"
        yield Finding("limits", True, detail)
    if not wrong:
        yield Finding("limits", True, "what is counted as under way is what there is")
        return
    one, should = wrong[0]
    whose = " to ".join(name for name in (one.sender, one.recipient) if name)
    detail = f"{len(wrong)} counts are wrong, the first {whose}: {one.deposits} deposits, {should.deposits} are there"
    yield Finding("limits", False, detail, "kmb-server tenant recount")


CHECKS: tuple[tuple[str, Check], ...] = (
    ("home", _home),
    ("disk", upkeep.disk),
    ("ca", _ca),
    ("profiles", _profiles),
    ("cmp", _cmp),
    ("database", _database),
    ("logins", _logins),
    ("clock", upkeep.clock),
    ("crl", _crl),
    ("ocsp", _ocsp),
    ("beat", upkeep.beat),
    ("queues", upkeep.queues),
    ("sequencer", upkeep.sequencer),
    ("dead", upkeep.dead),
    ("revocations", _revocations),
    ("limits", _limits),
    ("bodies", retention.examine),
    ("trail", trail.examine),
)
"""What is looked at, in this order; a new check is one function and one line here."""

FULL: tuple[tuple[str, Check], ...] = (("trail", trail.examine_all),)
"""What takes longer the more has happened."""
