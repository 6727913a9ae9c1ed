"""Say who was given which key, and which certificates are out."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from pki.core.errors import KeymailboxError, UsageError
from pki.server.commands.shared import Home, group, moment, opened

app = group("Say who was given which key, and which certificates are out.", "kmb-server report distribution")


@app.command()
def distribution(
    home: Home = None,
    tenant: Annotated[str | None, typer.Option(help="Only what this tenant sent or received.")] = None,
    since: Annotated[str | None, typer.Option(help="Only deposits from this day or time on, in UTC.")] = None,
    until: Annotated[str | None, typer.Option(help="Only deposits before this day or time, in UTC.")] = None,
    form: Annotated[str, typer.Option("--format", help="table, json or csv.")] = "table",
    out: Annotated[Path | None, typer.Option(help="Write to this file instead.")] = None,
) -> None:
    """Report who was given which key, when, under which certificate, and what became of it.

    Example: kmb-server report distribution --tenant acme --format csv
    """
    from pki.core.tenants import parse_tenant
    from pki.server.services import report

    _known(form, "kmb-server report distribution")
    with opened(home) as deps:
        rows = report.lines(deps, parse_tenant(tenant) if tenant else None, moment(since), moment(until))
        if form == "table":
            parts: Iterable[str] = [report.to_table(rows)]
        else:
            parts = {"json": report.json_parts, "csv": report.csv_parts}[form](rows)
        # While the database is read: nobody holds all that ever was in memory.
        _tell(parts, out, "kmb-server report distribution")


@app.command()
def certificates(
    home: Home = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    overdue: Annotated[
        bool, typer.Option("--overdue", help="Only what should have been renewed, or expired without a successor.")
    ] = False,
    form: Annotated[str, typer.Option("--format", help="table, json or csv.")] = "table",
    out: Annotated[Path | None, typer.Option(help="Write to this file instead.")] = None,
) -> None:
    """Report which certificates are out and until when, which are overdue, and what mail still waits under each key.

    Example: kmb-server report certificates --overdue
    """
    from pki.core.tenants import parse_tenant
    from pki.server.services import inventory

    _known(form, "kmb-server report certificates")
    with opened(home) as deps:
        rows = inventory.certificates(deps, parse_tenant(tenant) if tenant else None, overdue=overdue)
        now = deps.clock.now()
    if form == "json":
        text = inventory.to_json(rows, now)
    else:
        text = inventory.to_csv(rows) if form == "csv" else inventory.to_table(rows)
    _tell(text, out, "kmb-server report certificates")


@app.command()
def rotation(
    home: Home = None,
    tenant: Annotated[str | None, typer.Option(help="Only keys that this tenant sent or received.")] = None,
    key: Annotated[str | None, typer.Option(help="Only keys of this name.")] = None,
    behind: Annotated[bool, typer.Option("--behind", help="Only who has not signed for the newest version.")] = False,
    form: Annotated[str, typer.Option("--format", help="table, json or csv.")] = "table",
    out: Annotated[Path | None, typer.Option(help="Write to this file instead.")] = None,
) -> None:
    """Report who holds which versions of a key, who is behind, and what those still hold who were removed.

    Example: kmb-server report rotation --tenant acme --behind
    """
    from pki.core.tenants import parse_tenant
    from pki.server.services import campaigns

    _known(form, "kmb-server report rotation")
    with opened(home) as deps:
        rows = campaigns.rotation(deps, parse_tenant(tenant) if tenant else None, key)
    if behind:
        rows = campaigns.behind(rows)
    text = {"table": campaigns.to_table, "json": campaigns.to_json, "csv": campaigns.to_csv}[form](rows)
    _tell(text, out, "kmb-server report rotation")


@app.command()
def counterfoil(
    deposit: Annotated[str, typer.Argument(help="The deposit's id, as in the distribution report.")],
    home: Home = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead.")] = None,
) -> None:
    """Print what proves who sent a deposit, in PEM: the signature without the wrapped key, also after that was deleted.

    Example: kmb-server report counterfoil 0123456789abcdef0123456789abcdef
    """
    from pki.core.errors import DeletedError
    from pki.server.services import retention

    with opened(home) as deps:
        found = retention.counterfoil(deps, deposit)
    if found.der is None:
        # Available once, but deleted as something that never was: no such row is written.
        raise DeletedError(on=deposit, hint="kmb-server report distribution")
    lines = "\n".join(textwrap.wrap(base64.b64encode(found.der).decode(), 64))
    _tell(f"-----BEGIN CMS-----\n{lines}\n-----END CMS-----\n", out, f"kmb-server report counterfoil {deposit}")


def _known(form: str, command: str) -> None:
    if form not in ("table", "json", "csv"):
        raise UsageError("There is no such format", on=form[:40], hint=f"{command} --format csv")


def _tell(text: str | Iterable[str], out: Path | None, command: str) -> None:
    parts = [text] if isinstance(text, str) else text
    if out is None:
        last = ""
        for last in parts:
            typer.echo(last, nl=False)
        if not last.endswith("\n"):
            typer.echo()
        return
    try:
        with out.open("w", encoding="utf-8", newline="") as file:
            file.writelines(parts)
    except OSError as error:
        raise KeymailboxError(
            f"The report cannot be written: {error.strerror}", on=str(out), hint=f"{command} --out FILE"
        ) from None
