"""See jobs that were given up, try them again, or let them go."""

from __future__ import annotations

from typing import Annotated

import typer

from pki.core.errors import NotFoundError, UsageError
from pki.server.commands.shared import AsJson, Home, group, opened, print_json, table

app = group("See jobs that were given up, try them again, or let them go.", "kmb-server dead list")


@app.command("list")
def list_dead(
    home: Home = None,
    queue: Annotated[str | None, typer.Option(help="Only this queue.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """List the jobs that were given up, and why, first given up first; posts to webhooks among them.

    Example: kmb-server dead list --queue notify
    """
    from pki.server.store import outbox

    with opened(home) as deps, deps.store.read() as unit:
        jobs = outbox.dead(unit, queue, limit)
    if as_json:
        fields = ("id", "queue", "kind", "subject", "attempts", "dead_at", "error")
        print_json({"jobs": [{name: getattr(job, name) for name in fields} for job in jobs]})
        return
    rows = [(str(job.id), job.queue, job.kind, job.subject, str(job.attempts), job.error or "") for job in jobs]
    typer.echo(table(("id", "queue", "kind", "subject", "attempts", "error"), rows))


@app.command()
def show(
    job_id: Annotated[int, typer.Argument(metavar="ID", help="The job, as dead list shows it.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Show all that is known of a job that was given up: which request it comes from, and whose post it was.

    Example: kmb-server dead show 17
    """
    from pki.server import tracing
    from pki.server.services.webhooks import JOB
    from pki.server.store import events, outbox, webhooks

    with opened(home) as deps, deps.store.read() as unit:
        job = outbox.dead_job(unit, job_id)
        if job is None:
            raise NotFoundError("There is no such dead job", on=str(job_id), hint="kmb-server dead list")
        told: dict[str, object] = {
            "job": job.id,
            "queue": job.queue,
            "kind": job.kind,
            "subject": job.subject,
            "attempts": job.attempts,
            "created_at": job.created_at.isoformat(),
            "dead_at": "" if job.dead_at is None else job.dead_at.isoformat(),
            "error": job.error or "",
            "request_id": tracing.request_id(job.trace),
        }
        for one in events.deliveries_by_ids(unit, [job.subject]) if job.kind == JOB else ():
            hook = webhooks.webhook(unit, one.webhook_id)
            whose = "" if hook is None else str(hook.address)
            told |= {"webhook": one.webhook_id, "address": whose, "event": one.event_id, "delivery": one.state}
    if as_json:
        print_json(told)
        return
    for name, value in told.items():
        typer.echo(f"{name.replace('_', ' '):<11} {value}")
    typer.echo(f"next        kmb-server dead replay {job.id}, or kmb-server dead discard {job.id}")


@app.command()
def discard(
    ids: Annotated[list[int], typer.Argument(metavar="ID...", help="The jobs, as dead list shows them.")],
    home: Home = None,
) -> None:
    """Let jobs go for good that were given up: what they were about stays as it is.

    Example: kmb-server dead discard 17
    """
    from pki.server.store import outbox

    with opened(home) as deps, deps.store.unit() as unit:
        count = outbox.discard(unit, ids)
    if count < len(set(ids)):
        raise NotFoundError(
            f"{count} of {len(set(ids))} jobs are gone; the others are not dead",
            on=" ".join(map(str, ids)),
            hint="kmb-server dead list",
        )
    typer.echo(f"{count} {'job is' if count == 1 else 'jobs are'} gone")


@app.command()
def replay(
    ids: Annotated[
        list[int] | None, typer.Argument(metavar="[ID]...", help="The jobs, as dead list shows them.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    queue: Annotated[str | None, typer.Option(help="With --all: only this queue.")] = None,
    home: Home = None,
) -> None:
    """Try jobs again that were given up.

    Example: kmb-server dead replay --all --queue notify
    """
    from pki.server.store import outbox

    if bool(ids) == everything:
        raise UsageError("Name the jobs, or say --all", on="dead replay", hint="kmb-server dead list")
    with opened(home) as deps, deps.store.unit() as unit:
        chosen = [job.id for job in outbox.dead(unit, queue)] if everything else list(ids or ())
        count = outbox.replay(unit, chosen, deps.clock.now())
    if ids and count < len(set(ids)):
        raise NotFoundError(
            f"{count} of {len(set(ids))} jobs are due again; the others are not dead",
            on=" ".join(map(str, ids)),
            hint="kmb-server dead list",
        )
    typer.echo(f"{count} {'job is' if count == 1 else 'jobs are'} due again")
