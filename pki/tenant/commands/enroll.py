"""``kmb enroll``."""

from __future__ import annotations

import sys
from getpass import getpass
from pathlib import Path
from typing import Annotated

import typer

from pki.core.errors import UsageError
from pki.tenant import output
from pki.tenant.commands.cert import ALGORITHM_HELP
from pki.tenant.commands.shared import Json, Wait


def enroll(
    address: Annotated[str, typer.Argument(metavar="TENANT/INSTANCE", help="Your address.")],
    server: Annotated[str, typer.Option("--server", help="The mailbox server.", metavar="URL")],
    invitation: Annotated[
        Path | None, typer.Option("--invitation", help="The invitation as JSON, as the operator gave it.")
    ] = None,
    reference: Annotated[str, typer.Option("--reference", help="The invitation's reference.")] = "",
    secret_file: Annotated[
        Path | None,
        typer.Option("--secret-file", help="A file with its secret; - is stdin. Default: ask."),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="The new context's name.")] = "",
    passphrase_file: Annotated[
        Path | None,
        typer.Option("--passphrase-file", help="What seals the keys. Default: KMB_PASSPHRASE_FILE, or a new file."),
    ] = None,
    root: Annotated[
        str, typer.Option("--root", help="SHA-256 of the root certificate, as the operator told you.", metavar="HEX")
    ] = "",
    algorithm: Annotated[str, typer.Option("--algorithm", help=ALGORITHM_HELP)] = "composite",
    identity: Annotated[
        str,
        typer.Option("--identity", help="The identity key: ml-dsa-65, ml-dsa-87, ml-dsa-44, p-256, p-384 or ed25519."),
    ] = "ml-dsa-65",
    allow_http: Annotated[bool, typer.Option("--allow-http", help="Use plain http over a network.")] = False,
    wait: Wait = 60,
    as_json: Json = False,
) -> None:
    """Make keys, enrol with an invitation and publish the first certificate. Safe to run again after an interruption.

    Example: [bold]kmb enroll acme/eu-west --server https://mailbox.example --invitation acme.json[/bold]
    """
    from pki.core.signatures import named
    from pki.core.tenants import parse_address
    from pki.tenant.agent import Agent
    from pki.tenant.commands.cert import key_algorithm
    from pki.tenant.enrolment import Invitation, read_invitation

    if invitation is not None:
        token = read_invitation(invitation)
    elif reference and (secret_file is not None or sys.stdin.isatty()):
        token = Invitation(reference, _secret(secret_file) if secret_file else getpass("The invitation's secret: "))
    else:
        hint = f"kmb enroll {address} --server {server} --invitation FILE"
        raise UsageError("An invitation is needed", on="--invitation, or --reference and --secret-file", hint=hint)
    agent = Agent.enroll(
        parse_address(address),
        server=server,
        invitation=token,
        name=name or None,
        passphrase_file=passphrase_file,
        root_fingerprint=root or None,
        allow_http=allow_http,
        algorithm=key_algorithm(algorithm),
        identity=named(identity),
        wait=wait,
        progress=lambda done, on: output.note(f"  {done}: {on}"),
    )
    with agent:
        certificate = agent.certificates()[0]
        output.show_record(
            {
                "address": str(agent.address),
                "context": agent.context.name,
                "server": agent.context.server,
                "root_fingerprint": agent.context.root_fingerprint,
                "certificate": certificate.fingerprint,
                "valid_until": certificate.not_after,
                "keys": str(agent.context.keys),
            },
            as_json=as_json,
        )


def _secret(path: Path) -> str:
    try:
        text = sys.stdin.read(4096) if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("The secret cannot be read", on=f"{path}: {error}", hint="--secret-file FILE") from None
    return text.strip()
