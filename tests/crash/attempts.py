"""What is tried: one piece of work on a fresh subject, what is looked at afterwards, and how often it is repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.kit.town import Town


@dataclass(frozen=True)
class Attempt:
    """Work that may fail at any step, and what has to be so when it was done to the end.

    A client's work is repeated with the very same bytes; a worker's (``again`` is None) is taken up by workers.
    """

    work: Callable[[], object]
    check: Callable[[], None]
    again: Callable[[], object] | None = None
    given_up: bool = False
    """Its jobs are dead until the work is done."""


Case = Callable[[Town], Attempt]
"""Prepares a fresh subject in a town."""


def client(work: Callable[[], object], check: Callable[[], None]) -> Attempt:
    """Return what a client does, and does again when it hears that the server is away."""
    return Attempt(work, check, work)
