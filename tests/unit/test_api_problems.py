"""Every error of the family is a problem with a status; what is no business of the client's shows nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pki.core import errors
from pki.core.errors import KeymailboxError
from pki.server import tracing
from pki.server.api import problems


def family(kind: type[KeymailboxError] = KeymailboxError) -> Iterator[type[KeymailboxError]]:
    """Yield a class of errors and all below it, those of the core."""
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from family(below)


@pytest.mark.parametrize("kind", list(family()), ids=lambda kind: kind.__name__)
def test_each_error_has_its_status(kind: type[KeymailboxError]) -> None:
    """Client errors are 4xx, an outage is 503; only the nameless one and bad configuration are the server's."""
    told = problems.problem(kind(on="that"))
    if kind in (KeymailboxError, errors.SettingsError):
        assert (told["status"], told["code"]) == (500, "internal")
        assert "that" not in json.dumps(told)
        return
    assert told["code"] == kind.code
    assert told["hint"]
    assert told["detail"]
    assert str(told["type"]).endswith(kind.code)
    assert told["status"] in range(400, 500) or kind in (errors.UnavailableError, errors.FullError)


def test_codes_are_unique() -> None:
    """A program that decides on a code decides on one thing."""
    codes = [kind.code for kind in family()]
    assert len(codes) == len(set(codes))


def test_what_an_error_knows_is_told() -> None:
    """Message, object, rule and hint arrive; a missing hint is filled in."""
    error = errors.ProfileError("The tag is short", on="deposit 7", hint="wrap again", rule="ENV-003")
    told = problems.problem(error)
    assert told["detail"] == "The tag is short (deposit 7)"
    assert (told["hint"], told["rule"], told["status"]) == ("wrap again", "ENV-003", 422)
    assert "rule" not in problems.problem(errors.ConflictError())


def test_the_unforeseen_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the answer nor the log repeats what an exception says: it may be a secret."""
    try:
        raise ValueError("the key is 00112233")
    except ValueError as error:
        response = problems.unforeseen(error)
    assert response.status_code == 500
    assert b"00112233" not in bytes(response.body)
    assert "00112233" not in caplog.text
    assert "ValueError" in caplog.text


def test_headers_say_what_to_do() -> None:
    """401 names the scheme (RFC 9110 §11.6.1), 503 and 429 when to come again (§10.2.3), in the body as well."""
    assert problems.respond(errors.AccessError()).headers["www-authenticate"] == "Signature"
    assert int(problems.respond(errors.UnavailableError()).headers["retry-after"]) >= 1
    for answer in (
        problems.respond(errors.QuotaError(retry_after=3600)),
        problems.plain(errors.QuotaError(retry_after=3600)),
    ):
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "3600")
    assert problems.problem(errors.BusyError(retry_after=0))["retry_after"] == 1
    assert "retry_after" not in problems.problem(errors.ConflictError())


def test_who_has_no_kmb_is_told_something_else() -> None:
    """In words, as by EST, no hint is a command of kmb."""
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, KeymailboxError):
            assert "hint: kmb" not in bytes(problems.plain(kind()).body).decode(), kind


def test_a_failure_of_the_server_can_be_asked_about() -> None:
    """It holds nothing but what the operator's log calls the request; refusals, which may have to be alike, do not."""
    trace = tracing.begin("HTTP").trace
    try:
        assert problems.problem(KeymailboxError())["request_id"] == trace[3:35]
        assert "request_id" not in problems.problem(errors.NotFoundError())
    finally:
        tracing._current.set(None)
    assert "request_id" not in problems.problem(KeymailboxError())
