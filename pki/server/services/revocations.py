"""Revocation: at the owner's signed wish, with all that follows from it; the evidence is stored with the effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from pki.core import revocations, x509
from pki.core.certificates import CERTIFICATE_MOVES, CertificateRecord, CertificateState, check_move
from pki.core.crl import Reason
from pki.core.errors import CertificateError, NotFoundError, StaleError, WrongPartyError
from pki.core.events import EventType
from pki.core.ids import Fingerprint
from pki.core.revocations import KEY_IS_LOST
from pki.core.x509 import CertificateKind
from pki.server.facts import Caller, RevocationRecord
from pki.server.services import events, evidence
from pki.server.services.admission import CLOCK_SKEW, HASH
from pki.server.services.deps import Deps
from pki.server.services.issuing import CRL_JOB, QUEUE
from pki.server.services.quarantine import quarantine
from pki.server.store import certificates as store
from pki.server.store import events as event_store
from pki.server.store import outbox
from pki.server.store import revocations as evidence_store
from pki.server.store import tenants as tenant_store
from pki.server.store.engine import Unit

BY_OWNER = "owner"
"""What a certificate's row says of who revoked it."""

_WINDOW = timedelta(hours=24)


def revoke(deps: Deps, caller: Caller, der: bytes, *, wanted: Fingerprint | None = None) -> CertificateRecord:
    """Revoke a certificate at its owner's signed wish, and quarantine what was not collected; again changes nothing.

    When the key is lost, its other certificates go with it. ``wanted`` is what the request's path names. Raises
    NotFoundError for what is not the caller's, SignatureError, StaleError, WrongPartyError, IllegalMoveError.
    """
    now = deps.clock.now()
    wish = revocations.parse_revocation(der).verify(x509.identity_public_key(caller.instance.identity_spki))
    if wanted is not None and wish.named.fingerprint != wanted:
        raise WrongPartyError("The revocation request is for another certificate", on=str(wish.named), rule="REV-002")
    if not now - _WINDOW <= wish.requested <= now + CLOCK_SKEW:
        raise StaleError("The revocation request was not signed just now", on=f"at {wish.requested}")
    with deps.store.unit() as unit:
        record = _wanted(unit, caller, wish.named)
        unproved = record is not None and record.state is CertificateState.UNPROVED
        if record is None or unproved or record.address != caller.instance.address:
            raise NotFoundError(on=str(wish.named), rule="REV-002")
        if record.state is CertificateState.REVOKED:
            return record
        check_move(record.state, CertificateState.REVOKED)
        signer = _signer(unit, caller)
        gone = [record, *falls_with(unit, record, wish.reason)]
        proofs = [
            RevocationRecord(
                fingerprint=item.fingerprint,
                evidence=evidence.OWNER,
                certificate=item.der,
                created_at=now,
                request=der,
                signer=signer.der,
                named=None if item is record else record.der,
                endorsement=item.request_der,
            )
            for item in gone
        ]
        carry_out(unit, gone, proofs, wish.reason, now, by=BY_OWNER)
        found = store.certificate(unit, record.fingerprint)
    return found or record


def falls_with(unit: Unit, record: CertificateRecord, reason: Reason) -> list[CertificateRecord]:
    """Return the other certificates that fall with one: of a lost key all, of a lost identity what it may endorse."""
    if reason not in KEY_IS_LOST:
        return []
    others = [item for item in store.by_ski(unit, record.ski) if item.address == record.address]
    if record.kind is CertificateKind.IDENTITY:
        # Whoever has the identity key could have endorsed them.
        others += store.history(unit, record.address, CertificateKind.ENCRYPTION)
    found = {item.fingerprint: item for item in others if CertificateState.REVOKED in CERTIFICATE_MOVES[item.state]}
    found.pop(record.fingerprint, None)
    return list(found.values())


def carry_out(
    unit: Unit,
    gone: Sequence[CertificateRecord],
    proofs: Sequence[RevocationRecord],
    reason: Reason,
    now: datetime,
    *,
    by: str,
    because: str | None = None,
) -> None:
    """Revoke certificates that may be, with the evidence for each: state, event, quarantine, and a job for the list.

    An access key that is lost is taken from its instance, for whom it signs nothing more.
    """
    evidence_store.insert(unit, proofs)
    for item in gone:
        store.set_certificate_state(
            unit,
            item.fingerprint,
            CertificateState.REVOKED,
            now=now,
            reason=int(reason),
            by=by,
            because=because,
        )
    told = [replace(item, revoked_by=by, because=because) for item in gone]
    event_store.append(
        unit, [events.of_certificate(EventType.CERTIFICATE_REVOKED, item, now, reason=int(reason)) for item in told]
    )
    for item in gone:
        if item.kind is CertificateKind.ACCESS and reason in KEY_IS_LOST:
            tenant_store.withdraw_access_key(unit, item.address)
    quarantine(unit, gone, now)
    outbox.add(unit, QUEUE, CRL_JOB, [CRL_JOB], now=now, rank=outbox.URGENT)


def ask_for_lists(deps: Deps) -> None:
    """Have the issuer publish each issuing CA's list as soon as it can: a new one has none yet."""
    with deps.store.unit() as unit:
        outbox.add(unit, QUEUE, CRL_JOB, [CRL_JOB], now=deps.clock.now(), rank=outbox.URGENT)


def _wanted(unit: Unit, caller: Caller, named: revocations.Named) -> CertificateRecord | None:
    """Return the certificate that a wish is about, held until the end of the unit."""
    fingerprint = named.fingerprint
    if named.place is not None:
        owned = store.history(unit, caller.instance.address)
        fitting = [one for one in owned if one.serial == named.place[1] and named.fits(x509.parse_certificate(one.der))]
        fingerprint = fitting[0].fingerprint if fitting else None
    if fingerprint is None or not HASH.fullmatch(fingerprint):
        return None
    return store.certificate(unit, fingerprint, lock=True)


def _signer(unit: Unit, caller: Caller) -> CertificateRecord:
    """Return the certificate of the caller's identity key, which the issuer will look at."""
    instance = caller.instance
    ski = x509.key_identifier(instance.identity_spki).hex()
    for item in store.by_ski(unit, ski):
        if item.address == instance.address and item.kind is CertificateKind.IDENTITY:
            return item
    raise CertificateError("The identity key has no certificate", on=str(instance.address), rule="REV-002")
