"""One round of an agent that runs: what each step did, and what stopped it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from pki.core.errors import KeymailboxError
from pki.tenant.deposits import Campaign, Rewrapped
from pki.tenant.mailbox import Received
from pki.tenant.receipts import Answers
from pki.tenant.records.own import OwnCertificate


@dataclass
class Round:
    """What one round of ``run`` did; ``failed`` names each step that was stopped, and by what."""

    at: datetime
    renewed: list[OwnCertificate] = field(default_factory=list)
    resumed: Campaign | None = None
    received: Received = field(default_factory=Received)
    answers: Answers = field(default_factory=Answers)
    rewrapped: Rewrapped = field(default_factory=Rewrapped)
    failed: list[tuple[str, KeymailboxError]] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Do one step; that it fails does not keep the round from its other steps."""
        try:
            yield
        except KeymailboxError as error:
            self.failed.append((name, error))
