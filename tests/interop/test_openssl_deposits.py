"""OpenSSL opens our deposits and believes our signatures, and stops doing so when a byte is altered."""

from __future__ import annotations

import pytest

from pki.core import counterfoils, deposits, envelope, oids, packages
from pki.core.keys import EcAlgorithm, KemAlgorithm, KeyAlgorithm, RsaAlgorithm
from pki.core.profile import Profile
from tests.interop.commands import RefusedError, Tool
from tests.interop.holdings import TITLE, keys, pem, signers
from tests.kit.authority import KEY, Party, acme, globex

RECIPIENTS: list[KeyAlgorithm] = [
    KemAlgorithm.ML_KEM_768,
    KemAlgorithm.ML_KEM_1024,
    EcAlgorithm.P_256,
    EcAlgorithm.P_384,
    RsaAlgorithm.OAEP_SHA256,
    RsaAlgorithm.OAEP_SHA1,
]
OAEP = ("-keyopt", "rsa_padding_mode:oaep", "-keyopt")
HOW: dict[KeyAlgorithm, tuple[str, ...]] = {
    EcAlgorithm.P_256: ("-keyopt", "ecdh_kdf_md:sha256"),
    EcAlgorithm.P_384: ("-keyopt", "ecdh_kdf_md:sha384"),
    RsaAlgorithm.OAEP_SHA256: (*OAEP, "rsa_oaep_md:sha256"),
    RsaAlgorithm.OAEP_SHA1: (*OAEP, "rsa_oaep_md:sha1"),
}


def opened(openssl: Tool, deposit: bytes, sender: Party, recipient: Party) -> bytes:
    """Return the key package of a deposit, by the two commands that docs/interop.md tells."""
    openssl.put("deposit.der", deposit)
    words = ("cms", "-verify", "-binary", "-inform", "DER", "-in", "deposit.der", "-out", "envelope.der")
    openssl.run(*words, *signers(openssl, sender))
    words = ("cms", "-decrypt", "-binary", "-inform", "DER", "-in", "envelope.der", "-out", "package.der")
    openssl.run(*words, *keys(openssl, recipient))
    return openssl.get("package.der")


@pytest.mark.parametrize("algorithm", RECIPIENTS, ids=TITLE)
def test_a_deposit_opens(openssl: Tool, algorithm: KeyAlgorithm) -> None:
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


@pytest.mark.parametrize("algorithm", RECIPIENTS, ids=TITLE)
def test_openssl_encrypts_for_our_certificates(openssl: Tool, algorithm: KeyAlgorithm) -> None:
    """With the certificate of an instance and nothing else, OpenSSL makes what the instance opens."""
    party = acme(algorithm)
    openssl.put("content", b"content")
    words = ("cms", "-encrypt", "-binary", "-aes-256-gcm", "-keyid", "-in", "content", "-outform", "DER")
    recipient = openssl.put("recipient.pem", pem(party.encryption_der))
    openssl.run(*words, "-recip", recipient, *HOW.get(algorithm, ()), "-out", "envelope.der")
    parsed = envelope.parse(openssl.get("envelope.der"), profile=Profile.READ)
    assert [one.ski for one in parsed.recipients] == [party.kem_ski]
    assert parsed.content_type == oids.DATA
    assert envelope.unwrap(parsed, party.kem_ski, party.decapsulate) == b"content"


def test_a_counterfoil_verifies_without_the_envelope(openssl: Tool) -> None:
    """The sender's signature stands after the envelope is gone, and again for the envelope if somebody still has it."""
    deposit = globex().deposit(acme())
    openssl.put("counterfoil.der", counterfoils.cut(deposit))
    words = ("cms", "-verify", "-binary", "-inform", "DER", "-in", "counterfoil.der", "-out", "out", "-content")
    openssl.put("nothing", b"")
    openssl.put("envelope.der", deposits.parse_deposit(deposit).signed.content)
    openssl.run(*words, "nothing", "-no_content_verify", *signers(openssl, globex()))
    openssl.run(*words, "envelope.der", *signers(openssl, globex()))
    with pytest.raises(RefusedError):
        openssl.run(*words, "nothing", *signers(openssl, globex()))
    altered = bytearray(counterfoils.cut(deposit))
    for at in (len(altered) // 20, len(altered) - 1):
        altered[at] ^= 1
        openssl.put("counterfoil.der", bytes(altered))
        with pytest.raises(RefusedError):
            openssl.run(*words, "nothing", "-no_content_verify", *signers(openssl, globex()))
        altered[at] ^= 1
