"""The operator's commands for officers, orders and drills: their examples run, and they fail in three parts."""

from __future__ import annotations

import json
import re
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pki.core.certificates import CertificateState
from pki.core.errors import (
    ConflictError,
    ForbiddenError,
    KeymailboxError,
    NotFoundError,
    SealError,
    UsageError,
)
from pki.core.tenants import parse_address
from pki.server import bootstrap
from pki.server.cli import app
from pki.server.services import certificates
from pki.server.settings import load_settings
from tests.kit.office import Kms, Office

ACME, GLOBEX = parse_address("acme/eu-west"), parse_address("globex/main")
PASSPHRASES = {
    "ann": "a passphrase of ann's",
    "bob": "a passphrase of bob's",
    "eve": "a passphrase of eve's",
    "joe": "one of joe's own",
}
COMMANDS = [
    "officer create",
    "officer add",
    "officer list",
    "revoke order",
    "revoke lift-cap",
    "revoke list",
    "revoke show",
    "revoke approve",
    "officer remove",
    "drill compromise",
]


def run(command: str, *more: str, who: str = "ann") -> Result:
    """Run a command in this process, as somebody."""
    environment = {"KMB_OFFICER_PASSPHRASE_FILE": f"{who}.passphrase"}
    return CliRunner(env=environment).invoke(app, [*shlex.split(command), *more])


def done(command: str, *more: str, who: str = "ann") -> str:
    """Run a command that has to succeed, and return what it prints."""
    result = run(command, *more, who=who)
    assert result.exit_code == 0, (command, result.exception, result.output)
    return result.stdout


def error(command: str, *more: str, who: str = "ann") -> KeymailboxError:
    """Run a command that has to fail, and return why."""
    result = run(command, *more, who=who)
    assert isinstance(result.exception, KeymailboxError), (command, result.output, result.exception)
    return result.exception


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """A server on SQLite, with acme and globex, and officers' passphrases; the current folder is where it stands."""
    folder = tmp_path_factory.mktemp("officers")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("KMB_HOME", "KMB_DATABASE_URL", "KMB_PASSPHRASE_FILE"):
            patch.delenv(name, raising=False)
        for name, passphrase in PASSPHRASES.items():
            Path(f"{name}.passphrase").write_text(passphrase + "\n")
        settings = load_settings(home=Path("keymailbox-home"))
        bootstrap.init(settings)
        deps = bootstrap.build(settings)
        office = Office(deps, bootstrap.ca_keys(settings).current, deps.clock)  # type: ignore[arg-type]  # the real clock
        for address in (ACME, GLOBEX):
            kms = Kms(address)
            office.settle(kms)
            office.publish(kms)
        for name in PASSPHRASES:
            done(f"officer create {name} --out {name}.key", who=name)
        for name in ("bob", "eve", "joe"):
            done(f"officer add {name} --key {name}.key.pub")
        yield office
        deps.store.close()


def example(command: str) -> list[str]:
    """Return the example in a command's help."""
    shown = CliRunner().invoke(app, [*shlex.split(command), "--help"])
    found = re.search(r"Example: kmb-server ([^\n]+)", shown.stdout)
    assert found is not None, command
    return shlex.split(found[1])


def test_examples_run_in_their_order(office: Office) -> None:
    """What the help shows can be typed, one after the other, by who is named there."""
    for key in (Path("ann.key"), Path("ann.key.pub")):
        key.unlink()
    order = ""
    for command in COMMANDS:
        arguments = [order or one if one == "0123456789abcdef" else one for one in example(command)]
        who = arguments[arguments.index("--officer") + 1] if "--officer" in arguments else "ann"
        if command == "drill compromise":
            arguments = [str(GLOBEX) if one == str(ACME) else one for one in arguments]
        shown = done(shlex.join(arguments), who=who)
        assert shown.strip(), command
        if command == "revoke order":
            order = re.findall(r"^order +([0-9a-f]{64})$", shown, re.MULTILINE)[0]
            assert f"kmb-server revoke approve {order[:16]} --officer ANOTHER" in shown
    [found] = [one for one in certificates.history(office.deps, ACME) if one.kind == "identity"]
    assert (found.state, found.revoked_by, found.because) == (CertificateState.REVOKED, "operator: ann, bob", "Leaked")
    assert stat.S_IMODE(Path("ann.key").stat().st_mode) == 0o600
    assert b"PRIVATE" not in Path("ann.key.pub").read_bytes()


def test_every_group_and_command_has_an_example(office: Office) -> None:
    """No command of these groups is left out above."""
    for name in ("officer", "revoke", "drill"):
        assert example(name)
    groups = {group.name: group.typer_instance for group in app.registered_groups if group.typer_instance}
    names = {
        f"{name} {command.name or (command.callback.__name__ if command.callback else '')}"
        for name in ("officer", "revoke", "drill")
        for command in (groups[name].registered_commands if groups[name] else ())
    }
    assert names == set(COMMANDS)


def test_an_order_from_the_first_to_the_last_line(office: Office) -> None:
    """As JSON for scripts; what was ordered waits in the database, and a stranger's eyes see no secret."""
    listed = certificates.lookup(office.deps, GLOBEX)
    assert listed.encryption is not None
    given = json.loads(
        done(
            f"revoke order {listed.encryption.fingerprint} --reason superseded --officer joe --key joe.key --json",
            "--because",
            "Replaced",
            who="joe",
        )
    )
    assert (given["state"], given["ordered_by"], given["approved_by"]) == ("open", "joe", None)
    shown = json.loads(done(f"revoke show {given['order'][:12]} --json"))
    assert (shown["reason"], shown["certificates"]) == ("superseded", [listed.encryption.fingerprint])
    assert "Replaced" in done(f"revoke show {given['order'][:12]}")
    with pytest.raises(ForbiddenError):
        raise error(f"revoke approve {given['order'][:16]} --officer joe --key joe.key", who="joe")
    approved = json.loads(done(f"revoke approve {given['order'][:16]} --officer bob --key bob.key --json", who="bob"))
    assert (approved["state"], approved["revoked"]) == ("done", [listed.encryption.fingerprint])
    every = json.loads(done("revoke list --json"))
    assert given["order"] in {one["order"] for one in every["orders"]}
    assert every["room"] < 10
    officers = json.loads(done("officer list --json"))["officers"]
    assert {"bob", "joe"} <= {one["name"] for one in officers}


@pytest.mark.parametrize(
    ("command", "who", "expected"),
    [
        ("officer create ann --out eve.key", "ann", ConflictError),
        ("officer create Ann --out new.key", "ann", UsageError),
        ("officer add pat --key eve.key", "ann", UsageError),
        ("officer add pat --key none.pub", "ann", NotFoundError),
        ("officer add pat --key eve.key.pub", "ann", ConflictError),
        ("officer remove nobody", "ann", NotFoundError),
        ("revoke order globex/main --reason bored --because x --officer bob --key bob.key", "bob", UsageError),
        ("revoke order globex/none --reason superseded --because x --officer bob --key bob.key", "bob", NotFoundError),
        ("revoke order globex/main --reason superseded --because x --officer bob --key bob.key", "eve", SealError),
        ("revoke order globex/main --reason superseded --because x --officer bob --key eve.key", "eve", SealError),
        ("revoke lift-cap --count 5 --for long --because x --officer bob --key bob.key", "bob", UsageError),
        ("revoke approve 00000000 --officer bob --key bob.key", "bob", NotFoundError),
        ("revoke show 00", "bob", NotFoundError),
        ("drill compromise globex/main", "bob", UsageError),
    ],
)
def test_refusals_say_what_to_do(office: Office, command: str, who: str, expected: type[KeymailboxError]) -> None:
    """What failed, on what, and the next command; a passphrase or a key is never part of it."""
    found = error(command, who=who)
    assert type(found) is expected, found
    assert found.on or found.message
    for passphrase in PASSPHRASES.values():
        assert passphrase not in str(found) + found.hint


def test_the_cas_passphrase_makes_officers(office: Office) -> None:
    """Without it nobody is added to or removed from the list."""
    kept = Path("keymailbox-home/passphrase")
    right = kept.read_bytes()
    kept.write_text("guessed")
    try:
        for command in ("officer add pat --key ann.key.pub", "officer remove eve"):
            with pytest.raises(SealError):
                raise error(command)
    finally:
        kept.write_bytes(right)


def test_a_short_passphrase_is_none(office: Office) -> None:
    """An officer's key is sealed under something that is not guessed."""
    Path("short.passphrase").write_text("secret")
    assert isinstance(error("officer create pat --out pat.key", who="short"), UsageError)
    assert not Path("pat.key").exists()
