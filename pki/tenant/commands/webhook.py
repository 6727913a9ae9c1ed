"""``kmb webhook``: where your instance is told of its events."""

from __future__ import annotations

from typing import Annotated

import typer

from pki.tenant import output
from pki.tenant.commands.shared import Json, open_agent

app = typer.Typer(help="Where your instance is told of its events.", no_args_is_help=True)

Hook = Annotated[str, typer.Argument(metavar="ID", help="The webhook, as kmb webhook list shows it.")]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List your webhooks; one that is off answered 410.

    Example: [bold]kmb webhook list[/bold]
    """
    from pki.tenant import webhooks

    with open_agent() as agent:
        rows = [
            {
                "id": one.id,
                "url": one.url,
                "types": "all" if one.types is None else ", ".join(one.types),
                "since": one.created_at,
                "state": "on" if one.disabled_at is None else f"off since {one.disabled_at}",
            }
            for one in webhooks.listed(agent.client)
        ]
    output.show_rows(rows, as_json=as_json, empty="You have none: kmb webhook add URL")


@app.command()
def add(
    url: Annotated[str, typer.Argument(help="An https:// address that takes posts.")],
    types: Annotated[list[str] | None, typer.Option("--type", help="Only this type of event; again for more.")] = None,
    as_json: Json = False,
) -> None:
    """Register an address; what is printed once is the secret that signs the posts (Standard Webhooks).

    Example: [bold]kmb webhook add https://kms.example/hook --type keymailbox.deposit.available[/bold]
    """
    from pki.tenant import webhooks

    with open_agent() as agent:
        made = webhooks.add(agent.client, url, types or ())
    output.show_record({"id": made.id, "url": made.url, "secret": made.secret}, as_json=as_json)


@app.command()
def remove(hook: Hook) -> None:
    """Remove a webhook, with what is under way to it.

    Example: [bold]kmb webhook remove 0123456789abcdef0123456789abcdef[/bold]
    """
    from pki.tenant import webhooks

    with open_agent() as agent:
        webhooks.remove(agent.client, hook)
    output.note("removed")


@app.command()
def dead(hook: Hook, as_json: Json = False) -> None:
    """List the events that a webhook was not told after ten attempts, and why.

    Example: [bold]kmb webhook dead 0123456789abcdef0123456789abcdef[/bold]
    """
    from pki.tenant import webhooks

    with open_agent() as agent:
        found = webhooks.dead(agent.client, hook)
    rows = [
        {
            "delivery": one.id,
            "type": one.type,
            "subject": one.subject,
            "attempts": one.attempts,
            "error": one.error,
            "given_up": one.at,
        }
        for one in found
    ]
    output.show_rows(rows, as_json=as_json, empty="Nothing was given up.")


@app.command()
def replay(
    hook: Hook,
    deliveries: Annotated[
        list[str] | None, typer.Argument(metavar="[DELIVERY]...", help="As kmb webhook dead shows them; else all.")
    ] = None,
) -> None:
    """Have a webhook told again what it has missed, under the same webhook-id, when its receiver is mended.

    Example: [bold]kmb webhook replay 0123456789abcdef0123456789abcdef[/bold]
    """
    from pki.tenant import webhooks

    with open_agent() as agent:
        count = webhooks.replay(agent.client, hook, deliveries or ())
    output.note(f"{count} {'delivery is' if count == 1 else 'deliveries are'} under way again")
