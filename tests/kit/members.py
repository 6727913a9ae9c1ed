"""Tenants for journeys: real agents with homes of their own, enrolled at a running server."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, Self

from pki.core.tenants import parse_address
from pki.tenant.agent import Agent
from pki.tenant.enrolment import Invitation


class Inviting(Protocol):
    """A server that runs somewhere."""

    @property
    def url(self) -> str:
        """Where it is."""

    def invite(self, tenant: str) -> dict[str, str]:
        """Return an invitation as ``kmb-server tenant invite --json`` prints it."""


class Members:
    """The instances that a test has enrolled; closed with it."""

    def __init__(self, server: Inviting, room: Path) -> None:
        self._server = server
        self._room = room
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def enrol(self, address: str) -> Agent:
        """Enrol an instance in a new home of its own."""
        place = parse_address(address)
        invited = self._server.invite(place.tenant)
        with at_home(self.home(address)):
            agent = Agent.enroll(
                place, server=self._server.url, invitation=Invitation(invited["reference"], invited["secret"])
            )
        return self._open.enter_context(agent)

    def home(self, address: str) -> Path:
        """Return the home of an instance."""
        return self._room / address.replace("/", ".")


@contextlib.contextmanager
def at_home(home: Path) -> Iterator[None]:
    """Be the tenant whose home this is."""
    before = os.environ.get("KMB_HOME")
    os.environ["KMB_HOME"] = str(home)
    try:
        yield
    finally:
        if before is None:
            del os.environ["KMB_HOME"]
        else:
            os.environ["KMB_HOME"] = before
