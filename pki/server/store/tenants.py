"""Tenants, their invitations and their instances."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, select, update

from pki.core.errors import AddressTakenError, ConflictError, NotFoundError
from pki.core.tenants import Address, TenantName, parse_address
from pki.server.ports import Instance, Invitation, Tenant
from pki.server.store.engine import Unit
from pki.server.store.rows import insert_new
from pki.server.store.tables import instances, invitations, tenants


def insert_tenant(unit: Unit, name: TenantName, now: datetime) -> bool:
    """Create a tenant; False when it exists."""
    return bool(insert_new(unit, tenants, [{"name": name, "created_at": now}], tenants.c.name))


def list_tenants(unit: Unit) -> list[Tenant]:
    """Return all tenants by name."""
    rows = unit.connection.execute(select(tenants).order_by(tenants.c.name)).mappings()
    return [Tenant(name=TenantName(row["name"]), created_at=row["created_at"]) for row in rows]


def insert_invitation(unit: Unit, invitation: Invitation) -> None:
    """Store a one-time token."""
    row = {
        "reference": invitation.reference,
        "tenant": invitation.tenant,
        "secret_hash": invitation.secret_hash,
        "created_at": invitation.created_at,
        "expires_at": invitation.expires_at,
        "used_at": invitation.used_at,
        "used_by": _text(invitation.used_by),
    }
    if not insert_new(unit, invitations, [row], invitations.c.reference):
        raise ConflictError("The invitation's reference is taken")


def lock_invitation(unit: Unit, reference: str) -> Invitation | None:
    """Return a token and hold it until the end of the unit, so that it is used once."""
    statement = select(invitations).where(invitations.c.reference == reference).with_for_update()
    row = unit.connection.execute(statement).mappings().one_or_none()
    return None if row is None else _invitation(row)


def mark_invitation_used(unit: Unit, reference: str, address: Address, now: datetime) -> None:
    """Use up a token; raises ConflictError when it was used, NotFoundError when there is none."""
    invitation = lock_invitation(unit, reference)
    if invitation is None:
        raise NotFoundError
    if invitation.used_at is not None:
        raise ConflictError("The invitation was used before")
    unit.connection.execute(
        update(invitations).where(invitations.c.reference == reference).values(used_at=now, used_by=str(address))
    )


def insert_instance(unit: Unit, instance: Instance) -> None:
    """Enrol an instance; raises AddressTakenError, or ConflictError when the access key belongs to another one."""
    row = {
        "address": str(instance.address),
        "tenant": instance.tenant,
        "identity_spki": instance.identity_spki,
        "access_key": instance.access_key,
        "access_key_id": instance.access_key_id,
        "enrolled_at": instance.enrolled_at,
    }
    if insert_new(unit, instances, [row], instances.c.address):
        return
    if _one(unit, instances.c.address == str(instance.address)) is not None:
        raise AddressTakenError(on=str(instance.address))
    raise ConflictError("The access key belongs to another instance")


def instance(unit: Unit, address: Address) -> Instance | None:
    """Return the instance at an address."""
    return _one(unit, instances.c.address == str(address))


def instance_by_key(unit: Unit, access_key_id: str) -> Instance | None:
    """Return the instance whose access key has this id."""
    return _one(unit, instances.c.access_key_id == access_key_id)


def list_instances(unit: Unit, tenant: TenantName | None = None) -> list[Instance]:
    """Return the instances, of one tenant or of all, by address."""
    statement = select(instances).order_by(instances.c.tenant, instances.c.address)
    if tenant is not None:
        statement = statement.where(instances.c.tenant == tenant)
    return [_instance(row) for row in unit.connection.execute(statement).mappings()]


def _one(unit: Unit, condition: Any) -> Instance | None:
    row = unit.connection.execute(select(instances).where(condition)).mappings().one_or_none()
    return None if row is None else _instance(row)


def _instance(row: RowMapping) -> Instance:
    return Instance(
        address=parse_address(row["address"]),
        tenant=TenantName(row["tenant"]),
        identity_spki=row["identity_spki"],
        access_key=row["access_key"],
        access_key_id=row["access_key_id"],
        enrolled_at=row["enrolled_at"],
    )


def _invitation(row: RowMapping) -> Invitation:
    return Invitation(
        reference=row["reference"],
        tenant=TenantName(row["tenant"]),
        secret_hash=row["secret_hash"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        used_at=row["used_at"],
        used_by=None if row["used_by"] is None else parse_address(row["used_by"]),
    )


def _text(address: Address | None) -> str | None:
    return None if address is None else str(address)
