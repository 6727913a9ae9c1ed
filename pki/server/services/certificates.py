"""Certificates: requested, proved, looked up, revoked."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from datetime import datetime

from pki.core import issuance, x509
from pki.core.authorities import issuer_of
from pki.core.certificates import (
    CertificateRecord,
    CertificateState,
    RequestState,
    check_move,
    proof_of_decryption,
    renewal_due,
)
from pki.core.errors import (
    ConflictError,
    IllegalMoveError,
    NotFoundError,
    UnavailableError,
    UnknownRecipientError,
    VerificationError,
)
from pki.core.events import EventType
from pki.core.ids import Fingerprint, RequestId
from pki.core.issuance import Subject
from pki.core.requests import VerifiedRequest, parse_request
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind
from pki.server.facts import Caller, RequestRecord
from pki.server.services import events
from pki.server.services.activation import activate
from pki.server.services.admission import HASH, check_request, claims, key_of
from pki.server.services.deps import Deps
from pki.server.services.issuing import CRL_JOB as CRL_JOB
from pki.server.services.issuing import ISSUE_JOB as ISSUE_JOB
from pki.server.services.issuing import QUEUE as QUEUE
from pki.server.services.issuing import issue as issue
from pki.server.services.revocations import revoke as revoke
from pki.server.store import certificates as store
from pki.server.store import events as event_store
from pki.server.store import outbox
from pki.server.store import requests as request_store
from pki.server.store.engine import Unit


@dataclass(frozen=True)
class RequestStatus:
    """A request as its owner may see it.

    While an encryption certificate is unproved, ``certificate`` and the request's fingerprint are None: the hash of the
    certificate is what proves that it was decrypted.
    """

    request: RequestRecord
    certificate: CertificateRecord | None
    certificate_state: CertificateState | None


@dataclass(frozen=True)
class Listing:
    """The directory's entry for an address; ``issuing`` are the certificates of the CAs that issued them, in DER."""

    address: Address
    identity: CertificateRecord
    encryption: CertificateRecord | None
    issuing: bytes
    encryption_issuing: bytes
    """The same as ``issuing`` but in a roll-over."""


def submit_request(deps: Deps, caller: Caller, der: bytes) -> RequestRecord:
    """Check a request and queue it; the same bytes again are the same request.

    Raises what is wrong with it: MalformedError, ProfileError, WrongPartyError for another address, SignatureError
    when the enrolled key did not sign it, StaleError, RevokedError, ConflictError for somebody else's key.
    """
    now = deps.clock.now()
    unverified = parse_request(der)
    request = unverified.verify(key_of(caller.instance, unverified))
    check_profile(deps, request)
    with deps.store.unit() as unit:
        return _shown(unit, take(unit, request, caller.instance.address, now)).request


def check_profile(deps: Deps, request: VerifiedRequest) -> None:
    """Raise ProfileError for what the operator's profile does not allow (rule ISS-003).

    The issuer asks again; here the owner hears of it at once, before an invitation is used up.
    """
    issuance.check(deps.profiles.of(request.kind), Subject(request.address, request.spki, request.capabilities))


def take(unit: Unit, request: VerifiedRequest, owner: Address, now: datetime) -> RequestRecord:
    """Queue a request of ``owner``; the same bytes again are the same request, or a renewal when they have no time.

    Such a plain request, which some tools sign once and for all, is taken up anew when its certificate is in the last
    third of its life or out of use; for a key that was revoked as lost RevokedError says no, as for any other request.
    """
    known = store.request(unit, request.id, lock=True)
    if known is None or known.address != owner:
        check_request(unit, request, owner, now)
        return queue_request(unit, request, now)
    if request.signing_time is not None or not _is_over(unit, known, now):
        return known
    check_request(unit, request, owner, now)
    if not request_store.reopen(unit, request.id):
        return known
    return _queued(unit, replace(known, state=RequestState.PENDING, reason=None, fingerprint=None), now)


def queue_request(unit: Unit, request: VerifiedRequest, now: datetime) -> RequestRecord:
    """Store a verified request with its job and its event."""
    record = RequestRecord(
        id=request.id,
        address=request.address,
        kind=request.kind,
        der=request.der,
        state=RequestState.PENDING,
        created_at=now,
    )
    store.insert_request(unit, record)
    return _queued(unit, record, now)


def status(deps: Deps, caller: Caller, request_id: RequestId) -> RequestStatus:
    """Return where a request of the caller stands; raises NotFoundError. News rings ``request:<id>``."""
    with deps.store.read() as unit:
        return _shown(unit, _own(unit, caller, request_id))


def prove(deps: Deps, caller: Caller, request_id: RequestId, sha256_hex: str) -> RequestStatus:
    """Activate an encryption certificate whose owner could decrypt it; again after that changes nothing.

    Raises NotFoundError, IllegalMoveError before it is issued or once it was retired, VerificationError.
    """
    now = deps.clock.now()
    try:
        with deps.store.unit() as unit:
            request = _own(unit, caller, request_id, lock=True)
            if request.fingerprint is None or request.kind is not CertificateKind.ENCRYPTION:
                raise IllegalMoveError("There is nothing to prove for this request", on=request_id)
            record = store.certificate(unit, request.fingerprint, lock=True)
            if record is None:
                raise NotFoundError(on=request_id)
            told = sha256_hex.lower().encode(errors="surrogatepass")
            if not hmac.compare_digest(proof_of_decryption(record.der).encode(), told):
                raise VerificationError("This is not the hash of the decrypted certificate", on=request_id)
            if record.state is not CertificateState.ACTIVE:
                # Looked at before the other one is retired for it.
                check_move(record.state, CertificateState.ACTIVE)
                if record.not_after <= now:
                    raise IllegalMoveError("The certificate has expired", on=request_id, hint="kmb cert renew")
                others = [one for one in store.by_ski(unit, record.ski) if one.address != record.address]
                if any(claims(one) for one in others):
                    raise IllegalMoveError("The key is certified for another instance", hint="kmb cert renew")
                activate(unit, [record], now)
                unit.after_commit(f"request:{request_id}")
            return _shown(unit, request)
    except IllegalMoveError:
        raise
    except ConflictError:
        raise UnavailableError("Another certificate is being activated", hint="repeat the request") from None


def lookup(deps: Deps, address: Address) -> Listing:
    """Return what is active at an address; raises UnknownRecipientError when there is nobody to be found."""
    now = deps.clock.now()
    with deps.store.read() as unit:
        identity = store.active(unit, address, CertificateKind.IDENTITY)
        encryption = store.active(unit, address, CertificateKind.ENCRYPTION)
    if identity is None or identity.not_after <= now:
        raise UnknownRecipientError(on=str(address), hint="check the address with its owner")
    if encryption is not None and encryption.not_after <= now:
        encryption = None
    issuers = deps.chain.all
    issuing, other = (
        issuer_of(issuers, x509.parse_certificate(one.der).aki) for one in (identity, encryption or identity)
    )
    return Listing(address, identity, encryption, issuing, other)


def by_fingerprint(deps: Deps, fingerprint: Fingerprint) -> CertificateRecord:
    """Return one listed certificate; raises NotFoundError."""
    with deps.store.read() as unit:
        return _listed(unit, fingerprint)


def history(deps: Deps, address: Address) -> list[CertificateRecord]:
    """Return all listed certificates of an address, newest first; raises UnknownRecipientError when there is none.

    How an instance calls the server concerns nobody else: its access certificates are not among them.
    """
    with deps.store.read() as unit:
        found = [item for item in store.history(unit, address) if _concerns_others(item)]
    if not found:
        raise UnknownRecipientError(on=str(address), hint="check the address with its owner")
    return found


def _queued(unit: Unit, record: RequestRecord, now: datetime) -> RequestRecord:
    outbox.add(unit, QUEUE, ISSUE_JOB, [record.id], now=now, lanes=[record.address.tenant])
    event_store.append(unit, [events.of_request(EventType.CERTIFICATE_REQUESTED, record, now)])
    return record


def _is_over(unit: Unit, request: RequestRecord, now: datetime) -> bool:
    """Say whether a settled request left nothing that is worth having: no certificate, or one to be renewed."""
    if request.state is RequestState.PENDING:
        return False
    record = store.certificate(unit, request.fingerprint) if request.fingerprint else None
    if record is None or record.state is not CertificateState.ACTIVE:
        return True
    return now >= renewal_due(record.not_before, record.not_after)


def _own(unit: Unit, caller: Caller, request_id: RequestId, *, lock: bool = False) -> RequestRecord:
    found = store.request(unit, request_id, lock=lock) if HASH.fullmatch(request_id) else None
    if found is None or found.address != caller.instance.address:
        raise NotFoundError(on=request_id[:80])
    return found


def _shown(unit: Unit, request: RequestRecord) -> RequestStatus:
    record = store.certificate(unit, request.fingerprint) if request.fingerprint else None
    if record is None:
        return RequestStatus(request, None, None)
    if record.state is CertificateState.UNPROVED:
        return RequestStatus(replace(request, fingerprint=None), None, record.state)
    return RequestStatus(request, record, record.state)


def _concerns_others(record: CertificateRecord) -> bool:
    return record.state is not CertificateState.UNPROVED and record.kind is not CertificateKind.ACCESS


def _listed(unit: Unit, fingerprint: Fingerprint) -> CertificateRecord:
    found = store.certificate(unit, fingerprint) if HASH.fullmatch(fingerprint) else None
    if found is None or found.state is CertificateState.UNPROVED:
        raise NotFoundError(on=fingerprint[:80])
    return found
