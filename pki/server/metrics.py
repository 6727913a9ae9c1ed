"""The figures of this process for Prometheus: base units, and for each what it is good for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pki.core.deposits import DepositState

REGISTRY = CollectorRegistry()
"""What this process has counted since it started; what the database says is read by `services.metrics`."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' text format."""

_FAST = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 35)
_SLOW = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 60, 600, 3600, 86400, 604800)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"keymailbox_{name}", text, labels, registry=REGISTRY)


def _gauge(name: str, text: str) -> Gauge:
    # Of several processes under one parent, those that live are added up.
    return Gauge(f"keymailbox_{name}", text, registry=REGISTRY, multiprocess_mode="livesum")


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _FAST) -> Histogram:
    return Histogram(f"keymailbox_{name}", text, labels, buckets=buckets, registry=REGISTRY)


# HTTP

http_requests = _counter(
    "http_requests",
    "Requests answered, by the path's template; alarm on 5xx. Many of 429: someone floods, or a quota is too small.",
    "method",
    "route",
    "status",
)
http_seconds = _histogram(
    "http_request_duration_seconds", "Time to answer; long polls and streams count with their wait.", "route"
)
http_open = _gauge("http_requests_in_progress", "Requests being answered now, those that wait for news among them.")
http_waiting = _gauge("http_requests_waiting", "Long polls and streams that wait for news now.")
gathered = _histogram(
    "http_gathered_batch_size",
    "Requests that one commit answered together; near the most of 100, the database is the limit.",
    buckets=_SIZES,
)
gathering_seconds = _histogram(
    "http_gathering_wait_seconds", "Time from a request's arrival in a batch to the batch's commit."
)
connections = _gauge("database_connections_in_use", "Connections to the database that are in use now.")
ocsp_responses = _counter(
    "ocsp_responses",
    "OCSP requests answered, by what with; many of try_later: the issuer is away or flooded.",
    "answer",
)

# Workers

claims = _counter(
    "job_claims",
    "Looks into a queue, by what was found: jobs or nothing; many of nothing cost work.",
    "queue",
    "found",
)
jobs = _counter(
    "jobs",
    "Jobs that came to an end, by outcome: done, retried (due again later), or dead: see kmb-server dead list.",
    "queue",
    "kind",
    "outcome",
)
batch_sizes = _histogram("job_batch_size", "Jobs that were claimed together.", "queue", buckets=_SIZES)
batch_seconds = _histogram("job_batch_duration_seconds", "Time for the jobs of one kind in a batch.", "queue", "kind")

# Deposits

deposits = _counter(
    "deposits", "Deposits that entered a state; many rejected: a sender's software is wrong, or someone tries.", "state"
)
available_seconds = _histogram(
    "deposit_accepted_to_available_seconds",
    "Time from a deposit's acceptance to its validation; grows when validation falls behind: more workers.",
    buckets=_SLOW,
)
collected_seconds = _histogram(
    "deposit_available_to_collected_seconds",
    "Time that a deposit waited for its recipient; theirs to shorten.",
    buckets=_SLOW,
)
settled_seconds = _histogram(
    "deposit_available_to_answered_seconds",
    "Time to the recipient's signed receipt or refusal; theirs to shorten.",
    buckets=_SLOW,
)

# Events, webhooks, wake-ups, certificates

sequenced = _counter("events_sequenced", "Events that were numbered and chained.")
published = _counter("events_published", "Events that were published on the topic exchange.")
posts = _counter(
    "webhook_posts",
    "Posts to webhooks by outcome: delivered, failed (tried again), dead (given up), gone (switched off).",
    "outcome",
)
post_seconds = _histogram("webhook_post_duration_seconds", "Time that a receiver took to answer a post.")
wake_ups = _counter("wakeups_published", "Wake-ups that the broker confirmed.", "queue")
certificates = _counter("certificates", "Certificate requests that were decided, by kind.", "kind", "outcome")


@cache
def broker_up() -> Gauge:
    """Return the relay's own; it is made when it is asked for, since anybody else would say that the broker is away."""
    return _gauge("broker_up", "1 when the broker took the last wake-up; at 0 nobody is woken.")


@cache
def dead_letters() -> Gauge:
    """Return the relay's own, likewise."""
    return _gauge("broker_dead_letters", "Wake-ups that RabbitMQ gave up: a worker dies of what it is handed.")


def moved(to: DepositState, since: Iterable[float | None] = (), *, count: int | None = None) -> None:
    """Count deposits that entered a state, each with the seconds since what came before it, where that is known."""
    seconds = list(since)
    deposits.labels(to.value).inc(len(seconds) if count is None else count)
    histogram = _HISTOGRAMS.get(to)
    if histogram is not None:
        for one in seconds:
            if one is not None:
                histogram.observe(max(one, 0.0))


_HISTOGRAMS = {
    DepositState.AVAILABLE: available_seconds,
    DepositState.COLLECTED: collected_seconds,
    DepositState.ACKNOWLEDGED: settled_seconds,
    DepositState.REFUSED: settled_seconds,
}
