"""Private keys are loaded in the tenant's holders and the CA's signer, and nowhere else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

_SOURCE = Path(__file__).parents[2]
_HOMES = ("pki/tenant/holders/", "pki/server/adapters/signers/")
# The arithmetic is in the core, which is handed the key by a holder or the CA's signer.
_HANDED = {f"pki/core/{name}.py" for name in ("kem", "agreement", "transport", "keys", "crl", "signers")}
# A field of a key package is called so by RFC 5958.
_HANDED |= {"pki/core/packages.py"}


def _loads_private_keys(source: str) -> bool:
    names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    return any(name.endswith("PrivateKey") or "private_key" in name for name in names)


@pytest.mark.parametrize("room", ["pki", "workers"])
def test_only_holders_and_signers_load_private_keys(room: str) -> None:
    """No other module names a private key's class or loader."""
    found = {
        str(path.relative_to(_SOURCE))
        for path in (_SOURCE / room).rglob("*.py")
        if _loads_private_keys(path.read_text())
    }
    strangers = {path for path in found if not path.startswith(_HOMES)} - _HANDED
    assert strangers == set()


def test_the_wall_sees_a_loader() -> None:
    """A module that loads a private key would be found."""
    assert _loads_private_keys("from x import serialization\nserialization.load_pem_private_key(b'', None)")
    assert _loads_private_keys("key: Ed25519PrivateKey")
