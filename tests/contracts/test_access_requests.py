"""Contract of signed HTTP requests: who signed, when, for which body, and once only."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from pki.core.errors import AccessError, KeymailboxError, ReplayedError
from pki.core.tenants import parse_address
from pki.server.facts import Caller
from pki.server.services import access, rotation
from pki.server.store import access as access_store
from pki.server.store.engine import Store
from tests.kit.office import Kms, Office, authenticate, open_office
from tests.kit.threads import together

ACME = parse_address("acme/eu-west")


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA."""
    return open_office(store, tmp_path)


@pytest.fixture
def kms(office: Office) -> Kms:
    """An enrolled instance."""
    kms = Kms(ACME)
    office.enrol(kms)
    return kms


def test_the_signer_is_the_caller(office: Office, kms: Kms) -> None:
    """A signed request is its instance's; another instance's is another's."""
    other = Kms(parse_address("globex/main"))
    office.enrol(other)
    assert authenticate(office.deps, *kms.call(office, "POST", "/v1/deposits?x=1", b"body")).instance.address == ACME
    assert other.caller(office).instance.address == other.address


def test_a_replayed_request_is_refused(office: Office, kms: Kms) -> None:
    """The same nonce is good once, also after the purge of old ones."""
    call = kms.call(office, "POST", "/v1/deposits", b"body")
    authenticate(office.deps, *call)
    with pytest.raises(ReplayedError):
        authenticate(office.deps, *call)
    office.clock.step(timedelta(seconds=299))
    rotation.purge(office.deps)
    with pytest.raises(ReplayedError):
        authenticate(office.deps, *call)


def test_a_replayed_request_is_never_accepted_later(office: Office, kms: Kms) -> None:
    """By the time that its nonce is forgotten, it is too old: whenever it comes, it is refused."""
    call = kms.call(office, "GET", "/v1/sent", created=office.clock.now() + timedelta(seconds=30))
    authenticate(office.deps, *call)
    for _ in range(60):
        office.clock.step(timedelta(seconds=7))
        rotation.purge(office.deps)
        with pytest.raises((ReplayedError, AccessError)):
            authenticate(office.deps, *call)
    assert rotation.purge(office.deps) == 0


def test_a_request_that_comes_twice_at_once_is_accepted_once(office: Office, kms: Kms) -> None:
    """Eight threads with one nonce: one of them passes."""
    call = kms.call(office, "POST", "/v1/deposits", b"body")
    answers: list[object] = []

    def race(_number: int) -> None:
        try:
            answers.append(authenticate(office.deps, *call))
        except KeymailboxError as error:
            answers.append(error)

    together(8, race)
    assert sum(isinstance(answer, Caller) for answer in answers) == 1
    assert sum(isinstance(answer, ReplayedError) for answer in answers) == 7


def test_what_is_not_signed_for_this_request_is_refused(office: Office, kms: Kms) -> None:
    """No signature, stale, early, other body, target or method, unknown key: each is refused, with a hint."""
    method, url, headers, body = kms.call(office, "POST", "/v1/deposits", b"body")
    stranger = Kms(parse_address("initech/hq"))
    stale = kms.call(office, "GET", "/v1/sent", created=office.clock.now() - timedelta(seconds=301))
    early = kms.call(office, "GET", "/v1/sent", created=office.clock.now() + timedelta(seconds=32))
    swapped = {**headers, "Content-Digest": kms.call(office, "POST", "/", b"b0dy")[2]["Content-Digest"]}
    bad = [
        (method, url, {}, body),
        (method, url, {k: v for k, v in headers.items() if k != "Content-Digest"}, body),
        (method, url, headers, b"b0dy"),
        (method, url, headers, b""),
        (method, url, swapped, b"b0dy"),
        ("PUT", url, headers, body),
        (method, url.replace("deposits", "webhooks"), headers, body),
        (method, url.replace("mailbox.test", "evil.test"), headers, body),
        (method, url + "?admin=1", headers, body),
        stale,
        early,
        stranger.call(office, "GET", "/v1/sent"),
    ]
    hints = []
    for call in bad:
        with pytest.raises(AccessError) as caught:
            authenticate(office.deps, *call)
        hints.append(caught.value.hint)
    assert all(hints)
    # None of the tries has used up the nonce of the honest one.
    assert authenticate(office.deps, method, url, headers, body).instance.address == ACME


def test_an_enrolment_is_signed_with_the_key_that_it_names(office: Office, kms: Kms) -> None:
    """The signature must be of the very access key in the body; whoever just tries leaves nothing behind.

    No nonce is kept: the invitation works once by itself, and anybody could fill the table.
    """
    fresh = Kms(parse_address("acme/us-east"))
    call = fresh.call(office, "POST", "/v1/enrolments", b"{}")
    with pytest.raises(AccessError):
        access.authenticate_enrolment(office.deps, *call, kms.access_public)
    access.authenticate_enrolment(office.deps, *call, fresh.access_public)
    with office.deps.store.unit() as unit:
        assert access_store.purge_nonces(unit, office.clock.now() + timedelta(days=1)) == 0
