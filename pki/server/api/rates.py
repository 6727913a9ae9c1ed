"""Rates that an operator sets: requests and bytes of one tenant a second, in one process."""

from __future__ import annotations

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from pki.core.errors import BusyError
from pki.server.settings import Settings

_WINDOW = 10
"""Seconds that a rate is measured over: a burst may use what ten of them allow."""


class Rates:
    """What each tenant has used; a request counts once its signature is known to be the tenant's."""

    def __init__(self, settings: Settings) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._rates = [
            (name, RateLimitItemPerSecond(rate * _WINDOW, _WINDOW))
            for name, rate in (("requests", settings.rate_requests), ("bytes", settings.rate_bytes))
            if rate
        ]

    def look(self, tenant: str) -> None:
        """Raise BusyError when a tenant has used up its rate. Nothing is counted."""
        for name, rate in self._rates:
            if not self._limiter.test(rate, name, tenant):
                raise self._busy(name, rate, tenant)

    def spend(self, tenant: str, size: int) -> None:
        """Count one request with a body of ``size`` bytes; raises BusyError when the rate is used up."""
        for name, rate in self._rates:
            cost = 1 if name == "requests" else size
            if cost and not self._limiter.hit(rate, name, tenant, cost=cost):
                raise self._busy(name, rate, tenant)

    def _busy(self, name: str, rate: RateLimitItemPerSecond, tenant: str) -> BusyError:
        return BusyError(
            f"At most {rate.amount // _WINDOW} {name} of a tenant are taken in a second",
            on=tenant,
            retry_after=_WINDOW // 2,
        )
