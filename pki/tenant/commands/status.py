"""``kmb whoami`` and ``kmb doctor``."""

from __future__ import annotations

import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from pki.core.errors import KeymailboxError
from pki.tenant import disk, output
from pki.tenant.commands.shared import Json, open_agent

_LATE = timedelta(hours=1)
"""A deposit that waits for longer is one that nobody looks after."""


_SILENT = timedelta(minutes=2)
"""An agent that gives no sign of life for longer is stuck; the unit's WatchdogSec."""


def whoami(as_json: Json = False) -> None:
    """Show your address and the fingerprint of your identity key, for others to compare.

    Example: [bold]kmb whoami[/bold]
    """
    from pki.tenant.records.pins import identity_fingerprint

    with open_agent() as agent:
        active = {one.kind: one for one in agent.certificates() if one.state == "active"}
        encryption = active.get("encryption")
        output.show_record(
            {
                "address": str(agent.address),
                "identity": identity_fingerprint(agent.holder.identity_public()),
                "identity_algorithm": agent.holder.identity_public().algorithm.title,
                "certificate": encryption.fingerprint if encryption else None,
                "valid_until": encryption.not_after if encryption else None,
                "server": agent.context.server,
                "context": agent.context.name,
            },
            as_json=as_json,
        )


def doctor(
    seen: Annotated[bool, typer.Option("--seen", help="Take note of the alarms, so that they count no more.")] = False,
    as_json: Json = False,
) -> None:
    """Check all: keys, journal, server, clock, root, CAs, certificates, lists, what waits, mail, alarms, the agent.

    Example: [bold]kmb doctor[/bold]
    """
    import hashlib
    from contextlib import suppress

    from pki.core.certificates import renewal_due
    from pki.core.x509 import CertificateKind
    from pki.tenant.agent import utc_now

    rows: list[dict[str, object]] = []

    def check(what: str, look: Callable[[], str]) -> None:
        try:
            rows.append({"check": what, "result": "ok", "detail": look()})
        except KeymailboxError as error:
            rows.append({"check": what, "result": "FAILED", "detail": output.error_record(error)})

    with open_agent() as agent:
        now = utc_now()

        def keys() -> str:
            agent.holder.identity_public()
            agent.holder.access_public()
            opened = len(agent.holder.encryption_skis())
            return f"identity, access, {opened} for encryption, {len(agent.holder.shared_keys())} shared"

        def journal() -> str:
            agent.journal.check()
            return "whole"

        def files() -> str:
            secret = agent.context.passphrase_file or agent.context.key_file
            return _private(secret, agent.context.folder, agent.context.keys)

        def clock() -> str:
            skew = agent.client.skew()
            if skew is not None and abs(skew) > timedelta(seconds=30):
                raise KeymailboxError("The clocks differ", on=f"{skew.total_seconds():+.0f} s", hint="set the clock")
            return "within 30 s" if skew is not None else "the server does not tell its time"

        def root() -> str:
            if agent.client.authority().root != agent.context.root:
                raise KeymailboxError("The server shows another root", hint="ask the operator; send nothing meanwhile")
            return agent.context.root_fingerprint

        def issuers() -> str:
            shown = agent.authority.shown(now, anew=True)
            current, *former = (f"{hashlib.sha256(der).hexdigest()[:16]}…" for der in shown)
            return ", ".join([f"current {current}", *(f"former {one}" for one in former)])

        def signed() -> str:
            _, last = agent.client.page(agent.address, after=agent.journal.marks.number("mailbox"), limit=1)
            return f"read up to number {last}"

        def certificates() -> str:
            # What others revoked is written down first; where the server is away, `alarms` says so.
            with suppress(KeymailboxError):
                agent.revoked_by_others()
            ends = []
            for kind in CertificateKind:
                active = agent.journal.own.active(kind.value)
                if active is None and kind is CertificateKind.ACCESS:
                    continue
                if active is None or active.not_after < now:
                    hint = f"kmb cert renew --kind {kind.value}"
                    raise KeymailboxError(f"There is no valid {kind.value} certificate", hint=hint)
                if now >= renewal_due(active.not_before, active.not_after):
                    on = f"{kind.value}, until {active.not_after:%Y-%m-%d}"
                    raise KeymailboxError("A certificate should have been renewed", on=on, hint="kmb agent run --once")
                ends.append(f"{kind.value} until {active.not_after:%Y-%m-%d}")
            return ", ".join(ends)

        def revocations() -> str:
            found = [agent.authority.crl(one, now) for one in agent.authority.shown(now)]
            for crl in found:
                agent.authority.count(crl)
                # Published four times in its life: at half of it, nobody publishes.
                if now > crl.this_update + (crl.next_update - crl.this_update) / 2:
                    on = f"number {crl.number}, of {crl.this_update:%Y-%m-%d %H:%M}Z"
                    hint = "ask the operator; at its end, nothing can be sent"
                    raise KeymailboxError("A revocation list is old, and there is no newer one", on=on, hint=hint)
            ours = sum(one.state == "revoked" for one in agent.certificates())
            told = [f"number {crl.number}, until {crl.next_update:%Y-%m-%d %H:%M}Z" for crl in found]
            return "; ".join([*told, f"{ours} of ours"])

        def waiting() -> str:
            count = len(agent.journal.sent.all("planned", "prepared")) + len(agent.journal.seen.unanswered())
            if count:
                raise KeymailboxError(
                    f"{count} deposits or answers wait to be handed over", hint="kmb agent run --once"
                )
            return "nothing"

        def mail() -> str:
            after = agent.journal.marks.number("mailbox")
            views, _ = agent.client.page(agent.address, after=after, limit=100)
            late = [one for one in views if one.state in ("available", "collected") and one.received_at < now - _LATE]
            if late:
                on = f"the first since {late[0].received_at:%Y-%m-%d %H:%M}Z"
                hint = "kmb mailbox receive, which says why one is left; always: kmb agent run"
                raise KeymailboxError(f"{len(late)} deposits are not answered", on=on, hint=hint)
            return f"read up to number {after}"

        def sent() -> str:
            held, _ = agent.client.sent(state="quarantined", limit=100)
            if held:
                hint = "kmb agent run --once, which wraps them for the recipients' new keys"
                raise KeymailboxError(f"{len(held)} deposits of ours are quarantined", on=held[0].id, hint=hint)
            return "nothing of ours is quarantined"

        def alarms() -> str:
            agent.revoked_by_others()
            found = agent.alarms()
            if found:
                last = found[-1]
                on = f"the last: {last.kind} {last.subject}, {last.detail}"
                raise KeymailboxError(
                    f"{len(found)} alarms", on=on, hint="ask the operator why, then: kmb doctor --seen"
                )
            return "none"

        for what, look in (
            ("keys", keys),
            ("files", files),
            ("journal", journal),
            ("server and clock", clock),
            ("root", root),
            ("issuing CAs", issuers),
            ("signed request", signed),
            ("certificates", certificates),
            ("revocation lists", revocations),
            ("waiting", waiting),
            ("mail", mail),
            ("sent", sent),
            ("alarms", alarms),
            ("agent", lambda: _daemon(agent.context.lock, now)),
        ):
            check(what, look)
        if seen:
            agent.note_alarms()
    output.show_rows(rows, as_json=as_json, empty="")
    if any(row["result"] != "ok" for row in rows):
        raise typer.Exit(output.LOOK)


def _daemon(lock: Path, now: datetime) -> str:
    process = disk.holder(lock)
    if process is None:
        return "none runs; all by itself: kmb agent run"
    silent = now - datetime.fromtimestamp(lock.stat().st_mtime, UTC)
    if silent > _SILENT:
        on = f"process {process}, for {silent.total_seconds():.0f} s"
        hint = f"kill -9 {process}, which loses nothing, and start it again: kmb agent run"
        raise KeymailboxError("The agent that runs gives no sign of life", on=on, hint=hint)
    return f"process {process} runs, alive {max(0.0, silent.total_seconds()):.0f} s ago"


def _private(*paths: Path) -> str:
    for path in paths:
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise KeymailboxError("Others can read this", on=str(path), hint=f"chmod go= {path}")
    return "for you alone"
