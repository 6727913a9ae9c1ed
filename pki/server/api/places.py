"""How many may wait at once: each stream and long poll takes a place, and nobody gets all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from pki.core.errors import BusyError, UnavailableError
from pki.core.tenants import Address
from pki.server.settings import Settings

RETRY_SECONDS = 30


class Places:
    """The places of one process; used in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._taken: Counter[str] = Counter()
        self._all = 0

    @property
    def taken(self) -> int:
        """How many wait now."""
        return self._all

    @contextmanager
    def one(self, address: Address) -> Iterator[None]:
        """Take a place for the time of the block.

        Raises BusyError when the address or its tenant has all of its own, UnavailableError when there is none left.
        """
        for who, cap in (
            (str(address), self._settings.waiting_per_address),
            (address.tenant, self._settings.waiting_per_tenant),
        ):
            if self._taken[who] >= cap:
                raise BusyError(
                    f"At most {cap} streams and long polls are open at once",
                    on=who,
                    hint="close some; one stream tells an instance everything",
                    retry_after=RETRY_SECONDS,
                )
        if self._all >= self._settings.waiting_max:
            raise UnavailableError("Too many are waiting here", hint="repeat the request", retry_after=RETRY_SECONDS)
        names = (str(address), address.tenant)
        self._all += 1
        self._taken.update(names)
        try:
            yield
        finally:
            self._all -= 1
            for who in names:
                self._taken[who] -= 1
                if not self._taken[who]:
                    del self._taken[who]
