"""Revocation by the operator: one officer orders, another approves."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pki.core.errors import UsageError
from pki.server.commands.officer import PassphraseFile, passphrase
from pki.server.commands.shared import AsJson, Home, group, opened, print_json, table

if TYPE_CHECKING:
    from datetime import datetime

    from pki.core.orders import Content
    from pki.server.facts import OrderRecord

app = group("Revoke certificates as the operator: one officer orders, another approves.", "kmb-server revoke list")

REASONS = {
    "unspecified": 0,
    "key-compromise": 1,
    "affiliation-changed": 3,
    "superseded": 4,
    "cessation-of-operation": 5,
}
_DURATION = re.compile(r"(\d{1,4})([mh])")

Officer = Annotated[str, typer.Option("--officer", help="Who you are, as officer list shows it.")]
Key = Annotated[Path, typer.Option("--key", help="The file of your key.")]
Because = Annotated[str, typer.Option("--because", help="What the owners are told: a line of 1 to 500 characters.")]
Order = Annotated[str, typer.Argument(metavar="ORDER", help="The order: its id, or the first 8 digits and more.")]


@app.command()
def order(
    wanted: Annotated[
        list[str],
        typer.Argument(metavar="ADDRESS|FINGERPRINT...", help="An instance with all it has, or a certificate."),
    ],
    reason: Annotated[str, typer.Option(help="key-compromise, cessation-of-operation, superseded, …")],
    because: Because,
    officer: Officer,
    key: Key,
    passphrase_file: PassphraseFile = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Order that certificates be revoked; nothing happens before another officer approves, within 24 hours.

    \b
    Example: kmb-server revoke order acme/eu-west --reason key-compromise --because "Leaked" --officer ann --key ann.key
    """
    from pki.core.crl import Reason
    from pki.core.ids import Fingerprint
    from pki.core.orders import LIFETIME, RevocationOrder
    from pki.core.tenants import parse_address
    from pki.server.services import orders

    if reason not in REASONS:
        raise UsageError("There is no such reason", on=reason[:40], hint=f"--reason {'|'.join(REASONS)}")
    chosen = Reason(REASONS[reason])
    places = [parse_address(one) if "/" in one else Fingerprint(one.lower()) for one in wanted]
    with opened(home) as deps:
        with deps.store.read() as unit:
            found = orders.reach(unit, places, chosen)
        now = deps.clock.now().replace(microsecond=0)
        names = tuple(item.fingerprint for item in found)
        content = RevocationOrder(officer, because, now, now + LIFETIME, chosen, names)
        record = orders.give(deps, _signed(content, key, officer, passphrase_file))
    if as_json:
        print_json(_shown(record, now))
        return
    typer.echo(
        table(
            ("address", "kind", "state", "fingerprint"),
            [(str(item.address), item.kind.value, item.state.value, item.fingerprint) for item in found],
        )
    )
    _next(record, officer)


@app.command("lift-cap")
def lift_cap(
    count: Annotated[int, typer.Option(min=1, help="How many certificates orders may revoke in 24 hours meanwhile.")],
    lasts: Annotated[str, typer.Option("--for", help="For how long from the approval on: 30m, 2h; at most 24h.")],
    because: Because,
    officer: Officer,
    key: Key,
    passphrase_file: PassphraseFile = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Order that more certificates may be revoked for a while; another officer has to approve this, too.

    \b
    Example: kmb-server revoke lift-cap --count 200 --for 1h --because "Broken HSMs" --officer ann --key ann.key
    """
    from pki.core.orders import LIFETIME, CapLift
    from pki.server.services import orders

    found = _DURATION.fullmatch(lasts)
    if found is None:
        raise UsageError("A duration is written 30m or 2h", on=lasts[:40], hint="--for 1h")
    length = timedelta(minutes=int(found[1])) if found[2] == "m" else timedelta(hours=int(found[1]))
    with opened(home) as deps:
        now = deps.clock.now().replace(microsecond=0)
        content = CapLift(officer, because, now, now + LIFETIME, count, length)
        record = orders.give(deps, _signed(content, key, officer, passphrase_file))
    if as_json:
        print_json(_shown(record, now))
        return
    typer.echo(f"the cap is to be {count} certificates in 24 hours, for {lasts} from the approval on")
    _next(record, officer)


@app.command()
def approve(
    order: Order,
    officer: Officer,
    key: Key,
    passphrase_file: PassphraseFile = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Approve what another officer ordered, which carries it out; look at it before: kmb-server revoke show ORDER.

    \b
    Example: kmb-server revoke approve 0123456789abcdef --officer bob --key bob.key
    """
    from pki.core.orders import compose_approval
    from pki.server.adapters.signers import officer as keys
    from pki.server.services import orders

    with opened(home) as deps:
        with deps.store.read() as unit:
            record = orders.find(unit, order)
        signing = keys.load(key, officer, passphrase(passphrase_file))
        now = deps.clock.now().replace(microsecond=0)
        done = orders.approve(deps, compose_approval(record.id, officer, signing, now))
    if as_json:
        print_json({**_shown(done.order, now), "revoked": [item.fingerprint for item in done.revoked]})
        return
    if done.order.kind == "lift":
        typer.echo("the cap is lifted")
        typer.echo("next     kmb-server revoke order ADDRESS … once more, and its approval")
        return
    for item in done.revoked:
        typer.echo(f"revoked  {item.address}  {item.kind.value}  {item.fingerprint}")
    typer.echo("next     kmb-server doctor, which says whether the list is out")


@app.command("list")
def list_orders(
    home: Home = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, newest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List orders, and how many certificates may still be revoked without lifting the cap.

    Example: kmb-server revoke list
    """
    from pki.server.services import evidence
    from pki.server.store import orders

    with opened(home) as deps, deps.store.read() as unit:
        now = deps.clock.now()
        found = orders.newest(unit, limit)
        room = evidence.cap(deps, unit, now).room
    if as_json:
        print_json({"room": room, "orders": [_shown(one, now) for one in found]})
        return
    rows = [
        (one.id[:16], one.kind, _standing(one, now), one.ordered_by, one.approved_by or "-", one.because)
        for one in found
    ]
    typer.echo(table(("order", "kind", "state", "ordered by", "approved by", "because"), rows))
    typer.echo(f"orders may revoke {room} more certificates now")


@app.command()
def show(order: Order, home: Home = None, as_json: AsJson = False) -> None:
    """Show an order: what it is for, who gave it, until when it waits, and whose certificates it names.

    Example: kmb-server revoke show 0123456789abcdef
    """
    from pki.core.orders import RevocationOrder, parse_order
    from pki.server.services import orders
    from pki.server.store import certificates

    with opened(home) as deps, deps.store.read() as unit:
        now = deps.clock.now()
        record = orders.find(unit, order)
        content = parse_order(record.der).content
        names = content.fingerprints if isinstance(content, RevocationOrder) else ()
        named = [certificates.certificate(unit, one) for one in names]
    if as_json:
        print_json({**_shown(record, now), **_details(content)})
        return
    for title, value in (
        ("order", record.id),
        ("state", _standing(record, now)),
        ("ordered by", f"{record.ordered_by}, {record.created_at:%Y-%m-%d %H:%M}Z"),
        ("approved by", record.approved_by or f"nobody yet; until {record.expires_at:%Y-%m-%d %H:%M}Z"),
        ("because", content.because),
        *((name, str(value)) for name, value in _details(content).items() if name != "certificates"),
    ):
        typer.echo(f"{title:<12} {''.join(one if one.isprintable() else ' ' for one in value)}")
    rows = [(str(one.address), one.kind.value, one.state.value, one.fingerprint) for one in named if one is not None]
    if rows:
        typer.echo(table(("address", "kind", "state", "fingerprint"), rows))


def _signed(content: Content, key: Path, officer: str, passphrase_file: Path | None) -> bytes:
    from pki.core.orders import compose_order
    from pki.server.adapters.signers import officer as keys

    return compose_order(content, keys.load(key, officer, passphrase(passphrase_file)))


def _next(record: OrderRecord, officer: str) -> None:
    typer.echo(f"order  {record.id}")
    typer.echo(f"until  {record.expires_at:%Y-%m-%d %H:%M}Z somebody else than {officer} has to approve it:")
    typer.echo(f"next   kmb-server revoke approve {record.id[:16]} --officer ANOTHER --key FILE")


def _standing(record: OrderRecord, now: datetime) -> str:
    from pki.server.services import orders

    return orders.standing(record, now)


def _shown(record: OrderRecord, now: datetime) -> dict[str, Any]:
    return {
        "order": record.id,
        "kind": record.kind,
        "state": _standing(record, now),
        "ordered_by": record.ordered_by,
        "approved_by": record.approved_by,
        "because": record.because,
        "created": record.created_at,
        "expires": record.expires_at,
        "executed": record.executed_at,
    }


def _details(content: Content) -> dict[str, Any]:
    from pki.core.orders import CapLift

    if isinstance(content, CapLift):
        return {"count": content.count, "seconds": int(content.lasts.total_seconds())}
    return {"reason": content.reason.name.lower().replace("_", "-"), "certificates": list(content.fingerprints)}
