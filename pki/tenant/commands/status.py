"""``kmb whoami`` and ``kmb doctor``."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pki.core.errors import KeymailboxError
from pki.tenant import output
from pki.tenant.commands.shared import Json, open_agent


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
    """Check everything: keys, journal, server, clock, root, certificates, revocation list, what waits, alarms.

    Example: [bold]kmb doctor[/bold]
    """
    from datetime import timedelta

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
            shown, _ = agent.client.authority()
            if shown != agent.context.root:
                raise KeymailboxError("The server shows another root", hint="ask the operator; send nothing meanwhile")
            return agent.context.root_fingerprint

        def signed() -> str:
            _, last = agent.client.page(agent.address, after=agent.journal.marks.number("mailbox"), limit=1)
            return f"read up to number {last}"

        def certificates() -> str:
            ends = []
            for kind in CertificateKind:
                active = agent.journal.own.active(kind.value)
                if active is None or active.not_after < now:
                    hint = f"kmb cert renew --kind {kind.value}"
                    raise KeymailboxError(f"There is no valid {kind.value} certificate", hint=hint)
                ends.append(f"{kind.value} until {active.not_after:%Y-%m-%d}")
            return ", ".join(ends)

        def revocations() -> str:
            _, issuing = agent.client.authority()
            crl = agent.directory.crl(issuing, now)
            serials = {one.fingerprint for one in agent.certificates() if one.state == "revoked"}
            return f"number {crl.number}, until {crl.next_update:%Y-%m-%d %H:%M}Z, {len(serials)} of ours"

        def waiting() -> str:
            count = len(agent.journal.sent.all("planned", "prepared")) + len(agent.journal.seen.unanswered())
            if count:
                raise KeymailboxError(
                    f"{count} deposits or answers wait to be handed over", hint="kmb agent run --once"
                )
            return "nothing"

        def alarms() -> str:
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
            ("signed request", signed),
            ("certificates", certificates),
            ("revocation list", revocations),
            ("waiting", waiting),
            ("alarms", alarms),
        ):
            check(what, look)
        if seen:
            agent.note_alarms()
    output.show_rows(rows, as_json=as_json, empty="")
    if any(row["result"] != "ok" for row in rows):
        raise typer.Exit(output.LOOK)


def _private(*paths: Path) -> str:
    for path in paths:
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise KeymailboxError("Others can read this", on=str(path), hint=f"chmod go= {path}")
    return "for you alone"
