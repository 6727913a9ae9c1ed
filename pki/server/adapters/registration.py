"""The registration key: invitations' secrets are sealed to it, and the issuer process opens them, for CMP's MACs."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from pki.core import envelope, kem, keys, sealing, x509
from pki.core.errors import SealError, SettingsError
from pki.core.kem import KemAlgorithm
from pki.server.ports import CA_FOLDER, REGISTRATION_FILE

_ALGORITHM = KemAlgorithm.COMPOSITE
_KEYS = "private"
_SEALED = "registration.key.sealed"
_PURPOSE = "keymailbox registration key"


class RegistrationKey:
    """The private half, unsealed into this process's memory."""

    def __init__(self, home: Path, passphrase: bytes) -> None:
        """Open the key. Raises SettingsError when there is none, SealError when the passphrase is not the right one."""
        folder = home / CA_FOLDER
        try:
            sealed = (folder / _KEYS / _SEALED).read_bytes()
            public = (folder / REGISTRATION_FILE).read_bytes()
        except OSError as error:
            raise SettingsError(
                f"The registration key cannot be read: {error.strerror}",
                on=str(folder),
                hint=f"kmb-server init --home {home}",
            ) from None
        self._private = _unseal(sealed, passphrase, folder / _KEYS / _SEALED)
        self._ski = x509.key_identifier(public)
        if kem.spki(_ALGORITHM, kem.public_from_private(_ALGORITHM, self._private)) != public:
            raise SettingsError("The halves of the registration key do not belong together", on=str(folder))

    def __repr__(self) -> str:
        return "RegistrationKey(…)"

    def open(self, sealed: bytes, /) -> bytes:
        """Return what was sealed to the key; raises UnwrapError or what is wrong with the envelope."""
        parsed = envelope.parse(sealed)
        return envelope.unwrap(parsed, self._ski, lambda alg, sent: keys.recover(alg, self._private, sent))


def create(home: Path, passphrase: bytes) -> None:
    """Make what is missing of the key. Of two that are made at once the first stays, and a kill leaves no half of one.

    Without its private half, which cannot be had again, it is made anew: what was sealed to it stays closed.
    Raises SettingsError, and SealError when there is a key under another passphrase.
    """
    folder = home / CA_FOLDER
    sealed, public = folder / _KEYS / _SEALED, folder / REGISTRATION_FILE
    try:
        if sealed.exists() and public.exists():
            return
        (folder / _KEYS).mkdir(mode=0o700, exist_ok=True)
        if not sealed.exists():
            fresh = sealing.seal(kem.generate(_ALGORITHM), passphrase, purpose=_PURPOSE)
            with contextlib.suppress(FileExistsError):
                _put(sealed, fresh, 0o600, lambda made: sealed.hardlink_to(made))
        # The public half of the key that is there, whoever made it, comes last: what is sealed to it can be opened.
        private = _unseal(sealed.read_bytes(), passphrase, sealed)
        spki = kem.spki(_ALGORITHM, kem.public_from_private(_ALGORITHM, private))
        _put(public, spki, 0o644, lambda made: made.replace(public))
    except OSError as error:
        raise SettingsError(f"The registration key cannot be written: {error.strerror}", on=str(folder)) from None


def _unseal(sealed: bytes, passphrase: bytes, path: Path) -> bytes:
    try:
        return sealing.unseal(sealed, passphrase, purpose=_PURPOSE)
    except SealError as error:
        error.on = str(path)
        raise


def _put(path: Path, content: bytes, mode: int, place: Callable[[Path], object]) -> None:
    """Write a file that is there whole or not at all, on disk for good; ``place`` gives it its name."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        place(made)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        with contextlib.suppress(FileNotFoundError):
            made.unlink()
