"""Certificates of any issuer, as far as this tool needs them: what they are called, which key, what it prefers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

from pki.core import links, oids
from pki.core.capabilities import Capabilities, parse_capabilities
from pki.core.links import Link
from pki.core.recipients import IssuerSerial
from pki.core.signing import SignerName


@dataclass(frozen=True)
class Foreign(Link):
    """A certificate that is well formed; nothing of it is verified."""

    @property
    def issuer_serial(self) -> IssuerSerial:
        """Its name by issuer and serial (RFC 5652 §10.2.4)."""
        return IssuerSerial(self.issuer_der, self.serial)

    @property
    def signer_name(self) -> SignerName:
        """How an object that it signed may call it."""
        return SignerName(self.ski, self.issuer_der, self.serial)

    @cached_property
    def capabilities(self) -> Capabilities | None:
        """What its owner prefers; raises ProfileError."""
        said = self.values.get(oids.SMIME_CAPABILITIES)
        return None if said is None else parse_capabilities(said)


def parse(der: bytes) -> Foreign:
    """Return a certificate of RFC 5280, any version; raises MalformedError."""
    link = links.parse(der)
    return Foreign(**{one.name: getattr(link, one.name) for one in fields(Link)})
