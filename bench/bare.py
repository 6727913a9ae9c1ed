"""The bare costs: an ML-DSA-65 verification, and a durable insert of six kilobytes."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

_BODY = bytes(6000)


def verifications(seconds: float) -> float:
    """Return ML-DSA-65 verifications a second on one core."""
    key = MLDSA65PrivateKey.generate()
    message = bytes(500)
    signature, public = key.sign(message), key.public_key()
    return _rate(lambda: public.verify(signature, message), seconds)


def sqlite_inserts(folder: Path, seconds: float) -> float:
    """Return durable inserts a second, one a commit, one writer (WAL, synchronous=FULL)."""
    connection = sqlite3.connect(folder / "bare.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE bare (id INTEGER PRIMARY KEY, body BLOB)")
    try:
        return _rate(lambda: connection.execute("INSERT INTO bare (body) VALUES (?)", (_BODY,)), seconds)
    finally:
        connection.close()


def postgresql_inserts(url: str, clients: int, seconds: float) -> float:
    """Return durable inserts a second, one a commit, from ``clients`` connections."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS bare (id bigserial PRIMARY KEY, body bytea)")
    counts = [0] * clients
    end = time.perf_counter() + seconds

    def insert(number: int) -> None:
        with psycopg.connect(url, autocommit=True) as own:
            while time.perf_counter() < end:
                own.execute("INSERT INTO bare (body) VALUES (%s)", (_BODY,))
                counts[number] += 1

    threads = [threading.Thread(target=insert, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def _rate(work: Callable[[], object], seconds: float) -> float:
    work()
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        work()
        count += 1
    return count / spent
