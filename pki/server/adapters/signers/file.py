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

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from pki.core import authorities, crl, sealing, signers, x509
from pki.core.crl import Revoked
from pki.core.errors import AlgorithmError, SettingsError
from pki.core.signatures import SLH_DSA, SignatureAlgorithm, named
from pki.core.signers import SigningKey
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
        if self._key.public_key().public_bytes_raw() != authorities.authority_key(chain.issuing).raw:
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


ROOTS = frozenset({SignatureAlgorithm.ML_DSA_65, SignatureAlgorithm.ML_DSA_87}) | SLH_DSA
"""What a root's key may be; the issuing CA's is ML-DSA-65."""


def root_algorithm(label: str) -> SignatureAlgorithm:
    """Return the algorithm for a root with this label, such as ``slh-dsa-sha2-128s``; raises AlgorithmError."""
    return named(label, ROOTS)


def create_ca(
    home: Path, passphrase: bytes, now: datetime, *, root: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65
) -> CaChain:
    """Make root and issuing CA unless they are there, and return their certificates; one that is there stays.

    All files appear at once, on disk for good: a kill in between leaves no CA, and of two that are made at once the
    first stays. The root's sealed key is needed for the next issuing CA only and is best moved off the machine.
    """
    folder = home / CA_FOLDER
    if not folder.exists():
        if not passphrase:
            raise SettingsError("The CA's passphrase is empty", hint="set KMB_PASSPHRASE_FILE")
        try:
            _create(home, folder, passphrase, now, root)
        except OSError as error:
            raise SettingsError(f"The CA cannot be written: {error.strerror}", on=str(home)) from None
    try:
        return _chain(folder)
    except OSError as error:
        raise SettingsError(f"The CA cannot be read: {error.strerror}", on=str(folder)) from None


def _create(home: Path, folder: Path, passphrase: bytes, now: datetime, algorithm: SignatureAlgorithm) -> None:
    if algorithm not in ROOTS:
        raise AlgorithmError("A root's key is not made of this algorithm", on=algorithm.title)
    root, issuing = signers.generate(algorithm), signers.generate(SignatureAlgorithm.ML_DSA_65)
    chain = _certify(signers.load(algorithm, root), signers.load(SignatureAlgorithm.ML_DSA_65, issuing), now)
    # A root lasts for decades: that its signature is good is seen before anybody pins it.
    authorities.verify_authorities(issuing_der=chain.issuing, root_der=chain.root, now=now)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".ca-", dir=home))
    try:
        (made / _KEYS).mkdir(mode=0o700)
        for name, secret, purpose in (
            (_ROOT_KEY, root, _root_purpose(algorithm)),
            (_ISSUING_KEY, issuing, _ISSUING_PURPOSE),
        ):
            _write(made / _KEYS / name, sealing.seal(secret, passphrase, purpose=purpose), 0o600)
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


def _certify(root: SigningKey, issuing: SigningKey, now: datetime) -> CaChain:
    # A name of its own, so that the certificates of two installations are not mistaken for each other.
    mark = secrets.token_hex(4)
    start = now - _SKEW
    root_tbs = x509.ca_tbs(
        f"keymailbox root {mark}",
        root.public.spki,
        issuer_der=None,
        serial=secrets.randbits(159) or 1,
        not_before=start,
        not_after=start + _ROOT_LIFETIME,
        path_length=1,
    )
    root_der = x509.assemble(root_tbs, root.sign(root_tbs))
    issuing_tbs = x509.ca_tbs(
        f"keymailbox issuing {mark}",
        issuing.public.spki,
        issuer_der=root_der,
        serial=secrets.randbits(159) or 1,
        not_before=start,
        not_after=start + _ISSUING_LIFETIME,
        path_length=0,
    )
    return CaChain(root=root_der, issuing=x509.assemble(issuing_tbs, root.sign(issuing_tbs)))


def _chain(folder: Path) -> CaChain:
    return CaChain(root=(folder / ROOT_FILE).read_bytes(), issuing=(folder / ISSUING_FILE).read_bytes())


def _root_purpose(algorithm: SignatureAlgorithm) -> str:
    if algorithm is SignatureAlgorithm.ML_DSA_65:
        return _ROOT_PURPOSE
    return f"{_ROOT_PURPOSE}, {algorithm.title}"


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
