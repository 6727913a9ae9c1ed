"""Tenants who send, receive, answer, renew and revoke all the time, and what the server has acknowledged to them."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

from pki.core.certificates import CertificateKind
from pki.core.crl import Reason
from pki.core.errors import KeymailboxError
from pki.core.tenants import Address, parse_address
from pki.tenant.agent import Agent
from pki.tenant.enrolment import Invitation
from tests.kit.acknowledged import Acknowledged
from tests.kit.processes import Installation

_RENEWS, _REVOKES = 0.02, 0.01


class Tenant:
    """One instance with its agent, in a thread of its own."""

    def __init__(self, installation: Installation, room: Path, address: str, seed: int) -> None:
        self.address = parse_address(address)
        self.wire = Acknowledged()
        self.trouble: list[str] = []
        """Errors that are no outage."""
        self.rounds = 0
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        invited = installation.invite(self.address.tenant)
        self.agent = Agent.enroll(
            self.address,
            server=installation.url,
            invitation=Invitation(invited["reference"], invited["secret"]),
            home=room / address.replace("/", "."),
            transport=self.wire,
            sleep=_soon,
        )

    def begin(self, others: list[Address]) -> None:
        """Live, until `end`."""
        self._thread = threading.Thread(target=self._live, args=(others,), name=str(self.address), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop after the round that is under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(120)
            assert not self._thread.is_alive(), f"{self.address} hangs"

    def settle(self) -> bool:
        """Take up what was interrupted, receive everything and fetch all answers; True when nothing was left."""
        self.agent.resume()
        self.agent.rewrap_quarantined()
        received = self.agent.receive()
        self.agent.receipts()
        open_ = [one for one in self.agent.sent() if one.state in ("planned", "prepared")]
        return not received.taken and not open_

    def _live(self, others: list[Address]) -> None:
        while not self._stop.is_set():
            try:
                self._round(others)
            except KeymailboxError as error:
                if not passes(error):
                    self.trouble.append(f"{self.address}: {error.code}: {error}")
            self.rounds += 1
            time.sleep(self._random.uniform(0.05, 0.3))

    def _round(self, others: list[Address]) -> None:
        agent, luck = self.agent, self._random.random()
        agent.resume()
        if luck < _REVOKES:
            active = [one for one in agent.certificates(CertificateKind.ENCRYPTION) if one.state == "active"]
            agent.publish(wait=10)
            for one in active[:1]:
                agent.revoke(one.fingerprint, Reason.KEY_COMPROMISE)
        elif luck < _REVOKES + _RENEWS:
            agent.renew(CertificateKind.IDENTITY, wait=10)
        name = agent.create_key(f"key-{self._random.getrandbits(64):016x}")
        agent.send_key(name, self._random.sample(others, k=min(2, len(others))), wait=0)
        agent.receive()
        agent.receipts()
        agent.rewrap_quarantined()


def passes(error: KeymailboxError) -> bool:
    """Tell whether an error goes away by itself: the server is away, or its clock is wrong."""
    return error.code in ("unavailable", "busy") or "too old or from the future" in str(error)


def _soon(seconds: float) -> None:
    time.sleep(min(seconds, 0.25))
