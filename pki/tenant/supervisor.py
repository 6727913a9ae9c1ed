"""Tells systemd how the agent is (sd_notify(3)): ready, alive, what it does, and that it stops."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

_LONGEST_STATUS = 200
_TOLD_SECONDS = 1.0


class Supervisor:
    """Who started us, and wants to know; without NOTIFY_SOCKET nobody, and nothing happens. It never raises."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID (sd_watchdog_enabled(3))."""
        address = environment.get("NOTIFY_SOCKET", "")
        # A name in the abstract namespace begins with a zero byte (unix(7)), which a variable cannot hold.
        self._address = "\0" + address[1:] if address.startswith("@") else address if address.startswith("/") else ""
        told = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self._every = int(told) / 2e6 if told.isascii() and told.isdigit() and ours and int(told) > 0 else None
        self._told = float("-inf")
        self._status = ""

    @property
    def every(self) -> float | None:
        """How often `alive` has to be called, in seconds; half of what systemd waits for."""
        return self._every

    def ready(self, status: str) -> None:
        """The agent does its work."""
        self._status = _line(status)
        self._tell(f"READY=1\nSTATUS={self._status}")

    def status(self, text: str) -> None:
        """Say what the agent does; the same again is not said."""
        if _line(text) != self._status:
            self._status = _line(text)
            self._tell(f"STATUS={self._status}")

    def alive(self) -> None:
        """The agent is not stuck. As often as one likes: it is told when it is time."""
        if self._every is not None and time.monotonic() >= self._told + self._every:
            self._told = time.monotonic()
            self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """The agent ends."""
        self._tell("STOPPING=1\nSTATUS=Stopping")

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaker:
                # One that does not read is not waited for: we would not hear that we are to stop.
                speaker.settimeout(_TOLD_SECONDS)
                speaker.sendto(state.encode(), self._address)
        except OSError:
            # Whoever wanted to know is away; the work goes on.
            return


def _line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST_STATUS]
