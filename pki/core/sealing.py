"""Files sealed under a passphrase: scrypt (RFC 7914) and AES-256-GCM, the header authenticated."""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from pki.core.errors import SealError

_FORMAT = "keymailbox-sealed/1"
_N, _R, _P = 1 << 15, 8, 1  # 32 MiB and about 60 ms
_MAX_N = 1 << 18  # 256 MiB
_REMEMBERED = 1024
_KEYS = {"format", "purpose", "kdf", "nonce", "ciphertext"}
_KDF_KEYS = {"name", "n", "r", "p", "salt"}


class Sealer:
    """Seals and opens files under one passphrase.

    One salt serves all that it seals, each under a nonce of its own, and a key is derived once for each salt: who has
    many files waits once. Whoever guesses the passphrase tries it on one file, with one salt or with many.
    """

    def __init__(self, passphrase: bytes) -> None:
        self._passphrase = passphrase
        self._salt = secrets.token_bytes(16)
        self._keys: dict[tuple[bytes, int], bytes] = {}

    def __repr__(self) -> str:
        return "Sealer()"

    def seal(self, plaintext: bytes, *, purpose: str) -> bytes:
        """Return ``plaintext`` sealed as JSON; ``purpose`` must be the same when it is opened."""
        nonce = secrets.token_bytes(12)
        kdf = {"name": "scrypt", "n": _N, "r": _R, "p": _P, "salt": _b64(self._salt)}
        header: dict[str, Any] = {"format": _FORMAT, "purpose": purpose, "kdf": kdf, "nonce": _b64(nonce)}
        ciphertext = AESGCM(self._key(self._salt, _N)).encrypt(nonce, plaintext, _aad(header))
        return json.dumps({**header, "ciphertext": _b64(ciphertext)}, indent=1).encode() + b"\n"

    def unseal(self, sealed: bytes, *, purpose: str) -> bytes:
        """Return the plaintext; a wrong passphrase, another purpose or changed bytes raise SealError."""
        try:
            header = json.loads(sealed)
            if set(header) != _KEYS or header["format"] != _FORMAT or set(header["kdf"]) != _KDF_KEYS:
                raise SealError("The file is not a sealed file of this version")
            ciphertext = base64.b64decode(header.pop("ciphertext"), validate=True)
            kdf = header["kdf"]
            n, r, p = kdf["n"], kdf["r"], kdf["p"]
            # Bounds before work: a crafted header must not make us allocate gigabytes.
            bounded = type(n) is int and 1 < n <= _MAX_N and n & (n - 1) == 0 and (r, p) == (_R, _P)
            if kdf["name"] != "scrypt" or not bounded:
                raise SealError("The file asks for key derivation that is not allowed")
            if header["purpose"] != purpose:
                raise SealError(f"The file was sealed for another purpose than {purpose}")
            key = self._key(base64.b64decode(kdf["salt"], validate=True), n)
            return AESGCM(key).decrypt(base64.b64decode(header["nonce"], validate=True), ciphertext, _aad(header))
        except InvalidTag:
            raise SealError(hint="check KMB_PASSPHRASE_FILE") from None
        except (ValueError, TypeError, KeyError, AttributeError, binascii.Error):
            raise SealError("The file is not a sealed file of this version") from None

    def _key(self, salt: bytes, n: int) -> bytes:
        found = self._keys.get((salt, n))
        if found is None:
            found = Scrypt(salt=salt, length=32, n=n, r=_R, p=_P).derive(self._passphrase)
            if len(self._keys) < _REMEMBERED:
                self._keys[salt, n] = found
        return found


def seal(plaintext: bytes, passphrase: bytes, *, purpose: str) -> bytes:
    """Return ``plaintext`` sealed as JSON; ``purpose`` must be the same when it is opened."""
    return Sealer(passphrase).seal(plaintext, purpose=purpose)


def unseal(sealed: bytes, passphrase: bytes, *, purpose: str) -> bytes:
    """Return the plaintext; a wrong passphrase, another purpose or changed bytes raise SealError."""
    return Sealer(passphrase).unseal(sealed, purpose=purpose)


def _aad(header: dict[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
