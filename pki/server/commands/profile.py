"""See what certificates look like, and try a profile of one's own before it counts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pki.core.errors import NotFoundError, UsageError
from pki.server.commands.shared import AsJson, Home, group, print_json, settings_of, table

if TYPE_CHECKING:
    from pki.core.issuance import CertificateProfile

app = group("See what certificates look like, and try a profile of your own.", "kmb-server profile list")


@app.command("list")
def list_profiles(home: Home = None, as_json: AsJson = False) -> None:
    """List the profiles that certificates are issued by, one for each kind.

    Example: kmb-server profile list
    """
    from pki.server.adapters.profiles import FileProfiles

    settings = settings_of(home)
    profiles = FileProfiles(settings.home)
    listed = [(one, str(profiles.path(kind) or "comes along")) for kind, one in profiles.all.items()]
    if as_json:
        print_json({"profiles": [_as_json(one) | {"from": source} for one, source in listed]})
        return
    rows = [
        (
            one.kind.value,
            str(one.version),
            str(one.lasts(settings.certificate_lifetime).days),
            str(one.max_lifetime.days),
            ", ".join(sorted(one.algorithms)),
            source,
        )
        for one, source in listed
    ]
    typer.echo(table(("kind", "version", "days", "at most", "keys", "from"), rows))


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The kind: identity, access or encryption.")],
    out: Annotated[Path | None, typer.Option(help="A new file, as a start for a profile of your own.")] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Print a profile as the TOML file that it is.

    Example: kmb-server profile show identity --out identity.toml
    """
    from pki.core.x509 import CertificateKind
    from pki.server.adapters.profiles import FileProfiles, text

    kinds = {kind.value: kind for kind in CertificateKind}
    if name not in kinds:
        raise NotFoundError("There is no such profile", on=name[:40], hint="kmb-server profile list")
    profiles = FileProfiles(settings_of(home).home)
    if as_json:
        print_json(_as_json(profiles.of(kinds[name])))
        return
    path = profiles.path(kinds[name])
    content = text(kinds[name]) if path is None else path.read_text()
    if out is None:
        typer.echo(content, nl=False)
        return
    try:
        with out.open("x") as file:
            file.write(content)
    except OSError as error:
        raise UsageError(f"The file cannot be written: {error.strerror}", on=str(out), hint="--out NEW-FILE") from None
    typer.echo(f"{out} is written; change it, then: kmb-server profile check {out}")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A profile in TOML.")], as_json: AsJson = False
) -> None:
    """Say whether a profile can be used: it fits its schema, and is no wider than what relying parties take.

    Example: kmb-server profile check identity.toml
    """
    from pki.server.adapters.profiles import read

    found = read(file)
    if as_json:
        print_json(_as_json(found))
        return
    typer.echo(
        f"{file} is a profile for {found.kind}, version {found.version}: mv {file} HOME/profiles/{found.kind}.toml"
    )


def _as_json(profile: CertificateProfile) -> dict[str, Any]:
    """Return a profile as its schema has it."""
    return {
        "schema": 1,
        "kind": profile.kind.value,
        "version": profile.version,
        "validity": {"days": profile.lifetime.days, "max_days": profile.max_lifetime.days},
        "key": {
            "algorithms": sorted(profile.algorithms),
            "usage": {use: list(usages) for use, usages in profile.usage.items()},
            "extended_usage": list(profile.extended_usage),
        },
        "names": {"addresses": list(profile.addresses)},
        "extensions": [
            {"name": rule.name, "critical": rule.critical, "optional": rule.optional} for rule in profile.extensions
        ],
    }
