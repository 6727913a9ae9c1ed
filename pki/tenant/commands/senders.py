"""``kmb mailbox senders``: whom our mailbox takes deposits from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pki.core.errors import UsageError
from pki.tenant import output
from pki.tenant.commands.shared import Json, open_agent

if TYPE_CHECKING:
    from pki.core.senders import SenderPolicy

app = typer.Typer(help="Whom your mailbox takes deposits from.", no_args_is_help=True)

Names = Annotated[
    list[str] | None, typer.Option("--allow", help="A TENANT or TENANT/INSTANCE for the list.", metavar="SENDER")
]


@app.command()
def show(as_json: Json = False) -> None:
    """Show whom and what your mailbox takes. Example: [bold]kmb mailbox senders show[/bold]"""
    with open_agent() as agent:
        _show(agent.client.senders(agent.address), as_json)


@app.command("set")
def set_(
    mode: Annotated[str, typer.Argument(metavar="anyone|known|listed", help="Whom to take.")],
    allow: Names = None,
    max_bytes: Annotated[
        int | None, typer.Option("--max-bytes", help="The largest deposit; no limit of yours without.", min=1)
    ] = None,
    max_days: Annotated[
        int | None, typer.Option("--max-days", help="The longest until it expires; no limit of yours without.", min=1)
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose whom and what your mailbox takes, in the place of what was chosen before.

    anyone: every instance here. known: whom you have sent something, whose deposit you have acknowledged, and the list.
    listed: the list alone. What is in the mailbox stays there.

    Example: [bold]kmb mailbox senders set known --allow globex --allow initech/lab --max-days 30[/bold]
    """
    from datetime import timedelta

    from pki.core.senders import SenderMode, SenderPolicy

    try:
        chosen = SenderMode(mode)
    except ValueError:
        hint = "kmb mailbox senders set known"
        raise UsageError("A mailbox takes deposits of anyone, known or listed", on=mode[:40], hint=hint) from None
    if chosen is SenderMode.ANYONE and allow:
        hint = "kmb mailbox senders set listed --allow TENANT"
        raise UsageError("A list says nothing where anyone is welcome", on=allow[0], hint=hint)
    lifetime = None if max_days is None else timedelta(days=max_days)
    policy = SenderPolicy(chosen, tuple(dict.fromkeys(allow or ())), max_bytes, lifetime)
    with open_agent() as agent:
        _show(agent.client.set_senders(agent.address, policy), as_json)


def _show(policy: SenderPolicy, as_json: bool) -> None:
    lifetime = policy.max_lifetime
    output.show_record(
        {
            "mode": policy.mode.value,
            "listed": list(policy.listed) if as_json else ", ".join(policy.listed) or None,
            "max_bytes": policy.max_bytes,
            "max_days": None if lifetime is None else round(lifetime.total_seconds() / 86400, 2),
        },
        as_json=as_json,
    )
