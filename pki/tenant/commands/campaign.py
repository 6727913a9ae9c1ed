"""``kmb campaign``: how far each key of ours has come to all who should have it."""

from __future__ import annotations

from typing import Annotated

import typer

from pki.tenant import output
from pki.tenant.commands.shared import Json, open_agent

app = typer.Typer(help="How far your keys have come to all who should have them.", no_args_is_help=True)

Offline = Annotated[bool, typer.Option("--offline", help="As the journal knows; ask nobody.")]


@app.command("list")
def list_(offline: Offline = False, as_json: Json = False) -> None:
    """List the keys that you sent, at their newest version, and how many recipients stand where.

    Example: [bold]kmb campaign list[/bold]
    """
    with open_agent() as agent:
        if not offline:
            agent.receipts()
        rows: list[dict[str, object]] = [
            {
                "key": one.name.key_id,
                "version": one.name.version,
                "started": one.started_at,
                "deadline": one.deadline,
                **{standing: one.counts.get(standing, 0) for standing in _STANDINGS},
            }
            for one in agent.overviews()
        ]
        output.show_rows(rows, as_json=as_json, empty="Nothing was sent yet: kmb key send NAME --to TENANT/INSTANCE")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is called.")],
    behind: Annotated[bool, typer.Option("--behind", help="Only who has not signed for the newest version.")] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Show where each recipient stands, and which versions it signed for: those who were removed hold them still.

    Example: [bold]kmb campaign show orders-2026 --behind[/bold]
    """
    with open_agent() as agent:
        if not offline:
            agent.receipts()
        rows: list[dict[str, object]] = [
            {
                "recipient": str(one.recipient),
                "standing": one.standing,
                "given": one.given,
                "state": one.state,
                "detail": one.detail,
                "deadline": one.deadline,
                "holds": list(one.holds),
                "may_hold": list(one.may_hold),
                "deposit": one.deposit,
            }
            for one in agent.standings(name, ask=not offline)
            if not behind or one.standing != "current"
        ]
        output.show_rows(rows, as_json=as_json, empty="Everybody has signed for the newest version.")


_STANDINGS = ("current", "straggler", "overdue", "failed", "behind", "removed")
