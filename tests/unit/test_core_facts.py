"""Addresses, identifiers, attributes and events: one form each."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pki.core import asn1, attributes, events, ids, oids, tenants
from pki.core.errors import BadAddressError, KeymailboxError, MalformedError, ProfileError, UsageError
from pki.core.events import Event, EventType
from pki.core.ids import EventId
from tests.kit.authority import NOW

EVENT = Event(
    id=EventId("00" * 16),
    type=EventType.DEPOSIT_AVAILABLE,
    subject="d",
    time=NOW,
    audience=("acme/eu-west", "globex/main"),
    data={"sequence": 1, "key_id": "schlüssel", "reason": None},
)
LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,29}[a-z0-9])?", fullmatch=True)


@given(LABEL, LABEL)
def test_addresses_come_back(tenant: str, instance: str) -> None:
    """An address survives text and URI, and fits in a common name."""
    address = tenants.parse_address(f"{tenant}/{instance}")
    assert tenants.parse_address(str(address)) == address
    assert tenants.parse_address_uri(address.uri) == address
    assert len(str(address)) <= 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "acme",
        "/",
        "acme/",
        "/x",
        "a/b/c",
        "Acme/x",
        "a_b/x",
        "-a/x",
        "a-/x",
        "a/x\n",
        "ä/x",
        "a" * 32 + "/x",
        "a/../x",
    ],
)
def test_bad_addresses(text: str) -> None:
    """Everything else is no address, in text and in URI."""
    with pytest.raises(BadAddressError):
        tenants.parse_address(text)
    with pytest.raises(BadAddressError):
        tenants.parse_address_uri("https://keymailbox.invalid/" + text)


def test_a_foreign_uri() -> None:
    """Another host is no address of ours."""
    with pytest.raises(BadAddressError):
        tenants.parse_address_uri("https://example.com/acme/x")


def test_identifiers() -> None:
    """Identifiers are hashes in hex or checked text."""
    assert ids.fingerprint(b"x") == ids.request_id(b"x") == hashlib.sha256(b"x").hexdigest()
    assert ids.deposit_id(bytes(16)) == "00" * 16
    for bad in (b"", bytes(15), bytes(17)):
        with pytest.raises(UsageError):
            ids.deposit_id(bad)
    for text in ("orders-2030", "a", "urn:x/y@z.1", "k" * 128):
        assert ids.key_id(text) == text
    for text in ("", " a", "a b", "-a", "a\n", "k" * 129, "ä"):
        with pytest.raises(UsageError):
            ids.key_id(text)


def test_attributes() -> None:
    """Attributes are known, single and complete."""
    one = attributes.attribute(oids.MEDIA_TYPE, asn1.encode("a"))
    assert attributes.values([one], required=[oids.MEDIA_TYPE], rule="R") == {oids.MEDIA_TYPE: asn1.encode("a")}
    twice = asn1.Attribute(oid=oids.MEDIA_TYPE, values=asn1.SetOf([asn1.tlv(b"\x05\x00")] * 2))
    none = asn1.Attribute(oid=oids.MEDIA_TYPE, values=asn1.SetOf([]))
    for bad in ([], [one, one], [twice], [none], [one, attributes.attribute(oids.DATA, b"\x05\x00")]):
        with pytest.raises(ProfileError) as caught:
            attributes.values(bad, required=[oids.MEDIA_TYPE], rule="R")
        assert caught.value.rule == "R"


def test_malformed_says_what() -> None:
    """An error of the decoder names the object and shows none of its bytes."""
    with pytest.raises(MalformedError) as caught:
        asn1.decode(asn1.ContentInfo, b"SECRETSECRET", what="The deposit")
    assert "The deposit" in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_errors_speak() -> None:
    """Message, object and rule stand in the text; the docstring is the default message."""
    assert str(ProfileError("no", on="x", rule="DEP-001")) == "no (x) [DEP-001]"
    assert str(MalformedError()) == MalformedError.__doc__
    codes = [kind.code for kind in _family(KeymailboxError)]
    assert len(codes) == len(set(codes))


def test_the_chain_fixes_everything() -> None:
    """The chain hash depends on the previous link and on every field of the event."""
    first = events.chain_hash(events.GENESIS, EVENT)
    assert first == hashlib.sha256(b"\x01" + bytes(32) + events.canonical(EVENT)).digest()
    changed: list[dict[str, Any]] = [
        {"id": EventId("01" * 16)},
        {"type": EventType.DEPOSIT_REFUSED},
        {"subject": "e"},
        {"time": NOW.replace(microsecond=1)},
        {"audience": ("acme/eu-west",)},
        {"data": {**EVENT.data, "sequence": 2}},
        {"data": {**EVENT.data, "reason": ""}},
    ]
    hashes = {events.chain_hash(events.GENESIS, replace(EVENT, **change)) for change in changed}
    assert len(hashes | {first, events.chain_hash(first, EVENT)}) == len(changed) + 2


def test_canonical_json() -> None:
    """The chained bytes are JSON with sorted keys, the same whatever the order of the data."""
    assert json.loads(events.canonical(EVENT))["data"]["key_id"] == "schlüssel"
    turned = replace(EVENT, data=dict(reversed(list(EVENT.data.items()))))
    assert events.canonical(turned) == events.canonical(EVENT)
    assert b": " not in events.canonical(EVENT)


def _family(kind: type[KeymailboxError]) -> list[type[KeymailboxError]]:
    return [kind, *(member for child in kind.__subclasses__() for member in _family(child))]
