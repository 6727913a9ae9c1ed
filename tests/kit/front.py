"""A TLS front as docs/operations.md sets it up: haproxy, on loopback, with the very configuration that stands there."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.kit.daemons import LOOPBACK, apt_install, await_answer, spawn

_DOCUMENTED = Path(__file__).parents[2] / "docs" / "operations.md"
_PROGRAM = "/usr/sbin/haproxy"
_DEFAULTS = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
"""


@contextmanager
def front(room: Path, port: int, api_port: int) -> Iterator[None]:
    """Listen for TLS on ``port`` before an API; ``room`` has ``keymailbox.pem`` (certificate, key) and ``ca.pem``."""
    with _running(room, port, _documented(room, port, api_port)):
        yield


@contextmanager
def balancer(room: Path, port: int, api_ports: Sequence[int]) -> Iterator[None]:
    """Listen on ``port`` before two API processes, with the configuration of the documents for rolling upgrades."""
    [block] = re.findall(r"```\n# haproxy, two API processes\n(.*?)```", _DOCUMENTED.read_text(), re.DOTALL)
    for theirs, ours in zip(("127.0.0.1:8081", "127.0.0.1:8082"), api_ports, strict=True):
        assert theirs in block, theirs
        block = block.replace(theirs, f"{LOOPBACK}:{ours}")
    frontend = f"frontend keymailbox\n    bind {LOOPBACK}:{port}\n    default_backend api\n"
    with _running(room, port, _DEFAULTS + frontend + block):
        yield


@contextmanager
def _running(room: Path, port: int, configuration: str) -> Iterator[None]:
    program = shutil.which("haproxy") or _PROGRAM
    if not Path(program).exists():
        apt_install("haproxy", Path(program))
    config, log = room / "haproxy.cfg", room / "haproxy.log"
    config.write_text(configuration)
    daemon = spawn([program, "-db", "-f", str(config)], log, None)

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((LOOPBACK, port)) == 0

    await_answer("haproxy", answers, log, daemon)
    try:
        yield
    finally:
        daemon.stop()


def _documented(room: Path, port: int, api_port: int) -> str:
    """Return the documented configuration with the ports and the folder of a test."""
    [block] = re.findall(r"```\n# haproxy\n(.*?)```", _DOCUMENTED.read_text(), re.DOTALL)
    for theirs, ours in (
        ("bind :443", f"bind {LOOPBACK}:{port}"),
        ("/etc/haproxy/", f"{room}/"),
        ("127.0.0.1:8080", f"{LOOPBACK}:{api_port}"),
    ):
        assert theirs in block, theirs
        block = block.replace(theirs, ours)
    return _DEFAULTS + block
