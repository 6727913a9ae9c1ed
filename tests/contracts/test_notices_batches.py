"""A wake-up of the sequencer is two commits, however much has happened, and none where nothing has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pki.server.services import notices
from pki.server.store.engine import Store
from tests.kit.mail import ACME, GLOBEX, Office
from tests.kit.statements import counted


class Exchange:
    """Takes everything."""

    def __init__(self) -> None:
        self.told: list[Mapping[str, object]] = []

    def publish(self, events: Sequence[Mapping[str, object]]) -> None:
        """Write it down."""
        self.told += events


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Three certified instances."""
    return Office(store, database_url, tmp_path)


def test_a_hundred_events_cost_what_one_does(office: Office) -> None:
    """Numbers, lease and cursor share their commits; looking whether there is anything writes nothing."""
    exchange = Exchange()
    # The first of all makes the row that sequencers lock.
    office.send(GLOBEX, ACME, 1)
    assert notices.sequence_events(office.deps, exchange) == 1
    told = []
    for count in (1, 100):
        office.send(GLOBEX, ACME, count)
        with counted(office.store, here=True) as found:
            assert notices.sequence_events(office.deps, exchange) == count
        told.append((found.count, found.commits))
    assert told[0] == told[1]
    # One looks, two write.
    assert told[0][1] == 3
    assert len(exchange.told) == 102
    with counted(office.store, here=True) as found:
        notices.sequence_events(office.deps, exchange)
    assert found.commits == 1
    assert not any(word in statement for statement in found.statements for word in ("INSERT", "UPDATE", "IMMEDIATE"))
