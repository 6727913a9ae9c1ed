"""Enrolment by EST (RFC 7030): with an invitation, or with a certificate that the instance has."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from pki.core import est, x509
from pki.core.certificates import CertificateState, RequestState, check_stored
from pki.core.errors import (
    AccessError,
    CertificateError,
    EnrolmentError,
    ForbiddenError,
    KeymailboxError,
    NotFoundError,
    UsageError,
    WrongPartyError,
)
from pki.core.ids import RequestId, request_id
from pki.core.requests import UnverifiedRequest, VerifiedRequest, parse_request
from pki.core.x509 import CertificateKind, ParsedCertificate
from pki.server.facts import Instance, RequestRecord
from pki.server.services import access, certificates
from pki.server.services.admission import key_of
from pki.server.services.deps import Deps
from pki.server.store import certificates as store
from pki.server.store import requests as request_store
from pki.server.store import tenants as tenant_store
from pki.server.store.engine import Unit

_IN_USE = frozenset({CertificateState.ACTIVE, CertificateState.RETIRED})


@dataclass(frozen=True)
class Credentials:
    """An invitation, as HTTP Basic brings it."""

    reference: str
    secret: str = field(repr=False)


def csr_attributes(deps: Deps) -> bytes:
    """Return what a request for an identity may be made of (RFC 7030 §4.5), as the operator's profile has it."""
    return est.csr_attributes(deps.profiles.of(CertificateKind.IDENTITY).algorithms)


def enroll(deps: Deps, credentials: Credentials, der: bytes) -> RequestRecord:
    """Enrol the instance that ``der`` names, with an invitation and without an access key; all of it, or nothing.

    A request for the same key again, with the same invitation, is a look at what became of it, and another try where
    it was rejected. Raises EnrolmentError, the same for an invitation that is unknown, wrong, used or expired, and
    otherwise as `access.enroll` does.
    """
    now = deps.clock.now()
    unverified = parse_request(der)
    _demand_no_encryption(unverified)
    request = access.identity_request(der, unverified.address, now)
    certificates.check_profile(deps, request)
    reference, secret = credentials.reference, credentials.secret
    with access.for_invited(deps, request.address.tenant, reference).unit() as unit:
        try:
            invitation = access.usable(unit, reference, secret, now, tenant=request.address.tenant)
        except EnrolmentError:
            known = _once_more(unit, credentials, request, now)
            if known is None:
                raise
            return known
        access.admit(unit, invitation, request, None, now)
        return _record(unit, request.id)


def _once_more(unit: Unit, credentials: Credentials, request: VerifiedRequest, now: datetime) -> RequestRecord | None:
    """Return what became of an enrolment, to who did not hear it: with the used invitation, and with the key."""
    owner = access.used_by(unit, credentials.reference, credentials.secret)
    instance = tenant_store.instance(unit, request.address)
    if instance is None or owner != request.address or instance.identity_spki != request.spki:
        return None
    certified = store.history(unit, owner, CertificateKind.IDENTITY)
    if certified:
        return store.request(unit, request_id(certified[0].request_der))
    pending = request_store.pending(unit, owner)
    return pending[0] if pending else certificates.take(unit, request, owner, now)


def renew(deps: Deps, client_der: bytes, der: bytes) -> RequestRecord:
    """Queue a request of the instance whose certificate is ``client_der``; that it holds the key, the TLS front saw.

    An identity certificate speaks for identity and access, an access certificate for access alone. Raises AccessError
    for a certificate that is not good or not in use, ForbiddenError, and what is wrong with the request.
    """
    now = deps.clock.now()
    client = _client(deps, client_der, now)
    unverified = parse_request(der)
    _demand_no_encryption(unverified)
    if unverified.address != client.address:
        raise WrongPartyError("The request is for another address than the certificate's", on=str(unverified.address))
    if client.kind is CertificateKind.ACCESS and unverified.kind is not CertificateKind.ACCESS:
        raise ForbiddenError("An access certificate renews nothing but itself", on=str(client.address))
    with deps.store.scoped([client.address.tenant]).unit() as unit:
        instance = _in_use(unit, client)
        request = unverified.verify(key_of(instance, unverified))
        certificates.check_profile(deps, request)
        return certificates.take(unit, request, instance.address, now)


def outcome(deps: Deps, request: RequestRecord) -> bytes | None:
    """Return the certificate that was issued for a request, None while it is pending; news rings ``request:<id>``.

    Raises CertificateError with the reason when it was rejected.
    """
    with deps.store.scoped([request.address.tenant]).read() as unit:
        record = _record(unit, request.id)
        if record.state is RequestState.REJECTED:
            raise CertificateError("The request was rejected", on=record.reason or record.id)
        found = store.certificate(unit, record.fingerprint) if record.fingerprint else None
    return None if found is None else found.der


def _client(deps: Deps, der: bytes, now: datetime) -> ParsedCertificate:
    try:
        parsed = x509.parse_certificate(der)
        if parsed.kind is CertificateKind.ENCRYPTION:
            raise AccessError("An encryption certificate is for no client", on=str(parsed.address))
        chain = deps.chain
        check_stored(der, kind=parsed.kind, issuing_der=chain.all, root_der=chain.root, now=now)
    except AccessError:
        raise
    except KeymailboxError as error:
        raise AccessError(f"The client's certificate is not good: {error.message}", on=error.on, hint=_HINT) from None
    return parsed


def _in_use(unit: Unit, client: ParsedCertificate) -> Instance:
    """Return the instance whose certificate this is, if it is listed and not revoked."""
    record = store.certificate(unit, client.fingerprint)
    instance = tenant_store.instance(unit, client.address)
    if record is None or instance is None or record.state not in _IN_USE:
        raise AccessError("The client's certificate is not in use", on=str(client.address), hint=_HINT)
    return instance


_HINT = "enrol with an invitation"


def _demand_no_encryption(unverified: UnverifiedRequest) -> None:
    if unverified.kind is CertificateKind.ENCRYPTION:
        # Its proof of possession takes an answer that EST has no message for (docs/adr/0016).
        raise UsageError(
            "EST gives no encryption certificates",
            on=str(unverified.address),
            hint="POST /v1/certificate-requests, or CMP",
        )


def _record(unit: Unit, request_id: RequestId) -> RequestRecord:
    record = store.request(unit, request_id)
    if record is None:
        raise NotFoundError(on=request_id)
    return record
