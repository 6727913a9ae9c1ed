"""The CA in the server's home: set up, given its next issuing key, given its next issuing certificate."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pki.core import issuers
from pki.core.authorities import authority_key, ca_key_identifier, verify_authorities
from pki.core.errors import CertificateError, ConflictError, MalformedError, SettingsError, UnavailableError, UsageError
from pki.core.issuers import IssuingRequest
from pki.core.signatures import SignatureAlgorithm, named
from pki.server.adapters.signers import disk
from pki.server.adapters.signers.file import KEYS, sealed
from pki.server.adapters.signers.held import hold
from pki.server.adapters.signers.root import create_root, open_root
from pki.server.facts import CaChain
from pki.server.hierarchy import encode_issuers, read_chain
from pki.server.ports import CA_FOLDER, ISSUERS_FILE, ISSUING_FILE, REQUEST_FILE, ROOT_FILE, IssuingKeys

ROOT_FOLDER = "root"
"""Where ``init`` puts the root: beside the CA's folder, to be moved off the machine."""
_PROBE = b"keymailbox: does this key belong to its certificate?"
_RSA_BITS = {"rsa-3072": 3072, "rsa-4096": 4096}


def issuing_algorithm(label: str) -> tuple[SignatureAlgorithm, int]:
    """Return the algorithm for an issuing CA with this label, and the bits of an RSA key.

    Such as ``ml-dsa-65`` or ``rsa-3072``. Raises UsageError.
    """
    if bits := _RSA_BITS.get(label, 0):
        return SignatureAlgorithm.RSA, bits
    try:
        return named(label, issuers.ISSUING - {SignatureAlgorithm.RSA}), 0
    except UsageError as error:
        error.hint = f"{error.hint}; in a token also {', '.join(_RSA_BITS)}"
        raise


def create_ca(
    home: Path,
    passphrase: bytes,
    now: datetime,
    *,
    root: SignatureAlgorithm | None = None,
    root_passphrase: bytes = b"",
) -> CaChain:
    """Make root and issuing CA unless they are there, and return their certificates; what is there stays.

    Either folder appears at once, on disk for good: a kill leaves none, or a root whose issuing CA the next call makes;
    of two that are made at once the first stays. ``root`` is the new root's algorithm, by default ML-DSA-65; its key is
    sealed under ``root_passphrase``, by default that of the issuing CA's.
    """
    if not passphrase:
        raise SettingsError("The CA's passphrase is empty", hint="set KMB_PASSPHRASE_FILE")
    folder = home / CA_FOLDER
    try:
        if not folder.exists():
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            with disk.alone(home):
                if not folder.exists():
                    _create(home, folder, passphrase, root_passphrase or passphrase, now, root)
    except OSError as error:
        raise SettingsError(f"The CA cannot be written: {error.strerror}", on=str(home)) from None
    return read_chain(home)


def request_issuing(
    home: Path, keys: IssuingKeys, algorithm: SignatureAlgorithm, *, discard: bool = False
) -> tuple[bytes, IssuingRequest]:
    """Make the next issuing key and return the request for its certificate, in DER and read.

    While a request is under way, it is returned again, unless ``discard`` gives it and its key up; one for another
    algorithm raises ConflictError. The home needs no CA yet.
    """
    folder = home / CA_FOLDER
    path = folder / REQUEST_FILE
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o755, exist_ok=True)
        with disk.alone(folder):
            found = _under_way(home, path)
            if found is not None and not discard:
                if found[1].key.algorithm is not algorithm:
                    raise ConflictError(
                        "A request for a key of another algorithm is under way",
                        on=found[1].key.algorithm.title,
                        hint="kmb-server ca install FILE, or: kmb-server ca request --discard --out FILE",
                    )
                return found
            if found is not None:
                disk.remove(path)
                keys.discard(found[1].key)
            _check_opens(home, keys)
            key = keys.create(algorithm)
            der = issuers.compose_request(f"keymailbox issuing {secrets.token_hex(4)}", key.public, key.sign)
            disk.replace(path, der, disk.PUBLIC)
            return der, issuers.parse_request(der).verify()
    except OSError as error:
        raise SettingsError(f"The request cannot be written: {error.strerror}", on=str(folder)) from None


def _check_opens(home: Path, keys: IssuingKeys) -> None:
    """Raise SealError under another passphrase than the current issuing key's: the issuer has one for all of them."""
    # A key that is away or lost is no hindrance: this may be the way out.
    with suppress(SettingsError, UnavailableError):
        keys.open(authority_key(read_chain(home).issuing))


def pending(home: Path) -> IssuingRequest | None:
    """Return the request that is under way, if there is one."""
    found = _under_way(home, home / CA_FOLDER / REQUEST_FILE)
    return found[1] if found else None


def read_issued(content: bytes) -> tuple[bytes, bytes | None]:
    """Return the issuing CA's and, if it is there, the root's certificate of what a ceremony wrote (PEM, or one DER).

    Nothing is verified. Raises MalformedError.
    """
    try:
        if content.lstrip().startswith(b"-----BEGIN"):
            found = [one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(content)]
        else:
            found = [x509.load_der_x509_certificate(content).public_bytes(Encoding.DER)]
    except (ValueError, TypeError):
        found = []
    if len(found) not in (1, 2):
        raise MalformedError("This is not what a ceremony wrote", hint="kmb-server ca sign-issuing --out FILE")
    return found[0], found[1] if len(found) == 2 else None


def install(
    home: Path, keys: IssuingKeys, content: bytes, now: datetime, *, root_fingerprint: str | None = None
) -> CaChain:
    """Make an issuing CA's certificate the current one, and return the chain; again it changes nothing.

    The former ones stay while they are valid. It has to be under the home's root; a home without one takes the root of
    the file if it has ``root_fingerprint`` (SHA-256, hex). Raises CertificateError, ConflictError for a name or key
    that is taken, and SettingsError when the key is not here.
    """
    issuing, shown = read_issued(content)
    folder = home / CA_FOLDER
    try:
        if not folder.is_dir():
            raise SettingsError("No issuing key was made here", on=str(folder), hint="kmb-server ca request --out FILE")
        with disk.alone(folder):
            there = read_chain(home) if _has_issuer(home) else None
            root = _root(folder, shown, root_fingerprint)
            verify_authorities(issuing_der=issuing, root_der=root, now=now)
            _refuse_taken(issuing, there)
            public = authority_key(issuing)
            public.verify(hold(keys, issuing).sign(_PROBE), _PROBE)
            if there is None or there.issuing != issuing:
                former = [one for one in (there.all if there else ()) if one != issuing and _valid(one, now)]
                disk.create(folder / ROOT_FILE, root, disk.PUBLIC)
                disk.replace(folder / ISSUERS_FILE, encode_issuers((issuing, *former)), disk.PUBLIC)
            if _under_way(home, folder / REQUEST_FILE) is None:
                # What was asked for is here; another request that is under way stays.
                disk.remove(folder / REQUEST_FILE)
            return read_chain(home)
    except OSError as error:
        raise SettingsError(f"The certificate cannot be installed: {error.strerror}", on=str(folder)) from None


def _create(
    home: Path,
    folder: Path,
    passphrase: bytes,
    root_passphrase: bytes,
    now: datetime,
    algorithm: SignatureAlgorithm | None,
) -> None:
    place = home / ROOT_FOLDER
    create_root(place, root_passphrase, now, algorithm or SignatureAlgorithm.ML_DSA_65)
    root = open_root(place, root_passphrase)
    found = authority_key(root.certificate_der).algorithm
    if algorithm is not None and found is not algorithm:
        raise other_root(home, found)
    key, name, content = sealed(SignatureAlgorithm.ML_DSA_65, passphrase)
    request = issuers.compose_request(f"keymailbox issuing {secrets.token_hex(4)}", key.public, key.sign)
    issuing = root.sign_issuing(issuers.parse_request(request).verify(), now)
    files = {
        ROOT_FILE: (root.certificate_der, disk.PUBLIC),
        ISSUERS_FILE: (encode_issuers((issuing,)), disk.PUBLIC),
        f"{KEYS}/{name}": (content, disk.SECRET),
    }
    disk.create_folder(folder, files, mode=0o755)


def other_root(home: Path, found: SignatureAlgorithm) -> SettingsError:
    """Return the error for a home whose root is of another algorithm than the one asked for."""
    return SettingsError(
        "There is a root of another algorithm, and it stays",
        on=f"{home}: {found.title}",
        hint="kmb-server init --home ANOTHER",
    )


def _under_way(home: Path, path: Path) -> tuple[bytes, IssuingRequest] | None:
    try:
        der = path.read_bytes()
    except FileNotFoundError:
        return None
    request = issuers.parse_request(der).verify()
    installed = read_chain(home).all if _has_issuer(home) else ()
    if any(authority_key(one) == request.key for one in installed):
        # Its certificate is installed; a kill came before the request was removed.
        return None
    return der, request


def has_root(home: Path) -> bool:
    """Tell whether a home has a root that it trusts."""
    return (home / CA_FOLDER / ROOT_FILE).exists()


def _has_issuer(home: Path) -> bool:
    folder = home / CA_FOLDER
    return has_root(home) and any((folder / name).exists() for name in (ISSUERS_FILE, ISSUING_FILE))


def _root(folder: Path, shown: bytes | None, told: str | None) -> bytes:
    path = folder / ROOT_FILE
    if path.exists():
        root = path.read_bytes()
        if shown is not None and shown != root:
            raise CertificateError("The issuing CA is under another root", on=_fingerprint(shown), rule="CRT-014")
        return root
    if shown is None:
        raise UsageError("There is no root here yet, and the file has none", hint="kmb-server ca sign-issuing again")
    wanted = (told or "").replace(":", "").replace(" ", "").lower()
    if not hmac.compare_digest(wanted.encode(), _fingerprint(shown).encode()):
        raise CertificateError(
            "The root is not the one that was told",
            on=f"the file's is {_fingerprint(shown)}",
            hint="kmb-server ca install FILE --root-fingerprint HEX, as the ceremony printed it",
        )
    return shown


def _refuse_taken(issuing: bytes, there: CaChain | None) -> None:
    subject = x509.load_der_x509_certificate(issuing).subject
    others: Sequence[bytes] = [one for one in (there.all if there else ()) if one != issuing]
    for one in others:
        if ca_key_identifier(one) == ca_key_identifier(issuing):
            raise ConflictError("The key has a certificate here already", on=_fingerprint(one))
        if x509.load_der_x509_certificate(one).subject == subject:
            # Revocation lists are told apart by their issuer's name (RFC 5280 §5.1.2.3).
            raise ConflictError("Another issuing CA has this name", on=subject.rfc4514_string())


def _valid(der: bytes, now: datetime) -> bool:
    return x509.load_der_x509_certificate(der).not_valid_after_utc > now


def _fingerprint(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()
