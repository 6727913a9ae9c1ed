"""Certificates are issued, a batch at a time: what is to be signed is stored, then signed, then entered."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from pki.core import x509
from pki.core.certificates import (
    CertificateRecord,
    CertificateState,
    RequestState,
    check_signed,
    encrypt_certificate,
)
from pki.core.errors import (
    CertificateError,
    ConflictError,
    KeymailboxError,
    NotFoundError,
    UnavailableError,
)
from pki.core.events import Event, EventType
from pki.core.ids import RequestId, fingerprint
from pki.core.requests import VerifiedRequest
from pki.core.x509 import CertificateKind
from pki.server import metrics
from pki.server.facts import CaChain, Instance, RequestRecord
from pki.server.ports import CaKeys
from pki.server.services import admission, drafting, events, status
from pki.server.services.activation import activate
from pki.server.services.admission import HASH
from pki.server.services.deps import Deps
from pki.server.services.drafting import Draft
from pki.server.store import certificates as store
from pki.server.store import events as event_store
from pki.server.store import outbox
from pki.server.store import requests as request_store
from pki.server.store import tenants as tenant_store
from pki.server.store.engine import Unit
from pki.server.store.requests import Held, Settled

QUEUE = "issue"
ISSUE_JOB = "certificate"
"""The kind of job that issues; its subject is a request's id."""
CRL_JOB = "crl"
"""The kind of job that publishes a revocation list, and its subject."""

Answer = RequestRecord | Exception
"""What became of a request: it is issued or rejected, or there is an error to try again after."""

_SIGNERS = min(os.cpu_count() or 1, 8)
"""How many signatures are made side by side: the libraries let go of the interpreter's lock meanwhile."""
_AWAY = 3
"""How often the key may be away in one batch; a token's time-outs a hundred times would outlast the job's lease."""


@dataclass(frozen=True)
class Signed:
    """A certificate in DER, compared with its draft and verified; what its owner has to decrypt, if anything."""

    draft: Draft
    der: bytes
    challenge: bytes | None


def issue(deps: Deps, keys: CaKeys, request_ids: Sequence[RequestId]) -> Mapping[RequestId, Answer]:
    """Issue what is asked for, up to a hundred at a time; what is wrong with one request is that one's answer alone.

    Serial numbers and to-be-signed bytes of all are stored in one transaction before the CA signs any. After a crash
    the same ones are signed again, so there is no certificate that the store does not know of; of two workers on one
    request, the first one's stays. Signatures are made and verified outside of transactions.
    """
    now = deps.clock.now()
    status.publish_first(deps, keys)
    wanted = dict.fromkeys(request_ids)
    prepared, answers = prepare(deps, keys, list(wanted), now)
    signed, failed = sign(deps, prepared, now)
    answers = {**answers, **failed, **enter(deps, signed, now)}
    return {request_id: answers[request_id] for request_id in wanted}


def prepare(
    deps: Deps, keys: CaKeys, ids: Sequence[RequestId], now: datetime
) -> tuple[list[Draft], dict[RequestId, Answer]]:
    """Check requests and fix what is to be signed for those that pass; the others' answers are returned beside.

    What was stored first is what is to be signed, by whomever; what is against a request rejects it.
    """
    with deps.store.read() as unit:
        found = request_store.held(unit, [one for one in ids if HASH.fullmatch(one)])
        there = tenant_store.instances_at(unit, [one.record.address for one in found])
        taken = _taken(unit, found)
    instances = {instance.address: instance for instance in there}
    answers: dict[RequestId, Answer] = {one: NotFoundError("There is no such request", on=one[:80]) for one in ids}
    drafts: dict[RequestId, Draft | KeymailboxError] = {}
    pending = []
    for one in found:
        if one.record.address not in instances:
            continue
        if one.record.state is RequestState.PENDING:
            pending.append(one)
        else:
            answers[one.record.id] = one.record
    # One after another: it is mostly work that the interpreter does one at a time.
    outcomes = [_attempt(_draft, deps, keys, one, instances[one.record.address], taken, now) for one in pending]
    for one, outcome in zip(pending, outcomes, strict=True):
        if isinstance(outcome, Draft | KeymailboxError):
            drafts[one.record.id] = outcome
        else:
            # One that trips us up must not hold up those that came with it.
            answers[one.record.id] = outcome
    stored, settled = _store(deps, drafts, now) if drafts else ([], {})
    ready: list[Draft] = []
    late: dict[RequestId, KeymailboxError] = {}
    others = [one for one in stored if isinstance(mine := drafts[one.record.id], Draft) and mine.tbs != one.tbs]
    if others:
        with deps.store.read() as unit:
            taken = _taken(unit, others)
    for one in stored:
        outcome = drafts[one.record.id]
        if one in others:
            # Another worker was quicker: its bytes are signed, if they follow from the request like ours.
            outcome = _attempt(_draft, deps, keys, one, instances[one.record.address], taken, now)
        if isinstance(outcome, Draft):
            ready.append(outcome)
        elif isinstance(outcome, KeymailboxError):
            late[one.record.id] = outcome
        else:
            answers[one.record.id] = outcome
    if late:
        settled |= _reject_late(deps, late, now)
    return ready, answers | settled


def sign(deps: Deps, drafts: Sequence[Draft], now: datetime) -> tuple[list[Signed], dict[RequestId, Answer]]:
    """Sign what is stored, several at once, and verify each certificate; those that failed are returned beside.

    When the key is away for the third time, the rest of the batch does not wait for it to be away once more.
    """
    chain = deps.chain
    away: list[UnavailableError] = []

    def work(draft: Draft) -> Signed:
        if len(away) >= _AWAY:
            raise away[0]
        try:
            return _signed(chain, draft, now)
        except UnavailableError as error:
            away.append(error)
            raise

    outcomes = _each(drafts, work)
    signed = [outcome for outcome in outcomes if isinstance(outcome, Signed)]
    failed: dict[RequestId, Answer] = {
        draft.id: outcome for draft, outcome in zip(drafts, outcomes, strict=True) if isinstance(outcome, Exception)
    }
    return signed, failed


def enter(deps: Deps, signed: Sequence[Signed], now: datetime) -> dict[RequestId, Answer]:
    """Enter signed certificates into the directory, with all that follows from them, unless another worker did.

    An identity or access certificate is active at once: its request is signed with the very key. An encryption
    certificate is unproved until its owner has decrypted it.
    """
    if not signed:
        return {}
    try:
        with deps.store.unit() as unit:
            return _enter(unit, signed, now)
    except ConflictError as error:
        if len(signed) == 1:
            return {signed[0].draft.id: error}
    # One of them is at odds with what is stored: each for itself, so that it holds up no other.
    answers: dict[RequestId, Answer] = {}
    for one in signed:
        answers |= enter(deps, [one], now)
    return answers


T = TypeVar("T")
R = TypeVar("R")


def _each(items: Sequence[T], work: Callable[[T], R]) -> list[R | Exception]:
    """Do what is mostly arithmetic of other languages for several items at once; each one's outcome in its place."""
    if len(items) < 2 or _SIGNERS < 2:
        return [_attempt(work, item) for item in items]
    with ThreadPoolExecutor(_SIGNERS, "issue") as pool:
        return list(pool.map(lambda item: _attempt(work, item), items))


def _attempt(work: Callable[..., R], *arguments: object) -> R | Exception:
    try:
        return work(*arguments)
    except Exception as error:
        return error


def _taken(unit: Unit, found: Sequence[Held]) -> set[int]:
    """Return which of the serials that are stored for pending requests are those of certificates already."""
    return store.taken(
        unit, [one.serial for one in found if one.serial is not None and one.record.state is RequestState.PENDING]
    )


def _draft(deps: Deps, keys: CaKeys, one: Held, instance: Instance, taken: Collection[int], now: datetime) -> Draft:
    if one.serial in taken:
        # Whoever revoked the second certificate would revoke the first, which is somebody else's.
        raise CertificateError("The prepared serial number is another certificate's", on=one.record.id)
    return drafting.draft(deps, keys, one, instance, now)


def _store(
    deps: Deps, drafts: Mapping[RequestId, Draft | KeymailboxError], now: datetime
) -> tuple[list[Held], dict[RequestId, Answer]]:
    """Store what is to be signed for those against whom nothing speaks; return it, and the others' answers."""
    answers: dict[RequestId, Answer] = {}
    refused: list[tuple[Held, KeymailboxError]] = []
    accepted: list[Held] = []
    with deps.store.unit() as unit:
        rows = request_store.held(unit, list(drafts), lock=True)
        facts = admission.gather(unit, [draft.request for draft in drafts.values() if isinstance(draft, Draft)])
        owners: dict[bytes, list[VerifiedRequest]] = defaultdict(list)
        new = []
        for row in rows:
            record, draft = row.record, drafts[row.record.id]
            if record.state is not RequestState.PENDING:
                answers[record.id] = record
                continue
            error = draft if isinstance(draft, KeymailboxError) else _objection(facts, draft, owners, now)
            if error is not None:
                refused.append((row, error))
                continue
            assert isinstance(draft, Draft)
            if row.tbs is None:
                row = Held(record, draft.serial, draft.tbs)
                new.append((record.id, draft.serial, draft.tbs))
            accepted.append(row)
        request_store.prepare(unit, new)
        answers |= _reject(unit, refused, now)
    return accepted, answers


def _objection(
    facts: admission.Facts, draft: Draft, owners: dict[bytes, list[VerifiedRequest]], now: datetime
) -> KeymailboxError | None:
    """Return what speaks against a draft; ``owners`` are those of the keys that this batch has accepted already."""
    request = draft.request
    try:
        admission.check(facts, request, request.address, now)
        if any(_clash(other, request) for other in owners[request.spki]):
            raise ConflictError("The key is certified for another instance or use", hint="kmb cert renew")
        owners[request.spki].append(request)
    except KeymailboxError as error:
        return error
    return None


def _clash(earlier: VerifiedRequest, later: VerifiedRequest) -> bool:
    """Tell what `admission.check_key` would say if the earlier one's certificate were in the directory already."""
    if earlier.address == later.address:
        return earlier.kind is not later.kind
    # Nobody has proved that an encryption key is his before its certificate is there.
    return earlier.kind is not CertificateKind.ENCRYPTION


def _signed(chain: CaChain, draft: Draft, now: datetime) -> Signed:
    der = x509.assemble(draft.tbs, draft.signer.sign(draft.tbs))
    # The signer gave a signature and nothing else, so what it covers is known byte for byte; a faulty one stops here.
    issuer = draft.signer.certificate_der
    check_signed(der, draft.tbs, issuing_der=issuer, root_der=chain.root, now=now)
    challenge = None
    if draft.request.kind is CertificateKind.ENCRYPTION:
        challenge = encrypt_certificate(der, draft.parsed.recipient)
    return Signed(draft, der, challenge)


def _enter(unit: Unit, signed: Sequence[Signed], now: datetime) -> dict[RequestId, Answer]:
    by_id = {one.draft.id: one for one in signed}
    answers: dict[RequestId, Answer] = {one: NotFoundError(on=one) for one in by_id}
    facts = admission.gather(unit, [one.draft.request for one in signed])
    refused: list[tuple[Held, KeymailboxError]] = []
    certificates: list[CertificateRecord] = []
    settled: list[Settled] = []
    told: list[Event] = []
    for row in request_store.held(unit, list(by_id), lock=True):
        one, record = by_id[row.record.id], row.record
        if record.state is not RequestState.PENDING:
            answers[record.id] = record
            continue
        if row.tbs != one.draft.tbs:
            # Settled and opened again meanwhile (docs/adr/0016): what was signed before is known by then.
            answers[record.id] = ConflictError("Something else is to be signed for the request by now", on=record.id)
            continue
        try:
            # Once more: the key may have been revoked while its certificate was being signed.
            admission.check_key(facts, one.draft.request)
        except KeymailboxError as error:
            refused.append((row, error))
            continue
        entry = _record(one, now)
        certificates.append(entry)
        settled.append(Settled(record.id, RequestState.ISSUED, None, entry.fingerprint, one.challenge))
        told.append(events.of_request(EventType.CERTIFICATE_ISSUED, record, now))
        unit.after_commit(f"request:{record.id}")
        answers[record.id] = replace(
            record, state=RequestState.ISSUED, fingerprint=entry.fingerprint, challenge=one.challenge
        )
    store.insert_certificates(unit, certificates)
    request_store.settle(unit, settled, now)
    for entry in certificates:
        unit.once_committed(metrics.certificates.labels(entry.kind.value, "issued").inc)
    event_store.append(unit, told)
    activate(unit, [entry for entry in certificates if entry.kind is not CertificateKind.ENCRYPTION], now)
    return answers | _reject(unit, refused, now)


def _record(one: Signed, now: datetime) -> CertificateRecord:
    parsed = one.draft.parsed
    return CertificateRecord(
        fingerprint=fingerprint(one.der),
        address=parsed.address,
        kind=parsed.kind,
        serial=parsed.serial,
        der=one.der,
        request_der=one.draft.request.der,
        state=CertificateState.UNPROVED,
        not_before=parsed.not_before,
        not_after=parsed.not_after,
        issued_at=now,
        ski=parsed.ski.hex(),
        issuer=parsed.aki.hex(),
    )


def _reject_late(deps: Deps, errors: Mapping[RequestId, KeymailboxError], now: datetime) -> dict[RequestId, Answer]:
    with deps.store.unit() as unit:
        rows = request_store.held(unit, list(errors), lock=True)
        pending = [(row, errors[row.record.id]) for row in rows if row.record.state is RequestState.PENDING]
        others: dict[RequestId, Answer] = {row.record.id: row.record for row in rows}
        return others | _reject(unit, pending, now)


def _reject(unit: Unit, refused: Sequence[tuple[Held, KeymailboxError]], now: datetime) -> dict[RequestId, Answer]:
    answers: dict[RequestId, Answer] = {}
    settled: list[Settled] = []
    told: list[Event] = []
    for row, error in refused:
        record, reason = row.record, f"{error.code}: {error}"
        settled.append(Settled(record.id, RequestState.REJECTED, reason))
        told.append(events.of_request(EventType.CERTIFICATE_REJECTED, record, now, reason=reason))
        unit.after_commit(f"request:{record.id}")
        answers[record.id] = replace(record, state=RequestState.REJECTED, reason=reason)
        unit.once_committed(metrics.certificates.labels(record.kind.value, "rejected").inc)
    request_store.settle(unit, settled, now)
    event_store.append(unit, told)
    if any(row.serial is not None for row, _ in refused):
        # It may have been signed before: its serial goes on the revocation list.
        outbox.add(unit, QUEUE, CRL_JOB, [CRL_JOB], now=now, rank=outbox.URGENT)
    return answers
