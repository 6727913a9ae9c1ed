"""The file holder: each key is its own sealed file, written whole, mode 0600."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pki.core import asn1, kem, keys, oids, signers
from pki.core.der import header
from pki.core.errors import ConflictError, KeymailboxError, NotFoundError, SealError, UnwrapError
from pki.core.ids import key_id
from pki.core.keys import KeyAlgorithm
from pki.core.packages import KeyMaterial, decode_package, encode_package
from pki.core.profile import Profile
from pki.core.sealing import Sealer
from pki.core.signatures import IDENTITY, SignatureAlgorithm, VerifyingKey, check_identity
from pki.core.signers import SigningKey
from pki.core.tenants import parse_address
from pki.tenant.disk import private_folder, write_new
from pki.tenant.holders.passphrase import Passphrase
from pki.tenant.ports import EncryptionKey, KeyName

_IDENTITY = {f"identity key {one.title}": one for one in IDENTITY}
_ACCESS = "access key Ed25519"
_SUFFIX = ".sealed"
_OBJECT_IDENTIFIER = 0x06


class FileHolder:
    """A KeyHolder in a folder: ``identity``, ``access``, ``encryption/<ski>.<algorithm>``, ``shared/<hash of name>``.

    A shared key's name stands readable, and authenticated, in the header of its file.
    """

    def __init__(self, folder: Path, passphrase: Passphrase) -> None:
        """Use ``folder``, which is made when it is missing."""
        self._folder = private_folder(folder)
        self._encryption = private_folder(folder / "encryption")
        self._shared = private_folder(folder / "shared")
        # Deriving a key takes a tenth of a second on purpose: once for all that is stored here by this process.
        self._sealer = Sealer(passphrase.reveal())
        self._opened: dict[tuple[Path, str], bytes] = {}
        self._signing: SigningKey | None = None

    def __repr__(self) -> str:
        return f"FileHolder({str(self._folder)!r})"

    def create_identity(self, algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65) -> VerifyingKey:
        """Make the identity key unless there is one, and return its public half."""
        check_identity(algorithm)
        self._create(self._identity_path, signers.generate(algorithm), f"identity key {algorithm.title}")
        return self.identity_public()

    def create_access(self) -> bytes:
        """Make the access key unless there is one, and return its public key."""
        self._create(self._folder / f"access{_SUFFIX}", secrets.token_bytes(32), _ACCESS)
        return self.access_public()

    def create_encryption(self, algorithm: KeyAlgorithm) -> EncryptionKey:
        """Make one more encryption key."""
        private = keys.generate(algorithm)
        public = keys.public_from_private(algorithm, private)
        ski = kem.ski(keys.spki(algorithm, public))
        self._create(self._encryption_path(ski, algorithm), private, _encryption_purpose(ski, algorithm))
        return EncryptionKey(ski=ski, algorithm=algorithm, public_key=public)

    def identity_public(self) -> VerifyingKey:
        """Return the identity key's public half, or raise NotFoundError."""
        return self._identity().public

    def access_public(self) -> bytes:
        """Return the access key's public half, or raise NotFoundError."""
        return self._access().public_key().public_bytes_raw()

    def encryption_skis(self) -> Sequence[bytes]:
        """Return the identifiers of all encryption keys."""
        return sorted(bytes.fromhex(path.name.partition(".")[0]) for path in self._encryption.glob(f"*{_SUFFIX}"))

    def sign(self, message: bytes) -> bytes:
        """Sign with the identity key."""
        return self._identity().sign(message)

    def sign_request(self, message: bytes) -> bytes:
        """Sign with the access key."""
        return self._access().sign(message)

    def decapsulate(self, ski: bytes, algorithm: KeyAlgorithm, ciphertext: bytes) -> bytes:
        """Return what ``ciphertext`` carries for a key."""
        try:
            private = self._open(
                self._encryption_path(ski, algorithm), _encryption_purpose(ski, algorithm), "The encryption key"
            )
        except NotFoundError:
            raise UnwrapError from None
        return keys.recover(algorithm, private, ciphertext)

    def store_key(self, name: KeyName, material: KeyMaterial) -> None:
        """Keep a shared key for good."""
        path = self._shared_path(name)
        self._create(path, _packed(material), _shared_purpose(name))
        # Read back what is on the disk: it is the other process's key when that one was first.
        if not _same(self.load_key(name), material):
            raise ConflictError(
                "There is another key under this name",
                on=str(name),
                hint="give the key another id or the next version: kmb key list",
            )

    def load_key(self, name: KeyName) -> KeyMaterial:
        """Return a shared key, or raise NotFoundError."""
        path = self._shared_path(name)
        if not path.exists():
            raise NotFoundError("There is no such key in this holder", on=str(name), hint="kmb key list")
        return _unpacked(self._open(path, _shared_purpose(name), "The key"))

    def shared_keys(self) -> Sequence[KeyName]:
        """Return the names of all shared keys, in order."""
        return sorted(_name_in(path) for path in self._shared.glob(f"*{_SUFFIX}"))

    @property
    def _identity_path(self) -> Path:
        return self._folder / f"identity{_SUFFIX}"

    def _identity(self) -> SigningKey:
        path = self._identity_path
        if self._signing is not None and path.exists():
            return self._signing
        # Which algorithm it is of stands in the header, and what was sealed under another purpose does not open.
        purpose = _purpose_in(path) if path.exists() else ""
        if purpose not in _IDENTITY:
            purpose = f"identity key {SignatureAlgorithm.ML_DSA_65.title}"
        self._signing = signers.load(_IDENTITY[purpose], self._open(path, purpose, "The identity key"))
        return self._signing

    def _access(self) -> Ed25519PrivateKey:
        path = self._folder / f"access{_SUFFIX}"
        return Ed25519PrivateKey.from_private_bytes(self._open(path, _ACCESS, "The access key"))

    def _create(self, path: Path, secret: bytes, purpose: str) -> None:
        if path.exists():
            return
        sealed = self._sealer.seal(secret, purpose=purpose)
        if write_new(path, sealed):
            self._opened[path, purpose] = secret

    def _open(self, path: Path, purpose: str, what: str) -> bytes:
        if (path, purpose) in self._opened and path.exists():
            return self._opened[path, purpose]
        try:
            sealed = path.read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"{what} is not in this holder", on=str(self._folder), hint="kmb doctor") from None
        try:
            secret = self._sealer.unseal(sealed, purpose=purpose)
        except KeymailboxError as error:
            hint = "check KMB_PASSPHRASE_FILE, then: kmb doctor"
            raise SealError(f"{what} cannot be opened with this passphrase", on=path.name, hint=hint) from error
        self._opened[path, purpose] = secret
        return secret

    def _encryption_path(self, ski: bytes, algorithm: KeyAlgorithm) -> Path:
        return self._encryption / f"{ski.hex()}.{algorithm.name}{_SUFFIX}"

    def _shared_path(self, name: KeyName) -> Path:
        # A key id may hold slashes and be longer than a file name; its hash is neither.
        return self._shared / f"{hashlib.sha256(_shared_purpose(name).encode()).hexdigest()[:40]}{_SUFFIX}"


def _encryption_purpose(ski: bytes, algorithm: KeyAlgorithm) -> str:
    return f"encryption key {algorithm.name} {ski.hex()}"


def _shared_purpose(name: KeyName) -> str:
    return f"shared key {name.owner} {name.key_id} {name.version}"


def _packed(material: KeyMaterial) -> bytes:
    """Return a key package with its content type in front (ContentInfo, RFC 5652 §3)."""
    content_type, package = encode_package(material)
    return asn1.encode(asn1.ContentInfo(content_type=content_type, content=asn1.tlv(package)))


def _unpacked(der: bytes) -> KeyMaterial:
    if der[header(der, 0, len(der)).content] != _OBJECT_IDENTIFIER:
        # Files of the first format: a symmetric key package alone, whatever its media type.
        return decode_package(oids.SYMMETRIC_KEY_PACKAGE, der, profile=Profile.READ)
    info = asn1.decode(asn1.ContentInfo, der, what="The key file")
    return decode_package(info.content_type, asn1.encode(info.content))


def _same(one: KeyMaterial, other: KeyMaterial) -> bool:
    said = (one.media_type, one.attributes) == (other.media_type, other.attributes)
    return secrets.compare_digest(one.key, other.key) and said


def _purpose_in(path: Path) -> str:
    try:
        return str(json.loads(path.read_bytes())["purpose"])
    except (ValueError, KeyError, TypeError):
        return ""


def _name_in(path: Path) -> KeyName:
    try:
        purpose = json.loads(path.read_bytes())["purpose"]
        shared, key, owner, identifier, version = purpose.split(" ")
        if (shared, key) != ("shared", "key"):
            raise ValueError(purpose)
        return KeyName(parse_address(owner), key_id(identifier), int(version))
    except (ValueError, KeyError, TypeError, AttributeError, KeymailboxError):
        raise SealError("A key file is damaged", on=path.name, hint="restore it from your backup") from None
