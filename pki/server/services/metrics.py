"""What the database says for Prometheus: how far the workers are behind, by age; a figure costs a few index reads."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from cryptography import x509
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pki.core.authorities import ca_key_identifier
from pki.core.errors import KeymailboxError, UnavailableError
from pki.server import metrics
from pki.server.services.deps import Deps
from pki.server.store import lag, ocsp, status


class Figures(Collector):
    """The figures that are the same in whichever process they are read."""

    def __init__(self, deps: Deps) -> None:
        """Read at each scrape."""
        self._deps = deps

    def collect(self) -> Iterable[Metric]:
        """Return the figures; those of the database are left out while it is away."""
        now = self._deps.clock.now()
        metrics.connections.set(self._deps.store.connections_in_use())
        up = _one("database_up", "1 when the database answered this scrape.", 1)
        try:
            found = list(self._found(now))
        except UnavailableError:
            up, found = _one("database_up", "1 when the database answered this scrape.", 0), []
        return [up, *found, *self._authorities()]

    def _found(self, now: datetime) -> Iterable[Metric]:
        with self._deps.store.read() as unit:
            queues, dead = lag.queues(unit, now), lag.dead_jobs(unit)
            events, since = lag.unsequenced(unit)
            posts = lag.dead_deliveries(unit)
            overdue, _ = ocsp.overdue(unit, now)
            lists = status.heads(unit)
        most = f"counted to {lag.MOST}"
        due = _many("queue_jobs_due", f"Jobs due and not done, {most}; alarm on the age and not on this.", "queue")
        oldest = _many(
            "queue_oldest_due_seconds",
            "For how long the oldest job is due: 0 or a few seconds. Growing: no worker serves the queue, or too few.",
            "queue",
        )
        given_up = _many("queue_jobs_dead", f"Jobs given up, {most}: kmb-server dead list.", "queue")
        for queue in sorted({*lag.QUEUES, *queues, *dead}):
            count, age = queues.get(queue, (0, 0.0))
            due.add_metric([queue], count)
            oldest.add_metric([queue], age)
            given_up.add_metric([queue], dead.get(queue, 0))
        age = 0.0 if since is None else max((now - since).total_seconds(), 0.0)
        crl = _many(
            "crl_age_seconds",
            "Age of an issuing CA's newest revocation list; above a quarter of KMB_CRL_LIFETIME the issuer is away.",
            "issuer",
        )
        left = _many("crl_expiry_timestamp_seconds", "When that list ends; agents refuse everything then.", "issuer")
        for head in lists:
            crl.add_metric([head.issuer], (now - head.this_update).total_seconds())
            left.add_metric([head.issuer], head.next_update.timestamp())
        return [
            due,
            oldest,
            given_up,
            _one("events_unsequenced", f"Events that have no number yet, {most}.", events),
            _one("events_oldest_unsequenced_seconds", "Age of the oldest of them: the sequencer's lag.", age),
            _one("webhook_deliveries_dead", f"Posts given up, {most}; their owners see and replay them.", posts),
            _one("ocsp_overdue_responses", "Prepared OCSP responses that should have been made anew.", overdue),
            crl,
            left,
        ]

    def _authorities(self) -> Iterable[Metric]:
        ends = _many(
            "ca_certificate_expiry_timestamp_seconds",
            "When an issuing CA's certificate ends; begin the ceremony of docs/operations.md three months before.",
            "issuer",
        )
        try:
            chain = self._deps.chain
        except KeymailboxError:
            return []
        for der in chain.all:
            certificate = x509.load_der_x509_certificate(der)
            ends.add_metric([ca_key_identifier(der).hex()], certificate.not_valid_after_utc.timestamp())
        return [ends]


def scrape(*registries: Collector | CollectorRegistry) -> bytes:
    """Return the figures of some collectors as Prometheus' text format has them."""
    return b"".join(generate_latest(one) for one in registries)


def _one(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"keymailbox_{name}", text, value=value)


def _many(name: str, text: str, label: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"keymailbox_{name}", text, labels=[label])
