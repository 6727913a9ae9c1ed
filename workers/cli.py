"""kmb-server with the commands that start workers: the console script begins on the top floor."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from pki.core.errors import UsageError
from pki.server.cli import Home, app, run, settings_of

_KEYLESS = "validate,notify,rotate,report"


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
) -> None:
    """Work off what requests have left in the outbox, woken by the broker.

    Example: kmb-server worker --queues validate,notify,rotate,report
    """
    from workers import worker as process

    code = process.run(settings_of(home), process.parse_queues(queues), concurrency)
    if code:
        raise typer.Exit(code)


@app.command()
def relay(home: Home = None) -> None:
    """Wake the workers: hears the database's bell, looks into the outbox, publishes to the broker.

    Example: kmb-server relay
    """
    from pki.server import bootstrap
    from workers.app import make_app, transport
    from workers.relay import Relay, WakeUps

    settings = settings_of(home)
    if transport(settings) == "memory":
        raise UsageError("On memory:// nobody would hear", on="KMB_BROKER_URL", hint="kmb-server dev")
    bootstrap.configure_logging(settings)
    deps = bootstrap.build(settings)
    work = Relay(deps, WakeUps(make_app(settings), settings))
    try:
        _until_signal(work.run, work.stop)
    finally:
        deps.store.close()


@app.command()
def beat(home: Home = None) -> None:
    """Write the ticks: expiry, revocation lists and the like, each once however many beats run.

    Example: kmb-server beat
    """
    from pki.server import bootstrap
    from workers.beat import Beat

    settings = settings_of(home)
    bootstrap.configure_logging(settings)
    deps = bootstrap.build(settings)
    work = Beat(deps)
    try:
        _until_signal(work.run, work.stop)
    finally:
        deps.store.close()


def main() -> NoReturn:
    """Run ``kmb-server``."""
    run(app)


def _until_signal(work: Callable[[], None], stop: Callable[[], None]) -> None:
    """Work in a thread until SIGTERM or SIGINT; a handler in the working thread could wait for its own lock."""
    from concurrent.futures import ThreadPoolExecutor

    asked = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, asked)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        while not working.done() and signal.sigtimedwait(asked, 1.0) is None:
            pass
        stop()
        working.result()


if __name__ == "__main__":
    main()
