"""Rotations of a key of ours, from the intention to the last receipt: who has it, who is behind, who was removed."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from pki.core.errors import ConflictError, KeymailboxError, NotFoundError, UsageError
from pki.core.ids import DepositId, KeyId, key_id
from pki.core.keyattributes import KeyAttributes, of_next_version
from pki.core.packages import OCTETS, KeyMaterial, encode_package
from pki.core.tenants import Address
from pki.tenant.deposits import Campaign, Deposits, check_lifetime
from pki.tenant.journal import Journal
from pki.tenant.ports import KeyHolder, KeyName
from pki.tenant.records.alarms import Alarm
from pki.tenant.records.rotations import INTENDED, Rotation
from pki.tenant.records.sent import FAILED, NOT_HELD, PLANNED, PREPARED, Sent

OVERDUE = "overdue"
"""The kind of the alarm for a recipient that has not signed in time."""
UNSENT = "unsent"
"""And for one that will not get the newest version by the deposit that was made for it."""
_TAKEN = frozenset({"collected", "acknowledged"})
_UNSENT = frozenset({PLANNED, PREPARED, FAILED})
_GONE = NOT_HELD | {"superseded", "quarantined"}
_OVER = frozenset({"refused", "withdrawn", "expired"})
_FRESH = timedelta(days=1)
"""Who types a command again after that means the next rotation."""
_SAME = timedelta(minutes=1)
"""A deadline of seven days is another moment each time that it is typed."""


@dataclass(frozen=True)
class Standing:
    """Where one recipient stands with a key of ours.

    ``standing``: current (signed for the newest version), straggler (not yet), overdue (nor by the deadline), failed
    (sent and not accepted), behind (not sent the newest version), removed. Who took no version has failed and is not
    behind: it is no holder. ``holds`` are the versions that it signed for, ``may_hold`` those that it took without an
    answer; ``deposit`` is the last one sent to it, version ``given``.
    """

    recipient: Address
    standing: str
    given: int
    state: str
    detail: str
    deposit: DepositId
    deadline: datetime | None
    holds: tuple[int, ...]
    may_hold: tuple[int, ...]


@dataclass(frozen=True)
class Overview:
    """A key of ours at its newest version that was sent, and how many of its recipients stand where."""

    name: KeyName
    started_at: datetime
    deadline: datetime | None
    counts: dict[str, int]


class Campaigns:
    """The rotations of one instance."""

    def __init__(self, journal: Journal, holder: KeyHolder, deposits: Deposits, address: Address) -> None:
        self._journal = journal
        self._holder = holder
        self._deposits = deposits
        self._address = address

    def rotate(
        self,
        name: str,
        *,
        except_: Collection[str],
        key: bytes | None,
        attributes: KeyAttributes | None,
        purpose: str,
        lifetime: timedelta,
        deadline: datetime | None,
        allow_classical: bool,
        now: datetime,
        wait: float,
    ) -> Campaign:
        """Make the next version and send it to all holders but ``except_``; see ``Agent.rotate_key``.

        First the intention is written down, then the key is kept, then the deposits are planned: killed before each
        recipient was tried, or cut off from the server before anybody got it, ``tend`` or the same command again goes
        on with this version and makes no other.
        """
        identifier = key_id(name)
        if deadline is not None and deadline <= now:
            raise UsageError("A deadline lies ahead", on=deadline.isoformat(), hint="--deadline 7d")
        check_lifetime(lifetime)
        how = (purpose, lifetime)
        same = partial(self._is_same, except_=except_, key=key, how=how, deadline=deadline, now=now)
        begun = next(iter(self._journal.rotations.all(state=INTENDED, owner=self._address, key_id=identifier)), None)
        if begun is not None and self._has_key(begun):
            if not same(begun):
                raise _interrupted(begun.name, "then rotate again")
            return self._run(begun, now, wait)
        newest = self.newest(identifier)
        running = self._journal.rotations.of(KeyName(self._address, identifier, newest))
        # Another one is begun at once: it may be for who must not get what is still on its way.
        broken_off = running is not None and same(running) and self._is_broken_off(running, now)
        if running is not None and broken_off and self._deposits.waits(running.name):
            return self._taken_back(self._deposits.go_on(running.name, now, wait), now)
        if newest == 0:
            raise NotFoundError("There is no such key of ours", on=name, hint=f"kmb key create {name}")
        old = self._holder.load_key(KeyName(self._address, identifier, newest))
        if key is None and old.media_type != OCTETS:
            hint = f"kmb key rotate {name} --in FILE"
            raise UsageError("A key of this media type is not made of random bytes", on=old.media_type, hint=hint)
        holders, removed = self._deposits.holders(KeyName(self._address, identifier, newest), except_, now)
        said = attributes or of_next_version(old.attributes, owner=self._address, removed=removed)
        material = KeyMaterial(key or secrets.token_bytes(len(old.key)), old.media_type, said)
        # What cannot be sent is refused before anything is written down.
        encode_package(material)
        full = KeyName(self._address, identifier, newest + 1)
        classical = holders if allow_classical else sorted(self._deposits.classical(full))
        rotation = Rotation(full, purpose, lifetime, deadline, tuple(holders), tuple(removed), tuple(classical), now)
        self._journal.rotations.intend(rotation)
        self._holder.store_key(full, material)
        return self._run(rotation, now, wait)

    def check_sendable(self, name: KeyName) -> None:
        """Raise ConflictError for a version whose rotation was interrupted: who is to have it is decided there."""
        begun = self._journal.rotations.of(name)
        if begun is not None and begun.state == INTENDED:
            raise _interrupted(name, "then send it")

    def tend(self, now: datetime) -> list[Campaign]:
        """Go on with what was interrupted, and take back what is on its way to the removed.

        One rotation that cannot go on keeps neither another nor that from being done; its error is raised at the end.
        """
        gone_on, trouble = list[Campaign](), list[KeymailboxError]()
        for begun in self._journal.rotations.all(state=INTENDED, owner=self._address):
            try:
                if begun.name in self._holder.shared_keys():
                    gone_on.append(self._run(begun, now, 0))
                elif now - begun.started_at > _FRESH:
                    # Not before: a command may be about to make its key.
                    self._journal.rotations.forget(begun.name)
            except KeymailboxError as error:
                trouble.append(error)
        self._deposits.take_back_from_removed(now)
        if trouble:
            raise trouble[0]
        return gone_on

    def alarms(self, now: datetime) -> list[Alarm]:
        """Name who is overdue, and who does not get the newest version by what was made for it."""
        newest = {
            _subject(overview.name, one.recipient): (overview, one)
            for overview in self.overviews(now)
            for one in self.standings(overview.name.key_id, now)
        }
        for kind in (OVERDUE, UNSENT):
            for subject in self._journal.alarms.subjects(kind):
                if subject not in newest:
                    # A newer version has taken its place.
                    self._journal.alarms.clear(kind, subject)
        raised = [self._alarm(subject, overview, one, now) for subject, (overview, one) in newest.items()]
        return [alarm for alarm in raised if alarm is not None]

    def overviews(self, now: datetime) -> list[Overview]:
        """Return our keys that were sent to somebody, by name, each at its newest version."""
        found = []
        for identifier in sorted({one.name.key_id for one in self._journal.sent.all() if self._is_ours(one)}):
            standings = self.standings(identifier, now)
            newest = max(one.given for one in standings)
            rotation = self._journal.rotations.of(KeyName(self._address, identifier, newest))
            first = min(
                one.planned_at
                for one in self._journal.sent.of_key(self._address, identifier)
                if one.name.version == newest
            )
            counts: dict[str, int] = {}
            for one in standings:
                counts[one.standing] = counts.get(one.standing, 0) + 1
            name = KeyName(self._address, identifier, newest)
            found.append(Overview(name, first, rotation.deadline if rotation else None, counts))
        return found

    def standings(self, name: str, now: datetime) -> list[Standing]:
        """Return where each recipient of a key of ours stands, as the journal knows; NotFoundError when there is none.

        What a recipient holds is known from its verified receipts alone, and that it erased a key is known to nobody.
        """
        identifier = key_id(name)
        sent = self._journal.sent.of_key(self._address, identifier)
        if not sent:
            raise NotFoundError("This key was not sent to anybody", on=name, hint=f"kmb key send {name} --to ADDRESS")
        newest = max(one.name.version for one in sent)
        rotation = self._journal.rotations.of(KeyName(self._address, identifier, newest))
        deadline = rotation.deadline if rotation else None
        removed = self._journal.sent.removed(self._address, identifier)
        by_recipient: dict[Address, list[Sent]] = {}
        for one in sent:
            by_recipient.setdefault(one.recipient, []).append(one)
        return [
            _standing(recipient, of_one, newest, removed.get(recipient, 0), deadline, now)
            for recipient, of_one in sorted(by_recipient.items())
        ]

    def refresh(self, name: str, now: datetime) -> list[Standing]:
        """Ask the server where the deposits stand that are not answered, and return what `standings` does."""
        for one in self._journal.sent.of_key(self._address, key_id(name)):
            if one.state in ("received", "available", "collected", "quarantined"):
                self._deposits.follow(one)
        return self.standings(name, now)

    def newest(self, identifier: KeyId) -> int:
        """Return the newest version of a key of ours in the holder, 0 when there is none."""
        own = [one for one in self._holder.shared_keys() if (one.owner, one.key_id) == (self._address, identifier)]
        return max((one.version for one in own), default=0)

    def _has_key(self, begun: Rotation) -> bool:
        """Tell whether an interrupted rotation made its key; forget it when nothing came of it."""
        if begun.name in self._holder.shared_keys():
            return True
        self._journal.rotations.forget(begun.name)
        return False

    def _is_broken_off(self, begun: Rotation, now: datetime) -> bool:
        """Tell whether, a short while ago, not each recipient was tried, or nobody got it.

        A mailbox that is full must not hold up the next rotation.
        """
        sent = self._journal.sent.of_key(begun.name.owner, begun.name.key_id)
        states = {one.state for one in sent if one.name == begun.name}
        return now - begun.started_at < _FRESH and (PLANNED in states or states <= _UNSENT)

    def _is_same(
        self,
        begun: Rotation,
        *,
        except_: Collection[str],
        key: bytes | None,
        how: tuple[str, timedelta],
        deadline: datetime | None,
        now: datetime,
    ) -> bool:
        """Tell whether a rotation that was begun is the one that is asked for now."""
        meant = {
            text: {one for one in (*begun.holders, *begun.removed) if text in (str(one), one.tenant)}
            for text in except_
        }
        removed = {one for several in meant.values() for one in several}
        return (
            all(meant.values())
            and removed == set(begun.removed)
            and how == (begun.purpose, begun.lifetime)
            and _is_same_time(begun, deadline, now)
            and (key is None or key == self._holder.load_key(begun.name).key)
        )

    def _run(self, rotation: Rotation, now: datetime, wait: float) -> Campaign:
        campaign = self._deposits.send(
            rotation.name,
            rotation.holders,
            purpose=rotation.purpose,
            lifetime=rotation.lifetime,
            now=now,
            wait=wait,
            removed=rotation.removed,
            classical=rotation.classical,
        )
        return self._taken_back(campaign, now)

    def _taken_back(self, campaign: Campaign, now: datetime) -> Campaign:
        # Else the agent's next round does it: the new version is on its way, and that is what counts.
        with suppress(KeymailboxError):
            self._deposits.take_back_from_removed(now)
        return campaign

    def _alarm(self, subject: str, overview: Overview, one: Standing, now: datetime) -> Alarm | None:
        alarms = self._journal.alarms
        if one.standing == OVERDUE:
            detail = f"no receipt by {overview.deadline:%Y-%m-%d %H:%M}, the deposit is {one.state}"
            return None if alarms.standing(OVERDUE, subject) else alarms.sound(OVERDUE, subject, detail, now)
        detail = self._lost(one, overview.name, now)
        if detail and alarms.detail(UNSENT, subject) != detail:
            alarms.clear(UNSENT, subject)
            return alarms.sound(UNSENT, subject, detail, now)
        if not detail and (one.standing in ("current", "removed") or one.state == "withdrawn"):
            # It has come, or is not to come.
            alarms.clear(OVERDUE, subject)
            alarms.clear(UNSENT, subject)
        return None

    def _lost(self, one: Standing, name: KeyName, now: datetime) -> str:
        """Return what to say where what was made for a recipient by itself, or taken from us, does not bring it this.

        The same for each deposit that the agent makes in another's place; nothing where it brings it, or may yet.
        """
        sent = self._journal.sent.of(one.deposit)
        if sent is None or one.given != name.version or one.standing in ("current", "removed"):
            return ""
        made_by_itself = sent.supersedes is not None or self._journal.rotations.of(name) is not None
        if one.state != "rejected" and not (one.state == FAILED and made_by_itself):
            return ""
        which = "what was wrapped again" if sent.supersedes else f"deposit {one.deposit[:12]}"
        by_itself = ""
        if sent.waits_for_certificate(now):
            by_itself = f"wrapped again when {one.recipient.tenant} has another (kmb cert renew there), or: "
        return f"{which} is {one.state}: {one.detail}; {by_itself}kmb key send {name.key_id} --to {one.recipient}"

    def _is_ours(self, one: Sent) -> bool:
        return one.name.owner == self._address


def _subject(name: KeyName, recipient: Address) -> str:
    return f"{name.key_id} v{name.version} {recipient}"


def _interrupted(name: KeyName, then: str) -> ConflictError:
    return ConflictError(
        "A rotation of this key was interrupted",
        on=f"{name.key_id} v{name.version}",
        hint=f"kmb agent run --once goes on with it; {then}",
    )


def _is_same_time(begun: Rotation, deadline: datetime | None, now: datetime) -> bool:
    """Tell whether a deadline is the one that was set, at its time or as long after the command as it was then."""
    if deadline is None or begun.deadline is None:
        return deadline == begun.deadline
    shift = (deadline - now) - (begun.deadline - begun.started_at)
    return deadline == begun.deadline or abs(shift) < _SAME


def _counting(sent: list[Sent]) -> Sent:
    """Return the deposit that says where a recipient stands: of the newest version it was given, the last one.

    That took the others' place; unless it came to nothing, and one of them can still be collected, or was answered or
    called off before.
    """
    given = max(one.name.version for one in sent)
    of_it = {one.deposit_id: one for one in sent if one.name.version == given}
    for one in reversed(of_it.values()):
        if one.state not in _GONE:
            return one
    last = old = list(of_it.values())[-1]
    while old.supersedes is not None and old.supersedes in of_it:
        old = of_it[old.supersedes]
        if old.state in _OVER:
            return old
    return last


def _standing(
    recipient: Address, sent: list[Sent], newest: int, removed: int, deadline: datetime | None, now: datetime
) -> Standing:
    last = _counting(sent)
    holds = {one.name.version for one in sent if one.state == "acknowledged" and one.receipt is not None}
    may_hold = {one.name.version for one in sent if one.state in _TAKEN} - holds
    if removed > last.name.version:
        standing = "removed"
    elif last.name.version < newest:
        # Who took no version at all is no holder: no rotation sends anything to it.
        standing = "failed" if last.state in NOT_HELD and not holds | may_hold else "behind"
    elif newest in holds:
        standing = "current"
    elif last.state in NOT_HELD:
        standing = "failed"
    else:
        standing = OVERDUE if deadline is not None and deadline <= now else "straggler"
    return Standing(
        recipient=recipient,
        standing=standing,
        given=last.name.version,
        state=last.state,
        detail=last.detail,
        deposit=last.deposit_id,
        deadline=deadline,
        holds=tuple(sorted(holds)),
        may_hold=tuple(sorted(may_hold)),
    )
