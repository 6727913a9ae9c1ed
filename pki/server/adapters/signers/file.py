"""The issuing CAs' keys in files of the home, sealed under a passphrase."""

from __future__ import annotations

from pathlib import Path

from pki.core import sealing, signers
from pki.core.errors import AlgorithmError, SealError, SettingsError
from pki.core.issuers import ISSUING
from pki.core.signatures import SignatureAlgorithm, VerifyingKey
from pki.core.signers import SigningKey
from pki.server.adapters.signers import disk
from pki.server.ports import CA_FOLDER

KEYS = "private"
_FIRST = "issuing.key.sealed"
_PURPOSE = "keymailbox CA issuing key"


class FileKeys:
    """Keys in ``ca/private``; opened, one is in this process's memory."""

    def __init__(self, home: Path, passphrase: bytes) -> None:
        """Keep keys below ``home``, sealed under ``passphrase``."""
        self._home = home
        self._folder = home / CA_FOLDER / KEYS
        self._passphrase = passphrase

    def __repr__(self) -> str:
        return f"FileKeys({str(self._home)!r}, …)"

    def create(self, algorithm: SignatureAlgorithm) -> SigningKey:
        """Make a key and write it sealed; raises AlgorithmError, SettingsError for an empty passphrase."""
        key, name, content = sealed(algorithm, self._passphrase)
        disk.private_folder(self._folder)
        disk.create(self._folder / name, content, disk.SECRET)
        return key

    def open(self, public: VerifyingKey) -> SigningKey:
        """Unseal a key; SettingsError when it is not there or another one, SealError for a wrong passphrase."""
        path = self._path(public)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SettingsError(
                f"The CA's key cannot be read: {error.strerror}",
                on=str(path),
                hint=f"restore it, or run: kmb-server ca list --home {self._home}",
            ) from None
        try:
            secret = sealing.unseal(content, self._passphrase, purpose=_purpose(public.algorithm))
        except SealError as error:
            error.on = str(path)
            raise
        key = signers.load(public.algorithm, secret)
        if key.public != public:
            raise SettingsError("The CA's key and certificate do not belong together", on=str(path))
        return key

    def discard(self, public: VerifyingKey) -> None:
        """Remove a key's file."""
        disk.remove(self._folder / _name(public))

    def _path(self, public: VerifyingKey) -> Path:
        path = self._folder / _name(public)
        # A home of before there were several has one key, under a name of its own.
        return path if path.exists() or not (self._folder / _FIRST).exists() else self._folder / _FIRST


def sealed(algorithm: SignatureAlgorithm, passphrase: bytes) -> tuple[SigningKey, str, bytes]:
    """Return a new issuing key, and its file's name and content. Raises AlgorithmError, SettingsError."""
    if algorithm not in ISSUING & signers.MADE:
        hint = "RSA keys are made in a token: kmb-server ca request --token" if algorithm in ISSUING else ""
        raise AlgorithmError("An issuing CA's key is not made of this algorithm", on=algorithm.title, hint=hint)
    if not passphrase:
        raise SettingsError("The CA's passphrase is empty", hint="set KMB_PASSPHRASE_FILE")
    secret = signers.generate(algorithm)
    key = signers.load(algorithm, secret)
    return key, _name(key.public), sealing.seal(secret, passphrase, purpose=_purpose(algorithm))


def _name(public: VerifyingKey) -> str:
    return f"{public.ski.hex()}.key.sealed"


def _purpose(algorithm: SignatureAlgorithm) -> str:
    return _PURPOSE if algorithm is SignatureAlgorithm.ML_DSA_65 else f"{_PURPOSE}, {algorithm.title}"
