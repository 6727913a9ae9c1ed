"""``kmb``: the tenant's command line. Everything heavy is loaded by the command that needs it."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from pki.core.errors import KeymailboxError
from pki.tenant import output
from pki.tenant.commands import (
    agent,
    campaign,
    cert,
    context,
    enroll,
    key,
    mailbox,
    object,
    peer,
    receipt,
    status,
    webhook,
)

app = typer.Typer(
    name="kmb",
    help="Exchange keys with other tenants through a mailbox that you need not trust.",
    epilog=output.EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("enroll")(enroll.enroll)
app.add_typer(cert.app, name="cert")
app.add_typer(peer.app, name="peer")
app.add_typer(key.app, name="key")
app.add_typer(campaign.app, name="campaign")
app.add_typer(mailbox.app, name="mailbox")
app.add_typer(receipt.app, name="receipt")
app.add_typer(webhook.app, name="webhook")
app.add_typer(object.app, name="object")
app.add_typer(agent.app, name="agent")
app.add_typer(context.app, name="context")
app.command("whoami")(status.whoami)
app.command("doctor")(status.doctor)


@app.callback()
def options(
    name: Annotated[
        str, typer.Option("--context", "-c", help="Whose context to use.", envvar="KMB_CONTEXT", metavar="NAME")
    ] = "",
) -> None:
    """Exchange keys with other tenants through a mailbox that you need not trust."""
    if name:
        os.environ["KMB_CONTEXT"] = name


@app.command("version")
def show_version() -> None:
    """Print the version. Example: [bold]kmb version[/bold]"""
    try:
        print(f"kmb {version('keymailbox')}")
    except PackageNotFoundError:
        print("kmb (not installed)")


def main() -> None:
    """Run ``kmb``."""
    try:
        app()
    except KeymailboxError as error:
        output.show_error(error, as_json="--json" in sys.argv)
        sys.exit(output.exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(output.FAILED)
    except Exception as error:
        if os.environ.get("KMB_DEBUG"):
            raise
        output.note(f"kmb: failed in a way that nobody foresaw ({type(error).__name__})")
        output.note("  next: KMB_DEBUG=1 kmb … shows where; please report it")
        sys.exit(output.FAILED)


if __name__ == "__main__":
    main()
