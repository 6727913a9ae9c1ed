"""Limits of what a sender, a mailbox, a pair and a tenant in a mailbox have under way, kept where it is accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pki.core.errors import (
    ConflictError,
    KeymailboxError,
    NotFoundError,
    PeriodError,
    QuotaError,
    TooLargeError,
    UsageError,
)
from pki.core.events import EventType
from pki.core.ids import DepositId
from pki.core.tenants import Address, TenantName, parse_address, parse_tenant
from pki.server.facts import NewDeposit, Tally
from pki.server.services import senders
from pki.server.services.deps import Deps
from pki.server.services.events import event
from pki.server.settings import Settings
from pki.server.store import events as event_store
from pki.server.store import limits as store
from pki.server.store import tenants as tenant_store
from pki.server.store.engine import Unit

LATER_SECONDS = 300
"""When to try again where a place is free only once somebody has collected or answered."""


@dataclass(frozen=True)
class Limit:
    """One limit that an operator may set for a tenant or an address: its name, what it is, and its setting."""

    name: str
    what: str
    setting: str


LIMITS: Mapping[str, Limit] = {
    one.name: one
    for one in (
        Limit("sender-deposits", "deposits that it sent and could take back", "limit_sender_deposits"),
        Limit("sender-bytes", "bytes of those", "limit_sender_bytes"),
        Limit("sender-daily", "deposits that it sent, accepted in a day (UTC)", "limit_sender_daily"),
        Limit("mailbox-deposits", "deposits in its mailbox without an answer", "limit_mailbox_deposits"),
        Limit("mailbox-bytes", "bytes of those", "limit_mailbox_bytes"),
        Limit("share-deposits", "deposits of any one tenant in its mailbox without an answer", "limit_share_deposits"),
        Limit("share-bytes", "bytes of those", "limit_share_bytes"),
        Limit("pair-deposits", "deposits of any one sender in its mailbox without an answer", "limit_pair_deposits"),
        Limit("pair-bytes", "bytes of those", "limit_pair_bytes"),
        Limit("deposit-bytes", "bytes of one deposit, sent or received", "max_deposit_bytes"),
        Limit("deposit-hours", "hours until a deposit expires, sent or received", "deposit_max_lifetime"),
    )
}


@dataclass(frozen=True)
class Allowed:
    """One limit of a tenant or an address: its value, and whether it was set for just this one."""

    limit: Limit
    value: int
    own: bool
    source: str
    """Where it comes from: the subject, its tenant, or a setting."""


class Limits:
    """What holds for some tenants and addresses: set for the address, else for its tenant, else for everybody."""

    def __init__(self, settings: Settings, set_: Mapping[str, Mapping[str, int]]) -> None:
        self.settings = settings
        self._set = set_

    def of(self, subject: Address, name: str) -> int:
        """Return the value of a limit."""
        own = self._set.get(str(subject), {}).get(name)
        if own is None:
            own = self._set.get(subject.tenant, {}).get(name)
        return default(self.settings, name) if own is None else own


def default(settings: Settings, name: str) -> int:
    """Return the value of a limit for whom none was set."""
    value = getattr(settings, LIMITS[name].setting)
    return int(value.total_seconds() // 3600) if isinstance(value, timedelta) else int(value)


def admit(
    deps: Deps, unit: Unit, new: Sequence[NewDeposit], giving: Mapping[DepositId, int], now: datetime
) -> list[KeymailboxError | None]:
    """Count those deposits that may be accepted, in their order, and return for each None or why it may not.

    ``giving`` are the sizes of what gives its place, by the id of the new deposit that takes it. NotWelcomeError,
    TooLargeError and PeriodError by the recipient's policy (`senders`) and the operator's limits, QuotaError with the
    time to try again; of several that take the same place the first that may gets it, and the next ConflictError. Four
    statements for all of them in most cases; twenty at once on one place
    wait for each other here, and one gets it.
    """
    answers = senders.unwelcome(unit, new)
    subjects = {text for one in new for side in (one.sender, one.recipient) for text in (str(side), side.tenant)}
    limits = Limits(deps.settings, store.allowed(unit, sorted(subjects)))
    for place, one in enumerate(new):
        answers[place] = answers[place] or _too_much(one, limits)
    asking = [place for place, answer in enumerate(answers) if answer is None]
    changes = {
        place: store.accepted(str(new[place].sender), str(new[place].recipient), new[place].size, now)
        for place in asking
    }
    # Counted first, and taken back where it is too much: so nobody else counts in between.
    counted = store.count(unit, [change for place in asking for change in changes[place]])
    tallies = _before(counted, [change for place in asking for change in changes[place]])
    refused: list[store.Change] = []
    given: dict[DepositId, DepositId] = {}
    for place in asking:
        one = new[place]
        if one.supersedes in given:
            answers[place] = place_taken(one.supersedes, given[one.supersedes])
        else:
            answers[place] = _over(one, giving.get(one.id), tallies, limits, now)
        if answers[place] is not None:
            refused += store.back(changes[place])
            continue
        for change in changes[place]:
            _add(tallies, change, 1)
        if one.supersedes is not None:
            given[one.supersedes] = one.id
    store.count(unit, refused)
    return answers


def place_taken(old: DepositId, successor: DepositId) -> ConflictError:
    """Return why a deposit's place is not to be had: it has a successor on its way."""
    return ConflictError(
        "Another deposit is on its way to take this one's place",
        on=old,
        hint=f"wait until {successor} is available or rejected, or withdraw it",
    )


def take_back(unit: Unit, counted: Sequence[NewDeposit], now: datetime) -> None:
    """Undo what `admit` counted for deposits that were not stored after all."""
    changes = [store.accepted(str(one.sender), str(one.recipient), one.size, now) for one in counted]
    store.count(unit, [change for added in changes for change in store.back(added)])


def show(deps: Deps, subject: TenantName | Address) -> list[Allowed]:
    """Return each limit of a tenant or an address; raises NotFoundError."""
    with deps.store.read() as unit:
        _check_known(unit, subject)
        tenant = subject.tenant if isinstance(subject, Address) else subject
        found = store.allowed(unit, [tenant, str(subject)])
    own = found.get(str(subject), {})
    values = {**found.get(tenant, {}), **own}
    shown = []
    for one in LIMITS.values():
        own_, tenants = one.name in own, one.name in values
        source = str(subject) if own_ else str(tenant) if tenants else f"KMB_{one.setting.upper()}"
        shown.append(Allowed(one, values.get(one.name, default(deps.settings, one.name)), own_, source))
    return shown


def allow(deps: Deps, subject: TenantName | Address, values: Mapping[str, int | None]) -> None:
    """Set limits of a tenant or an address, None takes one back; raises NotFoundError, UsageError."""
    now = deps.clock.now()
    for name, value in values.items():
        if name not in LIMITS:
            raise UsageError("There is no such limit", on=name, hint=f"one of {', '.join(LIMITS)}")
        if value is not None and not 0 <= value < 1 << 53:
            raise UsageError("A limit is a whole number, not below 0", on=f"{name}={value}")
    with deps.store.unit() as unit:
        _check_known(unit, subject)
        store.allow(unit, str(subject), values, now)
        heard = [subject] if isinstance(subject, Address) else []
        told = [
            event(EventType.LIMITS_CHANGED, str(subject), now, *heard, subject=str(subject), name=name, value=value)
            for name, value in sorted(values.items())
        ]
        event_store.append(unit, told)


def fillable(settings: Settings) -> bool:
    """Whether one tenant alone may fill a mailbox: what it sends in the place of others may double its share."""
    units = ("deposits", "bytes")
    return any(2 * default(settings, f"share-{unit}") >= default(settings, f"mailbox-{unit}") for unit in units)


def mend(deps: Deps) -> int:
    """Count anew what is under way; return how many tallies were wrong."""
    with deps.store.unit() as unit:
        return store.mend(unit)


def _check_known(unit: Unit, subject: TenantName | Address) -> None:
    if isinstance(subject, Address):
        known = tenant_store.instance(unit, subject) is not None
    else:
        known = any(one.name == subject for one in tenant_store.list_tenants(unit))
    if not known:
        raise NotFoundError("There is no such tenant or address", on=str(subject), hint="kmb-server tenant list")


def _too_much(one: NewDeposit, limits: Limits) -> KeymailboxError | None:
    most = min(limits.of(side, "deposit-bytes") for side in (one.sender, one.recipient))
    if one.size > most:
        return TooLargeError(f"A deposit has at most {most} bytes here", on=f"{one.size} bytes")
    hours = min(limits.of(side, "deposit-hours") for side in (one.sender, one.recipient))
    # The default is a rule of its own (DEP-009), which the worker keeps.
    if hours < default(limits.settings, "deposit-hours") and one.expires_at - one.received_at > timedelta(hours=hours):
        return PeriodError(f"A deposit expires within {hours} hours here", on=str(one.expires_at))
    return None


@dataclass
class _Running:
    """A tally while the deposits of one batch are looked at, one after another."""

    deposits: int
    bytes: int
    today: int


def _before(
    counted: Mapping[tuple[str, str], Tally], added: Sequence[store.Change]
) -> Mapping[tuple[str, str], _Running]:
    tallies = {place: _Running(one.deposits, one.bytes, one.today) for place, one in counted.items()}
    for change in added:
        _add(tallies, change, -1)
    return tallies


def _add(tallies: Mapping[tuple[str, str], _Running], change: store.Change, sign: int) -> None:
    one = tallies[change.sender, change.recipient]
    one.deposits += sign * change.deposits
    one.bytes += sign * change.bytes
    one.today += sign * change.today


def _over(
    one: NewDeposit,
    gives: int | None,
    tallies: Mapping[tuple[str, str], _Running],
    limits: Limits,
    now: datetime,
) -> QuotaError | None:
    sender = str(one.sender)
    mine = tallies[sender, store.EVERYBODY]
    if mine.today + 1 > (most := limits.of(one.sender, "sender-daily")):
        midnight = (now.astimezone(UTC) + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return QuotaError(
            f"A sender may bring {most} deposits in a day",
            on=sender,
            retry_after=int((midnight - now).total_seconds()) + 1,
        )
    for name, told in _TOLD.items():
        scope, _, unit = name.partition("-")
        subject = one.sender if scope == "sender" else one.recipient
        tally = tallies[_place(scope, one)]
        most = limits.of(subject, name)
        fits = (
            _fits(tally.deposits, 1, None if gives is None else 1, most)
            if unit == "deposits"
            else _fits(tally.bytes, one.size, gives, most)
        )
        if not fits:
            return QuotaError(told.format(most), on=str(subject), retry_after=LATER_SECONDS)
    return None


_TOLD: Mapping[str, str] = {
    "sender-deposits": "You have {} deposits under way, which is the most",
    "sender-bytes": "Your deposits under way have at most {} bytes",
    "pair-deposits": "The recipient has {} deposits of yours without an answer, which is the most",
    "pair-bytes": "What the recipient has of yours without an answer has at most {} bytes",
    "share-deposits": "The recipient has {} deposits of your tenant's without an answer, which is the most",
    "share-bytes": "What the recipient has of your tenant's without an answer has at most {} bytes",
    # How full a mailbox is, is its owner's business.
    "mailbox-deposits": "The recipient's mailbox is full",
    "mailbox-bytes": "The recipient's mailbox is full",
}
"""What is said by each limit of what is under way; whoever is over several hears of the first."""


def _place(scope: str, one: NewDeposit) -> tuple[str, str]:
    """Return where it is counted what a limit bounds."""
    return {
        "sender": (str(one.sender), store.EVERYBODY),
        "pair": (str(one.sender), str(one.recipient)),
        "share": (one.sender.tenant, str(one.recipient)),
        "mailbox": (store.EVERYBODY, str(one.recipient)),
    }[scope]


def _fits(held: int, added: int, gives: int | None, most: int) -> bool:
    """Whether there is room for what is added, which takes the place of ``gives``.

    That needs room only for what it is larger by, since one of the two goes: whichever stays, no more is held than
    the limit allows. Until then both are there, and when the old one is collected first both stay until the recipient
    answers; so there is a bound on that, too.
    """
    if gives is None:
        return held + added <= most
    larger = max(0, added - gives)
    return (not larger or held + larger <= most) and held + added <= 2 * most


def parse_subject(text: str) -> TenantName | Address:
    """Return the tenant or the address that a text names; raises BadAddressError."""
    return parse_address(text) if "/" in text else parse_tenant(text)
