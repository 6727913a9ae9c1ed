"""kmb-server: the operator's command line; what it needs is imported when a command runs, so that help is fast."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pki.core.errors import AlgorithmError, KeymailboxError, NotFoundError, UsageError

if TYPE_CHECKING:
    from pki.server.services.deps import Deps
    from pki.server.settings import Settings

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_REFUSED, EXIT_UNAVAILABLE = range(6)

app = typer.Typer(
    name="kmb-server",
    help=(
        "Run a keymailbox: a certificate directory and wrapped-key mailbox.\n\n"
        "Example: kmb-server init --home ./keymailbox-home\n\n"
        "Settings come from KMB_* variables, secrets from the files that KMB_*_FILE name.\n\n"
        "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused, 5 unavailable."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _group(name: str, text: str, example: str) -> typer.Typer:
    group = typer.Typer(help=f"{text}\n\nExample: {example}", no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(group, name=name)
    return group


tenant_app = _group("tenant", "Invite tenants and list them.", "kmb-server tenant list")
report_app = _group("report", "Say who was given which key.", "kmb-server report distribution")
dead_app = _group("dead", "See jobs that were given up, and try them again.", "kmb-server dead list")

Home = Annotated[
    Path | None, typer.Option("--home", help="The server's folder (KMB_HOME).", show_default="./keymailbox-home")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Host = Annotated[str | None, typer.Option(help="The address to listen on (KMB_HOST).", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(help="The port to listen on (KMB_PORT).", show_default="8080")]


def run(cli: typer.Typer) -> NoReturn:
    """Run a command line of this family: errors are told in three parts and become documented exit codes."""
    import logging

    # What a command has to say it says itself; a server configures logs of its own.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        cli()
    except KeymailboxError as error:
        sys.exit(tell(error))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(EXIT_FAILURE)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(EXIT_OK)


def tell(error: KeymailboxError) -> int:
    """Print what failed, on what, and the next command; return the exit code."""
    rule = f" [{error.rule}]" if error.rule else ""
    typer.echo(f"error: {error.message}{rule}", err=True)
    if error.on:
        typer.echo(f"on:    {error.on}", err=True)
    typer.echo(f"hint:  {error.hint or 'kmb-server doctor'}", err=True)
    return exit_code(error)


def exit_code(error: KeymailboxError) -> int:
    """Return the documented exit code of an error."""
    from pki.core import errors

    refused = (
        errors.VerificationError,
        errors.ConflictError,
        errors.ForbiddenError,
        errors.EnrolmentError,
        errors.AccessError,
    )
    kinds: Sequence[tuple[type[KeymailboxError] | tuple[type[KeymailboxError], ...], int]] = (
        ((errors.UsageError, errors.BadAddressError), EXIT_USAGE),
        (errors.NotFoundError, EXIT_NOT_FOUND),
        (errors.UnavailableError, EXIT_UNAVAILABLE),
        (refused, EXIT_REFUSED),
    )
    return next((code for kind, code in kinds if isinstance(error, kind)), EXIT_FAILURE)


def settings_of(home: Path | None = None, **overrides: object) -> Settings:
    """Return this process's settings; what was given on the command line comes first."""
    from pki.server.settings import load_settings

    return load_settings(home=home, **overrides)


@contextmanager
def opened(home: Path | None) -> Iterator[Deps]:
    """Give what the services need, and close it. Raises NotFoundError where no server was set up yet."""
    from pki.server import bootstrap

    settings = settings_of(home)
    if settings.database_url.startswith("sqlite") and not settings.home.is_dir():
        raise NotFoundError(
            "There is no server here", on=str(settings.home), hint=f"kmb-server init --home {settings.home}"
        )
    deps = bootstrap.build(settings)
    try:
        yield deps
    finally:
        deps.store.close()


@app.command()
def init(
    home: Home = None,
    root: Annotated[str, typer.Option(help="A new root's algorithm: ml-dsa-65, ml-dsa-87, slh-dsa-sha2-128s, …")] = "",
    as_json: AsJson = False,
) -> None:
    """Create the CA, its passphrase and the database; what is there stays.

    Example: kmb-server init --home ./keymailbox-home
    """
    from pki.server import bootstrap

    settings = settings_of(home)
    try:
        made = bootstrap.init(settings, root=root)
    except AlgorithmError as error:
        raise UsageError(error.message, on=root, hint=error.hint) from None
    if as_json:
        told = {"root_fingerprint": made.root_fingerprint, "issuing_fingerprint": made.issuing_fingerprint}
        _print_json({"home": str(settings.home), "root": made.root_algorithm, **told, "schema": made.schema})
        return
    typer.echo(f"home              {settings.home}")
    typer.echo(f"root fingerprint  {made.root_fingerprint} ({made.root_algorithm})")
    if made.passphrase_written:
        typer.echo(f"passphrase        {settings.passphrase_path}: it opens the CA's keys, keep it apart from backups")
    typer.echo(f"next              kmb-server tenant invite NAME --home {settings.home}")


@app.command()
def migrate(home: Home = None) -> None:
    """Bring the database's schema to this release's.

    Example: kmb-server migrate
    """
    with opened(home) as deps:
        deps.store.migrate()
        typer.echo(f"schema  {deps.store.schema_version()}")


@app.command()
def api(home: Home = None, host: Host = None, port: Port = None) -> None:
    """Serve HTTP; workers are processes of their own.

    Example: kmb-server api --port 8080
    """
    from pki.server import bootstrap
    from pki.server.app import Server

    settings = settings_of(home, host=host, port=port)
    bootstrap.configure_logging(settings)
    server = Server(settings)
    server.run()
    if not server.started:
        raise typer.Exit(EXIT_FAILURE)


@tenant_app.command()
def invite(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tenant, created when it is new.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Print a one-time invitation for one KMS instance of a tenant.

    Example: kmb-server tenant invite acme --home ./keymailbox-home
    """
    from pki.core.tenants import parse_tenant
    from pki.server.services import access

    tenant = parse_tenant(name)
    with opened(home) as deps:
        root, url = _fingerprint(deps.chain.root), deps.settings.url
        invitation, secret = access.invite(deps, tenant)
    expires = invitation.expires_at.replace(microsecond=0).isoformat().replace("+00:00", "Z")
    if as_json:
        _print_json({"tenant": tenant, "reference": invitation.reference, "secret": secret, "expires": expires})
        return
    typer.echo(f"Invitation for one instance of {tenant}, until {expires}. Hand over, each on a way that you trust:")
    typer.echo("")
    typer.echo(f"  root fingerprint  {root}")
    typer.echo(f"  secret            {secret}")
    typer.echo("")
    typer.echo("The tenant runs, and types the secret when asked:")
    typer.echo("")
    typer.echo(f"  kmb enroll {tenant}/INSTANCE --server {url} --reference {invitation.reference} --root {root}")


@tenant_app.command("list")
def list_tenants(home: Home = None, as_json: AsJson = False) -> None:
    """List tenants and their instances.

    Example: kmb-server tenant list --json
    """
    from pki.server.store import tenants

    with opened(home) as deps, deps.store.read() as unit:
        names = [tenant.name for tenant in tenants.list_tenants(unit)]
        instances = tenants.list_instances(unit)
    if as_json:
        listed: dict[str, list[dict[str, str]]] = {name: [] for name in names}
        for one in instances:
            facts = {
                "address": str(one.address),
                "enrolled": one.enrolled_at.isoformat(),
                "access_key_id": one.access_key_id,
            }
            listed[one.tenant].append(facts)
        _print_json({"tenants": [{"tenant": name, "instances": found} for name, found in listed.items()]})
        return
    rows = [(str(one.address), one.enrolled_at.isoformat(timespec="seconds"), one.access_key_id) for one in instances]
    rows += [(f"{name}/", "invited only", "") for name in names if not any(one.tenant == name for one in instances)]
    typer.echo(_table(("address", "enrolled", "access key"), sorted(rows)))


@report_app.command()
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

    if form not in ("table", "json", "csv"):
        raise UsageError("There is no such format", on=form[:40], hint="kmb-server report distribution --format csv")
    with opened(home) as deps:
        rows = report.distribution(deps, parse_tenant(tenant) if tenant else None, _moment(since), _moment(until))
        text = {"table": report.to_table, "json": report.to_json, "csv": report.to_csv}[form](rows)
    if out is None:
        typer.echo(text, nl=not text.endswith("\n"))
        return
    try:
        out.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise KeymailboxError(
            f"The report cannot be written: {error.strerror}",
            on=str(out),
            hint="kmb-server report distribution --out FILE",
        ) from None


@dead_app.command("list")
def list_dead(
    home: Home = None,
    queue: Annotated[str | None, typer.Option(help="Only this queue.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the jobs that were given up, and why.

    Example: kmb-server dead list --queue notify
    """
    from pki.server.store import outbox

    with opened(home) as deps, deps.store.read() as unit:
        jobs = outbox.dead(unit, queue)
    if as_json:
        fields = ("id", "queue", "kind", "subject", "attempts", "dead_at", "error")
        _print_json({"jobs": [{name: getattr(job, name) for name in fields} for job in jobs]})
        return
    rows = [(str(job.id), job.queue, job.kind, job.subject, str(job.attempts), job.error or "") for job in jobs]
    typer.echo(_table(("id", "queue", "kind", "subject", "attempts", "error"), rows))


@dead_app.command()
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


@app.command()
def doctor(home: Home = None, as_json: AsJson = False) -> None:
    """Check what a server needs, and say what to do about what is missing.

    Example: kmb-server doctor
    """
    from pki.server import bootstrap
    from pki.server.services.doctor import examine

    settings = settings_of(home)
    deps = bootstrap.build(settings)
    try:
        findings = examine(deps)
    finally:
        deps.store.close()
    if as_json:
        _print_json({"findings": [vars(finding) for finding in findings]})
    else:
        for finding in findings:
            typer.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check:<12}  {finding.detail}")
            if not finding.ok:
                typer.echo(f"      hint: {finding.hint}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(EXIT_FAILURE)


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version.

    Example: kmb-server version
    """
    from pki.server.api.health import release

    if as_json:
        _print_json({"name": "keymailbox", "version": release()})
    else:
        typer.echo(f"keymailbox {release()}")


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        if len(text) == len("2026-01-31"):
            return datetime.combine(date.fromisoformat(text), time.min, UTC)
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            "A time is written 2026-01-31 or 2026-01-31T12:00:00Z",
            on=text[:40],
            hint="kmb-server report distribution --since 2026-01-31",
        ) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _fingerprint(der: bytes) -> str:
    import hashlib

    return hashlib.sha256(der).hexdigest()


def _print_json(content: object) -> None:
    typer.echo(json.dumps(content, ensure_ascii=False, default=lambda moment: moment.isoformat()))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return columns; control characters, which may be somebody's, are shown as spaces."""
    lines = [header, *([_printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
