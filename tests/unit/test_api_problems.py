"""Every error of the family is a problem with a status; what is no business of the client's shows nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pki.core import errors
from pki.core.errors import KeymailboxError
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
    assert told["status"] in range(400, 500) or kind is errors.UnavailableError


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
    """401 names the scheme (RFC 9110 §11.6.1), 503 when to come again (§10.2.3)."""
    assert problems.respond(errors.AccessError()).headers["www-authenticate"] == "Signature"
    assert int(problems.respond(errors.UnavailableError()).headers["retry-after"]) >= 1
