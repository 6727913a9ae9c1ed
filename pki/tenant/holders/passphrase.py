"""Where the passphrase of sealed files comes from: a file that somebody manages, or a key file of our own."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from pki.core.errors import SettingsError
from pki.tenant.disk import write_new


class Passphrase:
    """A secret that does not show itself."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Passphrase(redacted)"

    def reveal(self) -> bytes:
        """Return the secret, for sealing and unsealing only."""
        return self._value


def read_passphrase(path: Path) -> Passphrase:
    """Read a passphrase from a file, without the newline at its end."""
    hint = "put the passphrase into a file and name it in KMB_PASSPHRASE_FILE"
    try:
        value = path.read_bytes()
    except OSError as error:
        raise SettingsError("The passphrase cannot be read", on=f"{path}: {error.strerror}", hint=hint) from None
    value = value.rstrip(b"\r\n")
    if not value:
        raise SettingsError("The passphrase file is empty", on=str(path), hint=hint)
    return Passphrase(value)


def passphrase_from_environment() -> Path | None:
    """Return the file that KMB_PASSPHRASE_FILE names, if it is set."""
    named = os.environ.get("KMB_PASSPHRASE_FILE", "")
    return Path(named).expanduser().absolute() if named else None


def create_key_file(path: Path) -> None:
    """Write 32 random bytes in hex as a passphrase of our own, unless the file is there."""
    write_new(path, secrets.token_hex(32).encode() + b"\n")
