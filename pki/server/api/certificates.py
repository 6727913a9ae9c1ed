"""Certificates by fingerprint, and their revocation by the owner."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from pki.core.certificates import CertificateRecord
from pki.core.deposits import WAITING
from pki.core.ids import Fingerprint
from pki.server.api import answers, bodies, calls
from pki.server.services import certificates, inventory
from pki.server.services.inventory import Held

router = APIRouter(prefix="/v1/certificates", tags=["certificates"])


@router.get("", summary="Your own certificates", responses=answers.tells(answers.OwnCertificates, etag=True))
async def own(call: calls.Signed) -> Response:
    """List the caller's certificates, newest first, with what waits under the key of each: 0 is drained."""
    found = await calls.run(inventory.held, call.deps, call.caller)
    return calls.cached_json(call.request, {"items": [_own_object(one) for one in found]})


@router.get("/{fingerprint}", summary="One certificate", responses=answers.tells(answers.Certificate, etag=True))
async def by_fingerprint(call: calls.Signed, fingerprint: calls.Digest) -> Response:
    """Return a certificate with the request that endorses it."""
    record = await calls.run(certificates.by_fingerprint, call.deps, Fingerprint(fingerprint))
    return calls.cached_json(call.request, certificate_object(record))


@router.post(
    "/{fingerprint}/revocation",
    summary="Revoke a certificate",
    responses=answers.tells(answers.Certificate),
    openapi_extra=bodies.takes_binary(bodies.CMS, "A SignedData over a RevocationRequest, in DER"),
)
async def revoke(call: calls.Signed, fingerprint: calls.Digest) -> Response:
    """Revoke at once; deposits under way to it are quarantined and the CRL follows."""
    bodies.expect(call.request, bodies.CMS)
    record = await calls.run(certificates.revoke, call.deps, call.caller, call.body, wanted=Fingerprint(fingerprint))
    return calls.answer(certificate_object(record))


def _own_object(one: Held) -> dict[str, Any]:
    record = one.certificate
    return {
        "fingerprint": record.fingerprint,
        "kind": record.kind.value,
        "state": record.state.value,
        "not_before": calls.time(record.not_before),
        "not_after": calls.time(record.not_after),
        "renewal_due": calls.time(record.renewal_due),
        "revoked_by": record.revoked_by,
        "because": record.because,
        "waiting": {state.value: one.waiting.get(state, 0) for state in WAITING},
    }


def certificate_object(record: CertificateRecord) -> dict[str, Any]:
    """Return a certificate as JSON."""
    return {
        "fingerprint": record.fingerprint,
        "address": str(record.address),
        "kind": record.kind.value,
        "state": record.state.value,
        "certificate": bodies.b64(record.der),
        "request": bodies.b64(record.request_der),
        "not_before": calls.time(record.not_before),
        "not_after": calls.time(record.not_after),
        "revoked_at": calls.maybe_time(record.revoked_at),
        "reason": record.revocation_reason,
        "revoked_by": record.revoked_by,
        "because": record.because,
    }
