"""Invite tenants, list them and set their limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pki.server.commands.shared import AsJson, Home, fingerprint, group, opened, print_json, table

if TYPE_CHECKING:
    from pki.server.services.limits import Allowed

app = group("Invite tenants, list them and set their limits.", "kmb-server tenant list")


@app.command()
def invite(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tenant, created when it is new.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Print a one-time invitation for one KMS instance of a tenant.

    Example: kmb-server tenant invite acme --home ./keymailbox-home
    """
    from pki.core.tenants import parse_tenant
    from pki.server.services import access

    tenant = parse_tenant(name)
    with opened(home) as deps:
        root, url = fingerprint(deps.chain.root), deps.settings.url
        invitation, secret = access.invite(deps, tenant)
    expires = invitation.expires_at.replace(microsecond=0).isoformat().replace("+00:00", "Z")
    if as_json:
        print_json({"tenant": tenant, "reference": invitation.reference, "secret": secret, "expires": expires})
        return
    typer.echo(f"Invitation for one instance of {tenant}, until {expires}. Hand over, each on a way that you trust:")
    typer.echo("")
    typer.echo(f"  root fingerprint  {root}")
    typer.echo(f"  secret            {secret}")
    typer.echo("")
    typer.echo("The tenant runs, and types the secret when asked:")
    typer.echo("")
    typer.echo(f"  kmb enroll {tenant}/INSTANCE --server {url} --reference {invitation.reference} --root {root}")


@app.command("list")
def list_tenants(home: Home = None, as_json: AsJson = False) -> None:
    """List tenants and their instances.

    Example: kmb-server tenant list --json
    """
    from pki.server.store import tenants

    with opened(home) as deps, deps.store.read() as unit:
        names = [tenant.name for tenant in tenants.list_tenants(unit)]
        instances = tenants.list_instances(unit)
    if as_json:
        listed: dict[str, list[dict[str, str | None]]] = {name: [] for name in names}
        for one in instances:
            facts: dict[str, str | None] = {
                "address": str(one.address),
                "enrolled": one.enrolled_at.isoformat(),
                "access_key_id": one.access_key_id,
            }
            listed[one.tenant].append(facts)
        print_json({"tenants": [{"tenant": name, "instances": found} for name, found in listed.items()]})
        return
    rows = [
        (str(one.address), one.enrolled_at.isoformat(timespec="seconds"), one.access_key_id or "none yet")
        for one in instances
    ]
    rows += [(f"{name}/", "invited only", "") for name in names if not any(one.tenant == name for one in instances)]
    typer.echo(table(("address", "enrolled", "access key"), sorted(rows)))


@app.command("limits")
def show_limits(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A tenant, or the address TENANT/INSTANCE.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="LIMIT=NUMBER", help="Set a limit for just this one.")
    ] = None,
    reset: Annotated[
        list[str] | None, typer.Option("--reset", metavar="LIMIT", help="Go back to the tenant's, or the settings.")
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Show the limits of a tenant or an address, after setting some.

    Example: kmb-server tenant limits acme --set pair-deposits=500
    """
    from pki.core.errors import UsageError
    from pki.server.services import limits

    values: dict[str, int | None] = {}
    for text in changes or ():
        limit, _, number = text.partition("=")
        if not (number.isascii() and number.isdigit() and len(number) < 17):
            raise UsageError("A limit is written LIMIT=NUMBER", on=text[:80], hint="--set pair-deposits=500")
        values[limit] = int(number)
    values |= dict.fromkeys(reset or ())
    subject = limits.parse_subject(name)
    with opened(home) as deps:
        if values:
            limits.allow(deps, subject, values)
        found = limits.show(deps, subject)
    if as_json:
        print_json({"subject": str(subject), "limits": {one.limit.name: _as_json(one) for one in found}})
        return
    rows = [(one.limit.name, str(one.value), one.source, one.limit.what) for one in found]
    typer.echo(table(("limit", "value", "from", "what"), rows))


@app.command()
def recount(home: Home = None) -> None:
    """Count anew what is under way, where doctor says that a count is wrong.

    Example: kmb-server tenant recount
    """
    from pki.server.services import limits

    with opened(home) as deps:
        wrong = limits.mend(deps)
    typer.echo(f"{wrong} counts were wrong and are right now")


def _as_json(one: Allowed) -> dict[str, object]:
    return {"value": one.value, "own": one.own, "what": one.limit.what}
