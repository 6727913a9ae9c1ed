"""``kmb``: help with examples, errors in three parts, exit codes, nothing heavy for help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from pki.core import errors
from pki.core.errors import KeymailboxError
from pki.tenant import output
from pki.tenant.cli import app

RUNNER = CliRunner()


def commands() -> Iterator[list[str]]:
    """Every command that does something."""

    def below(command: object, path: list[str]) -> Iterator[list[str]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield path
            return
        for name, one in inner.items():
            yield from below(one, [*path, name])

    yield from below(typer.main.get_command(app), [])


def kmb(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the real program."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KMB_")}
    return subprocess.run(
        [sys.executable, "-m", "pki.tenant.cli", *arguments],
        env=clean | {"KMB_HOME": str(home), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_commands_that_are_promised() -> None:
    """Nothing of the list is missing."""
    expected = {
        "enroll", "whoami", "doctor", "version", "cert list", "cert renew", "cert revoke", "cert show", "peer show",
        "peer verify", "key create", "key list", "key send", "key rotate", "key export", "mailbox list",
        "mailbox receive", "mailbox senders show", "mailbox senders set", "receipt list", "object show", "object wrap",
        "object open", "object verify", "agent run", "context list", "context use", "context show",
    }  # fmt: skip
    assert expected <= {" ".join(path) for path in commands()}


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_each_help_has_an_example(path: list[str]) -> None:
    """The example is the command itself."""
    shown = RUNNER.invoke(app, [*path, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert shown.exit_code == 0
    assert f"Example: kmb {' '.join(path)}" in " ".join(shown.output.split())


def test_the_exit_codes_are_in_the_help() -> None:
    """All eight."""
    shown = " ".join(RUNNER.invoke(app, ["--help"], env={"COLUMNS": "200"}).output.split())
    for code in range(8):
        assert f"{code} " in shown.partition("Exit codes:")[2]


def test_help_loads_nothing_heavy() -> None:
    """Neither cryptography nor the HTTP client nor a database is loaded before a command needs it."""
    heavy = ("cryptography", "httpx2", "sqlite3", "rich", "http_message_signatures")
    code = f"import sys, pki.tenant.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_error_has_three_parts(tmp_path: Path) -> None:
    """What failed, on what, and the next command; the exit code says the kind."""
    done = kmb(tmp_path, "whoami")
    assert done.returncode == output.NOT_FOUND
    assert done.stdout == ""
    first, on, following = done.stderr.splitlines()
    assert first == "kmb: Nobody is enrolled here yet"
    assert str(tmp_path) in on
    assert following.strip().startswith("next: kmb enroll")


def test_an_error_in_json(tmp_path: Path) -> None:
    """A program reads the code."""
    done = kmb(tmp_path, "whoami", "--json")
    assert json.loads(done.stderr)["error"]["code"] == "not-found"


def test_a_bad_server_is_wrong_usage(tmp_path: Path) -> None:
    """Plain http over a network is refused before anything is made."""
    invitation = tmp_path / "i.json"
    invitation.write_text('{"reference": "r", "secret": "s"}')
    done = kmb(
        tmp_path / "home", "enroll", "acme/a", "--server", "http://mailbox.example", "--invitation", str(invitation)
    )
    assert done.returncode == output.USAGE
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"reference": "r"}', "\xff"])
def test_a_bad_invitation_is_wrong_usage(tmp_path: Path, content: str) -> None:
    """A file that is no invitation is said to be none, and its content is not shown."""
    path = tmp_path / "i.json"
    path.write_text(content)
    done = kmb(tmp_path, "enroll", "acme/a", "--server", "http://127.0.0.1:1", "--invitation", str(path))
    assert done.returncode == output.USAGE
    assert "invitation" in done.stderr


def test_every_error_has_an_exit_code() -> None:
    """Only the root of the family is a plain failure."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, KeymailboxError)]
    assert [kind for kind in kinds if output.exit_code(kind()) == output.FAILED] == [KeymailboxError]
    assert output.exit_code(errors.PinError()) == output.CHECK_FAILED
    assert output.exit_code(errors.ReplayedError()) == output.REFUSED
    assert output.exit_code(errors.UnavailableError()) == output.AWAY
