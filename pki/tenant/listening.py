"""Hear of what happens: on a stream where one gets through, else by long polls; from where we were when we stopped."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress

import httpx2

from pki.core.errors import KeymailboxError, MalformedError, UnavailableError
from pki.core.tenants import Address
from pki.tenant import messages
from pki.tenant.client import Client
from pki.tenant.journal import Journal
from pki.tenant.messages import EventView
from pki.tenant.records.marks import EVENTS
from pki.tenant.streams import Message

FIRST_SECONDS = 10.0
"""The server says where a stream begins at once: what says nothing for so long is held up by something in between."""
POLLING_SECONDS = 600.0
"""How long we ask instead of listening, before a stream is tried again."""
_POLL_SECONDS = 5.0
_LONGEST_PAUSE = 30.0
_MOST_HEARD = 1000
"""How many messages wait while a step takes its time; more stay with the server."""
_DIGITS = 19

_CAUSES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "keymailbox.deposit.available": {"recipient": ("receive",)},
    "keymailbox.deposit.acknowledged": {"sender": ("receipts",)},
    "keymailbox.deposit.refused": {"sender": ("receipts",)},
    "keymailbox.deposit.rejected": {"sender": ("rejections", "rewrap", "alarms")},
    "keymailbox.deposit.quarantined": {"sender": ("rewrap",)},
    "keymailbox.deposit.overdue": {"sender": ("alarms",)},
    "keymailbox.certificate.revoked": {"address": ("revocations", "renew", "rewrap")},
    "keymailbox.certificate.expiring": {"address": ("renew", "reminders")},
}
"""Which steps an event asks for, by whom of those whom it names we are."""


class Listener:
    """Says which steps are worth doing now. One thread uses it; another, of its own, reads the stream."""

    def __init__(
        self, client: Client, journal: Journal, address: Address, sleep: Callable[[float], None], *, stream: bool = True
    ) -> None:
        """Listen as ``address``; without ``stream`` only by long polls."""
        self._client = client
        self._marks = journal.marks
        self._address = address
        self._sleep = sleep
        self._last = _place(self._marks.text(EVENTS))
        self._heard: _Heard = queue.Queue()
        self._open: ExitStack | None = None
        self._polls_until = 0.0 if stream else float("inf")
        self._not_before = 0.0
        self._failures = 0

    @property
    def mode(self) -> str:
        """How we hear: ``stream``, ``polling``, or ``away`` while neither works."""
        if self._failures:
            return "away"
        return "polling" if self._polling else "stream"

    def begin(self) -> None:
        """Begin to listen, so that nothing falls between a first look at everything and the first news.

        Raises what keeps us from it; `wait` tries again.
        """
        try:
            if self._polling:
                self._last = self._last or str(self._client.newest_event())
            elif self._open is None:
                self._connect()
        except KeymailboxError as error:
            self._failures += 1
            pause = min(2.0**self._failures, _LONGEST_PAUSE)
            self._not_before = time.monotonic() + max(pause, min(error.retry_after or 0, 10 * _LONGEST_PAUSE))
            raise
        self._failures = 0

    def wait(self, seconds: float) -> frozenset[str]:
        """Return the steps that events ask for, as soon as there is one; none after ``seconds``."""
        if time.monotonic() < self._not_before:
            self._sleep(min(seconds, max(0.0, self._not_before - time.monotonic())))
            return frozenset()
        self.begin()
        return self._poll() if self._polling else self._listen(seconds)

    def keep(self) -> None:
        """Write down how far we have heard: what was heard is done, or will be looked at by itself."""
        if self._last and self._last != self._marks.text(EVENTS):
            self._marks.set(EVENTS, self._last)

    def close(self) -> None:
        """Listen no more."""
        if self._open is not None:
            self._open.close()
            self._open = None

    @property
    def _polling(self) -> bool:
        return time.monotonic() < self._polls_until

    def _connect(self) -> None:
        opened = ExitStack()
        try:
            heard: _Heard = queue.Queue(_MOST_HEARD)
            over = threading.Event()
            pieces = opened.enter_context(self._client.stream(self._last))
            opened.callback(over.set)
            threading.Thread(target=_read, args=(pieces, heard, over), name="stream", daemon=True).start()
            first = heard.get(timeout=FIRST_SECONDS)
            if isinstance(first, KeymailboxError):
                raise first
            if not _place(first.id):
                raise KeymailboxError("The server does not say where its stream begins")
        except queue.Empty:
            opened.close()
            self._ask_instead()
        except KeymailboxError as error:
            opened.close()
            if error.code in _NO_STREAM:
                self._ask_instead()
            else:
                raise
        else:
            self._open, self._heard = opened, heard
            self._last = first.id

    def _ask_instead(self) -> None:
        self._polls_until = time.monotonic() + POLLING_SECONDS
        self._last = self._last or str(self._client.newest_event())

    def _listen(self, seconds: float) -> frozenset[str]:
        steps: set[str] = set()
        deadline = time.monotonic() + seconds
        while True:
            try:
                # What has come by now is done together.
                timeout = 0.0 if steps else max(0.0, deadline - time.monotonic())
                heard = self._heard.get(block=timeout > 0, timeout=timeout or None)
            except queue.Empty:
                return frozenset(steps)
            if isinstance(heard, KeymailboxError):
                # Ended, by whichever side: the next wait goes on where this one was.
                self.close()
                return frozenset(steps)
            self._last = _place(heard.id) or self._last
            steps |= self._asked(_event(heard)) if heard.data else set()

    def _poll(self) -> frozenset[str]:
        found, following = self._client.events(after=int(self._last or 0), wait=_POLL_SECONDS)
        self._last = str(following)
        return frozenset(step for one in found for step in self._asked(one))

    def _asked(self, event: EventView | None) -> set[str]:
        if event is None:
            return set()
        own = str(self._address)
        return {
            step for who, steps in _CAUSES.get(event.type, {}).items() if event.data.get(who) == own for step in steps
        }


_NO_STREAM = frozenset({"not-found", "error", "method-not-allowed"})
"""What a server of before, or something in between, says of a stream."""


_Heard = queue.Queue[Message | KeymailboxError]


def _read(pieces: Iterator[Message], heard: _Heard, over: threading.Event) -> None:
    try:
        for message in pieces:
            if not _put(heard, message, over):
                return
        _put(heard, UnavailableError("The stream has ended"), over)
    except KeymailboxError as error:
        _put(heard, error, over)
    except (httpx2.HTTPError, httpx2.StreamError, OSError, ValueError) as error:
        _put(heard, UnavailableError("The stream was cut off", on=type(error).__name__), over)


def _put(heard: _Heard, message: Message | KeymailboxError, over: threading.Event) -> bool:
    """Wait for room, unless nobody listens any more: then False."""
    while not over.is_set():
        with suppress(queue.Full):
            heard.put(message, timeout=0.5)
            return True
    return False


def _place(text: str) -> str:
    """Return a place in the stream as we go on from it; empty for what is none.

    It is remembered: whatever a server says once must not keep us from listening for ever.
    """
    return text if text.isascii() and text.isdigit() and len(text) <= _DIGITS else ""


def _event(message: Message) -> EventView | None:
    """Return the event in a message; None for what is none: it is only a hint, and the mailbox is looked at anyway."""
    try:
        return messages.event_view(messages.mapping(json.loads(message.data)))
    except (MalformedError, ValueError, RecursionError):
        return None
