"""What the commands have in common: options, and opening the agent of the chosen context."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pki.core.errors import UsageError

if TYPE_CHECKING:
    from pki.tenant.agent import Agent

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Wait = Annotated[float, typer.Option("--wait", help="Seconds to wait for the server's workers.", min=0)]
MAX_FILE = 512 * 1024
"""Bytes of key material: a deposit has at most a mebibyte, the envelope included."""


def open_agent() -> Agent:
    """Open the agent of the chosen context."""
    from pki.tenant import contexts
    from pki.tenant.agent import Agent

    return Agent.open(contexts.load(contexts.choose()))


def read_material(path: Path) -> bytes:
    """Read key material from a file, or from stdin for ``-``."""
    try:
        content = sys.stdin.buffer.read(MAX_FILE + 1) if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UsageError("The key file cannot be read", on=f"{path}: {error.strerror}", hint="--in FILE") from None
    if not 0 < len(content) <= MAX_FILE:
        raise UsageError(f"A key has 1 to {MAX_FILE} bytes", on=f"{path}: {len(content)} bytes", hint="--in FILE")
    return content
