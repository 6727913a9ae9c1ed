"""What Prometheus scrapes: requests, waiting clients, and how far the workers are behind."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pki.core.errors import UnavailableError
from pki.server.services.deps import Deps
from pki.server.store import events, outbox

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 35)


class Metrics:
    """The figures of one API process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter("keymailbox_http_requests", "Requests answered", labels, registry=self.registry)
        self._seconds = Histogram(
            "keymailbox_http_seconds", "Time to answer", ("route",), buckets=_BUCKETS, registry=self.registry
        )
        self._up = Gauge("keymailbox_database_up", "1 when the database answered this scrape", registry=self.registry)
        self._due = Gauge("keymailbox_jobs_due", "Jobs due and not done", ("queue",), registry=self.registry)
        self._oldest = Gauge(
            "keymailbox_jobs_oldest_seconds", "Age of the oldest due job", ("queue",), registry=self.registry
        )
        self._dead = Gauge(
            "keymailbox_jobs_dead", "Jobs given up, for people to see", ("queue",), registry=self.registry
        )
        self._events = Gauge("keymailbox_events_waiting", "Events that have no number yet", registry=self.registry)
        self._waiting = Gauge("keymailbox_http_waiting", "Long polls that wait now", registry=self.registry)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request; ``route`` is the path's template, so that the number of series is bounded."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def scrape(self, deps: Deps, waiting: int) -> bytes:
        """Return all figures as text; those of the database are left out while it is away."""
        self._waiting.set(waiting)
        for gauge in (self._due, self._oldest, self._dead):
            gauge.clear()
        try:
            with deps.store.read() as unit:
                lag = outbox.lag(unit, deps.clock.now())
                dead = outbox.dead(unit)
                waiting_events = events.unsequenced_count(unit)
        except UnavailableError:
            self._up.set(0)
        else:
            self._up.set(1)
            self._events.set(waiting_events)
            for queue, (count, oldest) in lag.items():
                self._due.labels(queue).set(count)
                self._oldest.labels(queue).set(oldest)
            for job in dead:
                self._dead.labels(job.queue).inc()
        return generate_latest(self.registry)
