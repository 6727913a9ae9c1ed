"""Contract of bad days: the database is away and comes back, and what was said stays true."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import create_engine, text

from pki.core.tenants import parse_address
from pki.server import metrics
from pki.server.services import doctor
from pki.server.services.metrics import Figures, scrape
from pki.server.store import engine, schema
from pki.server.store.engine import Store
from tests.contracts.conftest import Databases
from tests.kit.processes import proxy_to, through
from tests.kit.proxy import TcpProxy
from tests.kit.site import Homes, Instance, Site, code

pytest_plugins = ["tests.kit.api_fixtures"]


@pytest.fixture
def cable(databases: Databases) -> Iterator[tuple[TcpProxy, str]]:
    """A PostgreSQL database behind a cable that can be pulled, and its URL."""
    direct = databases.migrated("postgresql")
    with proxy_to(direct) as proxy:
        yield proxy, through(direct, proxy.port)
    databases.drop(direct)


def test_the_database_goes_and_comes_back(homes: Homes, cable: tuple[TcpProxy, str]) -> None:
    """While it is away every answer is 503 with Retry-After; afterwards the same requests succeed, once."""
    proxy, url = cable
    with Site(homes.new(), url) as site:
        acme, globex = site.instance("acme/eu-west"), site.instance("globex/main")
        deposit_id, body = acme.compose(globex)
        proxy.cut()
        acts: list[Callable[[], httpx2.Response]] = [
            lambda: acme.deposit(body, "key-1"),
            lambda: acme.get("/v1/sent"),
            lambda: site.http.get("/readyz"),
            lambda: site.http.get("/v1/crl"),
        ]
        for act in acts:
            answer = act()
            assert code(answer) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) > 0
        assert site.http.get("/livez").status_code == 200
        assert "keymailbox_database_up 0.0" in figures(site)
        proxy.restore()
        deadline = time.monotonic() + 60
        while site.http.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert {acme.deposit(body, "key-1").json()["id"] for _ in range(2)} == {deposit_id}
        assert "keymailbox_database_up 1.0" in figures(site)
        site.work()
        assert globex.get(globex.mailbox).json()["next"] == 1


def test_who_waits_survives_the_outage(homes: Homes, cable: tuple[TcpProxy, str]) -> None:
    """A long poll that meets the outage is told to come again; the next one hears of new mail."""
    proxy, url = cable
    with Site(homes.new(), url) as site:
        acme, globex = site.instance("acme/eu-west"), site.instance("globex/main")
        proxy.cut()
        assert globex.get(f"{globex.mailbox}?wait=5").status_code == 503
        proxy.restore()
        deadline = time.monotonic() + 60
        site.deps.store.bell.connected(30)
        deposit_id, body = acme.compose(globex)
        while acme.deposit(body).status_code == 503:
            assert time.monotonic() < deadline
        site.work()
        found = globex.get(f"{globex.mailbox}?wait=5").json()["items"]
        assert [item["id"] for item in found] == [deposit_id]


def test_a_locked_database_is_an_outage(homes: Homes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who holds SQLite's lock makes writers wait, then say 503; readers go on."""
    monkeypatch.setattr(engine, "_WAIT_SECONDS", 2)
    file = tmp_path / "locked.sqlite"
    store = Store(f"sqlite:///{file}")
    store.migrate()
    store.close()
    with Site(homes.new(), f"sqlite:///{file}") as site:
        acme = Instance(site, parse_address("acme/eu-west"))
        assert acme.enrol().status_code == 201
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE").close()
        try:
            assert code(acme.get("/v1/sent")) == (503, "unavailable")
            assert site.http.get("/readyz").status_code == 200
        finally:
            other.execute("ROLLBACK").close()
            other.close()
        assert acme.get("/v1/sent").status_code == 200


def test_a_database_without_schema_is_not_ready(homes: Homes, databases: Databases, dialect: str) -> None:
    """Before `kmb-server migrate` the server lives and is not ready, and says what to do."""
    url = databases.empty(dialect)
    with Site(homes.new(), url) as site:
        assert site.http.get("/livez").json() == {"status": "ok"}
        answer = site.http.get("/readyz")
        assert code(answer) == (503, "unavailable")
        assert answer.json()["hint"] == "kmb-server migrate"
        assert "keymailbox_database_up 0.0" in figures(site)
        site.deps.store.migrate()
        assert site.http.get("/readyz").json() == {"status": "ok"}
    databases.drop(url)


def test_an_earlier_release_s_database_is_not_ready(homes: Homes, databases: Databases, dialect: str) -> None:
    """After an update the server waits for `kmb-server migrate`; one that is older than its database works on."""
    url = databases.empty(dialect)
    engine = create_engine(url)
    with engine.connect() as connection, connection.begin():
        schema.upgrade(connection, "0001")
    with Site(homes.new(), url) as site:
        answer = site.http.get("/readyz")
        assert code(answer) == (503, "unavailable")
        assert answer.json()["hint"] == "kmb-server migrate"
        *_, last = doctor.examine(site.deps)
        assert (last.check, last.ok, last.hint) == ("database", False, "kmb-server migrate")
        site.deps.store.migrate()
        assert site.http.get("/readyz").json() == {"status": "ok"}
        with engine.connect() as connection, connection.begin():
            connection.execute(text("UPDATE alembic_version SET version_num = 'later'"))
        assert site.http.get("/readyz").json() == {"status": "ok"}
    engine.dispose()
    databases.drop(url)


def figures(site: Site) -> str:
    """What Prometheus is told."""
    return scrape(metrics.REGISTRY, Figures(site.deps)).decode()


def test_figures(site: Site, acme: Instance) -> None:
    """Requests are counted by route and never by address; the queues' lag is there."""
    acme.get("/v1/directory/acme/eu-west")
    site.http.get("/nowhere/acme")
    assert Instance(site, parse_address("acme/other")).enrol().status_code == 201
    text = figures(site)
    assert 'route="/v1/directory/{tenant}/{instance}"' in text
    assert 'route="unknown"' in text
    assert "eu-west" not in text
    assert 'keymailbox_queue_jobs_due{queue="issue"} 1.0' in text
    assert 'keymailbox_queue_oldest_due_seconds{queue="issue"}' in text
    assert "keymailbox_events_unsequenced 0.0" not in text
    assert site.http.get("/metrics").status_code == 404
    assert site.http.get("/version").json()["api"] == "v1"
