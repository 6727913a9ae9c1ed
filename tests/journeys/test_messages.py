"""Whoever reaches the broker can wake workers, and nothing else."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import kombu
import pytest

from pki.core.errors import UnavailableError
from pki.server import bootstrap
from pki.server.settings import load_settings
from tests.kit.members import Pair
from tests.kit.processes import Installation, wait_until
from workers.app import TASK, make_app
from workers.handlers import Hands


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_forged_messages_do_nothing(pair: Pair, tmp_path: Path) -> None:
    """Pickles, foreign queues, wrong types and unknown tasks: no effect, and the worker goes on."""
    installation = pair.installation
    crater = tmp_path / "crater"
    app = make_app(load_settings(broker_url=installation.broker_url, queue_prefix=installation.prefix))
    validate = f"{installation.prefix}.validate"
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection)
        for forged in (["issue"], ["valdate"], [["validate"]], [{"queue": 1}], [None], [], ["a", "b"]):
            app.send_task(TASK, args=forged, queue=validate, producer=producer)
        app.send_task("os.system", args=["true"], queue=validate, producer=producer)
        for body, kind in (
            (pickle.dumps(Bomb(crater)), "application/x-python-serialize"),
            (b"\xff{", "application/json"),
        ):
            kombu.Producer(connection).publish(
                body,
                routing_key=validate,
                content_type=kind,
                content_encoding="binary",
                headers={"task": TASK, "id": "1"},
            )

    campaign = pair.acme.send_key(pair.acme.create_key("after-forgeries"), [pair.globex.address])

    assert campaign.delivered[0].state == "available"
    wait_until(lambda: b"not_my_queue" in _logged(installation, "validator"), 30)
    assert not crater.exists()
    assert installation.running["validator"].process.poll() is None


def test_a_worker_that_does_not_issue_has_no_key(pair: Pair, tmp_path: Path) -> None:
    """Even a worker that could read the passphrase opens the CA's key for the issue queue only."""
    installation = pair.installation
    settings = load_settings(
        home=installation.home,
        database_url=installation.database_url,
        broker_url="memory://",
        passphrase=installation.passphrase.read_text(),
    )
    hands = Hands(bootstrap.build(settings), ("validate", "notify", "rotate", "report"))
    try:
        with pytest.raises(UnavailableError):
            hands.handlers("issue")["crl"](bootstrap.build(settings), [])
    finally:
        hands.close()


def _logged(installation: Installation, name: str) -> bytes:
    return b"".join(log.read_bytes() for log in installation.logs.glob(f"{name}-*.log"))
