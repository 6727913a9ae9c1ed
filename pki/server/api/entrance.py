"""Where signed requests come in: keys that are remembered, and nonces that are used up together."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from pki.core import httpsig
from pki.core.errors import KeymailboxError, ReplayedError
from pki.core.tenants import Address
from pki.server.api.gathering import Gathering
from pki.server.api.rates import Rates
from pki.server.api.shares import Shares
from pki.server.facts import Instance
from pki.server.services import calls, mailbox
from pki.server.services.calls import Keyring, Memory, Ticket
from pki.server.services.deposits import Answer, Arrival, Handed, accept_all
from pki.server.services.deps import Deps

SMALL = 64 * 1024
"""What is no larger than this is hashed and parsed between two other requests; the rest in a thread."""
_COMMITS_AT_ONCE = 2
_SPENT = 20_000
"""Requests that one process remembers to have used up, some 4 MB."""


class Entrance:
    """What all signed requests of one process pass through; used in its event loop."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._keyring = Keyring()
        self._spent: OrderedDict[tuple[str, str], None] = OrderedDict()
        self.rates = Rates(deps.settings)
        self.shares = Shares(time.monotonic)
        # Threads of their own: a commit never waits behind a hundred slow reports. SQLite has one writer anyway.
        at_once = _COMMITS_AT_ONCE if deps.store.dialect == "postgresql" else 1
        self._executor = ThreadPoolExecutor(5 * at_once + 1, "gathering")
        gathered = partial(Gathering, executor=self._executor)
        # What waits for no disk does not wait for company either: a poll would be longer under way than it takes.
        self._finding: Gathering[str, Instance | None] = gathered(partial(calls.find, deps))
        memory = Memory()
        self._reading: Gathering[Ticket, KeymailboxError | None] = gathered(
            partial(calls.spend_for_reading, deps, memory), at_once=at_once, patient=False
        )
        self._polling: Gathering[Ticket, int | KeymailboxError] = gathered(
            partial(mailbox.poll, deps, memory), at_once=at_once, patient=False
        )
        self._changing: Gathering[Ticket, KeymailboxError | None] = gathered(
            partial(calls.spend_for_changes, deps), at_once=at_once
        )
        self.numbers: Gathering[Address, int] = gathered(
            partial(mailbox.last_numbers, deps), at_once=at_once, patient=False
        )
        """Where those who wait are gathered: the last number given out in a mailbox."""
        self._accepting: Gathering[Handed, list[Answer] | KeymailboxError] = gathered(
            partial(accept_all, deps), at_once=at_once, weigh=lambda handed: max(len(handed.items), 1)
        )

    async def verify(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Ticket:
        """Return the ticket of a signed request; it is still to be spent. Raises AccessError, UnavailableError."""
        key_id = httpsig.claimed_key(headers)
        if key_id is not None and key_id not in self._keyring:
            instance = await self._finding.submit(key_id)
            if instance is not None:
                self._keyring.remember(instance)
        given = (self._deps, self._keyring, method, url, headers, body)
        if len(body) <= SMALL:
            return calls.verify(*given)
        return await run_in_threadpool(calls.verify, *given)

    async def spend(self, ticket: Ticket, *, reading: bool) -> None:
        """Use up a ticket, with those of other requests. Raises AccessError, ReplayedError, UnavailableError."""
        error = await (self._reading if reading else self._changing).submit(ticket)
        self._remember(ticket, error)
        if error is not None:
            raise error

    async def poll(self, ticket: Ticket) -> int:
        """Return the last number given out in the caller's own mailbox, and use up the ticket; raises as `spend` does.

        Both in one commit, with those of other requests: most polls ask for no more.
        """
        found = await self._polling.submit(ticket)
        self._remember(ticket, found)
        if isinstance(found, KeymailboxError):
            raise found
        return found

    async def accept(self, items: Sequence[Arrival | KeymailboxError], ticket: Ticket) -> list[Answer]:
        """Store deposits with those of other requests, and use up the ticket with them; raises as `spend` does."""
        answers = await self._accepting.submit(Handed(items, ticket))
        self._remember(ticket, answers)
        if isinstance(answers, KeymailboxError):
            raise answers
        return answers

    def _remember(self, ticket: Ticket, told: object) -> None:
        if isinstance(told, KeymailboxError) and not isinstance(told, ReplayedError):
            return
        place = (ticket.key_id, ticket.nonce)
        self._spent[place] = None
        self._spent.move_to_end(place)
        if len(self._spent) > _SPENT:
            self._spent.popitem(last=False)

    def look(self, headers: Mapping[str, str]) -> None:
        """Raise BusyError for a request that says it is from a tenant that has too much under way.

        Only what is proved is counted: nobody uses up another's share by naming its key.
        """
        key_id = httpsig.claimed_key(headers)
        instance = None if key_id is None else self._keyring.instance(key_id)
        if instance is not None:
            self.rates.look(instance.tenant)
            self.shares.look(instance.tenant)

    async def take_turn(self, scope: Scope, ticket: Ticket, size: int) -> None:
        """Count a request, whose body has ``size`` bytes, for its tenant, and wait for its turn. Raises BusyError.

        ReplayedError for one that is known to be used up: whoever has recorded it uses up nothing more of its tenant's.
        """
        if (ticket.key_id, ticket.nonce) in self._spent:
            raise calls.replayed()
        tenant = ticket.caller.instance.tenant
        self.rates.spend(tenant, size)
        await self.shares.turn(scope, tenant)

    def close(self) -> None:
        """Let go of the threads."""
        self._executor.shutdown(wait=False)
