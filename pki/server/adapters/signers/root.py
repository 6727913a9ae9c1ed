"""The root: a folder of its own with certificate, sealed key, and what it has signed; best kept on no network."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.x509 import load_der_x509_certificate

from pki.core import issuers, sealing, signers, x509
from pki.core.authorities import authority_key, verify_authorities
from pki.core.errors import AlgorithmError, ConflictError, SealError, SettingsError
from pki.core.issuers import IssuingRequest
from pki.core.signatures import SignatureAlgorithm, named
from pki.core.signers import SigningKey
from pki.server import linting
from pki.server.adapters.linter import PkiLinter
from pki.server.adapters.signers import disk
from pki.server.ports import Linter

ROOT_KEY = "root.key.sealed"
ROOT_CERTIFICATE = "root.der"
_ISSUED = "issued"
_PURPOSE = "keymailbox CA root key"
_HINT = "set KMB_ROOT_PASSPHRASE_FILE, or type it when asked"


def root_algorithm(label: str) -> SignatureAlgorithm:
    """Return the algorithm for a root with this label, such as ``slh-dsa-sha2-128s``; raises UsageError."""
    return named(label, issuers.ROOTS)


def create_root(
    folder: Path, passphrase: bytes, now: datetime, algorithm: SignatureAlgorithm, linter: Linter | None = None
) -> bool:
    """Make a root in a folder of its own, all at once; False when there is a folder, which stays as it is.

    Raises ProfileError for what the linter, by default pkilint, finds (rule ISS-001); AlgorithmError; and SettingsError
    for an empty passphrase or a folder that cannot be written.
    """
    if algorithm not in issuers.ROOTS:
        raise AlgorithmError("A root's key is not made of this algorithm", on=algorithm.title)
    if not passphrase:
        raise SettingsError("The root's passphrase is empty", hint=_HINT)
    if folder.exists():
        return False
    secret = signers.generate(algorithm)
    key = signers.load(algorithm, secret)
    # A name of its own, so that the certificates of two installations are not mistaken for each other.
    tbs = issuers.root_tbs(f"keymailbox root {secrets.token_hex(4)}", key.public, serial=_serial(), now=now)
    unsigned = linting.dummy(tbs, algorithm)
    linting.demand_clean(linter or PkiLinter(), unsigned, on=str(folder), asked="a new root")
    files = {
        ROOT_CERTIFICATE: (x509.assemble(tbs, key.sign(tbs)), disk.PUBLIC),
        ROOT_KEY: (sealing.seal(secret, passphrase, purpose=_purpose(algorithm)), disk.SECRET),
    }
    try:
        return disk.create_folder(folder, files, mode=0o700)
    except OSError as error:
        raise SettingsError(f"The root cannot be written: {error.strerror}", on=str(folder)) from None


@dataclass(frozen=True)
class Root:
    """A root whose key is unsealed; only `open_root` makes one."""

    folder: Path
    certificate_der: bytes = field(repr=False)
    _key: SigningKey = field(repr=False)
    linter: Linter = field(default_factory=PkiLinter, repr=False, compare=False)

    def sign_issuing(
        self, request: IssuingRequest, now: datetime, *, lifetime: timedelta = issuers.ISSUING_LIFETIME
    ) -> bytes:
        """Return the certificate of an issuing CA in DER; for the same request again the same one.

        What is to be signed is linted, and in the folder, before it is signed, so that nothing is signed and forgotten.
        Raises ProfileError for what the linter finds (rule ISS-001), ConflictError for the root's own key, and for a
        name that another issuing CA has.
        """
        if request.key == self._key.public:
            raise ConflictError("The root's own key cannot be an issuing CA's", on=request.name)
        kept = self.folder / _ISSUED
        disk.private_folder(kept)
        with disk.alone(kept):
            self._refuse_taken_name(request)
            path = kept / f"{request.key.ski.hex()}.der"
            if path.exists():
                return path.read_bytes()
            prepared = path.with_suffix(".tbs")
            stored = prepared.exists()
            if stored:
                # What is signed follows from the request alone, whatever became of the stored bytes since.
                tbs = issuers.same_tbs(prepared.read_bytes(), request, root_der=self.certificate_der)
            else:
                tbs = issuers.issuing_tbs(
                    request, root_der=self.certificate_der, serial=_serial(), now=now, lifetime=lifetime
                )
            unsigned = linting.dummy(tbs, self._key.public.algorithm)
            linting.demand_clean(self.linter, unsigned, on=request.name, asked=request.fingerprint)
            if not stored:
                disk.create(prepared, tbs, disk.PUBLIC)
            der = x509.assemble(tbs, self._key.sign(tbs))
            # It lasts for years: that the signature is good is seen before anybody has it.
            verify_authorities(issuing_der=der, root_der=self.certificate_der, now=now)
            disk.create(path, der, disk.PUBLIC)
            return der

    def issued(self) -> list[bytes]:
        """Return the certificates of the issuing CAs that this root has signed, in DER."""
        return [path.read_bytes() for path in sorted((self.folder / _ISSUED).glob("*.der"))]

    def _refuse_taken_name(self, request: IssuingRequest) -> None:
        subject = x509.common_name_der(request.name)
        for der in [self.certificate_der, *self.issued()]:
            named = load_der_x509_certificate(der).subject.public_bytes() == subject
            if named is not (authority_key(der) == request.key):
                # Revocation lists are told apart by their issuer's name (RFC 5280 §5.1.2.3).
                wrong = "Another CA has this name" if named else "The key has a certificate under another name"
                raise ConflictError(wrong, on=request.name, hint="kmb-server ca request --discard, for a new key")


def open_root(folder: Path, passphrase: bytes) -> Root:
    """Unseal a root's key. Raises SettingsError when there is no root, SealError for a wrong passphrase."""
    try:
        certificate = (folder / ROOT_CERTIFICATE).read_bytes()
        sealed = (folder / ROOT_KEY).read_bytes()
    except OSError as error:
        raise SettingsError(
            f"There is no root that can be read: {error.strerror}",
            on=str(error.filename or folder),
            hint=f"kmb-server ca init --root {folder}",
        ) from None
    public = authority_key(certificate)
    try:
        secret = sealing.unseal(sealed, passphrase, purpose=_purpose(public.algorithm))
    except SealError as error:
        error.hint = "check KMB_ROOT_PASSPHRASE_FILE"
        raise
    key = signers.load(public.algorithm, secret)
    if key.public != public:
        raise SettingsError("The root's key and certificate do not belong together", on=str(folder))
    return Root(folder, certificate, key)


def _serial() -> int:
    # Positive with at most 20 bytes, 159 random bits (RFC 5280 §4.1.2.2).
    return secrets.randbits(159) or 1


def _purpose(algorithm: SignatureAlgorithm) -> str:
    return _PURPOSE if algorithm is SignatureAlgorithm.ML_DSA_65 else f"{_PURPOSE}, {algorithm.title}"
