"""Who may come in: invitations and enrolment."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pki.core import envelope, httpsig, keys, oids, requests, signatures, x509
from pki.core.envelope import Recipient
from pki.core.errors import (
    AccessError,
    ConflictError,
    EnrolmentError,
    KeymailboxError,
    MalformedError,
    ProfileError,
    UsageError,
    WrongPartyError,
)
from pki.core.events import EventType
from pki.core.ids import RequestId
from pki.core.requests import VerifiedRequest
from pki.core.signatures import SignatureAlgorithm
from pki.core.tenants import Address, TenantName
from pki.core.x509 import CertificateKind
from pki.server.facts import Instance, Invitation
from pki.server.ports import SecretOpener
from pki.server.services import admission, certificates
from pki.server.services.deps import Deps
from pki.server.services.events import event, time
from pki.server.store import certificates as certificate_store
from pki.server.store import events as event_store
from pki.server.store import tenants as tenant_store
from pki.server.store.engine import Store, Unit

_SECRET_BYTES = 32
_REFERENCE = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Enrolment:
    """What an invited KMS instance sends: the one-time token, its raw Ed25519 access key, its identity request."""

    reference: str
    secret: str = field(repr=False)
    address: Address
    access_key: bytes
    identity_request: bytes


@dataclass(frozen=True)
class EnrolmentResult:
    """A new instance, and the request under which its identity certificate is issued."""

    instance: Instance
    request_id: RequestId


def invite(deps: Deps, tenant: TenantName) -> tuple[Invitation, str]:
    """Create a one-time token for an instance of ``tenant``, which is created when it is new.

    The secret is returned here. The store has its SHA-256, which is enough for 256 random bits, and, for the process
    that issues alone, the secret sealed to the registration key: a MAC under it cannot be checked otherwise.
    """
    now = deps.clock.now()
    secret, reference = secrets.token_urlsafe(_SECRET_BYTES), secrets.token_hex(8)
    invitation = Invitation(
        reference=reference,
        tenant=tenant,
        secret_hash=_digest(secret),
        created_at=now,
        expires_at=now + deps.settings.invitation_ttl,
        sealed_secret=_seal(deps, reference, secret),
    )
    told = event(
        EventType.TENANT_INVITED,
        tenant,
        now,
        tenant=tenant,
        reference=invitation.reference,
        expires_at=time(invitation.expires_at),
    )
    with deps.store.unit() as unit:
        tenant_store.insert_tenant(unit, tenant, now)
        tenant_store.insert_invitation(unit, invitation)
        event_store.append(unit, [told])
    return invitation, secret


def opened_secret(invitation: Invitation | None, opener: SecretOpener) -> str | None:
    """Return the secret of an invitation; None where it is not kept, or is not the invitation's."""
    if invitation is None or invitation.sealed_secret is None:
        return None
    try:
        reference, _, secret = opener.open(invitation.sealed_secret).decode().partition(":")
    except (KeymailboxError, ValueError):
        return None
    right = hmac.compare_digest(invitation.secret_hash, _digest(secret))
    return secret if right and reference == invitation.reference else None


def enroll(deps: Deps, enrolment: Enrolment) -> EnrolmentResult:
    """Enrol an instance and queue the request for its identity certificate; all of it, or nothing.

    Raises EnrolmentError, the same for a token that is unknown, wrong, used or expired; AddressTakenError, which
    leaves the token as it was; WrongPartyError when token, address and request do not belong together; and what is
    wrong with the request.
    """
    now = deps.clock.now()
    _check_access_key(enrolment.access_key)
    request = identity_request(enrolment.identity_request, enrolment.address, now)
    certificates.check_profile(deps, request)
    with for_invited(deps, enrolment.address.tenant, enrolment.reference).unit() as unit:
        invitation = usable(unit, enrolment.reference, enrolment.secret, now, tenant=enrolment.address.tenant)
        instance = admit(unit, invitation, request, enrolment.access_key, now)
    return EnrolmentResult(instance, request.id)


def identity_request(der: bytes, address: Address, now: datetime) -> VerifiedRequest:
    """Return a request for the identity key of ``address``, signed by that key just now; raises what is wrong with it.

    Whose key it is, nobody knows yet: an invitation says so.
    """
    unverified = requests.parse_request(der)
    if unverified.kind is not CertificateKind.IDENTITY:
        raise UsageError("An enrolment takes a request for an identity key", on=str(address))
    if unverified.address != address:
        raise WrongPartyError("The identity request is for another address", on=str(unverified.address))
    request = unverified.verify(x509.identity_public_key(unverified.spki))
    admission.check_time(request.signing_time, now)
    return request


def for_invited(deps: Deps, tenant: TenantName, reference: str) -> Store:
    """Return the store for who wants to join ``tenant`` and shows an invitation: of all there are, it sees that one."""
    return deps.store.scoped([tenant], invitation=reference if _REFERENCE.fullmatch(reference) else "")


def usable(unit: Unit, reference: str, secret: str, now: datetime, *, tenant: TenantName) -> Invitation:
    """Return the invitation that ``secret`` opens, held until the end of the unit.

    Raises EnrolmentError, one and the same for all that is wrong with it; ``tenant`` is who its hint is for.
    """
    found = tenant_store.lock_invitation(unit, reference) if _REFERENCE.fullmatch(reference) else None
    # An unknown reference takes the same way as a wrong secret.
    right = hmac.compare_digest(found.secret_hash if found else bytes(32), _digest(secret))
    if found is None or not right or found.used_at is not None or found.expires_at <= now:
        raise EnrolmentError(hint=f"ask the operator for: kmb-server tenant invite {tenant}")
    return found


def used_by(unit: Unit, reference: str, secret: str) -> Address | None:
    """Return who used the invitation that ``secret`` opens; None when nobody did, or it opens none."""
    found = tenant_store.lock_invitation(unit, reference) if _REFERENCE.fullmatch(reference) else None
    right = hmac.compare_digest(found.secret_hash if found else bytes(32), _digest(secret))
    return found.used_by if found is not None and right else None


def admit(
    unit: Unit, invitation: Invitation, request: VerifiedRequest, access_key: bytes | None, now: datetime
) -> Instance:
    """Use up ``invitation``, held by ``unit``, for the instance whose identity key signed ``request``, and queue that.

    ``access_key`` is None for who enrols by EST or CMP: such an instance calls nothing under ``/v1`` until an access
    certificate was issued to it. Raises WrongPartyError when invitation and address do not belong together,
    AddressTakenError, ConflictError for a key that is known.
    """
    address = request.address
    if invitation.tenant != address.tenant:
        raise WrongPartyError("The invitation is for another tenant", on=f"{invitation.tenant}/…")
    instance = Instance(
        address=address,
        tenant=address.tenant,
        identity_spki=request.spki,
        access_key=access_key,
        access_key_id=None if access_key is None else httpsig.key_id(access_key),
        enrolled_at=now,
    )
    tenant_store.insert_instance(unit, instance)
    _check_unknown_key(unit, request)
    tenant_store.mark_invitation_used(unit, invitation.reference, address, now)
    told = event(
        EventType.INSTANCE_ENROLLED,
        str(address),
        now,
        address,
        address=str(address),
        access_key_id=instance.access_key_id,
    )
    event_store.append(unit, [told])
    certificates.queue_request(unit, request, now)
    return instance


def authenticate_enrolment(
    deps: Deps, method: str, url: str, headers: Mapping[str, str], body: bytes, access_key: bytes
) -> None:
    """Check that an enrolment is signed with the access key that it names. Raises AccessError, with a hint."""
    own = httpsig.key_id(access_key)

    def resolve(key_id: str) -> Ed25519PublicKey:
        if key_id != own:
            raise AccessError("The request is signed with another key than it names", on=key_id, hint="kmb enroll")
        return _load(access_key)

    # No nonce is kept: anybody may call this, and the invitation works once by itself.
    httpsig.verify_request(method, url, headers, body, resolve=resolve, now=deps.clock.now())


def _check_unknown_key(unit: Unit, request: VerifiedRequest) -> None:
    if certificate_store.by_ski(unit, x509.key_identifier(request.spki).hex()):
        raise ConflictError(
            "The identity key has a certificate already", on=str(request.address), hint="make a new key"
        )
    admission.check_key(admission.gather(unit, [request]), request)


def _seal(deps: Deps, reference: str, secret: str) -> bytes | None:
    public = deps.registration
    if public is None:
        return None
    algorithm, raw = keys.parse_spki(public)
    recipient = Recipient(x509.key_identifier(public), algorithm, raw)
    # With the reference, so that one invitation's secret does not pass for another's.
    return envelope.wrap(f"{reference}:{secret}".encode(), oids.DATA, [recipient])


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


def _check_access_key(access_key: bytes) -> None:
    # One of small order is refused as well: under it a signature is good for more than one call.
    try:
        signatures.from_raw(access_key, SignatureAlgorithm.ED25519)
    except (MalformedError, ProfileError):
        raise UsageError("The access key is not an Ed25519 public key", on=f"{len(access_key)} bytes") from None


def _load(access_key: bytes) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(access_key)
    except ValueError:
        raise UsageError("The access key is not an Ed25519 public key", on=f"{len(access_key)} bytes") from None
