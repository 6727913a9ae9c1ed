"""Fixtures for tests of agents at a server: a clock of everybody's, the server with its workers, and two tenants."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pki.tenant.agent import Agent
from tests.kit.desk import Desk, RestingSite
from tests.kit.mail import Clock
from tests.kit.site import Homes, now


@pytest.fixture
def clock() -> Clock:
    """Everybody's clock."""
    return Clock(now())


@pytest.fixture
def site(homes: Homes, clock: Clock) -> Iterator[RestingSite]:
    """A server on SQLite."""
    with RestingSite(homes.new(), "", clock=clock, log_level="error") as opened:
        yield opened


@pytest.fixture
def desk(site: RestingSite, tmp_path: Path) -> Iterator[Desk]:
    """It, with its workers working."""
    with Desk(site, tmp_path) as opened:
        yield opened


@pytest.fixture
def acme(desk: Desk) -> Agent:
    """Who sends."""
    return desk.enrol("acme/eu-west")


@pytest.fixture
def globex(desk: Desk) -> Agent:
    """Who receives."""
    return desk.enrol("globex/main")
