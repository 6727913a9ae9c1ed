"""Turns: nobody gets all of them, lines are short, what rests is in nobody's way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

import pytest

from pki.core.errors import BusyError
from pki.server.api import shares
from pki.server.api.rates import Rates
from pki.server.api.shares import Shares
from pki.server.settings import load_settings


class Time:
    """Seconds that go on when they are told to."""

    now = 1000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


def played(test: Callable[[Shares, Time], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in a loop of its own, with shares and their clock."""

    def run() -> None:
        async def inner() -> None:
            time = Time()
            await asyncio.wait_for(test(Shares(time), time), 120)

        with pytest.MonkeyPatch.context() as patch:
            # Who waits does so by the machine's clock.
            patch.setattr(shares, "PATIENCE_SECONDS", 60.0)
            asyncio.run(inner())

    run.__doc__ = test.__doc__
    return run


async def _take(who: Shares, lane: str, count: int) -> list[dict[str, Any]]:
    scopes: list[dict[str, Any]] = [{} for _ in range(count)]
    for scope in scopes:
        await who.turn(scope, lane)
    return scopes


def _much_asked(time: Time) -> None:
    """Let time pass until who has a turn now has had one for long; nobody is forgotten meanwhile."""
    time.now += 3 * shares.LIGHT_SECONDS
    assert 3 * shares.LIGHT_SECONDS < shares.REMEMBERED_SECONDS


async def _settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@played
async def test_one_alone_has_much(some: Shares, time: Time) -> None:
    """While nobody else is there a tenant may have many under way."""
    scopes = await _take(some, "acme", shares.ALONE)
    assert some.under_way == shares.ALONE
    for scope in scopes:
        shares.end(scope)
        shares.end(scope)
    assert some.under_way == 0


@played
async def test_another_finds_room(some: Shares, time: Time) -> None:
    """A flood waits in its own line; another's request passes it, and the flood's next ones wait for their share."""
    flood = await _take(some, "flood", shares.ALONE)
    waiting = [asyncio.create_task(some.turn({}, "flood")) for _ in range(50)]
    await _settled()
    (victim,) = await _take(some, "victim", 1)
    _much_asked(time)
    for scope in flood[: shares.ALONE - shares.SHARED // 2]:
        shares.end(scope)
    await _settled()
    await asyncio.sleep(2 * shares.LONGEST_PAUSE_SECONDS)
    assert not any(task.done() for task in waiting)
    shares.end(flood[-1])
    await asyncio.sleep(2 * shares.LONGEST_PAUSE_SECONDS)
    assert sum(task.done() for task in waiting) == 1
    shares.end(victim)
    time.now += shares.REMEMBERED_SECONDS + 1
    shares.end(flood[-2])
    # Alone again.
    await asyncio.gather(*waiting)


@played
async def test_a_line_has_an_end(some: Shares, time: Time) -> None:
    """Who comes when it is full is told so at once, also by the mere name of it, and nobody else is."""
    await _take(some, "flood", shares.ALONE)
    waiting = [asyncio.create_task(some.turn({}, "flood")) for _ in range(shares.LINE)]
    await _settled()
    with pytest.raises(BusyError) as caught:
        some.look("flood")
    assert caught.value.retry_after
    with pytest.raises(BusyError):
        await some.turn({}, "flood")
    (scope,) = await _take(some, "other", 1)
    _much_asked(time)
    for task in waiting[shares.SHORT_LINE - 1 :]:
        task.cancel()
    await asyncio.gather(*waiting[shares.SHORT_LINE - 1 :], return_exceptions=True)
    some.look("flood")
    waiting[shares.SHORT_LINE :] = [asyncio.create_task(some.turn({}, "flood"))]
    await _settled()
    with pytest.raises(BusyError):
        some.look("flood")
    some.look("other")
    shares.end(scope)
    assert some.under_way == shares.ALONE
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@played
async def test_who_rests_is_in_nobodys_way(some: Shares, time: Time) -> None:
    """A long poll has no turn while it waits, and gets one for each look."""
    await _take(some, "other", 1)
    _much_asked(time)
    scopes = await _take(some, "acme", shares.SHARED // 2)
    turns = [scope["keymailbox.turn"] for scope in scopes]
    for turn in turns:
        turn.rest()
        turn.rest()
    assert some.under_way == 1
    more = await _take(some, "acme", shares.SHARED // 2)
    again = asyncio.create_task(turns[0].resume())
    await _settled()
    assert not again.done()
    shares.end(more[0])
    await again
    for scope in [*scopes, *more]:
        shares.end(scope)
    assert some.under_way == 1


@played
async def test_lanes_take_turns_for_a_place(some: Shares, time: Time) -> None:
    """A long line does not get more than a short one."""
    half = shares.SHARED // 2
    first, second = await _take(some, "a", half), await _take(some, "b", half)
    waiting = {lane: [asyncio.create_task(some.turn({}, lane)) for _ in range(10)] for lane in ("a", "b")}
    await _settled()
    for scope in [*first, *second]:
        shares.end(scope)
    await _settled()
    assert [sum(task.done() for task in tasks) for tasks in waiting.values()] == [half, half]
    for task in [*waiting["a"], *waiting["b"]]:
        task.cancel()
    await asyncio.gather(*waiting["a"], *waiting["b"], return_exceptions=True)


@played
async def test_strangers_have_the_least(some: Shares, time: Time) -> None:
    """By the address that they come from; they do not count as somebody who is there, and alone they have much."""
    lane = f"{shares.STRANGERS}127.0.0.1"
    theirs = shares.SHARED // shares.TIGHT
    strangers = await _take(some, lane, 4 * theirs)
    acme = await _take(some, "acme", shares.ALONE)
    lines = [asyncio.create_task(some.turn({}, name)) for name in (lane, "acme")]
    for scope in strangers[:-theirs]:
        shares.end(scope)
        await _settled()
        assert not lines[0].done()
    shares.end(strangers[-theirs])
    await lines[0]
    shares.end(acme[0])
    await lines[1]


@played
async def test_who_has_a_line_lets_others_go_first(some: Shares, time: Time) -> None:
    """A line stands still while somebody is served who has none: for two of them, or a moment each."""
    watching = asyncio.create_task(some.watch())
    (quiet,) = await _take(some, "quiet", 1)
    flood = await _take(some, "flood", shares.SHARED // 2)
    told: list[dict[str, Any]] = [{} for _ in range(8)]
    line = [asyncio.create_task(some.turn(scope, "flood")) for scope in told]
    await _settled()

    async def served(leaves: dict[str, Any]) -> int:
        shares.end(leaves)
        await asyncio.sleep(2 * shares.LONGEST_PAUSE_SECONDS)
        return sum(task.done() for task in line)

    # Two have begun since it was let on: now it is its turn, once.
    await asyncio.sleep(0)
    for name in ("b", "c"):
        (scope,) = await _take(some, name, 1)
        shares.end(scope)
    assert await served(flood[0]) == 0
    assert await served(flood[1]) == 1
    for name in ("b", "c"):
        (scope,) = await _take(some, name, 1)
        shares.end(scope)
    assert await served(told[0]) == 2
    # None has begun since.
    assert await served(told[1]) == 2
    # Who takes long is waited for no more.
    time.now += shares.QUIET_SECONDS
    await asyncio.sleep(2 * shares.LONGEST_PAUSE_SECONDS)
    assert sum(task.done() for task in line) == 3
    shares.end(quiet)
    watching.cancel()
    for task in line:
        task.cancel()
    await asyncio.gather(*line, return_exceptions=True)


@played
async def test_who_asks_for_little_has_the_room(some: Shares, time: Time) -> None:
    """While such a tenant is there, a line has one turn at a time, and a pause three times as long after it."""
    (light,) = await _take(some, "light", 1)
    flood = await _take(some, "flood", shares.SHARED // 2)
    line = [asyncio.create_task(some.turn({}, "flood")) for _ in range(shares.SHORT_LINE // 2)]
    await _settled()
    with pytest.raises(BusyError):
        some.look("flood")
    shares.end(light)
    assert _pause_after(some, time, flood[0]) == pytest.approx(0.01 * shares.FOR_LIGHT_PAUSE)
    await asyncio.sleep(2 * shares.LONGEST_PAUSE_SECONDS)
    assert not any(task.done() for task in line)
    shares.end(flood[1])
    await asyncio.sleep(2 * shares.LONGEST_PAUSE_SECONDS)
    assert sum(task.done() for task in line) == 1
    await _cancelled(line)


@played
async def test_who_never_rests_does_not_ask_for_little(some: Shares, time: Time) -> None:
    """One that has a turn all the time, or has not asked lately, costs who has a line no more than its own turns."""
    (busy,) = await _take(some, "busy", 1)
    _much_asked(time)
    shares.end(busy)
    # It asks again at once.
    await _take(some, "busy", 1)
    flood = await _take(some, "flood", shares.SHARED // 2)
    line = [asyncio.create_task(some.turn({}, "flood")) for _ in range(4)]
    await _settled()
    assert _pause_after(some, time, flood[0]) == pytest.approx(0.01)
    await asyncio.sleep(2 * shares.LONGEST_PAUSE_SECONDS)
    assert sum(task.done() for task in line) == 1
    await _cancelled(line)


@played
async def test_many_who_have_lines_share_the_pause(some: Shares, time: Time) -> None:
    """One that floods is held back; where many have much to do, they are not all held back for one that has little."""
    (light,) = await _take(some, "light", 1)
    shares.end(light)
    lanes = [f"busy-{number}" for number in range(shares.FOR_LIGHT_PAUSE + 1)]
    turns = [await _take(some, lane, 1) for lane in lanes]
    line = [asyncio.create_task(some.turn({}, lane)) for lane in lanes for _ in range(2)]
    await _settled()
    assert _pause_after(some, time, turns[0][0]) == pytest.approx(0.01)
    await _cancelled(line)


@played
async def test_who_was_there_a_while_ago_does_not_ask_for_little_now(some: Shares, time: Time) -> None:
    """It still counts as being there."""
    (light,) = await _take(some, "light", 1)
    shares.end(light)
    time.now += 2 * shares.LIGHT_SECONDS
    flood = await _take(some, "flood", shares.SHARED // 2)
    line = [asyncio.create_task(some.turn({}, "flood")) for _ in range(4)]
    await _settled()
    assert _pause_after(some, time, flood[0]) == pytest.approx(0.01)
    await _cancelled(line)


@played
async def test_what_is_large_is_not_held_by_its_own_tenant(some: Shares, time: Time) -> None:
    """Nobody has proved whose a large body is: for its lane, its own tenant would be another that asks for little."""
    (own,) = await _take(some, "acme", 1)
    shares.end(own)
    lane = f"{shares.LARGE}127.0.0.1"
    bodies = await _take(some, lane, shares.SHARED)
    line = [asyncio.create_task(some.turn({}, lane)) for _ in range(4)]
    await _settled()
    assert _pause_after(some, time, bodies[0]) == pytest.approx(0.01)
    await _cancelled(line)


def _pause_after(some: Shares, time: Time, scope: dict[str, Any]) -> float:
    """End a turn that took 10 ms more, and return after how long it is given to the next."""
    loop, pauses = asyncio.get_running_loop(), list[float]()
    later = loop.call_later
    setattr(loop, "call_later", lambda delay, *what: (pauses.append(delay), later(delay, *what))[1])  # noqa: B010
    time.now += 0.01
    shares.end(scope)
    setattr(loop, "call_later", later)  # noqa: B010
    [pause] = pauses
    return pause


async def _cancelled(line: list[asyncio.Task[None]]) -> None:
    for task in line:
        task.cancel()
    await asyncio.gather(*line, return_exceptions=True)


@played
async def test_who_holds_a_place_uses_up_no_line(some: Shares, time: Time) -> None:
    """Long polls that wait to look again are no reason to turn new requests away."""
    await _take(some, "other", 1)
    busy = await _take(some, "acme", shares.SHARED // 2)
    resting = [asyncio.create_task(some.enter("acme", patient=True)) for _ in range(shares.SHORT_LINE)]
    await _settled()
    assert not any(task.done() for task in resting)
    some.look("acme")
    for task in resting:
        task.cancel()
    await asyncio.gather(*resting, return_exceptions=True)
    for scope in busy:
        shares.end(scope)


@played
async def test_who_does_not_keep_up_shares_less(some: Shares, time: Time) -> None:
    """Late by the clock, the room shrinks to its least; in time again, it grows."""
    watching = asyncio.create_task(some.watch())

    async def passes(step: float, ticks: int) -> int:
        for _ in range(ticks):
            # The loop's own time goes on as well: a tick's length for each.
            await asyncio.sleep(0.021)
            time.now += step
        return await _room(some)

    assert await passes(0.5, 8) == shares.TIGHT // 2
    assert await passes(0.0, 40) == shares.SHARED // 2
    watching.cancel()


async def _room(some: Shares) -> int:
    await _take(some, "one", 1)
    taken = await _take(some, "two", 1)
    while True:
        waiting = asyncio.create_task(some.turn(scope := {}, "two"))
        await _settled()
        if not waiting.done():
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            break
        taken.append(scope)
    for scope in taken:
        shares.end(scope)
    return len(taken)


@played
async def test_many_refusals_are_held(some: Shares, time: Time) -> None:
    """The first of a second are told at once; what has a turn is never held."""
    for _ in range(shares.AT_ONCE):
        await asyncio.wait_for(some.hold({}), 0.2)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(some.hold({}), 0.2)
    (scope,) = await _take(some, "acme", 1)
    await asyncio.wait_for(some.hold(scope), 0.2)
    time.now += 1
    await asyncio.wait_for(some.hold({}), 0.2)


def test_rates_are_of_one_tenant() -> None:
    """Who has used up its rate is told when to come again; looking costs nothing, and others are not held."""
    rates = Rates(load_settings(rate_requests=2, rate_bytes=100))
    spent, began = 0, monotonic()
    with pytest.raises(BusyError) as caught:
        while spent < 1000:
            rates.look("acme")
            rates.spend("acme", 0)
            spent += 1
    # Ten seconds' worth, and what time has brought; between two windows there is room for one more.
    assert 20 <= spent <= 22 + 2 * (monotonic() - began)
    assert caught.value.retry_after and "2 requests" in caught.value.message
    rates.look("globex")
    rates.spend("globex", 1000)
    with pytest.raises(BusyError, match="100 bytes"):
        rates.spend("globex", 1)


def test_without_rates_there_are_none() -> None:
    """The default."""
    rates = Rates(load_settings())
    for _ in range(1000):
        rates.spend("acme", 1 << 20)
    rates.look("acme")
