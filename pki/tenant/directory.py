"""Look-up of a peer with every check: no key that the server names is used before it has passed them all."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from pki.core.certificates import VerifiedCertificate, check_listed
from pki.core.crl import Crl, verify_crl
from pki.core.errors import (
    CertificateError,
    KeymailboxError,
    NotFoundError,
    PinError,
    StaleError,
    WrongPartyError,
)
from pki.core.signatures import VerifyingKey
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind, identity_public_key, parse_certificate
from pki.tenant.client import Client
from pki.tenant.journal import Journal
from pki.tenant.messages import Listed, Listing
from pki.tenant.records.marks import CRL
from pki.tenant.records.pins import Pin, identity_fingerprint

CRL_MAX_AGE = timedelta(hours=48)
"""A revocation list older than this is not believed, whatever it says of itself."""


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

    def __init__(self, client: Client, journal: Journal, root: bytes) -> None:
        """Look up through ``client``; ``root`` is the root certificate pinned at enrolment, in DER."""
        self._client = client
        self._journal = journal
        self._root = root

    def look_up(self, address: Address, now: datetime) -> Peer:
        """Return a peer, or raise what failed: chain, validity, revocation, address, endorsement, or the pin.

        At first contact the identity key is pinned. A key other than the pinned one raises PinError.
        """
        listing = self._listing(address)
        crl = self._crl(listing.issuing, now)
        offered = self._offered_key(listing.identity)
        pin = self._journal.pins.of(address)
        trusted = pin.identity_key if pin else offered
        if trusted != offered:
            raise self._changed(address, trusted, offered)
        identity = self._check(listing, listing.identity, CertificateKind.IDENTITY, trusted, crl, now)
        encryption = None
        if listing.encryption is not None:
            encryption = self._check(listing, listing.encryption, CertificateKind.ENCRYPTION, trusted, crl, now)
        # Only now is the list's signer known to be under our root, so only now may its number count.
        self._count(crl)
        self._demand_newest(identity, encryption)
        kept = pin or self._journal.pins.first(address, trusted, now)
        if kept.identity_key != trusted:
            raise self._changed(address, kept.identity_key, trusted)
        return Peer(address, kept, identity, encryption, crl, first_contact=pin is None)

    def offered_identity(self, address: Address, now: datetime) -> tuple[VerifyingKey, VerifiedCertificate]:
        """Return the identity key that the server offers, checked in everything but the pin: for a person to judge."""
        listing = self._listing(address)
        crl = self._crl(listing.issuing, now)
        offered = self._offered_key(listing.identity)
        identity = self._check(listing, listing.identity, CertificateKind.IDENTITY, offered, crl, now)
        self._count(crl)
        return offered, identity

    def encryption_of(self, peer: Peer) -> VerifiedCertificate:
        """Return what to wrap for, or raise NotFoundError."""
        if peer.encryption is None:
            raise NotFoundError(
                "The recipient has no encryption certificate that is active",
                on=str(peer.address),
                hint=f"ask {peer.address.tenant} to run: kmb cert renew",
            )
        return peer.encryption

    def crl(self, issuing: bytes, now: datetime) -> Crl:
        """Return the revocation list under an issuing certificate that is known to be good."""
        crl = self._crl(issuing, now)
        self._count(crl)
        return crl

    def _listing(self, address: Address) -> Listing:
        listing = self._client.listing(address)
        if listing.address != address:
            raise WrongPartyError(
                "The directory answered about somebody else", on=f"asked for {address}, got {listing.address}"
            )
        return listing

    def _check(
        self,
        listing: Listing,
        listed: Listed,
        kind: CertificateKind,
        identity_key: VerifyingKey,
        crl: Crl,
        now: datetime,
    ) -> VerifiedCertificate:
        try:
            return check_listed(
                listed.certificate,
                listed.request,
                address=listing.address,
                kind=kind,
                identity_key=identity_key,
                issuing_der=listing.issuing,
                root_der=self._root,
                crl=crl,
                now=now,
            )
        except KeymailboxError as error:
            error.on = error.on or f"{kind.value} certificate of {listing.address}"
            error.hint = error.hint or f"kmb peer show {listing.address}; do not send until this is explained"
            raise

    def _crl(self, issuing: bytes, now: datetime) -> Crl:
        """Return the list, signed, fresh, and not older than the newest we saw; fail closed without one."""
        der = self._client.crl()
        hint = "tell the operator; until there is a fresh list, nothing is wrapped"
        if der is None:
            raise StaleError("The server has no revocation list", hint=hint)
        crl = verify_crl(der, issuing_der=issuing, now=now)
        if now - crl.this_update > CRL_MAX_AGE:
            raise StaleError("The revocation list is too old", on=f"of {crl.this_update:%Y-%m-%d %H:%M}Z", hint=hint)
        if crl.number < self._journal.marks.number(CRL):
            raise StaleError(
                "The server shows an older revocation list than before",
                on=f"number {crl.number} after {self._journal.marks.number(CRL)}",
                hint=hint,
            )
        return crl

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

    def _count(self, crl: Crl) -> None:
        self._journal.marks.grow(CRL, crl.number)

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
