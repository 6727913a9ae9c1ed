"""EST (RFC 7030, with RFC 8951's corrections): the CA's certificates, and enrolment by other people's clients."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from pki.core import est as messages
from pki.core.errors import AccessError, EnrolmentError, ForbiddenError, MalformedError, TooLargeError, UsageError
from pki.core.requests import MAX_REQUEST
from pki.core.x509 import MAX_CERTIFICATE
from pki.server.api import answers, bodies, calls, problems
from pki.server.api.waiting import Waiting
from pki.server.facts import RequestRecord
from pki.server.services import est
from pki.server.services.deps import Deps
from pki.server.services.est import Credentials
from pki.server.settings import Settings

router = APIRouter(prefix=problems.EST, tags=["est"])

PKCS7 = "application/pkcs7-mime"
CERTS_ONLY = f"{PKCS7}; smime-type=certs-only"
CSR_ATTRIBUTES = "application/csrattrs"

_MAX_BODY = 2 * MAX_REQUEST
"""Bytes: base64 takes a third more, line breaks a little."""
_MAX_CREDENTIALS = 512
_WAIT_SECONDS = 10.0
"""How long the issuer is waited for; RFC 7030 §4.2.3 says 202 for longer."""
RETRY_AFTER_SECONDS = 5
_CLIENT_CERT, _CLIENT_CERT_CHAIN = "client-cert", "client-cert-chain"
_BYTE_SEQUENCE = re.compile(r":([A-Za-z0-9+/]*={0,2}):")


_CERTIFICATE: answers.Told = {
    **answers.tells_binary(CERTS_ONLY, "The certificate alone in CMS, DER in base64."),
    202: {
        "description": "The certificate is under way: send the same request again after Retry-After.",
        "content": {problems.PLAIN: {}},
    },
}


@router.get(
    "/cacerts",
    summary="The CA's certificates",
    response_class=Response,
    responses=answers.tells_binary(PKCS7, "Certificates alone in CMS, DER in base64.", etag=True),
)
async def ca_certificates(request: Request) -> Response:
    """Return root and issuing CAs; compare the root's fingerprint with the one that came with the invitation."""
    found = await calls.run(_authorities, calls.deps_of(request))
    return _public(request, messages.certs_only(found), PKCS7)


@router.get(
    "/csrattrs",
    summary="What a request is made of",
    response_class=Response,
    responses=answers.tells_binary(CSR_ATTRIBUTES, "CsrAttrs (RFC 8951 §3.2), DER in base64.", etag=True),
)
async def csr_attributes(request: Request) -> Response:
    """Return the algorithms that an identity key may be of, and the key usage that it gets."""
    return _public(request, await calls.run(est.csr_attributes, calls.deps_of(request)), CSR_ATTRIBUTES)


@router.post(
    "/simpleenroll",
    summary="Enrol by EST",
    response_class=Response,
    responses=_CERTIFICATE,
    openapi_extra=bodies.takes_binary(bodies.PKCS10, "A certification request, DER in base64"),
)
async def enroll(request: Request) -> Response:
    """Use an invitation (reference and secret by HTTP Basic), or ask with a certificate; 202 says: ask again."""
    deps = _meant_for_us(request)
    client = _client_certificate(request, deps.settings)
    if request.headers.get("authorization") is None and client is not None:
        return await _answered(request, await calls.run(est.renew, deps, client, await _request(request)))
    credentials = _credentials(request, deps.settings)
    return await _answered(request, await calls.run(est.enroll, deps, credentials, await _request(request)))


@router.post(
    "/simplereenroll",
    summary="Renew by EST",
    response_class=Response,
    responses=_CERTIFICATE,
    openapi_extra=bodies.takes_binary(bodies.PKCS10, "A certification request, DER in base64"),
)
async def reenroll(request: Request) -> Response:
    """Ask with a certificate of the instance's own for a new one; 202 says: ask again."""
    deps = _meant_for_us(request)
    client = _client_certificate(request, deps.settings)
    if client is None:
        raise AccessError("Renewal takes a client certificate", hint="TLS with the identity or access certificate")
    return await _answered(request, await calls.run(est.renew, deps, client, await _request(request)))


@router.post("/fullcmc", summary="Not served", status_code=501, response_class=Response)
@router.post("/serverkeygen", summary="Not served", status_code=501, response_class=Response)
async def not_served(_request: Request) -> Response:
    """Say that keys are made by their owners, and that CMC is not spoken (RFC 7030 §4.3, §4.4: both are optional)."""
    return Response("This server neither makes keys for others nor speaks CMC\n", 501, media_type=problems.PLAIN)


def _meant_for_us(request: Request) -> Deps:
    deps = calls.deps_of(request)
    if request.headers.get("host", "").lower() not in deps.settings.authorities:
        raise UsageError("The request is meant for another host", hint=f"use the server's address {deps.settings.url}")
    return deps


def _credentials(request: Request, settings: Settings) -> Credentials:
    """Return what HTTP Basic (RFC 7617) says; what cannot be read is refused like what is wrong."""
    if not settings.takes_passwords:
        raise ForbiddenError(
            "A secret is not taken without TLS", on=settings.url, hint="KMB_PUBLIC_URL=https://… behind a TLS front"
        )
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic" or len(encoded) > _MAX_CREDENTIALS:
        raise EnrolmentError(hint=_INVITE)
    try:
        reference, colon, secret = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        raise EnrolmentError(hint=_INVITE) from None
    if not colon:
        raise EnrolmentError(hint=_INVITE)
    return Credentials(reference, secret)


_INVITE = "ask the operator for: kmb-server tenant invite NAME"


def _client_certificate(request: Request, settings: Settings) -> bytes | None:
    """Return the certificate that the TLS front saw (RFC 9440 §2.2), None without one.

    Raises ForbiddenError when somebody else says so: such a header is a try, or a front that is not set up.
    """
    said = request.headers.getlist(_CLIENT_CERT)
    if not said and _CLIENT_CERT_CHAIN not in request.headers:
        return None
    if request.client is None or not settings.is_front(request.client.host):
        raise ForbiddenError(
            "Client-Cert is believed from a TLS front alone",
            on=request.client.host if request.client else "",
            hint="KMB_CLIENT_CERT_FROM=ADDRESS of the front, see docs/operations.md",
        )
    found = _BYTE_SEQUENCE.fullmatch(said[0].strip()) if len(said) == 1 else None
    if found is None or len(said[0]) > 2 * MAX_CERTIFICATE:
        raise MalformedError("Client-Cert is not one certificate as RFC 9440 writes it")
    return _decoded(found[1], "Client-Cert")


async def _request(request: Request) -> bytes:
    """Return the request in DER; its base64 may have line breaks, whatever the headers say of it (RFC 8951 §3.1)."""
    bodies.expect(request, bodies.PKCS10)
    text = b"".join((await bodies.read(request, _MAX_BODY)).split())
    if len(text) > (MAX_REQUEST + 2) // 3 * 4:
        raise TooLargeError(f"The request has more than {MAX_REQUEST} bytes")
    return _decoded(text, "The body")


def _decoded(text: str | bytes, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError(f"{what} is not base64 of DER", hint="openssl req -outform DER … | base64") from None


async def _answered(request: Request, record: RequestRecord) -> Response:
    deps, waiting = calls.deps_of(request), _waiting(request)

    async def look() -> bytes | None:
        return await calls.run(est.outcome, deps, record)

    seconds = min(_WAIT_SECONDS, deps.settings.long_poll_max)
    der = await waiting.until(request, [f"request:{record.id}"], seconds, look, lambda found: found is not None)
    if der is None:
        later = {"Retry-After": str(RETRY_AFTER_SECONDS), "Cache-Control": "no-store"}
        return Response("The certificate is under way: send the same request again\n", 202, later, problems.PLAIN)
    fields = {"Cache-Control": "no-store", **_BASE64}
    return Response(base64.b64encode(messages.certs_only([der])), 200, fields, CERTS_ONLY)


def _public(request: Request, der: bytes, media_type: str) -> Response:
    tag = hashlib.sha256(der).hexdigest()[:32]
    found = calls.cached(request, base64.b64encode(der), media_type, tag, "public, max-age=300")
    found.headers.update(_BASE64)
    return found


_BASE64 = {"Content-Transfer-Encoding": "base64"}
"""RFC 8951 §3.1 has it ignored; clients from before wait for it (RFC 7030 §4.1.3)."""


def _waiting(request: Request) -> Waiting:
    waiting: Waiting = request.app.state.waiting
    return waiting


def _authorities(deps: Deps) -> list[bytes]:
    chain = deps.chain
    return [chain.root, *chain.all]
