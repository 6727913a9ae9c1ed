"""What a tenant's side needs from outside: somebody who holds keys, and a clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from pki.core.ids import KeyId
from pki.core.keys import KeyAlgorithm
from pki.core.packages import KeyMaterial
from pki.core.signatures import SignatureAlgorithm, VerifyingKey
from pki.core.tenants import Address

Clock = Callable[[], datetime]
"""Says what time it is, in UTC with a time zone."""


@dataclass(frozen=True, order=True)
class KeyName:
    """What a shared key is called: whose it is, its id, its version.

    The owner belongs to the name, so that what a peer sends can never take the place of a key of one's own.
    """

    owner: Address
    key_id: KeyId
    version: int

    def __str__(self) -> str:
        return f"{self.owner} {self.key_id} v{self.version}"


@dataclass(frozen=True)
class EncryptionKey:
    """The public half of an encryption key: its identifier (20 bytes), algorithm, and public key."""

    ski: bytes
    algorithm: KeyAlgorithm
    public_key: bytes


class KeyHolder(Protocol):
    """What a KMS can do for us. Private halves go in or are made inside, and never come out.

    Durability: when a method that makes or stores a key returns, the key survives a power cut. A kill in the middle of
    one leaves either the whole key or none; a caller that did not see the answer calls again.
    Atomicity: two processes that make or store the same key at once end with one key, and both see that one.
    Retry: every method may be called again with the same arguments and changes nothing the second time.
    Errors: a holder that cannot be reached or opened raises UnavailableError or SealError, and has changed nothing. No
    error carries key material.
    """

    def create_identity(self, algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65) -> VerifyingKey:
        """Make the identity key, of one of `signatures.IDENTITY`, unless there is one, and return its public half.

        One that is there stays, whatever its algorithm: the caller looks.
        """
        ...

    def create_access(self) -> bytes:
        """Make the Ed25519 access key unless there is one, and return its public key (32 bytes)."""
        ...

    def create_encryption(self, algorithm: KeyAlgorithm) -> EncryptionKey:
        """Make one more encryption key. Earlier ones stay: mail to them may be under way."""
        ...

    def identity_public(self) -> VerifyingKey:
        """Return the identity key's public half, or raise NotFoundError."""
        ...

    def access_public(self) -> bytes:
        """Return the access key's public half, or raise NotFoundError."""
        ...

    def encryption_skis(self) -> Sequence[bytes]:
        """Return the identifiers of all encryption keys that can still open mail."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Sign with the identity key: pure and without context (FIPS 204 §5.2, RFC 8032 §5.1); ECDSA with its hash."""
        ...

    def sign_request(self, message: bytes) -> bytes:
        """Sign an HTTP signature base with the access key (Ed25519, RFC 8032)."""
        ...

    def decapsulate(self, ski: bytes, algorithm: KeyAlgorithm, ciphertext: bytes) -> bytes:
        """Return what ``ciphertext`` carries for a key; UnwrapError when there is no such key of this algorithm.

        KEM: the shared secret in a ciphertext (32 bytes, FIPS 203 §7.3). ECDH: the shared secret with an ephemeral
        point (the x-coordinate of 32 or 48 bytes, SP 800-56A §5.7.1.2). RSA: the content key that was encrypted with
        OAEP (RFC 8017 §7.1.2), where a holder tells of no failure more than UnwrapError does.
        """
        ...

    def store_key(self, name: KeyName, material: KeyMaterial) -> None:
        """Keep a shared key for good. The same again changes nothing; other bytes under its name: ConflictError."""
        ...

    def load_key(self, name: KeyName) -> KeyMaterial:
        """Return a shared key, or raise NotFoundError."""
        ...

    def shared_keys(self) -> Sequence[KeyName]:
        """Return the names of all shared keys, in order. Reads names only, opens nothing."""
        ...
