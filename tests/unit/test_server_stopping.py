"""The API stops so that nobody is turned away: first it says so, then it serves on, then it ends by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from pki.server import bootstrap
from pki.server.settings import load_settings
from tests.kit.daemons import LOOPBACK, NOBODY, free_port

SECONDS = 120.0


class Serving:
    """An API process on SQLite."""

    def __init__(self, home: Path, port: int, **variables: str) -> None:
        bootstrap.init(load_settings(home=home))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KMB_")}
        self.url = f"http://{LOOPBACK}:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workers.cli", "api", "--home", str(home), "--port", str(port)],
            env=clean | variables,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.until(lambda: self.status("/readyz") == 200)

    def status(self, path: str) -> int:
        """The status of a GET, 0 without an answer."""
        try:
            return httpx2.get(f"{self.url}{path}", timeout=SECONDS, trust_env=False, verify=NOBODY).status_code
        except httpx2.TransportError:
            return 0

    def until(self, condition: object) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + SECONDS
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.05)

    def ended(self) -> int:
        """Wait for the end; return the exit code."""
        self.process.communicate(timeout=SECONDS)
        return int(self.process.returncode)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """An API that would go on for five minutes."""
    made = Serving(tmp_path / "home", free_port(), KMB_DRAIN_SECONDS="300")
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.communicate()


def test_it_serves_on_until_those_in_front_have_noticed(serving: Serving) -> None:
    """After SIGTERM it is not ready, and serves on, keeping no connection; a second one ends it, with 0."""
    with httpx2.Client(trust_env=False, verify=NOBODY, timeout=SECONDS) as client:
        assert client.get(f"{serving.url}/v1/ca").headers.get("connection") != "close"
        serving.process.send_signal(signal.SIGTERM)
        serving.until(lambda: serving.status("/readyz") == 503)
        answer = client.get(f"{serving.url}/v1/ca")
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert serving.status("/livez") == 200
    serving.process.send_signal(signal.SIGTERM)
    assert serving.ended() == 0


def test_without_anybody_in_front_it_stops_at_once(tmp_path: Path) -> None:
    """By default SIGTERM ends it with 0, and so does SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        made = Serving(tmp_path / str(int(number)), free_port())
        made.process.send_signal(number)
        assert made.ended() == 0
