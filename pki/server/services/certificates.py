"""Certificates: requested, proved, looked up, revoked."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pki.core import revocations, x509
from pki.core.certificates import (
    CERTIFICATE_MOVES,
    CertificateRecord,
    CertificateState,
    RequestState,
    check_move,
    proof_of_decryption,
)
from pki.core.errors import (
    ConflictError,
    IllegalMoveError,
    NotFoundError,
    StaleError,
    UnavailableError,
    UnknownRecipientError,
    VerificationError,
    WrongPartyError,
)
from pki.core.events import EventType
from pki.core.ids import Fingerprint, RequestId
from pki.core.requests import VerifiedRequest, parse_request
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind
from pki.server.ports import Caller, CrlRecord, RequestRecord
from pki.server.services import events
from pki.server.services.deps import Deps
from pki.server.services.issuing import CLOCK_SKEW, HASH, activate, check_request, is_lost, quarantine
from pki.server.services.issuing import issue as issue
from pki.server.services.issuing import publish_crl as publish_crl
from pki.server.store import certificates as store
from pki.server.store import events as event_store
from pki.server.store import outbox
from pki.server.store.engine import Unit

QUEUE = "issue"
ISSUE_JOB = "certificate"
"""The kind of job that issues; its subject is a request's id."""
CRL_JOB = "crl"
"""The kind of job that publishes a revocation list, and its subject."""

_REVOCATION_WINDOW = timedelta(hours=24)


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
    """The directory's entry for an address; ``issuing`` is the CA's certificate in DER."""

    address: Address
    identity: CertificateRecord
    encryption: CertificateRecord | None
    issuing: bytes


def submit_request(deps: Deps, caller: Caller, der: bytes) -> RequestRecord:
    """Check a request and queue it; the same bytes again are the same request.

    Raises what is wrong with it: MalformedError, ProfileError, WrongPartyError for another address, SignatureError
    when the enrolled identity key did not sign it, StaleError, RevokedError, ConflictError for somebody else's key.
    """
    now = deps.clock.now()
    owner = caller.instance.address
    request = parse_request(der).verify(x509.identity_public_key(caller.instance.identity_spki))
    with deps.store.unit() as unit:
        known = store.request(unit, request.id)
        if known is not None and known.address == owner:
            return _shown(unit, known).request
        check_request(unit, deps, request, owner, now)
        return queue_request(unit, request, now)


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
    outbox.add(unit, QUEUE, ISSUE_JOB, [record.id], now=now)
    event_store.append(unit, [events.of_request(EventType.CERTIFICATE_REQUESTED, record, now)])
    return record


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
                activate(unit, record, now)
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
    return Listing(address, identity, encryption, deps.chain.issuing)


def by_fingerprint(deps: Deps, fingerprint: Fingerprint) -> CertificateRecord:
    """Return one listed certificate; raises NotFoundError."""
    with deps.store.read() as unit:
        return _listed(unit, fingerprint)


def history(deps: Deps, address: Address) -> list[CertificateRecord]:
    """Return all listed certificates of an address, newest first; raises UnknownRecipientError when there is none."""
    with deps.store.read() as unit:
        found = [item for item in store.history(unit, address) if item.state is not CertificateState.UNPROVED]
    if not found:
        raise UnknownRecipientError(on=str(address), hint="check the address with its owner")
    return found


def revoke(deps: Deps, caller: Caller, der: bytes, *, wanted: Fingerprint | None = None) -> CertificateRecord:
    """Revoke a certificate at its owner's signed wish, and quarantine what was not collected; again changes nothing.

    When the key is lost, its other certificates go with it. ``wanted`` is what the request's path names. Raises
    NotFoundError for what is not the caller's, SignatureError, StaleError, WrongPartyError, IllegalMoveError.
    """
    now = deps.clock.now()
    wish = revocations.parse_revocation(der).verify(x509.identity_public_key(caller.instance.identity_spki))
    if wanted is not None and wish.fingerprint != wanted:
        raise WrongPartyError("The revocation request is for another certificate", on=wish.fingerprint, rule="REV-002")
    if not now - _REVOCATION_WINDOW <= wish.requested <= now + CLOCK_SKEW:
        raise StaleError("The revocation request was not signed just now", on=f"at {wish.requested}")
    reason = int(wish.reason)
    with deps.store.unit() as unit:
        record = _listed(unit, wish.fingerprint, lock=True)
        if record.address != caller.instance.address:
            raise NotFoundError(on=wish.fingerprint, rule="REV-002")
        if record.state is CertificateState.REVOKED:
            return record
        check_move(record.state, CertificateState.REVOKED)
        gone = [replace(record, state=CertificateState.REVOKED, revoked_at=now, revocation_reason=reason)]
        if is_lost(gone[0]):
            gone += [item for item in store.by_ski(unit, record.ski) if _goes_too(item, record)]
            if record.kind is CertificateKind.IDENTITY:
                # Whoever has the identity key could have endorsed them.
                gone += [
                    item for item in store.history(unit, record.address, CertificateKind.ENCRYPTION) if _open(item)
                ]
        for item in gone:
            store.set_certificate_state(unit, item.fingerprint, CertificateState.REVOKED, now=now, reason=reason)
        event_store.append(
            unit, [events.of_certificate(EventType.CERTIFICATE_REVOKED, item, now, reason=reason) for item in gone]
        )
        quarantine(unit, record, now)
        outbox.add(unit, QUEUE, CRL_JOB, [CRL_JOB], now=now)
    return gone[0]


def _open(record: CertificateRecord) -> bool:
    return CertificateState.REVOKED in CERTIFICATE_MOVES[record.state]


def latest_crl(deps: Deps) -> CrlRecord | None:
    """Return the newest revocation list, None before the first."""
    with deps.store.read() as unit:
        return store.latest_crl(unit)


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


def _listed(unit: Unit, fingerprint: Fingerprint, *, lock: bool = False) -> CertificateRecord:
    found = store.certificate(unit, fingerprint, lock=lock) if HASH.fullmatch(fingerprint) else None
    if found is None or found.state is CertificateState.UNPROVED:
        raise NotFoundError(on=fingerprint[:80])
    return found


def _goes_too(item: CertificateRecord, record: CertificateRecord) -> bool:
    ended = item.state in (CertificateState.REVOKED, CertificateState.EXPIRED)
    return item.fingerprint != record.fingerprint and item.address == record.address and not ended
