"""The CA's keys in files, sealed under a passphrase."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.x509 import load_der_x509_certificate

from pki.core import crl, sealing, x509
from pki.core.crl import Revoked
from pki.core.errors import SettingsError
from pki.server.ports import CA_FOLDER, ISSUING_FILE, ROOT_FILE, CaChain

_KEYS = "private"
_ROOT_KEY = "root.key.sealed"
_ISSUING_KEY = "issuing.key.sealed"
_ROOT_PURPOSE = "keymailbox CA root key"
_ISSUING_PURPOSE = "keymailbox CA issuing key"

_ROOT_LIFETIME = timedelta(days=20 * 365)
_ISSUING_LIFETIME = timedelta(days=10 * 365)
_SKEW = timedelta(minutes=5)


class FileSigner:
    """The issuing CA's ML-DSA-65 key, unsealed into this process's memory; the root's key stays sealed."""

    def __init__(self, home: Path, passphrase: bytes) -> None:
        """Open the key. Raises SettingsError when there is none, SealError when the passphrase is not the right one."""
        folder = home / CA_FOLDER
        try:
            chain = _chain(folder)
            sealed = (folder / _KEYS / _ISSUING_KEY).read_bytes()
        except OSError as error:
            raise SettingsError(
                f"The CA cannot be read: {error.strerror}", on=str(folder), hint=f"kmb-server init --home {home}"
            ) from None
        self._key = MLDSA65PrivateKey.from_seed_bytes(sealing.unseal(sealed, passphrase, purpose=_ISSUING_PURPOSE))
        self._chain = chain
        if x509.spki_of(self._key.public_key()) != _spki(chain.issuing):
            raise SettingsError("The CA's key and certificate do not belong together", on=str(folder))

    def __repr__(self) -> str:
        return "FileSigner(…)"

    @property
    def certificate_der(self) -> bytes:
        """The issuing CA's certificate."""
        return self._chain.issuing

    @property
    def root_der(self) -> bytes:
        """The root's certificate."""
        return self._chain.root

    def sign(self, message: bytes, /) -> bytes:
        """Return the ML-DSA-65 signature over ``message``."""
        return self._key.sign(message)

    def sign_crl(
        self, number: int, this_update: datetime, next_update: datetime, revoked: Iterable[tuple[int, Revoked]], /
    ) -> bytes:
        """Return a full CRL in DER."""
        return crl.build_crl(
            self._chain.issuing,
            self._key,
            number=number,
            this_update=this_update,
            next_update=next_update,
            revoked=revoked,
        )


def create_ca(home: Path, passphrase: bytes, now: datetime) -> CaChain:
    """Make root and issuing CA unless they are there, and return their certificates.

    All files appear at once, on disk for good: a kill in between leaves no CA, and of two that are made at once the
    first stays. The root's sealed key is needed for the next issuing CA only and is best moved off the machine.
    """
    folder = home / CA_FOLDER
    if not folder.exists():
        if not passphrase:
            raise SettingsError("The CA's passphrase is empty", hint="set KMB_PASSPHRASE_FILE")
        try:
            _create(home, folder, passphrase, now)
        except OSError as error:
            raise SettingsError(f"The CA cannot be written: {error.strerror}", on=str(home)) from None
    try:
        return _chain(folder)
    except OSError as error:
        raise SettingsError(f"The CA cannot be read: {error.strerror}", on=str(folder)) from None


def _create(home: Path, folder: Path, passphrase: bytes, now: datetime) -> None:
    root, issuing = MLDSA65PrivateKey.generate(), MLDSA65PrivateKey.generate()
    chain = _certify(root, issuing, now)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".ca-", dir=home))
    try:
        (made / _KEYS).mkdir(mode=0o700)
        for name, key, purpose in ((_ROOT_KEY, root, _ROOT_PURPOSE), (_ISSUING_KEY, issuing, _ISSUING_PURPOSE)):
            _write(made / _KEYS / name, sealing.seal(key.private_bytes_raw(), passphrase, purpose=purpose), 0o600)
        _write(made / ROOT_FILE, chain.root, 0o644)
        _write(made / ISSUING_FILE, chain.issuing, 0o644)
        made.chmod(0o755)
        for directory in (made / _KEYS, made):
            _sync(directory)
        with contextlib.suppress(FileExistsError):
            _move(made, folder)
        _sync(home)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _certify(root: MLDSA65PrivateKey, issuing: MLDSA65PrivateKey, now: datetime) -> CaChain:
    # A name of its own, so that the certificates of two installations are not mistaken for each other.
    mark = secrets.token_hex(4)
    start = now - _SKEW
    root_tbs = x509.ca_tbs(
        f"keymailbox root {mark}",
        x509.spki_of(root.public_key()),
        issuer_der=None,
        serial=secrets.randbits(159) or 1,
        not_before=start,
        not_after=start + _ROOT_LIFETIME,
        path_length=1,
    )
    root_der = x509.assemble(root_tbs, root.sign(root_tbs))
    issuing_tbs = x509.ca_tbs(
        f"keymailbox issuing {mark}",
        x509.spki_of(issuing.public_key()),
        issuer_der=root_der,
        serial=secrets.randbits(159) or 1,
        not_before=start,
        not_after=start + _ISSUING_LIFETIME,
        path_length=0,
    )
    return CaChain(root=root_der, issuing=x509.assemble(issuing_tbs, root.sign(issuing_tbs)))


def _chain(folder: Path) -> CaChain:
    return CaChain(root=(folder / ROOT_FILE).read_bytes(), issuing=(folder / ISSUING_FILE).read_bytes())


def _spki(certificate_der: bytes) -> bytes | None:
    key = load_der_x509_certificate(certificate_der).public_key()
    return x509.spki_of(key) if isinstance(key, MLDSA65PublicKey) else None


def _move(made: Path, folder: Path) -> None:
    """Rename; raise FileExistsError when somebody else's is there, which is never replaced: it is not empty."""
    try:
        made.rename(folder)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise FileExistsError(error.errno, error.strerror) from None
        raise


def _write(path: Path, content: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
