"""Towns on both databases, with a real broker."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from pki.server.store.engine import Store
from tests.crash.directory import BRIEF, ENDING
from tests.kit.processes import forget_broker
from tests.kit.services import Services, drop_database, new_database
from tests.kit.town import Town, town


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """Database and broker, found or started."""
    with Services() as found:
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, services: Services, tmp_path: Path) -> Iterator[str]:
    """A migrated database without rows."""
    with contextlib.ExitStack() as leaving:
        url = f"sqlite:///{tmp_path}/keymailbox.sqlite"
        if request.param == "postgresql":
            url = new_database(services.postgres.url)
            leaving.callback(drop_database, url)
        store = Store(url)
        store.migrate()
        store.close()
        yield url


@pytest.fixture
def place(request: pytest.FixtureRequest, database_url: str, services: Services, tmp_path: Path) -> Iterator[Town]:
    """A town with two instances that may send to each other."""
    ending = request.node.callspec.params.get("name") in ENDING
    settings = {"certificate_lifetime": BRIEF} if ending else {}
    prefix = f"kmb-crash-{secrets.token_hex(4)}"
    try:
        with town(database_url, tmp_path / "home", services.rabbitmq.url, prefix, **settings) as opened:
            yield opened
    finally:
        forget_broker(services.rabbitmq.url, prefix)
