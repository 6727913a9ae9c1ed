"""The CA: its certificates and its newest revocation list; unsigned, and the same for everybody."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from pki.core.errors import NotFoundError
from pki.server.api import answers, bodies, calls
from pki.server.facts import CaChain, CrlHead, CrlRecord
from pki.server.services import status
from pki.server.services.deps import Deps

router = APIRouter(prefix="/v1", tags=["authority"])

PKIX_CRL = "application/pkix-crl"
Issuer = Annotated[str, Path(pattern="^[0-9a-f]{2,64}$", description="An issuing CA's subject key identifier in hex")]
_ALWAYS_ASK = "public, no-cache"
"""Whoever keeps it asks whether it is still the newest; that is answered without the list."""


@router.get("/ca", summary="Root and issuing CAs", responses=answers.tells(answers.Chain, etag=True))
async def chain(request: Request) -> Response:
    """Return the certificates, former issuing CAs newest first; the root's fingerprint came with the invitation."""
    found = await calls.run(_chain, calls.deps_of(request))
    fingerprint = hashlib.sha256(found.root).hexdigest()
    told = {
        "root": bodies.b64(found.root),
        "issuing": bodies.b64(found.issuing),
        "former": [bodies.b64(one) for one in found.former],
        "root_fingerprint": fingerprint,
    }
    body = json.dumps(told, separators=(",", ":")).encode()
    tag = hashlib.sha256(body).hexdigest()[:32]
    return calls.cached(request, body, bodies.JSON, tag, "public, no-cache")


@router.get(
    "/crl",
    summary="The newest revocation list of the current issuing CA",
    response_class=Response,
    responses=answers.tells_binary(PKIX_CRL, "The CRL in DER.", etag=True),
)
async def revocations(request: Request) -> Response:
    """Return the full CRL in DER (RFC 5280 §5)."""
    return await _list(request, None, delta=False)


@router.get(
    "/crl/{issuer}",
    summary="An issuing CA's newest revocation list",
    response_class=Response,
    responses=answers.tells_binary(PKIX_CRL, "The CRL in DER.", etag=True),
)
async def revocations_of(request: Request, issuer: Issuer) -> Response:
    """Return the full CRL in DER of the issuing CA, current or former, whose key identifier the path has."""
    return await _list(request, issuer, delta=False)


@router.get(
    "/crl/{issuer}/delta",
    summary="What changed since an earlier revocation list",
    response_class=Response,
    responses=answers.tells_binary(PKIX_CRL, "The delta CRL in DER.", etag=True),
)
async def changes_of(request: Request, issuer: Issuer) -> Response:
    """Return the delta CRL in DER (RFC 5280 §5.2.4), of the same number as the full one."""
    return await _list(request, issuer, delta=True)


async def _list(request: Request, issuer: str | None, *, delta: bool) -> Response:
    deps = calls.deps_of(request)
    head = await calls.run(status.newest, deps, issuer)
    if head is not None and (known := calls.unchanged(request, _tag(head, delta=delta), _ALWAYS_ASK)):
        return known
    # A long list is read when it is wanted.
    record = await calls.run(status.latest_crl, deps, issuer)
    content = None if record is None else record.delta if delta else record.der
    if record is None or content is None:
        what = "delta list" if delta else "revocation list"
        raise NotFoundError(
            f"No {what} was published yet" if issuer is None else f"This issuing CA has no {what} here",
            on=issuer or "",
            hint="GET /v1/crl/{issuer}" if delta else "GET /v1/ca shows the issuing CAs",
        )
    return calls.cached(request, content, PKIX_CRL, _tag(record, delta=delta), _ALWAYS_ASK)


def _tag(published: CrlHead | CrlRecord, *, delta: bool) -> str:
    # The time as well: should the server be restored from a backup, numbers come again.
    kind = "delta" if delta else "full"
    return f"{published.issuer[:16]}-{kind}-{published.number}-{published.this_update:%Y%m%d%H%M%S}"


def _chain(deps: Deps) -> CaChain:
    return deps.chain
