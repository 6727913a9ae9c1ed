"""Without a collector nothing of OpenTelemetry is loaded; with one, spans begin where the settings say so."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pki.core.errors import KeymailboxError
from pki.server import bootstrap, tracing
from pki.server.adapters import otlp
from pki.server.settings import load_settings
from tests.kit.collector import collecting
from tests.kit.daemons import LOOPBACK
from tests.kit.site import Site

LOADED = """
import sys
from pki.server import bootstrap
from pki.server.app import create_app
from pki.server.settings import load_settings
import workers.tasks, workers.relay, workers.embedded
bootstrap.record_traces(load_settings(home="nowhere"), "api")
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))][:3])
"""
STRANGER = f"00-{'a' * 32}-{'b' * 16}-01"
NAMES = ("KMB_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> object:
    """No collector from outside, and none left behind."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    yield
    tracing.record(None)
    tracing._current.set(None)


@pytest.mark.parametrize("more", [{}, {"KMB_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}])
def test_nothing_is_loaded_that_nobody_asked_for(more: dict[str, str]) -> None:
    """Neither by the API nor by a worker: the SDK and its exporter. FastAPI loads the bare interface by itself."""
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run([sys.executable, "-c", LOADED], env=clean | more, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("variable", ["KMB_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_spans_are_sent(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To where our setting says, or OpenTelemetry's own; a stranger is linked to, steps are children."""
    with collecting() as collector:
        monkeypatch.setenv(variable, collector.url)
        bootstrap.record_traces(load_settings(), "test")
        span = tracing.begin("HTTP", STRANGER)
        with pytest.raises(KeymailboxError), tracing.step("a step"):
            raise KeymailboxError("something private", on="acme/eu-west")
        span.end()
        with tracing.batch("a batch", {"x": span.trace, "y": STRANGER}):
            pass
        tracing.close()
    [http], [step], [batch] = (collector.named(name) for name in ("HTTP", "a step", "a batch"))
    assert http.service == "keymailbox-test" and http.parent == ""
    assert http.links == (("a" * 32, "b" * 16),) and http.trace_id == tracing.request_id(span.trace) != "a" * 32
    assert (step.parent, step.trace_id, step.failed) == (http.span_id, http.trace_id, True)
    assert step.attributes == {"error.type": "error"} and b"private" not in b"".join(collector.raw)
    assert {trace for trace, _ in batch.links} == {http.trace_id, "a" * 32} and batch.trace_id != http.trace_id


def test_what_is_not_sampled_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's sampler decides, once for a request and all that follows; a stranger's flag does not."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    with collecting() as collector:
        bootstrap.record_traces(load_settings(otlp_endpoint=collector.url), "test")
        span = tracing.begin("HTTP", STRANGER)
        with tracing.batch("a batch", {"x": span.trace}):
            pass
        span.end()
        tracing.close()
    assert collector.spans == [] and span.trace.endswith("-00")
    assert len(tracing.request_id(span.trace).strip("0")) > 16


def test_a_collector_that_is_away_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it, and nothing is raised."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    bootstrap.record_traces(load_settings(otlp_endpoint="http://127.0.0.1:1"), "test")
    for _ in range(10):
        tracing.begin("HTTP").end()
    tracing.close()


def test_a_collector_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have five seconds for each batch of what is left."""
    monkeypatch.setattr(otlp, "_SECONDS", 2)
    with socket.create_server((LOOPBACK, 0)) as deaf:
        bootstrap.record_traces(load_settings(otlp_endpoint=f"http://{LOOPBACK}:{deaf.getsockname()[1]}"), "test")
        for _ in range(2000):
            tracing.begin("a step").end()
        with ThreadPoolExecutor(1) as pool:
            began = time.monotonic()
            pool.submit(tracing.close).result(60)
            assert time.monotonic() - began < 7


def test_the_frameworks_own_telemetry_is_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the environment says: it would tell a collector URLs and addresses, and believe a stranger's trace."""
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    home = tmp_path / "home"
    settings = load_settings(home=home)
    bootstrap.init(settings)
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        bootstrap.record_traces(settings, "api")
        with Site(home, "") as site:
            site.http.get("/v1/directory/acme/eu-west?secret=hidden", headers={"traceparent": STRANGER})
        tracing.close()
    assert {span.name for span in collector.spans} == {"GET /v1/directory/{tenant}/{instance}"}
    raw = b"".join(collector.raw)
    assert b"eu-west" not in raw and b"hidden" not in raw
