"""Decide on one deposit: check the sender under its pin, unwrap, store for good, and only then sign a receipt."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from pki.core.deposits import UnverifiedDeposit, open_deposit, parse_deposit
from pki.core.errors import (
    ConflictError,
    ExpiredError,
    KeymailboxError,
    MalformedError,
    NotFoundError,
    PeriodError,
    ProfileError,
    RevokedError,
    SignatureError,
    StaleError,
    UnavailableError,
    UnwrapError,
    WrongPartyError,
)
from pki.core.ids import DepositId
from pki.core.keys import KeyAlgorithm, RsaAlgorithm
from pki.core.policy import check_handover, verify_deposit
from pki.core.receipts import ReceiptKind, RefusalReason, compose_receipt, compose_refusal
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind, parse_certificate
from pki.tenant.certificates import Certificates
from pki.tenant.directory import Directory, Peer
from pki.tenant.journal import Journal
from pki.tenant.messages import DepositView
from pki.tenant.ports import KeyHolder, KeyName
from pki.tenant.records.own import OwnCertificate
from pki.tenant.records.seen import Seen
from pki.tenant.records.taking import Taking

MAX_DEPOSIT = 64 * 1024 * 1024
"""Bytes; the server's own limit is lower."""

_SIGNED_BY_SENDER = "DEP-005"
_ABANDONED = timedelta(minutes=5)


@dataclass(frozen=True)
class Taken:
    """A deposit that was decided on: the key is stored and receipted, or it is refused and why."""

    deposit_id: DepositId
    sequence: int
    sender: Address
    name: KeyName | None
    kind: str
    reason: str
    size: int
    first_contact: bool
    altered: bool
    """It broke a rule that the server has checked: somebody changed it since."""


class HoldError(Exception):
    """A deposit stays undecided because of what this carries: that something is away is no reason to refuse."""

    def __init__(self, error: KeymailboxError) -> None:
        super().__init__(str(error))
        self.error = error


class Opener:
    """Opens deposits for one instance."""

    def __init__(
        self, journal: Journal, holder: KeyHolder, directory: Directory, certificates: Certificates, address: Address
    ) -> None:
        self._journal = journal
        self._holder = holder
        self._directory = directory
        self._certificates = certificates
        self._address = address

    def decide(self, view: DepositView, body: bytes, peers: dict[Address, Peer], now: datetime) -> tuple[Seen, Taken]:
        """Decide on a deposit and write the decision down; HoldError leaves it undecided.

        The order is what makes a kill harmless: that the key is good is written down, then the key is stored, then the
        decision, then the server is told. After a kill in between, `recovered` finds what was stored: it is receipted,
        whatever has become of deposit, sender and time. ``peers`` holds who was looked up in this round.
        """
        sha512 = hashlib.sha512(body).digest()
        sender, name, failed = view.sender, None, None
        try:
            deposit = parse_deposit(body, max_size=MAX_DEPOSIT)
            sender = deposit.context.sender
            name = self._open(deposit, view, sha512, peers, now)
        except UnavailableError as error:
            # Journal or holder: nothing of the deposit's.
            raise HoldError(error) from error
        except KeymailboxError as error:
            failed = error
        why = None if failed is None else _refusal(failed)
        answer = self._signed(view.id, sha512, why, now)
        kind = ReceiptKind.RECEIPT if why is None else ReceiptKind.REFUSAL
        reason = "" if why is None else f"{why.word}: {failed}"
        decided = Seen(view.id, view.sequence or 0, sender, sha512, kind.value, reason, answer)
        stands = self._journal.seen.decide(decided, now)
        return stands, Taken(
            deposit_id=view.id,
            sequence=stands.sequence,
            sender=sender,
            name=name if stands.kind == ReceiptKind.RECEIPT.value else None,
            kind=stands.kind,
            reason=stands.detail,
            size=len(body),
            first_contact=sender in peers and peers[sender].first_contact,
            altered=failed is not None and _is_altered(failed),
        )

    def recovered(self, now: datetime) -> list[Taken]:
        """Decide on what was found good and stored before somebody was killed; what was not stored is judged anew."""
        found = []
        for one in self._journal.taking.all():
            try:
                stored = one.alone and self._has(one.name)
            except KeymailboxError:
                continue
            if not stored:
                # Another process may be just about to store it.
                if now - one.noted_at > _ABANDONED:
                    self._journal.taking.drop(one.deposit_id)
                continue
            # Under a name that nobody had, and that nobody else was about to have: it is this deposit's key.
            answer = self._signed(one.deposit_id, one.sha512, None, now)
            kind = ReceiptKind.RECEIPT.value
            decided = Seen(one.deposit_id, one.sequence, one.sender, one.sha512, kind, "", answer)
            stands = self._journal.seen.decide(decided, now)
            self._journal.taking.drop(one.deposit_id)
            name = one.name if stands.kind == kind else None
            found.append(
                Taken(
                    one.deposit_id, one.sequence, one.sender, name, stands.kind, stands.detail, one.size, False, False
                )
            )
        return found

    def _signed(self, deposit_id: DepositId, sha512: bytes, why: RefusalReason | None, now: datetime) -> bytes:
        """Return the signed receipt, or the refusal and its reason."""
        signer = self._certificates.active(CertificateKind.IDENTITY).ski
        algorithm = self._holder.identity_public().algorithm
        if why is None:
            return compose_receipt(
                deposit_id,
                sha512,
                self._address,
                signer_ski=signer,
                sign=self._holder.sign,
                signing_time=now,
                algorithm=algorithm,
            )
        return compose_refusal(
            deposit_id,
            sha512,
            self._address,
            why,
            signer_ski=signer,
            sign=self._holder.sign,
            signing_time=now,
            algorithm=algorithm,
        )

    def _open(
        self,
        deposit: UnverifiedDeposit,
        view: DepositView,
        sha512: bytes,
        peers: dict[Address, Peer],
        now: datetime,
    ) -> KeyName:
        """Return the name under which the key is stored by now."""
        if deposit.id != view.id:
            raise ProfileError("The bytes are another deposit than the one listed", on=view.id)
        context = deposit.context
        if context.recipient != self._address:
            raise WrongPartyError("The deposit is for somebody else", on=str(context.recipient))
        peer = self._peer(context.sender, peers, now)
        own = {one.ski: one for one in self._journal.own.certificates(CertificateKind.ENCRYPTION.value)}
        # Retired certificates count: renewal must not strand what was under way.
        openable = {ski for ski in self._holder.encryption_skis() if ski in own}
        try:
            verified = verify_deposit(
                deposit,
                sender=peer.identity,
                crl=peer.crl,
                recipient_skis=openable,
                sha1_skis={
                    one.ski
                    for one in deposit.envelope.recipients
                    if one.algorithm is RsaAlgorithm.OAEP_SHA1 and one.ski in openable and _asks_for_sha1(own[one.ski])
                },
                now=now,
                max_age=None,
            )
        except StaleError as error:
            # From the future: one of the two clocks is wrong, and that passes.
            raise HoldError(error) from error
        ski = next(one.ski for one in deposit.envelope.recipients if one.ski in openable)
        if own[ski].state == "revoked":
            raise RevokedError("The deposit is wrapped for a certificate that we revoked", on=own[ski].fingerprint)
        name = KeyName(context.sender, context.key_id, context.key_version)
        material = open_deposit(verified, ski, lambda algorithm, text: self._decapsulate(ski, algorithm, text))
        check_handover(material, recipient=self._address, now=now)
        try:
            if not self._has(name):
                number = view.sequence or 0
                self._journal.taking.note(Taking(view.id, number, context.sender, sha512, name, view.size, now))
                # Another process may have stored a key of this name meanwhile; from here on none does.
                if self._has(name):
                    self._journal.taking.drop(view.id)
                else:
                    self._journal.taking.is_alone(view.id)
            self._holder.store_key(name, material)
        except ConflictError:
            raise
        except KeymailboxError as error:
            raise HoldError(error) from error
        except OSError as error:
            # Of a holder that says it in the machine's words: a disk that is full says nothing about the deposit.
            hint = "df -h, and who may write there"
            raise HoldError(UnavailableError("The key cannot be stored", on=str(error), hint=hint)) from None
        return name

    def _has(self, name: KeyName) -> bool:
        try:
            self._holder.load_key(name)
        except NotFoundError:
            return False
        return True

    def _peer(self, sender: Address, peers: dict[Address, Peer], now: datetime) -> Peer:
        """Return the sender under its pin; a revoked one is refused, one that cannot be judged now is waited for."""
        if sender not in peers:
            try:
                peers[sender] = self._directory.look_up(sender, now)
            except RevokedError:
                raise
            except KeymailboxError as error:
                raise HoldError(error) from error
        return peers[sender]

    def _decapsulate(self, ski: bytes, algorithm: KeyAlgorithm, ciphertext: bytes) -> bytes:
        try:
            return self._holder.decapsulate(ski, algorithm, ciphertext)
        except UnwrapError:
            raise
        except KeymailboxError as error:
            # A holder that is locked or away says nothing about the deposit.
            raise HoldError(error) from error


def _asks_for_sha1(one: OwnCertificate) -> bool:
    return parse_certificate(one.der).key_algorithm is RsaAlgorithm.OAEP_SHA1


def _is_altered(error: KeymailboxError) -> bool:
    return isinstance(error, (MalformedError, ProfileError, SignatureError)) or error.rule == _SIGNED_BY_SENDER


def _refusal(error: KeymailboxError) -> RefusalReason:
    if isinstance(error, UnwrapError):
        return RefusalReason.CANNOT_OPEN
    if isinstance(error, SignatureError) or error.rule == _SIGNED_BY_SENDER:
        return RefusalReason.BAD_SIGNATURE
    if isinstance(error, RevokedError):
        return RefusalReason.REVOKED
    if isinstance(error, WrongPartyError):
        return RefusalReason.WRONG_TARGET
    if isinstance(error, PeriodError):
        return RefusalReason.OUTSIDE_PERIOD
    if isinstance(error, ExpiredError):
        return RefusalReason.NOT_WANTED
    return RefusalReason.BAD_PACKAGE
