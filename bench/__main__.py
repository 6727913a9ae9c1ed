"""`make bench`: the main job on SQLite and on PostgreSQL with RabbitMQ, each figure beside its bare cost."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench import accepting, bare, collecting, draining, drawing, flood, growth, latency, memory
from bench.figures import Figure, read, table, write
from bench.sites import BenchSite, composed, embedded, production
from tests.kit.services import Services, drop_database, new_database

_RESULTS = Path("bench/results/latest.json")
_PICTURE = Path("docs/performance.svg")
_CLIENTS = (32, 128)
_CROWD = 16
"""How many tenants make the load beside which an exchange is measured."""
_LONGEST_EXCHANGE = 0.6
"""Seconds that one may take on average before the load is over."""


def main() -> None:
    """Measure, print a table, write bench/results/latest.json and docs/performance.svg."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--deposits", type=int, default=2000, help="how many deposits each rate is measured with")
    parser.add_argument("--exchanges", type=int, default=100, help="how many keys are handed over one after another")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each bare cost is measured")
    parser.add_argument(
        "--rows", type=int, default=10**7, help="how many rows the largest table of the growth part has"
    )
    parser.add_argument("--only", action="append", choices=sorted(_PARTS), help="only this part; may be repeated")
    parser.add_argument("--add", action="store_true", help="keep the figures of other parts that were measured before")
    options = parser.parse_args()
    chosen = options.only or list(_PARTS)
    with tempfile.TemporaryDirectory(prefix="keymailbox-bench-") as name, Services() as services:
        figures: list[Figure] = []
        for part in chosen:
            found = _PARTS[part](Path(name), services, options)
            print(table(found), flush=True)
            figures += found
    if options.add:
        new = {one.name for one in figures}
        figures = [*(one for one in read(_RESULTS) if one.name not in new), *figures]
    write(figures, _RESULTS)
    whole = options.add or not options.only
    if whole:
        drawing.draw(figures, _PICTURE)
    print(f"\nwritten to {_RESULTS}" + (f" and {_PICTURE}" if whole else ""))


def _sqlite(folder: Path, services: Services, options: argparse.Namespace) -> list[Figure]:
    insert = bare.sqlite_inserts(folder, options.seconds)
    with embedded(folder / "sqlite") as site:
        return _measured(site, insert, options, folder)


def _production(folder: Path, services: Services, options: argparse.Namespace) -> list[Figure]:
    with _database(services) as database:
        plain = database.replace("postgresql+psycopg://", "postgresql://")
        insert = bare.postgresql_inserts(plain, _CLIENTS[0], options.seconds)
    with production(folder / "production", services) as site:
        return _measured(site, insert, options, folder)


def _measured(site: BenchSite, insert: float, options: argparse.Namespace, folder: Path) -> list[Figure]:
    figures = _exchanged(site, insert, options, folder)
    full = next(one.value for one in figures if "32 clients" in one.name)
    return figures + _waited(site, options.exchanges, full)


def _waited(site: BenchSite, exchanges: int, full: float) -> list[Figure]:
    """Return how long a key takes with nothing besides, at half of the rate that was accepted, and at all of it.

    Many other tenants make the load, since one alone would be held back for the others; sender and recipient are
    agents on a stream.
    """
    figures = []
    crowd, crowded = [site.agent(f"umbrella-{number}/load") for number in range(_CROWD)], site.agent("hooli/load")
    for under, rate in (("with nothing besides", 0.0), ("at half load", full / 2), ("at full load", full)):
        place = under.replace(" ", "-")
        sender, recipient = site.agent(f"acme/{place}"), site.agent(f"globex/{place}")
        each = int(rate * exchanges * _LONGEST_EXCHANGE / _CROWD)
        loads = [accepting.single(one, crowded, each) for one in crowd] if rate else []
        requests = [request for together in zip(*loads, strict=True) for request in together]
        figures += latency.measure(
            site, sender, recipient, exchanges=exchanges, under=under, rate=rate, requests=requests
        )
    return figures


def _exchanged(site: BenchSite, insert: float, options: argparse.Namespace, folder: Path) -> list[Figure]:
    """Return the figures of the main job at one site: accepted, collected, polled, and the memory before and after."""
    count: int = options.deposits
    figures = [Figure(f"{site.name}, bare: durable inserts of 6 kB", insert, "1/s")]
    figures += memory.resident(site.name, site.processes(), "at the start")
    figures += [accepting.accepted(site, insert, count, clients) for clients in _CLIENTS]
    figures.append(accepting.accepted_in_batches(site, insert, count))
    total = count * (len(_CLIENTS) + 1)
    ids = collecting.await_available(site, total)
    bodies = composed(site.agent("acme/bench"), site.agent("globex/bench"), count)
    if site.installation is None:
        select = bare.sqlite_selects(folder, bodies, collecting.PAGE)
    else:
        select = bare.postgresql_selects(site.installation.libpq_url, bodies, collecting.PAGE)
    figures.append(collecting.collected(site, ids, select))
    with bare.empty_route() as url:
        empty = bare.answered(url, count, 8)
    figures.append(collecting.polled(site, empty, count, 8))
    return figures + memory.resident(site.name, site.processes(), "at the end")


def _workers(folder: Path, services: Services, options: argparse.Namespace) -> list[Figure]:
    count: int = options.deposits
    verifications = draining.bare_verifications()
    figures = list(verifications)
    with _database(services) as url:
        figures += draining.validation(folder / "validating", url, services.rabbitmq.url, count, verifications)
    figures += draining.embedded_validation(folder / "validating-embedded", count, verifications)
    with _database(services) as url:
        figures += draining.posts("PostgreSQL", folder / "posting", url, count)
    embedded_url = f"sqlite:///{folder / 'posts.sqlite'}"
    return figures + draining.posts("SQLite", folder / "posting-embedded", embedded_url, count)


def _growth(folder: Path, services: Services, options: argparse.Namespace) -> list[Figure]:
    sizes = [size for size in (10**5, 10**6, 10**7) if size <= options.rows]
    return growth.on_postgresql(sizes) + growth.on_sqlite(sizes)


@contextmanager
def _database(services: Services) -> Iterator[str]:
    database = new_database(services.postgres.url)
    try:
        yield database
    finally:
        drop_database(database)


_Part = Callable[[Path, Services, argparse.Namespace], list[Figure]]
_PARTS: Mapping[str, _Part] = {
    "sqlite": _sqlite,
    "production": _production,
    "workers": _workers,
    "flood": lambda folder, services, options: flood.measure(folder / "flooded", services),
    "growth": _growth,
}


if __name__ == "__main__":
    main()
