"""``kmb peer``: whom we exchange keys with, and the identity key that stands for each."""

from __future__ import annotations

from typing import Annotated

import typer

from pki.tenant import output
from pki.tenant.commands.shared import Json, open_agent

app = typer.Typer(help="The others: look them up, confirm who they are.", no_args_is_help=True)
Who = Annotated[str, typer.Argument(metavar="TENANT/INSTANCE", help="The other's address.")]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List whom you have pinned. Example: [bold]kmb peer list[/bold]"""
    with open_agent() as agent:
        rows = [
            {
                "address": str(pin.address),
                "identity": pin.fingerprint,
                "identity_algorithm": pin.identity_key.algorithm.title,
                "trust": pin.how,
                "since": pin.pinned_at,
            }
            for pin in agent.pins()
        ]
        output.show_rows(rows, as_json=as_json, empty="Nobody is pinned yet: kmb peer show TENANT/INSTANCE")


@app.command()
def show(address: Who, as_json: Json = False) -> None:
    """Look somebody up with every check, and show what was checked. The first time pins the identity key.

    Example: [bold]kmb peer show globex/main[/bold]
    """
    from pki.core.tenants import parse_address

    with open_agent() as agent:
        peer = agent.peer(parse_address(address))
        encryption = peer.encryption
        output.show_record(
            {
                "address": str(peer.address),
                "identity": peer.pin.fingerprint,
                "identity_algorithm": peer.pin.identity_key.algorithm.title,
                "trust": peer.pin.how,
                "identity_certificate": peer.identity.parsed.fingerprint,
                "certificate": encryption.parsed.fingerprint if encryption else None,
                "algorithm": encryption.recipient.algorithm.title if encryption else None,
                "valid_until": encryption.parsed.not_after if encryption else None,
                "revocation_list": peer.crl.number,
                "checked": "chain to your root, validity, revocation, address, request signed by the pinned identity",
            },
            as_json=as_json,
        )
        if peer.first_contact:
            output.note(first_contact(str(peer.address)))


@app.command()
def verify(
    address: Who,
    fingerprint: Annotated[
        str, typer.Option("--fingerprint", help="The identity fingerprint that they told you by another way.")
    ] = "",
    accept: Annotated[
        bool, typer.Option("--accept", help="Take the identity key that the server offers, even if it has changed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Confirm somebody's identity key, after comparing its fingerprint with them on the phone or in person.

    Example: [bold]kmb peer verify globex/main --fingerprint 9c1e…[/bold]
    """
    from pki.core.tenants import parse_address

    with open_agent() as agent:
        pin = agent.confirm_peer(parse_address(address), fingerprint or None, accept=accept)
        output.show_record(
            {"address": str(pin.address), "identity": pin.fingerprint, "trust": pin.how, "since": pin.pinned_at},
            as_json=as_json,
        )


def first_contact(address: str) -> str:
    """Return what a person has to know at first contact."""
    return (
        f"First contact: the identity key of {address} is pinned now, and nobody has confirmed it. Compare the "
        f"fingerprint with them, then: kmb peer verify {address} --fingerprint HEX"
    )
