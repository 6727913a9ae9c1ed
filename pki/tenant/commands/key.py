"""``kmb key``: shared keys, ours and received ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pki.core.errors import ConflictError, KeymailboxError, UsageError
from pki.tenant import output
from pki.tenant.commands import attributes
from pki.tenant.commands.peer import first_contact
from pki.tenant.commands.shared import Json, Wait, open_agent, read_material

if TYPE_CHECKING:
    from pki.core.packages import KeyMaterial
    from pki.tenant.deposits import Campaign

app = typer.Typer(help="Shared keys: make, send, rotate, export.", no_args_is_help=True)
OCTETS = "application/octet-stream"
Name = Annotated[str, typer.Argument(metavar="NAME", help="What the key is called.")]
In = Annotated[Path | None, typer.Option("--in", help="A file with the key; - is stdin. Default: 32 random bytes.")]
MediaType = Annotated[str, typer.Option("--media-type", help="What the key material is.")]
Version = Annotated[int, typer.Option("--version", help="Which version. Default: the newest.", min=0)]
Owner = Annotated[str, typer.Option("--owner", help="Whose key it is, when several have one of this name.")]
Purpose = Annotated[str, typer.Option("--purpose", help="What it is for; stands in the report.")]
Classical = Annotated[
    bool, typer.Option("--allow-classical", help="Wrap even for a key that a quantum computer opens (EC, RSA).")
]
Days = Annotated[float, typer.Option("--days", help="How long the recipient may take, up to 90.")]


@app.command()
def create(
    name: Name,
    file: In = None,
    media_type: MediaType = OCTETS,
    key_algorithm: attributes.Algorithm = "",
    key_purpose: attributes.KeyPurposeWord = "",
    valid_from: attributes.ValidFrom = "",
    valid_until: attributes.ValidUntil = "",
    distribute_from: attributes.DistributeFrom = "",
    distribute_until: attributes.DistributeUntil = "",
    receiver: attributes.Receivers = None,
    as_json: Json = False,
) -> None:
    """Make a key of yours, or the next version of it. It stays in your holder until you send it.

    What you say of it travels with it, inside of the envelope. A private key is PKCS #8 in DER: application/pkcs8.

    Example: [bold]kmb key create orders-2026 --valid-until 2027-01-01 --receiver globex/main[/bold]
    """
    said = attributes.read_attributes(
        algorithm=key_algorithm,
        purpose=key_purpose,
        valid=(valid_from, valid_until),
        distribute=(distribute_from, distribute_until),
        receivers=receiver or (),
    )
    material = read_material(file) if file else None
    with open_agent() as agent:
        full = agent.create_key(name, material, media_type=media_type, attributes=said)
        told = attributes.told(agent.load_key(full))
        output.show_record({"key": full.key_id, "version": full.version, **told}, as_json=as_json)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the keys in your holder, yours and received ones. Example: [bold]kmb key list[/bold]"""
    with open_agent() as agent:
        rows = [
            {
                "key": one.key_id,
                "version": one.version,
                "owner": str(one.owner),
                "whose": "yours" if one.owner == agent.address else "received",
            }
            for one in agent.shared_keys()
        ]
        output.show_rows(rows, as_json=as_json, empty="No keys yet: kmb key create NAME")


@app.command()
def info(name: Name, version: Version = 0, owner: Owner = "", as_json: Json = False) -> None:
    """Show what is said of a key, yours or a received one; never the key itself.

    Example: [bold]kmb key info orders-2026[/bold]
    """
    from pki.core.tenants import parse_address

    with open_agent() as agent:
        full = agent.find_key(name, version=version or None, owner=parse_address(owner) if owner else None)
        material = agent.load_key(full)
        named = {"key": full.key_id, "version": full.version, "owner": str(full.owner)}
        output.show_record({**named, **attributes.told(material)}, as_json=as_json)
        _warn(material)


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """Show to whom a key of yours was sent, and what became of it. Example: [bold]kmb key show orders-2026[/bold]"""
    with open_agent() as agent:
        rows = [
            {
                "version": one.name.version,
                "recipient": str(one.recipient),
                "state": one.state,
                "detail": one.detail,
                "deposit": one.deposit_id,
                "certificate": one.certificate,
                "planned": one.planned_at,
            }
            for one in agent.sent(name)
        ]
        output.show_rows(rows, as_json=as_json, empty=f"Not sent to anybody: kmb key send {name} --to TENANT/INSTANCE")


@app.command()
def send(
    name: Name,
    to: Annotated[list[str], typer.Option("--to", metavar="TENANT/INSTANCE", help="To whom; may be repeated.")],
    file: In = None,
    media_type: MediaType = OCTETS,
    version: Version = 0,
    owner: Owner = "",
    purpose: Purpose = "",
    days: Days = 30,
    allow_classical: Classical = False,
    wait: Wait = 60,
    as_json: Json = False,
) -> None:
    """Wrap a key for each recipient's checked certificate and deposit it. With --in, the file is a new version of it.

    Example: [bold]kmb key send orders-2026 --to globex/main --purpose "order archive"[/bold]
    """
    from pki.core.tenants import parse_address

    recipients = [parse_address(one) for one in dict.fromkeys(to)]
    material = read_material(file) if file else None
    with open_agent() as agent:
        if material is not None:
            full = agent.create_key(name, material, media_type=media_type, version=version or None)
        else:
            holder = parse_address(owner) if owner else None
            full = agent.find_key(name, version=version or None, owner=holder)
        campaign = agent.send_key(
            full,
            recipients,
            purpose=purpose,
            lifetime=timedelta(days=days),
            allow_classical=allow_classical,
            wait=wait,
        )
        _report(campaign, as_json=as_json)


@app.command()
def rotate(
    name: Name,
    except_: Annotated[
        list[str] | None, typer.Option("--except", help="A tenant or address that does not get it; may be repeated.")
    ] = None,
    file: In = None,
    purpose: Purpose = "",
    days: Days = 30,
    deadline: Annotated[
        str, typer.Option("--deadline", help="By when all should have signed for it: 7d, 12h or 2027-01-31.")
    ] = "",
    allow_classical: Classical = False,
    wait: Wait = 60,
    as_json: Json = False,
) -> None:
    """Make the next version of a key and send it to all who have it, except some.

    kmb campaign show tells who is behind. Interrupted, the same command goes on with the same version.

    Example: [bold]kmb key rotate orders-2026 --except initech --deadline 7d[/bold]
    """
    by = attributes.read_deadline(deadline, datetime.now(UTC))
    material = read_material(file) if file else None
    with open_agent() as agent:
        campaign = agent.rotate_key(
            name,
            except_=except_ or (),
            key=material,
            purpose=purpose,
            lifetime=timedelta(days=days),
            deadline=by,
            allow_classical=allow_classical,
            wait=wait,
        )
        _report(campaign, as_json=as_json)


@app.command()
def export(
    name: Name,
    out: Annotated[Path, typer.Option("--out", help="A new file, readable by you alone.")],
    version: Version = 0,
    owner: Owner = "",
    as_json: Json = False,
) -> None:
    """Write a key in the clear to a file. Example: [bold]kmb key export orders-2026 --out orders.key[/bold]"""
    from pki.core.tenants import parse_address
    from pki.tenant import disk

    with open_agent() as agent:
        full = agent.find_key(name, version=version or None, owner=parse_address(owner) if owner else None)
        material = agent.load_key(full)
        try:
            written = disk.write_new(out.absolute(), material.key)
        except OSError as error:
            raise UsageError("The file cannot be written", on=f"{out}: {error.strerror}", hint="--out FILE") from None
        if not written:
            raise ConflictError("The file is there already", on=str(out), hint="--out ANOTHER-FILE")
        output.show_record(
            {
                "key": full.key_id,
                "version": full.version,
                "owner": str(full.owner),
                **attributes.told(material),
                "file": str(out),
            },
            as_json=as_json,
        )
        _warn(material)


def _warn(material: KeyMaterial) -> None:
    """Tell a person when the key is not to be used now."""
    said = attributes.validity_note(material, datetime.now(UTC))
    if said:
        output.note(said)


def _report(campaign: Campaign, *, as_json: bool) -> None:
    """Print where each deposit stands; the exit code is that of the worst failure."""
    rows: list[dict[str, object]] = [
        {
            "deposit": one.deposit_id,
            "recipient": str(one.recipient),
            "key": one.name.key_id,
            "version": one.name.version,
            "state": one.state,
            "size": one.size,
            "certificate": one.peer.encryption.parsed.fingerprint if one.peer and one.peer.encryption else None,
            "detail": one.detail,
        }
        for one in campaign.delivered
    ]
    for one in campaign.delivered:
        if one.peer is not None and one.peer.first_contact:
            output.note(first_contact(str(one.recipient)))
    output.show_rows(rows, as_json=as_json, empty="Nothing was sent.")
    for recipient, error in campaign.failed:
        output.note(f"not sent to {recipient}:")
        output.show_error(error, as_json=as_json)
    failures: list[KeymailboxError] = [error for _, error in campaign.failed]
    rejected = any(one.state == "rejected" for one in campaign.delivered)
    if failures or rejected:
        raise typer.Exit(max([output.exit_code(error) for error in failures], default=output.REFUSED))
