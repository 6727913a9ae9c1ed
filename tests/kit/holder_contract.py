"""What every KeyHolder promises; each kind of holder runs the same tests."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pki.core import envelope, kem, keys, oids
from pki.core.errors import AlgorithmError, ConflictError, NotFoundError, UnwrapError
from pki.core.ids import KeyId
from pki.core.kem import KemAlgorithm
from pki.core.keyattributes import KeyAttributes, KeyPurpose, Period
from pki.core.packages import PKCS8, KeyMaterial
from pki.core.signatures import IDENTITY, SignatureAlgorithm
from pki.core.tenants import parse_address
from pki.tenant.ports import KeyHolder, KeyName

ACME = parse_address("acme/eu-west")
GLOBEX = parse_address("globex/main")
MATERIAL = KeyMaterial(b"a shared key of thirty-two bytes", "application/x-test")
SAID = KeyAttributes(
    algorithm=oids.AES256_GCM,
    purpose=KeyPurpose.OPERATIONAL,
    validity=Period(datetime(2026, 1, 1, tzinfo=UTC)),
    distribution=Period(None, datetime(2027, 1, 1, tzinfo=UTC)),
    receivers=(GLOBEX,),
)
PRIVATE_KEY = Ed25519PrivateKey.generate().private_bytes(
    serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)


def name(version: int = 1, *, key: str = "orders/2026:a", owner: str = "acme/eu-west") -> KeyName:
    """Return the name of a shared key."""
    return KeyName(parse_address(owner), KeyId(key), version)


class HolderContract:
    """A class of tests; a subclass gives ``holder`` and ``again``, which opens the same keys anew."""

    @pytest.fixture
    def holder(self) -> KeyHolder:
        """An empty holder."""
        raise AssertionError("a subclass gives it")

    @pytest.fixture
    def again(self, holder: KeyHolder) -> KeyHolder:
        """The same keys, as another process sees them."""
        raise AssertionError("a subclass gives it")

    def test_the_identity_key_signs_and_is_made_once(self, holder: KeyHolder, again: KeyHolder) -> None:
        """A second creation returns the first key, and so does another process."""
        public = holder.create_identity()
        assert holder.create_identity() == public == again.identity_public() == again.create_identity()
        public.verify(again.sign(b"message"), b"message")
        assert public.algorithm is SignatureAlgorithm.ML_DSA_65

    @pytest.mark.parametrize("algorithm", sorted(IDENTITY, key=lambda one: one.name), ids=lambda one: one.label)
    def test_identity_keys_of_each_algorithm(
        self, holder: KeyHolder, again: KeyHolder, algorithm: SignatureAlgorithm
    ) -> None:
        """What was made signs, here and in another process, and a wish for another algorithm changes nothing."""
        public = holder.create_identity(algorithm)
        assert public.algorithm is algorithm
        assert again.identity_public() == public == again.create_identity(SignatureAlgorithm.ED25519)
        public.verify(again.sign(b"message"), b"message")
        public.verify(holder.sign(b"message"), b"message")

    @pytest.mark.parametrize("algorithm", [SignatureAlgorithm.SLH_DSA_SHA2_128S, SignatureAlgorithm.ML_DSA_65_ED25519])
    def test_an_authority_s_algorithm_is_no_identity(self, holder: KeyHolder, algorithm: SignatureAlgorithm) -> None:
        """SLH-DSA and composites are for certificates: no identity key is made of them."""
        with pytest.raises(AlgorithmError):
            holder.create_identity(algorithm)
        with pytest.raises(NotFoundError):
            holder.identity_public()

    def test_the_access_key_signs_and_is_made_once(self, holder: KeyHolder, again: KeyHolder) -> None:
        """A second creation returns the first key, and so does another process."""
        public = holder.create_access()
        assert holder.create_access() == public == again.access_public()
        Ed25519PublicKey.from_public_bytes(public).verify(again.sign_request(b"base"), b"base")

    def test_what_was_not_made_is_not_found(self, holder: KeyHolder) -> None:
        """A holder never makes a key by the way."""
        for ask in (
            holder.identity_public,
            holder.access_public,
            lambda: holder.sign(b""),
            lambda: holder.sign_request(b""),
        ):
            with pytest.raises(NotFoundError):
                ask()
        assert list(holder.encryption_skis()) == []
        assert list(holder.shared_keys()) == []

    @pytest.mark.parametrize("algorithm", kem.MADE)
    def test_encryption_keys_open(self, holder: KeyHolder, again: KeyHolder, algorithm: KemAlgorithm) -> None:
        """What was encapsulated for the public half comes out, in another process too."""
        key = holder.create_encryption(algorithm)
        assert key.ski == kem.ski(kem.spki(algorithm, key.public_key))
        ciphertext, shared = kem.encapsulate(algorithm, key.public_key)
        assert again.decapsulate(key.ski, algorithm, ciphertext) == shared

    @pytest.mark.parametrize("algorithm", [one for one in keys.ALGORITHMS.values() if one.classical])
    def test_classical_encryption_keys_open(
        self, holder: KeyHolder, again: KeyHolder, algorithm: keys.KeyAlgorithm
    ) -> None:
        """A key of EC gives the secret that both agree on, one of RSA the content key; bad bytes are refused."""
        key = holder.create_encryption(algorithm)
        assert key.ski == kem.ski(keys.spki(algorithm, key.public_key))
        assert list(again.encryption_skis()) == [key.ski]
        wrapped = envelope.wrap(b"content", oids.DATA, [envelope.Recipient(key.ski, algorithm, key.public_key)])
        parsed = envelope.parse(wrapped)
        opened = envelope.unwrap(parsed, key.ski, lambda alg, sent: again.decapsulate(key.ski, alg, sent))
        assert opened == b"content"
        for bad in (b"", b"\4" * 65, bytes(384)):
            with pytest.raises(UnwrapError):
                again.decapsulate(key.ski, algorithm, bad)

    def test_earlier_encryption_keys_stay(self, holder: KeyHolder) -> None:
        """Renewal makes one more key, and takes none away."""
        made = [holder.create_encryption(KemAlgorithm.COMPOSITE) for _ in range(2)]
        assert sorted(holder.encryption_skis()) == sorted(key.ski for key in made)
        for key in made:
            ciphertext, shared = kem.encapsulate(key.algorithm, key.public_key)
            assert holder.decapsulate(key.ski, key.algorithm, ciphertext) == shared

    def test_an_unknown_encryption_key_does_not_open(self, holder: KeyHolder) -> None:
        """There is one error for whatever does not open."""
        size = KemAlgorithm.COMPOSITE.ciphertext_size
        with pytest.raises(UnwrapError):
            holder.decapsulate(b"\1" * 20, KemAlgorithm.COMPOSITE, bytes(size))

    def test_a_key_under_another_algorithm_does_not_open(self, holder: KeyHolder) -> None:
        """The algorithm belongs to the key; a sender that names another gets the uniform refusal."""
        key = holder.create_encryption(KemAlgorithm.ML_KEM_768)
        with pytest.raises(UnwrapError):
            holder.decapsulate(key.ski, KemAlgorithm.ML_KEM_1024, bytes(KemAlgorithm.ML_KEM_1024.ciphertext_size))

    @pytest.mark.parametrize(
        "material",
        [MATERIAL, replace(MATERIAL, attributes=SAID), KeyMaterial(PRIVATE_KEY, PKCS8, SAID)],
        ids=["bare", "all said", "private key"],
    )
    def test_shared_keys_come_back(self, holder: KeyHolder, again: KeyHolder, material: KeyMaterial) -> None:
        """Bytes, media type and what is said of the key are what was stored; storing it again changes nothing."""
        holder.store_key(name(), material)
        assert again.load_key(name()) == material
        again.store_key(name(), material)

    def test_the_same_key_again_changes_nothing(self, holder: KeyHolder, again: KeyHolder) -> None:
        """An interrupted store is simply repeated."""
        holder.store_key(name(), MATERIAL)
        again.store_key(name(), MATERIAL)
        assert list(again.shared_keys()) == [name()]

    @pytest.mark.parametrize(
        "other",
        [
            KeyMaterial(b"other bytes", MATERIAL.media_type),
            KeyMaterial(MATERIAL.key, "application/x-other"),
            replace(MATERIAL, attributes=SAID),
        ],
        ids=["bytes", "media type", "attributes"],
    )
    def test_a_name_stands_for_one_key(self, holder: KeyHolder, again: KeyHolder, other: KeyMaterial) -> None:
        """Other bytes, another media type or other attributes under the same name are refused, and the first stay."""
        holder.store_key(name(), MATERIAL)
        with pytest.raises(ConflictError):
            again.store_key(name(), other)
        assert holder.load_key(name()) == MATERIAL

    def test_owners_keys_and_versions_are_kept_apart(self, holder: KeyHolder) -> None:
        """A peer's key of the same id is another key."""
        names = [name(), name(2), name(key="orders"), name(owner="globex/main")]
        for number, one in enumerate(names):
            holder.store_key(one, KeyMaterial(hashlib.sha256(bytes([number])).digest()))
        assert list(holder.shared_keys()) == sorted(names)
        assert len({holder.load_key(one).key for one in names}) == len(names)

    def test_an_unknown_shared_key_is_not_found(self, holder: KeyHolder) -> None:
        """Another version is another key."""
        holder.store_key(name(), MATERIAL)
        with pytest.raises(NotFoundError):
            holder.load_key(name(2))

    def test_two_at_once_end_with_one_key(self, holder: KeyHolder, again: KeyHolder) -> None:
        """Of two different keys stored under one name at once, one is kept and the other one hears of it."""
        outcomes: list[str] = []
        start = threading.Barrier(2)

        def store(into: KeyHolder, key: bytes) -> None:
            start.wait()
            try:
                into.store_key(name(), KeyMaterial(key))
                outcomes.append("kept")
            except ConflictError:
                outcomes.append("refused")

        threads = [threading.Thread(target=store, args=pair) for pair in ((holder, b"one"), (again, b"two"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["kept", "refused"]
        assert holder.load_key(name()) == again.load_key(name())

    def test_nothing_shows_a_secret(self, holder: KeyHolder) -> None:
        """Neither the holder nor what it returns shows key material when printed."""
        holder.store_key(name(), MATERIAL)
        assert MATERIAL.key.decode() not in repr(holder) + repr(holder.load_key(name()))
