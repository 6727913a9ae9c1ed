"""An officer's own signing key in a file, sealed under a passphrase that only this person knows."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

from pki.core import sealing, signers
from pki.core.errors import ConflictError, NotFoundError, SealError, SettingsError, UsageError
from pki.core.officers import officer_name
from pki.core.signatures import SignatureAlgorithm
from pki.core.signers import SigningKey

PUBLIC_SUFFIX = ".pub"
SHORTEST_PASSPHRASE = 12
"""Characters."""
_ALGORITHM = SignatureAlgorithm.ML_DSA_65
_LARGEST = 64 * 1024
_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*")


def create(path: Path, name: str, passphrase: bytes) -> SigningKey:
    """Make a key for the officer ``name``: sealed into ``path``, and its public half in PEM beside it.

    Neither file is ever replaced: ConflictError. Raises UsageError for what is no name or too short a passphrase.
    """
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise UsageError(
            f"An officer's passphrase has at least {SHORTEST_PASSPHRASE} characters",
            hint=f"kmb-server officer create {name}",
        )
    secret = signers.generate(_ALGORITHM)
    key = signers.load(_ALGORITHM, secret)
    _write(path, sealing.seal(secret, passphrase, purpose=_purpose(officer_name(name))), 0o600)
    _write(path.with_name(path.name + PUBLIC_SUFFIX), pem(key.public.spki), 0o644)
    return key


def load(path: Path, name: str, passphrase: bytes) -> SigningKey:
    """Open the key of the officer ``name``. Raises NotFoundError, SealError: wrong passphrase, or another's key."""
    try:
        secret = sealing.unseal(_read(path), passphrase, purpose=_purpose(officer_name(name)))
    except SealError as error:
        raise SealError(error.message, on=str(path), hint="check the name and the passphrase") from None
    return signers.load(_ALGORITHM, secret)


def load_public(path: Path) -> bytes:
    """Return the SubjectPublicKeyInfo, in DER, of a file in PEM. Raises NotFoundError, UsageError."""
    found = _PEM.fullmatch(_read(path).decode("ascii", errors="replace"))
    if found is None:
        raise UsageError(
            "The file is no public key in PEM", on=str(path), hint="kmb-server officer create NAME --out FILE"
        )
    try:
        return base64.b64decode("".join(found[1].split()), validate=True)
    except ValueError:
        raise UsageError("The file is no public key in PEM", on=str(path)) from None


def pem(spki: bytes) -> bytes:
    """Return a public key in PEM (RFC 7468 §13)."""
    text = base64.b64encode(spki).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----", ""]).encode()


def _purpose(name: str) -> str:
    return f"keymailbox officer {name}"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST)
    except FileNotFoundError:
        raise NotFoundError(
            "There is no such file", on=str(path), hint="kmb-server officer create NAME --out FILE"
        ) from None
    except OSError as error:
        raise SettingsError(f"The file cannot be read: {error.strerror}", on=str(path)) from None


def _write(path: Path, content: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise ConflictError("The file is there already", on=str(path), hint="--out ANOTHER") from None
    except OSError as error:
        raise SettingsError(f"The file cannot be written: {error.strerror}", on=str(path)) from None
