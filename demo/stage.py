"""The stage of the demonstration: a folder, real processes, and lines that a person can follow."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from rich.console import Console
from rich.markup import escape

_PATIENCE = 120.0
_STARTING = 120.0
_LONG_HEX = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{16,}\b")


class DemoError(Exception):
    """Something went wrong: what, on what, and what to do."""

    def __init__(self, what: str, *, on: str = "", hint: str) -> None:
        super().__init__(what)
        self.what = what
        self.on = on
        self.hint = hint


@dataclass(frozen=True)
class Result:
    """What a command printed, and how long it took in milliseconds."""

    out: str
    err: str
    ms: float
    code: int

    @property
    def json(self) -> Any:
        """The JSON on its standard output."""
        return json.loads(self.out)


@dataclass
class Stage:
    """Runs the programs of all parties, each with an environment of its own, and tells what happens."""

    folder: Path
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    server: subprocess.Popen[bytes] | None = None
    url: str = ""
    _steps: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Telling

    @contextmanager
    def step(self, who: str, what: str) -> Any:
        """One step: its number, who does it, what is done; the time it took is told at its end."""
        self._steps += 1
        self.console.print(f"\n[bold]{self._steps:2}. [cyan]{escape(who)}[/cyan] {escape(what)}[/bold]")
        began = time.perf_counter()
        yield
        self.console.print(f"      [green]✓[/green] [dim]{(time.perf_counter() - began) * 1000:,.0f} ms[/dim]")

    def tell(self, what: str, value: object = "") -> None:
        """Tell one fact; long hexadecimal numbers are shortened."""
        self.console.print(f"      [dim]{escape(what):<22}[/dim] {escape(_short(str(value)))}")

    # Doing

    def kmb(self, who: str, *arguments: str, fine: Sequence[int] = (0,)) -> Result:
        """Run the tenant's command line as ``who``, in a home of its own."""
        return self.run(
            _program("kmb", "pki.tenant.cli"), arguments, home={"KMB_HOME": str(self.folder / who)}, fine=fine
        )

    def operator(self, *arguments: str) -> Result:
        """Run the operator's command line on the server's home."""
        return self.run(
            _program("kmb-server", "workers.cli"),
            (*arguments, "--home", str(self.folder / "server")),
            home={"KMB_PUBLIC_URL": self.url},
        )

    def run(
        self,
        program: Sequence[str],
        arguments: Sequence[str],
        *,
        home: Mapping[str, str] | None = None,
        fine: Sequence[int] = (0,),
    ) -> Result:
        """Run a program to its end; any exit code but the ``fine`` ones is the end of the demonstration."""
        shown = shlex.join([Path(program[-1]).name.replace("pki.tenant.cli", "kmb"), *arguments])
        shown = shown.replace(str(self.folder), "…").replace("workers.cli", "kmb-server")
        self.console.print(f"      [dim]$ {escape(_short(shown))}[/dim]")
        began = time.perf_counter()
        try:
            done = subprocess.run(  # noqa: S603  our own programs
                [*program, *arguments],
                capture_output=True,
                text=True,
                timeout=_PATIENCE,
                env=_environment(home or {}),
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise DemoError(f"No end after {_PATIENCE:.0f} s", on=shown, hint=self._look()) from None
        except OSError as error:
            raise DemoError(
                "The program cannot be run", on=f"{program[0]}: {error.strerror}", hint="make venv"
            ) from None
        ms = (time.perf_counter() - began) * 1000
        if done.returncode not in fine:
            raise DemoError(f"It ended with {done.returncode}", on=f"{shown}\n{done.stderr.strip()}", hint=self._look())
        return Result(done.stdout, done.stderr, ms, done.returncode)

    def start(self) -> None:
        """Start the embedded server on a free port, as a process of its own, and wait until it is ready."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        program = [*_program("kmb-server", "workers.cli"), "dev", "--home", str(self.folder / "server")]
        with (self.folder / "server.log").open("wb") as log:
            self.server = subprocess.Popen(  # noqa: S603  our own program
                [*program, "--port", str(port)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=_environment({}),
            )
        deadline = time.monotonic() + _STARTING
        opener = build_opener(ProxyHandler({}))
        while time.monotonic() < deadline:
            if self.server.poll() is not None:
                raise DemoError("The server ended at once", on=self._end_of_log(), hint=self._look())
            try:
                with opener.open(f"{self.url}/readyz", timeout=2):
                    return
            except (URLError, OSError):
                time.sleep(0.05)
        raise DemoError(f"The server is not ready after {_STARTING:.0f} s", on=self._end_of_log(), hint=self._look())

    def stop(self) -> None:
        """Stop the server, and wait for it."""
        if self.server is None or self.server.poll() is not None:
            return
        self.server.terminate()
        try:
            self.server.wait(15)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait(15)

    def _look(self) -> str:
        return f"look into {self.folder} (server.log first), then run it again: make demo"

    def _end_of_log(self) -> str:
        lines = (self.folder / "server.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-12:]) or "server.log is empty"


def new_folder(parent: Path) -> Path:
    """Make a fresh folder named for the time, for the owner only."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    for attempt in range(100):
        folder = parent / (f"demo-run-{stamp}" + (f"-{attempt}" if attempt else ""))
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError as error:
            hint = "run it in a folder that you can write to"
            raise DemoError("No folder can be made", on=f"{folder}: {error.strerror}", hint=hint) from None
        return folder
    raise DemoError("No folder can be made", on=str(parent), hint="remove old demo-run-* folders")


def _short(text: str) -> str:
    return _LONG_HEX.sub(r"\1…", text)


def _program(name: str, module: str) -> list[str]:
    """Return the installed command beside this Python, or the module when it is not installed."""
    script = Path(sys.executable).with_name(name)
    return [str(script)] if script.exists() else [sys.executable, "-m", module]


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """Nothing of the caller's own settings reaches the parties."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KMB_", "COVERAGE_"))}
    return kept | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "NO_COLOR": "1"} | dict(more)
