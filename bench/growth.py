"""What a poll and a deposit cost when much has accumulated, beside the same with little: `python -m bench.growth`."""

from __future__ import annotations

import argparse
import hashlib
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Connection, Engine

from bench.figures import Figure, table, within
from pki.core.ids import DepositId, KeyId
from pki.core.tenants import Address, parse_address
from pki.server.adapters.linter import PkiLinter
from pki.server.adapters.profiles import FileProfiles
from pki.server.facts import Caller, Instance, NewDeposit
from pki.server.services import deposits, mailbox, notices, retention
from pki.server.services.deps import Deps
from pki.server.settings import load_settings
from pki.server.store import tenants
from pki.server.store.engine import Store
from tests.kit.services import Services, drop_database, new_database

LITTLE = 10_000
GOAL = 1.2
_BEGIN = datetime(2030, 1, 7, tzinfo=UTC)
_STEP = timedelta(milliseconds=250)
"""Between deposits: ten million in 29 days, all of whose bodies are still there."""
_PARTIES = 20
"""Senders, and as many recipients: a mailbox of ten thousand deposits has 500, so that every page is full."""
_PAGE = 100
_CHUNK = 250_000
_BODY = 64
_BATCH = 10


class Clock:
    """Shows when the last deposit came."""

    def __init__(self) -> None:
        self.moment = _BEGIN

    def now(self) -> datetime:
        """Return the time, a little later each time."""
        self.moment += timedelta(microseconds=10)
        return self.moment


class Filled:
    """A database with so many deposits and what belongs to them: short bodies and receipts, everything else in form."""

    def __init__(self, url: str, home: Path) -> None:
        self.url = url
        self.rows = 0
        self.every = 1
        """In one of so many rounds, of those that were filled in last, deposits have all that belongs to them."""
        self.clock = Clock()
        store = Store(url)
        store.migrate()
        settings = load_settings(
            home=home,
            database_url=url,
            **{
                f"limit_{what}": 10**9
                for what in ("sender_daily", "sender_deposits", "mailbox_deposits", "share_deposits", "pair_deposits")
            },
        )
        self.deps = Deps(store, settings, self.clock, PkiLinter(), FileProfiles(home))
        retention.prepare(self.deps)
        self.engine = _bulk_engine(url)
        with store.unit() as unit:
            for name in (*_names("s"), *_names("r")):
                address = parse_address(f"{name}/main")
                tenants.insert_tenant(unit, address.tenant, _BEGIN)
                tenants.insert_instance(unit, _instance(address))

    def fill(self, rows: int, share: float = 1.0) -> None:
        """Bring it to so many deposits; a ``share`` of the new ones has receipts, events and idempotency keys."""
        self.every = round(1 / share)
        dialect = self.engine.dialect.name
        indexes = _without_indexes(self.engine)
        while self.rows < rows:
            upto = min(rows, self.rows + _CHUNK)
            with self.engine.begin() as connection:
                if dialect == "postgresql":
                    # What is made here fits together: nothing has to be looked up for each row.
                    connection.execute(text("SET LOCAL session_replication_role = replica"))
                for statement in _statements(dialect):
                    connection.execute(text(statement), _values(dialect, self.rows, upto, self.every))
            self.rows = upto
            self.clock.moment = _BEGIN + upto * _STEP
            retention.prepare(self.deps)
        with self.engine.begin() as connection:
            if dialect == "postgresql":
                connection.execute(text("SET LOCAL maintenance_work_mem = '256MB'"))
            for statement in indexes:
                connection.execute(text(statement.replace(":", "\\:")))
        with self.engine.begin() as connection:
            _count_mailboxes(connection, rows)
        _settle_down(self.engine)

    def poll(self) -> None:
        """Read the newest page of a mailbox, and one from somewhere in it."""
        address = parse_address(f"r{secrets.randbelow(_PARTIES):02}/main")
        last = self.rows // _PARTIES
        for after in (last - _PAGE, secrets.randbelow(last - _PAGE)):
            assert len(mailbox.page(self.deps, Caller(_instance(address)), address, after, _PAGE)) == _PAGE

    def follow(self) -> None:
        """Read the newest fifty events of an address."""
        address = parse_address(f"r{secrets.randbelow(_PARTIES):02}/main")
        after = self.rows - 50 * _PARTIES * self.every
        assert len(notices.events(self.deps, Caller(_instance(address)), after, _PAGE)) == 50

    def insert(self, count: int = 1) -> None:
        """Store deposits as one commit of the API does, once they are read."""
        now = self.clock.now()
        arrivals = [_arrival(now) for _ in range(count)]
        (answer,) = deposits.accept_all(self.deps, [deposits.Handed(arrivals)])
        assert not isinstance(answer, Exception) and not any(isinstance(one, Exception) for one in answer), answer

    def insert_many(self) -> None:
        """Store ten at once."""
        self.insert(_BATCH)

    def close(self) -> None:
        """Let go of the database."""
        self.engine.dispose()
        self.deps.store.close()


_WORK: tuple[tuple[str, Callable[[Filled], None]], ...] = (
    ("two pages of a mailbox", Filled.poll),
    ("a page of events", Filled.follow),
    ("one deposit stored", Filled.insert),
    (f"{_BATCH} deposits stored together", Filled.insert_many),
)


def measure(where: str, little: Filled, much: Filled, samples: int) -> list[Figure]:
    """Return what each piece of work takes with much, beside little: the medians of samples taken in turn."""
    figures = []
    for title, work in _WORK:
        times: dict[Filled, list[float]] = {little: [], much: []}
        for number in range(samples + samples // 5):
            for place in (little, much):
                start = time.perf_counter()
                work(place)
                # The first ones warm up.
                if number >= samples // 5:
                    times[place].append((time.perf_counter() - start) * 1000)
        floor, value = (statistics.median(times[place]) for place in (little, much))
        name = f"{where}, {much.rows:,} deposits: {title}"
        figures.append(within(name, value, "ms", floor, value / floor, GOAL))
    return figures


def growth(url: Callable[[], str], where: str, sizes: list[int], samples: int) -> list[Figure]:
    """Fill one database to each size in turn and measure it beside one with ten thousand; ``url`` makes databases."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="keymailbox-growth-") as name:
        little, much = (Filled(url(), Path(name)) for _ in range(2))
        try:
            little.fill(LITTLE)
            for size in sizes:
                start = time.perf_counter()
                # A tenth of what belongs to ten million deposits is enough to see its cost grow, and fits on a disk.
                much.fill(size, share=1.0 if size <= 1_000_000 else 0.1)
                # What was measured before has filled tables that were empty when they were looked at.
                _settle_down(little.engine)
                print(f"{where}: filled to {size:,} in {time.perf_counter() - start:.0f} s", flush=True)
                figures += measure(where, little, much, samples)
        finally:
            little.close()
            much.close()
    return figures


def on_postgresql(sizes: list[int], samples: int = 300) -> list[Figure]:
    """Measure on PostgreSQL."""
    with Services() as services, _databases(services.postgres.url) as url:
        return growth(url, "PostgreSQL", sizes, samples)


def on_sqlite(sizes: list[int], samples: int = 300) -> list[Figure]:
    """Measure on SQLite."""
    with tempfile.TemporaryDirectory(prefix="keymailbox-growth-") as name:
        return growth(lambda: f"sqlite:///{name}/{secrets.token_hex(4)}.sqlite", "SQLite", sizes, samples)


@contextmanager
def _databases(admin: str) -> Iterator[Callable[[], str]]:
    made: list[str] = []

    def make() -> str:
        made.append(new_database(admin))
        return made[-1]

    try:
        yield make
    finally:
        for url in made:
            drop_database(url)


def _names(letter: str) -> list[str]:
    return [f"{letter}{number:02}" for number in range(_PARTIES)]


def _instance(address: Address) -> Instance:
    access_key = hashlib.sha256(str(address).encode()).digest()
    return Instance(address, address.tenant, access_key, access_key, access_key.hex()[:32], _BEGIN)


def _arrival(now: datetime) -> deposits.Arrival:
    body = secrets.token_bytes(_BODY)
    deposit = NewDeposit(
        id=DepositId(secrets.token_hex(16)),
        sender=parse_address(f"s{secrets.randbelow(_PARTIES):02}/main"),
        recipient=parse_address(f"r{secrets.randbelow(_PARTIES):02}/main"),
        body=body,
        body_sha256=hashlib.sha256(body).hexdigest(),
        body_sha512=hashlib.sha512(body).digest(),
        size=_BODY,
        key_id=KeyId("orders-2030"),
        key_version=1,
        purpose="bench",
        signing_time=now,
        received_at=now,
        expires_at=now + timedelta(days=30),
        recipient_ski=secrets.token_hex(20),
        sender_ski="bb" * 20,
    )
    return deposits.Arrival(deposit, secrets.token_hex(16), deposit.body_sha256, None)


def _bulk_engine(url: str) -> Engine:
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def hurry(connection: object, _record: object) -> None:
            for pragma in ("journal_mode = WAL", "synchronous = OFF", "cache_size = -400000"):
                connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]  # sqlite3's own

    return engine


def _without_indexes(engine: Engine) -> list[str]:
    """Drop the indexes that keep no rule, and return how to make them again: at once is quicker than row by row."""
    found = (
        "SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) FROM pg_index i"
        " JOIN pg_class c ON c.oid = i.indrelid WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'"
        " AND NOT i.indisunique AND NOT c.relispartition"
    )
    if engine.dialect.name == "sqlite":
        found = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql NOT LIKE 'CREATE UNIQUE %'"
    with engine.begin() as connection:
        indexes = connection.execute(text(found)).all()
        for name, _ in indexes:
            connection.execute(text(f"DROP INDEX {name}"))
    return [definition for _, definition in indexes]


def _values(dialect: str, start: int, end: int, every: int) -> dict[str, object]:
    microseconds = int(_BEGIN.timestamp()) * 1_000_000
    values: dict[str, object] = {
        "start": start,
        "end": end,
        "parties": _PARTIES,
        "every": every,
        "begin": _BEGIN if dialect == "postgresql" else microseconds,
        "step": _STEP if dialect == "postgresql" else _STEP // timedelta(microseconds=1),
    }
    return values


def _statements(dialect: str) -> list[str]:
    """Return what fills the tables from number :start until before :end, all from the numbers alone."""
    if dialect == "postgresql":
        numbers = "generate_series(:start, :end - 1) AS n(i)"
        name, digest = "md5('{0}' || i)", "sha256(i::text::bytea)"
        week = "(extract(epoch FROM CAST(:begin AS timestamptz) + i * CAST(:step AS interval))::bigint / 86400 + 3) / 7"
        moment, days = "CAST(:begin AS timestamptz) + i * CAST(:step AS interval)", "interval '{0} days'"
        party, blob = "'{0}' || lpad(({1})::text, 2, '0') || '/main'", "decode(repeat('ab', 64), 'hex')"
        bytes32, hexed, empty = digest, f"encode({digest}, 'hex')", "CAST('' AS bytea)"
    else:
        numbers = (
            "(WITH RECURSIVE c(i) AS (SELECT :start UNION ALL SELECT i + 1 FROM c WHERE i + 1 < :end) SELECT i FROM c)"
        )
        # Spread like a digest: multiplication by odd numbers, and enough digits.
        spread = "printf('%016x%016x', (i * 2654435761) & 281474976710655, i)"
        name, hexed = f"'{{0}}' || substr({spread}, 5, 31)", f"{spread} || {spread}"
        week = "((:begin + i * :step) / 1000000 / 86400 + 3) / 7"
        moment, days = ":begin + i * :step", "{0} * 86400000000"
        party, blob, bytes32, empty = "printf('{0}%02d/main', {1})", "zeroblob(64)", "zeroblob(32)", "zeroblob(0)"
    sender = party.format("s", "(i / :parties + i) % :parties")
    recipient = party.format("r", "i % :parties")
    state = (
        "CASE WHEN i % 100 = 7 THEN 'collected' WHEN i % 100 = 8 THEN 'available' WHEN i % 100 = 9 THEN 'rejected'"
        " ELSE 'acknowledged' END"
    )
    settled = f"CASE WHEN i % 100 IN (7, 8) THEN NULL ELSE {moment} END"
    place = "i / :parties + 1"
    where = f"FROM {numbers}"
    # Whole rounds, so that everybody has some.
    part = "WHERE i / :parties % :every = 0"
    return [
        "INSERT INTO deposits (id, sender, recipient, state, sequence, body, body_sha256, body_sha512, size, key_id,"
        " key_version, purpose, signing_time, received_at, expires_at, validated_at, collected_at, settled_at,"
        f" recipient_ski, sender_ski) SELECT {name.format('d')}, {sender}, {recipient}, {state}, {place}, {empty},"
        f" {hexed}, {blob}, 64, 'orders-2030', 1, 'bench', {moment}, {moment}, {moment} + {days.format(30)}, {moment},"
        f" {moment}, {settled}, {hexed}, 'bb' {where}",
        f"INSERT INTO bodies (deposit_id, week, body) SELECT {name.format('d')}, {week}, {blob} {where}",
        "INSERT INTO receipts (deposit_id, sender, number, kind, der, signed_at, stored_at)"
        f" SELECT {name.format('d')}, {sender}, {place}, 'receipt', {blob}, {moment}, {moment} {where} {part}",
        "INSERT INTO events (id, type, subject, time, data, position, chain) SELECT"
        f" {name.format('e')}, 'keymailbox.deposit.acknowledged', {name.format('d')}, {moment},"
        f""" '{{"key_id":"orders-2030","key_version": 1}}', i + 1, {bytes32} {where} {part}""",
        "INSERT INTO event_audience (event_id, address, rank, position)"
        f" SELECT {name.format('e')}, {sender}, 0, i + 1 {where} {part}",
        "INSERT INTO event_audience (event_id, address, rank, position)"
        f" SELECT {name.format('e')}, {recipient}, 1, i + 1 {where} {part}",
        "INSERT INTO idempotency (sender, key, body_sha256, deposit_id, created_at)"
        f" SELECT {sender}, {name.format('k')}, {hexed}, {name.format('d')}, {moment} {where} {part}",
    ]


def _count_mailboxes(connection: Connection, rows: int) -> None:
    last = rows // _PARTIES
    for name in (*_names("s"), *_names("r")):
        connection.execute(
            text(
                "INSERT INTO mailboxes (address, last_sequence, last_receipt) VALUES (:address, :last, :last)"
                " ON CONFLICT (address) DO UPDATE SET last_sequence = :last, last_receipt = :last"
            ),
            {"address": f"{name}/main", "last": last},
        )


def _settle_down(engine: Engine) -> None:
    """Let the database do what it would have done meanwhile: statistics, visibility, and a checkpoint."""
    statements = ["VACUUM ANALYZE", "CHECKPOINT"] if engine.dialect.name == "postgresql" else ["ANALYZE"]
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.execute(text(statement))


def main() -> None:
    """Measure and print a table; what was made is removed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="100000,1000000", help="how many deposits, with commas between")
    parser.add_argument("--on", default="postgresql,sqlite", help="postgresql, sqlite or both")
    parser.add_argument("--samples", type=int, default=300)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    figures = []
    for name, run in (("postgresql", on_postgresql), ("sqlite", on_sqlite)):
        if name in options.on.split(","):
            figures += run(sizes, options.samples)
    print(table(figures))


if __name__ == "__main__":
    main()
