"""Who may come in: invitations, enrolment, and the check of every signed request."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pki.core import httpsig, requests, x509
from pki.core.errors import AccessError, ConflictError, EnrolmentError, UsageError, WrongPartyError
from pki.core.events import EventType
from pki.core.ids import RequestId
from pki.core.tenants import Address, TenantName
from pki.core.x509 import CertificateKind
from pki.server.ports import Caller, Instance, Invitation
from pki.server.services import certificates, issuing
from pki.server.services.deps import Deps
from pki.server.services.events import event, time
from pki.server.store import access as access_store
from pki.server.store import certificates as certificate_store
from pki.server.store import events as event_store
from pki.server.store import tenants as tenant_store
from pki.server.store.engine import Unit

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

    The secret is returned here and kept nowhere: the store has its SHA-256, which is enough for 256 random bits.
    """
    now = deps.clock.now()
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    invitation = Invitation(
        reference=secrets.token_hex(8),
        tenant=tenant,
        secret_hash=_digest(secret),
        created_at=now,
        expires_at=now + deps.settings.invitation_ttl,
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


def enroll(deps: Deps, enrolment: Enrolment) -> EnrolmentResult:
    """Enrol an instance and queue the request for its identity certificate; all of it, or nothing.

    Raises EnrolmentError, the same for a token that is unknown, wrong, used or expired; AddressTakenError, which
    leaves the token as it was; WrongPartyError when token, address and request do not belong together; and what is
    wrong with the request.
    """
    now = deps.clock.now()
    access_key_id = httpsig.key_id(enrolment.access_key)
    _load(enrolment.access_key)
    unverified = requests.parse_request(enrolment.identity_request)
    if unverified.kind is not CertificateKind.IDENTITY:
        raise UsageError("An enrolment takes a request for an identity key", on=str(enrolment.address))
    if unverified.address != enrolment.address:
        raise WrongPartyError("The identity request is for another address", on=str(unverified.address))
    request = unverified.verify(x509.identity_public_key(unverified.spki))
    issuing.check_time(request.signing_time, now)
    instance = Instance(
        address=enrolment.address,
        tenant=enrolment.address.tenant,
        identity_spki=request.spki,
        access_key=enrolment.access_key,
        access_key_id=access_key_id,
        enrolled_at=now,
    )
    with deps.store.unit() as unit:
        invitation = _usable(unit, enrolment, now)
        if invitation.tenant != enrolment.address.tenant:
            raise WrongPartyError("The invitation is for another tenant", on=f"{invitation.tenant}/…")
        tenant_store.insert_instance(unit, instance)
        _check_unknown_key(unit, request.spki, enrolment.address)
        tenant_store.mark_invitation_used(unit, invitation.reference, instance.address, now)
        told = event(
            EventType.INSTANCE_ENROLLED,
            str(instance.address),
            now,
            instance.address,
            address=str(instance.address),
            access_key_id=access_key_id,
        )
        event_store.append(unit, [told])
        certificates.queue_request(unit, request, now)
    return EnrolmentResult(instance, request.id)


def authenticate(deps: Deps, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Caller:
    """Return the instance that signed this request, and use up the request's nonce.

    Raises AccessError, whose hint says what is missing, and ReplayedError for a nonce that was seen.
    """
    found: dict[str, Instance] = {}

    def resolve(key_id: str) -> Ed25519PublicKey:
        with deps.store.read() as unit:
            instance = tenant_store.instance_by_key(unit, key_id)
        if instance is None:
            raise AccessError("The access key is not enrolled", on=key_id, hint="kmb enroll")
        found[key_id] = instance
        return _load(instance.access_key)

    signed = _verify(deps, method, url, headers, body, resolve)
    return Caller(found[signed.key_id])


def authenticate_enrolment(
    deps: Deps, method: str, url: str, headers: Mapping[str, str], body: bytes, access_key: bytes
) -> None:
    """Check that an enrolment is signed with the access key that it names. Raises as `authenticate` does."""
    own = httpsig.key_id(access_key)

    def resolve(key_id: str) -> Ed25519PublicKey:
        if key_id != own:
            raise AccessError("The request is signed with another key than it names", on=key_id, hint="kmb enroll")
        return _load(access_key)

    # No nonce is kept: anybody may call this, and the invitation works once by itself.
    httpsig.verify_request(method, url, headers, body, resolve=resolve, now=deps.clock.now())


def _verify(
    deps: Deps,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    resolve: Callable[[str], Ed25519PublicKey],
) -> httpsig.SignedRequest:
    now = deps.clock.now()
    signed = httpsig.verify_request(method, url, headers, body, resolve=resolve, now=now)
    # Kept until the signature is too old by itself, whichever of the processes' clocks looks at it.
    until = signed.created + httpsig.MAX_AGE + 2 * httpsig.SKEW
    with deps.store.unit() as unit:
        access_store.use_nonce(unit, signed.key_id, signed.nonce, until)
    return signed


def _usable(unit: Unit, enrolment: Enrolment, now: datetime) -> Invitation:
    """Return the invitation, held until the end of the unit; one and the same error for all that is wrong with it."""
    found = None
    if _REFERENCE.fullmatch(enrolment.reference):
        found = tenant_store.lock_invitation(unit, enrolment.reference)
    # An unknown reference takes the same way as a wrong secret.
    right = hmac.compare_digest(found.secret_hash if found else bytes(32), _digest(enrolment.secret))
    if found is None or not right or found.used_at is not None or found.expires_at <= now:
        raise EnrolmentError(hint=f"ask the operator for: kmb-server tenant invite {enrolment.address.tenant}")
    return found


def _check_unknown_key(unit: Unit, spki: bytes, address: Address) -> None:
    if certificate_store.by_ski(unit, x509.key_identifier(spki).hex()):
        raise ConflictError("The identity key has a certificate already", on=str(address), hint="make a new key")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


def _load(access_key: bytes) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(access_key)
    except ValueError:
        raise UsageError("The access key is not an Ed25519 public key", on=f"{len(access_key)} bytes") from None
