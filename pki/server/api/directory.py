"""The directory: which certificates an address has, each with the request that endorses it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from pki.core.certificates import CertificateRecord
from pki.server.api import answers, bodies, calls
from pki.server.api.certificates import certificate_object
from pki.server.services import certificates

router = APIRouter(prefix="/v1/directory", tags=["directory"])


@router.get("/{tenant}/{instance}", summary="Look an address up", responses=answers.tells(answers.Listing, etag=True))
async def look_up(call: calls.Signed, tenant: calls.Label, instance: calls.Label) -> Response:
    """Return the certificates in use; whoever reads them checks everything."""
    listing = await calls.run(certificates.lookup, call.deps, calls.address_in(tenant, instance))
    told: dict[str, Any] = {
        "address": str(listing.address),
        "identity": _listed(listing.identity, listing.issuing),
        "encryption": _listed(listing.encryption, listing.encryption_issuing) if listing.encryption else None,
        "issuing": bodies.b64(listing.issuing),
    }
    return calls.cached_json(call.request, told)


@router.get(
    "/{tenant}/{instance}/history",
    summary="All certificates of an address",
    responses=answers.tells(answers.History, etag=True),
)
async def history(call: calls.Signed, tenant: calls.Label, instance: calls.Label) -> Response:
    """Return every certificate that was ever active at an address, newest first."""
    records = await calls.run(certificates.history, call.deps, calls.address_in(tenant, instance))
    return calls.cached_json(call.request, {"certificates": [certificate_object(record) for record in records]})


def _listed(record: CertificateRecord, issuing: bytes) -> dict[str, Any]:
    return certificate_object(record) | {"issuing": bodies.b64(issuing)}
