"""Fixtures of the API's tests; a module asks for them by ``pytest_plugins``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from pki.server.api import waiting
from tests.kit.site import Homes, Instance, Site


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Homes:
    """Homes with a CA; the servers' log lines go nowhere."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    return Homes(tmp_path_factory.mktemp("homes"))


@pytest.fixture
def site(homes: Homes, database_url: str) -> Iterator[Site]:
    """A server that listens, on each of the databases."""
    with Site(homes.new(), database_url, log_level="error") as opened:
        yield opened


@pytest.fixture
def acme(site: Site) -> Instance:
    """An instance with both certificates."""
    return site.instance("acme/eu-west")


@pytest.fixture
def globex(site: Site) -> Instance:
    """An instance of another tenant."""
    return site.instance("globex/main")


@pytest.fixture
def initech(site: Site) -> Instance:
    """A third one, that nobody talks about."""
    return site.instance("initech/spy")


@pytest.fixture
def only_the_bell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is woken by the bell, and by nothing else while a test lasts; to be asked for before a site."""
    monkeypatch.setattr(waiting, "_SLICE_SECONDS", 60.0)
    monkeypatch.setattr(waiting, "_NET_SECONDS", 60.0)
