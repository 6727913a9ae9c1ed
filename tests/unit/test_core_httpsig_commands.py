"""Header fields that change what a request does are signed, and a changed one is refused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pki.core import httpsig
from pki.core.errors import AccessError

NOW = datetime(2030, 5, 17, tzinfo=UTC)
KEY = Ed25519PrivateKey.generate()
HEADERS = {"Idempotency-Key": "one", "Supersedes": "a" * 32, "Content-Type": "application/cms"}
URL = "https://mailbox.example/v1/deposits"


def verify(headers: dict[str, str]) -> httpsig.SignedRequest:
    """Verify a request with these header fields."""
    return httpsig.verify_request("POST", URL, headers, b"body", resolve=lambda _: KEY.public_key(), now=NOW)


def signed(headers: dict[str, str]) -> dict[str, str]:
    """Sign a request with these header fields."""
    name = httpsig.key_id(KEY.public_key().public_bytes_raw())
    added = httpsig.sign_request("POST", URL, headers, b"body", key_id=name, sign=KEY.sign, created=NOW, nonce="0" * 32)
    return {**headers, **added}


def test_commands_are_covered() -> None:
    """The signature names both fields when they are there."""
    whole = signed(HEADERS)
    assert '"idempotency-key" "supersedes"' in whole["Signature-Input"]
    assert verify(whole).nonce == "0" * 32


@pytest.mark.parametrize("name", ["Idempotency-Key", "Supersedes"])
def test_a_command_cannot_be_changed_added_or_taken_away(name: str) -> None:
    """Each of the three is another request than the one that was signed."""
    without = {key: value for key, value in HEADERS.items() if key != name}
    for tampered in (
        signed(HEADERS) | {name: "b" * 32},
        signed(without) | {name: "b" * 32},
        {key: value for key, value in signed(HEADERS).items() if key != name},
    ):
        with pytest.raises(AccessError):
            verify(tampered)
