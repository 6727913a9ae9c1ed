"""The peers, each in a room that is gone after the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop import peers
from tests.interop.commands import Tool


@pytest.fixture(scope="session")
def openssl_command() -> Path:
    """OpenSSL 4, brought once."""
    return peers.openssl()


@pytest.fixture(scope="session")
def node_command() -> Path:
    """Node 26, brought once."""
    return peers.node()


@pytest.fixture
def openssl(openssl_command: Path, tmp_path: Path) -> Tool:
    """OpenSSL 4 in this test's room."""
    return Tool(openssl_command, tmp_path)


@pytest.fixture
def node(node_command: Path, tmp_path: Path) -> Tool:
    """Node in this test's room, with the script that opens a deposit."""
    return Tool(node_command, tmp_path, (str(peers.HERE / "node" / "open.mjs"),))
