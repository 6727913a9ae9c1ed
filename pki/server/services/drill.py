"""The drill: what would happen if an instance's keys were found to be stolen; nothing is changed by looking."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from pki.core.crl import Reason
from pki.core.deposits import DepositState
from pki.core.events import EventType
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind
from pki.server.facts import DepositRecord, ReportRow
from pki.server.services import evidence, orders
from pki.server.services.deps import Deps
from pki.server.store import certificates as certificate_store
from pki.server.store import deposits as deposit_store

FORMAT = "keymailbox-drill/1"
_HELD = frozenset({DepositState.COLLECTED, DepositState.ACKNOWLEDGED})


@dataclass(frozen=True)
class Certificate:
    """One that would be revoked."""

    fingerprint: str
    kind: str
    state: str
    not_after: datetime


@dataclass(frozen=True)
class Deposit:
    """One that would be held back or refused: its sender wraps the key again once there is another certificate."""

    id: str
    sender: str
    key_id: str
    key_version: int


@dataclass(frozen=True)
class Rotation:
    """A key that the thief may have, and what its owner has to do.

    ``proved``: a receipt signed by the instance says that it has the key; otherwise it was handed out unanswered.
    ``holders`` are the others to whom the next version goes.
    """

    owner: str
    key_id: str
    key_version: int
    proved: bool
    holders: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class Drill:
    """What would happen; ``events`` are the types and numbers of what is told, ``hear`` the addresses that hear of it.

    ``room`` is how many certificates orders may still revoke now: above that, the cap has to be lifted first.
    """

    address: str
    at: datetime
    certificates: tuple[Certificate, ...]
    quarantined: tuple[Deposit, ...]
    refused: tuple[Deposit, ...]
    rewrapped_by: Mapping[str, int]
    rotations: tuple[Rotation, ...]
    events: Mapping[str, int]
    hear: tuple[str, ...]
    room: int
    commands: tuple[str, ...]


def compromise(deps: Deps, address: Address) -> Drill:
    """Return what revoking all of an instance's certificates would do, from one snapshot that cannot be written to.

    Raises NotFoundError for who is not here, IllegalMoveError when there is nothing left to revoke.
    """
    now = deps.clock.now()
    with deps.store.read() as unit:
        gone = orders.reach(unit, [address], Reason.KEY_COMPROMISE)
        keys = {item.ski for item in certificate_store.history(unit, address, CertificateKind.ENCRYPTION)}
        rows = [
            row
            for row in deposit_store.report_rows(unit, tenant=address.tenant)
            if address in (row.deposit.sender, row.deposit.recipient)
        ]
        room = evidence.cap(deps, unit, now).room
        holders = _holders(deposit_store.report_rows(unit), {_key(row.deposit) for row in rows})
    waiting = [row.deposit for row in rows if row.deposit.recipient == address and row.deposit.recipient_ski in keys]
    held = tuple(_deposit(one) for one in waiting if one.state is DepositState.AVAILABLE)
    refused = tuple(_deposit(one) for one in waiting if one.state is DepositState.RECEIVED)
    told = Counter(
        {
            EventType.ORDER_GIVEN.value: 1,
            EventType.ORDER_APPROVED.value: 1,
            EventType.CERTIFICATE_REVOKED.value: len(gone),
            EventType.DEPOSIT_QUARANTINED.value: len(held),
            EventType.DEPOSIT_REJECTED.value: len(refused),
            EventType.CRL_PUBLISHED.value: len(deps.chain.all),
        }
    )
    order = f"kmb-server revoke order {address} --reason key-compromise --because TEXT --officer NAME --key FILE"
    lift = f"kmb-server revoke lift-cap --count {deps.settings.order_cap - room + len(gone)} --for 1h --because TEXT"
    commands = [order, "kmb-server revoke approve ORDER --officer ANOTHER --key FILE"]
    if len(gone) > room:
        commands = [f"{lift} --officer NAME --key FILE", commands[1], *commands]
    return Drill(
        address=str(address),
        at=now,
        certificates=tuple(
            Certificate(item.fingerprint, item.kind.value, item.state.value, item.not_after) for item in gone
        ),
        quarantined=held,
        refused=refused,
        rewrapped_by=dict(sorted(Counter(one.sender for one in (*held, *refused)).items())),
        rotations=_rotations(rows, holders, address),
        events={name: count for name, count in told.items() if count},
        hear=tuple(sorted({str(address), *(one.sender for one in (*held, *refused))})),
        room=room,
        commands=tuple(commands),
    )


def to_dict(drill: Drill) -> dict[str, object]:
    """Return the drill as JSON has it (schemas/drill.schema.json)."""
    return {"format": FORMAT, **asdict(drill)}


def to_text(drill: Drill) -> str:
    """Return the drill for people."""
    lines = [f"If the keys of {drill.address} were stolen (a drill: nothing is changed):", ""]
    lines += _listed(
        f"{len(drill.certificates)} certificates revoked, of {drill.room} that orders may revoke now",
        (f"{one.kind:<10}  {one.state:<8}  {one.fingerprint}" for one in drill.certificates),
    )
    lines += _listed(
        f"{len(drill.quarantined)} deposits quarantined, {len(drill.refused)} more refused",
        (
            f"{one.id}  {one.key_id} v{one.key_version} from {one.sender}"
            for one in (*drill.quarantined, *drill.refused)
        ),
    )
    lines += _listed(
        f"{sum(drill.rewrapped_by.values())} to be wrapped again, by {len(drill.rewrapped_by)} senders",
        (f"{count} by {sender}" for sender, count in drill.rewrapped_by.items()),
    )
    lines += _listed(
        f"{len(drill.rotations)} keys to be rotated, since the thief may have them",
        (
            f"{one.owner}: {one.command}   ({'receipt' if one.proved else 'handed out, no receipt'}; "
            f"{len(one.holders)} other holders)"
            for one in drill.rotations
        ),
    )
    lines += _listed("told", (f"{count} × {name}" for name, count in drill.events.items()))
    lines += _listed("the real thing", drill.commands)
    return "\n".join(lines).rstrip() + "\n"


_Key = tuple[Address, str]


def _key(deposit: DepositRecord) -> _Key:
    return deposit.sender, deposit.key_id


def _holders(rows: Iterable[ReportRow], wanted: set[_Key]) -> Mapping[_Key, set[str]]:
    found: dict[_Key, set[str]] = defaultdict(set)
    for row in rows:
        if _key(row.deposit) in wanted and row.deposit.state in _HELD:
            found[_key(row.deposit)].add(str(row.deposit.recipient))
    return found


def _rotations(rows: Sequence[ReportRow], holders: Mapping[_Key, set[str]], address: Address) -> tuple[Rotation, ...]:
    """Return each key once, its newest version: what the instance was handed, and what it has handed to others."""
    newest: dict[_Key, tuple[int, bool]] = {}
    for row in rows:
        deposit = row.deposit
        if deposit.state not in _HELD:
            continue
        version, proved = newest.get(_key(deposit), (0, False))
        receipt = deposit.sender == address or (row.receipt is not None and row.receipt.kind == "receipt")
        newest[_key(deposit)] = (max(version, deposit.key_version), proved or receipt)
    found = []
    for (owner, key_id), (version, proved) in sorted(newest.items()):
        others = tuple(sorted(holders.get((owner, key_id), set()) - {str(address)}))
        command = f"kmb key rotate {key_id}" + ("" if owner == address else f" --except {address}")
        found.append(Rotation(str(owner), key_id, version, proved, others, command))
    return tuple(found)


def _deposit(record: DepositRecord) -> Deposit:
    return Deposit(record.id, str(record.sender), record.key_id, record.key_version)


def _listed(title: str, lines: Iterable[str]) -> list[str]:
    return [title, *(f"  {line}" for line in lines), ""]
