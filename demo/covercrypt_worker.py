"""Covercrypt by the command line, for the demonstration: run by the Python of an environment that has cloudproof_py.

cloudproof_py is AGPL-3.0 and no dependency of this project: this script alone imports it, in a process of its own, and
it imports nothing of the project. Exit codes: 0 done, 1 damaged or unknown input, 2 wrong use, 3 the key's rights do
not open the ciphertext.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

try:
    from cloudproof_py.cover_crypt import (
        CoverCrypt,
        MasterPublicKey,
        MasterSecretKey,
        Policy,
        PolicyAxis,
        UserSecretKey,
    )
except ImportError:
    sys.exit("covercrypt_worker: cloudproof_py is not in this environment. Next: make demo-covercrypt")

DEPARTMENTS = ("FIN", "MKG", "HR")
LEVELS = ("Protected", "Confidential", "Secret")
NOT_OPENED = 3


class NotOpenedError(Exception):
    """The key is sound, and its access policy does not cover the ciphertext."""


def main() -> int:
    """Run one subcommand and print the sizes of what it wrote as one line of JSON."""
    parser = argparse.ArgumentParser(prog="covercrypt_worker", description="Covercrypt keys and messages in files.")
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("setup", help="make a policy and master keys in DIR")
    command.add_argument("dir", type=Path)
    command.set_defaults(run=lambda a: setup(a.dir))

    command = commands.add_parser("user-key", help="derive a user decryption key for an access policy")
    command.add_argument("dir", type=Path)
    command.add_argument("policy", help='such as "Department::FIN && Security::Confidential"')
    command.add_argument("out", type=Path)
    command.set_defaults(run=lambda a: user_key(a.dir, a.policy, a.out))

    command = commands.add_parser("encrypt", help="encrypt a file for an access policy")
    command.add_argument("dir", type=Path)
    command.add_argument("policy")
    command.add_argument("source", type=Path)
    command.add_argument("out", type=Path)
    command.set_defaults(run=lambda a: encrypt(a.dir, a.policy, a.source, a.out))

    command = commands.add_parser("decrypt", help=f"decrypt a file; exits {NOT_OPENED} if the key does not open it")
    command.add_argument("key", type=Path)
    command.add_argument("source", type=Path)
    command.add_argument("out", type=Path)
    command.set_defaults(run=lambda a: decrypt(a.key, a.source, a.out))

    arguments = parser.parse_args()
    try:
        sizes: dict[str, int] = arguments.run(arguments)
    except NotOpenedError:
        print("covercrypt_worker: this key's access policy does not open this ciphertext", file=sys.stderr)
        return NOT_OPENED
    except (OSError, TypeError) as error:
        # TypeError is what the library raises for every failure of its own.
        print(f"covercrypt_worker: {error}", file=sys.stderr)
        return 1
    print(json.dumps(sizes))
    return 0


def setup(directory: Path) -> dict[str, int]:
    """Write policy, master secret key and master public key; every attribute is post-quantum (hybrid ML-KEM)."""
    directory.mkdir(parents=True, exist_ok=True)
    policy = Policy()
    policy.add_axis(PolicyAxis("Department", [(name, True) for name in DEPARTMENTS], hierarchical=False))
    policy.add_axis(PolicyAxis("Security", [(name, True) for name in LEVELS], hierarchical=True))
    secret, public = CoverCrypt().generate_master_keys(policy)
    return {
        "policy": _write(directory / "policy", policy.to_bytes()),
        "msk": _write(directory / "msk", secret.to_bytes()),
        "mpk": _write(directory / "mpk", public.to_bytes()),
    }


def user_key(directory: Path, access: str, out: Path) -> dict[str, int]:
    """Write the raw user decryption key for an access policy."""
    secret = MasterSecretKey.from_bytes((directory / "msk").read_bytes())
    key = CoverCrypt().generate_user_secret_key(secret, access, _policy(directory))
    return {"user_key": _write(out, key.to_bytes())}


def encrypt(directory: Path, access: str, source: Path, out: Path) -> dict[str, int]:
    """Encrypt a file for whoever satisfies the access policy; only the public key is needed."""
    public = MasterPublicKey.from_bytes((directory / "mpk").read_bytes())
    plaintext = source.read_bytes()
    ciphertext = CoverCrypt().encrypt(_policy(directory), access, public, plaintext)
    return {"plaintext": len(plaintext), "ciphertext": _write(out, ciphertext)}


def decrypt(key_file: Path, source: Path, out: Path) -> dict[str, int]:
    """Decrypt a file, or raise `NotOpenedError`, with nothing written, if the key's rights do not cover it."""
    key = UserSecretKey.from_bytes(key_file.read_bytes())
    ciphertext = source.read_bytes()
    try:
        plaintext, _ = CoverCrypt().decrypt(key, ciphertext)
    except TypeError as error:
        # Only its words tell missing rights from damage.
        if "InsufficientAccessPolicy" in str(error):
            raise NotOpenedError from error
        raise
    return {"plaintext": _write(out, plaintext)}


def _policy(directory: Path) -> Policy:
    return Policy.from_bytes((directory / "policy").read_bytes())


def _write(path: Path, content: bytes) -> int:
    """Write anew, readable by the owner alone from the first byte on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    return len(content)


if __name__ == "__main__":
    sys.exit(main())
