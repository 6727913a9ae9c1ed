"""Signed HTTP requests: what is signed cannot be changed, replayed late or left out."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from http_message_signatures import HTTPMessageSigner, MappingKeyResolver, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st

from pki.core import httpsig
from pki.core.errors import AccessError, KeymailboxError, UnavailableError, UsageError
from tests.kit.authority import NOW

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
KEY_ID = httpsig.key_id(KEY.public_key().public_bytes_raw())
URL = "http://127.0.0.1:8080/v1/mailboxes/acme/eu-west?after=3&limit=100"
NONCE = "0123456789abcdef" * 2
BODY = b"the body"


def signed(**changes: Any) -> dict[str, str]:
    """Return the headers of a signed request."""
    fields: dict[str, Any] = {
        "method": "POST",
        "url": URL,
        "headers": {"Accept": "*/*"},
        "body": BODY,
        "key_id": KEY_ID,
        "sign": KEY.sign,
        "created": NOW,
        "nonce": NONCE,
        **changes,
    }
    positional = [fields.pop(name) for name in ("method", "url", "headers", "body")]
    return {"Accept": "*/*", **httpsig.sign_request(*positional, **fields)}


def resolve(key_id: str) -> Ed25519PublicKey:
    """Return the one key."""
    if key_id != KEY_ID:
        raise AccessError("unknown key", hint="enrol")
    return KEY.public_key()


def verify(headers: dict[str, str], **changes: Any) -> httpsig.SignedRequest:
    """Verify a request, with something changed."""
    fields: dict[str, Any] = {"method": "POST", "url": URL, "body": BODY, "resolve": resolve, "now": NOW, **changes}
    return httpsig.verify_request(fields.pop("method"), fields.pop("url"), headers, fields.pop("body"), **fields)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("body", [b"", BODY])
@pytest.mark.parametrize("url", [URL, "https://mailbox.example/v1/ca", "http://[::1]:8080/livez?"])
def test_round_trip(method: str, body: bytes, url: str) -> None:
    """What was signed verifies, an empty body too."""
    headers = signed(method=method, body=body, url=url)
    found = verify(headers, method=method, body=body, url=url)
    assert found == httpsig.SignedRequest(KEY_ID, NONCE, NOW)
    lower = {name.lower(): value for name, value in headers.items()}
    assert verify(lower, method=method.lower(), body=body, url=url) == found


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "GET"},
        {"url": URL.replace("127.0.0.1", "127.0.0.2")},
        {"url": URL.replace("8080", "8081")},
        {"url": URL.replace("eu-west", "us")},
        {"url": URL.replace("after=3", "after=4")},
        {"url": URL.partition("?")[0]},
        {"body": b"another"},
        {"body": b""},
    ],
)
def test_a_request_that_was_not_signed(changes: dict[str, Any]) -> None:
    """Method, authority, path, query and body are all covered."""
    with pytest.raises(AccessError):
        verify(signed(), **changes)


def test_age() -> None:
    """A signature lives five minutes, and may be half a minute ahead."""
    for seconds in (-30, 0, 300):
        verify(signed(), now=NOW + timedelta(seconds=seconds))
    for seconds in (-31, 301, 86400):
        with pytest.raises(AccessError) as caught:
            verify(signed(), now=NOW + timedelta(seconds=seconds))
        assert "clock" in caught.value.hint


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["Signature", "Signature-Input", "Content-Digest"]), st.data())
def test_any_changed_character(name: str, data: st.DataObject) -> None:
    """No character of the three headers can be changed to another one that means something else."""
    headers = signed()
    value = headers[name]
    place = data.draw(st.integers(0, len(value) - 1))
    character = data.draw(st.characters(codec="ascii"))
    changed = {**headers, name: value[:place] + character + value[place + 1 :]}
    try:
        found = verify(changed)
    except KeymailboxError:
        return
    assert found == httpsig.SignedRequest(KEY_ID, NONCE, NOW)


def test_each_failure_has_its_hint() -> None:
    """Somebody who has a problem learns which one it is."""
    headers = signed()
    without = {name: value for name, value in headers.items() if name != "Signature"}
    no_digest = {name: value for name, value in headers.items() if name != "Content-Digest"}
    hints = set()
    for bad, changes in (
        (without, {}),
        (no_digest, {}),
        (headers, {"body": b"x"}),
        (headers, {"method": "GET"}),
        (headers, {"now": NOW + timedelta(days=1)}),
        (signed(key_id="0" * 32), {}),
        (signed(key_id="short"), {}),
        (signed(nonce="short"), {}),
    ):
        with pytest.raises(AccessError) as caught:
            verify(bad, **changes)
        assert caught.value.hint
        hints.add(caught.value.hint)
    assert len(hints) == 8


def test_the_error_of_a_look_up_goes_through() -> None:
    """A database that is away is not a bad signature."""

    def away(key_id: str) -> Ed25519PublicKey:
        raise UnavailableError

    with pytest.raises(UnavailableError):
        verify(signed(), resolve=away)


class Message:
    """A request as the library takes it."""

    def __init__(self) -> None:
        self.method, self.url = "POST", URL
        self.headers: dict[str, str] = {}


def by_hand(*, components: tuple[str, ...] = httpsig.COMPONENTS, label: str = "kmb", **options: Any) -> dict[str, str]:
    """Return the headers of a request that was signed with other choices than ours."""
    signer = HTTPMessageSigner(
        signature_algorithm=algorithms.ED25519,
        key_resolver=MappingKeyResolver(public_keys={}, private_keys={KEY_ID: KEY}),
    )
    message = Message()
    arguments: dict[str, Any] = {"key_id": KEY_ID, "created": NOW, "nonce": NONCE, "body": BODY, **options}
    signer.sign(message, label=label, covered_component_ids=components, **arguments)
    return message.headers


@pytest.mark.parametrize(
    "options",
    [
        {"label": "sig1"},
        {"components": ("@method", "@path", "@query", "content-digest")},
        {"components": ("@method", "@authority", "@query", "content-digest")},
        {"components": (*httpsig.COMPONENTS, "@scheme")},
        {"nonce": None},
        {"nonce": "0" * 31},
        {"include_alg": False},
        {"expires": NOW},
        {"tag": "x"},
    ],
    ids=str,
)
def test_other_choices(options: dict[str, Any]) -> None:
    """A good signature over less, or with other parameters, is not ours."""
    verify(by_hand())
    with pytest.raises(AccessError):
        verify(by_hand(**options))


def test_two_signatures() -> None:
    """A second signature is refused, lest somebody look at the wrong one."""
    one, two = signed(), by_hand(label="other")
    both = {name: f"{one[name]}, {two[name]}" for name in ("Signature", "Signature-Input")}
    with pytest.raises(AccessError):
        verify({**one, **both})


def test_what_cannot_be_signed() -> None:
    """A relative URL or a key of a wrong size is the caller's mistake."""
    with pytest.raises(UsageError):
        signed(url="/v1/ca")
    with pytest.raises(UsageError):
        httpsig.key_id(b"short")


def verified_by_the_library(headers: dict[str, str], *, url: str, method: str) -> object:
    """Verify as is done for whatever is not written in our one way; return who signed, or the error's class."""
    try:
        return httpsig._verified_by_the_library(
            method.upper(), url, headers, BODY, resolve, NOW, httpsig.MAX_AGE, httpsig.SKEW
        )
    except KeymailboxError as error:
        return type(error)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["Signature", "Signature-Input", "Content-Digest", "Idempotency-Key", "url", "method"]), st.data()
)
def test_the_quick_way_says_what_the_library_says(name: str, data: st.DataObject) -> None:
    """Whatever is changed, and wherever: who is let through quickly is let through by the library, as the same."""
    fields = {"Idempotency-Key": "one two"}
    headers = signed(headers=fields) | fields
    given = {"url": URL, "method": "POST"}
    value = given.get(name) or headers[name]
    place = data.draw(st.integers(0, len(value)))
    length = data.draw(st.integers(0, 2))
    put = data.draw(st.text(st.sampled_from('aA0=;:"() /?%&.~\t\\\x00é') | st.characters(codec="ascii"), max_size=3))
    changed = value[:place] + put + value[place + length :]
    if name in given:
        given[name] = changed
    else:
        headers[name] = changed
    try:
        found: object = verify(headers, **given)
    except KeymailboxError as error:
        found = type(error)
    assert found == verified_by_the_library(headers, **given)


@pytest.mark.parametrize("url", [URL, "https://mailbox.example/v1/ca", "https://mailbox.example/a?b=%41", URL + "?"])
@pytest.mark.parametrize("fields", [{}, {"Idempotency-Key": "k"}, {"supersedes": "0" * 32, "idempotency-key": "a b"}])
def test_the_library_signs_the_same(url: str, fields: dict[str, str]) -> None:
    """What is signed quickly is byte by byte what the library makes of it."""
    quick = signed(url=url, headers=fields)
    slow = httpsig._signed_by_the_library("POST", url, {"Accept": "*/*", **fields}, BODY, KEY_ID, KEY.sign, NOW, NONCE)
    assert {"Accept": "*/*", **slow} == quick
    assert httpsig.claimed_key({name.lower(): value for name, value in quick.items()}) == KEY_ID


def test_our_own_requests_go_the_quick_way() -> None:
    """What our clients send needs no parser, which takes ten times as long."""
    given = ("POST", URL, signed(), BODY, resolve, NOW, httpsig.MAX_AGE, httpsig.SKEW)
    assert httpsig._verified_quickly(*given) == httpsig.SignedRequest(KEY_ID, NONCE, NOW)
