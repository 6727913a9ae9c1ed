"""The development server: one process, and everything in it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pki.server.settings import load_settings
from tests.kit.daemons import free_port
from tests.kit.members import Members
from tests.kit.processes import STOP_SECONDS, answers, invite, wait_until


def test_a_key_goes_all_the_way_in_one_process(tmp_path: Path) -> None:
    """Two tenants exchange a key; a second server needs another port; the first stops, and goes on from what it had."""
    port = free_port()
    with _serving(tmp_path, port) as server, Members(server, tmp_path) as members:
        acme, globex = members.enrol("acme/eu-west"), members.enrol("globex/main")
        name = acme.create_key("orders")
        assert acme.send_key(name, [globex.address]).delivered[0].state == "available"
        assert globex.receive(wait=10).taken
        assert [settled.kind for settled in acme.receipts().settled] == ["receipt"]
        assert globex.load_key(name).key == acme.load_key(name).key
        second = _run("dev", "--home", str(tmp_path / "second"), "--port", str(port))
    assert second.returncode == 1
    assert second.stderr.decode().splitlines()[1:] == [f"on:    127.0.0.1:{port}", "hint:  kmb-server dev --port 0"]
    assert not (tmp_path / "second").exists()
    passphrase = server.home / "passphrase"
    assert passphrase.stat().st_mode & 0o777 == 0o600
    before = passphrase.read_bytes()

    with _serving(tmp_path, port, signal.SIGINT) as server:
        said = server.said()
        listed = json.loads(server.command("tenant", "list", "--json"))

    assert passphrase.read_bytes() == before
    assert [tenant["tenant"] for tenant in listed["tenants"]] == ["acme", "globex"]
    assert "for development" in said
    assert f"kmb-server tenant invite acme --home {server.home}" in said
    assert f"kmb enroll acme/eu-west --server {server.url} --reference REFERENCE" in said


@dataclass
class Development:
    """A running ``kmb-server dev``."""

    process: subprocess.Popen[bytes]
    home: Path
    out: Path
    url: str = ""

    def said(self) -> str:
        """Return what it has printed."""
        return self.out.read_text()

    def command(self, *arguments: str) -> str:
        """Run another command on its home."""
        done = _run(*arguments, "--home", str(self.home))
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    def invite(self, tenant: str) -> dict[str, str]:
        """Return an invitation."""
        return invite(load_settings(home=self.home), tenant)


@contextmanager
def _serving(room: Path, port: int, stop: signal.Signals = signal.SIGTERM) -> Iterator[Development]:
    home, out, log = room / "home", room / "out", room / "log"
    with out.open("wb") as output, log.open("wb") as errors:
        process = subprocess.Popen(
            _command("dev", "--home", str(home), "--port", str(port)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=_environment(),
        )
    server = Development(process, home, out)
    try:
        server.url = wait_until(lambda: _address(server, log))
        wait_until(lambda: answers(f"{server.url}/readyz"))
        yield server
        process.send_signal(stop)
        assert process.wait(STOP_SECONDS) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def _address(server: Development, log: Path) -> str | None:
    assert server.process.poll() is None, log.read_text()
    found = re.search(r"http://127\.0\.0\.1:\d+", server.said())
    return found.group() if found else None


def _run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        _command(*arguments), stdin=subprocess.DEVNULL, capture_output=True, env=_environment(), timeout=60, check=False
    )


def _command(*arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", "workers.cli", *arguments]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("KMB_")}
