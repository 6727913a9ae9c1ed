"""Send: plan, wrap, fix the bytes, hand over, follow, take back."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from pki.core.errors import (
    AccessError,
    ConflictError,
    IllegalMoveError,
    KeymailboxError,
    NotFoundError,
    QuotaError,
    ReplayedError,
    StaleError,
    UnavailableError,
    UsageError,
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
from pki.tenant.records.marks import LOOKED_UP
from pki.tenant.records.sent import FAILED, PLANNED, PREPARED, Sent
from pki.tenant.wrap import wrap

LIFETIME = timedelta(days=30)
MAX_LIFETIME = timedelta(days=90)
_STALE = timedelta(hours=20)
"""Signed bytes that did not reach the server for this long are made anew: it takes them for a day."""
_TAKEN_FOR = timedelta(hours=24)
"""How old signed bytes may be when the server takes them."""
_REMOVED = "its recipient was removed before it was sent"
_TOGETHER, _TOGETHER_BYTES = 50, 2 * 1024 * 1024
"""How many deposits, and about how many bytes of them, go in one request."""
_UNSENT = (PLANNED, PREPARED)
_PASSING = (UnavailableError, QuotaError, StaleError, AccessError)
"""What says nothing about a deposit: the server is away or full, or a clock is wrong, so that it takes no request."""
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


_Ready = Sequence[tuple[Sent, Peer | None]]


def check_lifetime(lifetime: timedelta) -> None:
    """Raise UsageError for what no deposit lives for."""
    if not timedelta(minutes=1) <= lifetime <= MAX_LIFETIME:
        raise UsageError("A deposit lives from a minute to 90 days", on=str(lifetime), hint="--days 30")


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
        removed: Sequence[Address] | None = None,
        classical: Collection[Address] = (),
    ) -> Campaign:
        """Send one version of a key to each recipient; what fails for one does not keep it from the others.

        ``removed``, which a rotation has, are no holders any more. Only for those in ``classical`` may the key be of EC
        or RSA.
        What could not be handed over because the server was away stays in the journal for ``resume``.
        """
        check_lifetime(lifetime)
        if name not in self._holder.shared_keys():
            raise NotFoundError("There is no such key in this holder", on=str(name), hint="kmb key list")
        distribution = self._holder.load_key(name).attributes.distribution
        expires = now + lifetime
        if distribution is not None and distribution.not_after is not None:
            # What nobody may take any more has no place in a mailbox.
            expires = min(expires, distribution.not_after)
        plans = [self.planned(name, one, purpose, expires, now, classical=one in classical) for one in recipients]
        if not self._journal.sent.plan(plans, name=name, removed=removed):
            # Another process of ours took it for interrupted: it is one campaign, which both carry out.
            return self.go_on(name, now, wait)
        return self._deliver_all(Campaign(name), plans, now, wait)

    def resume(self, now: datetime) -> Campaign | None:
        """Take up what was interrupted; None when there is nothing."""
        waiting = self._waiting()
        return self._deliver_all(Campaign(waiting[0].name), waiting, now, 0) if waiting else None

    def waits(self, name: KeyName) -> bool:
        """Tell whether something was planned of one version of a key and not sent."""
        return any(one.name == name for one in self._waiting())

    def go_on(self, name: KeyName, now: datetime, wait: float) -> Campaign:
        """Hand over what was planned of one version of a key and not sent; who was sent it before is told, too."""
        campaign, waiting = Campaign(name), list[Sent]()
        removed = {one.deposit_id for one in self._journal.sent.to_removed()}
        # Of several deposits for a recipient the last one took the others' place.
        last = {one.recipient: one for one in self._journal.sent.of_key(name.owner, name.key_id) if one.name == name}
        for one in last.values():
            if one.deposit_id in removed:
                continue
            if one.state in _UNSENT:
                waiting.append(one)
            elif one.state == FAILED:
                hint = f"kmb key send {name.key_id} --to {one.recipient}"
                campaign.failed.append((one.recipient, KeymailboxError(one.detail, hint=hint)))
            else:
                campaign.delivered.append(self._stands(one, ask=wait > 0))
        return self._deliver_all(campaign, waiting, now, wait)

    def _stands(self, one: Sent, *, ask: bool) -> Delivery:
        """Return where a deposit stands that was handed over before: as the server says, or else the journal."""
        if ask:
            with suppress(KeymailboxError):
                return self.follow(one)
        return Delivery(one.deposit_id, one.recipient, one.name, one.state, one.detail, len(one.body or b""))

    def holders(self, name: KeyName, leave_out: Collection[str], now: datetime) -> tuple[list[Address], list[Address]]:
        """Return who has a key and keeps it, and who is left out: the tenants and addresses in ``leave_out``."""
        everybody = self._journal.sent.holders(name.owner, name.key_id, now)
        known = {str(one) for one in everybody} | {one.tenant for one in everybody}
        for text in leave_out:
            if text not in known:
                raise UsageError("This key was not sent there", on=text, hint=f"kmb key show {name.key_id}")
        removed = [one for one in everybody if str(one) in leave_out or one.tenant in leave_out]
        return [one for one in everybody if one not in removed], removed

    def classical(self, name: KeyName) -> set[Address]:
        """Return the recipients of a key for whom the sender allowed a key of EC or RSA the last time."""
        return self._journal.sent.classical(name.owner, name.key_id)

    def take_back_from_removed(self, now: datetime) -> None:
        """Withdraw what is still on its way to recipients that were removed from its key since.

        One that cannot be withdrawn keeps no other from it; the first error is raised at the end.
        """
        trouble: KeymailboxError | None = None
        for one in self._journal.sent.to_removed((PLANNED, PREPARED, "received", "available", "quarantined")):
            try:
                self._take_back(one, now)
            except UnavailableError:
                raise
            except KeymailboxError as error:
                trouble = trouble or error
        if trouble is not None:
            raise trouble

    def _take_back(self, one: Sent, now: datetime) -> None:
        """Withdraw one of those. Nothing that the server may have, or may be getting just now, is called failed."""
        self._journal.sent.move(one.deposit_id, FAILED, _REMOVED, only=(PLANNED,))
        one = self._journal.sent.of(one.deposit_id) or one
        if one.state == FAILED:
            return
        try:
            self.noted(one, self._client.withdraw(one.deposit_id))
        except NotFoundError:
            if one.prepared_at is None or now - one.prepared_at > _TAKEN_FOR:
                # Until then another process of ours may be handing it in.
                self._journal.sent.move(one.deposit_id, FAILED, _REMOVED, only=_UNSENT)
        except IllegalMoveError:
            # The recipient was quicker: then it holds this version, and the report says so.
            self.follow(one)

    def looked_up(self, recipient: Address, now: datetime) -> None:
        """Remember when a recipient was looked up."""
        self._journal.marks.note(f"{LOOKED_UP}:{recipient}", now)

    def follow(self, one: Sent, wait: float = 0) -> Delivery:
        """Ask the server where a deposit stands, and write it down."""
        view = self._client.status(one.deposit_id, wait=wait)
        return self.noted(one, view)

    def withdraw(self, deposit: DepositId) -> Delivery:
        """Take back a deposit that was not collected yet."""
        one = self._journal.sent.of(deposit)
        if one is None:
            raise NotFoundError("This is not a deposit of ours", on=deposit, hint="kmb receipt list")
        return self.noted(one, self._client.withdraw(deposit))

    def _waiting(self) -> list[Sent]:
        """Return what is planned and was not handed over, but for what its recipient was removed from since."""
        gone = {one.deposit_id for one in self._journal.sent.to_removed((PLANNED, PREPARED))}
        return [one for one in self._journal.sent.all(PLANNED, PREPARED) if one.deposit_id not in gone]

    def _deliver_all(self, campaign: Campaign, plans: Sequence[Sent], now: datetime, wait: float) -> Campaign:
        """Deliver each, several by one request; what fails for one is noted for that one."""
        if len(plans) == 1:
            self._deliver_each(campaign, [(plans[0], None)], now, wait)
            return campaign
        ready, size = list[tuple[Sent, Peer | None]](), 0
        for plan in plans:
            try:
                one, peer = self._prepared(plan, now)
                if one.state == PREPARED:
                    ready.append((one, peer))
                    size += len(one.body or b"")
                else:
                    # Another process has handed it over meanwhile.
                    campaign.delivered.append(replace(self._begun(one, None, wait), peer=peer))
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
                delivery = self.deliver(one, now, wait)
                campaign.delivered.append(replace(delivery, peer=delivery.peer or peer))
            except KeymailboxError as error:
                campaign.failed.append((one.recipient, error))

    def _deliver_together(self, campaign: Campaign, together: _Ready, now: datetime, wait: float) -> None:
        ready = []
        for one, peer in together:
            # The first was looked at long before the last was wrapped.
            try:
                self._check_wanted(one, now)
                ready.append((one, peer))
            except KeymailboxError as error:
                campaign.failed.append((one.recipient, error))
        if not ready:
            return
        try:
            told = self._client.deposit_many([self._handed(one) for one, _ in ready])
        except _PASSING as error:
            _hint_that_it_stays(error)
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
                stored = stored if self._is_wanted(one, now) else None
                campaign.delivered.append(replace(self._begun(one, stored, wait), peer=peer))
            except KeymailboxError as error:
                campaign.failed.append((one.recipient, error))

    def deliver(self, one: Sent, now: datetime, wait: float) -> Delivery:
        """Wrap unless that is done, hand over, note. A lasting error ends the deposit; a passing one leaves it open."""
        one, peer = self._prepared(one, now)
        stored = None
        if one.state == PREPARED:
            with self._noting(one):
                stored = self._hand_over(one, now)
        return replace(self._begun(one, stored, wait), peer=peer)

    def _begun(self, one: Sent, stored: Stored | None, wait: float) -> Delivery:
        """Return where a deposit stands; asked for, unless the server has just said so and nobody waits for more."""
        if wait > 0 or stored != Stored(one.deposit_id, "received"):
            return self.follow(one, wait)
        return Delivery(one.deposit_id, one.recipient, one.name, "received", "", len(one.body or b""))

    def _prepared(self, one: Sent, now: datetime) -> tuple[Sent, Peer | None]:
        """Fix a deposit's bytes, unless that is done; also the peer, where it was looked up for that."""
        self._check_wanted(one, now)
        with self._noting(one):
            if one.state == PREPARED and one.prepared_at and now - one.prepared_at > _STALE:
                one = self._unprepared(one)
            if one.state == PLANNED:
                return self._wrapped(one, now)
        # It was read a while ago, and may have been taken back or handed over since.
        return self._journal.sent.of(one.deposit_id) or one, None

    def _check_wanted(self, one: Sent, now: datetime) -> None:
        """Raise ConflictError for what its recipient was removed from; the server may have it, its answer was lost."""
        if self._journal.sent.is_removed(one):
            self._take_back(one, now)
            raise ConflictError("Its recipient was removed from this key", on=str(one.recipient))

    @contextmanager
    def _noting(self, one: Sent) -> Iterator[None]:
        try:
            yield
        except _PASSING as error:
            _hint_that_it_stays(error)
            raise
        except KeymailboxError as error:
            self._journal.sent.move(one.deposit_id, FAILED, str(error)[:500], only=_UNSENT)
            raise

    def _wrapped(self, one: Sent, now: datetime) -> tuple[Sent, Peer]:
        peer = self._directory.look_up(one.recipient, now)
        self.looked_up(one.recipient, now)
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

    def _hand_over(self, one: Sent, now: datetime) -> Stored | None:
        """Hand in and return the answer, None for what was there before under this id."""
        stored = None
        try:
            stored = self._client.deposit_one(self._handed(one))
        except ReplayedError as error:
            self._check_ours(one, error)
        return stored if self._is_wanted(one, now) else None

    def _is_wanted(self, one: Sent, now: datetime) -> bool:
        """Write down that the server has a deposit; take it back, and say so, where its recipient was removed just now.

        Whoever did that looked for what is on its way too early.
        """
        self._journal.sent.move(one.deposit_id, "received", only=(*_UNSENT, FAILED))
        if not self._journal.sent.is_removed(one):
            return True
        with suppress(KeymailboxError):
            self._take_back(one, now)
        return False

    def _handed(self, one: Sent) -> Handed:
        if one.body is None:
            raise ConflictError("The deposit's bytes are gone", on=one.deposit_id, hint="kmb key send")
        # A deadline belongs to the version: whoever gets it later, or again, gets it with the same one.
        rotation = self._journal.rotations.of(one.name)
        old = self._journal.sent.of(one.supersedes) if one.supersedes else None
        # What was rejected has no place that another could take.
        supersedes = None if old is not None and old.state == "rejected" else one.supersedes
        return Handed(one.body, one.deposit_id, supersedes, rotation.deadline if rotation else None)

    def _check_ours(self, one: Sent, error: ReplayedError) -> None:
        # Ours from before, if the server knows it as ours; else somebody took our id.
        if self._client.status(one.deposit_id).sender != self._address:
            raise error

    def _unprepared(self, one: Sent) -> Sent:
        """Go back to the plan, unless the server has the bytes already."""
        try:
            self._client.status(one.deposit_id)
        except NotFoundError:
            self._journal.sent.move(one.deposit_id, PLANNED, only=(PREPARED,))
            return replace(one, state=PLANNED)
        return one

    def noted(self, one: Sent, view: DepositView) -> Delivery:
        """Write down what the server says of a deposit."""
        detail = ": ".join(part for part in view.rejected or () if part)
        self._journal.sent.move(one.deposit_id, view.state, detail)
        return Delivery(one.deposit_id, one.recipient, one.name, view.state, detail, view.size)

    def listed(self, state: str) -> list[DepositView]:
        """Return what we sent and is in one state, as the server says."""
        found: list[DepositView] = []
        after, known = "", {""}
        while True:
            views, after = self._client.sent(state=state, after=after)
            found.extend(views)
            if not views or not after or after in known:
                return found
            known.add(after)

    @staticmethod
    def planned(
        name: KeyName,
        recipient: Address,
        purpose: str,
        expires: datetime,
        now: datetime,
        *,
        classical: bool,
        supersedes: DepositId | None = None,
    ) -> Sent:
        """Return a new deposit, which nobody has written down yet."""
        identifier = deposit_id(secrets.token_bytes(16))
        return Sent(identifier, recipient, name, purpose, expires, now, supersedes, allow_classical=classical)


def _hint_that_it_stays(error: KeymailboxError) -> None:
    if not isinstance(error, AccessError):
        error.hint = _IT_STAYS
