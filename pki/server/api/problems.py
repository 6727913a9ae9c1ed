"""Errors as RFC 9457 problems: the only place that knows an HTTP status."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pki.core import errors
from pki.core.errors import KeymailboxError
from pki.server import tracing
from pki.server.api.shares import Shares

MEDIA_TYPE = "application/problem+json"
PLAIN = "text/plain"
EST = "/.well-known/est"
"""Below this path, errors are told in words."""
TYPE_PREFIX = "https://keymailbox.invalid/problems/"
RETRY_AFTER_SECONDS = 2
UNSPENT = "keymailbox.unspent"
"""Where a request's scope has what uses up its ticket, between its signature and what it asks for."""

_log = logging.getLogger(__name__)

# The nearest class in an error's ancestry decides.
_STATUS: Mapping[type[KeymailboxError], int] = {
    errors.MalformedError: 400,
    errors.BadAddressError: 400,
    errors.UsageError: 400,
    errors.AccessError: 401,
    errors.ForbiddenError: 403,
    errors.EnrolmentError: 403,
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.DeletedError: 410,
    errors.TooLargeError: 413,
    errors.ProfileError: 422,
    errors.AlgorithmError: 422,
    errors.VerificationError: 422,
    # RFC 6585 §4. A full mailbox is one as well: 507 (RFC 4918 §11.5) would be a fault of the server.
    errors.BusyError: 429,
    errors.QuotaError: 429,
    errors.UnavailableError: 503,
}
_LATER = frozenset({429, 503})
_INTERNAL = "internal"


# What to do next, where whoever raised the error does not know more.
_HINTS: Mapping[type[KeymailboxError], str] = {
    errors.AccessError: "kmb doctor",
    errors.NotWelcomeError: "ask the recipient's people for: kmb mailbox senders set",
    errors.EnrolmentError: "ask the operator for: kmb-server tenant invite NAME",
    errors.AddressTakenError: "choose another instance name, then: kmb enroll",
    errors.DeletedError: "GET /v1/deposits/{id} and /receipt tell what is kept: digests, state and the signed answer",
    errors.UnknownRecipientError: "kmb peer show TENANT/INSTANCE",
    errors.NotFoundError: "kmb whoami",
    errors.IdempotencyError: "repeat the request with a new Idempotency-Key",
    errors.ReplayedError: "kmb key send, which makes a new deposit",
    errors.TooLargeError: "send less at once",
    errors.QuotaError: "kmb receipt list shows what is under way; repeat the request after the time in Retry-After",
    errors.UnavailableError: "repeat the request after the time in Retry-After",
    errors.CertificateError: "kmb cert list",
    KeymailboxError: "kmb doctor",
}


def status(error: KeymailboxError) -> int:
    """Return the HTTP status that stands for an error; 500 for what is no business of the client's."""
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)


def problem(error: KeymailboxError) -> dict[str, object]:
    """Return an error as a problem (RFC 9457 §3.1): class and code are stable, the detail is for people."""
    number = status(error)
    if number == 500:
        return _internal()
    detail = f"{error.message} ({error.on})" if error.on else error.message
    told: dict[str, object] = {
        "type": TYPE_PREFIX + error.code,
        "title": (type(error).__doc__ or "").split("\n", 1)[0],
        "status": number,
        "detail": detail,
        "code": error.code,
        "hint": error.hint or next(_HINTS[kind] for kind in type(error).__mro__ if kind in _HINTS),
    }
    if error.rule:
        told["rule"] = error.rule
    if number in _LATER:
        # In the body as well: one item of a batch has no header fields.
        told["retry_after"] = retry_after(error)
    return told


def _request() -> dict[str, object]:
    """What the operator finds in the log: as in X-Request-Id. Refusals are without it, since some have to be alike."""
    found = tracing.request_id(tracing.current())
    return {"request_id": found} if found else {}


def retry_after(error: KeymailboxError) -> int:
    """Return after how many whole seconds, at least one, a request is worth repeating (RFC 9110 §10.2.3)."""
    return max(1, RETRY_AFTER_SECONDS if error.retry_after is None else error.retry_after)


def respond(error: KeymailboxError) -> Response:
    """Return the answer that tells of an error."""
    number = status(error)
    if number == 500:
        _log.error("a server error: %s", type(error).__name__, extra={"trace": _trace(error)})
    headers = {}
    if number == 401:
        headers["WWW-Authenticate"] = "Signature"
    if number in _LATER:
        headers["Retry-After"] = str(retry_after(error))
    return _answer(problem(error), number, headers)


def plain(error: KeymailboxError) -> Response:
    """Return the answer that tells of an error in words, as EST's clients take it (RFC 7030 §4.2.3).

    What is wrong with a request is a bad request; who may not enrol is asked for a password (RFC 7030 §3.2.3).
    """
    told, number = problem(error), status(error)
    if isinstance(error, errors.EnrolmentError | errors.AccessError):
        number = 401
    elif number == 422:
        number = 400
    elif number == 500:
        _log.error("a server error: %s", type(error).__name__, extra={"trace": _trace(error)})
    headers = {"Cache-Control": "no-store"}
    if number == 401:
        headers["WWW-Authenticate"] = 'Basic realm="keymailbox", charset="UTF-8"'
    if number in _LATER:
        headers["Retry-After"] = str(retry_after(error))
    rule = f" [{told['rule']}]" if "rule" in told else ""
    text = f"{told['detail']}{rule}\nhint: {_without_kmb(error, str(told['hint']))}\n"
    return Response(text, number, headers, PLAIN)


def _without_kmb(error: KeymailboxError, hint: str) -> str:
    """Return a hint for who comes by EST with a tool of its own, and has no kmb to type."""
    if not hint.startswith("kmb "):
        return hint
    if isinstance(error, errors.EnrolmentError | errors.AccessError):
        return "ask the operator for an invitation"
    return "openssl req -in FILE -noout -text -verify shows what was asked; docs/interop.md has what is taken"


def unforeseen(error: Exception) -> Response:
    """Show nothing; the log gets the places in the code and not the values, which may be secret."""
    _log.error("an unforeseen error: %s", type(error).__name__, extra={"trace": _trace(error)})
    return _answer(_internal(), 500)


def install(app: FastAPI) -> None:
    """Turn the errors that routes of ``app`` raise into problems; its middleware asks ``unforeseen`` for the rest."""
    app.add_exception_handler(KeymailboxError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _starlette)


def _internal() -> dict[str, object]:
    return {
        "type": TYPE_PREFIX + _INTERNAL,
        "title": "The server failed.",
        "status": 500,
        "detail": "The server failed; its log tells why, under this request's X-Request-Id.",
        "code": _INTERNAL,
        "hint": "ask the operator, and name the request_id",
        **_request(),
    }


def _answer(told: Mapping[str, object], number: int, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        json.dumps(told, separators=(",", ":")), number, {"Cache-Control": "no-store", **(headers or {})}, MEDIA_TYPE
    )


async def _ours(request: Request, error: Exception) -> Response:
    shares: Shares | None = getattr(request.app.state, "shares", None)
    if shares is not None:
        await shares.hold(request.scope)
    return _told(request, error if isinstance(error, KeymailboxError) else KeymailboxError())


def _told(request: Request, error: KeymailboxError) -> Response:
    return plain(error) if request.url.path.startswith(f"{EST}/") else respond(error)


async def _invalid(request: Request, error: Exception) -> Response:
    """Queries and paths that do not fit their declared types: a request that is signed is good once all the same."""
    spend: Callable[[], Awaitable[None]] | None = request.scope.get(UNSPENT)
    if spend is not None:
        try:
            await spend()
        except KeymailboxError as wrong:
            return await _ours(request, wrong)
    found = error.errors()[0] if isinstance(error, RequestValidationError) and error.errors() else {}
    place = ".".join(str(part) for part in found.get("loc", ()))
    return _told(request, errors.UsageError(str(found.get("msg") or "The request cannot be read"), on=place))


async def _starlette(request: Request, error: Exception) -> Response:
    number = error.status_code if isinstance(error, HTTPException) else 500
    if number == 404:
        return _told(request, errors.NotFoundError("There is no such path"))
    phrase = HTTPStatus(number).phrase
    code = phrase.lower().replace(" ", "-")
    told = {
        "type": TYPE_PREFIX + code,
        "title": f"{phrase}.",
        "status": number,
        "detail": f"{phrase}.",
        "code": code,
        "hint": "see schemas/openapi.json for what this path takes",
    }
    return _answer(told, number, error.headers if isinstance(error, HTTPException) else None)


def _trace(error: BaseException) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
