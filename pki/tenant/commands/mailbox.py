"""``kmb mailbox``: what others have sent to us."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pki.tenant import output
from pki.tenant.commands import senders
from pki.tenant.commands.peer import first_contact
from pki.tenant.commands.shared import Json, open_agent

if TYPE_CHECKING:
    from pki.tenant.mailbox import Received

app = typer.Typer(help="What others have sent to you.", no_args_is_help=True)
app.add_typer(senders.app, name="senders")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List what the server holds for you; opens nothing. Example: [bold]kmb mailbox list[/bold]"""
    with open_agent() as agent:
        rows = [
            {
                "number": one.sequence,
                "deposit": one.id,
                "sender": str(one.sender),
                "key": one.key_id,
                "version": one.key_version,
                "purpose": one.purpose,
                "state": one.state,
                "size": one.size,
                "received": one.received_at,
                "expires": one.expires_at,
                "respond_by": one.respond_by,
            }
            for one in agent.mailbox()
        ]
        output.show_rows(rows, as_json=as_json, empty="The mailbox is empty.")


@app.command()
def receive(
    wait: Annotated[float, typer.Option("--wait", help="Seconds to wait when there is nothing, up to 25.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Fetch everything new: check each sender, unwrap into your holder, and only then sign a receipt.

    Example: [bold]kmb mailbox receive --wait 20[/bold]
    """
    with open_agent() as agent:
        received = agent.receive(wait=wait)
        output.show_rows(rows_of(received), as_json=as_json, empty="Nothing new.")
        if tell(received):
            raise typer.Exit(output.LOOK)


def rows_of(received: Received) -> list[dict[str, object]]:
    """Return a row for each deposit that was decided on."""
    return [
        {
            "number": one.sequence,
            "deposit": one.deposit_id,
            "sender": str(one.sender),
            "key": one.name.key_id if one.name else None,
            "version": one.name.version if one.name else None,
            "answer": one.kind,
            "reason": one.reason,
            "size": one.size,
        }
        for one in received.taken
    ]


def tell(received: Received) -> bool:
    """Say what a person has to know; True when somebody has to look."""
    for sender in dict.fromkeys(str(one.sender) for one in received.taken if one.first_contact):
        output.note(first_contact(sender))
    for held in received.held:
        output.note(f"undecided, tried again next time: number {held.sequence}: {output.error_record(held.error)}")
    for alarm in received.alarms.values():
        output.note(f"ALARM {alarm.kind} {alarm.subject}: {alarm.detail}")
    return bool(received.held or received.alarms or any(one.kind == "refusal" for one in received.taken))
