"""Every identity algorithm does the whole main job, and nothing that is signed changes its algorithm unseen."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import (
    asn1,
    attributes,
    deposits,
    oids,
    policy,
    receipts,
    requests,
    revocations,
    signatures,
    signing,
    x509,
)
from pki.core.certificates import CertificateKind
from pki.core.crl import Reason
from pki.core.errors import AlgorithmError, KeymailboxError, MalformedError, ProfileError, SignatureError
from pki.core.ids import Fingerprint
from pki.core.profile import Profile
from pki.core.signatures import IDENTITY, SignatureAlgorithm
from pki.core.signing import SignerName, UnverifiedSigned
from tests.kit.authority import KEY, NOW, Party, acme, authority, globex, new_signing_key

S = SignatureAlgorithm
EACH = pytest.mark.parametrize("algorithm", sorted(IDENTITY, key=lambda one: one.name), ids=lambda one: one.label)
CONTENT = b"what is signed"


@lru_cache
def party(algorithm: SignatureAlgorithm) -> Party:
    """Return acme/eu-west with an identity key of another algorithm."""
    return Party(authority(), acme().address, 71, identity=algorithm)


@EACH
def test_the_main_job(algorithm: SignatureAlgorithm) -> None:
    """Both certificates are endorsed, a deposit is verified and opened, and receipts and revocations verify."""
    one = party(algorithm)
    identity = one.verified()
    assert identity.identity_key is identity.identity_key
    assert identity.identity_key == one.key.public
    assert one.verified(CertificateKind.ENCRYPTION).recipient.ski == one.kem_ski
    parsed = deposits.parse_deposit(one.deposit(globex()))
    verified = policy.verify_deposit(parsed, sender=identity, crl=None, recipient_skis=[globex().kem_ski], now=NOW)
    assert deposits.open_deposit(verified, globex().kem_ski, globex().decapsulate) == KEY
    common: dict[str, Any] = {
        "signer_ski": one.ski,
        "sign": one.key.sign,
        "signing_time": NOW,
        "algorithm": algorithm,
    }
    receipt = receipts.compose_receipt(parsed.id, parsed.sha512, one.address, **common)
    found = receipts.parse_receipt(receipt).verify(
        one.key.public, recipient=one.address, deposit=parsed.id, sha512=parsed.sha512
    )
    assert found.signed.signing_time == NOW
    wish = revocations.compose_revocation(Fingerprint("ab" * 32), Reason.SUPERSEDED, **common)
    assert revocations.parse_revocation(wish).verify(one.key.public).reason is Reason.SUPERSEDED


@EACH
def test_digests_of_what_we_make(algorithm: SignatureAlgorithm) -> None:
    """The digest is SHA-512 for ML-DSA and Ed25519, and ECDSA's own for ECDSA (RFC 9882, 8419, 5753)."""
    expected = {S.ECDSA_P256: "sha256", S.ECDSA_P384: "sha384"}.get(algorithm, "sha512")
    found = parse(made(algorithm))
    assert (found.digest, found.signature_algorithm) == (expected, algorithm.oid)
    digest = asn1.decode(bytes, found.attributes[oids.MESSAGE_DIGEST], what="x")
    assert digest == hashlib.new(expected, CONTENT).digest()


@EACH
def test_another_key_of_the_same_algorithm(algorithm: SignatureAlgorithm) -> None:
    """SIG-006: another key does not verify, though it is called by the same name."""
    other = new_signing_key(algorithm).public
    with pytest.raises(SignatureError) as caught:
        parse(made(algorithm)).verify(replace(other, ski=party(algorithm).ski))
    assert caught.value.rule == "SIG-006"


def test_sig_007_another_algorithm_than_the_key_s() -> None:
    """SIG-007: what says that it is signed with one algorithm is not checked under a key of another."""
    for algorithm in IDENTITY:
        found = parse(made(algorithm))
        for other in IDENTITY - {algorithm}:
            with pytest.raises(SignatureError) as caught:
                found.verify(replace(party(other).key.public, ski=found.signer_ski))
            assert caught.value.rule == "SIG-007"


def test_requests_keep_to_their_key_s_algorithm() -> None:
    """REQ-002, REQ-005: a request names the algorithm of the key that signed it, for an identity key its own."""
    one = party(S.ECDSA_P256)
    request = asn1.decode(asn1.Request, one.identity_request, what="x")
    with pytest.raises(ProfileError) as caught:
        requests.parse_request(asn1.encode(replace(request, signature_algorithm=S.ML_DSA_65.identifier)))
    assert caught.value.rule == "REQ-002"
    request = asn1.decode(asn1.Request, one.encryption_request, what="x")
    changed = requests.parse_request(asn1.encode(replace(request, signature_algorithm=S.ECDSA_P384.identifier)))
    with pytest.raises(SignatureError) as refused:
        changed.verify(one.key.public)
    assert refused.value.rule == "REQ-005"


def test_an_slh_dsa_key_is_no_identity() -> None:
    """CRT-009: a certificate or request for an identity key of SLH-DSA is refused."""
    key = new_signing_key(S.SLH_DSA_SHA2_128F)
    request = requests.identity_request(acme().address, key.public.spki, sign=acme().key.sign, signing_time=NOW)
    certificate = authority().issue(acme().address, key.public.spki, CertificateKind.IDENTITY)
    with pytest.raises(AlgorithmError) as caught:
        requests.parse_request(request)
    assert caught.value.rule == "CRT-009"
    with pytest.raises(AlgorithmError) as caught:
        x509.parse_certificate(certificate)
    assert caught.value.rule == "CRT-009"


# Foreign objects: the same, put together as other tools do


def made(algorithm: SignatureAlgorithm = S.ML_DSA_65, **changes: Any) -> bytes:
    """Return an object signed by `party`."""
    one = party(algorithm)
    fields: dict[str, Any] = {"extra": {}, "signing_time": NOW, "signer_ski": one.ski, "sign": one.key.sign}
    return signing.sign(oids.KEY_PACKAGE_RECEIPT, CONTENT, algorithm=algorithm, **{**fields, **changes})


def parse(der: bytes, profile: Profile = Profile.STRICT) -> UnverifiedSigned:
    """Parse with the expectations of these tests."""
    return signing.parse(der, content_types=None, extra=(), profile=profile)


def attribute(oid: Oid, value: bytes) -> bytes:
    """Return an attribute in DER."""
    return asn1.encode(attributes.attribute(oid, value))


def tlv(tag: int, *parts: bytes) -> bytes:
    """Return a value in DER."""
    return asn1.retagged(tag, asn1.encode(b"".join(parts)))


def algorithm_identifier(oid: Oid, *, null: bool = False) -> bytes:
    """Return an AlgorithmIdentifier in DER."""
    return asn1.encode(asn1.AlgorithmIdentifier(algorithm=oid, parameters=asn1.Null() if null else None))


SHA = {"sha256": oids.SHA256, "sha384": oids.SHA384, "sha512": oids.SHA512}
STATEMENT = acme().statement
BY_SERIAL = tlv(0x30, STATEMENT.issuer_der, asn1.encode(STATEMENT.serial))
NAME = SignerName(b"the certificate's name", STATEMENT.issuer_der, STATEMENT.serial)


def foreign(
    *,
    sign: Callable[[bytes], bytes] | None = None,
    digest: str = "sha512",
    signature: Oid = oids.ML_DSA_65,
    versions: tuple[int, int] = (1, 1),
    sid: bytes = BY_SERIAL,
    attrs: tuple[bytes, ...] = (),
    embedded: tuple[bytes, ...] = (),
    unsigned: bytes = b"",
    null: bool = False,
    digests: bytes | None = None,
    signers: int = 1,
) -> bytes:
    """Return a SignedData put together from bytes, by default signed by acme and named by issuer and serial."""
    signed = [
        attribute(oids.CONTENT_TYPE, asn1.encode(oids.DATA)),
        attribute(oids.MESSAGE_DIGEST, asn1.encode(hashlib.new(digest, CONTENT).digest())),
        *attrs,
    ]
    body = tlv(0x31, *sorted(signed))
    used = algorithm_identifier(SHA[digest], null=null)
    info = tlv(
        0x30,
        asn1.encode(versions[1]),
        sid,
        used,
        asn1.retagged(0xA0, body),
        algorithm_identifier(signature),
        asn1.encode((sign or acme().key.sign)(body)),
        unsigned,
    )
    content = tlv(0x30, asn1.encode(oids.DATA), tlv(0xA0, asn1.encode(CONTENT)))
    listed = tlv(0x31, used) if digests is None else digests
    whole = tlv(0x30, asn1.encode(versions[0]), listed, content, *embedded, tlv(0x31, *[info] * signers))
    return tlv(0x30, asn1.encode(oids.SIGNED_DATA), tlv(0xA0, whole))


TIME = attribute(oids.SIGNING_TIME, signing.encode_time(NOW))
UNKNOWN = attribute(oids.MEDIA_TYPE, asn1.encode("a/b"))
SEVERAL = tlv(0x30, asn1.encode(oids.MEDIA_TYPE), tlv(0x31, asn1.encode(1), asn1.encode(2)))
SKI = asn1.retagged(0x80, asn1.encode(acme().ski))
CERTIFICATES = tlv(0xA0, acme().identity_der)
CRLS = tlv(0xA1, b"\x30\x00")
READABLE: list[dict[str, Any]] = [
    {},
    {"attrs": (TIME,)},
    {"attrs": (TIME, UNKNOWN)},
    {"attrs": (SEVERAL,)},
    {"versions": (3, 3), "sid": SKI},
    {"versions": (3, 3), "sid": asn1.retagged(0x80, asn1.encode(NAME.ski))},
    {"embedded": (CERTIFICATES,)},
    {"embedded": (CERTIFICATES, CRLS)},
    {"unsigned": tlv(0xA1, UNKNOWN)},
    {"null": True},
    {"digest": "sha384"},
    {"digests": tlv(0x31)},
    {"digests": tlv(0x31, *[algorithm_identifier(one) for one in SHA.values()])},
]


@pytest.mark.parametrize("changes", READABLE, ids=range(len(READABLE)))
def test_foreign_objects_are_read(changes: dict[str, Any]) -> None:
    """READ takes what other tools make, under the signer's name in its certificate; STRICT takes none of it."""
    der = foreign(**changes)
    found = parse(der, Profile.READ)
    assert found.verify(acme().key.public, name=NAME).content == CONTENT
    assert (found.signed_at == NOW) is (TIME in changes.get("attrs", ()))
    with pytest.raises(KeymailboxError):
        parse(der)
    other = SignerName(b"other", STATEMENT.issuer_der, STATEMENT.serial + 1)
    if changes.get("sid", BY_SERIAL) == BY_SERIAL:
        with pytest.raises(SignatureError) as caught:
            found.verify(acme().key.public, name=other)
        assert caught.value.rule == "SIG-006"
        with pytest.raises(SignatureError):
            found.verify(acme().key.public)
    with pytest.raises(SignatureError):
        found.verify(globex().key.public, name=NAME)


def test_unknown_attributes_are_kept() -> None:
    """Of one value the value, of several the whole attribute; they are signed like the others."""
    found = parse(foreign(attrs=(UNKNOWN,)), Profile.READ)
    assert found.attributes[oids.MEDIA_TYPE] == asn1.encode("a/b")
    assert parse(foreign(attrs=(SEVERAL,)), Profile.READ).attributes[oids.MEDIA_TYPE] == SEVERAL


def test_no_signing_time() -> None:
    """Without one there is none, and who asks for it is told so."""
    found = parse(foreign(), Profile.READ)
    assert found.signed_at is None
    for asked in (found, found.verify(acme().key.public, name=NAME)):
        with pytest.raises(ProfileError) as caught:
            _ = asked.signing_time
        assert caught.value.rule == "SIG-005"


@pytest.mark.parametrize("digest", sorted(SHA))
@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()], ids=["p-256", "p-384"])
def test_foreign_ecdsa(curve: ec.EllipticCurve, digest: str) -> None:
    """READ takes ECDSA under any of the three hashes, which the digest has to be (RFC 5753 §2.1.1)."""
    key = ec.generate_private_key(curve)
    public = signatures.from_raw(
        key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint),
        S.ECDSA_P256 if curve.name == "secp256r1" else S.ECDSA_P384,
    )
    hashed = {"sha256": hashes.SHA256, "sha384": hashes.SHA384, "sha512": hashes.SHA512}[digest]()
    oid = {"sha256": oids.ECDSA_SHA256, "sha384": oids.ECDSA_SHA384, "sha512": oids.ECDSA_SHA512}[digest]

    def sign(message: bytes) -> bytes:
        return key.sign(message, ec.ECDSA(hashed))

    der = foreign(sign=sign, digest=digest, signature=oid)
    assert parse(der, Profile.READ).verify(public, name=NAME).content == CONTENT
    with pytest.raises(SignatureError) as caught:
        parse(der, Profile.READ).verify(acme().key.public, name=NAME)
    assert caught.value.rule == "SIG-007"
    other = "sha512" if digest != "sha512" else "sha384"
    with pytest.raises(AlgorithmError) as refused:
        parse(foreign(sign=sign, digest=other, signature=oid), Profile.READ)
    assert refused.value.rule == "SIG-004"


TOO_WEAK = [
    ("SIG-004", {"digest": "sha256"}),
    ("SIG-004", {"signature": oids.ML_DSA_87, "digest": "sha384"}),
    ("SIG-004", {"signature": oids.ED25519, "digest": "sha256", "sign": lambda _: bytes(64)}),
    ("SIG-004", {"signature": oids.SLH_DSA[0]}),
    ("SIG-004", {"signature": oids.ECDSA_SHA256, "digest": "sha256"}),
    ("SIG-004", {"digests": tlv(0x31, *[algorithm_identifier(oids.SHA512)] * 60)}),
    ("SIG-001", {"versions": (4, 1)}),
    ("SIG-001", {"embedded": (CERTIFICATES,) * 4}),
    ("SIG-003", {"versions": (1, 3)}),
    ("SIG-003", {"versions": (3, 1), "sid": SKI}),
    ("SIG-003", {"versions": (3, 3), "sid": b"\x80\x00"}),
    ("SIG-003", {"versions": (3, 3), "sid": asn1.retagged(0x80, asn1.encode(bytes(65)))}),
    ("SIG-003", {"signers": 0}),
    ("SIG-003", {"signers": 2}),
    ("SIG-003", {"signers": 10_000}),
    ("SIG-003", {"unsigned": tlv(0xA1, attribute(oids.MEDIA_TYPE, asn1.encode(bytes(70_000))))}),
    ("SIG-005", {"attrs": (UNKNOWN, UNKNOWN)}),
    ("SIG-005", {"attrs": (TIME, TIME)}),
    ("SIG-005", {"attrs": (attribute(oids.CONTENT_TYPE, asn1.encode(oids.DATA)),)}),
]


@pytest.mark.parametrize(("rule", "changes"), TOO_WEAK, ids=range(len(TOO_WEAK)))
def test_foreign_objects_that_are_refused(rule: str, changes: dict[str, Any]) -> None:
    """Weak digests, wrong versions, several signers: READ refuses them too, by number."""
    with pytest.raises((ProfileError, AlgorithmError)) as caught:
        parse(foreign(**changes), Profile.READ)
    assert caught.value.rule == rule


@pytest.mark.parametrize("junk", [b"", b"\x30\x80\x00\x00", foreign()[:-1], foreign() + b"\0", b"\x30" * 20_000])
def test_foreign_junk(junk: bytes) -> None:
    """BER is for the caller to turn into DER first."""
    with pytest.raises(MalformedError):
        parse(junk, Profile.READ)


def test_what_we_make_is_read() -> None:
    """READ takes all that STRICT takes."""
    for algorithm in IDENTITY:
        parse(made(algorithm), Profile.READ).verify(party(algorithm).key.public)
