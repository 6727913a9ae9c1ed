"""Our own certificates: ask for one, prove that it opens, renew, revoke; each step can be interrupted and taken up."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from pki.core import envelope, links, oids, signatures
from pki.core.capabilities import Capabilities, prefer
from pki.core.certificates import VerifiedCertificate, check_listed, proof_of_decryption, renewal_due
from pki.core.crl import Reason
from pki.core.errors import CertificateError, NotFoundError, ProfileError, UnavailableError
from pki.core.ids import Fingerprint, RequestId, request_id
from pki.core.kem import Hkdf, KemAlgorithm
from pki.core.keys import KeyAlgorithm, parse_spki
from pki.core.keys import spki as key_spki
from pki.core.requests import Statement, access_request, encryption_request, identity_request, parse_request
from pki.core.revocations import compose_revocation
from pki.core.signatures import SignatureAlgorithm, VerifyingKey
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind, parse_certificate
from pki.tenant.authority import Authority
from pki.tenant.client import Client
from pki.tenant.journal import Journal
from pki.tenant.messages import ExpiringView, RequestView, printable
from pki.tenant.ports import Clock, KeyHolder
from pki.tenant.records.alarms import Alarm
from pki.tenant.records.marks import REMINDERS
from pki.tenant.records.own import OwnCertificate, OwnRequest

_MOST_PAGES = 20
REQUEST_LIFETIME = timedelta(hours=46)
"""A request is an endorsement for 48 hours only; an older one that is still open is made anew."""
_AHEAD = timedelta(minutes=5)
"""And so is one from the future, when a clock was wrong."""


class Certificates:
    """The certificates of one instance."""

    def __init__(
        self,
        client: Client,
        journal: Journal,
        holder: KeyHolder,
        address: Address,
        root: bytes,
        authority: Authority,
        clock: Clock,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._journal = journal
        self._holder = holder
        self._address = address
        self._root = root
        self._authority = authority
        self._clock = clock
        self._sleep = sleep

    def same_key_request(self, kind: CertificateKind) -> OwnRequest:
        """Return a request for the identity or access key that we have: that under way, or a new one, written down."""
        return self.access_request() if kind is CertificateKind.ACCESS else self.identity_request()

    def access_request(self) -> OwnRequest:
        """Return a request for an access certificate, as `same_key_request` does."""
        open_request = self._under_way(CertificateKind.ACCESS)
        if open_request is not None:
            return open_request
        spki, sign = self._access_key().spki, self._holder.sign_request
        der = access_request(self._address, spki, sign=sign, signing_time=self._clock())
        return self._write_down(CertificateKind.ACCESS, der, b"")

    def identity_request(self) -> OwnRequest:
        """Return a request for an identity certificate: the one under way, or a new one, written down."""
        open_request = self._under_way(CertificateKind.IDENTITY)
        if open_request is not None:
            return open_request
        key = self._holder.identity_public()
        der = identity_request(
            self._address,
            key.spki,
            sign=self._holder.sign,
            signing_time=self._clock(),
            algorithm=key.algorithm,
        )
        return self._write_down(CertificateKind.IDENTITY, der, b"")

    def encryption_request(self, algorithm: KeyAlgorithm, kdf: Hkdf = Hkdf.SHA256) -> OwnRequest:
        """Return a request for an encryption certificate: the one under way, or one for a new key, written down.

        ``kdf`` is what others shall derive with; AlgorithmError when ``algorithm`` has no such choice.
        """
        preferred = prefer(algorithm, kdf)
        identity = parse_certificate(self.active(CertificateKind.IDENTITY).der)
        statement = Statement(identity.issuer_der, identity.serial)
        open_request = self._under_way(CertificateKind.ENCRYPTION)
        if open_request is not None:
            if _asks_for(open_request, algorithm, preferred, statement):
                return open_request
            # Who asks for another kind of key does not get the earlier one: the server may have held that back. And
            # one that names an identity certificate which was renewed meanwhile is not taken any more.
            self._journal.own.reject_request(open_request.id)
        key = self._holder.create_encryption(algorithm)
        spki = key_spki(key.algorithm, key.public_key)
        der = encryption_request(
            self._address,
            spki,
            statement,
            sign=self._holder.sign,
            signing_time=self._clock(),
            algorithm=self._holder.identity_public().algorithm,
            capabilities=preferred,
        )
        return self._write_down(CertificateKind.ENCRYPTION, der, key.ski)

    def finish(self, request: OwnRequest, *, wait: float, submit: bool = True) -> OwnCertificate:
        """Submit a request and see it through; UnavailableError when it is not done after ``wait`` seconds."""
        if submit:
            self._client.submit_request(request.der)
        deadline = self._clock() + timedelta(seconds=wait)
        while True:
            left = (deadline - self._clock()).total_seconds()
            view = self._client.request(request.id, wait=max(left, 0))
            if view.state == "rejected":
                self._journal.own.reject_request(request.id)
                raise CertificateError("The request was rejected", on=view.reason or request.id, hint="kmb cert renew")
            done = self._take(request, view)
            if done is not None:
                return done
            if left <= 0:
                raise UnavailableError(
                    "The certificate is still under way",
                    on=f"request {request.id[:16]}, {view.state}",
                    hint="kmb agent run --once takes it up again",
                )
            self._sleep(min(0.1, left))

    def active(self, kind: CertificateKind) -> OwnCertificate:
        """Return our active certificate of a kind, or raise NotFoundError."""
        found = self._journal.own.active(kind.value)
        if found is None:
            raise NotFoundError(
                f"There is no active {kind.value} certificate", on=str(self._address), hint=_RENEW[kind]
            )
        return found

    def suite(self) -> tuple[KeyAlgorithm, Hkdf]:
        """Return what our encryption key is for and prefers: that of the active certificate, else the default."""
        found = self._journal.own.active(CertificateKind.ENCRYPTION.value)
        if found is None:
            return KemAlgorithm.COMPOSITE, Hkdf.SHA256
        parsed = parse_certificate(found.der)
        return parsed.key_algorithm, parsed.capabilities.kdf if parsed.capabilities else Hkdf.SHA256

    def due(self, kind: CertificateKind, now: datetime) -> bool:
        """Say whether a certificate should be renewed: it is missing or over, or two thirds of its life are.

        One that lasts as long as the issuing CA is kept until there is another CA: a new one would last no longer. An
        access certificate is for who wants one, and so it is renewed, but not missed.
        """
        found = self._journal.own.active(kind.value)
        if found is None:
            return kind is not CertificateKind.ACCESS
        if found.not_after <= now:
            return True
        if now < renewal_due(found.not_before, found.not_after):
            return False
        current = self._authority.shown(now)[0]
        return links.parse(current).not_after > found.not_after

    def waiting(self, *, attempts: int = 2) -> dict[Fingerprint, int]:
        """Return how many deposits wait under the key of each of our certificates, as the server says."""
        return {one.fingerprint: one.waiting for one in self._client.own_certificates(attempts=attempts)}

    def reminders(self) -> list[ExpiringView]:
        """Return what the server reminds of since the last time, as far as it is about certificates still in use."""
        found: list[ExpiringView] = []
        for _ in range(_MOST_PAGES):
            after = self._journal.marks.number(REMINDERS)
            page, following = self._client.reminders(after=after)
            found += page
            if following <= after:
                break
            self._journal.marks.set(REMINDERS, str(following))
        in_use = {one.fingerprint for one in self._journal.own.certificates() if one.state == "active"}
        return [one for one in found if one.fingerprint in in_use]

    def revoked(self, now: datetime) -> list[Alarm]:
        """Raise the alarm for each certificate of ours that somebody else has revoked, with who and why as told.

        One that stands on the revocation list as well is used no more, so that a new one is asked for.
        """
        mine = {one.fingerprint: one for one in self._journal.own.certificates() if one.state != "revoked"}
        gone = [one for one in self._client.own_certificates() if one.state == "revoked" and one.fingerprint in mine]
        found = []
        for one in gone:
            said = f"the {mine[one.fingerprint].kind} certificate was revoked by {one.revoked_by or 'somebody'}"
            detail = printable(said + (f": {one.because}" if one.because else ""))
            found.append(self._journal.alarms.sound("revoked", one.fingerprint, detail, now))
            if self._is_listed(mine[one.fingerprint], now):
                self._journal.own.mark_revoked(one.fingerprint)
        return found

    def revoke(self, fingerprint: Fingerprint, reason: Reason) -> None:
        """Revoke one of our certificates."""
        known = {one.fingerprint: one for one in self._journal.own.certificates()}
        if fingerprint not in known:
            raise NotFoundError("This is not a certificate of ours", on=fingerprint, hint="kmb cert list")
        signer = self.active(CertificateKind.IDENTITY)
        revocation = compose_revocation(
            fingerprint,
            reason,
            signer_ski=signer.ski,
            sign=self._holder.sign,
            signing_time=self._clock(),
            algorithm=self._holder.identity_public().algorithm,
        )
        self._client.revoke(fingerprint, revocation)
        self._journal.own.mark_revoked(fingerprint)

    def _is_listed(self, one: OwnCertificate, now: datetime) -> bool:
        parsed = parse_certificate(one.der)
        return parsed.serial in self._authority.crl(self._authority.issuer(parsed, now), now).revoked

    def _take(self, request: OwnRequest, view: RequestView) -> OwnCertificate | None:
        """Return the certificate once it is there; an encryption certificate first has to be opened."""
        if request.kind != CertificateKind.ENCRYPTION.value:
            return None if view.certificate is None else self._keep(request, view.certificate)
        if view.certificate is None and view.challenge is None:
            return None
        der = view.certificate if view.challenge is None else self._opened(request, view.challenge)
        if der is None:
            return None
        # Checked before it is proved: what is wrong shall not become active.
        self._check(request, der)
        if view.certificate is None:
            self._client.prove(request.id, proof_of_decryption(der))
        return self._keep(request, der)

    def _opened(self, request: OwnRequest, challenge: bytes) -> bytes:
        parsed = envelope.parse(challenge)
        if parsed.content_type != oids.DATA:
            raise ProfileError("The encrypted certificate has an unexpected content type", on=request.id)
        return envelope.unwrap(
            parsed, request.ski, lambda algorithm, text: self._holder.decapsulate(request.ski, algorithm, text)
        )

    def _keep(self, request: OwnRequest, der: bytes) -> OwnCertificate:
        parsed = self._check(request, der).parsed
        certificate = OwnCertificate(
            parsed.fingerprint, request.kind, der, parsed.ski, parsed.not_before, parsed.not_after
        )
        self._journal.own.add_certificate(certificate, request.id, self._clock())
        self._authority.rely(parsed)
        return certificate

    def _check(self, request: OwnRequest, der: bytes) -> VerifiedCertificate:
        access = request.kind == CertificateKind.ACCESS.value
        now = self._clock()
        issuing = self._authority.issuer(parse_certificate(der), now)
        return check_listed(
            der,
            request.der,
            address=self._address,
            kind=CertificateKind(request.kind),
            identity_key=self._access_key() if access else self._holder.identity_public(),
            issuing_der=issuing,
            root_der=self._root,
            crl=None,
            now=now,
        )

    def _access_key(self) -> VerifyingKey:
        return signatures.from_raw(self._holder.access_public(), SignatureAlgorithm.ED25519)

    def is_under_way(self, kind: CertificateKind) -> bool:
        """Tell whether a request was written down and has not come to its end."""
        return self._under_way(kind) is not None

    def _under_way(self, kind: CertificateKind) -> OwnRequest | None:
        found = self._journal.own.open_request(kind.value)
        if found is None:
            return None
        signed = parse_request(found.der).signing_time
        # One of a clock that was ahead is not taken before that time comes.
        if signed is None or not -_AHEAD <= self._clock() - signed <= REQUEST_LIFETIME:
            self._journal.own.reject_request(found.id)
            return None
        return found

    def _write_down(self, kind: CertificateKind, der: bytes, ski: bytes) -> OwnRequest:
        request = OwnRequest(RequestId(request_id(der)), kind.value, der, ski)
        self._journal.own.add_request(request, self._clock())
        return request


def _asks_for(
    request: OwnRequest, algorithm: KeyAlgorithm, preferred: Capabilities | None, statement: Statement
) -> bool:
    asked = parse_request(request.der)
    found, _ = parse_spki(asked.spki)
    return (found.oid, asked.capabilities, asked.statement) == (algorithm.oid, preferred, statement)


_RENEW = {
    CertificateKind.IDENTITY: "kmb cert renew --kind identity",
    CertificateKind.ENCRYPTION: "kmb cert renew",
    CertificateKind.ACCESS: "kmb cert renew --kind access",
}
