"""Jobs, events, their chain, and who was told."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import datetime
from functools import lru_cache

from pki.core.events import GENESIS, Event, EventType, chain_hash
from pki.core.ids import EventId
from tests.kit.holding.seen import Complaints, Seen


def jobs(seen: Seen) -> Complaints:
    """Each is about something, and none is dead."""
    subjects = {
        "deposit": seen.by("deposits", "id"),
        "certificate": seen.by("requests", "id"),
        "cmp": seen.by("cmp_exchanges", "digest"),
    }
    for row in seen.rows("jobs"):
        what = f"{row['kind']} {row['subject']}"
        if row["kind"] in subjects and row["subject"] not in subjects[row["kind"]]:
            yield f"{what} is about nothing"
        if row["dead_at"] is not None:
            yield f"{what} is dead: {row['error']}"
        elif seen.settled:
            yield f"{what} is not done: {row['error']}"


def events(seen: Seen) -> Complaints:
    """Positions have no gap, and the chain leads from the first to the last."""
    position, chain = 0, GENESIS
    audience: dict[str, dict[int, str]] = defaultdict(dict)
    for row in seen.rows("event_audience"):
        audience[row["event_id"]][row["rank"]] = row["address"]
    numbered = [row for row in seen.rows("events") if row["position"] is not None]
    for row in sorted(numbered, key=lambda row: row["position"]):
        if row["position"] != position + 1:
            yield f"position {position + 1} is missing"
        who = tuple(address for _, address in sorted(audience[row["id"]].items()))
        position = row["position"]
        chain = _link(chain, row["id"], row["type"], row["subject"], row["time"], who, row["data"])
        if chain != row["chain"]:
            yield f"the chain breaks at position {position}"
            return
    late = [row["id"] for row in seen.rows("events") if row["position"] is None]
    if seen.settled and late:
        yield f"{len(late)} have no number"


@lru_cache(maxsize=1 << 16)
def _link(
    previous: bytes, name: str, kind: str, subject: str, time: datetime, audience: tuple[str, ...], data: str
) -> bytes:
    """Return the chain's next link. The same is asked for again after each step: it is a function of its arguments."""
    told = Event(EventId(name), EventType(kind), subject, time, audience, json.loads(data))
    return chain_hash(previous, told)


def audience(seen: Seen) -> Complaints:
    """Each event has all whom it is for, with its position."""
    events = seen.by("events", "id")
    ranks: dict[str, list[int]] = defaultdict(list)
    for row in seen.rows("event_audience"):
        ranks[row["event_id"]].append(row["rank"])
        if row["event_id"] not in events or events[row["event_id"]]["position"] != row["position"]:
            yield f"{row['event_id']} for {row['address']} has another position"
    yield from (f"{name} lost some" for name, found in ranks.items() if sorted(found) != list(range(len(found))))


def cursors(seen: Seen) -> Complaints:
    """Nobody has read on past the end; and in the end everything is published."""
    last = max((row["position"] or 0 for row in seen.rows("events")), default=0)
    for row in seen.rows("cursors"):
        if row["name"].startswith("reader:"):
            if row["position"] > last:
                yield f"{row['name']} is past the last event"
            if seen.settled and row["name"] == "reader:exchange" and row["position"] < last:
                yield f"{row['name']} is at {row['position']} of {last}"


def deliveries(seen: Seen) -> Complaints:
    """Each is of a numbered event to a webhook, in its place, and in the end it has arrived."""
    hooks, events = seen.by("webhooks", "id"), seen.by("events", "id")
    for row in seen.rows("deliveries"):
        event, hook = events.get(row["event_id"]), hooks.get(row["webhook_id"])
        if hook is None or event is None or event["position"] is None or event["position"] != row["position"]:
            yield f"{row['id']} is of no webhook, or of an event with another number"
        elif seen.settled and row["state"] != "delivered" and hook["disabled_at"] is None:
            yield f"{row['id']} is {row['state']}: {row['last_error']}"
