"""The peers are there, new enough, brought once, and missed loudly."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.interop import peers
from tests.interop.peers import PeerMissingError


def test_versions(openssl_command: Path, node_command: Path) -> None:
    """Older peers prove nothing: OpenSSL before 4.0.3 mishandles authenticated attributes."""
    assert peers.version(openssl_command, "version") >= (4, 0, 3)
    assert peers.version(node_command, "--version") >= (26, 0, 0)


def test_two_runs_bring_a_peer_once(tmp_path: Path) -> None:
    """Whoever comes second waits for the first, and nobody ever sees half a peer."""
    brought = []

    def bring(room: Path, deadline: float) -> None:
        brought.append(room)
        (room / "first").touch()
        time.sleep(0.3)
        (room / "second").touch()

    def whole() -> bool:
        return (peers.once("tool", bring, tmp_path) / "second").exists()

    with ThreadPoolExecutor(4) as pool:
        assert all(future.result() for future in [pool.submit(whole) for _ in range(4)])
    assert len(brought) == 1


def test_a_failed_attempt_leaves_nothing(tmp_path: Path) -> None:
    """After a broken download the next run begins anew."""

    def broken(room: Path, deadline: float) -> None:
        (room / "half").touch()
        raise PeerMissingError("the mirror is away")

    with pytest.raises(PeerMissingError, match="the mirror is away"):
        peers.once("tool", broken, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tool.lock"]


def test_an_old_peer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old OpenSSL is not used in silence: the error names both versions and what to do."""
    old = tmp_path / "openssl"
    old.write_text("#!/bin/sh\necho OpenSSL 3.0.19\n")
    old.chmod(0o755)
    monkeypatch.setenv(peers.OPENSSL, str(old))
    with pytest.raises(PeerMissingError, match=r"is 3\.0\.19, older than 4\.0\.3\. Next: unset KMB_TEST_OPENSSL"):
        peers.openssl()


def test_a_machine_without_apt_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where OpenSSL cannot be had, the tests fail with the next command, and never pass by."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PeerMissingError, match="Next: KMB_TEST_OPENSSL=/path/to/openssl make test"):
        peers.unpack_openssl(tmp_path, time.monotonic() + 5)
