"""Run a peer's command line in a room of its own: files in, files out, bounded in time."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60


class RefusedError(Exception):
    """The peer ended with a complaint, which is the message."""


@dataclass(frozen=True)
class Tool:
    """A peer's command, its room (a temporary folder, where its files and keys are) and what it is always told."""

    command: Path
    room: Path
    always: tuple[str, ...] = ()

    def put(self, name: str, data: bytes) -> str:
        """Write a file that only its owner may read, and return its name."""
        path = self.room / name
        path.touch(mode=0o600)
        path.write_bytes(data)
        return name

    def get(self, name: str) -> bytes:
        """Return what is in a file."""
        return (self.room / name).read_bytes()

    def run(self, *words: str) -> str:
        """Return what the peer said, output and complaints alike; an end other than 0 raises RefusedError."""
        done = subprocess.run(
            [str(self.command), *self.always, *words],
            cwd=self.room,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
        )
        said = (done.stdout + done.stderr).decode(errors="replace")
        if done.returncode:
            raise RefusedError(said.strip()[-2000:])
        return said
