"""Receive: go through the mailbox in order, decide on each deposit once, answer it, and notice what is missing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pki.core.errors import KeymailboxError, MalformedError, NotFoundError, UnavailableError, WrongPartyError
from pki.core.ids import DepositId
from pki.core.tenants import Address
from pki.tenant.client import MAX_ANSWERS, Client
from pki.tenant.directory import Peer
from pki.tenant.journal import Journal
from pki.tenant.messages import DepositView
from pki.tenant.opening import HoldError, Opener, Taken
from pki.tenant.ports import Clock
from pki.tenant.records.alarms import Alarm
from pki.tenant.records.marks import MAILBOX
from pki.tenant.records.seen import Seen

_PAGE = 100
_BATCH = 100
_BATCH_BYTES = 8 * 1024 * 1024
"""Deposits of one collection, and their bytes without base64; one alone may be larger."""
_LEAP = 100_000
_OPEN = frozenset({"available", "collected"})
_ENDED = frozenset({"acknowledged", "refused", "expired", "withdrawn", "superseded"})


@dataclass(frozen=True)
class Held:
    """A deposit that could not be decided on yet; it is tried again next time."""

    deposit_id: DepositId
    sequence: int
    error: KeymailboxError


@dataclass
class Received:
    """What one round of receiving brought."""

    taken: list[Taken] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    alarms: dict[tuple[str, str], Alarm] = field(default_factory=dict)
    """By kind and subject."""


class Mailbox:
    """Our mailbox at the server."""

    def __init__(self, client: Client, journal: Journal, opener: Opener, address: Address) -> None:
        self._client = client
        self._journal = journal
        self._opener = opener
        self._address = address
        self._began = False

    def listed(self) -> list[DepositView]:
        """Return every deposit that the server shows in our mailbox."""
        found: list[DepositView] = []
        after = 0
        while True:
            views, following = self._client.page(self._address, after=after, limit=_PAGE)
            found.extend(views)
            if not views or following <= after:
                return found
            after = following

    def receive(self, clock: Clock, *, wait: float = 0, stop: Callable[[], bool] = lambda: False) -> Received:
        """Take everything new, or what comes before ``stop``. ``wait``: seconds to wait when there is nothing."""
        received = Received()
        now = clock()
        received.taken += self._opener.recovered(now)
        self._tell(self._journal.seen.unanswered(), received, now)
        self._look_for_missing(received, now)
        cursor = after = self._journal.marks.number(MAILBOX)
        if not self._began:
            # Later, when there is nothing new: whoever receives all the time looks often enough.
            self._check_remembers(cursor, received, now)
            self._began = True
        settled = True
        while True:
            views, _ = self._client.page(self._address, after=after, limit=_PAGE, wait=wait)
            # The wait may have been long: what came is judged, and signed for, at the time it came.
            now = clock()
            wait = 0
            if not views:
                self._check_remembers(cursor, received, now)
                return received
            self._check_order(views, after, received, now)
            done = self._take_all(views, received, now)
            for view in views:
                settled = settled and view.sequence in done
                if settled:
                    cursor = view.sequence or cursor
            # Past what is undecided the cursor does not go: it is read again next time.
            self._journal.marks.set(MAILBOX, str(cursor))
            after = views[-1].sequence or after
            if len(views) < _PAGE or stop():
                return received

    def _check_order(self, views: Sequence[DepositView], after: int, received: Received, now: datetime) -> None:
        """Numbers go on one by one from ``after``; one that is left out raises an alarm."""
        for view in views:
            number = view.sequence
            if number is None or not after < number <= after + _LEAP:
                on = f"{number} after {after}"
                raise MalformedError("The server's mailbox page is not in order", on=on, hint="kmb doctor")
            missing = range(after + 1, number)
            self._journal.marks.note_holes(missing, now)
            for lost in missing:
                self._alarm(received, "missing", str(lost), "The server does not show this number", now)
            after = number

    def _check_remembers(self, cursor: int, received: Received, now: datetime) -> None:
        """Raise an alarm when the server has forgotten what we have read: what is new would get numbers behind us."""
        known = self._journal.seen.last(cursor)
        if known is None:
            return
        number = known.sequence
        views, _ = self._client.page(self._address, after=number - 1, limit=1)
        if any((view.sequence, view.id) == (number, known.deposit_id) for view in views):
            self._journal.alarms.clear("set back", str(number))
            return
        detail = "The server has forgotten this number: was its database set back? What comes up to it is not read"
        self._alarm(received, "set back", str(number), detail, now)

    def _look_for_missing(self, received: Received, now: datetime) -> None:
        for number in self._journal.marks.open_holes():
            views, _ = self._client.page(self._address, after=number - 1, limit=1)
            found = [view for view in views if view.sequence == number and not self._is_replay(view)]
            if not found:
                self._alarm(received, "missing", str(number), "The server does not show this number", now)
            elif number in self._take_all(found, received, now):
                self._journal.marks.fill_hole(number, now)
                self._journal.alarms.clear("missing", str(number))

    def _take_all(self, views: Sequence[DepositView], received: Received, now: datetime) -> set[int]:
        """Decide on what is open, and return the numbers that are settled."""
        done: set[int] = set()
        waiting: list[DepositView] = []
        again: list[Seen] = []
        for view in views:
            number = view.sequence or 0
            seen = self._journal.seen.of(view.id)
            if self._is_replay(view):
                self._alarm(received, "replayed", view.id, f"number {number} now shows a deposit seen before", now)
                # What belongs at this number is still to come.
                self._journal.marks.note_holes([number], now)
                done.add(number)
            elif view.state not in _OPEN:
                done.add(number)
            elif seen is not None:
                if view.state == "available":
                    # The server has forgotten that it handed this out.
                    self._client.collect(self._address, [view.id])
                again.append(seen)
                done.add(number)
            else:
                waiting.append(view)
        self._tell(again, received, now)
        peers: dict[Address, Peer] = {}
        for batch in _batches(waiting):
            done |= self._take_batch(batch, peers, received, now)
        return done

    def _is_replay(self, view: DepositView) -> bool:
        """Say whether this deposit came under another number before, or another deposit under this number."""
        seen = self._journal.seen.of(view.id)
        at = self._journal.seen.at(view.sequence or 0)
        return (seen is not None and seen.sequence != view.sequence) or (at is not None and at.deposit_id != view.id)

    def _take_batch(
        self, views: Sequence[DepositView], peers: dict[Address, Peer], received: Received, now: datetime
    ) -> set[int]:
        done: set[int] = set()
        decided: list[Seen] = []
        bodies = {one.id: one for one in self._client.collect(self._address, [view.id for view in views])}
        for view in views:
            number = view.sequence or 0
            got = bodies.get(view.id)
            if got is None or got.body is None:
                error = (got.error if got else None) or UnavailableError("The server left the deposit out")
                received.held.append(Held(view.id, number, error))
                continue
            if hashlib.sha256(got.body).hexdigest() != view.sha256:
                # On the way, or at rest: the right bytes may come next time.
                self._alarm(received, "altered", view.id, "the bytes are not the ones that are listed", now)
                received.held.append(Held(view.id, number, WrongPartyError("These are other bytes than listed")))
                continue
            try:
                seen, taken = self._opener.decide(view, got.body, peers, now)
            except HoldError as hold:
                received.held.append(Held(view.id, number, hold.error))
                continue
            if taken.altered:
                self._alarm(received, "altered", view.id, taken.reason, now)
            decided.append(seen)
            received.taken.append(taken)
            done.add(number)
        self._tell(decided, received, now)
        return done

    def _tell(self, decided: Sequence[Seen], received: Received, now: datetime) -> None:
        """Hand answers in. When a deposit has ended otherwise, there is nothing left to answer."""
        for start in range(0, len(decided), MAX_ANSWERS):
            batch = decided[start : start + MAX_ANSWERS]
            results = self._client.answer_all([(seen.deposit_id, seen.answer) for seen in batch])
            told = []
            for seen, error in zip(batch, results, strict=True):
                if error is not None and not self._is_over(seen):
                    detail = f"the answer is not taken: {error}"
                    self._alarm(received, "unanswered", seen.deposit_id, detail, now)
                    continue
                if error is not None:
                    self._journal.alarms.clear("unanswered", seen.deposit_id)
                told.append(seen.deposit_id)
            self._journal.seen.mark_answered(told)

    def _is_over(self, seen: Seen) -> bool:
        try:
            return self._client.status(seen.deposit_id).state in _ENDED
        except NotFoundError:
            # A server that has forgotten it must not keep us from everything else.
            return False

    def _alarm(self, received: Received, kind: str, subject: str, detail: str, now: datetime) -> None:
        received.alarms[kind, subject] = self._journal.alarms.sound(kind, subject, detail, now)


def _batches(views: Sequence[DepositView]) -> Iterator[list[DepositView]]:
    batch: list[DepositView] = []
    size = 0
    for view in views:
        if batch and (len(batch) == _BATCH or size + view.size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(view)
        size += view.size
    if batch:
        yield batch
