"""Validation of deposits, by a worker that cannot open them: the only way from received to available."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from operator import attrgetter

from pki.core import policy
from pki.core.certificates import CertifiedKey, VerifiedCertificate
from pki.core.deposits import DEPOSIT_MOVES, DepositState, UnverifiedDeposit, parse_deposit
from pki.core.errors import ConflictError, KeymailboxError, RevokedError, UnavailableError, WrongPartyError
from pki.core.events import Event, EventType
from pki.core.ids import DepositId, Fingerprint
from pki.core.keys import RsaAlgorithm
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind
from pki.server.facts import CaChain, DepositRecord, NewDeposit
from pki.server.services import senders, signers
from pki.server.services.deps import Deps
from pki.server.services.events import of_deposit
from pki.server.store import certificates as certificate_store
from pki.server.store import deposits as deposit_store
from pki.server.store import events as event_store
from pki.server.store import validation as store
from pki.server.store.engine import Unit

SUPERSEDABLE = frozenset(state for state, moves in DEPOSIT_MOVES.items() if DepositState.SUPERSEDED in moves)
"""Where a deposit may still give way to another: its key was revoked, or renewed, before it was collected."""
_RECORDED_DETAIL = 300


@dataclass(frozen=True)
class Validated:
    """What validation found: ``available`` with a number in the mailbox, or ``rejected`` with a stable code."""

    id: DepositId
    state: DepositState
    sequence: int | None = None
    code: str | None = None


@dataclass(frozen=True)
class _Sound:
    recipient_certificate: Fingerprint
    sender_certificate: Fingerprint


Done = Callable[[Unit, Collection[DepositId]], None]
"""Writes down, in a unit of ours, that these deposits are done with."""
_Verdict = tuple[DepositRecord, _Sound | KeymailboxError]


def validate(
    deps: Deps, ids: Sequence[DepositId], done: Done | None = None
) -> Mapping[DepositId, Validated | Exception]:
    """Validate received deposits: all that can be found out without the key.

    Signatures are verified outside of the transaction, then all verdicts are committed together; ``done`` is called in
    the unit that does so, with what it settles. A deposit that is no longer ``received`` is left as it is, so a second
    delivery changes nothing. An exception in the answer is a fault of ours, not of the deposit: it stays ``received``.
    Raises UnavailableError when the store is away.
    """
    now = deps.clock.now()
    chain = deps.chain
    with deps.store.read() as unit:
        records = deposit_store.many(unit, ids, with_body=True)
        pending = [record for record in records if record.state is DepositState.RECEIVED]
        known = signers.known(unit, {ski for record in pending for ski in (record.sender_ski, record.recipient_ski)})
    results: dict[DepositId, Validated | Exception] = {record.id: _as_stored(record) for record in records}
    keys = _Keys(known, chain, now)
    verdicts: list[_Verdict] = []
    for record in pending:
        try:
            verdicts.append((record, _judge(record, keys, deps, now)))
        except KeymailboxError as error:
            verdicts.append((record, error))
        except Exception as error:
            # One that trips us up must not hold up those that came with it.
            results[record.id] = error
    if verdicts:
        results |= _commit(deps, verdicts, done, now)
    return results


def as_new(
    parsed: UnverifiedDeposit,
    body: bytes,
    supersedes: DepositId | None,
    now: datetime,
    respond_by: datetime | None = None,
) -> NewDeposit:
    """Return what a deposit says of itself as a row; ``now`` is when it arrived."""
    return NewDeposit(
        id=parsed.id,
        sender=parsed.context.sender,
        recipient=parsed.context.recipient,
        body=body,
        body_sha256=parsed.sha256,
        body_sha512=parsed.sha512,
        size=parsed.size,
        key_id=parsed.context.key_id,
        key_version=parsed.context.key_version,
        purpose=parsed.context.purpose,
        signing_time=parsed.signing_time,
        received_at=now,
        expires_at=parsed.context.expires,
        recipient_ski=parsed.envelope.recipients[0].ski.hex(),
        sender_ski=parsed.signer_ski.hex(),
        supersedes=supersedes,
        respond_by=respond_by,
    )


def to_sender(event: Event, record: DepositRecord | NewDeposit) -> Event:
    """Return the event for the sender alone: the recipient does not hear of what never reached the mailbox."""
    return replace(event, audience=(str(record.sender),))


def ring(unit: Unit, record: DepositRecord) -> None:
    """Wake who waits for this deposit, and who waits for its mailbox."""
    unit.after_commit(f"deposit:{record.id}")
    unit.after_commit(f"mailbox:{record.recipient}")


class _Keys:
    """The keys of one batch, each proved once: most batches have few senders and fewer recipients."""

    def __init__(self, stored: signers.Known, chain: CaChain, now: datetime) -> None:
        self._stored = stored
        self._chain = chain
        self._now = now
        self._known: dict[tuple[str, Address, CertificateKind], _Proved | KeymailboxError] = {}

    def of(self, ski: str, address: Address, kind: CertificateKind, rule: str) -> _Proved:
        """Return the certificate that proves a key for an address, or raise what is wrong with it."""
        place = (ski, address, kind)
        if place not in self._known:
            self._known[place] = self._prove(ski, address, kind, rule)
        found = self._known[place]
        if isinstance(found, KeymailboxError):
            raise found
        return found

    def _prove(self, ski: str, address: Address, kind: CertificateKind, rule: str) -> _Proved | KeymailboxError:
        records = self._stored.of(ski)
        own = [record for record in records if record.address == address and record.kind is kind]
        if not own and (records or kind is CertificateKind.ENCRYPTION):
            # A key that nobody knows is not the recipient's either, and the sender need not learn which it is.
            return WrongPartyError("The key belongs to somebody else", on=str(address), rule=rule)
        try:
            return self._stored.verified(own, kind, self._chain, self._now, rule=rule)
        except KeymailboxError as error:
            return error


_Proved = tuple[CertifiedKey, VerifiedCertificate]


def _judge(record: DepositRecord, keys: _Keys, deps: Deps, now: datetime) -> _Sound:
    if record.body is None:
        # Not the deposit's fault: it stays received, and its job ends where people see it.
        raise LookupError("the body of a received deposit is not there")
    deposit = parse_deposit(record.body, max_size=deps.settings.max_deposit_bytes)
    _check_row(record, deposit)
    sender, sender_proof = keys.of(record.sender_ski, record.sender, CertificateKind.IDENTITY, "DEP-005")
    recipient, recipient_proof = keys.of(record.recipient_ski, record.recipient, CertificateKind.ENCRYPTION, "DEP-007")
    policy.verify_deposit(
        deposit,
        sender=sender_proof,
        crl=None,  # the certificate's own row says whether it is revoked, sooner than a list
        recipient_skis={recipient_proof.parsed.ski},
        sha1_skis={recipient_proof.parsed.ski} if _asks_for_sha1(recipient_proof) else (),
        now=now,
        max_lifetime=deps.settings.deposit_max_lifetime,
        # A deposit does not grow old while it waits for us.
        max_age=policy.MAX_AGE_AT_DEPOSIT + (now - record.received_at),
    )
    return _Sound(recipient.fingerprint, sender.fingerprint)


def _asks_for_sha1(certificate: VerifiedCertificate) -> bool:
    return certificate.recipient.algorithm is RsaAlgorithm.OAEP_SHA1


def _check_row(record: DepositRecord, deposit: UnverifiedDeposit) -> None:
    """Refuse a row that says something else than the bytes that its sender signed."""
    expected = as_new(deposit, record.body or b"", record.supersedes, record.received_at, record.respond_by)
    if _ROW(record) != _ROW(expected):
        raise ConflictError("The stored deposit is not the one that was sent", on=record.id)


_ROW = attrgetter(*(one.name for one in fields(NewDeposit) if one.name != "body"))


def _commit(
    deps: Deps, verdicts: Sequence[_Verdict], done: Done | None, now: datetime
) -> Mapping[DepositId, Validated | Exception]:
    """Commit verdicts together; when that cannot be, in halves, so that the one to blame stays behind alone."""
    try:
        with deps.store.unit() as unit:
            results = _settle(unit, verdicts, now)
            if done is not None:
                done(unit, results.keys())
        return results
    except UnavailableError:
        raise
    except Exception as error:
        if len(verdicts) == 1:
            return {verdicts[0][0].id: error}
    half = len(verdicts) // 2
    return {**_commit(deps, verdicts[:half], done, now), **_commit(deps, verdicts[half:], done, now)}


def _settle(unit: Unit, verdicts: Sequence[_Verdict], now: datetime) -> dict[DepositId, Validated | Exception]:
    # Certificates are held before deposits, as in a revocation: it either finds these available and quarantines
    # them, or is seen here.
    verified = [verdict for _, verdict in verdicts if isinstance(verdict, _Sound)]
    fingerprints = {found for sound in verified for found in (sound.recipient_certificate, sound.sender_certificate)}
    states = certificate_store.held_states(unit, fingerprints)
    older = [record.supersedes for record, _ in verdicts if record.supersedes is not None]
    held = store.hold(unit, [*(record.id for record, _ in verdicts), *older])
    sound: list[tuple[DepositRecord, _Sound]] = []
    refused: list[tuple[DepositRecord, KeymailboxError]] = []
    results: dict[DepositId, Validated | Exception] = {}
    for record, verdict in sorted(verdicts, key=lambda one: (one[0].received_at, one[0].id)):
        state, sequence, code = held[record.id]
        if state is not DepositState.RECEIVED:
            results[record.id] = Validated(record.id, state, sequence, code)
        elif isinstance(verdict, KeymailboxError):
            refused.append((record, verdict))
        elif states.get(verdict.recipient_certificate) not in signers.USABLE:
            refused.append((record, RevokedError(on=str(record.recipient), rule="DEP-007")))
        elif states.get(verdict.sender_certificate) not in signers.USABLE:
            refused.append((record, RevokedError(on=str(record.sender), rule="DEP-006")))
        else:
            sound.append((record, verdict))
    against = senders.unwelcome(unit, [record for record, _ in sound])
    refused += [(record, error) for (record, _), error in zip(sound, against, strict=True) if error is not None]
    sound = [one for one, error in zip(sound, against, strict=True) if error is None]
    told: list[Event] = []
    results |= _make_available(unit, sound, told, now)
    results |= _reject(unit, refused, told, now)
    open_still = {name: held[name][0] for name in older if name in held and held[name][0] in SUPERSEDABLE}
    _supersede(unit, [record for record, _ in sound], open_still, told, now)
    event_store.append(unit, told)
    return results


def _make_available(
    unit: Unit, sound: Sequence[tuple[DepositRecord, _Sound]], told: list[Event], now: datetime
) -> Mapping[DepositId, Validated]:
    proofs = [(record, verdict.recipient_certificate, verdict.sender_certificate) for record, verdict in sound]
    numbers = store.admit(unit, proofs, now)
    for record, _ in sound:
        told.append(of_deposit(EventType.DEPOSIT_AVAILABLE, record, now, sequence=numbers[record.id]))
        ring(unit, record)
    return {record.id: Validated(record.id, DepositState.AVAILABLE, sequence=numbers[record.id]) for record, _ in sound}


def _reject(
    unit: Unit, refused: Sequence[tuple[DepositRecord, KeymailboxError]], told: list[Event], now: datetime
) -> Mapping[DepositId, Validated]:
    reasons = [(record, error.code, str(error)[:_RECORDED_DETAIL]) for record, error in refused]
    store.reject(unit, reasons, now)
    for record, error in refused:
        happened = of_deposit(EventType.DEPOSIT_REJECTED, record, now, code=error.code, rule=error.rule or None)
        told.append(to_sender(happened, record))
        ring(unit, record)
    return {record.id: Validated(record.id, DepositState.REJECTED, code=error.code) for record, error in refused}


def _supersede(
    unit: Unit,
    successors: Sequence[DepositRecord],
    held: Mapping[DepositId, DepositState],
    told: list[Event],
    now: datetime,
) -> None:
    if not held:
        return
    # What became of an old one meanwhile stands, and the first successor wins.
    open_still = {record.id: record for record in deposit_store.many(unit, sorted(held))}
    for record in successors:
        old = open_still.pop(record.supersedes, None) if record.supersedes else None
        if old is None:
            continue
        deposit_store.move(unit, {old.id: held[old.id]}, DepositState.SUPERSEDED, now=now, superseded_by=record.id)
        told.append(of_deposit(EventType.DEPOSIT_SUPERSEDED, old, now, superseded_by=record.id))
        ring(unit, old)


def _as_stored(record: DepositRecord) -> Validated:
    return Validated(record.id, record.state, record.sequence, record.rejected_code)
