"""OpenSSL opens our deposits and believes our signatures, and stops doing so when a byte is altered."""

from __future__ import annotations

import pytest

from pki.core import packages
from pki.core.kem import KemAlgorithm
from tests.interop.commands import RefusedError, Tool
from tests.interop.holdings import keys, signers
from tests.kit.authority import KEY, Party, acme, globex

ML_KEM = [KemAlgorithm.ML_KEM_768, KemAlgorithm.ML_KEM_1024]


def opened(openssl: Tool, deposit: bytes, sender: Party, recipient: Party) -> bytes:
    """Return the key package of a deposit, by the two commands that docs/interop.md tells."""
    openssl.put("deposit.der", deposit)
    words = ("cms", "-verify", "-binary", "-inform", "DER", "-in", "deposit.der", "-out", "envelope.der")
    openssl.run(*words, *signers(openssl, sender))
    words = ("cms", "-decrypt", "-binary", "-inform", "DER", "-in", "envelope.der", "-out", "package.der")
    openssl.run(*words, *keys(openssl, recipient))
    return openssl.get("package.der")


@pytest.mark.parametrize("algorithm", ML_KEM, ids=lambda one: one.title)
def test_a_deposit_opens(openssl: Tool, algorithm: KemAlgorithm) -> None:
    """OpenSSL verifies the signature under our chain and decrypts, with the context authenticated."""
    package = opened(openssl, globex().deposit(acme(algorithm)), globex(), acme(algorithm))
    assert package == packages.encode_package(KEY)[1]


def test_an_altered_deposit_does_not_open(openssl: Tool) -> None:
    """One altered byte of the content, of the signature, or of the context inside, is refused by OpenSSL."""
    deposit = globex().deposit(acme(KemAlgorithm.ML_KEM_768))
    for at in (len(deposit) // 3, len(deposit) - 1):
        altered = bytearray(deposit)
        altered[at] ^= 1
        with pytest.raises(RefusedError):
            opened(openssl, bytes(altered), globex(), acme(KemAlgorithm.ML_KEM_768))
