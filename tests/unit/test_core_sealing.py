"""Sealed files open with their passphrase and purpose, and with nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from pki.core.errors import SealError
from pki.core.sealing import seal, unseal

SECRET = b"the private key"
SEALED = seal(SECRET, b"passphrase", purpose="identity key")


def test_round_trip() -> None:
    """What was sealed comes back, and two seals of the same differ."""
    assert unseal(SEALED, b"passphrase", purpose="identity key") == SECRET
    assert seal(SECRET, b"passphrase", purpose="identity key") != SEALED
    assert SECRET not in SEALED


def test_guessing_is_dear() -> None:
    """Each guess of a passphrase costs 32 MiB (tests/conftest.py makes it cheap for tests alone: not here)."""
    words = "from pki.core.sealing import seal; print(seal(b'', b'passphrase', purpose='identity key').decode())"
    sealed = subprocess.run([sys.executable, "-c", words], capture_output=True, check=True, timeout=120).stdout
    kdf = json.loads(sealed)["kdf"]
    assert 128 * kdf["n"] * kdf["r"] == 32 * 1024 * 1024
    assert unseal(sealed, b"passphrase", purpose="identity key") == b""


@pytest.mark.parametrize(
    ("passphrase", "purpose"), [(b"Passphrase", "identity key"), (b"", "identity key"), (b"passphrase", "access key")]
)
def test_wrong_passphrase_or_purpose(passphrase: bytes, purpose: str) -> None:
    """Neither another passphrase nor another purpose opens the file."""
    with pytest.raises(SealError):
        unseal(SEALED, passphrase, purpose=purpose)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "keymailbox-sealed/2"},
        {"purpose": "access key"},
        {"kdf": {"name": "scrypt", "n": 1 << 30, "r": 8, "p": 1, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="}},
        {"kdf": {"name": "scrypt", "n": 3, "r": 8, "p": 1, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="}},
        {"kdf": {"name": "scrypt", "n": True, "r": 8, "p": 1, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="}},
        {"kdf": {"name": "scrypt", "n": 32768, "r": 1 << 20, "p": 1, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="}},
        {"kdf": {"name": "pbkdf2", "n": 32768, "r": 8, "p": 1, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="}},
        {"kdf": []},
        {"kdf": None},
        {"nonce": "AAAAAAAAAAAAAAAA"},
        {"nonce": "!"},
        {"nonce": 5},
        {"ciphertext": "AAAA"},
        {"extra": 1},
    ],
)
def test_changed_header(change: dict[str, Any]) -> None:
    """Each field of the header is authenticated or refused before any work is done."""
    with pytest.raises(SealError):
        unseal(json.dumps({**json.loads(SEALED), **change}).encode(), b"passphrase", purpose="identity key")


@pytest.mark.parametrize("junk", [b"", b"{}", b"[]", b"null", b"\xff\xfe", SEALED[:-20]])
def test_junk(junk: bytes) -> None:
    """Junk is refused with the same error."""
    with pytest.raises(SealError):
        unseal(junk, b"passphrase", purpose="identity key")
