"""The ceremony in docs/operations.md works as it is typed there, and again for a roll-over."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from tests.unit.test_server_cli import ROOT, kmb_server

PAGE = (ROOT / "docs" / "operations.md").read_text()
[BLOCK] = re.findall(r"```sh\n(.*?)```", PAGE.partition("## The root's ceremony")[2].partition("\n## ")[0], re.DOTALL)
COMMANDS = [shlex.split(line)[1:] for line in BLOCK.splitlines() if not line.startswith("#")]


def typed(commands: list[list[str]], folder: Path) -> str:
    """Type commands, answer what they ask with what those before have shown, and return what the last one said."""
    shown: dict[str, str] = {}
    done = ""
    for words in commands:
        secret = (
            {"KMB_ROOT_PASSPHRASE_FILE": "secret"} if words[1] in ("init", "sign-issuing") and "--root" in words else {}
        )
        answer = {"sign-issuing": "key", "install": "root"}.get(words[1], "")
        result = kmb_server(*words, cwd=folder, typed=f"{shown.get(answer, '')}\n", **secret)
        assert result.returncode == 0, (words, result.stderr)
        done = result.stdout
        shown |= dict(re.findall(r"(root|key) fingerprint +(\w{64})", done))
    return done


def test_the_ceremony_as_it_is_written(tmp_path: Path) -> None:
    """Every command once; then the three that roll over, which ask for no root any more."""
    assert [" ".join(words[:2]) for words in COMMANDS] == [
        "ca init",
        "ca request",
        "ca sign-issuing",
        "ca install",
        "init --home",
        "ca list",
    ]
    (tmp_path / "secret").write_text("only the root\n")
    listed = typed(COMMANDS, tmp_path)
    assert [line.split()[0] for line in listed.splitlines()] == ["state", "root", "current"]
    rolled = [words for words in COMMANDS if words[1] in ("request", "sign-issuing", "install")]
    listed = typed([*rolled, [*COMMANDS[-1], "--json"]], tmp_path)
    found = json.loads(listed)["authorities"]
    assert [one["state"] for one in found] == ["root", "current", "former"]
    assert len({one["name"] for one in found}) == 3
