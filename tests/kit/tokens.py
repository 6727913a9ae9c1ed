"""Tokens of SoftHSM: a private folder each, made by SoftHSM's own tool, which Debian's package brings."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydantic import SecretStr

from pki.core.signers import SigningKey
from pki.server.adapters.signers.pkcs11 import TokenKeys
from pki.server.adapters.signers.tokens import Token, release
from tests.kit.authority import Authority
from tests.kit.daemons import apt_install

KEY_LABEL = "keymailbox-issuing"
MODULE = "KMB_TEST_SOFTHSM"
"""Environment: the path of another build of SoftHSM's library, such as one that has ML-DSA."""
_DEBIANS = Path("/usr/lib/softhsm/libsofthsm2.so")
_SECONDS = 30


@dataclass(frozen=True)
class SoftToken:
    """One token of SoftHSM, whose secrets are what tests look for."""

    folder: Path
    label: str = "keymailbox"
    pin: str = field(default_factory=lambda: f"pin-{secrets.token_hex(12)}")
    so_pin: str = field(default_factory=lambda: f"so-{secrets.token_hex(12)}")

    @property
    def module(self) -> str:
        """The library's path."""
        return os.environ.get(MODULE) or str(_DEBIANS)

    @property
    def tokens(self) -> Path:
        """Where SoftHSM keeps what is in tokens."""
        return self.folder / "tokens"

    @property
    def pin_file(self) -> Path:
        """The PIN, for KMB_TOKEN_PIN_FILE."""
        return self.folder / "pin"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to see this token, and no other one."""
        return {"SOFTHSM2_CONF": str(self.folder / "softhsm2.conf")}

    @property
    def settings(self) -> dict[str, str]:
        """What a keymailbox process needs, as variables."""
        return {
            **self.environment,
            "KMB_PKCS11_MODULE": self.module,
            "KMB_PKCS11_TOKEN": self.label,
            "KMB_PKCS11_KEY": KEY_LABEL,
            "KMB_TOKEN_PIN_FILE": str(self.pin_file),
        }

    def token(self, *, pin: str = "", label: str = "") -> Token:
        """Return the token as this process uses it, whose environment has to name it."""
        return Token(self.module, label or self.label, SecretStr(pin or self.pin))

    def keys(self, *, rsa_bits: int = 0) -> TokenKeys:
        """Return its keys."""
        return TokenKeys(self.token(), KEY_LABEL, rsa_bits=rsa_bits)

    def run(self, *command: str, check: bool = True) -> str:
        """Run a tool that sees this token; return what it says."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        said = done.stdout + done.stderr
        assert not check or done.returncode == 0, said
        return said

    def initialize(self) -> None:
        """Make an empty token with this label and these PINs."""
        words = ("--init-token", "--free", "--label", self.label, "--pin", self.pin, "--so-pin", self.so_pin)
        self.run(softhsm_tool(), "--module", self.module, *words)

    def remove(self) -> None:
        """Take the token away, as if it were pulled out."""
        self.tokens.rename(self.folder / "pulled")

    def put_back(self) -> None:
        """Put it back."""
        (self.folder / "pulled").rename(self.tokens)


def soft_token(folder: Path, label: str = "keymailbox") -> SoftToken:
    """Make a token in an empty folder; raises ServiceMissingError where SoftHSM is neither there nor can be had."""
    made = SoftToken(folder, label)
    made.tokens.mkdir(parents=True)
    (folder / "softhsm2.conf").write_text(
        f"directories.tokendir = {made.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    made.pin_file.touch(0o600)
    made.pin_file.write_text(f"{made.pin}\n")
    made.initialize()
    return made


@dataclass(frozen=True)
class TokenAuthority(Authority):
    """A root, and an issuing CA whose key was made in a token."""

    keys: TokenKeys = field(kw_only=True, compare=False)

    @cached_property
    def key(self) -> SigningKey:
        """The issuing CA's key, which is made when it is first asked for."""
        made = self.keys.create(self.algorithm)
        return SigningKey(made.public, made.sign)


def softhsm_tool() -> str:
    """Return SoftHSM's tool, installed if need be."""
    if not _DEBIANS.exists():
        apt_install("softhsm2", _DEBIANS)
    return "softhsm2-util"


def pkcs11_tool() -> str:
    """Return OpenSC's tool, which is somebody else's client of the same tokens."""
    found = shutil.which("pkcs11-tool") or "/usr/bin/pkcs11-tool"
    if not Path(found).exists():
        apt_install("opensc", Path(found))
    return found


def forget() -> None:
    """Let go of the libraries, so that the next use reads the environment again."""
    release()
