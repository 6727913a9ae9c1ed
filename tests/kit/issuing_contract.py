"""What every home of issuing CAs' keys promises; each kind of home runs the same tests."""

from __future__ import annotations

import pytest

from pki.core import signatures
from pki.core.errors import AlgorithmError, SettingsError, SignatureError
from pki.core.signatures import SignatureAlgorithm
from pki.server.ports import IssuingKeys
from tests.kit.authority import new_signing_key
from tests.kit.threads import together

S = SignatureAlgorithm
MESSAGE = b"what is to be signed"


class IssuingKeysContract:
    """A class of tests; a subclass gives ``keys``, and ``again``, which opens the same home anew."""

    algorithm = S.ECDSA_P384
    unknown = S.ML_DSA_65_ED25519
    """What no key here is made of."""

    @pytest.fixture
    def keys(self) -> IssuingKeys:
        """An empty home."""
        raise AssertionError("a subclass gives it")

    def again(self, keys: IssuingKeys) -> IssuingKeys:
        """Return the same home as another process would open it."""
        raise AssertionError("a subclass gives it")

    def test_what_it_makes_signs(self, keys: IssuingKeys) -> None:
        """A new key signs small and large messages, and is there for whoever opens the home later."""
        key = keys.create(self.algorithm)
        assert key.public.algorithm is self.algorithm
        assert signatures.load(key.public.spki) == key.public
        for message in (MESSAGE, b"", bytes(3_000_000)):
            key.public.verify(key.sign(message), message)
        later = self.again(keys).open(key.public)
        assert later.public == key.public
        signature = later.sign(MESSAGE)
        key.public.verify(signature, MESSAGE)
        with pytest.raises(SignatureError):
            key.public.verify(signature, MESSAGE + b"!")

    def test_each_key_is_known_by_its_public_half(self, keys: IssuingKeys) -> None:
        """Of several keys each signs for its own public half; another's is not found."""
        made = [keys.create(self.algorithm) for _ in range(2)]
        assert made[0].public != made[1].public
        for one in reversed(made):
            keys.open(one.public).public.verify(keys.open(one.public).sign(MESSAGE), MESSAGE)
        with pytest.raises(SettingsError):
            keys.open(new_signing_key(self.algorithm).public).sign(MESSAGE)

    def test_a_key_is_discarded(self, keys: IssuingKeys) -> None:
        """What is discarded is gone, the others stay, and a second time is no error."""
        kept, gone = keys.create(self.algorithm), keys.create(self.algorithm)
        for _ in range(2):
            keys.discard(gone.public)
        with pytest.raises(SettingsError):
            self.again(keys).open(gone.public).sign(MESSAGE)
        kept.public.verify(self.again(keys).open(kept.public).sign(MESSAGE), MESSAGE)

    def test_threads_share_a_key(self, keys: IssuingKeys) -> None:
        """Eight threads sign with one key at once, and each signature is that of its own message."""
        key = keys.create(self.algorithm)
        signed = together(
            8, lambda number: [(b"%d/%d" % (number, n), key.sign(b"%d/%d" % (number, n))) for n in range(9)]
        )
        for message, signature in (one for some in signed for one in some):
            key.public.verify(signature, message)

    def test_what_it_does_not_make(self, keys: IssuingKeys) -> None:
        """A key of an algorithm that the home does not know is not made, and the error names it."""
        with pytest.raises(AlgorithmError, match=self.unknown.title):
            keys.create(self.unknown)

    def test_no_secret_is_shown(self, keys: IssuingKeys) -> None:
        """The texts of home and key tell the public half at most."""
        key = keys.create(self.algorithm)
        for text in (repr(keys), repr(key), str(keys), str(key)):
            for secret in self.secrets():
                assert secret not in text

    def secrets(self) -> list[str]:
        """Return what may not be read anywhere."""
        raise AssertionError("a subclass gives it")
