"""Files, a token, and both at once keep the contract of issuing keys; a roll-over between them leaves both usable."""

from __future__ import annotations

import hashlib
import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pki.core import crl
from pki.core.authorities import authority_key
from pki.core.errors import AlgorithmError, ConflictError, SealError, SettingsError
from pki.core.issuers import parse_request
from pki.core.signatures import SignatureAlgorithm
from pki.server import bootstrap
from pki.server.adapters.signers.file import FileKeys
from pki.server.adapters.signers.held import hold_all
from pki.server.adapters.signers.home import create_ca, install, issuing_algorithm, request_issuing
from pki.server.adapters.signers.homes import SeveralHomes, demand_first
from pki.server.adapters.signers.root import open_root
from pki.server.hierarchy import read_chain
from pki.server.ports import IssuingKeys
from pki.server.settings import load_settings
from tests.kit.authority import DAY, NOW, new_signing_key
from tests.kit.ceremony import hold_ceremony, settings_with
from tests.kit.issuing_contract import MESSAGE, IssuingKeysContract
from tests.kit.office import PASSPHRASE
from tests.kit.tokens import SoftToken, forget

S = SignatureAlgorithm


class _FileContract(IssuingKeysContract):
    @pytest.fixture
    def keys(self, tmp_path: Path) -> FileKeys:
        """An empty home."""
        self._home = tmp_path / "home"
        self._home.mkdir()
        return FileKeys(self._home, PASSPHRASE)

    def again(self, keys: IssuingKeys) -> FileKeys:
        """Open the home as another process would."""
        return FileKeys(self._home, PASSPHRASE)

    def secrets(self) -> list[str]:
        """Return the passphrase."""
        return [PASSPHRASE.decode()]


class TestFileMlDsa65(_FileContract):
    """ML-DSA-65 in sealed files: the default."""

    algorithm = S.ML_DSA_65


class TestFileMlDsa87(_FileContract):
    """ML-DSA-87 in sealed files."""

    algorithm = S.ML_DSA_87


class TestFileP256(_FileContract):
    """P-256 in sealed files; RSA is for tokens."""

    algorithm = S.ECDSA_P256
    unknown = S.RSA


class TestFileP384(_FileContract):
    """P-384 in sealed files."""


class TestBoth(IssuingKeysContract):
    """New keys in the token, others in files."""

    @pytest.fixture
    def keys(self, soft: SoftToken, tmp_path: Path) -> SeveralHomes:
        """Both are empty."""
        self._soft, self._home = soft, tmp_path / "home"
        self._home.mkdir()
        return SeveralHomes(soft.keys(), FileKeys(self._home, PASSPHRASE))

    def again(self, keys: IssuingKeys) -> SeveralHomes:
        """Open both as another process would, in the other order."""
        forget()
        return SeveralHomes(FileKeys(self._home, PASSPHRASE), self._soft.keys())

    def secrets(self) -> list[str]:
        """Return passphrase and PINs."""
        return [PASSPHRASE.decode(), self._soft.pin, self._soft.so_pin]


def test_a_server_moves_to_a_token(soft: SoftToken, tmp_path: Path) -> None:
    """After a ceremony the token's key is the current one; the former one, in a file, still signs its own list."""
    home = tmp_path / "home"
    first = create_ca(home, PASSPHRASE, NOW)
    files = FileKeys(home, PASSPHRASE)
    keys = SeveralHomes(soft.keys(), files)
    der, request = request_issuing(home, keys, S.ECDSA_P384)
    demand_first(keys, request.key)
    issued = open_root(home / "root", PASSPHRASE).sign_issuing(parse_request(der).verify(), NOW)
    chain = install(home, SeveralHomes(files, soft.keys()), issued, NOW)
    assert (chain.issuing, chain.former) == (issued, (first.issuing,))
    forget()
    held = hold_all(SeveralHomes(files, soft.keys()), read_chain(home), NOW)
    assert [authority_key(one.certificate_der).algorithm for one in held.all] == [S.ECDSA_P384, S.ML_DSA_65]
    for signer in held.all:
        tbs = crl.crl_tbs(signer.certificate_der, number=1, this_update=NOW, next_update=NOW + DAY, revoked=[])
        der = crl.assemble(tbs, signer.sign(tbs), signer.certificate_der)
        assert crl.verify_crl(der, issuing_der=signer.certificate_der, now=NOW).number == 1
    # And back: the next one in a file again, while the token's stays for its own.
    der, _ = request_issuing(home, SeveralHomes(files, soft.keys()), S.ML_DSA_65)
    issued = open_root(home / "root", PASSPHRASE).sign_issuing(parse_request(der).verify(), NOW)
    install(home, SeveralHomes(files, soft.keys()), issued, NOW)
    assert len(hold_all(SeveralHomes(files, soft.keys()), read_chain(home), NOW).all) == 3


def test_a_request_under_way_says_where_its_key_is(soft: SoftToken, tmp_path: Path) -> None:
    """Who asks for a key in the token is not given the request for one in a file, nor the reverse."""
    home = tmp_path / "home"
    create_ca(home, PASSPHRASE, NOW)
    files, token = FileKeys(home, PASSPHRASE), soft.keys()
    _, in_file = request_issuing(home, SeveralHomes(files, token), S.ECDSA_P384)
    again = request_issuing(home, SeveralHomes(token, files), S.ECDSA_P384)[1]
    assert again == in_file
    demand_first(SeveralHomes(files, token), in_file.key)
    demand_first(files, in_file.key)
    with pytest.raises(ConflictError, match="another home") as caught:
        demand_first(SeveralHomes(token, files), again.key)
    assert "--discard" in caught.value.hint
    _, in_token = request_issuing(home, SeveralHomes(token, files), S.ECDSA_P384, discard=True)
    assert in_token.key != in_file.key
    with pytest.raises(SettingsError):
        files.open(in_file.key)
    with pytest.raises(ConflictError):
        demand_first(SeveralHomes(files, token), in_token.key)


@pytest.mark.parametrize(
    ("algorithm", "in_token"), [("p-384", True), ("rsa-3072", True), ("p-256", False), ("ml-dsa-87", False)]
)
def test_a_server_begins_with_a_ceremony(soft: SoftToken, tmp_path: Path, algorithm: str, in_token: bool) -> None:
    """A home without a CA gets its issuing CA from a ceremony; init adds the rest and makes no other key."""
    settings = settings_with(tmp_path / "home", soft)
    chain = hold_ceremony(settings, algorithm, datetime.now(UTC), in_token=in_token)
    made = bootstrap.init(settings)
    assert (made.issuing_fingerprint, chain.former) == (hashlib.sha256(chain.issuing).hexdigest(), ())
    bootstrap.check_keys(settings)
    held = bootstrap.ca_keys(settings)
    authority_key(chain.issuing).verify(held.current.sign(MESSAGE), MESSAGE)
    keys = {path.name for path in settings.home.rglob("*.sealed")} - {"registration.key.sealed"}
    assert len(keys) == (0 if in_token else 1)


def test_what_each_home_said(soft: SoftToken, tmp_path: Path) -> None:
    """A key that is in none is told with both reasons; a wrong passphrase is no reason to look elsewhere."""
    (tmp_path / "home").mkdir()
    files = FileKeys(tmp_path / "home", PASSPHRASE)
    with pytest.raises(SettingsError, match="No home has the key") as caught:
        SeveralHomes(files, soft.keys()).open(new_signing_key(S.ECDSA_P384).public)
    assert "cannot be read" in caught.value.on and "does not have the key" in caught.value.on
    public = files.create(S.ECDSA_P384).public
    with pytest.raises(SealError):
        SeveralHomes(FileKeys(tmp_path / "home", b"wrong"), soft.keys()).open(public)


def test_settings_say_where_the_keys_are(
    soft: SoftToken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a module only files; with one both; no token where one is asked for, or no PIN, is said."""
    caplog.set_level(logging.DEBUG)
    plain = {"home": tmp_path, "passphrase": "open sesame"}
    assert isinstance(bootstrap.issuing_keys(load_settings(**plain)), FileKeys)
    with pytest.raises(SettingsError, match="No token is configured"):
        bootstrap.issuing_keys(load_settings(**plain), in_token=True)
    token = {"pkcs11_module": soft.module, "pkcs11_token": soft.label}
    with pytest.raises(SettingsError, match="PIN is not set"):
        bootstrap.issuing_keys(load_settings(**plain, **token), in_token=True)
    monkeypatch.setenv("KMB_TOKEN_PIN_FILE", str(soft.pin_file))
    settings = load_settings(**plain, **token)
    made = bootstrap.issuing_keys(settings, in_token=True).create(S.ECDSA_P384)
    found = bootstrap.issuing_keys(settings).open(made.public)
    made.public.verify(found.sign(MESSAGE), MESSAGE)
    assert soft.keys().open(made.public)
    large = bootstrap.issuing_keys(settings, in_token=True, rsa_bits=issuing_algorithm("rsa-4096")[1])
    assert len(large.create(S.RSA).sign(MESSAGE)) == 512
    with pytest.raises(AlgorithmError, match="not made of this algorithm") as caught:
        bootstrap.issuing_keys(settings).create(S.RSA)
    assert "--token" in caught.value.hint
    assert soft.pin not in caplog.text
    forget()
    assert bootstrap.examine_token(load_settings(**plain)) == []
    [found] = bootstrap.examine_token(settings)
    assert found.ok and soft.label in found.detail and "SoftHSM" in found.detail
    soft.remove()
    forget()
    [found] = bootstrap.examine_token(settings)
    assert not found.ok and "away" in found.detail and "pkcs11-tool" in found.hint
