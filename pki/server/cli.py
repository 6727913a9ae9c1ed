"""kmb-server: the operator's command line; what it needs is imported when a command runs, so that help is fast."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from pki.core.errors import KeymailboxError
from pki.server.commands import ca, dead, drill, home, officer, profile, report, revoke, tenant
from pki.server.commands.shared import (
    EXIT_FAILURE,
    EXIT_NOT_FOUND,
    EXIT_OK,
    EXIT_REFUSED,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
)

app = typer.Typer(
    name="kmb-server",
    help=(
        "Run a keymailbox: a certificate directory and wrapped-key mailbox.\n\n"
        "Example: kmb-server init --home ./keymailbox-home\n\n"
        "Settings come from KMB_* variables, secrets from the files that KMB_*_FILE name.\n\n"
        "Exit codes: 0 done, 1 failed, 2 usage, 3 not found or no longer kept, 4 refused, 5 unavailable."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for one in (home.init, home.migrate, home.api, home.doctor, home.version):
    app.command()(one)
for name, group in (
    ("ca", ca.app),
    ("tenant", tenant.app),
    ("report", report.app),
    ("dead", dead.app),
    ("officer", officer.app),
    ("revoke", revoke.app),
    ("profile", profile.app),
    ("drill", drill.app),
):
    app.add_typer(group, name=name)


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
        ((errors.NotFoundError, errors.DeletedError), EXIT_NOT_FOUND),
        (errors.UnavailableError, EXIT_UNAVAILABLE),
        (refused, EXIT_REFUSED),
    )
    return next((code for kind, code in kinds if isinstance(error, kind)), EXIT_FAILURE)
