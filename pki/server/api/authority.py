"""The CA: its certificates and its newest revocation list; unsigned, and the same for everybody."""

from __future__ import annotations

import hashlib
import json

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from pki.core.errors import NotFoundError
from pki.server.api import answers, bodies, calls
from pki.server.ports import CaChain
from pki.server.services import certificates
from pki.server.services.deps import Deps

router = APIRouter(prefix="/v1", tags=["authority"])

PKIX_CRL = "application/pkix-crl"


@router.get("/ca", summary="Root and issuing certificate", responses=answers.tells(answers.Chain, etag=True))
async def chain(request: Request) -> Response:
    """Return both certificates; compare the root's fingerprint with the one that came with the invitation."""
    found = await calls.run(_chain, calls.deps_of(request))
    fingerprint = hashlib.sha256(found.root).hexdigest()
    told = {"root": bodies.b64(found.root), "issuing": bodies.b64(found.issuing), "root_fingerprint": fingerprint}
    body = json.dumps(told, separators=(",", ":")).encode()
    tag = hashlib.sha256(body).hexdigest()[:32]
    return calls.cached(request, body, bodies.JSON, tag, "public, max-age=300")


@router.get(
    "/crl",
    summary="The newest revocation list",
    response_class=Response,
    responses=answers.tells_binary(PKIX_CRL, "The CRL in DER.", etag=True),
)
async def revocations(request: Request) -> Response:
    """Return the CRL in DER (RFC 5280 §5)."""
    record = await calls.run(certificates.latest_crl, calls.deps_of(request))
    if record is None:
        raise NotFoundError("No revocation list was published yet", hint="kmb-server doctor")
    tag = hashlib.sha256(record.der).hexdigest()[:32]
    return calls.cached(request, record.der, PKIX_CRL, tag, "public, no-cache")


def _chain(deps: Deps) -> CaChain:
    return deps.chain
