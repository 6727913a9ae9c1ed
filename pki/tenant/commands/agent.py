"""``kmb agent``: everything that is due, by itself."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from pki.tenant import output
from pki.tenant.commands.mailbox import rows_of, tell
from pki.tenant.commands.shared import Json, open_agent

if TYPE_CHECKING:
    from pki.tenant.agent import Round

app = typer.Typer(help="Do what is due by itself: receive, renew, wrap again, fetch receipts.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Do what is due by itself: receive, renew, wrap again, fetch receipts."""


@app.command()
def run(
    once: Annotated[bool, typer.Option("--once", help="One round, then stop.")] = False,
    interval: Annotated[float, typer.Option("--interval", help="Seconds to wait for mail in each round.", min=1)] = 20,
    as_json: Json = False,
) -> None:
    """Renew what is due, send what was interrupted, receive, fetch receipts, wrap again; until SIGINT or SIGTERM.

    Example: [bold]kmb agent run --interval 20[/bold]
    """

    def stop(_number: int, _frame: object) -> None:
        # At any point: the journal takes up whatever this interrupts.
        raise typer.Exit(output.DONE)

    if not once:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
    look = away = False
    with open_agent() as agent:
        for one in agent.run(once=once, interval=interval):
            look = _tell(one, as_json=as_json) or look
            away = bool(one.failed)
    if once and away:
        raise typer.Exit(output.AWAY)
    if once and look:
        raise typer.Exit(output.LOOK)


def _tell(one: Round, *, as_json: bool) -> bool:
    """Print what a round did, one line each."""
    lines: list[dict[str, object]] = [{"did": "received"} | row for row in rows_of(one.received)]
    lines += [{"did": "renewed", "kind": cert.kind, "certificate": cert.fingerprint} for cert in one.renewed]
    for did, delivered in (
        ("sent", one.resumed.delivered if one.resumed else []),
        ("wrapped again", one.rewrapped.delivered),
    ):
        lines += [
            {
                "did": did,
                "deposit": each.deposit_id,
                "recipient": str(each.recipient),
                "key": str(each.name),
                "state": each.state,
            }
            for each in delivered
        ]
    lines += [
        {
            "did": "receipt verified",
            "deposit": each.deposit_id,
            "recipient": str(each.recipient),
            "key": each.key,
            "kind": each.kind,
        }
        for each in one.answers.settled
    ]
    for line in lines:
        line = {"at": one.at.isoformat(timespec="seconds")} | line
        print(json.dumps(line) if as_json else "  ".join(str(value) for value in line.values() if value), flush=True)
    for step, error in one.failed:
        output.note(f"{step}: {output.error_record(error)}")
    for deposit, error in (*one.answers.held, *one.rewrapped.waiting):
        output.note(f"{deposit} waits: {output.error_record(error)}")
    for alarm in one.answers.alarms:
        output.note(f"ALARM {alarm.kind} {alarm.subject}: {alarm.detail}")
    return tell(one.received) or bool(one.answers.alarms)
