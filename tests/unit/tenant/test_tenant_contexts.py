"""Contexts: who one is, at which server; several side by side."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from pki.core.errors import ConflictError, NotFoundError, SettingsError, UsageError
from pki.core.tenants import parse_address
from pki.tenant import contexts
from pki.tenant.contexts import Context


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home of its own for each test."""
    monkeypatch.setenv("KMB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KMB_CONTEXT", raising=False)


def made(name: str = "acme", *, enrolled: bool = True) -> Context:
    """A saved context."""
    context = Context(
        name,
        contexts.folder_of(name),
        "https://mailbox.example",
        parse_address("acme/eu-west"),
        b"root",
        b"issuing",
        enrolled=enrolled,
    )
    contexts.save(context)
    return context


def test_a_context_comes_back() -> None:
    """What is saved is loaded, and is for the owner alone."""
    context = replace(made(), passphrase_file=Path("/run/secrets/kmb"))
    contexts.save(context)
    assert contexts.load("acme") == context
    assert stat.S_IMODE((context.folder / "context.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(context.folder.stat().st_mode) == 0o700


def test_which_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one named, else the variable, else the chosen one, else the only one."""
    with pytest.raises(NotFoundError) as nobody:
        contexts.choose()
    assert nobody.value.hint.startswith("kmb enroll")
    made("one")
    assert contexts.choose() == "one"
    made("two")
    with pytest.raises(UsageError, match="several"):
        contexts.choose()
    contexts.use("two")
    assert contexts.choose() == "two"
    monkeypatch.setenv("KMB_CONTEXT", "one")
    assert contexts.choose() == "one"
    assert contexts.choose("two") == "two"
    assert contexts.names() == ["one", "two"]


def test_an_enrolled_name_is_taken() -> None:
    """An enrolment that was not finished may go on under its name, a finished one is not overwritten."""
    made("begun", enrolled=False)
    contexts.claim("begun")
    made("done")
    with pytest.raises(ConflictError):
        contexts.claim("done")


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "-x", "x" * 81, "a\n"])
def test_names_stay_in_their_folder(name: str) -> None:
    """A name is no path."""
    with pytest.raises(UsageError):
        contexts.folder_of(name)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "keymailbox-context/2"}', "null"])
def test_a_damaged_file_is_said(content: str) -> None:
    """The error names the file."""
    context = made()
    (context.folder / "context.json").write_text(content)
    with pytest.raises(SettingsError) as caught:
        contexts.load("acme")
    assert "context.json" in caught.value.on


def test_an_unknown_context_is_not_found() -> None:
    """The hint lists those that are there."""
    with pytest.raises(NotFoundError) as caught:
        contexts.load("nobody")
    assert caught.value.hint == "kmb context list"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080", "http://localhost", "http://[::1]:1/", "https://mailbox.example/"]
)
def test_servers_that_are_fine(url: str) -> None:
    """Https anywhere, http on this machine; no slash at the end."""
    assert contexts.check_server(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    ["http://mailbox.example", "ftp://mailbox.example", "mailbox.example", "https://", "https://a@b", "https://x/?q=1"],
)
def test_servers_that_are_not(url: str) -> None:
    """Plain http over a network, and whatever is no server."""
    with pytest.raises(SettingsError) as caught:
        contexts.check_server(url)
    assert caught.value.hint


def test_plain_http_is_a_choice() -> None:
    """Who says so gets it."""
    assert contexts.check_server("http://mailbox.example", allow_http=True) == "http://mailbox.example"
