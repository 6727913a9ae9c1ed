"""``kmb`` against a real server: what each command prints as JSON, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from typer.testing import CliRunner, Result

from pki.core.errors import KeymailboxError
from pki.core.ids import Fingerprint
from pki.server.services import status
from pki.tenant import output
from pki.tenant.cli import app
from pki.tenant.commands import status as commands
from tests.kit.bureau import Bureau
from tests.kit.desk import Desk
from tests.kit.processes import wait_until
from tests.kit.site import Homes, Site

pytest_plugins = ["tests.kit.api_fixtures"]


@dataclass
class Person:
    """Somebody with a home, who types."""

    home: Path

    def type(self, *arguments: str, fine: int = output.DONE) -> Result:
        """Type a command; it has to end with the exit code ``fine``."""
        environment = {"KMB_HOME": str(self.home), "KMB_CONTEXT": None, "KMB_PASSPHRASE_FILE": None, "NO_COLOR": "1"}
        result = CliRunner().invoke(app, list(arguments), env=environment)
        error = result.exception
        code = output.exit_code(error) if isinstance(error, KeymailboxError) else result.exit_code
        assert code == fine, (result.output, repr(error))
        return result

    def read(self, *arguments: str, fine: int = output.DONE) -> Any:
        """Type a command with --json, and read what it prints."""
        return json.loads(self.type(*arguments, "--json", fine=fine).stdout)


@dataclass
class Room:
    """Two people at one server."""

    desk: Desk
    acme: Person
    globex: Person


@pytest.fixture(scope="module")
def room(homes: Homes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """Both are enrolled by typing; their keys are in sealed files."""
    place = tmp_path_factory.mktemp("people")
    with Site(homes.new(), "", log_level="error") as site, Desk(site, place) as desk:
        people = []
        for address in ("acme/eu-west", "globex/main"):
            tenant = address.partition("/")[0]
            invitation, secret = site.invite(tenant)
            path = place / f"{tenant}.json"
            path.write_text(json.dumps({"reference": invitation.reference, "secret": secret}))
            person = Person(place / tenant)
            told = person.read("enroll", address, "--server", site.url, "--invitation", str(path))
            assert told["address"] == address
            people.append(person)
        yield Room(desk, *people)


def test_who_one_is(room: Room) -> None:
    """Address, fingerprints and context agree with each other."""
    who = room.acme.read("whoami")
    shown = room.acme.read("context", "show")
    assert (who["address"], who["context"]) == (shown["address"], shown["name"]) == ("acme/eu-west", "acme.eu-west")
    assert [one["name"] for one in room.acme.read("context", "list")] == ["acme.eu-west"]
    room.acme.type("context", "use", "acme.eu-west")
    room.acme.type("--context", "nobody", "whoami", fine=output.NOT_FOUND)


def test_the_way_of_a_key_by_typing(room: Room, tmp_path: Path) -> None:
    """Create, send, list, receive, export, receipt: each says what the next one needs."""
    made = room.acme.read("key", "create", "orders")
    assert (made["key"], made["version"], made["size"]) == ("orders", 1, 32)
    (sent,) = room.acme.read("key", "send", "orders", "--to", "globex/main", "--purpose", "orders")
    assert sent["state"] == "available"
    assert [one["deposit"] for one in room.globex.read("mailbox", "list")] == [sent["deposit"]]
    (taken,) = room.globex.read("mailbox", "receive")
    assert (taken["answer"], taken["deposit"]) == ("receipt", sent["deposit"])
    out = tmp_path / "orders.key"
    exported = room.globex.read("key", "export", "orders", "--out", str(out))
    assert (exported["owner"], exported["size"], len(out.read_bytes())) == ("acme/eu-west", 32, 32)
    own = tmp_path / "own.key"
    room.acme.type("key", "export", "orders", "--out", str(own))
    assert own.read_bytes() == out.read_bytes()
    room.acme.type("key", "export", "orders", "--out", str(own), fine=output.REFUSED)
    (row,) = [one for one in room.acme.read("receipt", "list") if one["deposit"] == sent["deposit"]]
    assert (row["state"], row["receipt"]) == ("acknowledged", "verified")
    assert [one["state"] for one in room.acme.read("key", "show", "orders")] == ["acknowledged"]
    assert {(one["key"], one["whose"]) for one in room.globex.read("key", "list")} >= {("orders", "received")}


def test_rotation_by_typing(room: Room, tmp_path: Path) -> None:
    """A rotation is sent to the holders; a key from a file is the next version."""
    file = tmp_path / "material"
    file.write_bytes(b"material from a file")
    room.acme.type("key", "send", "rota", "--to", "globex/main", "--in", str(file), "--media-type", "application/x-raw")
    assert [one["version"] for one in room.acme.read("key", "rotate", "rota", "--in", str(file))] == [2]
    room.acme.type("key", "rotate", "rota", fine=output.USAGE)
    room.acme.type("key", "rotate", "rota", "--in", str(file), "--deadline", "yesterday", fine=output.USAGE)
    assert len(room.acme.read("key", "rotate", "rota", "--in", str(file), "--deadline", "7d")) == 1
    assert any(one["respond_by"] and one["version"] == 3 for one in room.globex.read("mailbox", "list"))
    assert len(room.globex.read("mailbox", "receive")) == 3
    for more, current in ((["--offline"], 0), ([], 1)):
        (listed,) = [one for one in room.acme.read("campaign", "list", *more) if one["key"] == "rota"]
        assert (listed["version"], listed["current"], listed["overdue"]) == (3, current, 0)
    (shown,) = room.acme.read("campaign", "show", "rota")
    assert (shown["recipient"], shown["standing"], shown["holds"]) == ("globex/main", "current", [1, 2, 3])
    assert room.acme.read("campaign", "show", "rota", "--behind", "--offline") == []
    assert room.acme.read("key", "rotate", "rota", "--in", str(file), "--except", "globex") == []
    (shown,) = room.acme.read("campaign", "show", "rota")
    assert (shown["standing"], shown["holds"]) == ("removed", [1, 2, 3])


def test_certificates_by_typing(room: Room, tmp_path: Path) -> None:
    """Renew, show, write as PEM, revoke by the beginning of the fingerprint."""
    before = room.globex.read("cert", "list")
    renewed = room.globex.read("cert", "renew")
    after = room.globex.read("cert", "list")
    assert (len(after), after[0]["fingerprint"]) == (len(before) + 1, renewed["fingerprint"])
    pem = tmp_path / "mine.pem"
    shown = room.globex.read("cert", "show", "--out", str(pem))
    assert shown["algorithm"] == "MLKEM768-X25519-SHA3-256"
    assert f"{x509.load_pem_x509_certificate(pem.read_bytes()).serial_number:x}" == shown["serial"]
    old = next(one for one in after if (one["kind"], one["state"]) == ("encryption", "retired"))
    assert room.globex.read("cert", "revoke", old["fingerprint"][:12], "--reason", "superseded")["state"] == "revoked"
    room.globex.type("cert", "revoke", "ffff0000", fine=output.NOT_FOUND)
    room.globex.type("cert", "revoke", old["fingerprint"], "--reason", "boredom", fine=output.USAGE)
    room.globex.type("cert", "renew", "--kind", "identity")
    assert room.globex.read("cert", "renew", "--kind", "access")["algorithm"] == "Ed25519"
    room.globex.type("doctor")


def test_draining_by_typing(room: Room) -> None:
    """What was sent to the old key waits under it until it is received; without the server it is not known."""
    room.acme.type("key", "create", "drained")
    room.acme.type("key", "send", "drained", "--to", "globex/main")
    room.globex.type("cert", "renew")

    def mail() -> str:
        listed = room.globex.read("cert", "list")
        assert (listed[0]["state"], listed[0]["mail"]) == ("active", None)
        return next(str(one["mail"]) for one in listed[1:] if one["kind"] == "encryption")

    assert mail() == "draining 1"
    (answer,) = room.globex.read("mailbox", "receive")
    assert answer["answer"] == "receipt"
    assert mail() == "drained"
    context = next(room.globex.home.rglob("context.json"))
    written = context.read_text()
    try:
        context.write_text(written.replace(room.desk.site.url, "http://127.0.0.1:9"))
        assert mail() == "unknown"
    finally:
        context.write_text(written)


def test_classical_keys_by_typing(room: Room) -> None:
    """Published on purpose, sent to on purpose, and left again for a KEM with a preference."""
    assert room.globex.read("cert", "renew", "--algorithm", "p-256")["algorithm"] == "ECDH P-256"
    room.acme.type("key", "create", "classical")
    refused = room.acme.type("key", "send", "classical", "--to", "globex/main", fine=output.CHECK_FAILED)
    assert "--allow-classical" in refused.output
    (sent,) = room.acme.read("key", "send", "classical", "--to", "globex/main", "--allow-classical")
    assert sent["state"] == "available"
    (again,) = room.acme.read("key", "rotate", "classical")
    assert again["version"] == 2
    assert [one["answer"] for one in room.globex.read("mailbox", "receive")] == ["receipt", "receipt"]
    room.globex.type("cert", "renew", "--algorithm", "rsa-1024", fine=output.USAGE)
    room.globex.type("cert", "renew", "--kdf", "md5", fine=output.USAGE)
    room.globex.type("cert", "renew", "--kdf", "hkdf-sha384")
    assert room.globex.read("cert", "show")["key_derivation"] == "HKDF-SHA384"
    room.globex.type("cert", "renew")


def test_peers_by_typing(room: Room) -> None:
    """Show pins, verify confirms by fingerprint, a wrong one is a failed check."""
    told = room.globex.read("whoami")["identity"]
    assert room.acme.read("peer", "show", "globex/main")["identity"] == told
    assert room.acme.read("peer", "verify", "globex/main", "--fingerprint", told)["trust"] == "confirmed"
    room.acme.type("peer", "verify", "globex/main", "--fingerprint", "00" * 32, fine=output.CHECK_FAILED)
    room.acme.type("peer", "verify", "globex/main", fine=output.CHECK_FAILED)
    room.acme.type("peer", "show", "nobody/here", fine=output.NOT_FOUND)
    room.acme.type("peer", "show", "no address", fine=output.USAGE)
    assert {one["address"]: one["trust"] for one in room.acme.read("peer", "list")}["globex/main"] == "confirmed"


def test_the_agent_by_typing(room: Room) -> None:
    """One round receives, and the sender's round believes the receipt; a line of JSON each."""
    room.acme.type("key", "create", "for-agent")
    room.acme.type("key", "send", "for-agent", "--to", "globex/main")
    lines = room.globex.type("agent", "run", "--once", "--json").stdout.splitlines()
    assert [json.loads(line)["did"] for line in lines] == ["received"]
    lines = room.acme.type("agent", "run", "--once", "--json").stdout.splitlines()
    assert "receipt verified" in [json.loads(line)["did"] for line in lines]
    assert room.acme.type("agent", "run", "--once").stdout == ""


def test_the_agent_stops_when_told(room: Room, tmp_path: Path) -> None:
    """A signal ends it at once and well, even while it waits at the server; what came in was taken. systemd is told."""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(60)
    room.acme.type("key", "create", "for-service")
    room.acme.type("key", "send", "for-service", "--to", "globex/main")
    process = subprocess.Popen(
        [sys.executable, "-m", "pki.tenant.cli", "agent", "run", "--json"],
        env=os.environ | {"KMB_HOME": str(room.globex.home), "NOTIFY_SOCKET": str(tmp_path / "notify")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["key"] == "for-service"
    assert manager.recv(4096) == b"READY=1\nSTATUS=globex/main: 1 received"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    process.stdout.close()
    told = [manager.recv(4096)]
    while not told[-1].startswith(b"STOPPING=1"):
        told.append(manager.recv(4096))
    manager.close()


def test_the_doctor(room: Room) -> None:
    """All is well; then a file that others can read is found, with the command that puts it right."""
    assert {row["result"] for row in room.acme.read("doctor")} == {"ok"}
    secret = next(room.acme.home.glob("contexts/*/passphrase"))
    secret.chmod(0o644)
    try:
        (bad,) = [row for row in room.acme.read("doctor", fine=output.LOOK) if row["result"] != "ok"]
        assert (bad["check"], "chmod" in bad["detail"]) == ("files", True)
    finally:
        secret.chmod(0o600)


def test_the_doctor_hears_first_who_revoked(room: Room) -> None:
    """The very run that tells of two officers' order no longer calls the certificate good; renewal cures it."""
    active = room.globex.read("cert", "show")
    serial = int(active["serial"], 16)
    Bureau(room.desk.site, "ann", "bob").revoke(Fingerprint(active["fingerprint"]))

    def listed() -> bool:
        record = status.latest_crl(room.desk.site.deps)
        found = record and x509.load_der_x509_crl(record.der).get_revoked_certificate_by_serial_number(serial)
        return found is not None

    wait_until(listed, 20)
    rows = room.globex.read("doctor", fine=output.LOOK)
    assert {row["check"] for row in rows if row["result"] != "ok"} == {"certificates", "alarms"}
    room.globex.type("cert", "renew")
    room.globex.type("doctor", "--seen", fine=output.LOOK)
    room.globex.type("doctor")


def test_a_wrong_passphrase_is_said(room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is opened, and the error names the variable."""
    other = tmp_path / "passphrase"
    other.write_text("another")
    runner = CliRunner()
    result = runner.invoke(
        app, ["whoami"], env={"KMB_HOME": str(room.acme.home), "KMB_PASSPHRASE_FILE": str(other), "KMB_CONTEXT": None}
    )
    assert isinstance(result.exception, KeymailboxError)
    assert result.exception.code == "cannot-unseal"
    assert "KMB_PASSPHRASE_FILE" in result.exception.hint


def test_nobody_to_send_to_is_told_for_each(room: Room) -> None:
    """One recipient fails, the other gets its key; the exit code is that of the failure."""
    room.acme.type("key", "create", "both")
    result = room.acme.type(
        "key", "send", "both", "--to", "nobody/here", "--to", "globex/main", "--json", fine=output.NOT_FOUND
    )
    assert [one["recipient"] for one in json.loads(result.stdout)] == ["globex/main"]
    assert "nobody/here" in result.stderr


def test_files_that_are_no_keys(room: Room, tmp_path: Path) -> None:
    """Empty, missing and oversized files are refused before anything is stored."""
    before = room.acme.read("key", "list")
    empty, large = tmp_path / "empty", tmp_path / "large"
    empty.touch()
    large.write_bytes(bytes(512 * 1024 + 1))
    for path in (empty, large, tmp_path / "missing"):
        room.acme.type("key", "create", "k", "--in", str(path), fine=output.USAGE)
    room.acme.type("key", "create", "a name with blanks", fine=output.USAGE)
    assert room.acme.read("key", "list") == before


def test_tables_for_people(room: Room) -> None:
    """Without --json there is a table with the same facts, whole lines on a pipe."""
    shown = room.acme.type("cert", "list").stdout
    for one in room.acme.read("cert", "list"):
        assert one["fingerprint"] in shown


def test_what_is_said_of_a_key_is_shown(room: Room, tmp_path: Path) -> None:
    """Options say it, ``info`` and ``export`` show it on both sides, and a key for later is exported with a note."""
    made = room.acme.read(
        *("key", "create", "said", "--key-algorithm", "aes-256-gcm", "--key-purpose", "training"),
        *("--valid-from", "2999-01-01", "--valid-until", "2999-12-31T12:00Z", "--distribute-until", "2999-06-01"),
        *("--receiver", "globex/main"),
    )
    assert (made["algorithm"], made["purpose"], made["receivers"]) == ("AES-256-GCM", "training", "globex/main")
    room.acme.read("key", "send", "said", "--to", "globex/main")
    room.globex.read("mailbox", "receive")
    told = room.globex.read("key", "info", "said")
    assert {name: told[name] for name in made} == made
    assert (told["valid_from"], told["valid_until"]) == ("2999-01-01T00:00:00+00:00", "2999-12-31T12:00:00+00:00")
    exported = room.globex.type("key", "export", "said", "--out", str(tmp_path / "said.key"))
    assert "not yet" in exported.stderr
    room.acme.type("key", "send", "said", "--to", "acme/eu-west", fine=output.CHECK_FAILED)


@pytest.mark.parametrize(
    "options",
    [
        ("--key-algorithm", "rot13"),
        ("--key-purpose", "fun"),
        ("--valid-until", "tomorrow"),
        ("--valid-from", "2027-01-02", "--valid-until", "2027-01-01"),
        ("--distribute-from", "2027-01-01"),
        ("--receiver", "globex"),
        ("--media-type", "application/pkcs8"),
    ],
)
def test_what_makes_no_sense_is_not_said(room: Room, options: tuple[str, ...]) -> None:
    """Each option that cannot be meant is wrong usage, and makes no key."""
    room.acme.type("key", "create", "senseless", *options, fine=output.USAGE)
    assert "senseless" not in {one["key"] for one in room.acme.read("key", "list")}


def test_the_doctor_sees_mail_that_nobody_answers(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deposit that has waited for long is told with what to type; when it is answered, all is well."""
    monkeypatch.setattr(commands, "_LATE", timedelta(seconds=-60))
    room.acme.read("key", "create", "unanswered")
    room.acme.read("key", "send", "unanswered", "--to", "globex/main")
    [bad] = [row for row in room.globex.read("doctor", fine=output.LOOK) if row["result"] != "ok"]
    assert bad["check"] == "mail" and "kmb mailbox receive" in bad["detail"]
    room.globex.read("mailbox", "receive")
    room.globex.type("doctor")
