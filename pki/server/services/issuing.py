"""What is done with the CA's key: certificates are issued, revocation lists published."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cryptography.x509 import load_der_x509_certificate

from pki.core import asn1, crl, x509
from pki.core.certificates import (
    ENDORSEMENT_WINDOW,
    CertificateRecord,
    CertificateState,
    RequestState,
    check_listed,
    encrypt_certificate,
)
from pki.core.crl import Reason, Revoked
from pki.core.errors import (
    CertificateError,
    ConflictError,
    ExpiredError,
    KeymailboxError,
    NotFoundError,
    RevokedError,
    StaleError,
    WrongPartyError,
)
from pki.core.events import EventType
from pki.core.ids import RequestId, fingerprint
from pki.core.requests import VerifiedRequest, parse_request
from pki.core.signatures import VerifyingKey
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind
from pki.server.ports import CaSigner, CrlRecord, RequestRecord
from pki.server.services import events
from pki.server.services.deps import Deps
from pki.server.store import certificates as store
from pki.server.store import deposits as deposit_store
from pki.server.store import events as event_store
from pki.server.store import tenants as tenant_store
from pki.server.store.engine import Unit

CLOCK_SKEW = timedelta(minutes=5)
"""How far another machine's clock may be ahead of ours; certificates start this much early for those behind."""
HASH = re.compile(r"[0-9a-f]{64}")
"""What a request's id and a fingerprint look like."""

_CRL_ATTEMPTS = 8
_KEY_IS_LOST = frozenset({Reason.UNSPECIFIED, Reason.KEY_COMPROMISE})


def issue(
    deps: Deps, signer: CaSigner, request_ids: Sequence[RequestId]
) -> Mapping[RequestId, RequestRecord | KeymailboxError]:
    """Issue what is asked for; the answer for each is the request, issued or rejected, or the error to try again after.

    Serial number and to-be-signed bytes are stored before the CA signs. After a crash the same ones are signed again,
    so there is no certificate that the store does not know of; of two workers on one request, the first one's stays.
    """
    now = deps.clock.now()
    with deps.store.read() as unit:
        first = store.latest_crl(unit) is None
    if first:
        # Nobody uses a certificate without a revocation list, so it comes before the first certificate.
        publish_crl(deps, signer)
    results: dict[RequestId, RequestRecord | KeymailboxError] = {}
    for request_id in dict.fromkeys(request_ids):
        try:
            prepared = prepare(deps, signer, request_id, now)
            if isinstance(prepared, RequestRecord):
                results[request_id] = prepared
            else:
                certificate_der = x509.assemble(prepared.tbs, signer.sign(prepared.tbs))
                results[request_id] = enter(deps, prepared, certificate_der, now)
        except KeymailboxError as error:
            results[request_id] = error
    return results


@dataclass(frozen=True)
class Prepared:
    """A request whose serial number and to-be-signed bytes are stored."""

    request: VerifiedRequest
    identity_key: VerifyingKey
    tbs: bytes


def prepare(deps: Deps, signer: CaSigner, request_id: RequestId, now: datetime) -> Prepared | RequestRecord:
    """Check a pending request and fix what is to be signed; a request that is settled is returned as it is."""
    with deps.store.unit() as unit:
        record = store.request(unit, request_id, lock=True) if HASH.fullmatch(request_id) else None
        instance = tenant_store.instance(unit, record.address) if record else None
        if record is None or instance is None:
            raise NotFoundError("There is no such request", on=request_id[:80])
        if record.state is not RequestState.PENDING:
            return record
        stored = store.prepared(unit, request_id)
        try:
            identity_key = x509.identity_public_key(instance.identity_spki)
            request = parse_request(record.der).verify(identity_key)
            if (request.id, request.address) != (record.id, record.address):
                raise WrongPartyError("The request is not the one that was stored under its id", on=request_id)
            start, end = _validity(stored[1]) if stored else _new_validity(deps, signer, now)
            check_request(unit, deps, request, record.address, start + CLOCK_SKEW)
            serial = stored[0] if stored else _serial()
            tbs = _tbs(signer, request, serial, start, end)
            # What is signed follows from the request alone, whatever became of the stored bytes since.
            if stored and (tbs != stored[1] or end - start > deps.settings.certificate_lifetime):
                raise CertificateError("The prepared certificate is not the request's", on=request_id)
        except KeymailboxError as error:
            return _reject(unit, record, error, now)
        if stored is None:
            store.prepare(unit, request_id, serial, tbs)
        return Prepared(request, identity_key, tbs)


def enter(deps: Deps, prepared: Prepared, der: bytes, now: datetime) -> RequestRecord:
    """Enter a signed certificate into the directory, with all that follows from it, unless another worker did.

    An identity certificate is active at once: its request is signed with the very key. An encryption certificate is
    unproved until its owner has decrypted it.
    """
    request, chain = prepared.request, deps.chain
    verified = check_listed(
        der,
        request.der,
        address=request.address,
        kind=request.kind,
        identity_key=prepared.identity_key,
        issuing_der=chain.issuing,
        root_der=chain.root,
        crl=None,
        now=now,
    )
    is_identity = request.kind is CertificateKind.IDENTITY
    record = CertificateRecord(
        fingerprint=fingerprint(der),
        address=request.address,
        kind=request.kind,
        serial=verified.parsed.serial,
        der=der,
        request_der=request.der,
        state=CertificateState.UNPROVED,
        not_before=verified.parsed.not_before,
        not_after=verified.parsed.not_after,
        issued_at=now,
        ski=verified.parsed.ski.hex(),
    )
    challenge = None if is_identity else encrypt_certificate(der, verified.recipient)
    with deps.store.unit() as unit:
        current = store.request(unit, request.id, lock=True)
        if current is None:
            raise NotFoundError(on=request.id)
        if current.state is not RequestState.PENDING:
            return current
        store.insert_certificate(unit, record)
        store.set_request(unit, request.id, RequestState.ISSUED, fingerprint=record.fingerprint, challenge=challenge)
        event_store.append(unit, [events.of_request(EventType.CERTIFICATE_ISSUED, current, now)])
        if is_identity:
            activate(unit, record, now)
        unit.after_commit(f"request:{request.id}")
    return replace(current, state=RequestState.ISSUED, fingerprint=record.fingerprint, challenge=challenge)


def activate(unit: Unit, record: CertificateRecord, now: datetime) -> None:
    """Make a certificate the active one, and retire the one before; raises ConflictError when another was quicker."""
    told = []
    previous = store.active(unit, record.address, record.kind)
    if previous is not None:
        if store.certificate(unit, previous.fingerprint, lock=True) != previous:
            raise ConflictError("Another certificate is being activated", on=str(record.address))
        store.set_certificate_state(unit, previous.fingerprint, CertificateState.RETIRED, now=now)
        told.append(events.of_certificate(EventType.CERTIFICATE_RETIRED, previous, now))
    store.set_certificate_state(unit, record.fingerprint, CertificateState.ACTIVE, now=now)
    told.append(events.of_certificate(EventType.CERTIFICATE_ACTIVATED, record, now))
    event_store.append(unit, told)


def publish_crl(deps: Deps, signer: CaSigner) -> CrlRecord:
    """Sign and store a new list of the revoked certificates; raises ConflictError when others were always quicker."""
    for _ in range(_CRL_ATTEMPTS - 1):
        try:
            return _publish(deps, signer)
        except ConflictError:
            # Their list may be older than what we know: ours comes after it.
            continue
    return _publish(deps, signer)


def check_request(unit: Unit, deps: Deps, request: VerifiedRequest, owner: Address, now: datetime) -> None:
    """Raise what speaks against a certificate for ``owner``: address, time, statement, or what is known of the key."""
    if request.address != owner:
        raise WrongPartyError("The request is for another address", on=str(request.address), rule="REQ-003")
    check_time(request.signing_time, now)
    for known in store.by_ski(unit, x509.key_identifier(request.spki).hex()):
        if known.address != owner:
            raise ConflictError("The key is certified for another instance", hint="kmb cert renew")
        if known.kind is not request.kind:
            raise ConflictError("The key is certified for another use", hint="kmb cert renew")
        if known.state is CertificateState.REVOKED and is_lost(known):
            raise RevokedError("The key was revoked and does not come back", on=str(owner), hint="kmb cert renew")
    if request.kind is CertificateKind.ENCRYPTION:
        _check_statement(unit, deps, request, now)


def check_time(signing_time: datetime, now: datetime) -> None:
    """Raise StaleError for a request that no certificate could follow in time (rule REQ-007, docs/adr/0002)."""
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


def quarantine(unit: Unit, record: CertificateRecord, now: datetime) -> None:
    """Hold back what waits for a revoked certificate's owner, unless the same key or owner is good by another one."""
    if any(other.state is CertificateState.ACTIVE for other in store.by_ski(unit, record.ski)):
        return
    keys = [record]
    if record.kind is CertificateKind.IDENTITY:
        if store.active(unit, record.address, CertificateKind.IDENTITY) is not None:
            return
        keys = store.history(unit, record.address, CertificateKind.ENCRYPTION)
    ids = [held for ski in sorted({key.ski for key in keys}) for held in deposit_store.quarantine_for(unit, ski, now)]
    found = deposit_store.many(unit, ids)
    event_store.append(unit, [events.of_deposit(EventType.DEPOSIT_QUARANTINED, item, now) for item in found])
    for item in found:
        unit.after_commit(f"deposit:{item.id}")
        unit.after_commit(f"mailbox:{item.recipient}")


def _publish(deps: Deps, signer: CaSigner) -> CrlRecord:
    now = deps.clock.now().replace(microsecond=0)
    lifetime = deps.settings.crl_lifetime
    with deps.store.read() as unit:
        latest = store.latest_crl(unit)
        revoked = store.revoked(unit)
    number = latest.number + 1 if latest else 1
    entries = [
        (item.serial, Revoked(item.revoked_at or now, crl.parse_reason(item.revocation_reason or 0)))
        for item in revoked
        if item.not_after > now - lifetime  # on one list beyond its time (RFC 5280 §3.3)
    ]
    der = signer.sign_crl(number, now, now + lifetime, entries)
    crl.verify_crl(der, issuing_der=deps.chain.issuing, now=now)
    record = CrlRecord(number, der, now, now + lifetime)
    told = events.event(
        EventType.CRL_PUBLISHED,
        str(number),
        now,
        number=number,
        revoked=len(entries),
        next_update=events.time(now + lifetime),
    )
    with deps.store.unit() as unit:
        store.insert_crl(unit, record)
        # Once more: a deposit may have become available while its certificate was being revoked.
        for item in revoked:
            if item.revoked_at is not None and item.revoked_at > now - lifetime:
                quarantine(unit, item, now)
        event_store.append(unit, [told])
    return record


def _check_statement(unit: Unit, deps: Deps, request: VerifiedRequest, now: datetime) -> None:
    identity = store.active(unit, request.address, CertificateKind.IDENTITY)
    if identity is None:
        raise CertificateError(
            "The instance has no identity certificate that is active", on=str(request.address), rule="REQ-006"
        )
    if identity.not_after <= now:
        raise ExpiredError("The identity certificate has expired", on=str(request.address), rule="REQ-006")
    statement = request.statement
    named = statement and (statement.issuer_der, statement.serial)
    issuer = load_der_x509_certificate(deps.chain.issuing).subject.public_bytes()
    if named != (issuer, identity.serial):
        raise CertificateError(
            "The possession statement names another certificate than the active identity certificate",
            on=str(request.address),
            hint="kmb cert renew",
            rule="REQ-006",
        )


def _reject(unit: Unit, record: RequestRecord, error: KeymailboxError, now: datetime) -> RequestRecord:
    reason = f"{error.code}: {error}"
    store.set_request(unit, record.id, RequestState.REJECTED, reason=reason)
    event_store.append(unit, [events.of_request(EventType.CERTIFICATE_REJECTED, record, now, reason=reason)])
    unit.after_commit(f"request:{record.id}")
    return replace(record, state=RequestState.REJECTED, reason=reason)


def _tbs(signer: CaSigner, request: VerifiedRequest, serial: int, start: datetime, end: datetime) -> bytes:
    return x509.tbs_certificate(
        serial=serial,
        issuer_der=signer.certificate_der,
        address=request.address,
        spki=request.spki,
        not_before=start,
        not_after=end,
        kind=request.kind,
        capabilities=request.capabilities.der if request.capabilities else None,
    )


def _new_validity(deps: Deps, signer: CaSigner, now: datetime) -> tuple[datetime, datetime]:
    start = (now - CLOCK_SKEW).replace(microsecond=0)
    last = load_der_x509_certificate(signer.certificate_der).not_valid_after_utc
    return start, min(start + deps.settings.certificate_lifetime, last)


def _validity(tbs: bytes) -> tuple[datetime, datetime]:
    validity = asn1.decode(asn1.TbsCertificate, tbs, what="The prepared certificate").validity
    start, end = (moment.as_datetime().replace(tzinfo=UTC) for moment in (validity.not_before, validity.not_after))
    return start, end


def _serial() -> int:
    # Positive with at most 20 bytes, 159 random bits (RFC 5280 §4.1.2.2); zero would be an omen.
    return secrets.randbits(159) or 1
