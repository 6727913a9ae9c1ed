"""``kmb context``: who you are here; several side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from pki.core.errors import KeymailboxError
from pki.tenant import contexts, output
from pki.tenant.commands.shared import Json

app = typer.Typer(help="Who you are here; several side by side.", no_args_is_help=True)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the contexts; the one in use is marked. Example: [bold]kmb context list[/bold]"""
    try:
        chosen = contexts.choose()
    except KeymailboxError:
        chosen = ""
    rows = []
    for name in contexts.names():
        one = contexts.load(name)
        rows.append(
            {
                "used": "*" if name == chosen else "",
                "name": name,
                "address": str(one.address),
                "server": one.server,
                "enrolled": "yes" if one.enrolled else "not finished",
            }
        )
    output.show_rows(rows, as_json=as_json, empty="None yet: kmb enroll TENANT/INSTANCE --server URL --invitation FILE")


@app.command()
def use(name: Annotated[str, typer.Argument(help="The context's name.")]) -> None:
    """Use a context from now on. Example: [bold]kmb context use acme.eu-west[/bold]"""
    contexts.use(name)
    output.note(f"in use: {name}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The context's name. Default: the one in use.")] = "",
    as_json: Json = False,
) -> None:
    """Show a context. Example: [bold]kmb context show[/bold]"""
    one = contexts.load(contexts.choose(name or None))
    output.show_record(
        {
            "name": one.name,
            "address": str(one.address),
            "server": one.server,
            "root_fingerprint": one.root_fingerprint,
            "enrolled": "yes" if one.enrolled else "not finished",
            "folder": str(one.folder),
            "passphrase": str(one.passphrase_file or one.key_file),
        },
        as_json=as_json,
    )
