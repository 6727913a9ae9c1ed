"""The rounds of an agent that runs: what each step did, what stopped it, and when the next one begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from pki.core.errors import KeymailboxError, UnavailableError
from pki.tenant.deposits import Campaign, Delivery
from pki.tenant.mailbox import Received
from pki.tenant.messages import ExpiringView
from pki.tenant.ports import Clock
from pki.tenant.receipts import Answers
from pki.tenant.records.alarms import Alarm
from pki.tenant.records.own import OwnCertificate
from pki.tenant.rewrapping import Rewrapped


@dataclass
class Round:
    """What one round of ``run`` did; ``failed`` names each step that was stopped, and by what, ``done`` the others."""

    at: datetime
    revoked: list[Alarm] = field(default_factory=list)
    renewed: list[OwnCertificate] = field(default_factory=list)
    reminders: list[ExpiringView] = field(default_factory=list)
    resumed: Campaign | None = None
    rotated: list[Campaign] = field(default_factory=list)
    received: Received = field(default_factory=Received)
    answers: Answers = field(default_factory=Answers)
    rejected: list[Delivery] = field(default_factory=list)
    rewrapped: Rewrapped = field(default_factory=Rewrapped)
    overdue: list[Alarm] = field(default_factory=list)
    failed: list[tuple[str, KeymailboxError]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)

    @property
    def campaigns(self) -> list[Campaign]:
        """What was gone on with."""
        return [*([self.resumed] if self.resumed else []), *self.rotated]


Step = tuple[str, Callable[[], object]]
"""Where a round writes down what came of a step, and the step."""
_LISTEN = "listen"
"""What has failed where no news can be heard."""
EVERY = {
    "receive": 60.0,
    "receipts": 60.0,
    "rejections": 60.0,
    "rewrap": 30.0,
    "resume": 60.0,
    "campaigns": 60.0,
    "alarms": 60.0,
    "revocations": 60.0,
    "reminders": 600.0,
    "renew": 600.0,
}
"""Seconds after which a step is done although nobody asked for it: events are hints, and some things have none."""
_SLICE = 1.0
"""Seconds between looks at whether to stop, and signs of life."""
_SOON, _RETRY_MOST = 2.0, 300.0


class News(Protocol):
    """Where one hears which steps are worth doing."""

    def begin(self) -> None:
        """Begin to listen."""

    def wait(self, seconds: float) -> frozenset[str]:
        """Return the steps that something asks for, at the latest after some seconds."""

    def keep(self) -> None:
        """Remember how far was heard."""


class Pace:
    """When each step is due again."""

    def __init__(self, steps: Iterable[str], scale: float, now: float) -> None:
        """All at once at first, then each after its time in `EVERY`, ``scale`` times as long."""
        self._scale = scale
        self._due = dict.fromkeys(steps, now)
        self._failures = dict.fromkeys(self._due, 0)

    def due(self, now: float, asked: Collection[str]) -> list[str]:
        """Return what is to be done now, in order."""
        return [step for step, at in self._due.items() if step in asked or at <= now]

    def done(self, step: str, now: float, *, failed: bool) -> None:
        """A step was done; one that failed is tried again soon, and then later and later."""
        self._failures[step] = self._failures[step] + 1 if failed else 0
        pause = EVERY[step] * self._scale
        if failed:
            pause = min(_SOON * 2 ** min(self._failures[step] - 1, 10), _RETRY_MOST, max(pause, _SOON))
        self._due[step] = now + pause

    def rest(self, now: float) -> float:
        """Return in how many seconds the next step is due."""
        return max(0.0, min(self._due.values()) - now)


def once(steps: Mapping[str, Step], at: datetime) -> Round:
    """Do each step."""
    result = Round(at)
    for name, step in steps.items():
        _do(result, name, step)
    return result


def run(
    steps: Mapping[str, Step],
    news: News,
    *,
    clock: Clock,
    scale: float,
    stop: Callable[[], bool],
    alive: Callable[[], None],
) -> Iterator[Round]:
    """Do what is due and what events ask for, round by round, until ``stop``; ``alive`` is called all the while.

    ``scale`` stretches or shortens the times in `EVERY`.
    """
    pace = Pace(steps, scale, time.monotonic())
    # Listening first, looking second: nothing falls between.
    trouble = _heeded(news.begin)
    asked: frozenset[str] = frozenset()
    while not stop():
        alive()
        names = pace.due(time.monotonic(), asked)
        if names or trouble is not None:
            result = Round(clock())
            if trouble is None:
                result.done.append(_LISTEN)
            else:
                result.failed.append((_LISTEN, trouble))
            for name in names:
                if stop():
                    break
                failed = not _do(result, name, steps[name])
                pace.done(name, time.monotonic(), failed=failed or _is_held(result, name))
                alive()
            _heeded(news.keep)
            yield result
            if stop():
                return
        asked = frozenset()
        try:
            asked, trouble = news.wait(min(pace.rest(time.monotonic()), _SLICE)), None
        except KeymailboxError as error:
            trouble = error


def _do(result: Round, name: str, step: Step) -> bool:
    """Do one step; that it fails does not keep the round from its other steps."""
    place, act = step
    try:
        setattr(result, place, act())
    except KeymailboxError as error:
        result.failed.append((name, error))
        return False
    except OSError as error:
        result.failed.append((name, UnavailableError("This machine does not do it", on=str(error), hint="df -h")))
        return False
    result.done.append(name)
    return True


def _is_held(result: Round, name: str) -> bool:
    """Say whether a step left something undecided, which is worth a look before its time."""
    return bool(result.received.held if name == "receive" else name == "receipts" and result.answers.held)


def _heeded(act: Callable[[], None]) -> KeymailboxError | None:
    try:
        act()
    except KeymailboxError as error:
        return error
    return None
