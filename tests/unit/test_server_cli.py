"""The operator's command line: every command opens with an example that runs, and fails in three parts."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner

from pki.core import errors
from pki.server.cli import app, tell
from tests.kit.daemons import NOBODY, free_port

ROOT = Path(__file__).parents[2]
MAIN = "from pki.server.cli import app, run; run(app)"
COMMANDS = [
    "init",
    "migrate",
    "tenant invite",
    "tenant list",
    "tenant limits",
    "tenant recount",
    "profile list",
    "profile show",
    "profile check",
    "report distribution",
    "report certificates",
    "report rotation",
    "dead list",
    "dead replay",
    "doctor",
    "version",
]


CEREMONY = ["ca init", "ca request", "ca sign-issuing", "ca install", "ca list"]
"""Their examples follow from each other."""


def kmb_server(*arguments: str, cwd: Path, typed: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KMB_")}
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments],
        cwd=cwd,
        env=clean | {"PYTHONPATH": str(ROOT)} | environment,
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def help_of(command: str) -> str:
    """Return a command's help."""
    shown = CliRunner().invoke(app, [*shlex.split(command), "--help"])
    assert shown.exit_code == 0
    return shown.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a server was set up, as the example of `init` says."""
    folder = tmp_path_factory.mktemp("operator")
    assert kmb_server("init", "--home", "./keymailbox-home", cwd=folder).returncode == 0
    return folder


@pytest.mark.parametrize("command", ["", "tenant", "profile", "report", "dead", "ca", "api", *COMMANDS, *CEREMONY])
def test_help_has_an_example(command: str) -> None:
    """Help says what a command does and shows one way to use it."""
    assert re.search(r"Example: kmb-server \S+", help_of(command))


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_run(command: str, place: Path) -> None:
    """What the help shows can be typed; doctor alone may find something wanting on a fresh server."""
    example = re.search(r"Example: kmb-server ([^\n]+)", help_of(command))
    assert example is not None
    done = kmb_server(*shlex.split(example[1]), cwd=place)
    assert done.returncode == (1 if command == "doctor" else 0), done.stderr
    assert done.stdout.strip()


def test_the_ceremony_s_examples_run(tmp_path: Path) -> None:
    """A root, a request, a certificate, a server under that root: what each shows is what the next is asked for."""
    (tmp_path / "pass").write_text("only the root\n")
    typed = {"ca init": "", "ca request": "", "ca list": ""}
    for command in CEREMONY:
        example = re.search(r"Example: kmb-server ([^\n]+)", help_of(command))
        assert example is not None
        secret = {"KMB_ROOT_PASSPHRASE_FILE": "pass"} if command in ("ca init", "ca sign-issuing") else {}
        done = kmb_server(*shlex.split(example[1]), cwd=tmp_path, typed=typed[command], **secret)
        assert done.returncode == 0, (command, done.stderr)
        if found := re.search(r"key fingerprint +(\w{64})", done.stdout):
            typed["ca sign-issuing"] = f"{found[1][:16]}\n"
        if found := re.search(r"root fingerprint +(\w{64})", done.stdout):
            typed["ca install"] = f"{found[1]}\n"
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["state", "root", "current"]
    # Only now the rest of a server; the root stays the ceremony's, and none of its key is in the home.
    told = json.loads(kmb_server("init", "--home", "./keymailbox-home", "--json", cwd=tmp_path).stdout)
    assert (told["root"], told["root_fingerprint"]) == ("SLH-DSA-SHA2-128s", typed["ca install"].strip())
    assert not (tmp_path / "keymailbox-home" / "root").exists()
    assert not list((tmp_path / "keymailbox-home").rglob("root.key*"))


def test_the_ceremony_asks_a_person(tmp_path: Path) -> None:
    """Another fingerprint, or too little of it, signs nothing; nor does another passphrase."""
    (tmp_path / "pass").write_text("only the root\n")
    secret = {"KMB_ROOT_PASSPHRASE_FILE": "pass"}
    assert kmb_server("ca", "init", "--root", "r", "--algorithm", "p-384", cwd=tmp_path, **secret).returncode == 0
    asked = kmb_server("ca", "request", "--home", "h", "--out", "i.csr", "--json", cwd=tmp_path)
    key = json.loads(asked.stdout)["key_fingerprint"]
    sign = ("ca", "sign-issuing", "--root", "r", "--request", "i.csr", "--out", "i.pem")
    for typed in (f"{key[:15]}\n", f"{'0' * 64}\n"):
        assert kmb_server(*sign, cwd=tmp_path, typed=typed, **secret).returncode == 4
    nobody = kmb_server(*sign, cwd=tmp_path, **secret)
    assert (nobody.returncode, "hint:  --fingerprint HEX" in nobody.stderr) == (2, True)
    (tmp_path / "no.csr").write_text("no request")
    stray = kmb_server("ca", "sign-issuing", "--root", "r", "--request", "no.csr", "--out", "i.pem", cwd=tmp_path)
    assert stray.returncode == 1
    assert "no.csr" in stray.stderr and "kmb-server ca request --out FILE" in stray.stderr
    assert kmb_server(*sign, "--fingerprint", key[::-1], cwd=tmp_path, **secret).returncode == 4
    (tmp_path / "other").write_text("somebody else's\n")
    wrong = kmb_server(*sign, "--fingerprint", key, cwd=tmp_path, KMB_ROOT_PASSPHRASE_FILE="other")
    assert wrong.returncode == 4
    assert "KMB_ROOT_PASSPHRASE_FILE" in wrong.stderr
    assert not (tmp_path / "i.pem").exists()
    assert not list((tmp_path / "r").rglob("*.tbs"))
    assert kmb_server(*sign, "--fingerprint", key, cwd=tmp_path, **secret).returncode == 0
    refused = kmb_server("ca", "install", "i.pem", "--home", "h", cwd=tmp_path, typed=f"{'0' * 64}\n")
    assert refused.returncode == 4


def test_a_new_issuing_key_is_sealed_under_the_issuers_passphrase(tmp_path: Path) -> None:
    """Whoever forgets to name it, or names another one, makes no key that the running issuer could not open."""
    (tmp_path / "pass").write_text("the issuer's own\n")
    (tmp_path / "other").write_text("somebody else's\n")
    assert kmb_server("init", "--home", "h", cwd=tmp_path, KMB_PASSPHRASE_FILE="pass").returncode == 0
    before = sorted((tmp_path / "h" / "ca" / "private").iterdir())
    ask = ("ca", "request", "--home", "h", "--out", "i.csr")
    for again in (ask, ("init", "--home", "h")):
        forgotten = kmb_server(*again, cwd=tmp_path)
        assert forgotten.returncode == 1
        assert "KMB_PASSPHRASE_FILE" in forgotten.stderr
    assert kmb_server(*ask, cwd=tmp_path, KMB_PASSPHRASE_FILE="other").returncode == 4
    assert not (tmp_path / "h" / "passphrase").exists()
    assert sorted((tmp_path / "h" / "ca" / "private").iterdir()) == before
    assert kmb_server(*ask, cwd=tmp_path, KMB_PASSPHRASE_FILE="pass").returncode == 0


def test_a_key_in_a_token_needs_a_token(tmp_path: Path) -> None:
    """Without settings for it --token says which; RSA, which is for tokens, says so; nothing is made."""
    ask = ("ca", "request", "--home", "h", "--out", "i.csr")
    for words, said in ((("--token",), "KMB_PKCS11_MODULE"), (("--algorithm", "rsa-3072"), "--token")):
        done = kmb_server(*ask, *words, cwd=tmp_path)
        assert done.returncode == 1 and said in done.stderr, done.stderr
    for unknown in ("p-521", "rsa"):
        refused = kmb_server(*ask, "--algorithm", unknown, cwd=tmp_path)
        assert (refused.returncode, "rsa-3072" in refused.stderr) == (2, True)
    assert not (tmp_path / "i.csr").exists()


def test_help_is_fast() -> None:
    """Nothing heavy is imported for a help page."""
    heavy = ("sqlalchemy", "fastapi", "pydantic", "cryptography", "uvicorn", "structlog", "rich")
    script = f"import sys; import pki.server.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_root_s_algorithm(tmp_path: Path) -> None:
    """`init --root` makes a root of it, `init` without leaves it, and one that asks for another is told."""
    wish = ("init", "--home", "h", "--json")
    for extra in (("--root", "slh-dsa-sha2-128f"), ()):
        assert json.loads(kmb_server(*wish, *extra, cwd=tmp_path).stdout)["root"] == "SLH-DSA-SHA2-128f"
    other = kmb_server(*wish, "--root", "ml-dsa-87", cwd=tmp_path)
    assert other.returncode != 0
    assert "SLH-DSA-SHA2-128f" in other.stderr
    wrong = kmb_server("init", "--home", "g", "--root", "ed25519", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "slh-dsa-sha2-128s" in wrong.stderr
    assert not (tmp_path / "g").exists()


def test_init_makes_a_private_home_and_keeps_it(tmp_path: Path) -> None:
    """Keys and passphrase are for the owner's eyes; a second run changes nothing."""
    told = [json.loads(kmb_server("init", "--home", "h", "--json", cwd=tmp_path).stdout) for _ in range(2)]
    assert told[0] == told[1]
    home = tmp_path / "h"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "passphrase").stat().st_mode) == 0o600
    assert len(told[0]["root_fingerprint"]) == 64


def test_init_with_a_passphrase_file_writes_none(tmp_path: Path) -> None:
    """Who brings a passphrase keeps it where it is; another one does not open the CA."""
    (tmp_path / "pass").write_text("open sesame\n")
    done = kmb_server("init", "--home", "h", cwd=tmp_path, KMB_PASSPHRASE_FILE=str(tmp_path / "pass"))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "h" / "passphrase").exists()
    (tmp_path / "pass").write_text("open barley\n")
    wrong = kmb_server("init", "--home", "h", cwd=tmp_path, KMB_PASSPHRASE_FILE=str(tmp_path / "pass"))
    assert wrong.returncode == 4
    assert "barley" not in wrong.stderr + wrong.stdout


def test_invitation(place: Path) -> None:
    """As JSON for scripts; in words with the whole command, the secret apart from it."""
    told = json.loads(kmb_server("tenant", "invite", "acme", "--home", "keymailbox-home", "--json", cwd=place).stdout)
    assert set(told) == {"tenant", "reference", "secret", "expires"}
    assert told["tenant"] == "acme"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["expires"])
    words = kmb_server("tenant", "invite", "acme", cwd=place, KMB_PUBLIC_URL="https://kmb.example").stdout
    command = next(line for line in words.splitlines() if "kmb enroll" in line)
    secret = next(line.split()[-1] for line in words.splitlines() if line.strip().startswith("secret "))
    root = next(line.split()[-1] for line in words.splitlines() if line.strip().startswith("root "))
    assert "https://kmb.example" in command
    assert root in command
    assert secret not in command
    listed = json.loads(kmb_server("tenant", "list", "--json", cwd=place).stdout)
    assert listed == {"tenants": [{"tenant": "acme", "instances": []}]}


def test_reports(place: Path, tmp_path: Path) -> None:
    """Each format, into a file too; times are checked."""
    inventory = ("report", "certificates")
    assert kmb_server(*inventory, "--overdue", "--tenant", "acme", cwd=place).stdout.startswith("address ")
    assert json.loads(kmb_server(*inventory, "--format", "json", cwd=place).stdout)["rows"] == []
    report = ("report", "distribution")
    assert json.loads(kmb_server(*report, "--format", "json", cwd=place).stdout)["rows"] == []
    out = tmp_path / "report.csv"
    assert kmb_server(*report, "--format", "csv", "--out", str(out), cwd=place).returncode == 0
    assert out.read_text().startswith("deposit_id,")
    assert kmb_server(*report, "--since", "2026-01-01", "--until", "2026-02-01T00:00:00Z", cwd=place).returncode == 0
    assert kmb_server(*report, "--since", "yesterday", cwd=place).returncode == 2
    assert kmb_server(*report, "--format", "pdf", cwd=place).returncode == 2
    assert kmb_server(*report, "--out", str(tmp_path / "no" / "where"), cwd=place).returncode == 1


def test_errors_have_three_parts_and_a_code(place: Path, tmp_path: Path) -> None:
    """What failed, on what, what to do next; and the documented exit codes."""
    cases = [
        (("tenant", "invite", "ACME"), place, {}, 2),
        (("tenant", "list"), tmp_path, {}, 3),
        (("dead", "replay", "7"), place, {}, 3),
        (("dead", "replay"), place, {}, 2),
        (("tenant", "list"), place, {"KMB_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}, 5),
        (("tenant", "list"), place, {"KMB_DATABASE_URL": "mysql://u:hidden@h/d"}, 1),
        (("tenant", "list"), place, {"KMB_PORT": "many"}, 1),
    ]
    for arguments, folder, environment, expected in cases:
        done = kmb_server(*arguments, cwd=folder, **environment)
        assert done.returncode == expected, (arguments, done.stderr)
        assert done.stderr.startswith("error: "), done.stderr
        assert "\nhint:  " in done.stderr
        assert "Traceback" not in done.stderr
        assert "hidden" not in done.stderr
    assert kmb_server("unheard-of", cwd=place).returncode == 2


def test_an_update_is_finished_by_the_operator(tmp_path: Path) -> None:
    """Until somebody says that no earlier process is left, migrate says what is next; afterwards it says no more."""
    folder = tmp_path / "keymailbox-home"
    assert kmb_server("init", cwd=tmp_path).returncode == 0
    with sqlite3.connect(folder / "keymailbox.sqlite") as connection:
        # As a database is that an earlier release made.
        connection.execute("DELETE FROM switches")
    connection.close()
    assert "kmb-server migrate --finish" in kmb_server("migrate", cwd=tmp_path).stdout
    found = json.loads(kmb_server("doctor", "--json", cwd=tmp_path).stdout)["findings"]
    assert [one["ok"] for one in found if one["check"] == "bodies" and "--finish" in one["detail"]] == [True]
    assert "a table of their own" in kmb_server("migrate", "--finish", cwd=tmp_path).stdout
    assert "--finish" not in kmb_server("migrate", cwd=tmp_path).stdout


def test_there_is_no_counterfoil_of_what_is_no_deposit(place: Path) -> None:
    """An id that nobody has, and what is no id, are told alike."""
    for name in ("0" * 32, "nothing"):
        done = kmb_server("report", "counterfoil", name, cwd=place)
        assert (done.returncode, done.stdout) == (3, "") and "\nhint:  " in done.stderr


def test_refusals_have_their_code(capsys: pytest.CaptureFixture[str]) -> None:
    """A failed check is 4, with the rule that was broken."""
    assert tell(errors.CertificateError(on="acme/eu-west", rule="CRT-003")) == 4
    assert capsys.readouterr().err.splitlines() == [
        "error: The certificate cannot be used. [CRT-003]",
        "on:    acme/eu-west",
        "hint:  kmb-server doctor",
    ]


def test_doctor_says_what_is_wanting(place: Path, tmp_path: Path) -> None:
    """A fresh server lacks a beat and its first revocation list; where there is no server, everything is wanting."""
    told = json.loads(kmb_server("doctor", "--json", cwd=place).stdout)["findings"]
    # That nobody numbers what other tests did here shows after a while.
    assert {one["check"] for one in told if not one["ok"]} - {"sequencer"} == {"crl", "beat"}
    nothing = kmb_server("doctor", cwd=tmp_path)
    assert nothing.returncode == 1
    assert "kmb-server init" in nothing.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def serving(place: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`kmb-server api`, on a port that is free, with its address."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KMB_")}
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "api", "--port", str(port)],
        cwd=place,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process, f"http://127.0.0.1:{port}"
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_api_serves_and_stops(serving: tuple[subprocess.Popen[str], str]) -> None:
    """The API starts, answers, logs JSON lines with the request's id, and stops in order on SIGTERM."""
    process, url = serving
    deadline = time.monotonic() + 120
    while True:
        try:
            answer = httpx2.get(f"{url}/v1/ca?secret=hidden", timeout=60, trust_env=False, verify=NOBODY)
            break
        except httpx2.ConnectError:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
    assert answer.status_code == 200
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in log.splitlines()]
    [request] = [line for line in lines if line.get("event") == "request"]
    assert request["request_id"] == answer.headers["x-request-id"]
    assert (request["route"], request["status"], request["level"]) == ("/v1/ca", 200, "info")
    assert "hidden" not in log
