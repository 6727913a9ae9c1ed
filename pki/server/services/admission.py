"""Whether somebody may have a certificate: what the store and the clock say about a verified request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pki.core import httpsig, x509
from pki.core.certificates import ENDORSEMENT_WINDOW, CertificateRecord, CertificateState
from pki.core.crl import Reason
from pki.core.errors import (
    CertificateError,
    ConflictError,
    ExpiredError,
    RevokedError,
    StaleError,
    WrongPartyError,
)
from pki.core.requests import UnverifiedRequest, VerifiedRequest
from pki.core.signatures import SignatureAlgorithm, VerifyingKey
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind
from pki.server.facts import Instance
from pki.server.store import certificates as store
from pki.server.store import tenants as tenant_store
from pki.server.store.engine import Unit

CLOCK_SKEW = timedelta(minutes=5)
"""How far another machine's clock may be ahead of ours; certificates start this much early for those behind."""
HASH = re.compile(r"[0-9a-f]{64}")
"""What a request's id and a fingerprint look like."""

_KEY_IS_LOST = frozenset({Reason.UNSPECIFIED, Reason.KEY_COMPROMISE})


@dataclass(frozen=True)
class Facts:
    """What the store knows for and against some requests: certificates of their keys, active identities.

    ``access`` are the owners of access keys by the key's id.
    """

    by_ski: Mapping[str, Sequence[CertificateRecord]]
    identities: Mapping[Address, CertificateRecord]
    access: Mapping[str, Address]


def key_of(instance: Instance, request: UnverifiedRequest) -> VerifyingKey:
    """Return the key that has to have signed a request of ``instance``: for access the access key, else the identity.

    Raises WrongPartyError for another access key than the instance's; who has none yet may bring one.
    """
    if request.kind is not CertificateKind.ACCESS:
        return x509.identity_public_key(instance.identity_spki)
    key = x509.access_public_key(request.spki)
    if instance.access_key not in (None, key.raw):
        raise WrongPartyError(
            "The request is for another access key than the instance's", on=str(instance.address), rule="REQ-005"
        )
    return key


def gather(unit: Unit, requests: Sequence[VerifiedRequest]) -> Facts:
    """Return what the store knows that concerns these requests, in three statements however many they are."""
    addresses = [request.address for request in requests if request.kind is CertificateKind.ENCRYPTION]
    found = store.active_at(unit, addresses, CertificateKind.IDENTITY)
    return Facts(
        store.by_skis(unit, [x509.key_identifier(request.spki).hex() for request in requests]),
        {record.address: record for record in found},
        tenant_store.access_owners(unit, [one for one in map(_access_id, requests) if one]),
    )


def check_request(unit: Unit, request: VerifiedRequest, owner: Address, now: datetime) -> None:
    """Raise what speaks against a certificate for ``owner``: address, time, statement, or what is known of the key."""
    check_time(request.signing_time, now)
    check(gather(unit, [request]), request, owner, now)


def check(facts: Facts, request: VerifiedRequest, owner: Address, now: datetime) -> None:
    """Raise what the store's facts say against a certificate for ``owner``."""
    if request.address != owner:
        raise WrongPartyError("The request is for another address", on=str(request.address), rule="REQ-003")
    check_key(facts, request)
    if request.kind is CertificateKind.ENCRYPTION:
        _check_statement(facts, request, now)


def check_key(facts: Facts, request: VerifiedRequest) -> None:
    """Raise ConflictError when the key is known for somebody or something else, RevokedError when it is lost."""
    owner = facts.access.get(_access_id(request) or "")
    if owner is not None and (request.kind is not CertificateKind.ACCESS or owner != request.address):
        # A key is for one use (SP 800-57 part 1 §5.2), and calls are told apart by the access key alone.
        raise ConflictError("The key is an access key, or another instance's", on=str(request.address))
    for known in facts.by_ski.get(x509.key_identifier(request.spki).hex(), ()):
        if known.address != request.address:
            if not claims(known):
                continue
            raise ConflictError("The key is certified for another instance", hint="kmb cert renew")
        if known.kind is not request.kind:
            raise ConflictError("The key is certified for another use", hint="kmb cert renew")
        if known.state is CertificateState.REVOKED and is_lost(known):
            raise RevokedError(
                "The key was revoked and does not come back",
                on=str(request.address),
                hint="kmb cert renew"
                if request.kind is CertificateKind.ENCRYPTION
                else f"go on as another instance, with: kmb-server tenant invite {request.address.tenant}",
            )


def claims(known: CertificateRecord) -> bool:
    """Tell whether a certificate keeps its key from other instances.

    An encryption key's does not before it is proved: who asked for it may have no more than the public half, and would
    keep the owner out. Nor once it is over, since it may have been such a one.
    """
    over = known.state in (CertificateState.UNPROVED, CertificateState.EXPIRED)
    return known.kind is not CertificateKind.ENCRYPTION or not over


def check_time(signing_time: datetime | None, now: datetime) -> None:
    """Raise StaleError for a request that no certificate could follow in time (rule REQ-007, docs/adr/0002).

    One that has no time is of another tool, for an identity or access key: it holds at any time (docs/adr/0016).
    """
    if signing_time is None:
        return
    if not now - ENDORSEMENT_WINDOW + CLOCK_SKEW <= signing_time <= now + CLOCK_SKEW:
        raise StaleError(
            "The request was not signed within the last 48 hours",
            on=f"at {signing_time}",
            hint="set this machine's clock, then: kmb cert renew",
            rule="REQ-007",
        )


def is_lost(record: CertificateRecord) -> bool:
    """Tell whether a revocation speaks of the key and not of the certificate alone (RFC 5280 §5.3.1)."""
    return (record.revocation_reason or 0) in _KEY_IS_LOST


def _access_id(request: VerifiedRequest) -> str | None:
    """Return the id that the key would have as an access key; None when it is of another algorithm."""
    if request.kind is CertificateKind.ENCRYPTION:
        return None
    key = x509.identity_public_key(request.spki)
    return httpsig.key_id(key.raw) if key.algorithm is SignatureAlgorithm.ED25519 else None


def _check_statement(facts: Facts, request: VerifiedRequest, now: datetime) -> None:
    identity = facts.identities.get(request.address)
    if identity is None:
        raise CertificateError(
            "The instance has no identity certificate that is active", on=str(request.address), rule="REQ-006"
        )
    if identity.not_after <= now:
        raise ExpiredError("The identity certificate has expired", on=str(request.address), rule="REQ-006")
    statement = request.statement
    if statement is None:
        # In CMP the identity key signs the whole message (docs/adr/0015).
        return
    if (statement.issuer_der, statement.serial) != (x509.parse_certificate(identity.der).issuer_der, identity.serial):
        raise CertificateError(
            "The possession statement names another certificate than the active identity certificate",
            on=str(request.address),
            hint="kmb cert renew",
            rule="REQ-006",
        )
