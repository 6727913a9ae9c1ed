"""A PostgreSQL that stands still is given up: its own time-outs stand still with it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from pki.core.errors import UnavailableError
from pki.server.store import link
from pki.server.store.engine import Store
from pki.server.store.link import without_limit
from tests.contracts.conftest import Databases
from tests.kit.processes import proxy_to, through

_BOUND = 60.0


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may say nothing for three seconds."""
    monkeypatch.setattr(link, "_SILENCE_SECONDS", 3.0)


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    """A PostgreSQL database of this test's."""
    made = databases.migrated("postgresql")
    yield made
    databases.give_back(made)


def ask(store: Store, statement: str, *, unlimited: bool = False) -> object:
    """Return what a statement answers."""
    with store.unit() as unit:
        if unlimited:
            without_limit(unit.connection)
        return unit.connection.execute(text(statement)).scalar_one()


@pytest.mark.usefixtures("silence")
def test_a_server_that_says_nothing_is_away(url: str) -> None:
    """In the midst of a transaction, too; and when it goes on, so does the store, on other connections."""
    with ThreadPoolExecutor(1) as pool, proxy_to(url) as proxy:
        store = Store(through(url, proxy.port))
        assert ask(store, "SELECT 1") == 1
        proxy.hold()
        with pytest.raises(UnavailableError):
            pool.submit(ask, store, "SELECT 1").result(_BOUND)
        proxy.restore()
        assert ask(store, "SELECT 2") == 2

        def halfway() -> None:
            with store.unit() as unit:
                unit.connection.execute(text("SELECT 1"))
                proxy.hold()

        with pytest.raises(UnavailableError):
            pool.submit(halfway).result(_BOUND)
        proxy.restore()
        assert ask(store, "SELECT 3") == 3
        store.close()


@pytest.mark.usefixtures("silence")
def test_what_may_take_long_is_waited_for(url: str) -> None:
    """Only while its transaction lasts: the next one on that connection may not."""
    store = Store(url)
    assert ask(store, "SELECT 1 FROM pg_sleep(5)", unlimited=True) == 1
    with pytest.raises(UnavailableError):
        ask(store, "SELECT 1 FROM pg_sleep(20)")
    store.close()
