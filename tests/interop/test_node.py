"""Node opens our deposits with a hundred lines of its own, for every KEM, the composite among them."""

from __future__ import annotations

import json

import pytest

from pki.core.kem import KemAlgorithm
from tests.interop.commands import RefusedError, Tool
from tests.interop.holdings import pem, pkcs8
from tests.kit.authority import KEY, Party, acme, globex

KEMS = [KemAlgorithm.COMPOSITE, KemAlgorithm.ML_KEM_768, KemAlgorithm.ML_KEM_1024]


def opened(node: Tool, deposit: bytes, sender: Party, recipient: Party) -> dict[str, object]:
    """Return what open.mjs says of a deposit; the key is in the file named out."""
    files = (
        node.put("deposit.der", deposit),
        node.put("sender.pem", pem(sender.identity_der)),
        node.put("recipient.key", pem(pkcs8(recipient), "PRIVATE KEY")),
    )
    said: dict[str, object] = json.loads(node.run(*files, "out"))
    return said


@pytest.mark.parametrize("algorithm", KEMS, ids=lambda one: one.title)
def test_a_deposit_opens(node: Tool, algorithm: KemAlgorithm) -> None:
    """Signature, decapsulation, key derivation, unwrapping and context, by another implementation of each."""
    said = opened(node, globex().deposit(acme(algorithm)), globex(), acme(algorithm))
    assert (said["from"], said["to"], said["key"], said["version"]) == ("globex/main", "acme/eu-west", "orders-2030", 3)
    assert node.get("out") == KEY.key


def test_what_is_altered_or_for_another_is_refused(node: Tool) -> None:
    """The script refuses an altered content, an altered signature, another sender and another recipient's key."""
    deposit = globex().deposit(acme())
    for at, why in ((len(deposit) // 3, "not what was signed"), (len(deposit) - 1, "signature is wrong")):
        altered = bytearray(deposit)
        altered[at] ^= 1
        with pytest.raises(RefusedError, match=why):
            opened(node, bytes(altered), globex(), acme())
    with pytest.raises(RefusedError, match="somebody else signed"):
        opened(node, deposit, acme(), acme())
    with pytest.raises(RefusedError, match="for another key"):
        opened(node, deposit, globex(), globex())
    assert not (node.room / "out").exists()
