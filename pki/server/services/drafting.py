"""What would be signed for a request: drafted from the request alone, checked as relying parties do, and linted."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from cryptography.x509 import load_der_x509_certificate

from pki.core import issuance, x509
from pki.core.authorities import authority_key
from pki.core.errors import CertificateError, ExpiredError, WrongPartyError
from pki.core.ids import RequestId
from pki.core.issuance import CertificateProfile, Subject
from pki.core.requests import VerifiedRequest, parse_request
from pki.core.x509 import CertificateKind, ParsedCertificate
from pki.server import linting
from pki.server.facts import Instance, RequestRecord
from pki.server.ports import CaKeys, CaSigner
from pki.server.services import admission
from pki.server.services.admission import CLOCK_SKEW
from pki.server.services.deps import Deps
from pki.server.store.requests import Held


@dataclass(frozen=True)
class Draft:
    """What would be signed for a request: it follows from request, profile, serial number and time alone."""

    request: VerifiedRequest
    parsed: ParsedCertificate
    """The certificate as relying parties will read it; its signature is a dummy, and so is its fingerprint."""
    signer: CaSigner
    """The key of the issuing CA that the bytes name: the one that was current when they were stored."""

    @property
    def id(self) -> RequestId:
        """The request's id."""
        return self.request.id

    @property
    def serial(self) -> int:
        """The serial number, positive with at most 159 bits."""
        return self.parsed.serial

    @property
    def tbs(self) -> bytes:
        """The to-be-signed bytes."""
        return self.parsed.tbs


def draft(deps: Deps, keys: CaKeys, held: Held, instance: Instance, now: datetime) -> Draft:
    """Return what is to be signed for a pending request of ``instance``: what is stored, or something new.

    Raises what is wrong with the request, or with what is stored unless that follows from the request like new bytes,
    and ProfileError when relying parties would refuse it or the linter finds an error (rule ISS-001).
    """
    request = _verified(held.record, instance)
    if held.serial is None or held.tbs is None:
        # Positive with at most 20 bytes, 159 random bits (RFC 5280 §4.1.2.2); zero would be an omen.
        signer, serial = keys.current, secrets.randbits(159) or 1
        start, end = _validity(deps, request.kind, signer, now)
    else:
        signer, serial = keys.of(x509.authority_key_identifier(held.tbs)), held.serial
        start, end = x509.validity(held.tbs)
    admission.check_time(request.signing_time, start + CLOCK_SKEW)
    profile = deps.profiles.of(request.kind)
    tbs = issuance.to_be_signed(
        profile,
        Subject(request.address, request.spki, request.capabilities),
        serial=serial,
        issuer_der=signer.certificate_der,
        not_before=start,
        not_after=end,
    )
    # What is signed follows from the request alone, whatever became of the stored bytes since.
    if held.tbs is not None and (tbs != held.tbs or not _is_in_time(start, end, signer, now, _lasts(deps, profile))):
        raise CertificateError("The prepared certificate is not the request's", on=request.id)
    if end <= now:
        raise ExpiredError("The prepared certificate has expired before it was signed", on=request.id, rule="CRT-003")
    unsigned = linting.dummy(tbs, authority_key(signer.certificate_der).algorithm)
    parsed = x509.parse_certificate(unsigned)
    linting.demand_clean(deps.linter, unsigned, on=str(request.address), asked=request.id)
    return Draft(request, parsed, signer)


def _verified(record: RequestRecord, instance: Instance) -> VerifiedRequest:
    # The issuer believes no row: the instance's signature counts, whatever stands beside it.
    unverified = parse_request(record.der)
    request = unverified.verify(admission.key_of(instance, unverified))
    if (request.id, request.address, request.kind) != (record.id, record.address, record.kind):
        raise WrongPartyError("The request is not the one that was stored under its id", on=record.id)
    return request


def _validity(deps: Deps, kind: CertificateKind, signer: CaSigner, now: datetime) -> tuple[datetime, datetime]:
    start = (now - CLOCK_SKEW).replace(microsecond=0)
    return start, min(start + _lasts(deps, deps.profiles.of(kind)), _end(signer.certificate_der))


def _is_in_time(start: datetime, end: datetime, signer: CaSigner, now: datetime, most: timedelta) -> bool:
    """Say whether stored times may have been ours: begun by now, no longer than we give, and not after the CA's end."""
    return start <= now + CLOCK_SKEW and end - start <= most and end <= _end(signer.certificate_der)


def _lasts(deps: Deps, profile: CertificateProfile) -> timedelta:
    return profile.lasts(deps.settings.certificate_lifetime)


@lru_cache(maxsize=16)
def _end(certificate_der: bytes) -> datetime:
    return load_der_x509_certificate(certificate_der).not_valid_after_utc
