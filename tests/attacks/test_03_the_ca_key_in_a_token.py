"""Attack 3: who has the token, its folder, a backup of it, or even its PIN, wants the CA's private key itself."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pkcs11 import exceptions as failures
from pkcs11.constants import Attribute, MechanismFlag, ObjectClass
from pkcs11.mechanisms import KeyType, Mechanism
from pkcs11.types import SecretKey

from pki.core import signatures
from pki.core.errors import SettingsError
from pki.core.signatures import SignatureAlgorithm, VerifyingKey
from pki.server.adapters.signers.pkcs11 import TokenKeys
from pki.server.adapters.signers.tokens import Session
from tests.kit.tokens import KEY_LABEL, SoftToken, forget, pkcs11_tool, soft_token

S = SignatureAlgorithm
SECRET = (
    Attribute.VALUE,
    Attribute.SEED,
    Attribute.PRIVATE_EXPONENT,
    Attribute.PRIME_1,
    Attribute.PRIME_2,
    Attribute.EXPONENT_1,
    Attribute.EXPONENT_2,
    Attribute.COEFFICIENT,
)
REFUSALS = (failures.AttributeSensitive, failures.AttributeTypeInvalid)


@dataclass(frozen=True)
class Target:
    """A token with an issuing CA's key in it."""

    soft: SoftToken
    public: VerifyingKey

    def attack(self, work: Callable[[Session, Any], None]) -> None:
        """Do something with the private key's handle, logged in, in a session that may write."""

        def go(session: Session) -> None:
            wanted = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: self.public.ski}
            [key] = list(session.get_objects(wanted))
            work(session, key)

        self.soft.token().change(go)

    def tool(self, *arguments: str) -> str:
        """Run OpenSC's tool, logged in."""
        who = ("--module", self.soft.module, "--token-label", self.soft.label, "--login", "--pin", self.soft.pin)
        return self.soft.run(pkcs11_tool(), *who, *arguments, check=False)


@pytest.fixture(params=[S.ECDSA_P384, S.RSA], ids=lambda one: one.label)
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """One token with one key, whose PIN the attacker knows."""
    soft = soft_token(tmp_path / "hsm")
    for name, value in soft.environment.items():
        monkeypatch.setenv(name, value)
    forget()
    yield Target(soft, soft.keys().create(request.param).public)
    forget()


def test_03_the_private_key_cannot_be_read(target: Target) -> None:
    """Not one attribute that holds a part of the key is given out, and the token says that none ever was."""

    def read(_: Session, key: Any) -> None:
        for attribute in SECRET:
            with pytest.raises(REFUSALS):
                key[attribute]
        part = Attribute.VALUE if target.public.algorithm.curve else Attribute.PRIVATE_EXPONENT
        with pytest.raises(failures.AttributeSensitive):
            key[part]
        for attribute, said in (
            (Attribute.SENSITIVE, True),
            (Attribute.ALWAYS_SENSITIVE, True),
            (Attribute.EXTRACTABLE, False),
            (Attribute.NEVER_EXTRACTABLE, True),
            (Attribute.PRIVATE, True),
            (Attribute.LOCAL, True),
        ):
            assert key[attribute] is said, attribute

    target.attack(read)


def test_03_it_cannot_be_made_readable(target: Target) -> None:
    """Neither the key nor a copy of it becomes extractable or less than sensitive."""

    def soften(_: Session, key: Any) -> None:
        for attribute, wanted in ((Attribute.EXTRACTABLE, True), (Attribute.SENSITIVE, False)):
            with pytest.raises(failures.PKCS11Error):
                key[attribute] = wanted
            with pytest.raises(failures.PKCS11Error):
                key.copy({attribute: wanted})

    target.attack(soften)


def test_03_it_cannot_be_wrapped(target: Target) -> None:
    """Keys of the attacker's own, in the same token, do not carry it out."""

    def wrap(session: Session, key: Any) -> None:
        may = MechanismFlag.WRAP | MechanismFlag.UNWRAP | MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT
        aes = cast(SecretKey, session.generate_key(KeyType.AES, 256, capabilities=may))
        foreign = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
        carrier = session.create_object(
            {
                Attribute.CLASS: ObjectClass.PUBLIC_KEY,
                Attribute.KEY_TYPE: KeyType.RSA,
                Attribute.MODULUS: foreign.n.to_bytes(256, "big"),
                Attribute.PUBLIC_EXPONENT: foreign.e.to_bytes(3, "big"),
                Attribute.WRAP: True,
            }
        )
        for wrapper, mechanism in (
            (aes, Mechanism.AES_KEY_WRAP),
            (aes, Mechanism.AES_KEY_WRAP_PAD),
            (carrier, Mechanism.RSA_PKCS),
        ):
            with pytest.raises(failures.PKCS11Error) as refused:
                cast(Any, wrapper).wrap_key(key, mechanism=mechanism)
            assert type(refused.value) in (failures.KeyUnextractable, failures.KeyNotWrappable), mechanism

    target.attack(wrap)


def test_03_other_people_s_tools_get_nothing(target: Target) -> None:
    """OpenSC's tool, logged in: no private key is read, and the security officer does not even see one."""
    ski = target.public.ski.hex()
    out = target.soft.folder / "stolen"
    said = target.tool("--read-object", "--type", "privkey", "--id", ski, "--output-file", str(out))
    assert "error" in said or "sorry" in said.lower()
    assert not out.exists() or out.read_bytes() == b""
    listed = target.tool("--list-objects", "--type", "privkey")
    assert "never extractable" in listed and ski in listed
    officer = ("--module", target.soft.module, "--token-label", target.soft.label, "--login", "--login-type", "so")
    said = target.soft.run(pkcs11_tool(), *officer, "--so-pin", target.soft.so_pin, "--list-objects", check=False)
    assert "Private Key Object" not in said


def test_03_the_token_s_folder_holds_no_key(target: Target) -> None:
    """Every window of every file, tried as the private key: none is it. One that is planted would be found."""
    files = [path for path in target.soft.tokens.rglob("*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        assert not _holds_key(path.read_bytes(), target.public), path
        dumped = target.soft.run("softhsm2-dump-file", str(path), check=False)
        assert target.soft.pin not in dumped
    known, part = _known(target.public.algorithm)
    noise = secrets.token_bytes(300)
    assert _holds_key(noise + part + noise, known)


def test_03_a_copy_of_the_token_does_not_sign_without_its_pin(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restored backup of the token's folder is of no use to who has not the PIN, which is in no file of it."""
    backup = tmp_path / "backup"
    shutil.copytree(target.soft.tokens, backup / "tokens")
    (backup / "softhsm2.conf").write_text(f"directories.tokendir = {backup / 'tokens'}\n")
    copied = SoftToken(backup, target.soft.label)
    monkeypatch.setenv("SOFTHSM2_CONF", copied.environment["SOFTHSM2_CONF"])
    forget()
    assert all(target.soft.pin.encode() not in path.read_bytes() for path in backup.rglob("*") if path.is_file())
    for guess in ("1234", "", target.soft.so_pin):
        with pytest.raises(SettingsError, match="refuses the PIN"):
            TokenKeys(copied.token(pin=guess or "0"), KEY_LABEL).open(target.public)


def _holds_key(content: bytes, public: VerifyingKey) -> bool:
    """Say whether any window of some bytes is the private key, or for RSA one of its primes or its exponent."""
    if public.algorithm is S.RSA:
        key = serialization.load_der_public_key(public.spki)
        assert isinstance(key, rsa.RSAPublicKey)
        numbers = key.public_numbers()
        half = key.key_size // 16
        return any(window > 1 and numbers.n % window == 0 for window in _windows(content, half)) or any(
            pow(2, window * numbers.e, numbers.n) == 2 for window in _exponents(content, 2 * half)
        )
    curve, size = ec.SECP384R1(), 48
    for window in _windows(content, size):
        if 0 < window < _ORDER:
            found = ec.derive_private_key(window, curve).public_key()
            point = found.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
            if point == public.raw:
                return True
    return False


_ORDER = int("ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16)


def _windows(content: bytes, size: int) -> Iterator[int]:
    for start in range(len(content) - size + 1):
        yield int.from_bytes(content[start : start + size], "big")


def _exponents(content: bytes, size: int) -> Iterator[int]:
    # A window of this size costs some milliseconds each; SoftHSM writes values after their length.
    marker = size.to_bytes(8, "big")
    start = content.find(marker)
    while start >= 0:
        value = content[start + 8 : start + 8 + size]
        if len(value) == size:
            yield int.from_bytes(value, "big")
        start = content.find(marker, start + 1)


def _known(algorithm: SignatureAlgorithm) -> tuple[VerifyingKey, bytes]:
    """Return the public half of a key, and the secret part that would betray it."""
    if algorithm is S.RSA:
        key = rsa.generate_private_key(65537, 3072)
        spki = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return signatures.load(spki), key.private_numbers().q.to_bytes(192, "big")
    secret = ec.generate_private_key(ec.SECP384R1())
    point = secret.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return signatures.from_raw(point, algorithm), secret.private_numbers().private_value.to_bytes(48, "big")
