"""Envelopes both ways, for every kind of recipient: OpenSSL decrypts ours; what it encrypts we open, or say why not."""

from __future__ import annotations

import pytest

from pki.core import asn1, envelope, oids
from pki.core.envelope import ParsedEnvelope
from pki.core.errors import AlgorithmError, KeymailboxError, ProfileError, UnwrapError
from pki.core.kem import Hkdf
from pki.core.keys import RsaAlgorithm
from pki.core.profile import Profile
from tests.interop.commands import RefusedError, Tool
from tests.interop.foreign import Foreigner, foreigner

CONTENT = b"a key package, as far as the envelope knows"
CONTEXT = asn1.encode("a context")
STRICT_KINDS = ["ML-KEM-768", "ML-KEM-1024", "P-256", "P-384", "RSA-3072"]
READ_KINDS = [*STRICT_KINDS, "ML-KEM-512", "RSA-2048"]
OAEP = ("-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256")
HOW: dict[str, tuple[str, ...]] = {
    "P-256": ("-keyopt", "ecdh_kdf_md:sha256"),
    "P-384": ("-keyopt", "ecdh_kdf_md:sha384"),
}
HOW |= {"RSA-2048": OAEP, "RSA-3072": OAEP}


def decrypted(openssl: Tool, der: bytes, to: Foreigner) -> bytes:
    """Return what OpenSSL finds in an envelope."""
    openssl.put("envelope.der", der)
    words = ("cms", "-decrypt", "-binary", "-inform", "DER", "-in", "envelope.der", "-out", "content")
    openssl.run(*words, "-recip", f"{to.name}.pem", "-inkey", f"{to.name}.key")
    return openssl.get("content")


def encrypted(openssl: Tool, *words: str, cipher: str = "-aes-256-gcm") -> bytes:
    """Return the envelope that OpenSSL makes; ``words`` name the recipients."""
    openssl.put("content", CONTENT)
    common = ("cms", "-encrypt", "-binary", "-in", "content", cipher, "-outform", "DER", "-out", "envelope.der")
    openssl.run(*common, *words)
    return openssl.get("envelope.der")


def read(der: bytes) -> ParsedEnvelope:
    """Return a foreign envelope."""
    return envelope.parse(der, profile=Profile.READ)


def opened(der: bytes, by: Foreigner) -> bytes:
    """Return what we find in a foreign envelope."""
    return envelope.unwrap(read(der), by.ski, by.recover, issuer_serial=by.issuer_serial)


@pytest.mark.parametrize("kind", STRICT_KINDS)
@pytest.mark.parametrize("ukm", [None, b"", b"user keying material"], ids=["no ukm", "empty ukm", "ukm"])
def test_openssl_decrypts_ours(openssl: Tool, kind: str, ukm: bytes | None) -> None:
    """Each kind of recipient opens with authenticated attributes, with a context and without, with UKM and without."""
    theirs = foreigner(openssl, kind)
    for context in (None, CONTEXT):
        der = envelope.wrap(CONTENT, oids.DATA, [theirs.recipient()], context=context, ukm=ukm)
        assert decrypted(openssl, der, theirs) == CONTENT


@pytest.mark.parametrize("kdf", list(Hkdf), ids=lambda one: one.label)
def test_openssl_derives_as_we_do(openssl: Tool, kdf: Hkdf) -> None:
    """Each HKDF that an owner may ask for is OpenSSL's, with UKM in its info."""
    theirs = foreigner(openssl, "ML-KEM-768")
    der = envelope.wrap(CONTENT, oids.DATA, [theirs.recipient(kdf)], ukm=bytes(300))
    assert decrypted(openssl, der, theirs) == CONTENT


def test_openssl_finds_its_slot_among_several(openssl: Tool) -> None:
    """One envelope for recipients of four kinds opens for each of them."""
    several = [foreigner(openssl, kind, kind) for kind in ("ML-KEM-768", "ML-KEM-1024", "P-256", "RSA-3072")]
    der = envelope.wrap(CONTENT, oids.DATA, [one.recipient() for one in several], context=CONTEXT)
    assert [decrypted(openssl, der, one) for one in several] == [CONTENT] * len(several)


@pytest.mark.parametrize("kind", ["ML-KEM-768", "P-256", "RSA-3072"])
def test_openssl_refuses_ours_when_altered(openssl: Tool, kind: str) -> None:
    """The proof can fail: another context, the last byte of the tag, another recipient's key."""
    theirs, other = foreigner(openssl, kind), foreigner(openssl, kind, "other")
    der = envelope.wrap(CONTENT, oids.DATA, [theirs.recipient()], context=CONTEXT)
    swapped = der.replace(CONTEXT, asn1.encode("b context"))
    assert swapped != der
    for bad in (swapped, der[:-1] + bytes([der[-1] ^ 1])):
        with pytest.raises(RefusedError):
            decrypted(openssl, bad, theirs)
    with pytest.raises(RefusedError):
        decrypted(openssl, der, other)


@pytest.mark.parametrize("name", [("-keyid",), ()], ids=["by key identifier", "by issuer and serial"])
@pytest.mark.parametrize("kind", READ_KINDS)
def test_we_open_openssls(openssl: Tool, kind: str, name: tuple[str, ...]) -> None:
    """Each kind of recipient, named either way; the private key comes in the PKCS #8 that OpenSSL writes."""
    theirs = foreigner(openssl, kind)
    der = encrypted(openssl, "-recip", "theirs.pem", *HOW.get(kind, ()), *name)
    assert opened(der, theirs) == CONTENT
    # OpenSSL writes no authenticated attributes, so the server, which is strict, takes none of these.
    with pytest.raises(KeymailboxError) as caught:
        envelope.parse(der)
    assert caught.value.rule in {"ENV-004", "ENV-005", "ENV-011"}


@pytest.mark.parametrize("kdf", ["HKDF-SHA256", "HKDF-SHA384", "HKDF-SHA512"])
@pytest.mark.parametrize("ukm", ["", "0102030405", "ab" * 300])
def test_we_derive_as_openssl_does(openssl: Tool, kdf: str, ukm: str) -> None:
    """Each HKDF, with UKM short, longer than a DER length byte, and none."""
    theirs = foreigner(openssl, "ML-KEM-1024")
    words = ("-recip", "theirs.pem", "-keyid", "-recip_kdf", kdf)
    der = encrypted(openssl, *words, *(("-recip_ukm", ukm) if ukm else ()))
    (recipient,) = read(der).recipients
    assert recipient.ukm == (bytes.fromhex(ukm) or None)
    assert opened(der, theirs) == CONTENT


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("kind", ["P-256", "P-384"])
def test_we_agree_with_each_digest(openssl: Tool, kind: str, digest: str) -> None:
    """X9.63 derivations by each SHA-2, on both curves."""
    theirs = foreigner(openssl, kind)
    der = encrypted(openssl, "-recip", "theirs.pem", "-keyid", "-keyopt", f"ecdh_kdf_md:{digest}")
    assert opened(der, theirs) == CONTENT


@pytest.mark.parametrize("cipher", ["-aes-128-gcm", "-aes-192-gcm", "-aes-256-gcm"])
@pytest.mark.parametrize("wrap", ["-aes128-wrap", "-aes192-wrap", "-aes256-wrap"])
def test_we_read_smaller_keys(openssl: Tool, cipher: str, wrap: str) -> None:
    """AES of every size for content and wrapping is read, though never made."""
    theirs = foreigner(openssl, "ML-KEM-768")
    der = encrypted(openssl, "-recip", "theirs.pem", "-keyid", wrap, cipher=cipher)
    assert opened(der, theirs) == CONTENT


def test_we_read_oaep_with_sha1(openssl: Tool) -> None:
    """What `-keyopt rsa_padding_mode:oaep` alone means: SHA-1, written as no parameters at all."""
    theirs = foreigner(openssl, "RSA-3072")
    der = encrypted(openssl, "-recip", "theirs.pem", "-keyid", "-keyopt", "rsa_padding_mode:oaep")
    assert [one.algorithm for one in read(der).recipients] == [RsaAlgorithm.OAEP_SHA1]
    assert opened(der, theirs) == CONTENT


@pytest.mark.parametrize(
    ("kind", "words", "why"),
    [
        ("RSA-3072", (), "PKCS #1 v1.5"),
        ("P-256", (), "SHA-256, SHA-384 or SHA-512"),
        ("P-521", ("-keyopt", "ecdh_kdf_md:sha512"), "curve"),
        ("RSA-3072", ("-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_label:00"), "label"),
        ("RSA-3072", (*OAEP, "-keyopt", "rsa_mgf1_md:sha512"), "SHA-256 for all"),
    ],
    ids=["PKCS #1 v1.5", "SHA-1 in ECDH", "P-521", "label", "two digests"],
)
def test_we_say_why_a_recipient_cannot_be_used(openssl: Tool, kind: str, words: tuple[str, ...], why: str) -> None:
    """What OpenSSL does by default, and we never do, is kept with a reason; strictly it is refused with a rule."""
    theirs = foreigner(openssl, kind)
    der = encrypted(openssl, "-recip", "theirs.pem", "-keyid", *words)
    (kept,) = read(der).unsupported
    assert kept.ski == theirs.ski
    assert why in kept.reason
    with pytest.raises(UnwrapError):
        opened(der, theirs)
    with pytest.raises(AlgorithmError) as caught:
        envelope.parse(der)
    assert caught.value.rule is not None


def test_we_open_our_slot_beside_a_password(openssl: Tool) -> None:
    """A recipient of a kind that is not ours hinders none that is."""
    theirs = foreigner(openssl, "ML-KEM-768")
    der = encrypted(
        openssl, "-recip", "theirs.pem", "-keyid", "-pwri_password", "no secret", "-kekcipher", "aes-256-cbc"
    )
    parsed = read(der)
    assert [one.kind for one in parsed.unsupported] == ["password"]
    assert opened(der, theirs) == CONTENT


def test_we_open_each_of_several(openssl: Tool) -> None:
    """One envelope of OpenSSL's for three kinds opens for each, and not for a fourth."""
    several = [foreigner(openssl, kind, kind) for kind in ("ML-KEM-768", "ML-KEM-1024", "P-384")]
    words = [word for one in several for word in ("-recip", f"{one.name}.pem", *HOW.get(one.name, ()))]
    der = encrypted(openssl, *words, "-keyid")
    assert [opened(der, one) for one in several] == [CONTENT] * 3
    with pytest.raises(UnwrapError):
        opened(der, foreigner(openssl, "ML-KEM-768", "other"))


def test_we_refuse_openssls_when_altered(openssl: Tool) -> None:
    """The proof can fail: an altered ciphertext, tag, or wrapped key is one and the same error."""
    theirs = foreigner(openssl, "ML-KEM-768")
    der = encrypted(openssl, "-recip", "theirs.pem", "-keyid")
    for at in (200, len(der) - 1, len(der) - 30):
        with pytest.raises(UnwrapError):
            opened(der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :], theirs)


def test_what_nothing_authenticates_is_refused(openssl: Tool) -> None:
    """CBC is refused in both profiles, and the hint is the option that mends it."""
    foreigner(openssl, "ML-KEM-768")
    der = encrypted(openssl, "-recip", "theirs.pem", "-keyid", cipher="-aes-256-cbc")
    for profile in Profile:
        with pytest.raises(ProfileError, match="authenticates") as caught:
            envelope.parse(der, profile=profile)
        assert "-aes-256-gcm" in str(caught.value.hint)
