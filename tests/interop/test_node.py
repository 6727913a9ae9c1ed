"""Node opens our deposits with a hundred lines of its own, for every KEM, the composite among them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pki.core import deposits, oids, packages
from pki.core.kem import Hkdf, KemAlgorithm
from pki.core.packages import KeyMaterial
from pki.core.signatures import SignatureAlgorithm
from tests.interop.commands import RefusedError, Tool
from tests.interop.holdings import IDENTITIES, TITLE, pem, pkcs8
from tests.kit.authority import KEY, NOW, PACKAGE_ID, Party, acme, authority, globex

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


@pytest.mark.parametrize("identity", IDENTITIES, ids=TITLE)
def test_every_signer(node: Tool, identity: SignatureAlgorithm) -> None:
    """Each algorithm of an identity key, with the digest that goes with it."""
    sender = Party(authority(), globex().address, 12, identity=identity)
    opened(node, sender.deposit(acme()), sender, acme())
    assert node.get("out") == KEY.key


@pytest.mark.parametrize("kdf", list(Hkdf), ids=lambda one: one.label)
def test_every_derivation_and_a_private_key(node: Tool, kdf: Hkdf) -> None:
    """Each HKDF that a recipient may ask for; the key is a private one, in an AsymmetricKeyPackage."""
    sender, recipient = globex(), acme(KemAlgorithm.ML_KEM_1024)
    deposit = deposits.compose(
        KeyMaterial(pkcs8(recipient), packages.PKCS8),
        sender.context(recipient),
        package_id=PACKAGE_ID,
        recipient=replace(recipient.recipient, kdf=kdf),
        signer_ski=sender.ski,
        sign=sender.key.sign,
        signing_time=NOW,
    )
    said = opened(node, deposit, sender, recipient)
    assert said["type"] == oids.ASYMMETRIC_KEY_PACKAGE.dotted_string
    assert node.get("out") == pkcs8(recipient)


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
