"""What a request asks for of its certificate's extensions (RFC 2985 §5.4.2), held against what the profile gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cryptography import x509
from cryptography.x509 import ObjectIdentifier as Oid
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from pki.core import asn1, oids
from pki.core.der import members
from pki.core.errors import ProfileError, demand

MOST = 16
"""The most extensions that are looked at; no profile has more."""
Given = Sequence[tuple[bool, x509.ExtensionType]]
"""Extensions that a certificate gets: whether critical, and what."""


def parse(value_der: bytes, *, rule: str) -> Mapping[Oid, asn1.Extension]:
    """Return what an extensionRequest asks for; raises MalformedError, and ProfileError with ``rule``."""
    listed = [
        asn1.decode(asn1.Extension, der, what="An extension that is asked for")
        for der in members(value_der, _SEQUENCE, most=MOST)
    ]
    found = {one.oid: one for one in listed}
    demand(len(found) == len(listed), rule, "An extension is asked for twice")
    return found


def for_clients(asked: Mapping[Oid, asn1.Extension]) -> bool:
    """Say whether a certificate for TLS clients is asked for: an access certificate."""
    wanted = asked.get(ExtensionOID.EXTENDED_KEY_USAGE)
    return wanted is not None and wanted.value == CLIENTS.public_bytes()


def check(asked: Iterable[asn1.Extension], given: Given, *, on: str, rule: str) -> None:
    """Raise ProfileError with ``rule``, naming what differs, unless all that is asked for is given.

    What is asked for as critical has to be given so; what is not may become so.
    """
    gets = {one.oid: (critical, one.public_bytes()) for critical, one in given}
    for one in asked:
        name = _NAMES.get(one.oid) or oids.name(one.oid)
        if one.oid not in gets:
            raise ProfileError(f"The request asks for an extension that is not given: {name}", on=on, rule=rule)
        critical, value = gets[one.oid]
        if one.value != value or (one.critical and not critical):
            raise ProfileError(f"The request asks for another {name} than is given", on=on, rule=rule)


CLIENTS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
"""What an access certificate is for (RFC 5280 §4.2.1.12)."""

_SEQUENCE = 0x30
_NAMES = {
    ExtensionOID.KEY_USAGE: "key usage",
    ExtensionOID.EXTENDED_KEY_USAGE: "extended key usage",
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME: "subject alternative name",
    ExtensionOID.SUBJECT_KEY_IDENTIFIER: "subject key identifier",
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER: "authority key identifier",
    ExtensionOID.BASIC_CONSTRAINTS: "basic constraints",
}
