"""Drills: see what an emergency would do, without one."""

from __future__ import annotations

from typing import Annotated

import typer

from pki.core.errors import UsageError
from pki.server.commands.shared import AsJson, Home, group, opened, print_json

app = group("See what an emergency would do, without one.", "kmb-server drill compromise acme/eu-west --dry-run")


@app.command()
def compromise(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="The instance whose keys are taken for stolen.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="A drill changes nothing; there is no other.")] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Show what would be revoked, quarantined, wrapped again and rotated, by whom, and who would be told.

    Example: kmb-server drill compromise acme/eu-west --dry-run
    """
    from pki.core.tenants import parse_address
    from pki.server.services import drill

    place = parse_address(address)
    if not dry_run:
        raise UsageError(
            "A drill is only ever dry",
            on=address,
            hint=f"kmb-server revoke order {place} --reason key-compromise --because TEXT --officer NAME --key FILE",
        )
    with opened(home) as deps:
        found = drill.compromise(deps, place)
    if as_json:
        print_json(drill.to_dict(found))
    else:
        typer.echo(drill.to_text(found), nl=False)
