"""The token's home of issuing CAs' keys keeps the contract; and a token that is away, locked, or somebody else's."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pkcs11
import pytest
from pkcs11.constants import Attribute, MechanismFlag, ObjectClass
from pkcs11.mechanisms import KeyType, Mechanism
from pkcs11.util.ec import encode_named_curve_parameters
from pydantic import SecretStr

from pki.core import signatures
from pki.core.errors import AlgorithmError, SettingsError, UnavailableError
from pki.core.signatures import SignatureAlgorithm, VerifyingKey
from pki.server.adapters.signers.pkcs11 import TokenKeys
from pki.server.adapters.signers.tokens import Session, Token
from tests.kit.issuing_contract import MESSAGE, IssuingKeysContract
from tests.kit.tokens import KEY_LABEL, SoftToken, forget, pkcs11_tool

S = SignatureAlgorithm


class _TokenContract(IssuingKeysContract):
    @pytest.fixture
    def keys(self, soft: SoftToken) -> TokenKeys:
        """An empty token."""
        self._soft = soft
        return soft.keys()

    def again(self, keys: TokenKeys) -> TokenKeys:
        """Open the token as another process would."""
        forget()
        return self._soft.keys()

    def secrets(self) -> list[str]:
        """Return the PINs."""
        return [self._soft.pin, self._soft.so_pin]


class TestP384(_TokenContract):
    """P-384 in SoftHSM."""


class TestP256(_TokenContract):
    """P-256 in SoftHSM."""

    algorithm = S.ECDSA_P256


class TestRsa(_TokenContract):
    """RSA in SoftHSM."""

    algorithm = S.RSA


def test_rsa_of_4096_bits(soft: SoftToken) -> None:
    """The larger RSA key is made when it is asked for, and no smaller or larger one."""
    key = soft.keys(rsa_bits=4096).create(S.RSA)
    assert len(key.sign(MESSAGE)) == 512
    for wrong in (2048, 8192):
        with pytest.raises(AlgorithmError, match="3072 to 4096 bits"):
            soft.keys(rsa_bits=wrong).create(S.RSA)


@pytest.mark.parametrize("algorithm", [S.ML_DSA_44, S.ML_DSA_65, S.ML_DSA_87], ids=lambda one: one.label)
def test_ml_dsa_where_the_token_has_it(soft: SoftToken, algorithm: SignatureAlgorithm) -> None:
    """A token that lists ML-DSA makes keys that sign; Debian's SoftHSM does not, and the refusal says what it lacks."""
    keys = soft.keys()
    if int(Mechanism.ML_DSA) in soft.token().mechanisms():
        key = keys.create(algorithm)
        forget()
        for message in (MESSAGE, b"", bytes(100_000)):
            signatures.from_raw(key.public.raw, algorithm).verify(soft.keys().open(key.public).sign(message), message)
        return
    with pytest.raises(AlgorithmError, match="does not make keys of this algorithm") as caught:
        keys.create(algorithm)
    assert algorithm.title in caught.value.on and "p-384" in caught.value.hint


def test_what_no_token_holds_here(soft: SoftToken) -> None:
    """Algorithms without a way in tokens are refused before the token is asked."""
    with pytest.raises(AlgorithmError, match="not used in tokens"):
        soft.keys().create(S.ED25519)


def test_a_wrong_pin_is_tried_once(soft: SoftToken, caplog: pytest.LogCaptureFixture) -> None:
    """A refused PIN is said without being shown, and not sent again, because tokens lock after a few."""
    caplog.set_level(logging.DEBUG)
    public = soft.keys().create(S.ECDSA_P384).public
    forget()
    wrong = TokenKeys(soft.token(pin="wrong-pin-4711"), KEY_LABEL)
    for _ in range(3):
        with pytest.raises(SettingsError, match="refuses the PIN") as caught:
            wrong.open(public)
        assert "wrong-pin" not in f"{caught.value}{caught.value.hint}{caught.value.__context__}"
    forget()
    assert soft.keys().open(public).sign(MESSAGE)
    assert "wrong-pin" not in caplog.text and soft.pin not in caplog.text


def test_a_token_that_is_taken_away(soft: SoftToken) -> None:
    """While it is away every signature fails as something that comes back; when it is back, the same key signs on."""
    keys = soft.keys()
    key = keys.create(S.ECDSA_P384)
    for _ in range(2):
        assert key.sign(MESSAGE)
        soft.remove()
        for _ in range(2):
            with pytest.raises(UnavailableError, match="The token is away") as caught:
                key.sign(MESSAGE)
            assert soft.pin not in f"{caught.value}{caught.value.hint}"
        soft.put_back()
        key.public.verify(key.sign(MESSAGE), MESSAGE)


def test_a_token_that_is_away_at_the_start(soft: SoftToken, caplog: pytest.LogCaptureFixture) -> None:
    """A process may start before its token: it signs once that is there; that it was away is logged, once."""
    public = soft.keys().create(S.ECDSA_P384).public
    forget()
    soft.remove()
    key = soft.keys().open(public)
    for _ in range(2):
        with pytest.raises(UnavailableError):
            key.sign(MESSAGE)
    soft.put_back()
    for _ in range(2):
        public.verify(key.sign(MESSAGE), MESSAGE)
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in said] == ["the CA's token is away", "the CA's token is back"], said


def test_a_session_that_is_lost(soft: SoftToken) -> None:
    """A session that was closed, a log-out and a library that was finalized cost no signature."""
    token = soft.token()
    keys = TokenKeys(token, KEY_LABEL)
    key, other = keys.create(S.ECDSA_P384), soft.keys().create(S.ECDSA_P256)

    def session() -> Session:
        return token.use(lambda one: one)

    for lose in (
        lambda: session().close(),
        lambda: pkcs11.lib(soft.module).reinitialize(),
        lambda: pkcs11.lib(soft.module).finalize(),
        token.close,
    ):
        key.public.verify(key.sign(MESSAGE), MESSAGE)
        lose()
        key.public.verify(key.sign(MESSAGE), MESSAGE)
        # A second log-in of the same process, which lost its session with the first one.
        other.public.verify(other.sign(MESSAGE), MESSAGE)


def test_a_signature_of_another_key_gets_nowhere(soft: SoftToken) -> None:
    """A handle that names another key by now makes a signature that is not given to anybody; the next one is right."""
    keys = soft.keys()
    key, other = keys.create(S.ECDSA_P384), keys.create(S.ECDSA_P384)
    key.find()
    other.find()
    key._found = other._found
    with pytest.raises(UnavailableError, match="does not verify"):
        key.sign(MESSAGE)
    key.public.verify(key.sign(MESSAGE), MESSAGE)


def test_a_token_without_the_key(soft: SoftToken, tmp_path: Path) -> None:
    """Another key under the same label, another label, another token or library: each is a mistake that is named."""
    keys = soft.keys()
    key = keys.create(S.ECDSA_P384)
    other = signatures.from_raw(keys.create(S.ECDSA_P256).public.raw, S.ECDSA_P256)
    keys.discard(key.public)
    keys.create(S.ECDSA_P384)
    with pytest.raises(SettingsError, match="does not have the key") as caught:
        key.sign(MESSAGE)
    assert "1 keys for ECDSA P-384" in caught.value.on
    with pytest.raises(SettingsError, match="does not have the key"):
        TokenKeys(soft.token(), "another label").open(other)
    with pytest.raises(UnavailableError, match="TokenNotPresent"):
        TokenKeys(soft.token(label="another token"), KEY_LABEL).create(S.ECDSA_P384)
    absent = Token(str(tmp_path / "no-such-library.so"), soft.label, SecretStr(soft.pin))
    with pytest.raises(SettingsError, match="cannot be loaded"):
        TokenKeys(absent, KEY_LABEL).open(other)


def test_two_tokens_of_one_label(soft: SoftToken) -> None:
    """Which of two tokens is meant has to be said, not guessed."""
    soft.initialize()
    forget()
    with pytest.raises(SettingsError, match="Several tokens"):
        soft.keys().create(S.ECDSA_P384)


def test_a_key_that_could_be_taken_out(soft: SoftToken) -> None:
    """An extractable key is refused, although it is the certificate's."""
    public = _made_otherwise(soft, {Attribute.EXTRACTABLE: True})
    with pytest.raises(SettingsError, match="give the key away"):
        soft.keys().open(public)


def test_a_key_that_asks_for_the_pin_each_time(soft: SoftToken) -> None:
    """CKA_ALWAYS_AUTHENTICATE: the PIN goes with each signature."""
    public = _made_otherwise(soft, {Attribute.EXTRACTABLE: False, Attribute.ALWAYS_AUTHENTICATE: True})
    key = soft.keys().open(public)
    for _ in range(3):
        public.verify(key.sign(MESSAGE), MESSAGE)


def test_a_key_that_another_tool_made(soft: SoftToken) -> None:
    """A key of OpenSC's tool is found by its label, whatever its id is."""
    tool = (pkcs11_tool(), "--module", soft.module, "--token-label", soft.label, "--login", "--pin", soft.pin)
    soft.run(*tool, "--keypairgen", "--key-type", "EC:secp384r1", "--label", KEY_LABEL, "--id", "01", "--usage-sign")
    soft.keys().create(S.ECDSA_P384)
    halves = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: b"\1"}
    point = soft.token().use(lambda session: [one[Attribute.EC_POINT] for one in session.get_objects(halves)])[0]
    public = signatures.from_raw(point[-97:], S.ECDSA_P384)
    public.verify(soft.keys().open(public).sign(MESSAGE), MESSAGE)


def test_two_processes_at_once(soft: SoftToken) -> None:
    """Two processes with sessions of their own sign with one key at the same time."""
    key = soft.keys().create(S.ECDSA_P384)
    script = (
        "import sys\n"
        "from pydantic import SecretStr\n"
        "from pki.core import signatures\n"
        "from pki.server.adapters.signers.pkcs11 import TokenKeys\n"
        "from pki.server.adapters.signers.tokens import Token\n"
        "pin = open(sys.argv[3]).read().strip()\n"
        "keys = TokenKeys(Token(sys.argv[1], sys.argv[2], SecretStr(pin)), sys.argv[4])\n"
        "key = keys.open(signatures.load(bytes.fromhex(sys.argv[5])))\n"
        "print('\\n'.join(key.sign(b'%d' % number).hex() for number in range(60)))\n"
    )
    arguments = [soft.module, soft.label, str(soft.pin_file), KEY_LABEL, key.public.spki.hex()]
    both = [
        subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True) for _ in "ab"
    ]
    here = [key.sign(b"%d" % number) for number in range(60)]
    for signed in (here, *([bytes.fromhex(line) for line in one.communicate(timeout=60)[0].split()] for one in both)):
        assert len(signed) == 60
        for number, signature in enumerate(signed):
            key.public.verify(signature, b"%d" % number)
    assert [one.returncode for one in both] == [0, 0]


def _made_otherwise(soft: SoftToken, private: dict[Attribute, bool]) -> VerifyingKey:
    """Make a P-384 key with a template of our own, and return its public half."""

    def work(session: Session) -> VerifyingKey:
        curve = {Attribute.EC_PARAMS: encode_named_curve_parameters("secp384r1")}
        public, _ = session.create_domain_parameters(KeyType.EC, curve, local=True).generate_keypair(
            label=KEY_LABEL,
            store=True,
            capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
            private_template={Attribute.SENSITIVE: True, **private},
        )
        return signatures.from_raw(public[Attribute.EC_POINT][-97:], S.ECDSA_P384)

    return soft.token().change(work)
