"""Signed objects both ways, for every identity algorithm: OpenSSL verifies ours, and what it signs we verify."""

from __future__ import annotations

from typing import Any

import pytest

from pki.core import oids, receipts, revocations, signatures, signing
from pki.core.crl import Reason
from pki.core.errors import AlgorithmError, KeymailboxError, ProfileError, SignatureError
from pki.core.ids import deposit_id, fingerprint
from pki.core.profile import Profile
from pki.core.receipts import RefusalReason
from pki.core.signatures import IDENTITY, SignatureAlgorithm
from pki.core.signing import SignedObject, SignerName, UnverifiedSigned
from tests.interop.commands import RefusedError, Tool
from tests.interop.foreign import Foreigner, foreigner
from tests.interop.holdings import IDENTITIES, TITLE, signers
from tests.kit.authority import NOW, PACKAGE_ID, Party, acme, authority, globex

CONTENT = b"what somebody else has signed\n"


def verified(openssl: Tool, der: bytes, by: Party) -> bytes:
    """Return what OpenSSL believes that ``by`` has signed."""
    openssl.put("signed.der", der)
    words = ("cms", "-verify", "-binary", "-inform", "DER", "-in", "signed.der", "-out", "content")
    openssl.run(*words, *signers(openssl, by))
    return openssl.get("content")


def party(algorithm: SignatureAlgorithm) -> Party:
    """Return acme/eu-west with an identity key of another algorithm."""
    return Party(authority(), acme().address, 11, identity=algorithm)


@pytest.mark.parametrize("algorithm", IDENTITIES, ids=TITLE)
def test_openssl_verifies_ours(openssl: Tool, algorithm: SignatureAlgorithm) -> None:
    """A deposit, a receipt, a refusal and a revocation request verify under our chain."""
    signer = party(algorithm)
    deposit, sha512 = deposit_id(PACKAGE_ID), bytes(64)
    common: dict[str, Any] = {
        "signer_ski": signer.ski,
        "sign": signer.key.sign,
        "signing_time": NOW,
        "algorithm": algorithm,
    }
    objects = (
        signer.deposit(globex()),
        receipts.compose_receipt(deposit, sha512, signer.address, **common),
        receipts.compose_refusal(deposit, sha512, signer.address, RefusalReason.NOT_WANTED, **common),
        revocations.compose_revocation(fingerprint(b""), Reason.KEY_COMPROMISE, **common),
    )
    for der in objects:
        parsed = signing.parse(der, content_types=None, extra=(), profile=Profile.READ)
        assert verified(openssl, der, signer) == parsed.content


@pytest.mark.parametrize("algorithm", IDENTITIES, ids=TITLE)
def test_openssl_refuses_ours_when_altered(openssl: Tool, algorithm: SignatureAlgorithm) -> None:
    """The proof can fail: an altered content, an altered signed attribute, another signer's certificate."""
    signer, other = party(algorithm), Party(authority(), globex().address, 12, identity=algorithm)
    der = signer.deposit(globex())
    purpose = der.rindex(b"orders-2030")
    for at in (len(der) // 4, purpose):
        with pytest.raises(RefusedError):
            verified(openssl, der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :], signer)
    with pytest.raises(RefusedError):
        verified(openssl, der, other)


def signed(openssl: Tool, *words: str) -> bytes:
    """Return what OpenSSL signs."""
    openssl.put("content", CONTENT)
    common = ("cms", "-sign", "-binary", "-nodetach", "-in", "content", "-outform", "DER", "-out", "signed.der")
    openssl.run(*common, *words)
    return openssl.get("signed.der")


def by(name: str = "theirs") -> tuple[str, ...]:
    """Return the words that name a signer."""
    return ("-signer", f"{name}.pem", "-inkey", f"{name}.key")


def read(der: bytes) -> UnverifiedSigned:
    """Return a foreign signed object."""
    return signing.parse(der, content_types=None, extra=(), profile=Profile.READ)


def believed(der: bytes, signer: Foreigner) -> SignedObject:
    """Return what we believe that somebody else has signed."""
    name = SignerName(signer.ski, signer.issuer_serial.issuer_der, signer.issuer_serial.serial)
    return read(der).verify(signatures.load(signer.spki, allowed=IDENTITY), name=name)


@pytest.mark.parametrize("name", [("-keyid",), ()], ids=["by key identifier", "by issuer and serial"])
@pytest.mark.parametrize("certificates", [("-nocerts",), ()], ids=["bare", "with certificates"])
@pytest.mark.parametrize("kind", ["ML-DSA-44", "ML-DSA-65", "ML-DSA-87", "P-256", "P-384", "Ed25519"])
def test_we_verify_openssls(openssl: Tool, kind: str, certificates: tuple[str, ...], name: tuple[str, ...]) -> None:
    """Each algorithm with OpenSSL's own digest; embedded certificates are passed over."""
    theirs = foreigner(openssl, kind)
    # Unless told, OpenSSL takes SHA-256 for P-384, too, SHAKE256 for ML-DSA, and SHA-512 for Ed25519.
    found = believed(signed(openssl, *by(), *certificates, *name), theirs)
    assert (found.content, found.content_type) == (CONTENT, oids.DATA)
    assert found.signed_at is not None


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("kind", ["P-256", "P-384"])
def test_we_verify_ecdsa_with_each_digest(openssl: Tool, kind: str, digest: str) -> None:
    """ECDSA with another SHA-2 than the curve's own is read, though never made."""
    theirs = foreigner(openssl, kind)
    assert believed(signed(openssl, *by(), "-keyid", "-md", digest), theirs).content == CONTENT


@pytest.mark.parametrize(
    ("kind", "digest"),
    [("ML-DSA-44", "sha256"), ("ML-DSA-44", "sha512"), ("ML-DSA-65", "sha384"), ("ML-DSA-87", "sha512")],
)
def test_we_verify_ml_dsa_with_sha2(openssl: Tool, kind: str, digest: str) -> None:
    """ML-DSA with each SHA-2 that is as strong."""
    theirs = foreigner(openssl, kind)
    assert believed(signed(openssl, *by(), "-keyid", "-md", digest), theirs).content == CONTENT


def test_we_read_other_attributes(openssl: Tool) -> None:
    """CAdES's attribute is kept, a missing signing time is none, and neither is believed to be ours."""
    theirs = foreigner(openssl, "ML-DSA-65")
    found = believed(signed(openssl, *by(), "-keyid", "-cades", "-md", "sha512", "-no_signing_time"), theirs)
    assert found.signed_at is None
    assert "1.2.840.113549.1.9.16.2.47" in {oid.dotted_string for oid in found.attributes}


def test_we_refuse_openssls_when_altered(openssl: Tool) -> None:
    """The proof can fail: an altered content, an altered signature, another key, another name of the same key."""
    theirs, other = foreigner(openssl, "ML-DSA-65"), foreigner(openssl, "ML-DSA-65", "other")
    der = signed(openssl, *by(), "-keyid")
    for at in (der.index(CONTENT), len(der) - 1):
        with pytest.raises(SignatureError):
            believed(der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :], theirs)
    with pytest.raises(SignatureError):
        believed(der, other)
    with pytest.raises(SignatureError):
        read(der).verify(signatures.load(theirs.spki, allowed=IDENTITY))


def test_what_openssl_signs_is_no_deposit(openssl: Tool) -> None:
    """The server is strict: nothing of OpenSSL's making passes for one of our objects."""
    foreigner(openssl, "ML-DSA-65")
    with pytest.raises(KeymailboxError) as caught:
        signing.parse(signed(openssl, *by(), "-keyid", "-nocerts"), content_types={oids.DATA}, extra=())
    assert caught.value.rule is not None


@pytest.mark.parametrize(
    ("kind", "words", "rule"),
    [
        ("ML-DSA-65", ("-noattr",), "SIG-005"),
        ("ML-DSA-65", ("-signer", "other.pem", "-inkey", "other.key"), "SIG-003"),
        ("RSA-3072", ("-keyopt", "rsa_padding_mode:pss"), "SIG-004"),
        ("P-256", ("-md", "sha1"), "SIG-004"),
    ],
    ids=["no signed attributes", "two signers", "RSA", "SHA-1"],
)
def test_we_say_why_a_signature_cannot_be_used(openssl: Tool, kind: str, words: tuple[str, ...], rule: str) -> None:
    """What the profile leaves out is a typed error with its rule."""
    foreigner(openssl, kind)
    foreigner(openssl, "ML-DSA-65", "other")
    with pytest.raises((ProfileError, AlgorithmError)) as caught:
        read(signed(openssl, *by(), "-keyid", *words))
    assert caught.value.rule == rule
