"""What OpenSSL streams is BER, of indefinite length and in pieces: the core refuses it; made DER, it is opened."""

from __future__ import annotations

import pytest

from pki.core import envelope, signatures, signing
from pki.core.errors import MalformedError, SignatureError
from pki.core.profile import Profile
from pki.core.signatures import IDENTITY
from pki.core.signing import SignerName, UnverifiedSigned
from pki.tenant.objects.ber import to_der
from tests.interop.commands import Tool
from tests.interop.foreign import Foreigner, foreigner

SIZES = [1, 5000, 300_000]
OAEP = ("-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256")


def streamed(openssl: Tool, size: int, *words: str) -> tuple[bytes, bytes]:
    """Return a content and what OpenSSL streams of it."""
    content = bytes(number % 251 for number in range(size))
    openssl.put("content", content)
    openssl.run("cms", *words, "-binary", "-stream", "-in", "content", "-outform", "DER", "-out", "streamed.ber")
    return content, openssl.get("streamed.ber")


def opened(der: bytes, by: Foreigner) -> bytes:
    """Return what we find in an envelope."""
    parsed = envelope.parse(der, profile=Profile.READ)
    return envelope.unwrap(parsed, by.ski, by.recover, issuer_serial=by.issuer_serial)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kind", "words"),
    [("ML-KEM-768", ()), ("ML-KEM-1024", ()), ("P-256", ("-keyopt", "ecdh_kdf_md:sha256")), ("RSA-3072", OAEP)],
)
def test_streamed_envelopes_open(openssl: Tool, kind: str, words: tuple[str, ...], size: int) -> None:
    """An envelope of each kind, small, and of many pieces; as BER it is refused at its offset."""
    theirs = foreigner(openssl, kind)
    common = ("-encrypt", "-aes-256-gcm", "-recip", "theirs.pem", *words)
    content, ber = streamed(openssl, size, *common)
    with pytest.raises(MalformedError):
        envelope.parse(ber, profile=Profile.READ)
    assert opened(to_der(ber), theirs) == content


def read(der: bytes) -> UnverifiedSigned:
    """Return a foreign signed object."""
    return signing.parse(der, content_types=None, extra=(), profile=Profile.READ)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["ML-DSA-65", "P-256", "Ed25519"])
def test_streamed_signatures_verify(openssl: Tool, kind: str, size: int) -> None:
    """A signed object, with certificates inside; the signature is over attributes that the rewriting keeps."""
    theirs = foreigner(openssl, kind)
    content, ber = streamed(openssl, size, "-sign", "-nodetach", "-signer", "theirs.pem", "-inkey", "theirs.key")
    with pytest.raises(MalformedError):
        read(ber)
    name = SignerName(theirs.ski, theirs.issuer_serial.issuer_der, theirs.issuer_serial.serial)
    key = signatures.load(theirs.spki, allowed=IDENTITY)
    assert read(to_der(ber)).verify(key, name=name).content == content
    at = ber.index(content[:100])
    altered = ber[:at] + bytes([ber[at] ^ 1]) + ber[at + 1 :]
    with pytest.raises(SignatureError):
        read(to_der(altered)).verify(key, name=name)
