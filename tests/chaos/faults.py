"""The faults: each does its harm, ends it, and says since when the service has to be at work again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.chaos.ground import PROCESSES, Ground
from tests.kit.proxy import TcpProxy


@dataclass(frozen=True)
class Done:
    """A fault that is over. Times are of the monotonic clock."""

    what: str
    began: float
    """When the harm was done."""
    up: float
    """From when on nothing kept the service from its work: a database has started again, a line is there again."""
    kills: int = 0


Fault = Callable[[Ground, random.Random], Done]


def _kill(*names: str) -> Fault:
    def fault(ground: Ground, luck: random.Random) -> Done:
        name = luck.choice(names)
        ground.ready(name)
        began = time.monotonic()
        ground.kill(name)
        return Done(f"kill {name.partition('-')[0]}", began, began, 1)

    return fault


def _kill_service(name: str) -> Fault:
    def fault(ground: Ground, luck: random.Random) -> Done:
        began = time.monotonic()
        return Done(f"kill {name}", began, ground.kill_service(name), 1)

    return fault


def kill_several(ground: Ground, luck: random.Random) -> Done:
    """Three processes at once, as when a machine loses its power."""
    names = luck.sample(PROCESSES, k=3)
    # Not counted: what is still starting after the fault before.
    ground.ready(*names)
    began = time.monotonic()
    ground.kill(*names)
    return Done("kill three", began, began, 3)


def empty(ground: Ground, luck: random.Random) -> Done:
    """The broker forgets every wake-up."""
    began = time.monotonic()
    ground.empty_broker(delete=False)
    return Done("queues emptied", began, began)


def delete(ground: Ground, luck: random.Random) -> Done:
    """The queues themselves are gone."""
    began = time.monotonic()
    ground.empty_broker(delete=True)
    return Done("queues deleted", began, began)


def delete_and_kill(ground: Ground, luck: random.Random) -> Done:
    """The broker dies while its queues are being declared again: no more than a queue's name may be left."""
    ground.empty_broker(delete=True)
    time.sleep(luck.uniform(0, 1.5))
    began = time.monotonic()
    return Done("queues half made", began, ground.kill_service("rabbitmq"), 1)


def cut(ground: Ground, luck: random.Random) -> Done:
    """All connections to one of them are dropped, and refused for a while."""
    what, proxy = luck.choice(list(_lines(ground).items()))
    began = time.monotonic()
    proxy.cut()
    time.sleep(luck.uniform(0, 1.5))
    proxy.restore()
    return Done(f"cut from {what}", began, time.monotonic())


def swallow(ground: Ground, luck: random.Random) -> Done:
    """Nothing gets through, and nobody is told: then all of it does."""
    what, proxy = luck.choice(list(_lines(ground).items()))
    began = time.monotonic()
    proxy.hold()
    time.sleep(luck.uniform(1, 3))
    proxy.restore()
    return Done(f"{what} silent", began, time.monotonic())


def pause(ground: Ground, luck: random.Random) -> Done:
    """A process stands still, and goes on as if nothing had been."""
    name = luck.choice(PROCESSES)
    began = time.monotonic()
    ground.pause(name, luck.uniform(0.5, 3))
    return Done(f"pause {name.partition('-')[0]}", began, time.monotonic())


def clock(ground: Ground, luck: random.Random) -> Done:
    """The server's clock is wrong by up to a minute and a half, either way, and is set right again."""
    began = time.monotonic()
    seconds = luck.uniform(5, 90) * luck.choice((-1, 1))
    ground.move_clock(seconds)
    time.sleep(luck.uniform(1, 3))
    ground.move_clock(0)
    return Done(f"clock {'ahead' if seconds > 0 else 'behind'}", began, time.monotonic())


def _lines(ground: Ground) -> Mapping[str, TcpProxy]:
    installation = ground.installation
    return {"database": installation.database, "broker": installation.broker, "clients": ground.front}


KINDS: Mapping[str, tuple[int, Fault]] = {
    "api": (8, _kill("api-1", "api-2")),
    "validator": (8, _kill("validator-1", "validator-2")),
    "worker": (4, _kill("worker")),
    "relay": (6, _kill("relay")),
    "issuer": (4, _kill("issuer")),
    "sequencer": (6, _kill("sequencer")),
    "beat": (2, _kill("beat")),
    "postgres": (3, _kill_service("postgres")),
    "rabbitmq": (3, _kill_service("rabbitmq")),
    "several": (6, kill_several),
    "empty": (2, empty),
    "delete": (2, delete),
    "half": (2, delete_and_kill),
    "cut": (3, cut),
    "swallow": (2, swallow),
    "pause": (2, pause),
    "clock": (2, clock),
}
"""Each kind with its weight; the first round has each once."""


def plan(luck: random.Random) -> list[str]:
    """Return the next kinds: each once in the first place, then by weight."""
    first = list(KINDS)
    luck.shuffle(first)
    weights = [weight for weight, _ in KINDS.values()]
    return first + luck.choices(list(KINDS), weights, k=5000)
