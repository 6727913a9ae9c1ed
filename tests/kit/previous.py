"""The release before this one, from git: its code runs beside ours on our schema, with our environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PREVIOUS = "9902ba467aa856afd70231d648e7bfb942a9bc6b"
"""The commit of the release that has to survive our migrations; CONTRIBUTING.md says when it moves."""


def unpack(room: Path) -> Path:
    """Put the previous release's code into ``room``; it is in the history of a clone that is not shallow."""
    done = subprocess.run(
        ["git", "archive", "--format=tar", PREVIOUS, "pki", "workers", "schemas"],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
    )
    if done.returncode:
        raise AssertionError(
            f"The previous release is not in this clone: {done.stderr.decode(errors='replace').strip()}\n"
            f"Next: git -C {ROOT} fetch --depth=1 origin {PREVIOUS}    or    git -C {ROOT} fetch --unshallow"
        )
    room.mkdir(parents=True)
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(room, filter="data")
    return room


@dataclass(frozen=True)
class Tenant:
    """A tenant's instance whose commands are the previous release's."""

    code: Path
    home: Path
    address: str

    def enroll(self, server: str, invited: dict[str, str]) -> None:
        """Enrol with an invitation."""
        self.home.mkdir(parents=True)
        secret = self.home / "secret"
        secret.write_text(invited["secret"])
        words = ("--server", server, "--reference", invited["reference"], "--secret-file", str(secret))
        self.run("enroll", self.address, *words)

    def run(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> Any:
        """Run ``kmb`` with ``--json`` to its end and return what it printed."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KMB_")}
        done = subprocess.run(
            [sys.executable, "-m", "pki.tenant.cli", *arguments, "--json"],
            cwd=self.code,
            env=environment | {"KMB_HOME": str(self.home / "kmb"), "PYTHONPATH": str(self.code)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
        )
        said = done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
        assert done.returncode in codes, (arguments, done.returncode, said)
        return json.loads(done.stdout) if done.stdout else None
