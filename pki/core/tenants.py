"""Tenants and the addresses of their KMS instances: ``tenant/instance``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NewType

from pki.core.errors import BadAddressError

TenantName = NewType("TenantName", str)

# Two labels and a slash fit in a common name (64 characters, RFC 5280 appendix A.1).
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,29}[a-z0-9])?")

# The name stands in certificates as a URI (RFC 5280 §4.2.1.6). It names, it does not locate: .invalid never
# resolves (RFC 6761 §6.4), and certificate linters refuse urn: and spiffe:.
_URI_PREFIX = "https://keymailbox.invalid/"


@dataclass(frozen=True, order=True)
class Address:
    """The address of one KMS instance of one tenant."""

    tenant: TenantName
    instance: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.instance}"

    @property
    def uri(self) -> str:
        """The name in a certificate's subjectAltName."""
        return _URI_PREFIX + str(self)


def parse_tenant(text: str) -> TenantName:
    """Return ``text`` as a tenant's name, or raise BadAddressError."""
    if not _LABEL.fullmatch(text):
        raise BadAddressError("A tenant's name has 1 to 31 of a-z, 0-9 and inner hyphens", on=text[:80])
    return TenantName(text)


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address:
    """Return ``tenant/instance`` as an address, or raise BadAddressError."""
    tenant, slash, instance = text.partition("/")
    if not slash or not _LABEL.fullmatch(tenant) or not _LABEL.fullmatch(instance):
        raise BadAddressError(on=text[:80])
    return Address(TenantName(tenant), instance)


def parse_address_uri(uri: str) -> Address:
    """Return the address that a subjectAltName holds, or raise BadAddressError."""
    if not uri.startswith(_URI_PREFIX):
        raise BadAddressError("The name is not a keymailbox address", on=uri[:120])
    return parse_address(uri.removeprefix(_URI_PREFIX))
