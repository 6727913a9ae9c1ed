"""Spans go to a collector by OTLP over HTTP: what knows OpenTelemetry, imported only where it is asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as Otel

from pki.server.tracing import Trace, Value

_KINDS = {
    "server": SpanKind.SERVER,
    "consumer": SpanKind.CONSUMER,
    "client": SpanKind.CLIENT,
    "internal": SpanKind.INTERNAL,
}
_SECONDS = 5


class Spans:
    """A recorder (see `pki.server.tracing`): a thread sends spans in batches; what is too much for it is lost.

    What is sampled, OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG say; no exception's text is ever sent.
    """

    def __init__(self, endpoint: str, role: str) -> None:
        """Send to the collector at the base URL ``endpoint``, or where OpenTelemetry's variables say."""
        resource = Resource.create({"service.name": f"keymailbox-{role}", "service.instance.id": str(os.getpid())})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        url = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=_SECONDS)))
        self._tracer = self._provider.get_tracer("keymailbox")

    def start(self, name: str, kind: str, parent: Trace | None, links: Sequence[Trace]) -> _Recorded:
        """Begin a span."""
        # An empty context: what begins without a parent begins a trace, whatever the thread did before.
        context = Context() if parent is None else set_span_in_context(NonRecordingSpan(_parsed(parent)), Context())
        span = self._tracer.start_span(
            name,
            context,
            _KINDS[kind],
            links=[Link(_parsed(link)) for link in links],
            record_exception=False,
            set_status_on_exception=False,
        )
        return _Recorded(span)

    def close(self) -> None:
        """Hand over what is left, as far as that goes in five seconds; a collector may take as long for each batch."""
        ending = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        ending.start()
        ending.join(_SECONDS)


class _Recorded:
    __slots__ = ("_span", "trace")

    def __init__(self, span: Otel) -> None:
        self._span = span
        context = span.get_span_context()
        self.trace: Trace = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 1:02x}"

    def note(self, name: str, value: Value) -> None:
        self._span.set_attribute(name, value)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def end(self, error: str = "") -> None:
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _parsed(trace: Trace) -> SpanContext:
    _, trace_id, span_id, flags = trace.split("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
