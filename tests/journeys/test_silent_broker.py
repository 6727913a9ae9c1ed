"""The broker stands still: it is there, and says nothing, as behind a firewall that forgot its connections."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.kit.brokers import BrokerKind, own_broker, served_by
from tests.kit.processes import ROLES, answers, wait_until
from tests.kit.services import Services

_HEALED = 60.0
_SOON = 25.0
"""A relay that waited for the answers to its good-bye took thirty."""


@pytest.mark.parametrize("kind", ["rabbitmq", "redis"])
def test_everything_stops_in_order_although_the_broker_says_nothing(
    kind: BrokerKind, services: Services, tmp_path: Path
) -> None:
    """Deposits are accepted meanwhile, the processes stop when they are told to, and those after them go on."""
    with own_broker(kind) as broker, served_by(broker, services, tmp_path) as (installed, acme, globex):
        with broker.silent():
            # It has a connection at which nothing goes on.
            begun = time.monotonic()
            assert installed.stop("relay") == {"relay": 0}
            assert time.monotonic() - begun < _SOON
            installed.start("relay")
            [sent] = acme.send_key(acme.create_key("unheard"), [globex.address], wait=0).delivered
            assert answers(f"{installed.url}/readyz")

            assert installed.stop() == dict.fromkeys(ROLES, 0)
        installed.start()
        wait_until(lambda: acme.client.status(sent.deposit_id, wait=5).state == "available", _HEALED)
