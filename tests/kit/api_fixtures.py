"""Fixtures of the API's tests; a module asks for them by ``pytest_plugins``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

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
