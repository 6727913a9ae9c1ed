"""Journeys and walls share real processes: PostgreSQL, and RabbitMQ or Redis, each behind a proxy that can be cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from pki.core import sealing
from tests.kit.canary import tap
from tests.kit.members import Members, Pair
from tests.kit.processes import Installation
from tests.kit.services import Services, drop_database, new_database

# How long an example takes says something of the machine.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# What tests seal in their own process costs 3 ms to open, not 80; the files say so, and what opens them is the same.
sealing._N = 1 << 10

_LONG = ("test_server_cli.py",)
"""Files that take minutes and would come last: each is one process's work, and the others would wait for it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long ones; all else keeps its order."""
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """Database and brokers, found or started."""
    with Services() as found:
        yield found


@pytest.fixture(scope="session", params=["rabbitmq", "redis"])
def installation(
    request: pytest.FixtureRequest, services: Services, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """All processes of production on one of the brokers."""
    broker = str(request.param)
    database = new_database(services.postgres.url)
    try:
        with Installation(tmp_path_factory.mktemp(broker), database, getattr(services, broker).url) as installed:
            installed.start()
            yield installed
            codes = installed.stop()
            assert set(codes.values()) == {0}, codes
    finally:
        drop_database(database)


@pytest.fixture(scope="session")
def pair(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two tenants that were enrolled by the running issuer; everything that they do there is overheard."""
    room = tmp_path_factory.mktemp("tenants")
    with tap(installation.broker_url, installation.prefix) as heard, Members(installation, room) as members:
        yield Pair(installation, heard, members, members.enrol("acme/eu-west"), members.enrol("globex/main"))
