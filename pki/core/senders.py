"""Whom a recipient takes deposits from, how large and for how long: its own word, which binds its mailbox."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from pki.core.errors import BadAddressError, NotWelcomeError, PeriodError, TooLargeError, UsageError
from pki.core.tenants import Address, parse_address, parse_tenant

MOST_LISTED = 1000
"""A list has this many tenants and addresses at most."""
SMALLEST = 16 * 1024
"""Bytes: a recipient that took only smaller deposits would take none."""
SHORTEST = timedelta(hours=1)


class SenderMode(StrEnum):
    """From whom a recipient takes deposits."""

    ANYONE = "anyone"
    KNOWN = "known"
    """Whom it has sent something itself, whose earlier deposit it acknowledged, and who is on its list."""
    LISTED = "listed"


@dataclass(frozen=True)
class SenderPolicy:
    """Whom and what a recipient takes: ``listed`` are tenants and addresses, sizes are in bytes, None is no limit.

    Raises UsageError and BadAddressError for what cannot be meant.
    """

    mode: SenderMode = SenderMode.ANYONE
    listed: tuple[str, ...] = ()
    max_bytes: int | None = None
    max_lifetime: timedelta | None = None
    changed_at: datetime | None = None

    def __post_init__(self) -> None:
        if len(self.listed) > MOST_LISTED:
            raise UsageError(f"A list has at most {MOST_LISTED} senders", on=str(len(self.listed)))
        for one in self.listed:
            _check(one)
        if self.max_bytes is not None and self.max_bytes < SMALLEST:
            raise UsageError(f"A limit of size is at least {SMALLEST} bytes", on=str(self.max_bytes))
        if self.max_lifetime is not None and self.max_lifetime < SHORTEST:
            raise UsageError("A limit of lifetime is at least an hour", on=str(self.max_lifetime))

    def lists(self, sender: Address) -> bool:
        """Return whether a sender, or its tenant, is on the list."""
        return str(sender) in self.listed or sender.tenant in self.listed

    def check(self, sender: Address, *, known: bool, size: int, lifetime: timedelta) -> None:
        """Raise what a deposit breaks, to be told to its sender.

        NotWelcomeError does not say why: neither mode nor list are the sender's business. Who is welcome learns the
        limits: TooLargeError, PeriodError.
        """
        welcome = self.mode is SenderMode.ANYONE or self.lists(sender) or (self.mode is SenderMode.KNOWN and known)
        if not welcome:
            raise NotWelcomeError
        if self.max_bytes is not None and size > self.max_bytes:
            raise TooLargeError(f"The recipient takes deposits of at most {self.max_bytes} bytes", on=f"{size} bytes")
        if self.max_lifetime is not None and lifetime > self.max_lifetime:
            raise PeriodError(
                f"The recipient takes deposits that expire within {self.max_lifetime}", on=f"it expires in {lifetime}"
            )


def _check(listed: str) -> None:
    try:
        parse_address(listed) if "/" in listed else parse_tenant(listed)
    except BadAddressError:
        raise BadAddressError("A list is of tenants and addresses", on=listed[:80]) from None
