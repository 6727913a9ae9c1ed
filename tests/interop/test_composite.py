"""The composite KEM against parts that are not ours: ML-KEM of pqcrypto, X25519 of OpenSSL, structures of pyasn1.

No command line speaks the composite yet; Node opens it in test_node.py, and here it is made and opened from its parts.
"""

from __future__ import annotations

import hashlib
import secrets

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from pqcrypto.kem import ml_kem_768
from pyasn1.codec.der.encoder import encode
from pyasn1.type import univ
from pyasn1_alt_modules import rfc5083, rfc5084, rfc5652, rfc9629

from pki.core import envelope, kem, oids
from pki.core.errors import UnwrapError
from pki.core.kem import KemAlgorithm
from tests.interop.commands import Tool

COMPOSITE = KemAlgorithm.COMPOSITE
SEED = bytes.fromhex("3054020100300b060960864801650304040204428040")
"""PKCS #8 of an ML-KEM-768 seed, up to the seed (RFC 9935 §6)."""
X25519 = bytes.fromhex("302e020100300506032b656e04220420")
X25519_PUBLIC = bytes.fromhex("302a300506032b656e032100")
"""PKCS #8 and SubjectPublicKeyInfo of X25519, up to the key (RFC 8410 §4, §7)."""
CONTENT = b"a key package, as far as the envelope knows"


def agreed(openssl: Tool, private: bytes, public: bytes) -> bytes:
    """Return what OpenSSL's X25519 makes of two raw keys."""
    openssl.put("x.der", X25519 + private)
    openssl.put("peer.der", X25519_PUBLIC + public)
    words = ("pkeyutl", "-derive", "-keyform", "DER", "-inkey", "x.der", "-peerform", "DER", "-peerkey", "peer.der")
    openssl.run(*words, "-out", "shared")
    return openssl.get("shared")


def combined(shared_m: bytes, shared_x: bytes, sent_x: bytes, public_x: bytes) -> bytes:
    """Return the composite's secret, as draft-ietf-lamps-pq-composite-kem says it."""
    return hashlib.sha3_256(shared_m + shared_x + sent_x + public_x + b"\\.//^\\").digest()


def encapsulated(openssl: Tool, public: bytes) -> tuple[bytes, bytes]:
    """Return ciphertext and secret for a composite public key."""
    sent_m, shared_m = ml_kem_768.encaps(public[:1184])
    openssl.put("ephemeral.key", b"")
    openssl.run("genpkey", "-algorithm", "X25519", "-outform", "DER", "-out", "ephemeral.key")
    openssl.run("pkey", "-in", "ephemeral.key", "-pubout", "-outform", "DER", "-out", "ephemeral.pub")
    sent_x = openssl.get("ephemeral.pub")[-32:]
    shared_x = agreed(openssl, openssl.get("ephemeral.key")[-32:], public[1184:])
    return sent_m + sent_x, combined(shared_m, shared_x, sent_x, public[1184:])


def decapsulated(openssl: Tool, private: bytes, ciphertext: bytes) -> bytes:
    """Return the secret with a composite private key; OpenSSL expands the seed, pqcrypto uses it."""
    openssl.put("seed.der", SEED + private[:64])
    words = ("pkey", "-in", "seed.der", "-provparam", "ml-kem.output_formats=priv-only", "-outform", "DER")
    openssl.run(*words, "-out", "expanded.der")
    expanded = openssl.get("expanded.der")[-ml_kem_768.SECRET_KEY_SIZE :]
    shared_m = ml_kem_768.decaps(expanded, ciphertext[:1088])
    openssl.put("x.key", X25519 + private[64:])
    openssl.run("pkey", "-in", "x.key", "-pubout", "-outform", "DER", "-out", "x.pub")
    shared_x = agreed(openssl, private[64:], ciphertext[1088:])
    return combined(shared_m, shared_x, ciphertext[1088:], openssl.get("x.pub")[-32:])


def test_both_encapsulate_and_decapsulate_alike(openssl: Tool) -> None:
    """What one sends the other receives, both ways."""
    private = kem.generate(COMPOSITE)
    public = kem.public_from_private(COMPOSITE, private)
    sent, shared = kem.encapsulate(COMPOSITE, public)
    assert decapsulated(openssl, private, sent) == shared
    sent, shared = encapsulated(openssl, public)
    assert kem.decapsulate(COMPOSITE, private, sent) == shared
    altered = sent[:-1] + bytes([sent[-1] ^ 1])
    assert kem.decapsulate(COMPOSITE, private, altered) == decapsulated(openssl, private, altered) != shared


def identifier(spec: rfc5652.AlgorithmIdentifier, oid: str) -> rfc5652.AlgorithmIdentifier:
    """Fill in an AlgorithmIdentifier without parameters."""
    spec["algorithm"] = univ.ObjectIdentifier(oid)
    return spec


def recipient(ski: bytes, sent: bytes, shared: bytes, content_key: bytes, ukm: bytes | None) -> bytes:
    """Return a KEMRecipientInfo of pyasn1's making."""
    other = rfc9629.CMSORIforKEMOtherInfo()
    identifier(other["wrap"], "2.16.840.1.101.3.4.1.45")
    other["kekLength"] = 32
    info = rfc9629.KEMRecipientInfo()
    info["version"], info["kekLength"], info["kemct"] = 0, 32, sent
    info["rid"]["subjectKeyIdentifier"] = info["rid"]["subjectKeyIdentifier"].clone(ski)
    if ukm is not None:
        info["ukm"] = info["ukm"].clone(ukm)
        other["ukm"] = other["ukm"].clone(ukm)
    kek = HKDF(hashes.SHA256(), 32, None, encode(other)).derive(shared)
    identifier(info["kem"], "1.3.6.1.5.5.7.6.58")
    identifier(info["kdf"], "1.2.840.113549.1.9.16.3.28")
    identifier(info["wrap"], "2.16.840.1.101.3.4.1.45")
    info["encryptedKey"] = aes_key_wrap(kek, content_key)
    return bytes(encode(info))


def sealed(ski: bytes, sent: bytes, shared: bytes, ukm: bytes | None) -> bytes:
    """Return an envelope of pyasn1's making, with authenticated attributes."""
    content_key, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
    data = rfc5083.AuthEnvelopedData()
    data["version"] = 0
    other = data["recipientInfos"][0]["ori"]
    other["oriType"] = univ.ObjectIdentifier("1.2.840.113549.1.9.16.13.3")
    other["oriValue"] = univ.Any(recipient(ski, sent, shared, content_key, ukm))
    attribute = data["authAttrs"][0]
    attribute["attrType"] = univ.ObjectIdentifier("1.2.840.113549.1.9.3")
    attribute["attrValues"][0] = univ.Any(encode(univ.ObjectIdentifier("1.2.840.113549.1.7.1")))
    aad = b"\x31" + encode(data["authAttrs"])[1:]
    parameters = rfc5084.GCMParameters()
    parameters["aes-nonce"], parameters["aes-ICVlen"] = nonce, 16
    found = AESGCM(content_key).encrypt(nonce, CONTENT, aad)
    content = data["authEncryptedContentInfo"]
    content["contentType"] = univ.ObjectIdentifier("1.2.840.113549.1.7.1")
    identifier(content["contentEncryptionAlgorithm"], "2.16.840.1.101.3.4.1.46")
    content["contentEncryptionAlgorithm"]["parameters"] = univ.Any(encode(parameters))
    content["encryptedContent"] = content["encryptedContent"].clone(found[:-16])
    data["mac"] = found[-16:]
    outer = rfc5652.ContentInfo()
    outer["contentType"] = univ.ObjectIdentifier("1.2.840.113549.1.9.16.1.23")
    outer["content"] = univ.Any(encode(data))
    return bytes(encode(outer))


@pytest.mark.parametrize("ukm", [None, b"user keying material"], ids=["no ukm", "ukm"])
def test_we_open_a_foreign_composite_envelope(openssl: Tool, ukm: bytes | None) -> None:
    """Strictly, as the server reads it: an envelope whose every byte others have made opens."""
    private = kem.generate(COMPOSITE)
    public = kem.public_from_private(COMPOSITE, private)
    ski = hashlib.sha256(public).digest()[:20]
    parsed = envelope.parse(sealed(ski, *encapsulated(openssl, public), ukm))
    assert parsed.content_type == oids.DATA
    assert envelope.unwrap(parsed, ski, lambda _, sent: kem.decapsulate(COMPOSITE, private, sent)) == CONTENT
    with pytest.raises(UnwrapError):
        envelope.unwrap(parsed, ski, lambda _, sent: kem.decapsulate(COMPOSITE, kem.generate(COMPOSITE), sent))
