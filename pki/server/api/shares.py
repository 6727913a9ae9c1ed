"""A fair share of one process for each tenant: who has more under way than that waits in a line of its own."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable

from starlette.requests import HTTPConnection
from starlette.types import Scope

from pki.core.errors import BusyError

ALONE = 128
"""How many requests of one tenant are under way at once while nobody else is there."""
SHARED = 4
"""How many of all tenants are while several are there: enough to keep a process busy, few enough to pass quickly."""
TIGHT = 2
"""The same while the process does not keep up."""
LEAST = 1
"""How many each tenant may have under way, however many are there."""
STRANGERS, LARGE = "from ", "large from "
"""How lanes begin of requests that nobody has signed, and of large bodies that nobody has proved, by the address that
they come from."""
LINE, SHORT_LINE = 256, 32
"""How many requests of one tenant wait for their turn, alone and with others there; the next is told to come again."""
PATIENCE_SECONDS = 5.0
"""How long one of them waits."""
YIELDS, QUIET_SECONDS = 2, 0.05
"""While a request of a tenant without a line has just begun, who has a line lets it go first, but never more than so
many of them for one of its own: a few who ask for little are served at once, and keep nobody out."""
REMEMBERED_SECONDS = 2.0
"""For how long a tenant counts as being there after its last request."""
RETRY_SECONDS = 1
LATE_SECONDS = 0.005
"""When what is due runs later than this, the process does not keep up."""
LONGEST_PAUSE_SECONDS = 0.1
"""A turn of who has a line is followed by a pause as long as it was, or longer (see above and below, and while the
process still does not keep up): this at most. What is left in between is for the others."""
LIGHT, LIGHT_SECONDS = 0.75, 0.5
"""Who has asked within this time, had fewer turns than this at once on average over about as long, and has no line,
asks for little."""
FOR_LIGHT_PAUSE = 3
"""While such a tenant is there, who has a line has one turn at a time and a pause so many times as long after it; those
who have lines share that: held back is one that floods, and not a server that has much to do for many. Their lines are
half as long, for who waits at the end waits longer."""
STRANGERS_PAUSE = 8
"""After a stranger's the pause is so many times as long: what anybody may ask is answered quickly, and asked again."""
AT_ONCE = 20
"""How many refusals of what got no turn are answered at once in a second; the others are held for one."""
HELD_SECONDS = 1.0
MOST_HELD = 4096

_TICK_SECONDS = 0.02
_TURN = "keymailbox.turn"


class Turn:
    """One request's turn: held while something is done for it, not while it waits for news."""

    def __init__(self, shares: Shares, lane: str) -> None:
        self._shares = shares
        self._lane = lane
        self._held = True
        self._since = shares.now()

    def rest(self) -> None:
        """Let others go on; the same again changes nothing."""
        if self._held:
            self._held = False
            self._shares.leave(self._lane, self._since)

    async def resume(self) -> None:
        """Wait for the turn again, however long the line is: who is here holds a place already."""
        if not self._held:
            await self._shares.enter(self._lane, patient=True)
            self._held, self._since = True, self._shares.now()


class _Use:
    """How many turns a tenant has, and had on average lately."""

    __slots__ = ("_average", "_since", "_turns", "last")

    def __init__(self, now: float, turns: int) -> None:
        self.last = now
        """When it last asked."""
        self._turns = turns
        self._average = float(turns)
        self._since = now

    def count(self, change: int, now: float) -> None:
        self._average = self.average(now)
        self._since = now
        self._turns += change

    def average(self, now: float) -> float:
        return self._turns + (self._average - self._turns) * math.exp((self._since - now) / LIGHT_SECONDS)


class Shares:
    """The turns of one process; used in its event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock`` tells seconds that only go on."""
        self._clock = clock
        self._taken: Counter[str] = Counter()
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}
        self._seen: OrderedDict[str, _Use] = OrderedDict()
        """Tenants that were there lately, who asked last at the end."""
        self._begun = 0
        """How many requests of tenants found their turn without a line."""
        self._passed: dict[str, int] = {}
        """What that was when each line was last let on."""
        self._patient: Counter[str] = Counter()
        """How many in each line wait however long it takes: they hold a place already."""
        self._room = SHARED
        self._pause = 0.0
        self._refused = (0, 0)
        self._held = 0

    @property
    def under_way(self) -> int:
        """How many requests have a turn now."""
        return self._taken.total()

    def look(self, lane: str) -> None:
        """Raise BusyError when a request would not even find a place in the line.

        Nothing is counted: so it may be asked about who a request says that it is from.
        """
        line, now = self._lines.get(lane), self._clock()
        light = self._is_somebody_light(now)
        room = LINE if self._allowed(lane, now, light=light) == ALONE else SHORT_LINE // 2 if light else SHORT_LINE
        if line and len(line) - self._patient[lane] >= room:
            raise BusyError("Too many requests of yours are under way", on=lane, retry_after=RETRY_SECONDS)

    async def turn(self, scope: Scope, lane: str) -> None:
        """Wait for a request's turn; it ends with `end`. Raises BusyError when its lane has too much under way."""
        self.look(lane)
        await self.enter(lane)
        scope[_TURN] = Turn(self, lane)

    async def enter(self, lane: str, *, patient: bool = False) -> None:
        """Take a turn; raises BusyError after a while, unless ``patient``."""
        now = self._clock()
        known = _is_known(lane)
        if known:
            if lane not in self._seen:
                # One that was forgotten may still have turns.
                self._seen[lane] = _Use(now, self._taken[lane])
            self._seen[lane].last = now
            self._seen.move_to_end(lane)
        line = self._lines.get(lane)
        # Without a line of its own it makes no difference to it whether somebody asks for little.
        if not line and self._taken[lane] < self._allowed(lane, now, light=False):
            self._count(lane, 1, now)
            self._begun += known
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(lane, deque()).append(future)
        self._patient[lane] += patient
        try:
            async with asyncio.timeout(None if patient else PATIENCE_SECONDS):
                await future
        except (TimeoutError, asyncio.CancelledError) as error:
            if future.done() and not future.cancelled():
                self._give_back(lane)
            self._forget(lane, future)
            if isinstance(error, TimeoutError):
                raise BusyError("Your requests take too long", on=lane, retry_after=RETRY_SECONDS) from None
            raise
        finally:
            self._patient[lane] -= patient
            if not self._patient[lane]:
                del self._patient[lane]

    def now(self) -> float:
        """Return the time that turns are measured by."""
        return self._clock()

    def leave(self, lane: str, since: float) -> None:
        """Give back a turn that was taken at ``since``, to who waits: one of each lane, in turn."""
        now = self._clock()
        light = self._is_somebody_light(now)
        if lane in self._lines and self._allowed(lane, now, light=light) < ALONE:
            length = now - since
            if lane.startswith(STRANGERS):
                length *= STRANGERS_PAUSE
            elif light and _is_known(lane):
                length *= max(1.0, FOR_LIGHT_PAUSE / sum(map(_is_known, self._lines)))
            pause = min(LONGEST_PAUSE_SECONDS, max(self._pause, length))
            asyncio.get_running_loop().call_later(pause, self._give_back, lane)
        else:
            self._give_back(lane)

    async def hold(self, scope: Scope) -> None:
        """Wait before a refusal is told, where there are many of them and no turn was taken for this one.

        Who asks again and again without heeding Retry-After is so slowed down to the pace of an answer; holding one
        costs no more than its connection.
        """
        if _TURN in scope or self._held >= MOST_HELD:
            return
        second, count = self._refused
        now = int(self._clock())
        self._refused = (now, count + 1 if second == now else 1)
        if self._refused[1] <= AT_ONCE:
            return
        self._held += 1
        try:
            await asyncio.sleep(HELD_SECONDS * (0.75 + random.random() / 2))  # noqa: S311  jitter, not a secret
        finally:
            self._held -= 1

    async def watch(self) -> None:
        """Share less while what is due runs late, and more again while it does not; to be cancelled."""
        while True:
            due = self._clock() + _TICK_SECONDS
            await asyncio.sleep(_TICK_SECONDS)
            late = self._clock() - due > LATE_SECONDS
            if late and self._room == TIGHT:
                self._pause = min(LONGEST_PAUSE_SECONDS, max(0.001, 2 * self._pause))
            elif not late:
                self._pause = self._pause / 2 if self._pause > 0.001 else 0.0
            self._room = max(TIGHT, self._room // 2) if late else min(SHARED, self._room + 1)
            # Who yields waits for time to pass, and not only for others to leave.
            self._go_on()

    def _give_back(self, lane: str) -> None:
        self._count(lane, -1, self._clock())
        if not self._taken[lane]:
            del self._taken[lane]
        self._go_on()

    def _count(self, lane: str, change: int, now: float) -> None:
        self._taken[lane] += change
        use = self._seen.get(lane)
        if use is not None:
            use.count(change, now)

    def _go_on(self) -> None:
        now = self._clock()
        quiet, light = self._is_somebody_quiet(now), self._is_somebody_light(now)
        while waiting := [name for name in self._lines if self._may_go_on(name, now, quiet=quiet, light=light)]:
            for name in waiting:
                line = self._lines.pop(name)
                future = line.popleft()
                # One that was just given up is not there to take it.
                if not future.done():
                    self._count(name, 1, now)
                    self._passed[name] = self._begun
                    future.set_result(None)
                if line:
                    # At the end: the others are next.
                    self._lines[name] = line
                else:
                    self._passed.pop(name, None)

    def _allowed(self, lane: str, now: float, *, light: bool) -> int:
        while self._seen and next(iter(self._seen.values())).last < now - REMEMBERED_SECONDS:
            self._seen.popitem(last=False)
        if len(self._seen) <= _is_known(lane):
            return ALONE
        if lane.startswith(LARGE):
            # Whose they are is not proved yet, and most are tenants' batches: reading them costs little.
            return self._room
        if light and lane in self._lines:
            return LEAST
        # Room for one more: who comes now and then finds it. What nobody has signed has the least of it.
        sharing = TIGHT if lane.startswith(STRANGERS) else max(2, len(self._taken))
        return max(LEAST, self._room // sharing)

    def _may_go_on(self, lane: str, now: float, *, quiet: bool, light: bool) -> bool:
        yields = quiet and not lane.startswith(LARGE) and self._begun < self._passed.get(lane, 0) + YIELDS
        return not yields and self._taken[lane] < self._allowed(lane, now, light=light)

    def _is_somebody_quiet(self, now: float) -> bool:
        """Tell whether a tenant that has no line has a turn since a moment; who takes long is waited for by nobody."""
        last = now - QUIET_SECONDS
        return any(
            lane in self._seen and self._seen[lane].last > last and lane not in self._lines for lane in self._taken
        )

    def _is_somebody_light(self, now: float) -> bool:
        """Tell whether a tenant that asks for little was there just now; while nobody has a line it does not matter."""
        if not self._lines:
            return False
        for lane, use in reversed(self._seen.items()):
            if use.last < now - LIGHT_SECONDS:
                return False
            if lane not in self._lines and use.average(now) < LIGHT:
                return True
        return False

    def _forget(self, lane: str, future: asyncio.Future[None]) -> None:
        line = self._lines.get(lane)
        if line and future in line:
            line.remove(future)
            if not line:
                del self._lines[lane]
                self._passed.pop(lane, None)


def _is_known(lane: str) -> bool:
    return not lane.startswith((STRANGERS, LARGE))


def end(scope: Scope) -> None:
    """A request is answered: its turn, if it has one, is over."""
    turn: Turn | None = scope.pop(_TURN, None)
    if turn is not None:
        turn.rest()


def rest(request: HTTPConnection) -> None:
    """Let others go on while a request waits for news."""
    turn: Turn | None = request.scope.get(_TURN)
    if turn is not None:
        turn.rest()


async def resume(request: HTTPConnection) -> None:
    """Wait for a request's turn again."""
    turn: Turn | None = request.scope.get(_TURN)
    if turn is not None:
        await turn.resume()
