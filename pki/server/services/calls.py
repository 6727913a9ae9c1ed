"""Signed requests: whose each is, and that it is good once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pki.core import httpsig
from pki.core.errors import AccessError, FullError, KeymailboxError, ReplayedError
from pki.server.facts import Caller, Instance
from pki.server.services.deps import Deps
from pki.server.store import access as store
from pki.server.store import tenants
from pki.server.store.engine import Unit

_REMEMBERED = 10_000
_UNWRITTEN = 100_000
"""Nonces that one process remembers while the disk is full: some 300 reads a second, for as long as they are good."""


@dataclass(frozen=True)
class Ticket:
    """A request whose signature verified; it is good for nothing before `spend`, in the unit of what it asks for."""

    caller: Caller
    key_id: str
    nonce: str
    until: datetime


class Keyring:
    """The access keys that signed lately, to verify without the database; threads share it.

    What it knows may be over: a key's id is a hash of the key, so it verifies for ever, and whether it is still the
    instance's own `spend` asks the database, for each request.
    """

    def __init__(self, most: int = _REMEMBERED) -> None:
        self._most = most
        self._known: OrderedDict[str, tuple[Instance, Ed25519PublicKey]] = OrderedDict()

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._known

    def remember(self, instance: Instance) -> None:
        """Keep an instance's key; the one that is not used for the longest time goes."""
        if instance.access_key is None or instance.access_key_id is None:
            return
        public = Ed25519PublicKey.from_public_bytes(instance.access_key)
        self._known[instance.access_key_id] = (instance, public)
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def instance(self, key_id: str) -> Instance | None:
        """Return whose key this is, where it is known; whoever names it proves nothing."""
        found = self._known.get(key_id)
        return None if found is None else found[0]

    def of(self, key_id: str) -> tuple[Instance, Ed25519PublicKey]:
        """Return whose key this is, and the key. Raises AccessError."""
        found = self._known.get(key_id)
        if found is None:
            raise AccessError("The access key is not enrolled", on=key_id, hint="kmb enroll")
        with suppress(KeyError):  # another thread let it go meanwhile
            self._known.move_to_end(key_id)
        return found


def find(deps: Deps, key_ids: Sequence[str]) -> list[Instance | None]:
    """Return whose access keys these are, in order."""
    with deps.store.read() as unit:
        found = {one.access_key_id: one for one in tenants.instances_by_key(unit, key_ids)}
    return [found.get(key_id) for key_id in key_ids]


def verify(deps: Deps, keyring: Keyring, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Ticket:
    """Return the ticket of a request that a key in ``keyring`` signed just now; raises AccessError, with a hint."""

    def resolve(key_id: str) -> Ed25519PublicKey:
        return keyring.of(key_id)[1]

    signed = httpsig.verify_request(method, url, headers, body, resolve=resolve, now=deps.clock.now())
    instance, _ = keyring.of(signed.key_id)
    # Kept until the signature is too old by itself, whichever of the processes' clocks looks at it.
    until = signed.created + httpsig.MAX_AGE + 2 * httpsig.SKEW
    return Ticket(Caller(instance), signed.key_id, signed.nonce, until)


class Memory:
    """Nonces of reading requests that could not be written down, because the disk is full; of one process.

    It forgets those that are too old to be accepted, and holds so many at most: then nobody reads either.
    """

    def __init__(self, most: int = _UNWRITTEN) -> None:
        self._most = most
        self._used: dict[tuple[str, str], datetime] = {}
        self._lock = threading.Lock()

    def use(self, ticket: Ticket, now: datetime) -> bool:
        """Use up a ticket's nonce; False when it was. Raises FullError when too many are remembered."""
        with self._lock:
            if len(self._used) >= self._most:
                self._used = {place: until for place, until in self._used.items() if until > now}
            if (ticket.key_id, ticket.nonce) in self._used:
                return False
            if len(self._used) >= self._most:
                raise FullError
            self._used[ticket.key_id, ticket.nonce] = ticket.until
            return True

    def used(self, ticket: Ticket) -> bool:
        """Tell whether a ticket's nonce was used up here."""
        return (ticket.key_id, ticket.nonce) in self._used


def spend(unit: Unit, tickets: Sequence[Ticket]) -> list[KeymailboxError | None]:
    """Use up tickets in ``unit``; return what is wrong with each, in order, and None for those that are good.

    ReplayedError: its nonce was seen. AccessError: the key was taken from the instance since it signed.
    """
    own = _own(unit, tickets)
    good = [ticket for ticket, its in zip(tickets, own, strict=True) if its]
    fresh = store.use_nonces(unit, [_nonce(one) for one in good])
    return _judged(tickets, own, fresh)


def _own(unit: Unit, tickets: Sequence[Ticket]) -> list[bool]:
    owners = tenants.access_owners(unit, [ticket.key_id for ticket in tickets])
    return [owners.get(ticket.key_id) == ticket.caller.instance.address for ticket in tickets]


def _judged(tickets: Sequence[Ticket], own: Sequence[bool], fresh: Sequence[bool]) -> list[KeymailboxError | None]:
    left = iter(fresh)
    told: list[KeymailboxError | None] = []
    for ticket, its in zip(tickets, own, strict=True):
        if not its:
            told.append(AccessError("The access key is not enrolled", on=ticket.key_id, hint="kmb enroll"))
        elif next(left):
            told.append(None)
        else:
            told.append(replayed())
    return told


def replayed() -> ReplayedError:
    """Return what is wrong with a request that was used up."""
    return ReplayedError("The same request was presented before", hint="sign the request again, with a new nonce")


def _nonce(ticket: Ticket) -> store.Nonce:
    return store.Nonce(ticket.key_id, ticket.nonce, ticket.until)


def spend_for_changes(deps: Deps, tickets: Sequence[Ticket]) -> list[KeymailboxError | None]:
    """Use up the tickets of requests that change something, in one commit; see `spend`."""
    with deps.store.unit() as unit:
        return spend(unit, tickets)


def spend_for_reading(
    deps: Deps, memory: Memory, tickets: Sequence[Ticket], look: Callable[[Unit], None] = lambda _: None
) -> list[KeymailboxError | None]:
    """Use up the tickets of requests that change nothing, in one commit that does not wait for the disk.

    ``look`` reads in the same unit what they ask for; it is for those that turn out to be good.

    Should the database crash just then, such a request can be read once more within its five minutes (ADR 19). While
    the disk is full they are remembered by this process alone, and reading goes on (ADR 27).
    """
    try:
        with deps.store.unit(durable=False) as unit:
            own = _own(unit, tickets)
            good = [ticket for ticket, its in zip(tickets, own, strict=True) if its]
            fresh = store.use_nonces(unit, [_nonce(one) for one in good])
            look(unit)
    except FullError:
        now = deps.clock.now()
        with deps.store.read() as unit:
            own = _own(unit, tickets)
            good = [ticket for ticket, its in zip(tickets, own, strict=True) if its]
        # Remembered before it is asked what is written, and asked for what is remembered after it was written: of two
        # batches with the same nonce, one when space has just come back, the later one always sees the other.
        here = [memory.use(one, now) for one in good]
        with deps.store.read() as unit:
            written = store.seen(unit, [_nonce(one) for one in good])
            look(unit)
        return _judged(tickets, own, [new and not was for new, was in zip(here, written, strict=True)])
    here = [memory.used(one) for one in good]
    return _judged(tickets, own, [new and not was for new, was in zip(fresh, here, strict=True)])
