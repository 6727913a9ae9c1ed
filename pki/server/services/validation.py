"""Validation of deposits, by a worker that cannot open them: the only way from received to available."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from pki.core import policy
from pki.core.certificates import CertificateRecord, VerifiedCertificate
from pki.core.deposits import DepositState, UnverifiedDeposit, parse_deposit
from pki.core.errors import ConflictError, KeymailboxError, RevokedError, WrongPartyError
from pki.core.events import Event, EventType
from pki.core.ids import DepositId, Fingerprint
from pki.core.keys import RsaAlgorithm
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind
from pki.server.ports import CaChain, DepositRecord, NewDeposit
from pki.server.services import signers
from pki.server.services.deps import Deps
from pki.server.services.events import of_deposit
from pki.server.store import certificates as certificate_store
from pki.server.store import deposits as deposit_store
from pki.server.store import events as event_store
from pki.server.store.engine import Unit

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


def validate(deps: Deps, ids: Sequence[DepositId]) -> Mapping[DepositId, Validated | Exception]:
    """Validate received deposits: all that can be found out without the key.

    Signatures are verified outside of the transaction, then all verdicts are committed together. A deposit that is
    no longer ``received`` is left as it is, so a second delivery changes nothing. An exception in the answer is a
    fault of ours, not of the deposit: it stays ``received``.
    """
    now = deps.clock.now()
    chain = deps.chain
    with deps.store.read() as unit:
        records = deposit_store.many(unit, ids, with_body=True)
        pending = [record for record in records if record.state is DepositState.RECEIVED]
        skis = {ski for record in pending for ski in (record.sender_ski, record.recipient_ski)}
        certificates = {ski: certificate_store.by_ski(unit, ski) for ski in sorted(skis)}
    results: dict[DepositId, Validated | Exception] = {record.id: _as_stored(record) for record in records}
    keys = _Keys(certificates, chain, now)
    verdicts: dict[DepositId, _Sound | KeymailboxError] = {}
    for record in pending:
        try:
            verdicts[record.id] = _judge(record, keys, deps, now)
        except KeymailboxError as error:
            verdicts[record.id] = error
        except Exception as error:
            # One that trips us up must not hold up those that came with it.
            results[record.id] = error
    if verdicts:
        with deps.store.unit() as unit:
            results |= _settle(unit, pending, verdicts, now)
    return results


def as_new(parsed: UnverifiedDeposit, body: bytes, supersedes: DepositId | None, now: datetime) -> NewDeposit:
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

    def __init__(self, stored: Mapping[str, Sequence[CertificateRecord]], chain: CaChain, now: datetime) -> None:
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
        records = self._stored[ski]
        own = [record for record in records if record.address == address and record.kind is kind]
        if not own and (records or kind is CertificateKind.ENCRYPTION):
            # A key that nobody knows is not the recipient's either, and the sender need not learn which it is.
            return WrongPartyError("The key belongs to somebody else", on=str(address), rule=rule)
        try:
            return signers.verified(own, kind, self._chain, self._now, rule=rule)
        except KeymailboxError as error:
            return error


_Proved = tuple[CertificateRecord, VerifiedCertificate]


def _judge(record: DepositRecord, keys: _Keys, deps: Deps, now: datetime) -> _Sound:
    deposit = parse_deposit(record.body or b"", max_size=deps.settings.max_deposit_bytes)
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
    expected = as_new(deposit, record.body or b"", record.supersedes, record.received_at)
    row = {name: getattr(record, name) for name in NewDeposit.__dataclass_fields__ if name != "body"}
    if row != {name: getattr(expected, name) for name in row}:
        raise ConflictError("The stored deposit is not the one that was sent", on=record.id)


def _settle(
    unit: Unit, pending: Sequence[DepositRecord], verdicts: Mapping[DepositId, _Sound | KeymailboxError], now: datetime
) -> Mapping[DepositId, Validated]:
    # Certificates are held before deposits, as in a revocation: it either finds these available and quarantines
    # them, or is seen here.
    verified = [verdict for verdict in verdicts.values() if isinstance(verdict, _Sound)]
    fingerprints = {found for sound in verified for found in (sound.recipient_certificate, sound.sender_certificate)}
    held = {found: certificate_store.certificate(unit, found, lock=True) for found in sorted(fingerprints)}
    older = [record.supersedes for record in pending if record.supersedes is not None]
    current = {record.id: record for record in deposit_store.many(unit, [*verdicts, *older], lock=True)}
    sound: list[tuple[DepositRecord, _Sound]] = []
    results: dict[DepositId, Validated] = {}
    refused: list[tuple[DepositRecord, KeymailboxError]] = []
    for record in sorted((current[i] for i in verdicts), key=lambda record: (record.received_at, record.id)):
        verdict = verdicts[record.id]
        if record.state is not DepositState.RECEIVED:
            results[record.id] = _as_stored(record)
            continue
        if isinstance(verdict, KeymailboxError):
            refused.append((record, verdict))
            continue
        certificate = held[verdict.recipient_certificate]
        if certificate is None or not signers.usable(certificate):
            refused.append((record, RevokedError(on=str(record.recipient), rule="DEP-007")))
            continue
        certificate = held[verdict.sender_certificate]
        if certificate is None or not signers.usable(certificate):
            refused.append((record, RevokedError(on=str(record.sender), rule="DEP-006")))
            continue
        sound.append((record, verdict))
    told: list[Event] = []
    results |= _make_available(unit, sound, told, now)
    results |= _reject(unit, refused, told, now)
    _supersede(unit, [record for record, _ in sound], current, told, now)
    event_store.append(unit, told)
    return results


def _make_available(
    unit: Unit, sound: Sequence[tuple[DepositRecord, _Sound]], told: list[Event], now: datetime
) -> Mapping[DepositId, Validated]:
    numbers = deposit_store.assign_sequences(unit, [record.id for record, _ in sound]) if sound else {}
    groups: dict[_Sound, list[DepositId]] = defaultdict(list)
    for record, verdict in sound:
        groups[verdict].append(record.id)
        told.append(of_deposit(EventType.DEPOSIT_AVAILABLE, record, now, sequence=numbers[record.id]))
        ring(unit, record)
    for verdict, ids in groups.items():
        deposit_store.set_state(
            unit,
            ids,
            DepositState.AVAILABLE,
            now=now,
            certificate_fingerprint=verdict.recipient_certificate,
            sender_fingerprint=verdict.sender_certificate,
        )
    return {record.id: Validated(record.id, DepositState.AVAILABLE, sequence=numbers[record.id]) for record, _ in sound}


def _reject(
    unit: Unit, refused: Sequence[tuple[DepositRecord, KeymailboxError]], told: list[Event], now: datetime
) -> Mapping[DepositId, Validated]:
    groups: dict[tuple[str, str], list[DepositId]] = defaultdict(list)
    for record, error in refused:
        groups[error.code, str(error)[:_RECORDED_DETAIL]].append(record.id)
        happened = of_deposit(EventType.DEPOSIT_REJECTED, record, now, code=error.code, rule=error.rule or None)
        told.append(to_sender(happened, record))
        ring(unit, record)
    for (code, detail), ids in groups.items():
        deposit_store.set_state(unit, ids, DepositState.REJECTED, now=now, rejected_code=code, rejected_detail=detail)
    return {record.id: Validated(record.id, DepositState.REJECTED, code=error.code) for record, error in refused}


def _supersede(
    unit: Unit,
    successors: Sequence[DepositRecord],
    current: Mapping[DepositId, DepositRecord],
    told: list[Event],
    now: datetime,
) -> None:
    done: set[DepositId] = set()
    for record in successors:
        old = current.get(record.supersedes) if record.supersedes else None
        # What became of the old one meanwhile stands, and the first successor wins.
        if old is None or old.state is not DepositState.QUARANTINED or old.id in done:
            continue
        done.add(old.id)
        deposit_store.set_state(unit, [old.id], DepositState.SUPERSEDED, now=now, superseded_by=record.id)
        told.append(of_deposit(EventType.DEPOSIT_SUPERSEDED, old, now, superseded_by=record.id))
        ring(unit, old)


def _as_stored(record: DepositRecord) -> Validated:
    return Validated(record.id, record.state, record.sequence, record.rejected_code)
