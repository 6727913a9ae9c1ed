"""Look-up of a peer with every check: no key that the server names is used before it has passed them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pki.core.certificates import VerifiedCertificate, check_listed
from pki.core.crl import Crl
from pki.core.errors import (
    CertificateError,
    KeymailboxError,
    NotFoundError,
    PinError,
    StaleError,
    UnknownRecipientError,
    WrongPartyError,
)
from pki.core.signatures import VerifyingKey
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind, identity_public_key, parse_certificate
from pki.tenant.authority import Authority
from pki.tenant.client import Client
from pki.tenant.journal import Journal
from pki.tenant.messages import Listed, Listing
from pki.tenant.records.pins import Pin, identity_fingerprint


@dataclass(frozen=True)
class Peer:
    """A peer that has passed every check."""

    address: Address
    pin: Pin
    identity: VerifiedCertificate
    encryption: VerifiedCertificate | None
    """What to wrap for; None while the peer has published nothing."""
    crl: Crl
    first_contact: bool
    """The identity key was pinned just now: nobody has confirmed it."""


class Directory:
    """The server's directory, seen through our own pins and the root that we enrolled under."""

    def __init__(self, client: Client, journal: Journal, authority: Authority, root: bytes) -> None:
        """Look up through ``client``; ``root`` is the root certificate pinned at enrolment, in DER."""
        self._client = client
        self._journal = journal
        self._authority = authority
        self._root = root

    def look_up(self, address: Address, now: datetime) -> Peer:
        """Return a peer, or raise what failed: chain, validity, revocation, address, endorsement, or the pin.

        At first contact the identity key is pinned. A key other than the pinned one raises PinError.
        """
        listing = self._listing(address)
        offered = self._offered_key(listing.identity)
        pin = self._journal.pins.of(address)
        trusted = pin.identity_key if pin else offered
        if trusted != offered:
            raise self._changed(address, trusted, offered)
        lists: dict[bytes, Crl] = {}
        identity = self._check(listing, listing.identity, CertificateKind.IDENTITY, trusted, lists, now)
        encryption = None
        if listing.encryption is not None:
            encryption = self._check(listing, listing.encryption, CertificateKind.ENCRYPTION, trusted, lists, now)
        self._keep(lists, identity, encryption)
        self._demand_newest(identity, encryption)
        kept = pin or self._journal.pins.first(address, trusted, now)
        if kept.identity_key != trusted:
            raise self._changed(address, kept.identity_key, trusted)
        return Peer(address, kept, identity, encryption, lists[identity.parsed.aki], first_contact=pin is None)

    def offered_identity(self, address: Address, now: datetime) -> tuple[VerifyingKey, VerifiedCertificate]:
        """Return the identity key that the server offers, checked in everything but the pin: for a person to judge."""
        listing = self._listing(address)
        offered = self._offered_key(listing.identity)
        lists: dict[bytes, Crl] = {}
        identity = self._check(listing, listing.identity, CertificateKind.IDENTITY, offered, lists, now)
        self._keep(lists, identity)
        return offered, identity

    def confirm(self, address: Address, fingerprint: str | None, *, accept: bool, now: datetime) -> Pin:
        """Confirm a peer's identity key: by the fingerprint that it told us, or by ``accept``.

        PinError when the fingerprint is another one, or when the key has changed and nobody accepts that.
        """
        offered, _ = self.offered_identity(address, now)
        shown = identity_fingerprint(offered)
        if fingerprint is not None and fingerprint.replace(":", "").replace(" ", "").lower() != shown:
            hint = f"do not send to {address}; ask {address.tenant} again for: kmb whoami"
            raise PinError("The fingerprint is another one", on=f"the server offers {shown}", hint=hint)
        pin = self._journal.pins.of(address)
        changed = pin is not None and pin.identity_key != offered
        if fingerprint is None and not accept:
            on = f"pinned {pin.fingerprint}, offered {shown}" if pin and changed else f"offered {shown}"
            hint = f"kmb peer verify {address} --fingerprint HEX (what {address.tenant} reads from: kmb whoami)"
            raise PinError("Nobody has confirmed the peer's identity key", on=on, hint=hint)
        return self._journal.pins.confirm(address, offered, now)

    def encryption_of(self, peer: Peer) -> VerifiedCertificate:
        """Return what to wrap for, or raise NotFoundError."""
        if peer.encryption is None:
            raise NotFoundError(
                "The recipient has no encryption certificate that is active",
                on=str(peer.address),
                hint=f"ask {peer.address.tenant} to run: kmb cert renew",
            )
        return peer.encryption

    def _listing(self, address: Address) -> Listing:
        try:
            listing = self._client.listing(address)
        except UnknownRecipientError:
            self._explain(address)
            raise
        if listing.address != address:
            raise WrongPartyError(
                "The directory answered about somebody else", on=f"asked for {address}, got {listing.address}"
            )
        return listing

    def _explain(self, address: Address) -> None:
        """Say why nobody is to be found who was there before; the history is the server's word, and only words here."""
        try:
            history = self._client.history(address)
        except KeymailboxError:
            return
        last = next((one for one in history if one.kind == CertificateKind.IDENTITY.value), None)
        if last is None:
            return
        ended, when = ("was revoked", last.revoked_at) if last.state == "revoked" else ("has ended", last.not_after)
        told = f" on {when:%Y-%m-%d}" if when else ""
        raise UnknownRecipientError(
            f"Nothing is sent there any more: the identity certificate {ended}{told}",
            on=str(address),
            hint=f"ask {address.tenant} which instance takes its place, then: kmb peer show {address.tenant}/OTHER",
        )

    def _check(
        self,
        listing: Listing,
        listed: Listed,
        kind: CertificateKind,
        identity_key: VerifyingKey,
        lists: dict[bytes, Crl],
        now: datetime,
    ) -> VerifiedCertificate:
        """Verify a certificate under its own issuing CA and that one's list, which is kept in ``lists``."""
        try:
            parsed = parse_certificate(listed.certificate)
            issuing = self._authority.issuer(parsed, now)
            told = {listed.issuing or listing.issuing}
            if kind is CertificateKind.IDENTITY:
                told.add(listing.issuing)
            if told != {issuing}:
                raise CertificateError(
                    "The directory names another issuing CA than the server shows", on=str(listing.address)
                )
            if parsed.aki not in lists:
                lists[parsed.aki] = self._authority.crl(issuing, now)
            return check_listed(
                listed.certificate,
                listed.request,
                address=listing.address,
                kind=kind,
                identity_key=identity_key,
                issuing_der=issuing,
                root_der=self._root,
                crl=lists[parsed.aki],
                now=now,
            )
        except KeymailboxError as error:
            error.on = error.on or f"{kind.value} certificate of {listing.address}"
            error.hint = error.hint or f"kmb peer show {listing.address}; do not send until this is explained"
            raise

    def _keep(self, lists: Mapping[bytes, Crl], *verified: VerifiedCertificate | None) -> None:
        # Only now are the lists' signers known to be under our root, so only now may their numbers count.
        for crl in lists.values():
            self._authority.count(crl)
        for one in verified:
            if one is not None:
                self._authority.rely(one.parsed)

    def _demand_newest(self, *shown: VerifiedCertificate | None) -> None:
        """Refuse what was endorsed before what we saw already: old keys must not come back (docs/adr/0010)."""
        for one in shown:
            if one is None or one.endorsed_at is None:
                continue
            name, seconds = f"endorsed {one.parsed.kind} {one.parsed.address}", int(one.endorsed_at.timestamp())
            if self._journal.marks.grow(name, seconds) > seconds:
                raise StaleError(
                    f"The directory shows an older {one.parsed.kind} certificate than before",
                    on=f"{one.parsed.address}, endorsed at {one.endorsed_at}",
                    hint=f"ask {one.parsed.address.tenant} to run: kmb cert renew; do not send until this is explained",
                )

    @staticmethod
    def _offered_key(identity: Listed) -> VerifyingKey:
        parsed = parse_certificate(identity.certificate)
        if parsed.kind is not CertificateKind.IDENTITY:
            raise CertificateError("The directory lists another kind of certificate as identity")
        return identity_public_key(parsed.spki)

    @staticmethod
    def _changed(address: Address, pinned: VerifyingKey, offered: VerifyingKey) -> PinError:
        return PinError(
            "The peer's identity key is not the one that was pinned",
            on=f"{address}: pinned {identity_fingerprint(pinned)}, offered {identity_fingerprint(offered)}",
            hint=f"ask {address.tenant} for the fingerprint by another way, then: kmb peer verify {address} --accept",
        )
