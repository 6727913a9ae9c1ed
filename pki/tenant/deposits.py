"""Send: plan, wrap, fix the bytes, hand over; and rotate, and wrap again what was quarantined."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from pki.core.errors import (
    ConflictError,
    IllegalMoveError,
    KeymailboxError,
    NotFoundError,
    QuotaError,
    ReplayedError,
    StaleError,
    UnavailableError,
    UsageError,
    WrongPartyError,
)
from pki.core.ids import DepositId, deposit_id
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind
from pki.tenant.certificates import Certificates
from pki.tenant.client import Client
from pki.tenant.directory import Directory, Peer
from pki.tenant.journal import Journal
from pki.tenant.messages import DepositView, Handed, Stored
from pki.tenant.ports import KeyHolder, KeyName
from pki.tenant.records.database import text_time, time_text
from pki.tenant.records.marks import LOOKED_UP
from pki.tenant.records.sent import FAILED, PLANNED, PREPARED, Sent
from pki.tenant.wrap import check_allowed, wrap

LIFETIME = timedelta(days=30)
MAX_LIFETIME = timedelta(days=90)
_LOOK_AGAIN = timedelta(hours=6)
"""How often a recipient with uncollected mail is looked up, to see whether it has renewed its key."""
_STALE = timedelta(hours=20)
"""Signed bytes that did not reach the server for this long are made anew: it takes them for a day."""
_TOGETHER, _TOGETHER_BYTES = 50, 2 * 1024 * 1024
"""How many deposits, and about how many bytes of them, go in one request."""
_PASSING = (UnavailableError, QuotaError, StaleError)
_IT_STAYS = "it stays in the journal; when that has passed: kmb agent run --once"


@dataclass(frozen=True)
class Delivery:
    """One deposit that the server has: where it stands, and the peer that it was wrapped for."""

    deposit_id: DepositId
    recipient: Address
    name: KeyName
    state: str
    detail: str
    size: int
    peer: Peer | None = None


@dataclass
class Campaign:
    """One version of a key on its way to several recipients."""

    name: KeyName
    delivered: list[Delivery] = field(default_factory=list)
    failed: list[tuple[Address, KeymailboxError]] = field(default_factory=list)


@dataclass
class Rewrapped:
    """What came of quarantined deposits: wrapped again, or waiting for a new certificate."""

    delivered: list[Delivery] = field(default_factory=list)
    waiting: list[tuple[DepositId, KeymailboxError]] = field(default_factory=list)


_Ready = Sequence[tuple[Sent, Peer | None]]


class Deposits:
    """What one instance sends."""

    def __init__(
        self,
        client: Client,
        journal: Journal,
        holder: KeyHolder,
        directory: Directory,
        certificates: Certificates,
        address: Address,
    ) -> None:
        self._client = client
        self._journal = journal
        self._holder = holder
        self._directory = directory
        self._certificates = certificates
        self._address = address

    def send(
        self,
        name: KeyName,
        recipients: Sequence[Address],
        *,
        purpose: str,
        lifetime: timedelta,
        now: datetime,
        wait: float = 0,
        removed: Sequence[Address] = (),
        classical: Collection[Address] = (),
    ) -> Campaign:
        """Send one version of a key to each recipient; what fails for one does not keep it from the others.

        ``removed`` are no holders any more. Only for those in ``classical`` may the key be of EC or RSA.
        What could not be handed over because the server was away stays in the journal for ``resume``.
        """
        if not timedelta(minutes=1) <= lifetime <= MAX_LIFETIME:
            raise UsageError("A deposit lives from a minute to 90 days", on=str(lifetime), hint="--days 30")
        if name not in self._holder.shared_keys():
            raise NotFoundError("There is no such key in this holder", on=str(name), hint="kmb key list")
        distribution = self._holder.load_key(name).attributes.distribution
        expires = now + lifetime
        if distribution is not None and distribution.not_after is not None:
            # What nobody may take any more has no place in a mailbox.
            expires = min(expires, distribution.not_after)
        plans = [self._planned(name, one, purpose, expires, now, classical=one in classical) for one in recipients]
        self._journal.sent.plan(plans, name=name, removed=removed)
        return self._deliver_all(Campaign(name), plans, now, wait)

    def resume(self, now: datetime) -> Campaign | None:
        """Take up what was interrupted; None when there is nothing."""
        gone = {one.deposit_id for one in self._journal.sent.to_removed((PLANNED, PREPARED))}
        waiting = [one for one in self._journal.sent.all(PLANNED, PREPARED) if one.deposit_id not in gone]
        if not waiting:
            return None
        return self._deliver_all(Campaign(waiting[0].name), waiting, now, 0)

    def holders(self, name: KeyName, leave_out: Collection[str]) -> tuple[list[Address], list[Address]]:
        """Return who has a key and keeps it, and who is left out: the tenants and addresses in ``leave_out``."""
        everybody = self._journal.sent.holders(name.owner, name.key_id)
        known = {str(one) for one in everybody} | {one.tenant for one in everybody}
        for text in leave_out:
            if text not in known:
                raise UsageError("This key was not sent there", on=text, hint=f"kmb key show {name.key_id}")
        removed = [one for one in everybody if str(one) in leave_out or one.tenant in leave_out]
        return [one for one in everybody if one not in removed], removed

    def classical(self, name: KeyName) -> set[Address]:
        """Return the recipients of a key for whom the sender allowed a key of EC or RSA the last time."""
        return self._journal.sent.classical(name.owner, name.key_id)

    def take_back_from_removed(self) -> None:
        """Withdraw what is still on its way to recipients that were removed from its key since."""
        for one in self._journal.sent.to_removed((PLANNED, PREPARED, "received", "available", "quarantined")):
            try:
                if one.state == PLANNED:
                    raise NotFoundError(on=one.deposit_id)
                self._noted(one, self._client.withdraw(one.deposit_id))
            except NotFoundError:
                self._journal.sent.move(one.deposit_id, FAILED, "its recipient was removed before it was sent")
            except IllegalMoveError:
                # The recipient was quicker: then it holds this version, and the report says so.
                self.follow(one)

    def rewrap(self, now: datetime) -> Rewrapped:
        """Wrap again what is quarantined, for the certificate that came after the revoked one, and what waits for a
        key that its recipient has renewed.
        """
        result = Rewrapped()
        removed = {one.deposit_id for one in self._journal.sent.to_removed(("available", "received", "quarantined"))}
        for view in self._quarantined():
            if view.id in removed:
                continue
            old = self._journal.sent.of(view.id)
            if old is None:
                error = WrongPartyError("The server calls something ours that we did not send", on=view.id)
                result.waiting.append((view.id, error))
                continue
            try:
                result.delivered.append(self._replace(old, now))
            except KeymailboxError as error:
                result.waiting.append((view.id, error))
        self._renewed(removed, result, now)
        return result

    def _renewed(self, removed: Collection[DepositId], result: Rewrapped, now: datetime) -> None:
        """Wrap again what its recipient has not collected and can get under its new key, so that the old one drains."""
        waiting: dict[Address, list[Sent]] = {}
        for one in self._journal.sent.all("received", "available"):
            if one.deposit_id not in removed:
                waiting.setdefault(one.recipient, []).append(one)
        for recipient, deposits in waiting.items():
            looked = self._journal.marks.text(f"{LOOKED_UP}:{recipient}")
            if looked and now - text_time(looked) < _LOOK_AGAIN:
                continue
            try:
                current = self._directory.encryption_of(self._directory.look_up(recipient, now)).parsed.fingerprint
            except KeymailboxError:
                # Who cannot be judged now can still open what it was sent.
                continue
            for one in deposits:
                if one.certificate != current and self.follow(one).state == "available":
                    try:
                        result.delivered.append(self._replace(one, now))
                    except KeymailboxError as error:
                        result.waiting.append((one.deposit_id, error))
            self._looked_up(recipient, now)

    def _looked_up(self, recipient: Address, now: datetime) -> None:
        self._journal.marks.set(f"{LOOKED_UP}:{recipient}", time_text(now))

    def follow(self, one: Sent, wait: float = 0) -> Delivery:
        """Ask the server where a deposit stands, and write it down."""
        view = self._client.status(one.deposit_id, wait=wait)
        return self._noted(one, view)

    def withdraw(self, deposit: DepositId) -> Delivery:
        """Take back a deposit that was not collected yet."""
        one = self._journal.sent.of(deposit)
        if one is None:
            raise NotFoundError("This is not a deposit of ours", on=deposit, hint="kmb receipt list")
        return self._noted(one, self._client.withdraw(deposit))

    def _replace(self, old: Sent, now: datetime) -> Delivery:
        following = self._journal.sent.replacing(old.deposit_id)
        if following is None or following.state in (FAILED, "rejected"):
            # Looked up before planning: without a new certificate there is nothing to plan.
            peer = self._directory.look_up(old.recipient, now)
            certificate = self._directory.encryption_of(peer)
            if certificate.parsed.fingerprint == old.certificate:
                raise NotFoundError("The recipient has no new certificate yet", on=str(old.recipient))
            check_allowed(old, certificate)
            plan = self._planned(
                old.name, old.recipient, old.purpose, old.expires_at, now, classical=old.allow_classical
            )
            plan = replace(plan, supersedes=old.deposit_id)
            self._journal.sent.plan([plan])
            following = self._journal.sent.replacing(old.deposit_id) or plan
        delivery = self._deliver(following, now, 0)
        self._journal.sent.move(old.deposit_id, "superseded", f"by {following.deposit_id}")
        return delivery

    def _deliver_all(self, campaign: Campaign, plans: Sequence[Sent], now: datetime, wait: float) -> Campaign:
        """Deliver each, several by one request; what fails for one is noted for that one."""
        if len(plans) == 1:
            self._deliver_each(campaign, [(plans[0], None)], now, wait)
            return campaign
        ready, size = list[tuple[Sent, Peer | None]](), 0
        for plan in plans:
            try:
                ready.append(self._prepared(plan, now))
                size += len(ready[-1][0].body or b"")
            except KeymailboxError as error:
                campaign.failed.append((plan.recipient, error))
            if len(ready) == _TOGETHER or size > _TOGETHER_BYTES:
                self._deliver_together(campaign, ready, now, wait)
                ready, size = [], 0
        if ready:
            self._deliver_together(campaign, ready, now, wait)
        return campaign

    def _deliver_each(self, campaign: Campaign, ready: _Ready, now: datetime, wait: float) -> None:
        for one, peer in ready:
            try:
                delivery = self._deliver(one, now, wait)
                campaign.delivered.append(replace(delivery, peer=delivery.peer or peer))
            except KeymailboxError as error:
                campaign.failed.append((one.recipient, error))

    def _deliver_together(self, campaign: Campaign, ready: _Ready, now: datetime, wait: float) -> None:
        try:
            told = self._client.deposit_many([self._handed(one) for one, _ in ready])
        except _PASSING as error:
            error.hint = _IT_STAYS
            campaign.failed += [(one.recipient, error) for one, _ in ready]
            return
        except KeymailboxError:
            # Something about the whole, or a server of before there were several: each alone is told what is wrong.
            self._deliver_each(campaign, ready, now, wait)
            return
        for (one, peer), answer in zip(ready, told, strict=True):
            try:
                stored = None
                with self._noting(one):
                    if isinstance(answer, ReplayedError):
                        self._check_ours(one, answer)
                    elif isinstance(answer, KeymailboxError):
                        raise answer
                    else:
                        stored = answer
                self._journal.sent.move(one.deposit_id, "received")
                campaign.delivered.append(replace(self._begun(one, stored, wait), peer=peer))
            except KeymailboxError as error:
                campaign.failed.append((one.recipient, error))

    def _deliver(self, one: Sent, now: datetime, wait: float) -> Delivery:
        """Wrap unless that is done, hand over, note. A lasting error ends the deposit; a passing one leaves it open."""
        one, peer = self._prepared(one, now)
        stored = None
        if one.state == PREPARED:
            with self._noting(one):
                stored = self._hand_over(one)
        return replace(self._begun(one, stored, wait), peer=peer)

    def _begun(self, one: Sent, stored: Stored | None, wait: float) -> Delivery:
        """Return where a deposit stands; asked for, unless the server has just said so and nobody waits for more."""
        if wait > 0 or stored != Stored(one.deposit_id, "received"):
            return self.follow(one, wait)
        return Delivery(one.deposit_id, one.recipient, one.name, "received", "", len(one.body or b""))

    def _prepared(self, one: Sent, now: datetime) -> tuple[Sent, Peer | None]:
        """Fix a deposit's bytes, unless that is done; also the peer, where it was looked up for that."""
        with self._noting(one):
            if one.state == PREPARED and one.prepared_at and now - one.prepared_at > _STALE:
                one = self._unprepared(one)
            if one.state == PLANNED:
                return self._wrapped(one, now)
        return one, None

    @contextmanager
    def _noting(self, one: Sent) -> Iterator[None]:
        try:
            yield
        except _PASSING as error:
            error.hint = _IT_STAYS
            raise
        except KeymailboxError as error:
            self._journal.sent.move(one.deposit_id, FAILED, str(error)[:500])
            raise

    def _wrapped(self, one: Sent, now: datetime) -> tuple[Sent, Peer]:
        peer = self._directory.look_up(one.recipient, now)
        self._looked_up(one.recipient, now)
        wrapped = wrap(
            one,
            self._holder.load_key(one.name),
            sender=self._address,
            certificate=self._directory.encryption_of(peer),
            signer_ski=self._certificates.active(CertificateKind.IDENTITY).ski,
            holder=self._holder,
            now=now,
        )
        prepared = self._journal.sent.prepare(
            one, body=wrapped.body, sha512=wrapped.sha512, certificate=wrapped.certificate, now=now
        )
        return prepared, peer

    def _hand_over(self, one: Sent) -> Stored | None:
        """Hand in and return the answer, None for what was there before under this id."""
        stored = None
        try:
            stored = self._client.deposit_one(self._handed(one))
        except ReplayedError as error:
            self._check_ours(one, error)
        self._journal.sent.move(one.deposit_id, "received")
        return stored

    def _handed(self, one: Sent) -> Handed:
        if one.body is None:
            raise ConflictError("The deposit's bytes are gone", on=one.deposit_id, hint="kmb key send")
        # A deadline belongs to the version: whoever gets it later, or again, gets it with the same one.
        rotation = self._journal.rotations.of(one.name)
        return Handed(one.body, one.deposit_id, one.supersedes, rotation.deadline if rotation else None)

    def _check_ours(self, one: Sent, error: ReplayedError) -> None:
        # Ours from before, if the server knows it as ours; else somebody took our id.
        if self._client.status(one.deposit_id).sender != self._address:
            raise error

    def _unprepared(self, one: Sent) -> Sent:
        """Go back to the plan, unless the server has the bytes already."""
        try:
            self._client.status(one.deposit_id)
        except NotFoundError:
            self._journal.sent.move(one.deposit_id, PLANNED, "made anew")
            return replace(one, state=PLANNED)
        return one

    def _noted(self, one: Sent, view: DepositView) -> Delivery:
        detail = ": ".join(part for part in view.rejected or () if part)
        # What a verified receipt said stands above what the server says.
        current = self._journal.sent.of(one.deposit_id)
        if current is None or current.receipt is None:
            self._journal.sent.move(one.deposit_id, view.state, detail)
        return Delivery(one.deposit_id, one.recipient, one.name, view.state, detail, view.size)

    def _quarantined(self) -> list[DepositView]:
        found: list[DepositView] = []
        after = ""
        while True:
            views, following = self._client.sent(state="quarantined", after=after)
            found.extend(views)
            if not views or not following or following == after:
                return found
            after = following

    @staticmethod
    def _planned(
        name: KeyName, recipient: Address, purpose: str, expires: datetime, now: datetime, *, classical: bool
    ) -> Sent:
        identifier = deposit_id(secrets.token_bytes(16))
        return Sent(identifier, recipient, name, purpose, expires, now, allow_classical=classical)
