"""Tenants, their invitations and their instances."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, select, update

from pki.core.errors import AddressTakenError, ConflictError, NotFoundError
from pki.core.tenants import Address, TenantName, parse_address
from pki.server.facts import Instance, Invitation, Tenant
from pki.server.store.engine import Unit
from pki.server.store.rows import chunks, insert_new, select_among
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
        "sealed_secret": invitation.sealed_secret,
    }
    if not insert_new(unit, invitations, [row], invitations.c.reference):
        raise ConflictError("The invitation's reference is taken")


def lock_invitation(unit: Unit, reference: str) -> Invitation | None:
    """Return a token and hold it until the end of the unit, so that it is used once."""
    statement = select(invitations).where(invitations.c.reference == reference).with_for_update()
    row = unit.connection.execute(statement).mappings().one_or_none()
    return None if row is None else _invitation(row)


def invitation(unit: Unit, reference: str) -> Invitation | None:
    """Return a token."""
    statement = select(invitations).where(invitations.c.reference == reference)
    row = unit.connection.execute(statement).mappings().one_or_none()
    return None if row is None else _invitation(row)


def mark_invitation_used(unit: Unit, reference: str, address: Address, now: datetime) -> None:
    """Use up a token; raises ConflictError when it was used, NotFoundError when there is none."""
    found = lock_invitation(unit, reference)
    if found is None:
        raise NotFoundError
    if found.used_at is not None:
        raise ConflictError("The invitation was used before")
    unit.connection.execute(
        update(invitations).where(invitations.c.reference == reference).values(used_at=now, used_by=str(address))
    )


def forget_secrets(unit: Unit, now: datetime) -> int:
    """Forget the sealed secrets of tokens that have expired; return how many."""
    old = invitations.c.sealed_secret.is_not(None) & (invitations.c.expires_at <= now)
    return unit.connection.execute(update(invitations).where(old).values(sealed_secret=None)).rowcount


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


def instances_at(unit: Unit, addresses: Sequence[Address]) -> list[Instance]:
    """Return the instances that there are at some addresses."""
    found = []
    for chunk in chunks(sorted({str(address) for address in addresses})):
        rows = unit.connection.execute(select(instances).where(instances.c.address.in_(chunk))).mappings()
        found += [_instance(row) for row in rows]
    return found


def hold(unit: Unit, addresses: Sequence[Address]) -> None:
    """Keep others who hold these instances waiting until the end of the unit."""
    for chunk in chunks(sorted({str(address) for address in addresses})):
        statement = select(instances.c.address).where(instances.c.address.in_(chunk)).order_by(instances.c.address)
        unit.connection.execute(statement.with_for_update()).all()


def existing(unit: Unit, addresses: Sequence[Address]) -> set[Address]:
    """Return those of some addresses where there is an instance."""
    key = instances.c.address
    return {parse_address(row.address) for row in select_among(unit, key, map(str, addresses), key)}


def instances_by_key(unit: Unit, access_key_ids: Sequence[str]) -> list[Instance]:
    """Return the instances whose access keys have these ids."""
    found = []
    for chunk in chunks(sorted(set(access_key_ids))):
        rows = unit.connection.execute(select(instances).where(instances.c.access_key_id.in_(chunk))).mappings()
        found += [_instance(row) for row in rows]
    return found


def access_owners(unit: Unit, key_ids: Sequence[str]) -> dict[str, Address]:
    """Return whose access keys these are, by the keys' ids."""
    key = instances.c.access_key_id
    found = select_among(unit, key, key_ids, key, instances.c.address)
    return {row.access_key_id: parse_address(row.address) for row in found}


def bind_access_key(unit: Unit, address: Address, access_key: bytes, access_key_id: str) -> None:
    """Give an instance its access key for good; raises ConflictError when it has another, or another has this one."""
    values = {"access_key": access_key, "access_key_id": access_key_id}
    unbound = instances.c.access_key_id.is_(None) & (instances.c.address == str(address))
    if unit.connection.execute(update(instances).where(unbound).values(values)).rowcount:
        return
    found = instance(unit, address)
    if found is None or found.access_key != access_key:
        raise ConflictError("The instance has another access key", on=str(address))


def withdraw_access_key(unit: Unit, address: Address) -> None:
    """Leave an instance without an access key: nothing is signed for it until it has another one."""
    none = {"access_key": None, "access_key_id": None}
    unit.connection.execute(update(instances).where(instances.c.address == str(address)).values(none))


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
        sealed_secret=row["sealed_secret"],
    )


def _text(address: Address | None) -> str | None:
    return None if address is None else str(address)
