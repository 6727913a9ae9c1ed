"""``kmb receipt``: what the recipients signed for."""

from __future__ import annotations

import typer

from pki.tenant import output
from pki.tenant.commands.shared import Json, open_agent

app = typer.Typer(help="What the recipients signed for.", no_args_is_help=True)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Fetch new receipts, verify each against what was sent, and list where everything stands.

    Example: [bold]kmb receipt list[/bold]
    """
    with open_agent() as agent:
        answers = agent.receipts()
        rows = [
            {
                "deposit": one.deposit_id,
                "recipient": str(one.recipient),
                "key": one.name.key_id,
                "version": one.name.version,
                "state": one.state,
                "receipt": "verified" if one.receipt else None,
                "detail": one.detail,
                "sent": one.planned_at,
            }
            for one in agent.sent()
        ]
        output.show_rows(rows, as_json=as_json, empty="Nothing was sent yet: kmb key send NAME --to TENANT/INSTANCE")
        for deposit, error in answers.held:
            output.note(f"the receipt of {deposit} waits: {output.error_record(error)}")
        for alarm in answers.alarms:
            output.note(f"ALARM {alarm.kind} {alarm.subject}: {alarm.detail}")
        if answers.alarms or answers.held:
            raise typer.Exit(output.LOOK)
