"""Which request something comes from: an id that logs, jobs and events carry on, and spans for who records them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, Protocol, TypeVar

import structlog

Trace = str
"""A W3C traceparent, ``00-TRACE-SPAN-FLAGS`` in hex. The trace's id is the request id of logs and X-Request-Id."""
Value = str | int | float | bool
P = ParamSpec("P")
T = TypeVar("T")
_MOST_LINKS = 128
"""OpenTelemetry keeps so many of a span."""


class Span(Protocol):
    """One step that is under way; its ``trace`` is what follows from it refers to."""

    trace: Trace

    def note(self, name: str, value: Value) -> None:
        """Add an attribute: never an address, a body, a URL's path, or what a person or tenant wrote."""

    def rename(self, name: str) -> None:
        """Call it by another name, now that more is known."""

    def end(self, error: str = "") -> None:
        """It is over; ``error`` is the code of what went wrong."""


class Recorder(Protocol):
    """Takes spans to where they are looked at; none of its methods waits for that, or raises."""

    def start(self, name: str, kind: str, parent: Trace | None, links: Sequence[Trace]) -> Span:
        """Begin a span of kind ``server``, ``consumer``, ``client`` or ``internal``; without a parent, a trace."""

    def close(self) -> None:
        """Hand over what is left, within a few seconds."""


class _Unrecorded:
    """A span that nobody looks at: it costs the id that logs need."""

    __slots__ = ("trace",)

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def note(self, name: str, value: Value) -> None:
        pass

    def rename(self, name: str) -> None:
        pass

    def end(self, error: str = "") -> None:
        pass


_recorder: Recorder | None = None
_current: ContextVar[Trace | None] = ContextVar("keymailbox_trace", default=None)
_carried: ContextVar[Mapping[str, Trace]] = ContextVar("keymailbox_traces", default={})  # noqa: B039  never written to


def record(recorder: Recorder | None) -> None:
    """Hand spans to ``recorder`` from now on; None: to nobody."""
    global _recorder
    _recorder = recorder


def close() -> None:
    """Hand over what is left, at the end of a process."""
    if _recorder is not None:
        _recorder.close()


def request_id(trace: Trace | None) -> str:
    """Return the id under which logs tell of a request, "" where there was none."""
    return trace[3:35] if trace else ""


def of(subject: str) -> Trace | None:
    """Return which request ``subject`` comes from: as its batch says, or the one that is being served."""
    return _carried.get().get(subject) or _current.get()


def current() -> Trace | None:
    """Return the request that is being served, or the step that is being done for one."""
    return _current.get()


def begin(name: str, stranger: str = "") -> Span:
    """Serve a request: a trace of its own begins, with the next lines of the log in it.

    ``stranger`` is the traceparent that the client sent: it is linked to and otherwise not believed, since whoever
    writes it would choose our ids, and what is recorded.
    """
    if _recorder is None:
        digits = secrets.token_hex(24)
        span: Span = _Unrecorded(f"00-{digits[:32]}-{digits[32:]}-00")
    else:
        span = _recorder.start(name, "server", None, [stranger] if _sound(stranger) else ())
    _current.set(span.trace)
    return span


@contextmanager
def _ending(span: Span) -> Iterator[None]:
    """End a span with what is done in it, and with the code of the error that it ends with."""
    try:
        yield
    except Exception as error:
        span.end(getattr(error, "code", type(error).__name__))
        raise
    else:
        span.end()


@contextmanager
def step(name: str, kind: str = "internal", trace: Trace | None = None) -> Iterator[Span]:
    """Do a step for the request ``trace``, by default the one that is being served, in this thread."""
    span = _start(name, kind, trace or _current.get(), ())
    token = _current.set(span.trace)
    try:
        with _ending(span):
            yield span
    finally:
        _current.reset(token)


def wrapped(function: Callable[P, T]) -> Callable[P, T]:
    """Return what does the same, as a step of its name; the function itself where nobody looks at steps."""
    if _recorder is None:
        return function
    name = f"{function.__module__.rpartition('.')[2]} {getattr(function, '__name__', 'call')}"

    @wraps(function)
    def stepped(*args: P.args, **kwargs: P.kwargs) -> T:
        with step(name):
            return function(*args, **kwargs)

    return stepped


@contextmanager
def together(name: str, traces: Collection[Trace | None]) -> Iterator[None]:
    """Do something for several requests at once, of which each goes its own way afterwards."""
    if _recorder is None:
        yield
        return
    distinct = sorted({trace for trace in traces if trace})
    parent = distinct[0] if len(distinct) == 1 else None
    span = _start(name, "internal", parent, () if parent else distinct[:_MOST_LINKS])
    span.note("keymailbox.items", len(traces))
    try:
        yield
    except Exception as error:
        span.end(getattr(error, "code", type(error).__name__))
        raise
    span.end()


@contextmanager
def carrying(traces: Mapping[str, Trace | None]) -> Iterator[None]:
    """What is written meanwhile about a subject comes from the request that is named for it."""
    token = _carried.set({subject: trace for subject, trace in traces.items() if trace})
    try:
        yield
    finally:
        _carried.reset(token)


@contextmanager
def batch(name: str, traces: Mapping[str, Trace | None]) -> Iterator[Span]:
    """Work on several subjects at once: one request's work is a part of its trace, several requests' is linked to them.

    The log's lines meanwhile have the request id where there is one.
    """
    known = {subject: trace for subject, trace in traces.items() if trace}
    distinct = sorted(set(known.values()))
    parent = distinct[0] if len(distinct) == 1 else None
    span = _start(name, "consumer", parent, () if parent else distinct[:_MOST_LINKS])
    here = span.trace if parent or _recorder is not None else None
    carried = _carried.set(dict.fromkeys(known, span.trace) if parent else known)
    token = _current.set(here)
    bound = structlog.contextvars.bind_contextvars(request_id=request_id(parent)) if parent else {}
    try:
        with _ending(span):
            yield span
    finally:
        structlog.contextvars.reset_contextvars(**bound)
        _current.reset(token)
        _carried.reset(carried)


def _start(name: str, kind: str, parent: Trace | None, links: Sequence[Trace]) -> Span:
    if _recorder is not None:
        return _recorder.start(name, kind, parent, links)
    return _Unrecorded(parent or f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00")


def _sound(text: str) -> bool:
    """Tell whether this is a traceparent of version 0 (W3C Trace Context §3.2.2)."""
    parts = text.split("-")
    sizes = [len(part) for part in parts]
    hexadecimal = all(letter in "0123456789abcdef" for part in parts for letter in part)
    return sizes == [2, 32, 16, 2] and hexadecimal and parts[0] == "00" and all(part.strip("0") for part in parts[1:3])
