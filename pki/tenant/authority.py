"""The server's CA, as one agent sees it: under the pinned root, remembered, and held to what it showed before."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from cryptography.x509 import load_der_x509_certificate

from pki.core.authorities import ca_key_identifier, issuer_of, verify_authorities
from pki.core.crl import Crl
from pki.core.errors import CertificateError, ExpiredError, StaleError
from pki.core.x509 import ParsedCertificate
from pki.tenant.client import Client
from pki.tenant.journal import Journal
from pki.tenant.lists import Lists
from pki.tenant.records.marks import CRL

CRL_MAX_AGE = timedelta(hours=48)
"""A revocation list older than this is not believed, whatever it says of itself."""
FRESH = timedelta(seconds=60)
"""How long the server's answer about its CA counts before it is asked again."""
_MOST = 32
"""Issuing CAs that are looked at; an honest server has one or two."""
_ASK = "ask the operator for: kmb-server ca list; do not send until this is explained"


class Authority:
    """Which issuing CAs may have issued what we see, and their revocation lists.

    What one agent sees it compares with what it saw before, not with what others see (docs/adr/0011).
    """

    def __init__(self, client: Client, journal: Journal, root: bytes, first: bytes | None = None) -> None:
        """``root`` is pinned, ``first`` the issuing CA at enrolment; without it all that are shown first are taken."""
        self._client = client
        self._journal = journal
        self._lists = Lists(client, journal)
        self._root = root
        self._first = first
        self._shown: tuple[datetime, tuple[bytes, ...]] | None = None

    def shown(self, now: datetime, *, anew: bool = False) -> tuple[bytes, ...]:
        """Return the certificates of the issuing CAs that the server shows, the current one first.

        Each is under the pinned root. A new one raises an alarm. Raises CertificateError where one is not, where the
        root is another, and where one is missing whose certificates are relied on: then nothing of it is taken.
        """
        if self._shown is None or anew or not timedelta(0) <= now - self._shown[0] < FRESH:
            self._shown = (now, self._ask(now))
        return self._shown[1]

    def issuer(self, certificate: ParsedCertificate, now: datetime) -> bytes:
        """Return the issuing CA that a certificate names, if the server shows it; raises CertificateError (CRT-007)."""
        try:
            return issuer_of(self.shown(now), certificate.aki)
        except CertificateError as error:
            if error.rule != "CRT-007":
                raise
        try:
            # A roll-over may have come since we asked.
            return issuer_of(self.shown(now, anew=True), certificate.aki)
        except CertificateError as error:
            error.hint = error.hint or _ASK
            raise

    def rely(self, certificate: ParsedCertificate) -> None:
        """Remember that a certificate has passed its checks: from now on its issuing CA must be shown."""
        self._journal.issuers.rely(certificate.aki, certificate.not_after)

    def crl(self, issuing: bytes, now: datetime) -> Crl:
        """Return an issuing CA's list: signed, fresh, and not older than the newest we saw; fail closed without one."""
        ski = ca_key_identifier(issuing)
        newest = self._newest(ski)
        hint = "tell the operator; until there is a fresh list, nothing is wrapped"
        crl = self._lists.newest(issuing, now, at_least=newest)
        if crl is None:
            raise StaleError("The server has no revocation list", on=_named(issuing), hint=hint)
        if now - crl.this_update > CRL_MAX_AGE:
            raise StaleError("The revocation list is too old", on=f"of {crl.this_update:%Y-%m-%d %H:%M}Z", hint=hint)
        if crl.number < newest:
            raise StaleError(
                "The server shows an older revocation list than before",
                on=f"number {crl.number} after {newest}",
                hint=hint,
            )
        return crl

    def count(self, crl: Crl) -> None:
        """Remember a list's number, once its issuing CA is known to be under the root."""
        self._journal.marks.grow(_mark(crl.issuer), crl.number)

    def _ask(self, now: datetime) -> tuple[bytes, ...]:
        told = self._client.authority()
        if told.root != self._root:
            raise CertificateError("The server shows another root than at enrolment", hint="kmb doctor")
        issuers = (told.issuing, *told.former)
        if len(issuers) > _MOST:
            raise CertificateError("The server shows more issuing CAs than can be", on=str(len(issuers)), hint=_ASK)
        for one in issuers:
            try:
                verify_authorities(issuing_der=one, root_der=self._root, now=now)
            except ExpiredError:
                # Known by its signature; what it issued is refused where it is used.
                continue
        self._remember(issuers, now)
        return issuers

    def _remember(self, issuers: tuple[bytes, ...], now: datetime) -> None:
        seen = self._journal.issuers.all()
        first = not seen
        if first and self._first is not None:
            self._journal.issuers.see(ca_key_identifier(self._first), self._first, now)
            first = False
        for one in issuers:
            if self._journal.issuers.see(ca_key_identifier(one), one, now) and not first:
                detail = f"the server has a new issuing CA under the pinned root: {_named(one)}"
                self._journal.alarms.sound("issuing-ca", hashlib.sha256(one).hexdigest(), detail, now)
        shown = {ca_key_identifier(one) for one in issuers}
        for known in seen:
            # What has expired, with all that it issued, may go.
            ended = load_der_x509_certificate(known.der).not_valid_after_utc
            if known.ski not in shown and min(known.relied_until, ended) > now:
                what = f"{_named(known.der)}, relied on until {known.relied_until:%Y-%m-%d}"
                fingerprint = hashlib.sha256(known.der).hexdigest()
                detail = f"the server no longer shows an issuing CA: {what}"
                self._journal.alarms.sound("issuing-ca-hidden", fingerprint, detail, now)
                raise CertificateError(
                    "The server no longer shows an issuing CA whose certificates are relied on",
                    on=what,
                    hint=_ASK,
                    rule="ICA-004",
                )

    def _newest(self, ski: bytes) -> int:
        newest = self._journal.marks.number(_mark(ski))
        if self._first is not None and ca_key_identifier(self._first) == ski:
            # Before issuing CAs had a mark each, there was one.
            newest = max(newest, self._journal.marks.number(CRL))
        return newest


def _mark(ski: bytes) -> str:
    return f"{CRL} {ski.hex()}"


def _named(issuing: bytes) -> str:
    # Its name is the operator's; the root, which is offline, takes printable ASCII only.
    name = load_der_x509_certificate(issuing).subject.rfc4514_string()
    return f"{name}, certificate {hashlib.sha256(issuing).hexdigest()[:16]}…"
