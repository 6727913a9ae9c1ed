"""The server runs where the tenant's side does not exist."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.kit.daemons import free_port
from tests.kit.processes import answers, wait_until

_WITHOUT_TENANT = """
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name == "pki.tenant" or name.startswith("pki.tenant."):
            raise ImportError(f"behind the wall: {name}")

sys.meta_path.insert(0, Wall())
try:
    import pki.tenant
except ImportError:
    print("the wall stands", flush=True)
sys.argv[0] = "kmb-server"
from workers.cli import main
main()
"""


def test_the_server_boots_without_the_tenants_side(tmp_path: Path) -> None:
    """With pki.tenant unimportable the embedded server starts, answers and stops."""
    port = free_port()
    log = tmp_path / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KMB_")}
    with log.open("wb") as output:
        command = [sys.executable, "-c", _WITHOUT_TENANT, "dev", "--home", str(tmp_path / "home"), "--port", str(port)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz") or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        assert "the wall stands" in log.read_text()
    finally:
        process.terminate()
        process.wait(120)
