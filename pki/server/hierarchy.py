"""The CA's certificates in the server's home, read again when they have changed: every process sees a roll-over."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pki.core.errors import SettingsError
from pki.core.x509 import common_name_of
from pki.server.facts import CaChain
from pki.server.ports import CA_FOLDER, ISSUERS_FILE, ISSUING_FILE, REGISTRATION_FILE, REQUEST_FILE, ROOT_FILE

Stamp = tuple[int, ...]


def read_chain(home: Path) -> CaChain:
    """Return root, current and former issuing CA; raises SettingsError before ``kmb-server init``.

    The files are read when they have changed since, so that it may be asked at each use.
    """
    folder = home / CA_FOLDER
    try:
        return _read(folder, *(_stamp(folder / name) for name in (ROOT_FILE, ISSUING_FILE, ISSUERS_FILE)))
    except OSError as error:
        reason = error.strerror or type(error).__name__
    except ValueError:
        reason = f"{ISSUERS_FILE} is damaged"
    begun = (folder / REQUEST_FILE).exists() and not (folder / ROOT_FILE).exists()
    hint = f"kmb-server ca install FILE --home {home}" if begun else f"kmb-server init --home {home}"
    raise SettingsError(f"The CA's certificates cannot be read: {reason}", on=str(folder), hint=hint)


def read_registration(home: Path) -> bytes | None:
    """Return the public half of the registration key, None where there is none."""
    try:
        return (home / CA_FOLDER / REGISTRATION_FILE).read_bytes()
    except OSError:
        return None


def encode_issuers(certificates: tuple[bytes, ...]) -> bytes:
    """Return the content of ISSUERS_FILE: certificates in PEM, the current one first."""
    return b"".join(x509.load_der_x509_certificate(one).public_bytes(Encoding.PEM) for one in certificates)


def common_name(certificate_der: bytes) -> str:
    """Return how people call a CA: the common name of its certificate's subject."""
    return common_name_of(x509.load_der_x509_certificate(certificate_der).subject.public_bytes())


@lru_cache(maxsize=16)
def _read(folder: Path, *stamps: Stamp) -> CaChain:
    root = (folder / ROOT_FILE).read_bytes()
    try:
        pem = (folder / ISSUERS_FILE).read_bytes()
    except FileNotFoundError:
        return CaChain(root=root, issuing=(folder / ISSUING_FILE).read_bytes())
    current, *former = (one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(pem))
    return CaChain(root=root, issuing=current, former=tuple(former))


def _stamp(path: Path) -> Stamp:
    # A file that is replaced is another inode; the times are for file systems that use inodes again at once.
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
