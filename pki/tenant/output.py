"""What a person or a program reads: tables and JSON on stdout, notes and errors on stderr, documented exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime

from pki.core.errors import (
    AccessError,
    AlgorithmError,
    BadAddressError,
    ConflictError,
    DeletedError,
    EnrolmentError,
    ForbiddenError,
    KeymailboxError,
    MalformedError,
    NotFoundError,
    ProfileError,
    QuotaError,
    SettingsError,
    TooLargeError,
    UnavailableError,
    UsageError,
    VerificationError,
)

DONE, FAILED, USAGE, NOT_FOUND, CHECK_FAILED, REFUSED, AWAY, LOOK = range(8)
EXIT_CODES = (
    "Exit codes: 0 done · 1 failed · 2 wrong usage or configuration · 3 not found, or not kept any more · 4 a check "
    "failed · 5 refused: by the server, or what is there already or too large · 6 something is away, busy or full, try "
    "again · 7 done, but somebody has to look (alarm, refusal, undecided deposit)"
)
_CODES: Sequence[tuple[tuple[type[KeymailboxError], ...], int]] = (
    ((UsageError, BadAddressError, SettingsError), USAGE),
    ((NotFoundError, DeletedError), NOT_FOUND),
    ((VerificationError, MalformedError, ProfileError, AlgorithmError), CHECK_FAILED),
    ((ConflictError, EnrolmentError, AccessError, ForbiddenError, TooLargeError), REFUSED),
    ((UnavailableError, QuotaError), AWAY),
)


def exit_code(error: KeymailboxError) -> int:
    """Return the exit code that stands for an error."""
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), FAILED)


def show_rows(rows: Sequence[Mapping[str, object]], *, as_json: bool, empty: str) -> None:
    """Print rows as a table whose columns are the keys of the first, or as a JSON list; ``empty`` if there are none."""
    if as_json:
        print(json.dumps([_plain(row) for row in rows], indent=1))
        return
    if not rows:
        note(empty)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    # A pipe has no width: nothing is folded there.
    Console(width=None if sys.stdout.isatty() else 240, highlight=False).print(table)


def show_record(record: Mapping[str, object], *, as_json: bool) -> None:
    """Print one thing, a line for each of its fields, or as a JSON object."""
    if as_json:
        print(json.dumps(_plain(record), indent=1))
        return
    width = max(len(name) for name in record)
    for name, value in record.items():
        print(f"{name.replace('_', ' '):<{width}}  {_text(value, markup=False)}")


def note(text: str) -> None:
    """Tell a person something that is not the result."""
    print(text, file=sys.stderr)


def show_error(error: KeymailboxError, *, as_json: bool) -> None:
    """Print an error in its three parts: what failed, on what, and the next command."""
    if as_json:
        body = {
            "code": error.code,
            "message": error.message,
            "on": error.on,
            "hint": error.hint,
            "rule": error.rule,
            "offset": error.offset,
        }
        print(json.dumps({"error": body}), file=sys.stderr)
        return
    offset = f" at byte {error.offset}" if error.offset is not None else ""
    print(f"kmb: {error.message}{offset}" + (f" [{error.rule}]" if error.rule else ""), file=sys.stderr)
    if error.on:
        print(f"  on:   {error.on}", file=sys.stderr)
    print(f"  next: {error.hint or 'kmb doctor'}", file=sys.stderr)


def error_record(error: KeymailboxError) -> str:
    """Return an error in one line, for a row of a table."""
    return f"{error.code}: {error}" + (f" → {error.hint}" if error.hint else "")


def _text(value: object, *, markup: bool = True) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    text = str(value)
    # Square brackets are markup to rich.
    return text.replace("[", r"\[") if markup else text


def _plain(record: Mapping[str, object]) -> dict[str, object]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in record.items()}
