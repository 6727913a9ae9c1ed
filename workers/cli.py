"""kmb-server with the commands that start workers: the console script begins on the top floor."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, NoReturn

import typer

from pki.core.errors import UsageError
from pki.server.cli import app, run
from pki.server.commands.shared import Home, MetricsPort, settings_of
from pki.server.stopping import STOP_SECONDS, end_within

_KEYLESS = "validate,notify,rotate,report"
_LOOK_SECONDS = 0.05
"""How often to look whether a signal has come: what a stop waits for at most."""


@app.command()
def dev(
    home: Home = None,
    port: Annotated[int | None, typer.Option(help="The loopback port, 0 for any.", show_default="8080")] = None,
) -> None:
    """Serve for development: SQLite, the worker inside, loopback only; makes its home when there is none.

    Example: kmb-server dev --home ./var/dev --port 8080
    """
    from workers import development

    development.serve(home, port)


@app.command()
def worker(
    queues: Annotated[
        str, typer.Option(help="The queues, with commas between; issue needs the CA's passphrase.")
    ] = _KEYLESS,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="How many processes work side by side.")] = 1,
    home: Home = None,
    metrics_port: MetricsPort = None,
) -> None:
    """Work off what requests have left in the outbox, woken by the broker.

    Example: kmb-server worker --queues validate
    """
    from workers import worker as process

    code = process.run(settings_of(home, metrics_port=metrics_port), process.parse_queues(queues), concurrency)
    if code:
        raise typer.Exit(code)


@app.command()
def relay(home: Home = None, metrics_port: MetricsPort = None) -> None:
    """Wake the workers: hears the database's bell, looks into the outbox, publishes to the broker.

    Example: kmb-server relay
    """
    from pki.server import bootstrap
    from workers.app import make_app, transport
    from workers.relay import Relay, WakeUps

    settings = settings_of(home, metrics_port=metrics_port)
    if transport(settings) == "memory":
        raise UsageError("On memory:// nobody would hear", on="KMB_BROKER_URL", hint="kmb-server dev")
    bootstrap.configure_logging(settings)
    deps = bootstrap.build(settings)
    work = Relay(deps, WakeUps(make_app(settings), settings))
    try:
        # The figures of the database are told once for all processes: here, by the one that looks into it anyway.
        _until_signal(work.run, work.stop, bootstrap.watched(deps, "relay", work.ready, site=True))
    finally:
        deps.store.close()


@app.command()
def beat(home: Home = None, metrics_port: MetricsPort = None) -> None:
    """Write the ticks: expiry, revocation lists and the like, each once however many beats run.

    Example: kmb-server beat
    """
    from pki.server import bootstrap
    from workers.beat import Beat

    settings = settings_of(home, metrics_port=metrics_port)
    bootstrap.configure_logging(settings)
    deps = bootstrap.build(settings)
    work = Beat(deps)
    try:
        _until_signal(work.run, work.stop, bootstrap.watched(deps, "beat", work.ready))
    finally:
        deps.store.close()


def main() -> NoReturn:
    """Run ``kmb-server``."""
    run(app)


def _until_signal(work: Callable[[], None], stop: Callable[[], None], watched: AbstractContextManager[None]) -> None:
    """Work in a thread, ``watched``, until SIGTERM or SIGINT, and end at once at a second one.

    The handler takes no lock: Python calls it in this thread, whose work is in another. Signals are not blocked and
    waited for: one that is blocked here goes to any thread that was there before, and ends the process; and
    `signal.sigtimedwait` returns one that never came when the process was stopped and goes on.
    """
    from concurrent.futures import ThreadPoolExecutor

    came: list[int] = []

    def told(number: int, _frame: object) -> None:
        came.append(number)
        if len(came) > 1:
            # Asked twice: what is under way is in the database, and is taken up by the next.
            os._exit(1)
        end_within(STOP_SECONDS)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, told)
    # Who can be asked whether it lives can be asked to stop.
    with watched, ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        while not working.done() and not came:
            time.sleep(_LOOK_SECONDS)
        stop()
        # Not at once for its result: a signal that comes while the process is stopped does not break off that wait.
        while not working.done():
            time.sleep(_LOOK_SECONDS)
        working.result()


if __name__ == "__main__":
    main()
