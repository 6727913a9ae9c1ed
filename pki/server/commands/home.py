"""Set a server up, serve HTTP, look after it."""

from __future__ import annotations

from typing import Annotated

import typer

from pki.server.commands.shared import (
    EXIT_FAILURE,
    AsJson,
    Home,
    MetricsPort,
    given_root_passphrase,
    opened,
    print_json,
    settings_of,
)

Host = Annotated[str | None, typer.Option(help="The address to listen on (KMB_HOST).", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(help="The port to listen on (KMB_PORT).", show_default="8080")]


def init(
    home: Home = None,
    root: Annotated[str, typer.Option(help="A new root's algorithm: ml-dsa-65, ml-dsa-87, slh-dsa-sha2-128s, …")] = "",
    as_json: AsJson = False,
) -> None:
    """Create the CA, its passphrase and the database; what is there stays.

    Example: kmb-server init --home ./keymailbox-home
    """
    from pki.server import bootstrap
    from pki.server.adapters.signers.home import ROOT_FOLDER
    from pki.server.adapters.signers.root import ROOT_KEY

    settings = settings_of(home)
    made = bootstrap.init(settings, root=root, root_passphrase=given_root_passphrase() or b"")
    if as_json:
        told = {"root_fingerprint": made.root_fingerprint, "issuing_fingerprint": made.issuing_fingerprint}
        print_json({"home": str(settings.home), "root": made.root_algorithm, **told, "schema": made.schema})
        return
    typer.echo(f"home              {settings.home}")
    typer.echo(f"root fingerprint  {made.root_fingerprint} ({made.root_algorithm})")
    if made.passphrase_written:
        typer.echo(f"passphrase        {settings.passphrase_path}: it opens the CA's keys, keep it apart from backups")
    if (settings.home / ROOT_FOLDER / ROOT_KEY).exists():
        typer.echo(
            f"root folder       {settings.home / ROOT_FOLDER}: move it off this machine; only the next CA needs it"
        )
    typer.echo(f"next              kmb-server tenant invite NAME --home {settings.home}")


def migrate(
    home: Home = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="No process of an earlier release is left: use all of the new schema.")
    ] = False,
) -> None:
    """Bring the database's schema to this release's; earlier releases go on working with it until --finish.

    Done as the tables' owner (KMB_OWNER_DATABASE_URL), who gives the other logins their rights.

    Example: kmb-server migrate
    """
    from pki.server import bootstrap
    from pki.server.services import retention

    with opened(home) as deps:
        version = bootstrap.migrate(deps.settings, lambda told: typer.echo(f"note    {told}", err=True))
        typer.echo(f"schema  {version}")
        if deps.store.is_later():
            typer.echo("note    the schema is a later release's: nothing was changed", err=True)
            return
        made = retention.prepare(deps)
        if made:
            typer.echo(f"made    {made} partitions for the bodies of deposits")
        if finish:
            retention.set_apart(deps)
            typer.echo("bodies  have a table of their own from now on")
            if deps.store.rewrite():
                typer.echo("file    was written anew: it gives back what is deleted")
        elif not retention.is_apart(deps):
            typer.echo("next    kmb-server migrate --finish, when no process of the earlier release is left")


def api(home: Home = None, host: Host = None, port: Port = None, metrics_port: MetricsPort = None) -> None:
    """Serve HTTP; workers are processes of their own.

    Example: kmb-server api --port 8080 --metrics-port 9464
    """
    from pki.server import bootstrap
    from pki.server.app import Server

    settings = settings_of(home, host=host, port=port, metrics_port=metrics_port)
    bootstrap.configure_logging(settings)
    deps = bootstrap.build(settings)
    try:
        server = Server(settings, deps)
        with bootstrap.watched(deps, "api", server.ready):
            server.run()
    finally:
        deps.store.close()
    if not server.started:
        raise typer.Exit(EXIT_FAILURE)


def doctor(
    home: Home = None,
    full: Annotated[bool, typer.Option("--full", help="Verify each event there ever was, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check what a server needs, and say what to do about what is missing.

    Example: kmb-server doctor
    """
    from pki.server import bootstrap
    from pki.server.services.doctor import examine

    settings = settings_of(home)
    deps = bootstrap.build(settings)
    try:
        findings = [*examine(deps, full=full), *bootstrap.examine_broker(settings), *bootstrap.examine_token(settings)]
    finally:
        deps.store.close()
    if as_json:
        print_json({"findings": [vars(finding) for finding in findings]})
    else:
        for finding in findings:
            typer.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check:<12}  {finding.detail}")
            if not finding.ok:
                typer.echo(f"      hint: {finding.hint}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(EXIT_FAILURE)


def version(as_json: AsJson = False) -> None:
    """Print the version.

    Example: kmb-server version
    """
    from pki.server.api.health import release

    if as_json:
        print_json({"name": "keymailbox", "version": release()})
    else:
        typer.echo(f"keymailbox {release()}")
