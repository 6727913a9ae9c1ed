"""What the operator's commands share: options, exit codes, settings, and how a table is printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pki.core.errors import NotFoundError, SettingsError, UsageError

if TYPE_CHECKING:
    from pki.server.services.deps import Deps
    from pki.server.settings import Settings

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_REFUSED, EXIT_UNAVAILABLE = range(6)

ROOT_VARIABLE = "KMB_ROOT_PASSPHRASE_FILE"
"""Names the file that opens the root's key, and nothing else; no server process has it."""

Home = Annotated[
    Path | None, typer.Option("--home", help="The server's folder (KMB_HOME).", show_default="./keymailbox-home")
]
MetricsPort = Annotated[
    int | None,
    typer.Option(help="The port for /metrics, /livez and /readyz (KMB_METRICS_PORT).", show_default="0, nowhere"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def group(text: str, example: str) -> typer.Typer:
    """Return a group of commands whose help shows an example."""
    return typer.Typer(help=f"{text}\n\nExample: {example}", no_args_is_help=True, rich_markup_mode=None)


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


def given_root_passphrase() -> bytes | None:
    """Return the root's passphrase from the file that KMB_ROOT_PASSPHRASE_FILE names, None when it names none."""
    named = os.environ.get(ROOT_VARIABLE, "")
    if not named:
        return None
    try:
        return Path(named).read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise SettingsError(
            f"The root's passphrase cannot be read: {error.strerror}", on=named, hint=f"ls -l {named}"
        ) from None


def typed(question: str, *, instead: str, hidden: bool = False, twice: bool = False) -> str:
    """Return what a person types; UsageError, which names what a script gives ``instead``, where nobody is there."""
    try:
        return str(typer.prompt(question, hide_input=hidden, confirmation_prompt=twice, err=True))
    except typer.Abort:
        if sys.stdin.isatty():
            raise
        typer.echo(err=True)
        raise UsageError("Nobody is there to type it", on=question, hint=instead) from None


def moment(text: str | None) -> datetime | None:
    """Return a day or time as an option has it; raises UsageError."""
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


def fingerprint(der: bytes) -> str:
    """Return the SHA-256 in hex."""
    import hashlib

    return hashlib.sha256(der).hexdigest()


def print_json(content: object) -> None:
    """Print a value as JSON, times in ISO 8601."""
    typer.echo(json.dumps(content, ensure_ascii=False, default=lambda moment: moment.isoformat()))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return columns; control characters, which may be somebody's, are shown as spaces."""
    lines = [header, *([_printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
