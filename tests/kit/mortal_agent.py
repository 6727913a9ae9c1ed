"""A real `kmb agent run`, in a process of its own that may be killed (SIGKILL) at a chosen step of its work."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.forkserver import set_forkserver_preload
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pki.tenant import cli, disk
from pki.tenant.holders.file import FileHolder
from pki.tenant.records.database import Database
from pki.tenant.wire import Wire
from tests.kit.killing import Death, Step

KINDS = ("store", "journal", "call", "disk")
"""What is counted: keys stored in the holder, the journal's commits, calls to the server, files put in their place."""


def agent(home: Path, log: Path, step: Step | None = None, arguments: tuple[str, ...] = ()) -> BaseProcess:
    """Start the agent of the tenant whose home this is; with a step, it dies there."""
    # A fork of a fresh process that has imported everything: quick, and without threads or connections of ours.
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_run, args=(home, log, step, arguments), daemon=True)
    process.start()
    return process


def _run(home: Path, log: Path, step: Step | None, arguments: tuple[str, ...]) -> None:
    os.environ["KMB_HOME"] = str(home)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    if step is not None:
        _mortal(Death(*step))
    sys.argv = ["kmb", "agent", "run", "--log-format", "json", *arguments]
    cli.main()


def _mortal(death: Death) -> None:
    def around(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            with death.around(kind):
                return call(*given, **named)

        return counted

    write = Database.write

    @contextmanager
    def counted_write(self: Database) -> Iterator[Any]:
        with death.around("journal"), write(self) as db:
            yield db

    FileHolder.store_key = around("store", FileHolder.store_key)  # type: ignore[method-assign]
    Database.write = counted_write  # type: ignore[method-assign]
    Wire._exchange = around("call", Wire._exchange)  # type: ignore[method-assign]
    os.link = around("disk", os.link)  # type: ignore[assignment]
    assert disk.os.link is os.link


set_forkserver_preload(["tests.kit.mortal_agent"])
