"""The SDK: one KMS instance of one tenant, with a typed method for everything that it does."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from pki.core import httpsig
from pki.core.crl import Reason
from pki.core.errors import NotFoundError, UsageError
from pki.core.ids import DepositId, Fingerprint, key_id
from pki.core.kem import Hkdf, KemAlgorithm
from pki.core.keyattributes import NOTHING_SAID, KeyAttributes
from pki.core.keys import KeyAlgorithm
from pki.core.packages import OCTETS, KeyMaterial, encode_package
from pki.core.signatures import SignatureAlgorithm
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind
from pki.tenant import rounds
from pki.tenant.authority import Authority
from pki.tenant.campaigns import Campaigns, Overview, Standing
from pki.tenant.certificates import Certificates
from pki.tenant.client import AccessKey, Client
from pki.tenant.contexts import Context
from pki.tenant.deposits import LIFETIME, Campaign, Delivery, Deposits
from pki.tenant.directory import Directory, Peer
from pki.tenant.enrolment import Invitation, Progress, enrol
from pki.tenant.holders.file import FileHolder
from pki.tenant.holders.passphrase import passphrase_from_environment, read_passphrase
from pki.tenant.journal import Journal
from pki.tenant.listening import Listener
from pki.tenant.mailbox import Mailbox, Received
from pki.tenant.messages import DepositView
from pki.tenant.opening import Opener
from pki.tenant.ports import Clock, KeyHolder, KeyName
from pki.tenant.receipts import Answers, Receipts
from pki.tenant.records.alarms import Alarm
from pki.tenant.records.own import OwnCertificate
from pki.tenant.records.pins import Pin
from pki.tenant.records.sent import Sent
from pki.tenant.rewrapping import Rewrapped, Rewrapping
from pki.tenant.rounds import Round as Round
from pki.tenant.rounds import Step

WAIT = 60.0
"""Seconds that a call waits for the server's workers."""
KEY_SIZE = 32


def utc_now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)


class Agent:
    """One instance, enrolled. Every method raises errors of the one family; all state is on the disk when it returns.

    Use it as a context manager, or close it. It is for one thread; several processes may work for one instance.
    """

    def __init__(
        self,
        context: Context,
        holder: KeyHolder,
        *,
        clock: Clock = utc_now,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Work for ``context`` with the keys in ``holder``; ``transport`` replaces the network."""
        self.context = context
        self.address: Address = context.address
        self.holder = holder
        self.journal = Journal(context.journal)
        self._clock = clock
        self._sleep = sleep
        access = AccessKey(httpsig.key_id(holder.access_public()), holder.sign_request)
        self.client = Client(context.server, access, clock, sleep=sleep, transport=transport)
        self.authority = Authority(self.client, self.journal, context.root, context.issuing)
        self.directory = Directory(self.client, self.journal, self.authority, context.root)
        self._certificates = Certificates(
            self.client, self.journal, holder, self.address, context.root, self.authority, clock, sleep
        )
        parts = (self.directory, self._certificates, self.address)
        self._deposits = Deposits(self.client, self.journal, holder, *parts)
        self._mailbox = Mailbox(self.client, self.journal, Opener(self.journal, holder, *parts), self.address)
        self._rewrapping = Rewrapping(self.journal, holder, self.directory, self._deposits)
        self._campaigns = Campaigns(self.journal, holder, self._deposits, self.address)
        self._receipts = Receipts(self.client, self.journal, self.directory)

    @classmethod
    def enroll(
        cls,
        address: Address,
        *,
        server: str,
        invitation: Invitation,
        name: str | None = None,
        home: Path | None = None,
        holder: KeyHolder | None = None,
        passphrase_file: Path | None = None,
        root_fingerprint: str | None = None,
        allow_http: bool = False,
        algorithm: KeyAlgorithm = KemAlgorithm.COMPOSITE,
        identity: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65,
        wait: float = WAIT,
        progress: Progress = lambda done, on: None,
        clock: Clock = utc_now,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx2.BaseTransport | None = None,
    ) -> Self:
        """Enrol with an invitation, publish the first encryption key, and open the new context (see ``enrolment``)."""
        context = enrol(
            address,
            server=server,
            invitation=invitation,
            name=name,
            base=home,
            holder=holder,
            passphrase_file=passphrase_file,
            root_fingerprint=root_fingerprint,
            allow_http=allow_http,
            algorithm=algorithm,
            identity=identity,
            wait=wait,
            clock=clock,
            progress=progress,
            sleep=sleep,
            transport=transport,
        )
        return cls(context, holder or file_holder(context), clock=clock, sleep=sleep, transport=transport)

    @classmethod
    def open(cls, context: Context, *, clock: Clock = utc_now, transport: httpx2.BaseTransport | None = None) -> Self:
        """Open an enrolled context with its file holder."""
        if not context.enrolled:
            hint = f"kmb enroll {context.address} --server {context.server} --invitation FILE"
            raise NotFoundError("The enrolment was not finished", on=context.name, hint=hint)
        return cls(context, file_holder(context), clock=clock, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of connections and the journal."""
        self.client.close()
        self.journal.close()

    # Certificates

    def publish(
        self, algorithm: KeyAlgorithm = KemAlgorithm.COMPOSITE, *, kdf: Hkdf = Hkdf.SHA256, wait: float = WAIT
    ) -> OwnCertificate:
        """Publish a new encryption key; the earlier one opens what is under way. ``kdf``: senders' choice for a KEM."""
        if self._certificates.is_under_way(CertificateKind.IDENTITY):
            # The server may have the next identity certificate already, and takes no request that names the one before.
            self.renew(CertificateKind.IDENTITY, wait=wait)
        return self._certificates.finish(self._certificates.encryption_request(algorithm, kdf), wait=wait)

    def renew(self, kind: CertificateKind, *, wait: float = WAIT) -> OwnCertificate:
        """Get a new certificate for the same identity or access key; an encryption key is not used again."""
        if kind is CertificateKind.ENCRYPTION:
            algorithm, kdf = self._certificates.suite()
            return self.publish(algorithm, kdf=kdf, wait=wait)
        return self._certificates.finish(self._certificates.same_key_request(kind), wait=wait)

    def renew_due(self, *, wait: float = WAIT) -> list[OwnCertificate]:
        """Renew what is missing or in the last third of its life, with the algorithm and preference that it has."""
        now = self._clock()
        renewed = []
        for kind in (CertificateKind.IDENTITY, CertificateKind.ACCESS, CertificateKind.ENCRYPTION):
            if self._certificates.due(kind, now):
                renewed.append(self.renew(kind, wait=wait))
        return renewed

    def revoke(self, fingerprint: Fingerprint, reason: Reason) -> None:
        """Revoke one of our certificates. What is undelivered waits until we publish another."""
        self._certificates.revoke(fingerprint, reason)

    def revoked_by_others(self) -> list[Alarm]:
        """Return an alarm for each certificate of ours that somebody else revoked."""
        return self._certificates.revoked(self._clock())

    def certificates(self, kind: CertificateKind | None = None) -> list[OwnCertificate]:
        """Return our certificates, newest first."""
        return self.journal.own.certificates(kind.value if kind else None)

    def waiting(self) -> dict[Fingerprint, int]:
        """Return what waits under the key of each of our certificates, as the server says; 0 is drained."""
        return self._certificates.waiting()

    # Peers

    def peer(self, address: Address) -> Peer:
        """Look a peer up with every check; the first time pins its identity key."""
        return self.directory.look_up(address, self._clock())

    def pins(self) -> list[Pin]:
        """Return whom we have pinned."""
        return self.journal.pins.all()

    def confirm_peer(self, address: Address, fingerprint: str | None = None, *, accept: bool = False) -> Pin:
        """Confirm a peer's identity key, see `Directory.confirm`."""
        return self.directory.confirm(address, fingerprint, accept=accept, now=self._clock())

    # Keys

    def create_key(
        self,
        name: str,
        key: bytes | None = None,
        *,
        media_type: str = OCTETS,
        attributes: KeyAttributes = NOTHING_SAID,
        version: int | None = None,
    ) -> KeyName:
        """Keep a key of ours: ``key``, or 32 random bytes. Without ``version``, the next one."""
        identifier = key_id(name)
        number = version if version is not None else self._campaigns.newest(identifier) + 1
        if not 1 <= number < 1 << 31:
            raise UsageError("A key version is from 1 to 2147483647", on=str(number))
        full = KeyName(self.address, identifier, number)
        material = KeyMaterial(key or secrets.token_bytes(KEY_SIZE), media_type, attributes)
        # What cannot be sent is refused before it is kept.
        encode_package(material)
        self.holder.store_key(full, material)
        return full

    def shared_keys(self) -> Sequence[KeyName]:
        """Return the names of all keys in the holder, ours and received ones."""
        return self.holder.shared_keys()

    def find_key(self, name: str, *, version: int | None = None, owner: Address | None = None) -> KeyName:
        """Return a key's full name: our own comes first, and the newest version; UsageError when it is ambiguous."""
        found = [one for one in self.holder.shared_keys() if one.key_id == name and one.owner == (owner or one.owner)]
        found = [one for one in found if version in (None, one.version)]
        if not found:
            raise NotFoundError("There is no such key in this holder", on=name, hint="kmb key list")
        own = [one for one in found if one.owner == self.address]
        if not own and len({one.owner for one in found}) > 1:
            owners = sorted({str(one.owner) for one in found})
            raise UsageError("Several peers sent a key of this name", on=", ".join(owners), hint=f"--owner {owners[0]}")
        return max(own or found, key=lambda one: one.version)

    def load_key(self, name: KeyName) -> KeyMaterial:
        """Return a key in the clear."""
        return self.holder.load_key(name)

    def send_key(
        self,
        name: KeyName,
        to: Sequence[Address],
        *,
        purpose: str = "",
        lifetime: timedelta = LIFETIME,
        allow_classical: bool = False,
        wait: float = WAIT,
    ) -> Campaign:
        """Wrap a key for each recipient and deposit it; waits until the server has validated it.

        For a classical key only with ``allow_classical``, remembered for wrapping again and for the next versions.
        Raises ConflictError for a version whose rotation was interrupted before it was decided who gets it.
        """
        self._campaigns.check_sendable(name)
        now, classical = self._clock(), to if allow_classical else ()
        return self._deposits.send(
            name, to, purpose=purpose, lifetime=lifetime, now=now, wait=wait, classical=classical
        )

    def rotate_key(
        self,
        name: str,
        *,
        except_: Collection[str] = (),
        key: bytes | None = None,
        attributes: KeyAttributes | None = None,
        purpose: str = "",
        lifetime: timedelta = LIFETIME,
        deadline: datetime | None = None,
        allow_classical: bool = False,
        wait: float = WAIT,
    ) -> Campaign:
        """Make the next version of a key of ours, and send it to all its holders but ``except_``, who are none then.

        ``except_`` names tenants or addresses; what is still on its way to them is taken back. Interrupted, the same
        call goes on with the same version. By ``deadline`` all should have signed for it: both ends hear who has not.
        A key of another media type than raw bytes needs its next ``key``.
        Without ``attributes``, algorithm, purpose and the receivers that stay are the old version's, without periods.
        """
        return self._campaigns.rotate(
            name,
            except_=except_,
            key=key,
            attributes=attributes,
            purpose=purpose,
            lifetime=lifetime,
            deadline=deadline,
            allow_classical=allow_classical,
            now=self._clock(),
            wait=wait,
        )

    def overviews(self) -> list[Overview]:
        """Return our keys that were sent to somebody, at their newest version, and how many recipients stand where."""
        return self._campaigns.overviews(self._clock())

    def standings(self, name: str, *, ask: bool = True) -> list[Standing]:
        """Return where each recipient of a key of ours stands; with ``ask`` the server is asked about open deposits."""
        return (self._campaigns.refresh if ask else self._campaigns.standings)(name, self._clock())

    def sent(self, name: str | None = None) -> list[Sent]:
        """Return our deposits, oldest first."""
        return self.journal.sent.all() if name is None else self.journal.sent.of_key(self.address, key_id(name))

    def withdraw(self, deposit: DepositId) -> Delivery:
        """Take back a deposit that was not collected yet."""
        return self._deposits.withdraw(deposit)

    def resume(self) -> Campaign | None:
        """Hand over what was planned and interrupted; None when there is nothing."""
        return self._deposits.resume(self._clock())

    def rewrap_quarantined(self) -> Rewrapped:
        """Wrap deposits again for the recipients' new certificates; see `Rewrapping`."""
        return self._rewrapping.run(self._clock())

    # Mailbox and receipts

    def mailbox(self) -> list[DepositView]:
        """Return every deposit that the server shows in our mailbox."""
        return self._mailbox.listed()

    def receive(self, *, wait: float = 0) -> Received:
        """Take everything new out of the mailbox; ``wait``: seconds to wait when there is nothing."""
        return self._mailbox.receive(self._clock, wait=wait)

    def receipts(self) -> Answers:
        """Fetch and verify the answers to what we sent."""
        return self._receipts.fetch(self._clock())

    def alarms(self) -> list[Alarm]:
        """Return what a person has to look at."""
        return self.journal.alarms.all()

    def note_alarms(self) -> None:
        """A person took note of all alarms."""
        self.journal.alarms.note(self._clock())

    # All of it, again and again

    def run(
        self,
        *,
        once: bool = False,
        interval: float = 60,
        stream: bool = True,
        stop: Callable[[], bool] = lambda: False,
        alive: Callable[[], None] = lambda: None,
    ) -> Iterator[Round]:
        """Do all that is due, ``once``; or round by round as events ask for it, until ``stop``.

        What no event asked for is looked at about every ``interval`` seconds. Without ``stream`` the server is asked
        by long polls. ``alive`` is called as long as we are not stuck.
        """
        steps = self._steps(stop)
        if once:
            yield rounds.once(steps, self._clock())
            return
        self.client.alive, self.client.stopping = alive, stop
        news = Listener(self.client, self.journal, self.address, self._sleep, stream=stream)
        try:
            scale = interval / rounds.EVERY["receive"]
            yield from rounds.run(steps, news, clock=self._clock, scale=scale, stop=stop, alive=alive)
        finally:
            news.close()
            self.client.alive, self.client.stopping = lambda: None, None

    def _steps(self, stop: Callable[[], bool]) -> Mapping[str, Step]:
        """Return what there is to do, in its order, and where a round writes down what came of it."""
        return {
            "revocations": ("revoked", self.revoked_by_others),
            "renew": ("renewed", self.renew_due),
            "reminders": ("reminders", self._certificates.reminders),
            "resume": ("resumed", self.resume),
            "campaigns": ("rotated", lambda: self._campaigns.tend(self._clock())),
            "receive": ("received", lambda: self._mailbox.receive(self._clock, stop=stop)),
            "receipts": ("answers", self.receipts),
            "rejections": ("rejected", self._rewrapping.hear_of_rejected),
            "rewrap": ("rewrapped", self.rewrap_quarantined),
            # Last: what could be mended is none.
            "alarms": ("overdue", lambda: self._campaigns.alarms(self._clock())),
        }


def file_holder(context: Context) -> FileHolder:
    """Return a context's file holder, opened by KMB_PASSPHRASE_FILE, the file that the context names, or its own."""
    path: Path = passphrase_from_environment() or context.passphrase_file or context.key_file
    return FileHolder(context.keys, read_passphrase(path))
