"""The operator's officers: persons who order and approve with keys of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pki.core.officers import Officer

from pki.server.commands.shared import AsJson, Home, group, opened, print_json, settings_of, table, typed

app = group("Say who may order, and approve what another ordered.", "kmb-server officer list")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The officer: a-z, 0-9, dot and hyphen; theirs for ever.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        envvar="KMB_OFFICER_PASSPHRASE_FILE",
        help="A file with the passphrase of the officer's key; without it you are asked.",
        show_default=False,
    ),
]


@app.command()
def create(
    name: Name,
    out: Annotated[Path, typer.Option(help="The key's file; the public half comes beside it, with .pub.")],
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make your own key, sealed under your own passphrase; on a machine of yours, if you like.

    Example: kmb-server officer create ann --out ann.key
    """
    from pki.server.adapters.signers import officer

    key = officer.create(out, name, passphrase(passphrase_file, new=True))
    typer.echo(f"key     {out} (ML-DSA-65; nobody but you needs it)")
    typer.echo(f"public  {out}{officer.PUBLIC_SUFFIX} (key identifier {key.public.ski.hex()})")
    typer.echo(f"next    kmb-server officer add {name} --key {out}{officer.PUBLIC_SUFFIX}")


@app.command()
def add(
    name: Name,
    key: Annotated[Path, typer.Option(help="The officer's public key, in PEM.")],
    home: Home = None,
) -> None:
    """Make a person an officer; the issuing CA signs the list, so this needs its passphrase or PIN.

    Example: kmb-server officer add ann --key ann.key.pub
    """
    from pki.server import bootstrap
    from pki.server.adapters.signers import officer
    from pki.server.services import officers

    with opened(home) as deps:
        found = officers.add(deps, bootstrap.ca_keys(settings_of(home)), name, officer.load_public(key))
    typer.echo(f"{name} is an officer (list {found.number}, {_current(found.listed)} officers)")


@app.command()
def remove(name: Name, home: Home = None) -> None:
    """Let a person be no officer any more; needs the CA's passphrase or PIN. The name is not given again.

    Example: kmb-server officer remove eve
    """
    from pki.server import bootstrap
    from pki.server.services import officers

    with opened(home) as deps:
        found = officers.remove(deps, bootstrap.ca_keys(settings_of(home)), name)
    typer.echo(f"{name} is no officer any more (list {found.number}, {_current(found.listed)} officers)")


@app.command("list")
def list_officers(home: Home = None, as_json: AsJson = False) -> None:
    """List the officers, and who was one before, after the CA's signature was verified.

    Example: kmb-server officer list
    """
    from pki.core.errors import NotFoundError
    from pki.server.services import officers

    with opened(home) as deps, deps.store.read() as unit:
        try:
            listed = officers.read(deps, unit).listed
        except NotFoundError:
            listed = ()
    if as_json:
        told = [
            {"name": one.name, "key": one.key.ski.hex(), "added": one.added, "removed": one.removed} for one in listed
        ]
        print_json({"officers": told})
        return
    rows = [
        (
            one.name,
            one.key.ski.hex(),
            f"{one.added:%Y-%m-%d}",
            "-" if one.removed is None else f"{one.removed:%Y-%m-%d}",
        )
        for one in listed
    ]
    typer.echo(table(("officer", "key identifier", "added", "removed"), rows))


def passphrase(file: Path | None, *, new: bool = False) -> bytes:
    """Return an officer's passphrase: from a file, or from whoever sits at the terminal."""
    from pki.core.errors import NotFoundError

    if file is None:
        return typed(
            "Passphrase of the officer's key", instead="--passphrase-file FILE", hidden=True, twice=new
        ).encode()
    try:
        return file.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise NotFoundError(
            f"The passphrase cannot be read: {error.strerror}", on=str(file), hint="--passphrase-file FILE"
        ) from None


def _current(listed: Sequence[Officer]) -> int:
    return sum(one.removed is None for one in listed)
