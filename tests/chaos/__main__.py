"""Run chaos: `python -m tests.chaos --kills 1000`; the faults are random, and a seed repeats their choice."""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from pki.core.errors import KeymailboxError
from tests.chaos.faults import KINDS, Done, plan
from tests.chaos.ground import Ground, ground
from tests.chaos.tenants import Tenant
from tests.chaos.verdict import judge, settle
from tests.kit.sink import Sink, sink

GOAL, BOUND = 10.0, 30.0
"""Seconds until a probe has come through after a fault: what is aimed at, and what fails a run on a busy machine."""
_PATIENCE = 120.0


def main() -> int:
    """Do harm, measure, judge; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=0, help="go on until so many processes were killed")
    parser.add_argument("--faults", type=int, default=0, help="or until there were so many faults")
    parser.add_argument("--seconds", type=float, default=0, help="end after this long in any case")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--without", default="", help="kinds of faults to leave out, with commas between")
    parser.add_argument("--bound", type=float, default=BOUND, help="seconds of recovery that fail the run")
    options = parser.parse_args()
    say(f"seed {options.seed}")
    with ExitStack() as stack:
        room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kmb-chaos-")))
        room.chmod(0o755)
        ear = stack.enter_context(sink())
        place = stack.enter_context(ground(room))
        say("everything runs")
        return run(options, place, ear, room)


def run(options: argparse.Namespace, place: Ground, ear: Sink, room: Path) -> int:
    """Let tenants live and faults happen, then judge."""
    luck = random.Random(options.seed)
    names = ("acme/eu-west", "globex/main", "initech/lab")
    tenants = [Tenant(place.installation, room, name, options.seed + number) for number, name in enumerate(names)]
    probe = Tenant(place.installation, room, "probe/a", 0)
    target = Tenant(place.installation, room, "probe/b", 0)
    hooks = [listen(one, ear) for one in tenants]
    for one in tenants:
        one.begin([other.address for other in tenants if other is not one])
    took: dict[str, list[tuple[float, float]]] = defaultdict(list)
    asked = threading.Event()
    # Ctrl-C ends the harm, and what was done is judged all the same.
    signal.signal(signal.SIGINT, lambda *_: asked.set())
    kills = faults = 0
    broken: list[str] = []
    began = time.monotonic()
    for kind in (one for one in plan(luck) if one not in options.without.split(",")):
        enough = (options.kills and kills >= options.kills) or (options.faults and faults >= options.faults)
        if asked.is_set() or enough or (options.seconds and time.monotonic() > began + options.seconds):
            break
        time.sleep(luck.uniform(0.1, 0.8))
        try:
            done = KINDS[kind][1](place, luck)
        except Exception as error:
            # The harm could not be done: what was done before is judged all the same, and the run has failed.
            broken.append(f"HARM: {kind} failed: {type(error).__name__}: {error}")
            break
        if not come_through(probe, target):
            for name, one in place.installation.running.items():
                say(f"the end of what {name} wrote:\n{one.tail()[-1500:]}")
            raise AssertionError(f"no probe came through in {_PATIENCE:.0f} s after this fault: {done.what}")
        now = time.monotonic()
        kills, faults = kills + done.kills, faults + 1
        took[done.what].append((now - done.began, now - done.up))
        say(f"{now - began:7.1f} s  {done.what}: at work {now - done.began:.1f} s after it{_since(done, now)}")
    for one in tenants:
        one.end()
    place.ready()
    say(f"{faults} faults, {kills} kills in {time.monotonic() - began:.0f} s; settling")
    everybody = [*tenants, probe, target]
    left = settle(place, everybody)
    wrong = broken + left + judge(place, everybody, ear, hooks)
    report(took, tenants)
    say(lateness(place))
    if not asked.is_set() and (faults < options.faults or kills < options.kills):
        wrong.append(f"FEW: {faults} faults and {kills} kills in {options.seconds:.0f} s are not what was asked for")
    slow = [f"{what}: {up:.1f} s" for what, times in took.items() for _, up in times if up > options.bound]
    wrong += [f"SLOW: {late}, and {options.bound:.0f} s is the bound" for late in slow]
    for problem in wrong:
        say(f"WRONG {problem}")
    say("failed" if wrong else "nothing lost, nothing twice, nothing stuck")
    return 1 if wrong else 0


def come_through(probe: Tenant, target: Tenant) -> bool:
    """Hand a key over, from the first try to its mailbox, as soon as that is possible; False when it never is."""
    deadline = time.monotonic() + _PATIENCE
    sent = None
    while time.monotonic() < deadline:
        try:
            if sent is None:
                name = probe.agent.create_key(f"probe-{time.monotonic_ns()}")
                sent = probe.agent.send_key(name, [target.address], wait=0)
            if not sent.delivered:
                sent = probe.agent.resume() or sent
            if sent.delivered and probe.agent.client.status(sent.delivered[0].deposit_id, wait=2).state != "received":
                return True
        except KeymailboxError:
            time.sleep(0.05)
    return False


def listen(tenant: Tenant, ear: Sink) -> str:
    """Register a webhook for a tenant; return its id."""
    told = tenant.agent.client.ask("POST", "/v1/webhooks", {"url": ear.url})
    return str(told["id"])


def report(took: dict[str, list[tuple[float, float]]], tenants: list[Tenant]) -> None:
    """Say how long each kind of fault took to be over."""
    deposits = sum(len(one.wire.deposits) for one in tenants)
    away = sum(len(one.wire.away) for one in tenants)
    say(
        f"{deposits} deposits acknowledged to {len(tenants)} tenants in {sum(one.rounds for one in tenants)} rounds; "
        f"{away} requests were told to come again"
    )
    say(f"{'fault':20} {'times':>5} {'median':>7} {'worst':>7}  {'above 10 s':>10}   since it was possible again")
    for what, times in sorted(took.items()):
        whole, up = [one for one, _ in times], [one for _, one in times]
        late = sum(one > GOAL for one in whole)
        say(
            f"{what:20} {len(times):5} {statistics.median(whole):7.1f} {max(whole):7.1f}  {late:10}   "
            f"median {statistics.median(up):.1f}, worst {max(up):.1f}"
        )


def lateness(place: Ground) -> str:
    """Say how long deposits took from their acknowledgement to their mailbox, those of killed workers among them."""
    took = sorted(
        float(seconds)
        for (seconds,) in place.installation.sql(
            "SELECT EXTRACT(EPOCH FROM validated_at - received_at) FROM deposits WHERE validated_at IS NOT NULL"
        )
    )
    late = sum(one > GOAL for one in took)
    median = statistics.median(took)
    return (
        f"{len(took)} deposits validated: median {median:.2f} s, 99 of 100 within {took[int(len(took) * 0.99)]:.1f} s,"
        f" the last after {took[-1]:.1f} s; {late} after more than {GOAL:.0f} s (a moved clock counts as time)"
    )


def _since(done: Done, now: float) -> str:
    return f", {now - done.up:.1f} s after it was over" if done.up > done.began + 0.05 else ""


def say(text: str) -> None:
    """Print a line at once."""
    print(f"chaos: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
