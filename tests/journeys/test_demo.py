"""The demonstration is played for real, each time: processes, files, documents; and its failures say what to do."""

from __future__ import annotations

import csv
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COVERCRYPT = ROOT / ".venv-covercrypt" / "bin" / "python"
# The AGPL library lives in an environment of its own, which `make demo-covercrypt` makes.
VARIANTS = [[], *([["--covercrypt", str(COVERCRYPT)]] if COVERCRYPT.exists() else [])]


def play(into: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the demonstration."""
    return subprocess.run(
        [sys.executable, "-m", "demo.exchange", "--into", str(into), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.parametrize("arguments", VARIANTS, ids=lambda arguments: arguments[0] if arguments else "data key")
def test_the_whole_way_of_a_key(tmp_path: Path, arguments: list[str]) -> None:
    """It ends well, names its folder, the folder holds what it says, no server and no secret is left lying about."""
    done = play(tmp_path, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.glob("demo-run-*")
    assert str(folder) in done.stdout
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (opened,) = (folder / "work").glob("*.decrypted.txt")
    assert opened.read_bytes() == (ROOT / "demo" / "contract.txt").read_bytes()
    with (folder / "work" / "distribution.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["sender"], row["recipient"], row["state"]) == ("acme/eu-west", "globex/main", "acknowledged")
    assert (row["receipt_kind"], bool(row["receipt"])) == ("receipt", True)
    process = re.search(r"process +(\d+)", done.stdout)
    assert process is not None
    assert not Path(f"/proc/{process[1]}").exists()
    # Neither the key nor an invitation's secret is on the screen or in the log.
    told = done.stdout + done.stderr + (folder / "server.log").read_text()
    (key_file,) = (folder / "work").glob("globex.*-key")
    assert key_file.read_bytes()[:16].hex() not in told
    for path in (folder / "work").glob("*.invitation.json"):
        found = re.search(r'"secret": ?"([^"]+)"', path.read_text())
        assert found is not None
        assert found[1] not in told


def test_a_failure_says_what_to_do(tmp_path: Path) -> None:
    """A step that fails ends it: not zero, what failed, on what, what to do, and where things lie."""
    done = play(tmp_path, "--covercrypt", str(tmp_path / "no-python"))
    assert done.returncode == 1
    assert "The demonstration failed: There is no such Python" in done.stderr
    assert "next: make demo-covercrypt" in done.stderr
    assert str(next(tmp_path.glob("demo-run-*"))) in done.stderr


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """Nothing is started where nothing can be written."""
    done = play(tmp_path / "missing")
    assert done.returncode == 1
    assert "next: run it in a folder that you can write to" in done.stderr
