"""CMP messages on their way: stored with a job for the issuer process, and answered once, however often they come."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import NamedTuple

from pki.core.cmp import answers, messages
from pki.core.cmp.messages import Header, Message
from pki.core.cmp.types import Body, Fail
from pki.core.errors import UnavailableError
from pki.server.facts import Exchange
from pki.server.services.deps import Deps
from pki.server.store import exchanges as store
from pki.server.store import outbox

QUEUE = "issue"
JOB = "cmp"
"""The kind of job that answers a message; its subject is the message's digest."""
KEPT = timedelta(minutes=15)
"""For how long a message is known by its bytes; it can be answered for as long."""
KEPT_FOR_STRANGERS = timedelta(minutes=1)
"""For how long the answer to somebody unknown is."""
MOST_WAITING = 256
"""Messages that may wait for their answer: no more bytes of strangers than these are kept."""
_MOST_ASKED = 16


def submit(deps: Deps, der: bytes) -> Exchange:
    """Store a message that keeps its bounds, with a job; the same bytes again are the same exchange.

    The answer rings ``cmp:<digest>``. Raises MalformedError, ProfileError or AlgorithmError for what is no message,
    and UnavailableError when too many wait.
    """
    messages.parse(der)
    now, digest = deps.clock.now(), hashlib.sha256(der).hexdigest()
    with deps.store.unit() as unit:
        known = store.exchange(unit, digest)
        if known is not None and known.expires_at <= now:
            store.purge_exchanges(unit, now)
            known = None
        if known is None:
            if store.count_unanswered(unit, now) >= MOST_WAITING:
                raise UnavailableError("Too many CMP messages wait for their answer", hint="repeat the message")
            known = Exchange(digest, der, None, 0, now, now + KEPT)
            if store.insert(unit, known):
                outbox.add(unit, QUEUE, JOB, [digest], now=now)
        elif known.response is None and known.asked < _MOST_ASKED:
            # Its worker may be gone: another one need not wait for the end of the lease.
            store.ask_again(unit, digest)
            outbox.add(unit, QUEUE, JOB, [digest], now=now)
        return known


def put_off(deps: Deps, digest: str) -> None:
    """Have a message answered later, after everything else that the issuer has to do."""
    with deps.store.unit() as unit:
        outbox.add(unit, QUEUE, JOB, [digest], now=deps.clock.now(), rank=outbox.IDLE)


def look(deps: Deps, digest: str) -> bytes | None:
    """Return the answer to a message, None while there is none."""
    with deps.store.read() as unit:
        found = store.exchange(unit, digest)
    return found.response if found else None


class Move(NamedTuple):
    """A step of a transaction; one that is not in the state ``old`` stays as it is."""

    transaction_id: str
    old: str
    new: str


def answer(deps: Deps, digest: str, response: bytes, kept: timedelta, move: Move | None = None) -> None:
    """Store an answer with what becomes of its transaction, and forget what nobody will ask for any more."""
    now = deps.clock.now()
    with deps.store.unit() as unit:
        store.answer(unit, digest, response, now + kept)
        if move is not None:
            store.set_state(unit, *move)
        store.purge(unit, now)


def unprotected_error(message: Message, sender: bytes, nonce: bytes, failure: Fail, text: str) -> bytes:
    """Return an error message to somebody whom we do not know: nothing is signed for them."""
    asked = message.header
    header = Header(
        version=asked.version,
        sender=sender,
        recipient=asked.sender,
        transaction=asked.transaction,
        sender_nonce=nonce,
        recipient_nonce=asked.sender_nonce,
    )
    return messages.compose(header, Body.ERROR, answers.error(failure, text), None)
