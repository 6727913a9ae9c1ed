"""Entities in key packages and receipts: an address as a SIREntityName (RFC 7191 §2)."""

from __future__ import annotations

from pki.core import asn1, oids, x509
from pki.core.errors import BadAddressError, ProfileError, demand
from pki.core.tenants import Address, parse_address


def entity(address: Address) -> asn1.EntityName:
    """Return an address as the distinguished name of its certificates."""
    return asn1.EntityName(kind=oids.SIREN_DN, value=x509.name_der(address))


def address_of(name: asn1.EntityName, *, rule: str) -> Address:
    """Return the address that an entity's name stands for, or raise ProfileError with ``rule``."""
    demand(name.kind == oids.SIREN_DN, rule, "The entity is not named by its distinguished name", name.value)
    try:
        address = parse_address(x509.common_name_of(name.value))
    except BadAddressError as error:
        message = "The entity's common name is not an address"
        raise ProfileError(message, on=error.on, rule=rule, at=name.value) from None
    demand(x509.name_der(address) == name.value, rule, "The entity is not exactly O = tenant, CN = address", name.value)
    return address
