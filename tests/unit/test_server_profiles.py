"""Certificate profiles in files: which are taken, and what is said of those that are not."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pki.core.errors import ProfileError, SettingsError
from pki.core.x509 import CertificateKind
from pki.server import bootstrap
from pki.server.adapters.profiles import FileProfiles, packaged, parse, read, text
from pki.server.cli import app
from pki.server.services import doctor
from pki.server.settings import load_settings
from workers.handlers import Hands

IDENTITY = text(CertificateKind.IDENTITY)


def put(home: Path, name: str, content: str) -> Path:
    """Write an operator's profile."""
    path = home / "profiles" / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(content)
    return path


def test_without_files_the_profiles_are_those_that_come_along(tmp_path: Path) -> None:
    """Every kind has one."""
    profiles = FileProfiles(tmp_path)
    assert {kind: profiles.of(kind) for kind in CertificateKind} == {kind: packaged(kind) for kind in CertificateKind}
    assert set(profiles.all) == set(CertificateKind)


def test_an_operators_profile_takes_the_place_of_the_one_that_comes_along(tmp_path: Path) -> None:
    """For its kind, and no other."""
    put(tmp_path, "identity.toml", IDENTITY.replace("days = 365", "days = 30", 1).replace('["*"]', '["acme/*"]'))
    profiles = FileProfiles(tmp_path)
    found = profiles.of(CertificateKind.IDENTITY)
    assert (found.lifetime, found.max_lifetime) == (timedelta(days=30), timedelta(days=400))
    assert found.addresses == ("acme/*",)
    assert profiles.of(CertificateKind.ENCRYPTION) == packaged(CertificateKind.ENCRYPTION)


BROKEN = {
    "no TOML": ("schema = ", "no TOML"),
    "no text": ("\0", "no TOML"),
    "another schema": (IDENTITY.replace("schema = 1", "schema = 2"), "schema: "),
    "a word that is not known": (IDENTITY + "\n[more]\nx = 1\n", "the file: "),
    "a misspelt field": (IDENTITY.replace("max_days", "maximum_days"), "validity: "),
    "no key": (IDENTITY.replace("ml-dsa-44", "ML DSA 44"), "key.algorithms.0: "),
    "no days": (IDENTITY.replace("days = 365", "days = 0", 1), "validity.days: "),
    "more days than at most": (IDENTITY.replace("max_days = 400", "max_days = 90"), "validity.days: "),
    "an extension that nobody knows": (
        IDENTITY.replace('"subjectAltName"', '"nameConstraints"'),
        "extensions.1.name: ",
    ),
    "a usage that nobody knows": (IDENTITY.replace('"digitalSignature"', '"everything"'), "key.usage.signature.0: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_no_profile_says_where(case: str) -> None:
    """The place in the file, and what the schema says there."""
    content, said = BROKEN[case]
    with pytest.raises(ProfileError) as caught:
        parse(content)
    assert said in caught.value.message


def test_a_wider_profile_is_refused_at_the_start(tmp_path: Path) -> None:
    """The issuer does not begin; the error says which file, what is too wide, by which rule, and what to run."""
    settings = load_settings(home=tmp_path, passphrase="correct horse")
    bootstrap.init(settings)
    path = put(tmp_path, "identity.toml", IDENTITY.replace("max_days = 400", "max_days = 825"))
    deps = bootstrap.build(settings)
    with pytest.raises(SettingsError) as caught:
        Hands(deps, ["issue"])
    assert caught.value.on == str(path)
    assert caught.value.rule == "CRT-017"
    assert "wider than what relying parties take: more than 400 days" in caught.value.message
    assert caught.value.hint == f"kmb-server profile check {path}"
    [told] = [finding for finding in doctor.examine(deps) if finding.check == "profiles"]
    assert not told.ok
    deps.store.close()


STRANGE = {
    "a kind that there is not": ("identities.toml", IDENTITY, "There is no kind of certificate"),
    "another kind's": ("encryption.toml", IDENTITY, "The profile is for identity"),
    "too large": ("identity.toml", IDENTITY + "#" * 70_000, "at most 65536 bytes"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_file_in_the_wrong_place_is_not_passed_over(tmp_path: Path, case: str) -> None:
    """A profile that does not count, and that its operator believes in, is the worst."""
    name, content, said = STRANGE[case]
    path = put(tmp_path, name, content)
    with pytest.raises(SettingsError) as caught:
        FileProfiles(tmp_path).of(CertificateKind.ACCESS)
    assert said in caught.value.message
    assert caught.value.on == str(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A folder in its place, bytes that are no text, and nothing at all."""
    (tmp_path / "odd.toml").mkdir()
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for name in ("odd.toml", "bytes.toml", "gone.toml"):
        with pytest.raises(SettingsError):
            read(tmp_path / name)


def test_the_commands(tmp_path: Path) -> None:
    """A profile is written out, changed, checked and listed; what is too wide fails with the rule."""
    start, home = tmp_path / "start.toml", str(tmp_path)
    run = CliRunner().invoke
    assert run(app, ["profile", "show", "encryption", "--home", home, "--out", str(start)]).exit_code == 0
    assert start.read_text() == text(CertificateKind.ENCRYPTION)
    again = run(app, ["profile", "show", "encryption", "--home", home, "--out", str(start)])
    assert "cannot be written" in str(again.exception)
    start.write_text(start.read_text().replace("max_days = 400", "max_days = 399"))
    assert "is a profile for encryption" in run(app, ["profile", "check", str(start)]).output
    told = json.loads(run(app, ["profile", "check", str(start), "--json"]).output)
    assert told["validity"] == {"days": 365, "max_days": 399}
    put(tmp_path, "encryption.toml", start.read_text())
    listed = json.loads(run(app, ["profile", "list", "--home", home, "--json"]).output)["profiles"]
    assert {one["kind"]: one["from"] == "comes along" for one in listed} == {
        "identity": True,
        "access": True,
        "encryption": False,
    }
    assert "399" in run(app, ["profile", "list", "--home", home]).output
    start.write_text(start.read_text().replace('["keyAgreement"]', '["keyAgreement", "digitalSignature"]'))
    wide = run(app, ["profile", "check", str(start)])
    assert isinstance(wide.exception, SettingsError)
    assert wide.exception.rule == "CRT-006"
    gone = run(app, ["profile", "show", "root"])
    assert "There is no such profile" in str(gone.exception)
