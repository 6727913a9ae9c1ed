"""A holder that keeps its keys in memory: as good as any other, by the same contract, and quicker than sealed files."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pki.core import kem, keys, signers
from pki.core.errors import ConflictError, NotFoundError, UnwrapError
from pki.core.keys import KeyAlgorithm
from pki.core.packages import KeyMaterial
from pki.core.signatures import SignatureAlgorithm, VerifyingKey, check_identity
from pki.core.signers import SigningKey
from pki.tenant.ports import EncryptionKey, KeyName


class MemoryHolder:
    """A KeyHolder for tests; what it holds is gone with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._identity: SigningKey | None = None
        self._access: Ed25519PrivateKey | None = None
        self._encryption: dict[tuple[bytes, KeyAlgorithm], bytes] = {}
        self._shared: dict[KeyName, KeyMaterial] = {}

    def __repr__(self) -> str:
        return "MemoryHolder()"

    def create_identity(self, algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65) -> VerifyingKey:
        """Make the identity key unless there is one."""
        check_identity(algorithm)
        with self._lock:
            self._identity = self._identity or signers.load(algorithm, signers.generate(algorithm))
        return self.identity_public()

    def create_access(self) -> bytes:
        """Make the access key unless there is one."""
        with self._lock:
            self._access = self._access or Ed25519PrivateKey.generate()
        return self.access_public()

    def create_encryption(self, algorithm: KeyAlgorithm) -> EncryptionKey:
        """Make one more encryption key."""
        private = keys.generate(algorithm)
        public = keys.public_from_private(algorithm, private)
        ski = kem.ski(keys.spki(algorithm, public))
        self._encryption[ski, algorithm] = private
        return EncryptionKey(ski, algorithm, public)

    def identity_public(self) -> VerifyingKey:
        """Return the identity key's public half."""
        if self._identity is None:
            raise NotFoundError("There is no identity key")
        return self._identity.public

    def access_public(self) -> bytes:
        """Return the access key's public half."""
        if self._access is None:
            raise NotFoundError("There is no access key")
        return self._access.public_key().public_bytes_raw()

    def encryption_skis(self) -> Sequence[bytes]:
        """Return the identifiers of all encryption keys."""
        return sorted(ski for ski, _ in self._encryption)

    def sign(self, message: bytes) -> bytes:
        """Sign with the identity key."""
        if self._identity is None:
            raise NotFoundError("There is no identity key")
        return self._identity.sign(message)

    def sign_request(self, message: bytes) -> bytes:
        """Sign with the access key."""
        if self._access is None:
            raise NotFoundError("There is no access key")
        return self._access.sign(message)

    def decapsulate(self, ski: bytes, algorithm: KeyAlgorithm, ciphertext: bytes) -> bytes:
        """Return the shared secret."""
        if (ski, algorithm) not in self._encryption:
            raise UnwrapError
        return keys.recover(algorithm, self._encryption[ski, algorithm], ciphertext)

    def store_key(self, name: KeyName, material: KeyMaterial) -> None:
        """Keep a shared key."""
        with self._lock:
            kept = self._shared.setdefault(name, material)
        if not secrets.compare_digest(kept.key, material.key) or (
            kept.media_type,
            kept.attributes,
        ) != (material.media_type, material.attributes):
            raise ConflictError("There is another key under this name", on=str(name))

    def load_key(self, name: KeyName) -> KeyMaterial:
        """Return a shared key."""
        if name not in self._shared:
            raise NotFoundError("There is no such key", on=str(name))
        return self._shared[name]

    def shared_keys(self) -> Sequence[KeyName]:
        """Return the names of all shared keys."""
        return sorted(self._shared)

    def forget(self, name: KeyName) -> None:
        """Lose a key: only tests do that."""
        del self._shared[name]
