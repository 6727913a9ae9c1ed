"""Reminders: whoever has not renewed when two thirds of a certificate's life are over is told before it ends."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from pki.core.events import Event, EventType
from pki.server.facts import CertificateSummary
from pki.server.services import events
from pki.server.services.deps import Deps
from pki.server.store import events as event_store
from pki.server.store import renewals as store

THRESHOLDS = (1, 7, 30)
"""Days before a certificate's end at which its owner is reminded, the nearest first."""
_BATCH = 200


def remind(deps: Deps) -> int:
    """Remind the owners of active certificates that end soon; return how many reminders were written.

    Each certificate and threshold once, however many workers do this and however often: the row that says so is
    written with the event. Of thresholds that passed while nobody looked, only the nearest is told. A successor that
    is active has retired the certificate, so an active one has none.
    """
    now = deps.clock.now()
    total, past = 0, now
    for days in THRESHOLDS:
        until = now + timedelta(days=days)
        total += _remind_at(deps, days, past, until, now)
        past = until
    return total


def makes_sense(days: int, one: CertificateSummary) -> bool:
    """Say whether a threshold lies within the last third of a certificate's life: until then nobody is late."""
    return one.not_after - timedelta(days=days) > one.renewal_due


def _remind_at(deps: Deps, days: int, past: datetime, until: datetime, now: datetime) -> int:
    total = 0
    after: CertificateSummary | None = None
    while True:
        # Short transactions: whoever renews meanwhile does not wait for a long one.
        with deps.store.unit() as unit:
            found = store.unreminded(unit, past=past, until=until, days=days, after=after, limit=_BATCH)
            late = [one for one in found if makes_sense(days, one)]
            fresh = store.note_reminders(unit, [one.fingerprint for one in late], days, now)
            event_store.append(unit, _told([one for one in late if one.fingerprint in fresh], days, now))
        total += len(fresh)
        if len(found) < _BATCH:
            return total
        after = found[-1]


def _told(late: Sequence[CertificateSummary], days: int, now: datetime) -> list[Event]:
    return [
        events.event(
            EventType.CERTIFICATE_EXPIRING,
            one.fingerprint,
            now,
            one.address,
            address=str(one.address),
            kind=one.kind.value,
            not_after=events.time(one.not_after),
            days=days,
        )
        for one in late
    ]
