"""Tenants for journeys: real agents with homes of their own, enrolled at a running server."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, Self

import httpx2

from pki.core import httpsig
from pki.core.tenants import parse_address
from pki.tenant.agent import Agent
from pki.tenant.enrolment import Invitation
from tests.kit.canary import Tap
from tests.kit.daemons import NOBODY
from tests.kit.processes import Installation


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


@dataclass(frozen=True)
class Pair:
    """Two instances of two tenants at one installation, and an ear on its broker."""

    installation: Installation
    tap: Tap
    members: Members
    acme: Agent
    globex: Agent


def signed_call(agent: Agent, method: str, path: str, body: bytes = b"") -> httpx2.Response:
    """Call the API in an instance's name, for what its agent has no method for."""
    url = agent.context.server + path
    headers = {"content-type": "application/json"} if body else {}
    headers |= httpsig.sign_request(
        method,
        url,
        headers,
        body,
        key_id=httpsig.key_id(agent.holder.access_public()),
        sign=agent.holder.sign_request,
        created=datetime.now(UTC),
        nonce=secrets.token_hex(16),
    )
    with httpx2.Client(timeout=40, trust_env=False, verify=NOBODY) as client:
        return client.request(method, url, headers=headers, content=body)
