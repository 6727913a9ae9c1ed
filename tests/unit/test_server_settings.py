"""Settings: safe defaults, files for secrets, and refusals that name the variable and not the value."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from pki.core.errors import SettingsError
from pki.server.settings import load_settings


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variables of whoever runs the tests, and a folder of its own."""

    for name in [name for name in os.environ if name.startswith("KMB_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults_serve_on_loopback(tmp_path: Path) -> None:
    """Without any setting: SQLite in the home, workers inside, loopback only."""
    settings = load_settings()
    assert settings.home == tmp_path / "keymailbox-home"
    assert settings.database_url == f"sqlite:///{tmp_path}/keymailbox-home/keymailbox.sqlite"
    assert (settings.broker_url, settings.url) == ("memory://", "http://127.0.0.1:8080")
    assert settings.max_body_bytes > settings.max_deposit_bytes == 1024 * 1024
    assert not settings.webhook_allow_private


def test_variables_and_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable sets a field, a *_FILE variable takes it from a file without its line end, an argument comes first."""
    (tmp_path / "pass").write_text("open sesame\n")
    (tmp_path / "database").write_text("postgresql://user:word@db/keymailbox\n")
    monkeypatch.setenv("KMB_PASSPHRASE_FILE", str(tmp_path / "pass"))
    monkeypatch.setenv("KMB_DATABASE_URL_FILE", str(tmp_path / "database"))
    monkeypatch.setenv("KMB_INVITATION_TTL", "PT2H")
    monkeypatch.setenv("KMB_PORT", "1234")
    settings = load_settings(port=4321)
    assert settings.passphrase_bytes == b"open sesame"
    assert settings.database_url == "postgresql://user:word@db/keymailbox"
    assert settings.invitation_ttl == timedelta(hours=2)
    assert settings.port == 4321
    assert "sesame" not in repr(settings)


def test_repr_hides_passwords() -> None:
    """Settings that end up in a log hold no password of database or broker either."""
    settings = load_settings(database_url="postgresql://user:s3cr3t@db/x", broker_url="amqp://user:s3cr3t@mq//")
    assert "s3cr3t" not in repr(settings)
    assert "s3cr3t" not in str(settings)


def test_the_passphrase_is_read_when_asked_for(tmp_path: Path) -> None:
    """The one in the home is used where no other is given; where there is none, it says how to give one."""
    with pytest.raises(SettingsError, match="not set") as missing:
        _ = load_settings(home=tmp_path).passphrase_bytes
    assert "KMB_PASSPHRASE_FILE" in missing.value.hint
    (tmp_path / "passphrase").write_text("from the home\n")
    assert load_settings(home=tmp_path).passphrase_bytes == b"from the home"


def test_the_token_s_pin_is_a_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It comes from a file and is not shown; a process without one is told how to give it; a library needs a token."""
    with pytest.raises(SettingsError, match="PIN is not set") as missing:
        _ = load_settings().pin
    assert "KMB_TOKEN_PIN_FILE" in missing.value.hint
    (tmp_path / "pin").write_text("4711-secret\n")
    monkeypatch.setenv("KMB_TOKEN_PIN_FILE", str(tmp_path / "pin"))
    settings = load_settings(pkcs11_module="/usr/lib/hsm.so", pkcs11_token="ours")
    assert settings.pin.get_secret_value() == "4711-secret"
    assert "4711" not in repr(settings) + str(settings) + repr(settings.pin)
    with pytest.raises(SettingsError, match="KMB_PKCS11_TOKEN"):
        load_settings(pkcs11_module="/usr/lib/hsm.so")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"port": "secret-value"}, "KMB_PORT"),
        ({"port": 70000}, "KMB_PORT"),
        ({"public_url": "kmb.example"}, "KMB_PUBLIC_URL"),
        ({"client_cert_from": "proxy.example"}, "KMB_CLIENT_CERT_FROM"),
        ({"crl_lifetime": "-PT1H"}, "KMB_CRL_LIFETIME"),
        ({"body_retention": "PT0S"}, "KMB_BODY_RETENTION"),
        ({"max_deposit_bytes": 1}, "KMB_MAX_DEPOSIT_BYTES"),
        ({"queue_prefix": "A b"}, "KMB_QUEUE_PREFIX"),
        ({"development": True, "host": "0.0.0.0"}, "settings"),
    ],
)
def test_bad_settings_are_named(overrides: dict[str, object], name: str) -> None:
    """The error says which variable, and never repeats the value."""
    with pytest.raises(SettingsError) as refused:
        load_settings(**overrides)
    assert refused.value.on == name
    assert "secret-value" not in str(refused.value)


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A *_FILE variable that leads nowhere is an error, not an empty secret."""
    monkeypatch.setenv("KMB_PASSPHRASE_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match="cannot be read") as refused:
        load_settings()
    assert refused.value.on == str(tmp_path / "nowhere")


def test_fronts_are_named_by_address() -> None:
    """By default nobody; an IPv4 client is the same behind an IPv6 socket; what is no address is nobody's."""
    assert not load_settings().is_front("127.0.0.1")
    settings = load_settings(client_cert_from="192.0.2.7, 2001:db8::/32,")
    for address, trusted in (
        ("192.0.2.7", True),
        ("::ffff:192.0.2.7", True),
        ("2001:db8::1", True),
        ("192.0.2.8", False),
        ("::1", False),
        ("testclient", False),
        ("", False),
    ):
        assert settings.is_front(address) is trusted, address


def test_secrets_are_taken_over_tls_or_at_home() -> None:
    """Plain http to anything but loopback is in the clear, whatever a proxy says."""
    for url, taken in (
        ("https://mailbox.example", True),
        ("http://127.0.0.1:8080", True),
        ("http://[::1]:8080", True),
        ("http://mailbox.example", False),
        ("http://127.0.0.1.example", False),
    ):
        assert load_settings(public_url=url).takes_passwords is taken, url
    assert not load_settings(host="0.0.0.0").takes_passwords


def test_signatures_are_bound_to_the_public_address() -> None:
    """Behind a proxy only the public name counts; on loopback its three names do."""
    assert load_settings(public_url="https://Mail.Example/").authorities == {"mail.example"}
    assert load_settings(public_url="https://mail.example:8443").authorities == {"mail.example:8443"}
    assert load_settings(port=9).authorities == {"127.0.0.1:9", "localhost:9", "[::1]:9"}
