"""A sender's agent in a process of its own that looks a recipient up without end, and says what it would wrap for.

Each line is the monotonic time, which all processes of a machine share, what an honest directory leads to, and what one
leads to that goes on showing the certificate of before: a fingerprint, or the code of the refusal.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from pki.core.errors import KeymailboxError
from pki.core.tenants import Address, parse_address
from pki.tenant.agent import Agent, file_holder, utc_now
from pki.tenant.contexts import default_name, load
from tests.kit.desk import Wire

_HOUSE = Path(__file__).parents[2]
_PAUSE = 0.02


@dataclass(frozen=True)
class Seen:
    """One look."""

    at: float
    honest: str
    stale: str


@dataclass
class Lookout:
    """What one process has seen so far."""

    seen: list[Seen] = field(default_factory=list)

    def since(self, moment: float) -> Sequence[Seen]:
        """Return what was seen by looks that were over after a moment."""
        return [one for one in list(self.seen) if one.at > moment]


@contextmanager
def looking(agent: Agent, home: Path, recipient: Address) -> Iterator[Lookout]:
    """Let another process look with this agent's context, as long as this lasts; the agent itself rests meanwhile."""
    command = [sys.executable, "-m", "tests.kit.lookout", str(home), str(agent.address), str(recipient)]
    process = subprocess.Popen(command, cwd=_HOUSE, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    lookout = Lookout()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lookout.seen.append(Seen(**json.loads(line)))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield lookout
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(20)
        reader.join(20)
        if process.stdout is not None:
            process.stdout.close()


def main(home: Path, own: Address, recipient: Address) -> None:
    """Look until somebody ends this."""
    context = load(default_name(own), base=home)
    wire = Wire()
    with Agent(context, file_holder(context), transport=wire) as agent:
        kept = b""

        def remember(request: httpx2.Request, status: int, content: bytes) -> tuple[int, bytes]:
            nonlocal kept
            if status == 200 and request.url.path.endswith(f"/{recipient}") and json.loads(content)["encryption"]:
                kept = content
            return status, content

        def repeat(request: httpx2.Request, status: int, content: bytes) -> tuple[int, bytes]:
            return (200, kept) if request.url.path.endswith(f"/{recipient}") else (status, content)

        while True:
            wire.seen.clear()
            wire.change = remember
            honest = _look(agent, recipient)
            wire.change = repeat
            stale = _look(agent, recipient) if kept else "none yet"
            print(json.dumps({"at": time.monotonic(), "honest": honest, "stale": stale}), flush=True)
            time.sleep(_PAUSE)


def _look(agent: Agent, recipient: Address) -> str:
    try:
        return agent.directory.encryption_of(agent.directory.look_up(recipient, utc_now())).parsed.fingerprint
    except KeymailboxError as error:
        return error.code


if __name__ == "__main__":
    main(Path(sys.argv[1]), parse_address(sys.argv[2]), parse_address(sys.argv[3]))
