"""Rotations of a key of ours, from the intention to the last receipt: who has it, who is behind, who was removed."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from pki.core.errors import ConflictError, KeymailboxError, NotFoundError, UsageError
from pki.core.ids import DepositId, KeyId, key_id
from pki.core.keyattributes import KeyAttributes, of_next_version
from pki.core.packages import OCTETS, KeyMaterial, encode_package
from pki.core.tenants import Address
from pki.tenant.deposits import Campaign, Deposits
from pki.tenant.journal import Journal
from pki.tenant.ports import KeyHolder, KeyName
from pki.tenant.records.alarms import Alarm
from pki.tenant.records.rotations import INTENDED, Rotation
from pki.tenant.records.sent import NOT_HELD, Sent

OVERDUE = "overdue"
"""The kind of the alarm for a recipient that has not signed in time."""
_TAKEN = frozenset({"collected", "acknowledged"})


@dataclass(frozen=True)
class Standing:
    """Where one recipient stands with a key of ours.

    ``standing``: current (signed for the newest version), straggler (not yet), overdue (nor by the deadline), failed
    (sent and not accepted), behind (not sent the newest version), removed. ``holds`` are the versions that it signed
    for, ``may_hold`` those that it took without an answer; ``deposit`` is the last one sent to it, version ``given``.
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

        First the intention is written down, then the key is kept, then the deposits are planned: killed anywhere,
        ``tend`` or the same command again goes on with this version and makes no other.
        """
        identifier = key_id(name)
        if deadline is not None and deadline <= now:
            raise UsageError("A deadline lies ahead", on=deadline.isoformat(), hint="--deadline 7d")
        begun = next(iter(self._journal.rotations.all(state=INTENDED, owner=self._address, key_id=identifier)), None)
        if begun is not None:
            again = self._again(begun, except_, key, deadline)
            if again:
                return self._run(begun, now, wait)
        newest = self.newest(identifier)
        if newest == 0:
            raise NotFoundError("There is no such key of ours", on=name, hint=f"kmb key create {name}")
        old = self._holder.load_key(KeyName(self._address, identifier, newest))
        if key is None and old.media_type != OCTETS:
            hint = f"kmb key rotate {name} --in FILE"
            raise UsageError("A key of this media type is not made of random bytes", on=old.media_type, hint=hint)
        holders, removed = self._deposits.holders(KeyName(self._address, identifier, newest), except_)
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

    def tend(self, now: datetime) -> list[Alarm]:
        """Go on with what was interrupted, take back what is on its way to the removed, and name who is overdue."""
        for begun in self._journal.rotations.all(state=INTENDED, owner=self._address):
            if begun.name in self._holder.shared_keys():
                self._run(begun, now, 0)
            else:
                self._journal.rotations.forget(begun.name)
        self._deposits.take_back_from_removed()
        return [alarm for overview in self.overviews(now) for alarm in self._alarms(overview, now)]

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

    def _again(self, begun: Rotation, except_: Collection[str], key: bytes | None, deadline: datetime | None) -> bool:
        """Say whether an interrupted rotation is the one that is asked for now; forget it when nothing came of it."""
        if begun.name not in self._holder.shared_keys():
            self._journal.rotations.forget(begun.name)
            return False
        _, removed = self._deposits.holders(begun.name, except_)
        same = (set(removed), deadline) == (set(begun.removed), begun.deadline)
        if not same or (key is not None and key != self._holder.load_key(begun.name).key):
            raise ConflictError(
                "A rotation of this key was interrupted",
                on=f"{begun.name.key_id} v{begun.name.version}",
                hint="kmb agent run --once goes on with it; then rotate again",
            )
        return True

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
        try:
            self._deposits.take_back_from_removed()
        except KeymailboxError:
            # The agent's next round does it: the new version is on its way, and that is what counts.
            return campaign
        return campaign

    def _alarms(self, overview: Overview, now: datetime) -> list[Alarm]:
        alarms = []
        for one in self.standings(overview.name.key_id, now):
            subject = f"{overview.name.key_id} v{overview.name.version} {one.recipient}"
            if one.standing == OVERDUE:
                detail = f"no receipt by {overview.deadline:%Y-%m-%d %H:%M}, the deposit is {one.state}"
                if self._journal.alarms.standing(OVERDUE, subject):
                    continue
                alarms.append(self._journal.alarms.sound(OVERDUE, subject, detail, now))
            elif one.standing == "current":
                self._journal.alarms.clear(OVERDUE, subject)
        return alarms

    def _is_ours(self, one: Sent) -> bool:
        return one.name.owner == self._address


def _standing(
    recipient: Address, sent: list[Sent], newest: int, removed: int, deadline: datetime | None, now: datetime
) -> Standing:
    # Of several deposits of one version the last one counts: it took the others' place.
    last = max(enumerate(sent), key=lambda place: (place[1].name.version, place[0]))[1]
    holds = {one.name.version for one in sent if one.state == "acknowledged" and one.receipt is not None}
    may_hold = {one.name.version for one in sent if one.state in _TAKEN} - holds
    if removed > last.name.version:
        standing = "removed"
    elif last.name.version < newest:
        standing = "behind"
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
