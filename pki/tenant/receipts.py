"""Believe a receipt only when the pinned recipient signed it over the very bytes that were sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from pki.core.errors import ExpiredError, KeymailboxError, NotFoundError, RevokedError, WrongPartyError
from pki.core.ids import DepositId
from pki.core.receipts import ReceiptKind, VerifiedReceipt, parse_receipt
from pki.core.signatures import VerifyingKey
from pki.core.tenants import Address
from pki.tenant.client import PAGE, Client
from pki.tenant.directory import Directory
from pki.tenant.journal import Journal
from pki.tenant.messages import ReceiptView
from pki.tenant.records.alarms import Alarm
from pki.tenant.records.marks import RECEIPTS
from pki.tenant.records.sent import Sent


@dataclass(frozen=True)
class Settled:
    """A deposit of ours that its recipient answered; the receipt or refusal is verified."""

    deposit_id: DepositId
    recipient: Address
    key: str
    kind: str
    reason: str


@dataclass
class Answers:
    """What one round of fetching receipts brought."""

    settled: list[Settled] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    held: list[tuple[DepositId, KeymailboxError]] = field(default_factory=list)
    """Receipts that cannot be judged now, because the recipient cannot be."""


class Receipts:
    """Fetches and verifies the answers to what we sent."""

    def __init__(self, client: Client, journal: Journal, directory: Directory) -> None:
        self._client = client
        self._journal = journal
        self._directory = directory

    def fetch(self, now: datetime) -> Answers:
        """Read all new answers. One that does not verify raises an alarm and counts for nothing."""
        answers = Answers()
        keys: dict[Address, VerifyingKey] = {}
        after = self._journal.marks.text(RECEIPTS)
        while True:
            views, following = self._client.receipts(after=after)
            for view in views:
                self._take(view, keys, answers, now)
            # The cursor moves after its page is in the journal, and not past what is to be judged again.
            if not views or not following or following == after:
                return answers
            after = following
            if not answers.held:
                self._journal.marks.set(RECEIPTS, after)
            if len(views) < PAGE:
                return answers

    def verify(self, one: Sent, der: bytes, key: VerifyingKey) -> VerifiedReceipt:
        """Return the answer to ``one`` if ``key`` signed it for these very bytes, or raise what is wrong with it."""
        if one.sha512 is None:
            raise WrongPartyError("There is a receipt for something that was not sent", on=one.deposit_id)
        return parse_receipt(der).verify(key, recipient=one.recipient, deposit=one.deposit_id, sha512=one.sha512)

    def _take(self, view: ReceiptView, keys: dict[Address, VerifyingKey], answers: Answers, now: datetime) -> None:
        one = self._journal.sent.of(view.deposit_id)
        if one is None:
            error = WrongPartyError("There is a receipt for something that we did not send", on=view.deposit_id)
            self._alarm(view, error, answers, now)
            return
        if one.receipt is not None:
            return
        try:
            if one.recipient not in keys:
                keys[one.recipient] = self._key_of(one.recipient, now)
            key = keys[one.recipient]
        except RevokedError as error:
            self._alarm(view, error, answers, now)
            return
        except KeymailboxError as error:
            # That the recipient cannot be judged now says nothing of its receipt: it is judged again.
            answers.held.append((view.deposit_id, error))
            return
        try:
            verified = self.verify(one, view.der, key)
        except (KeymailboxError, ValueError) as error:
            self._alarm(view, error, answers, now)
            return
        state = "acknowledged" if verified.kind is ReceiptKind.RECEIPT else "refused"
        reason = verified.reason.word if verified.reason else ""
        self._journal.sent.settle(one.deposit_id, state, view.der, reason)
        name = f"{one.name.key_id} v{one.name.version}"
        answers.settled.append(Settled(one.deposit_id, one.recipient, name, verified.kind.value, reason))

    def _key_of(self, recipient: Address, now: datetime) -> VerifyingKey:
        try:
            return self._directory.look_up(recipient, now).identity.identity_key
        except (NotFoundError, ExpiredError):
            # Nobody is listed there any more; what was signed before still counts, under the key that was pinned then.
            pin = self._journal.pins.of(recipient)
            if pin is None:
                raise
            return pin.identity_key

    def _alarm(self, view: ReceiptView, error: Exception, answers: Answers, now: datetime) -> None:
        detail = f"{error} {'(the recipient is revoked)' if isinstance(error, RevokedError) else ''}".strip()
        answers.alarms.append(self._journal.alarms.sound("receipt", view.deposit_id, detail, now))
