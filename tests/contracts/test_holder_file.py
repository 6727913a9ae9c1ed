"""The file holder keeps the contract of every holder, and its files keep the secrets."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest

from pki.core import asn1, attributes, oids
from pki.core.errors import SealError, SettingsError
from pki.core.kem import KemAlgorithm
from pki.core.packages import PKCS8, KeyMaterial
from pki.core.sealing import seal
from pki.tenant.holders.file import FileHolder
from pki.tenant.holders.passphrase import Passphrase, create_key_file, read_passphrase
from tests.kit.holder_contract import MATERIAL, HolderContract, name

PASSPHRASE = Passphrase(b"correct horse battery staple")


class TestFileHolder(HolderContract):
    """The contract, on files."""

    @pytest.fixture
    def holder(self, tmp_path: Path) -> FileHolder:
        """An empty folder."""
        return FileHolder(tmp_path / "keys", PASSPHRASE)

    @pytest.fixture
    def again(self, holder: FileHolder, tmp_path: Path) -> FileHolder:
        """The same folder, nothing remembered."""
        return FileHolder(tmp_path / "keys", PASSPHRASE)


def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    """Files have mode 0600, folders 0700, and nothing unfinished stays behind."""
    holder = FileHolder(tmp_path / "keys", PASSPHRASE)
    holder.create_identity()
    holder.create_access()
    holder.create_encryption(KemAlgorithm.COMPOSITE)
    holder.store_key(name(), MATERIAL)
    paths = list((tmp_path / "keys").rglob("*"))
    assert len([path for path in paths if path.is_file()]) == 4
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
        assert not path.name.endswith(".part")


def test_no_file_holds_a_key_in_the_clear(tmp_path: Path) -> None:
    """Neither raw, nor in hex, nor in base64."""
    holder = FileHolder(tmp_path / "keys", PASSPHRASE)
    holder.store_key(name(), KeyMaterial(MATERIAL.key))
    for path in (tmp_path / "keys").rglob("*.sealed"):
        content = path.read_bytes()
        for form in (MATERIAL.key, MATERIAL.key.hex().encode(), base64.b64encode(MATERIAL.key)[:40]):
            assert form not in content


def test_another_passphrase_opens_nothing(tmp_path: Path) -> None:
    """The error names the file and what to check, and changes nothing."""
    FileHolder(tmp_path / "keys", PASSPHRASE).create_identity()
    other = FileHolder(tmp_path / "keys", Passphrase(b"another"))
    with pytest.raises(SealError) as caught:
        other.sign(b"message")
    assert caught.value.on == "identity.sealed"
    assert "KMB_PASSPHRASE_FILE" in caught.value.hint
    assert FileHolder(tmp_path / "keys", PASSPHRASE).sign(b"message")


def test_a_changed_file_does_not_open(tmp_path: Path) -> None:
    """One changed bit of ciphertext or header is found."""
    FileHolder(tmp_path / "keys", PASSPHRASE).create_identity()
    path = tmp_path / "keys" / "identity.sealed"
    sealed = json.loads(path.read_bytes())
    flipped = bytearray(base64.b64decode(sealed["ciphertext"]))
    flipped[3] ^= 1
    for field, value in (("ciphertext", base64.b64encode(flipped).decode()), ("purpose", "access key Ed25519")):
        path.write_text(json.dumps({**sealed, field: value}))
        with pytest.raises(SealError):
            FileHolder(tmp_path / "keys", PASSPHRASE).identity_public()


def test_a_key_file_under_another_name_does_not_open(tmp_path: Path) -> None:
    """Who can write files cannot make one key pass for another."""
    holder = FileHolder(tmp_path / "keys", PASSPHRASE)
    holder.store_key(name(1), MATERIAL)
    holder.store_key(name(2), KeyMaterial(b"the second version"))
    first, second = (holder._shared_path(name(version)) for version in (1, 2))
    second.write_bytes(first.read_bytes())
    with pytest.raises(SealError):
        FileHolder(tmp_path / "keys", PASSPHRASE).load_key(name(2))


@pytest.mark.parametrize("material", [MATERIAL, KeyMaterial(b"not even PKCS #8", PKCS8)], ids=["opaque", "PKCS #8"])
def test_files_of_the_first_format_stay_readable(tmp_path: Path, material: KeyMaterial) -> None:
    """Before packages had a content type, a file held a symmetric key package alone, whatever the media type."""
    holder = FileHolder(tmp_path / "keys", PASSPHRASE)
    media_type = attributes.attribute(oids.MEDIA_TYPE, asn1.encode(material.media_type))
    keys = [asn1.OneSymmetricKey(attrs=[media_type], key=material.key)]
    old = asn1.encode(asn1.SymmetricKeyPackage(version=1, attrs=None, keys=keys))
    purpose = f"shared key {name().owner} {name().key_id} {name().version}"
    holder._shared_path(name()).write_bytes(seal(old, PASSPHRASE.reveal(), purpose=purpose))
    assert holder.load_key(name()) == material
    if material is MATERIAL:
        holder.store_key(name(), material)
        assert list(holder.shared_keys()) == [name()]


def test_unfinished_files_are_not_keys(tmp_path: Path) -> None:
    """What a kill leaves behind is neither listed nor in the way."""
    holder = FileHolder(tmp_path / "keys", PASSPHRASE)
    (tmp_path / "keys" / "shared" / ".abc.sealed.0123.part").write_bytes(b"{")
    assert list(holder.shared_keys()) == []
    holder.store_key(name(), MATERIAL)
    assert list(holder.shared_keys()) == [name()]


def test_a_damaged_name_is_said(tmp_path: Path) -> None:
    """A key file whose header cannot be read is reported, not left out."""
    holder = FileHolder(tmp_path / "keys", PASSPHRASE)
    (tmp_path / "keys" / "shared" / f"{'0' * 40}.sealed").write_bytes(b"not json")
    with pytest.raises(SealError, match="damaged"):
        holder.shared_keys()


def test_passphrases(tmp_path: Path) -> None:
    """A newline at the end does not count; empty and missing files are refused; nothing shows."""
    path = tmp_path / "passphrase"
    path.write_bytes(b"secret words\r\n")
    assert read_passphrase(path).reveal() == b"secret words"
    assert "secret" not in repr(read_passphrase(path))
    path.write_bytes(b"\n")
    for bad in (path, tmp_path / "missing"):
        with pytest.raises(SettingsError) as caught:
            read_passphrase(bad)
        assert "KMB_PASSPHRASE_FILE" in caught.value.hint


def test_a_key_file_is_made_once(tmp_path: Path) -> None:
    """A second call keeps the first passphrase; it has 256 bits."""
    path = tmp_path / "passphrase"
    create_key_file(path)
    first = path.read_bytes()
    create_key_file(path)
    assert path.read_bytes() == first
    assert len(bytes.fromhex(first.decode())) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
