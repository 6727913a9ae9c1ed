"""``kmb agent``: everything that is due, by itself."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pki.tenant import disk, output
from pki.tenant.commands.mailbox import rows_of, tell
from pki.tenant.commands.peer import first_contact
from pki.tenant.commands.shared import Json, open_agent
from pki.tenant.supervisor import Supervisor

if TYPE_CHECKING:
    from pki.tenant.agent import Agent, Round
    from pki.tenant.mailbox import Received

_SIGN = 10.0
"""Seconds between signs of life for ``kmb doctor``: the time of the lock's file."""

app = typer.Typer(help="Do what is due by itself: receive, renew, wrap again, fetch receipts.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Do what is due by itself: receive, renew, wrap again, fetch receipts."""


class LogFormat(StrEnum):
    """How the lines look: for people, or all of them as JSON on stdout."""

    TEXT = "text"
    JSON = "json"


@app.command()
def run(
    once: Annotated[bool, typer.Option("--once", help="One round, then stop.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", help="Seconds after which everything is looked at, told of or not.", min=1)
    ] = 60,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Listen to a stream of events, or ask by long polls.")
    ] = True,
    log_format: Annotated[
        LogFormat, typer.Option("--log-format", help="text, or json: results, notes and alarms as lines of JSON.")
    ] = LogFormat.TEXT,
    as_json: Json = False,
) -> None:
    """Renew what is due, send what was interrupted, receive, fetch receipts, wrap again; until SIGINT or SIGTERM.

    Listens to the server's events, and falls back to asking where a proxy lets no stream through. One for each
    context at a time. Tells systemd when it is ready and alive (see docs/operations.md).

    Example: [bold]kmb agent run --log-format json[/bold]
    """
    teller = _Teller(as_json=as_json, all_json=log_format is LogFormat.JSON)
    if once:
        with open_agent() as agent:
            [one] = agent.run(once=True)
        look = teller.tell(one)
        if one.failed:
            raise typer.Exit(output.AWAY)
        if look:
            raise typer.Exit(output.LOOK)
        return
    with open_agent() as agent, disk.exclusive(agent.context.lock):
        _serve(agent, teller, interval=interval, stream=stream)


def _serve(agent: Agent, teller: _Teller, *, interval: float, stream: bool) -> None:
    told: list[int] = []
    signed = time.monotonic()

    def stop(number: int, _frame: object) -> None:
        # Once: the step at hand is finished. Twice: at any point, and the journal takes up what this interrupts.
        told.append(number)
        if len(told) > 1:
            raise typer.Exit(output.DONE)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    systemd = Supervisor()
    ready = False

    def alive() -> None:
        nonlocal signed
        systemd.alive()
        if time.monotonic() >= signed + _SIGN:
            signed = time.monotonic()
            agent.context.lock.touch()

    for one in agent.run(interval=interval, stream=stream, stop=lambda: bool(told), alive=alive):
        teller.tell(one)
        if not teller.troubles and not ready:
            systemd.ready(f"{agent.address}: {teller.summary}")
            ready = True
        systemd.status(f"{agent.address}: {teller.summary}")
    systemd.stopping()
    teller.note("stopped", f"stopped by {signal.Signals(told[0]).name}: {teller.summary}")


class _Teller:
    """Writes one line for each thing that a round did or met, and none for a secret: names and numbers only."""

    def __init__(self, *, as_json: bool, all_json: bool) -> None:
        self._json = as_json or all_json
        self._all_json = all_json
        self._counts: Counter[str] = Counter()
        self.troubles: dict[str, str] = {}
        """What stops each step, until it is done: a round that has other steps says nothing of it."""

    @property
    def summary(self) -> str:
        """What was done since the start, in a few words."""
        counts = ", ".join(f"{count} {did}" for did, count in sorted(self._counts.items())) or "nothing to do yet"
        return "; ".join([counts, *(f"{step} failed: {code}" for step, code in self.troubles.items())])

    def note(self, kind: str, text: str, **more: object) -> None:
        """Say what is not a result."""
        if self._all_json:
            at = datetime.now(UTC).isoformat(timespec="seconds")
            print(json.dumps({"at": at, "note": kind, "text": text} | more), flush=True)
        else:
            output.note(text)

    def tell(self, one: Round) -> bool:
        """Say what a round did; True when somebody has to look."""
        for line in _lines(one):
            self._counts[str(line["did"])] += 1
            told = {"at": one.at.isoformat(timespec="seconds")} | line
            text = "  ".join(str(value) for value in told.values() if value)
            print(json.dumps(told) if self._json else text, flush=True)
        for each in one.reminders:
            hint = "kmb cert renew" + ("" if each.kind == "encryption" else f" --kind {each.kind}")
            text = f"the {each.kind} certificate ends within {each.days} days and is not renewed: {hint}"
            self.note("reminder", text, certificate=each.fingerprint)
        for step, error in one.failed:
            self.note("failed", f"{step}: {output.error_record(error)}", step=step, code=error.code)
        for recipient, error in (failure for campaign in one.campaigns for failure in campaign.failed):
            text = f"not sent to {recipient}: {output.error_record(error)}"
            self.note("not sent", text, recipient=str(recipient), code=error.code)
        for step in one.done:
            self.troubles.pop(step, None)
        self.troubles |= {step: error.code for step, error in one.failed}
        for deposit, error in (*one.answers.held, *one.rewrapped.waiting):
            self.note("waits", f"{deposit} waits: {output.error_record(error)}", deposit=deposit, code=error.code)
        alarms = [*one.revoked, *one.overdue, *one.answers.alarms]
        if self._all_json:
            alarms += one.received.alarms.values()
            look = _note_received(self, one.received)
        else:
            look = tell(one.received)
        for alarm in alarms:
            self.note(
                "alarm", f"ALARM {alarm.kind} {alarm.subject}: {alarm.detail}", alarm=alarm.kind, subject=alarm.subject
            )
        return look or bool(alarms or one.reminders)


def _note_received(teller: _Teller, received: Received) -> bool:
    for sender in dict.fromkeys(str(one.sender) for one in received.taken if one.first_contact):
        teller.note("first contact", first_contact(sender), sender=sender)
    for held in received.held:
        text = f"undecided, tried again: {output.error_record(held.error)}"
        teller.note("undecided", text, deposit=held.deposit_id, number=held.sequence, code=held.error.code)
    return bool(received.held or any(one.kind == "refusal" for one in received.taken))


def _lines(one: Round) -> list[dict[str, object]]:
    """Return what a round did, one line each."""
    lines: list[dict[str, object]] = [{"did": "received"} | row for row in rows_of(one.received)]
    lines += [{"did": "renewed", "kind": cert.kind, "certificate": cert.fingerprint} for cert in one.renewed]
    lines += [
        {
            "did": "reminded",
            "kind": each.kind,
            "certificate": each.fingerprint,
            "days": each.days,
            "until": each.not_after.isoformat(),
        }
        for each in one.reminders
    ]
    for did, delivered in (
        ("sent", [delivery for campaign in one.campaigns for delivery in campaign.delivered]),
        ("heard of a rejection", one.rejected),
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
    return lines
