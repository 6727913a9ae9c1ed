"""What docs/interop.md tells people to type works as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pki.core import packages
from pki.core.kem import KemAlgorithm
from tests.interop.commands import SECONDS, Tool
from tests.interop.holdings import AT, pem, pkcs8, trust
from tests.kit.authority import KEY, Party, acme, globex

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/interop.md").read_text(), re.DOTALL)


def prepare(openssl: Tool, recipient: Party) -> None:
    """Write the files that the page begins with."""
    sender = globex()
    trust(openssl, sender)
    openssl.put("deposit.der", sender.deposit(recipient))
    openssl.put("sender.pem", pem(sender.identity_der) + pem(sender.authority.issuing_der))
    openssl.put("recipient.pem", pem(recipient.encryption_der))
    openssl.put("recipient.key", pem(pkcs8(recipient), "PRIVATE KEY"))
    openssl.put("crl.pem", pem(sender.authority.crl_der(), "X509 CRL"))
    openssl.put("content", b"content")


def typed(openssl: Tool, node: Path, block: str) -> None:
    """Run a block as a person would, but at the time of the tests."""
    path = openssl.room / "bin"
    path.mkdir(exist_ok=True)
    for name, command in (("openssl", openssl.command), ("node", node)):
        (path / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (path / name).chmod(0o755)
    shutil.copytree(ROOT / "tests/interop/node", openssl.room / "tests/interop/node", dirs_exist_ok=True)
    then = block.replace("-CAfile root.pem", f"-CAfile root.pem {' '.join(AT)}")
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-e", "-c", then], cwd=openssl.room, env=environment, capture_output=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr.decode()


def test_each_command_works(openssl: Tool, node_command: Path) -> None:
    """From a deposit to its key with OpenSSL and with Node, and an envelope the other way."""
    recipient = acme(KemAlgorithm.ML_KEM_768)
    prepare(openssl, recipient)
    assert len(BLOCKS) == 4
    for block in BLOCKS:
        typed(openssl, node_command, block)
    assert openssl.get("package.der") == packages.encode_package(KEY)[1]
    assert openssl.get("key") == KEY.key


def test_a_command_can_fail(openssl: Tool, node_command: Path) -> None:
    """A sender's certificate that was revoked stops the page at its first command."""
    prepare(openssl, acme(KemAlgorithm.ML_KEM_768))
    authority = globex().authority
    openssl.put("crl.pem", pem(authority.crl_der([globex().seed * 10]), "X509 CRL"))
    with pytest.raises(AssertionError, match="revoked"):
        typed(openssl, node_command, BLOCKS[0])
