"""Wrap again: what is quarantined, what was rejected for its certificate, and what a renewed key is to drain."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from pki.core.errors import ConflictError, KeymailboxError, NotFoundError, UnavailableError, WrongPartyError
from pki.core.ids import DepositId
from pki.core.tenants import Address
from pki.tenant.deposits import Delivery, Deposits
from pki.tenant.directory import Directory
from pki.tenant.journal import Journal
from pki.tenant.ports import KeyHolder
from pki.tenant.records.marks import LOOKED_UP, REJECTED
from pki.tenant.records.sent import FAILED, OVER, PLANNED, PREPARED, Sent
from pki.tenant.wrap import check_allowed

_LOOK_AGAIN = timedelta(hours=6)
"""How often a recipient with uncollected mail is looked up, and a successor that was not taken is made anew."""
_ASK_AGAIN = timedelta(minutes=5)
"""How often a recipient is looked up whose certificate was the reason for a rejection."""


@dataclass
class Rewrapped:
    """What came of deposits that are to be wrapped again: they were, or they wait for a new certificate."""

    delivered: list[Delivery] = field(default_factory=list)
    waiting: list[tuple[DepositId, KeymailboxError]] = field(default_factory=list)


class Rewrapping:
    """What one instance has sent and sends again under another key of its recipient."""

    def __init__(self, journal: Journal, holder: KeyHolder, directory: Directory, deposits: Deposits) -> None:
        self._journal = journal
        self._holder = holder
        self._directory = directory
        self._deposits = deposits

    def run(self, now: datetime) -> Rewrapped:
        """Wrap again what can be; what one deposit or recipient makes fail keeps no other from it."""
        result = Rewrapped()
        self._quarantined(result, now)
        self._rejected(result, now)
        self._renewed(result, now)
        return result

    def hear_of_rejected(self) -> list[Delivery]:
        """Write down what the server rejected after it had taken it."""
        if not self._journal.sent.all("received"):
            return []
        found = []
        for view in self._deposits.listed("rejected"):
            one = self._journal.sent.of(view.id)
            if one is not None and one.state == "received" and view.state == "rejected":
                found.append(self._deposits.noted(one, view))
        return found

    def _quarantined(self, result: Rewrapped, now: datetime) -> None:
        """For the certificate that came after the revoked one. The server says which; the journal may not know yet."""
        listed = self._deposits.listed("quarantined")
        still = {view.id for view in listed}
        for gone in self._journal.sent.all("quarantined"):
            if gone.deposit_id not in still:
                # Its successor is available by now, or its time is over.
                self._state_of(gone)
        for view in listed:
            old = self._journal.sent.of(view.id)
            if old is None:
                error = WrongPartyError("The server calls something ours that we did not send", on=view.id)
                result.waiting.append((view.id, error))
            else:
                self._journal.sent.move(old.deposit_id, "quarantined", only=("received", "available"))
                self._try(old, result, now)

    def _rejected(self, result: Rewrapped, now: datetime) -> None:
        """What was rejected for its certificate, once its recipient has another.

        Only the newest version of a key, and only where no other deposit has brought it, may bring it, or was called
        off: each recipient gets a key by one way.
        """
        found = self._journal.sent.rejected_for_certificate(now)
        recent = {mark for one in found for mark in _marks(one) if self._journal.marks.is_within(_ASK_AGAIN, mark, now)}
        for one in found:
            place, itself = _marks(one)
            if recent & {place, itself} or self._is_overtaken(one):
                continue
            try:
                delivered = self._again(one, now)
            except NotFoundError:
                # Its alarm has said so.
                self._journal.marks.note(place, now)
            except KeymailboxError as error:
                self._journal.marks.note(itself, now)
                result.waiting.append((one.deposit_id, error))
            else:
                result.delivered += delivered

    def _renewed(self, result: Rewrapped, now: datetime) -> None:
        """What its recipient has not collected and can get under its new key, so that the old one drains."""
        waiting: dict[Address, list[Sent]] = {}
        for one in self._journal.sent.all("received", "available"):
            waiting.setdefault(one.recipient, []).append(one)
        for recipient, deposits in waiting.items():
            if self._journal.marks.is_within(_LOOK_AGAIN, f"{LOOKED_UP}:{recipient}", now):
                continue
            try:
                current = self._directory.encryption_of(self._directory.look_up(recipient, now)).parsed.fingerprint
            except KeymailboxError:
                # Who cannot be judged now can still open what it was sent.
                continue
            for one in deposits:
                if one.certificate != current and self._state_of(one) == "available":
                    self._try(one, result, now)
            self._deposits.looked_up(recipient, now)

    def _try(self, old: Sent, result: Rewrapped, now: datetime) -> None:
        try:
            result.delivered += self._again(old, now)
        except KeymailboxError as error:
            result.waiting.append((old.deposit_id, error))

    def _again(self, old: Sent, now: datetime) -> list[Delivery]:
        """Wrap one again; nothing where that was done, or it was called off since it was read."""
        known = self._journal.sent.of(old.deposit_id)
        if known is None or known.state in OVER or self._journal.sent.is_removed(old):
            return []
        following = self._journal.sent.replacing(old.deposit_id)
        if following is None or _is_lost(following):
            following = self._plan(known, following, now)
        delivered = [self._deposits.deliver(following, now, 0)] if following.state in (PLANNED, PREPARED) else []
        # It is superseded when its successor is available, not before, and can be collected or taken back until then.
        with suppress(KeymailboxError):
            self._deposits.follow(old)
        return delivered

    def _plan(self, old: Sent, lost: Sent | None, now: datetime) -> Sent:
        # Looked up before planning: without a new certificate there is nothing to plan.
        certificate = self._directory.encryption_of(self._directory.look_up(old.recipient, now))
        fingerprint = certificate.parsed.fingerprint
        if fingerprint == old.certificate:
            raise NotFoundError("The recipient has no new certificate yet", on=str(old.recipient))
        if lost is not None and lost.certificate in (None, fingerprint) and now - lost.planned_at < _LOOK_AGAIN:
            raise ConflictError(
                "What was wrapped again was not taken",
                on=f"{lost.deposit_id[:12]}, {lost.detail}",
                hint=f"in six hours it is tried again; or: kmb key send {old.name.key_id} --to {old.recipient}",
            )
        # What was allowed for the recipient since, by a deposit sent by hand, is allowed here.
        classical = old.allow_classical or old.recipient in self._deposits.classical(old.name)
        check_allowed(replace(old, allow_classical=classical), certificate)
        plan = self._deposits.planned(
            old.name, old.recipient, old.purpose, old.expires_at, now, classical=classical, supersedes=old.deposit_id
        )
        self._journal.sent.plan([plan])
        following = self._journal.sent.replacing(old.deposit_id)
        if following is None or _is_lost(following):
            raise ConflictError("It was taken back, or its recipient removed, meanwhile", on=old.deposit_id)
        return following

    def _state_of(self, one: Sent) -> str:
        """Ask where a deposit stands, and write it down; nothing where the server cannot say."""
        try:
            return self._deposits.follow(one).state
        except UnavailableError:
            raise
        except KeymailboxError:
            return ""

    def _is_overtaken(self, one: Sent) -> bool:
        """Tell whether there is a newer version of a deposit's key, sent or only made."""
        begun = self._journal.rotations.all(owner=one.name.owner, key_id=one.name.key_id)
        known = [*self._holder.shared_keys(), *(rotation.name for rotation in begun)]
        key = (one.name.owner, one.name.key_id)
        return any((name.owner, name.key_id) == key and name.version > one.name.version for name in known)


def _is_lost(following: Sent) -> bool:
    return following.state in (FAILED, "rejected")


def _marks(one: Sent) -> tuple[str, str]:
    """Return where it is noted when a recipient had no other certificate, and when this deposit could not be sent."""
    return f"{REJECTED}:{one.recipient}", f"{REJECTED}:{one.deposit_id}"
