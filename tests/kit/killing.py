"""A real issuer process that is killed (SIGKILL) at a chosen step: by the adapters that it works with, not by mocks."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.forkserver import set_forkserver_preload
from pathlib import Path

from pki.server.adapters.linter import PkiLinter
from pki.server.adapters.profiles import FileProfiles
from pki.server.ports import CaKeys, CaSigner, Finding
from pki.server.services import retention
from pki.server.services.deps import Deps
from pki.server.settings import load_settings
from pki.server.store.engine import Store, Unit
from workers.handlers import Hands

Step = tuple[str, int, str]
STEPS: dict[str, Step] = {
    "claimed, nothing done": ("commit", 1, "after"),
    "while the batch is linted": ("lint", 3, "before"),
    "before serials are stored": ("commit", 2, "before"),
    "stored, not signed": ("commit", 2, "after"),
    "before the first signature": ("sign", 1, "before"),
    "after the first signature": ("sign", 1, "after"),
    "after the last signature": ("sign", 4, "after"),
    "before certificates are entered": ("commit", 3, "before"),
    "entered, job not finished": ("commit", 3, "after"),
    "before the job is finished": ("commit", 4, "before"),
    "finished": ("commit", 4, "after"),
}
"""For a batch of four: what is counted, at which call, before or after it. Commits: claim, store, enter, finish."""


@dataclass
class Death:
    """Ends the process at a step, as a power cut would: nothing is caught, closed or flushed."""

    what: str
    at: int
    when: str
    counts: int = 0

    @contextmanager
    def around(self, what: str) -> Iterator[None]:
        """Count one call of what may be the step."""
        if what != self.what:
            yield
            return
        self.counts += 1
        mine = self.counts == self.at
        if mine and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        yield
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)


class MortalStore(Store):
    """A store whose process may die just before or just after a commit."""

    def __init__(self, url: str, death: Death) -> None:
        super().__init__(url)
        self._death = death

    @contextmanager
    def unit(self, *, durable: bool = True) -> Iterator[Unit]:
        """Write, and perhaps die."""
        with self._death.around("commit") if self._death.when == "after" else _nothing():
            with super().unit(durable=durable) as unit:
                yield unit
                if self._death.when == "before":
                    with self._death.around("commit"):
                        pass


class MortalLinter(PkiLinter):
    """A linter whose process may die."""

    def __init__(self, death: Death) -> None:
        super().__init__()
        self._death = death

    def findings(self, certificate_der: bytes, /) -> Sequence[Finding]:
        """Lint, and perhaps die."""
        with self._death.around("lint"):
            return super().findings(certificate_der)


class MortalSigner:
    """A CA's key that writes down for good what it signs, as a token's memory might, and whose process may die."""

    def __init__(self, key: CaSigner, death: Death, memory: Path) -> None:
        self._key = key
        self._death = death
        self._memory = memory

    @property
    def certificate_der(self) -> bytes:
        """The issuing CA's certificate."""
        return self._key.certificate_der

    def sign(self, message: bytes, /) -> bytes:
        """Sign, remember, and perhaps die."""
        with self._death.around("sign"):
            signature = self._key.sign(message)
            handle = os.open(self._memory, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(handle, f"{message.hex()}\n".encode())
            os.close(handle)
            return signature


class MortalHands(Hands):
    """What a worker process works with, with a key that may be its last."""

    def __init__(self, deps: Deps, death: Death, memory: Path) -> None:
        super().__init__(deps, ["issue"])
        self._death = death
        self._memory = memory

    def _ca(self) -> CaKeys:
        keys = super()._ca()
        return CaKeys(MortalSigner(keys.current, self._death, self._memory), keys.former)


@dataclass(frozen=True)
class StillClock:
    """A clock that stands."""

    time: datetime

    def now(self) -> datetime:
        """Return the time."""
        return self.time


def kill(step: str | Step, *, home: Path, url: str, passphrase: str, now: datetime, memory: Path) -> int:
    """Let an issuer process work the queue off until it dies at a step; return how it ended, -9 for killed.

    A step is one of `STEPS` by its name, or another in the same form.
    """
    # A fork of a fresh process that has imported everything: quick, and without threads or connections of ours.
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_work, args=(step, home, url, passphrase, now, memory))
    process.start()
    process.join(60)
    assert process.exitcode is not None, "the issuer hangs"
    return process.exitcode


def _work(step: str | Step, home: Path, url: str, passphrase: str, now: datetime, memory: Path) -> None:
    death = Death(*(STEPS[step] if isinstance(step, str) else step))
    settings = load_settings(home=home, database_url=url, passphrase=passphrase)
    deps = Deps(MortalStore(url, death), settings, StillClock(now), MortalLinter(death), FileProfiles(home))
    MortalHands(deps, death, memory).drain("issue")


def kill_clearing(step: Step, *, home: Path, url: str, now: datetime) -> int:
    """Let a worker process delete bodies until it dies at a commit; return how it ended, -9 for killed."""
    process = multiprocessing.get_context("forkserver").Process(target=_clear, args=(step, home, url, now))
    process.start()
    process.join(60)
    assert process.exitcode is not None, "the worker hangs"
    return process.exitcode


def _clear(step: Step, home: Path, url: str, now: datetime) -> None:
    death = Death(*step)
    settings = load_settings(home=home, database_url=url)
    deps = Deps(MortalStore(url, death), settings, StillClock(now), PkiLinter(), FileProfiles(home))
    retention.retain(deps)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


set_forkserver_preload(["tests.kit.killing"])
