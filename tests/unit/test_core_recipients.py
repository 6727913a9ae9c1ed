"""Recipients of every kind open the same envelope; what others write is read, or refused by name; each rule breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from pqcrypto.kem import ml_kem_512
from pyasn1.codec.der.decoder import decode as ber_decode
from pyasn1.codec.der.encoder import encode as ber_encode
from pyasn1_alt_modules import rfc5652

from pki.core import agreement, asn1, attributes, envelope, kem, keys, oids, recipients, transport
from pki.core.envelope import IssuerSerial, ParsedEnvelope, Recipient
from pki.core.errors import AlgorithmError, KeymailboxError, MalformedError, ProfileError, UnwrapError
from pki.core.kem import Hkdf
from pki.core.keys import ALGORITHMS, EcAlgorithm, KemAlgorithm, KeyAlgorithm, RsaAlgorithm
from pki.core.profile import Profile
from tests.kit.cost import calls

UKM = b"a nonce of the sender"
Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Owner:
    """An encryption key."""

    algorithm: KeyAlgorithm
    private: bytes

    @property
    def ski(self) -> bytes:
        """Its identifier."""
        return kem.ski(keys.spki(self.algorithm, keys.public_from_private(self.algorithm, self.private)))

    def recipient(self, kdf: Hkdf = Hkdf.SHA256) -> Recipient:
        """Whom others wrap for."""
        return Recipient(self.ski, self.algorithm, keys.public_from_private(self.algorithm, self.private), kdf)

    def recover(self, algorithm: KeyAlgorithm, sent: bytes) -> bytes:
        """What a holder does."""
        return keys.recover(algorithm, self.private, sent)

    def open(self, der: bytes, profile: Profile = Profile.STRICT) -> bytes:
        """Return the content of an envelope."""
        return envelope.unwrap(envelope.parse(der, profile=profile), self.ski, self.recover)


@cache
def owner(algorithm: KeyAlgorithm, number: int = 0) -> Owner:
    """Return the same key each time: RSA keys are slow to make."""
    return Owner(algorithm, keys.generate(algorithm))


EC, RSA = EcAlgorithm.P_256, RsaAlgorithm.OAEP_SHA256


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("ukm", [None, UKM])
def test_round_trip(name: str, ukm: bytes | None) -> None:
    """What was wrapped for a key of any kind opens with it, and with no other of its kind."""
    one = owner(ALGORITHMS[name])
    der = envelope.wrap(b"content", oids.DATA, [one.recipient()], ukm=ukm)
    (parsed,) = envelope.parse(der).recipients
    assert (parsed.ski, parsed.algorithm) == (one.ski, one.algorithm)
    assert parsed.ukm == (None if isinstance(one.algorithm, RsaAlgorithm) else ukm)
    assert one.open(der) == b"content"
    stranger = Owner(one.algorithm, keys.generate(one.algorithm))
    with pytest.raises(UnwrapError):
        envelope.unwrap(envelope.parse(der), one.ski, stranger.recover)


@pytest.mark.parametrize("kdf", list(Hkdf))
@pytest.mark.parametrize("algorithm", kem.MADE)
def test_every_key_derivation(kdf: Hkdf, algorithm: KemAlgorithm) -> None:
    """The recipient's preference is what the envelope says, and what it opens with."""
    one = owner(algorithm)
    der = envelope.wrap(b"content", oids.DATA, [one.recipient(kdf)], ukm=UKM)
    (parsed,) = envelope.parse(der).recipients
    assert parsed.kdf == kdf.oid
    assert one.open(der) == b"content"
    other = next(item for item in Hkdf if item is not kdf)
    changed = replace(envelope.parse(der), recipients=(replace(parsed, kdf=other.oid),))
    with pytest.raises(UnwrapError):
        envelope.unwrap(changed, one.ski, one.recover)


def test_mixed_recipients() -> None:
    """One envelope for a key of each kind: each opens it, with both profiles."""
    everybody = [owner(algorithm) for algorithm in ALGORITHMS.values()]
    der = envelope.wrap(b"content", oids.DATA, [one.recipient() for one in everybody], ukm=UKM)
    for one in everybody:
        assert one.open(der) == one.open(der, Profile.READ) == b"content"


def test_another_decoder_reads_the_same() -> None:
    """pyasn1 reads key transport and key agreement with RFC 5652's types and writes the same bytes."""
    listed = [recipients.make(owner(alg).recipient(), bytes(32), ukm=UKM) for alg in (EC, RSA)]
    agreed, sent = (ber_decode(asn1.encode(one), asn1Spec=rfc5652.RecipientInfo())[0] for one in listed)
    assert [ber_encode(one) for one in (agreed, sent)] == [asn1.encode(one) for one in listed]
    assert int(agreed["kari"]["version"]) == 3
    assert bytes(agreed["kari"]["ukm"]) == UKM
    assert bytes(agreed["kari"]["recipientEncryptedKeys"][0]["rid"]["rKeyId"]["subjectKeyIdentifier"]) == owner(EC).ski
    assert int(sent["ktri"]["version"]) == 2
    assert bytes(sent["ktri"]["rid"]["subjectKeyIdentifier"]) == owner(RSA).ski


def test_ml_kem_512_is_read_and_never_made() -> None:
    """A foreign envelope for ML-KEM-512 opens to read; nobody makes or wraps for such a key, and the server refuses."""
    public, private = sorted(ml_kem_512.keygen(), key=len)
    one = Owner(KemAlgorithm.ML_KEM_512, private)
    assert keys.public_from_private(one.algorithm, private) == public
    assert keys.parse_spki(keys.spki(one.algorithm, public), profile=Profile.READ) == (one.algorithm, public)
    shared, ciphertext = sorted(ml_kem_512.encaps(public), key=len)
    der = foreign(one.ski, kem_algorithm=KemAlgorithm.ML_KEM_512, ciphertext=ciphertext, shared=shared)
    assert one.open(der, Profile.READ) == b"content"
    for refused in (
        lambda: envelope.parse(der),
        lambda: kem.generate(one.algorithm),
        lambda: envelope.wrap(b"", oids.DATA, [one.recipient()]),
        lambda: keys.parse_spki(keys.spki(one.algorithm, public)),
    ):
        with pytest.raises(AlgorithmError):
            refused()
    for bad in (public[:-1], b"\xff\xff\xff" + public[3:]):
        with pytest.raises(ProfileError) as caught:
            kem.check_public(one.algorithm, bad)
        assert caught.value.rule == "CRT-009"
    with pytest.raises(ProfileError):
        kem.public_from_private(one.algorithm, private[:1599] + bytes([private[1599] ^ 1]) + private[1600:])


# Reading what others made


def foreign(
    rid: Any,
    *,
    kem_algorithm: KemAlgorithm = KemAlgorithm.ML_KEM_768,
    ciphertext: bytes,
    shared: bytes,
    wrap: Any = oids.AES128_WRAP,
    content: Any = oids.AES192_GCM,
    attrs: list[asn1.Attribute] | None = None,
) -> bytes:
    """Return an envelope as another tool may make it."""
    sizes = {oids.AES128_WRAP: 16, oids.AES192_WRAP: 24, oids.AES256_WRAP: 32}
    content_key = bytes({oids.AES128_GCM: 16, oids.AES192_GCM: 24, oids.AES256_GCM: 32}[content])
    identifier = asn1.AlgorithmIdentifier(algorithm=wrap, parameters=None)
    kek = Hkdf.SHA384.derive(shared, wrap=identifier, size=sizes[wrap], ukm=None)
    info = asn1.KemRecipient(
        version=0,
        rid=rid,
        kem=asn1.AlgorithmIdentifier(algorithm=kem_algorithm.oid, parameters=None),
        kem_ciphertext=ciphertext,
        kdf=asn1.AlgorithmIdentifier(algorithm=Hkdf.SHA384.oid, parameters=None),
        kek_length=sizes[wrap],
        ukm=None,
        wrap=identifier,
        encrypted_key=aes_key_wrap(kek, content_key),
    )
    other = asn1.OtherRecipient(kind=oids.KEM_RECIPIENT_INFO, value=asn1.tlv(asn1.encode(info)))
    auth_attrs = None if attrs is None else asn1.SetOf(attrs)
    aad = b"" if auth_attrs is None else asn1.encode(auth_attrs)
    sealed = AESGCM(content_key).encrypt(bytes(12), b"content", aad)
    gcm = asn1.encode(asn1.GcmParameters(nonce=bytes(12), tag_length=16))
    return enveloped(
        [b"\xa4" + asn1.encode(other)[1:]],
        algorithm=asn1.AlgorithmIdentifier(algorithm=content, parameters=asn1.tlv(gcm)),
        sealed=sealed,
        auth_attrs=auth_attrs,
    )


def enveloped(
    listed: list[bytes],
    *,
    algorithm: asn1.AlgorithmIdentifier | None = None,
    sealed: bytes = bytes(20),
    auth_attrs: asn1.SetOf[asn1.Attribute] | None = None,
) -> bytes:
    """Return an AuthEnvelopedData for these recipients."""
    gcm = asn1.encode(asn1.GcmParameters(nonce=bytes(12), tag_length=16))
    data = asn1.AuthEnvelopedData(
        version=0,
        recipients=asn1.SetOf([asn1.tlv(one) for one in listed]),
        encrypted=asn1.EncryptedContent(
            content_type=oids.DATA,
            algorithm=algorithm or asn1.AlgorithmIdentifier(algorithm=oids.AES256_GCM, parameters=asn1.tlv(gcm)),
            ciphertext=sealed[:-16],
        ),
        auth_attrs=auth_attrs,
        mac=sealed[-16:],
    )
    info = asn1.ContentInfo(content_type=oids.AUTH_ENVELOPED_DATA, content=asn1.tlv(asn1.encode(data)))
    return asn1.encode(info)


ISSUER = bytes.fromhex("300c310a300806035504030c0141")
TYPE = attributes.attribute(oids.CONTENT_TYPE, asn1.encode(oids.DATA))
ODD = attributes.attribute(oids.SIGNING_TIME, asn1.encode("when"))


def ml_kem(rid: Any, **more: Any) -> tuple[Owner, bytes]:
    """Return a key and a foreign envelope for it."""
    one = owner(KemAlgorithm.ML_KEM_768)
    assert isinstance(one.algorithm, KemAlgorithm)
    ciphertext, shared = kem.encapsulate(one.algorithm, one.recipient().public_key)
    return one, foreign(rid, ciphertext=ciphertext, shared=shared, **more)


@pytest.mark.parametrize("wrap", [oids.AES128_WRAP, oids.AES192_WRAP, oids.AES256_WRAP])
@pytest.mark.parametrize("content", [oids.AES128_GCM, oids.AES192_GCM, oids.AES256_GCM])
def test_read_takes_every_aes(wrap: Any, content: Any) -> None:
    """To read, each size of AES is good enough; the server takes 256 bits alone."""
    one, der = ml_kem(owner(KemAlgorithm.ML_KEM_768).ski, wrap=wrap, content=content, attrs=[TYPE])
    assert one.open(der, Profile.READ) == b"content"
    if (wrap, content) != (oids.AES256_WRAP, oids.AES256_GCM):
        with pytest.raises((AlgorithmError, ProfileError)):
            envelope.parse(der)


def test_read_finds_by_issuer_and_serial() -> None:
    """A recipient may be named by its certificate's issuer and serial, and by an identifier of another making."""
    one, der = ml_kem(asn1.IssuerAndSerial(issuer=asn1.tlv(ISSUER), serial=7))
    parsed = envelope.parse(der, profile=Profile.READ)
    named = IssuerSerial(ISSUER, 7)
    assert (parsed.recipients[0].ski, parsed.recipients[0].issuer_serial) == (b"", named)
    assert envelope.unwrap(parsed, one.ski, one.recover, issuer_serial=named) == b"content"
    for stranger in (None, IssuerSerial(ISSUER, 8)):
        with pytest.raises(UnwrapError):
            envelope.unwrap(parsed, one.ski, one.recover, issuer_serial=stranger)
    with pytest.raises(UnwrapError):
        envelope.unwrap(parsed, b"", one.recover)
    one, der = ml_kem(b"short")
    assert envelope.unwrap(envelope.parse(der, profile=Profile.READ), b"short", one.recover) == b"content"


def test_read_keeps_what_it_does_not_know() -> None:
    """Unknown authenticated attributes are kept and authenticated; none at all is right for id-data alone."""
    one, der = ml_kem(owner(KemAlgorithm.ML_KEM_768).ski, attrs=[TYPE, ODD])
    assert envelope.parse(der, profile=Profile.READ).extra == (asn1.encode(ODD),)
    assert one.open(der, Profile.READ) == b"content"
    one, der = ml_kem(one.ski)
    assert one.open(der, Profile.READ) == b"content"
    swapped = der.replace(asn1.encode(oids.DATA), asn1.encode(oids.SIGNED_DATA))
    with pytest.raises(ProfileError) as caught:
        envelope.parse(swapped, profile=Profile.READ)
    assert caught.value.rule == "ENV-011"


def kari(change: Change = lambda info: info, alg: EcAlgorithm = EC) -> bytes:
    """Return a key agreement for P-256, changed."""
    der = asn1.encode(recipients.make(owner(alg).recipient(), bytes(32), ukm=UKM))
    info = change(asn1.decode(recipients.KeyAgreement, b"\x30" + der[1:], what="x"))
    return b"\xa1" + asn1.encode(info)[1:]


def ktri(change: Change = lambda info: info) -> bytes:
    """Return a key transport, changed."""
    der = asn1.encode(recipients.make(owner(RSA).recipient(), bytes(32)))
    return asn1.encode(change(asn1.decode(recipients.KeyTransport, der, what="x")))


def kemri(change: Change) -> bytes:
    """Return a KEM recipient, changed."""
    der = asn1.encode(recipients.make(owner(KemAlgorithm.ML_KEM_768).recipient(), bytes(32)))
    other = asn1.decode(asn1.OtherRecipient, b"\x30" + der[1:], what="x")
    info = change(asn1.decode(asn1.KemRecipient, asn1.encode(other.value), what="x"))
    return b"\xa4" + asn1.encode(replace(other, value=asn1.tlv(asn1.encode(info))))[1:]


def scheme(oid: Any, wrap: Any = oids.AES256_WRAP) -> Change:
    """Return a change of the key agreement's scheme or wrap."""
    parameters = asn1.tlv(asn1.encode(asn1.AlgorithmIdentifier(algorithm=wrap, parameters=None)))
    identifier = asn1.AlgorithmIdentifier(algorithm=oid, parameters=parameters)
    return lambda info: replace(info, algorithm=identifier)


def ephemeral(point: bytes, parameters: Any = None, oid: Any = oids.EC_PUBLIC_KEY, padding: int = 0) -> Change:
    """Return a change of the key agreement's ephemeral key."""
    key = asn1.SubjectPublicKeyInfo(
        algorithm=asn1.AlgorithmIdentifier(algorithm=oid, parameters=parameters),
        subject_public_key=asn1.BitString(point, padding),
    )
    return lambda info: replace(info, originator=key)


def padded(oid: Any, parameters: bytes = b"") -> Change:
    """Return a change of the key transport's algorithm."""
    held = asn1.tlv(parameters) if parameters else asn1.Null()
    return lambda info: replace(info, algorithm=asn1.AlgorithmIdentifier(algorithm=oid, parameters=held))


POINT = agreement.agree(EC, owner(EC).recipient().public_key)[0]
P_256 = asn1.tlv(asn1.encode(oids.P_256))
BY_ISSUER = asn1.IssuerAndSerial(issuer=asn1.tlv(ISSUER), serial=7)
SHA512 = asn1.AlgorithmIdentifier(algorithm=oids.SHA512, parameters=None)
MASKED = asn1.AlgorithmIdentifier(algorithm=oids.MGF1, parameters=asn1.tlv(asn1.encode(SHA512)))
OAEP_SHA512 = asn1.encode(transport.OaepParameters(digest=SHA512, mask=MASKED, label=None))
BROKEN: list[tuple[str, bytes]] = [
    ("ENV-002", kari(lambda r: replace(r, version=0))),
    ("ENV-002", ktri(lambda r: replace(r, version=0))),
    ("ENV-005", ktri(lambda r: replace(r, rid=BY_ISSUER, version=0))),
    ("ENV-004", b"\xa2\x02\x05\x00"),
    ("ENV-004", b"\xa3\x02\x05\x00"),
    ("ENV-004", b"\x02\x01\x00"),
    ("ENV-005", ktri(lambda r: replace(r, rid=bytes(19)))),
    ("ENV-005", ktri(lambda r: replace(r, encrypted_key=bytes(256)))),
    ("ENV-005", ktri(lambda r: replace(r, encrypted_key=bytes(5000)))),
    ("ENV-005", kari(lambda r: replace(r, keys=[replace(r.keys[0], rid=BY_ISSUER)]))),
    ("ENV-005", kemri(lambda r: replace(r, rid=BY_ISSUER))),
    ("ENV-007", kari(lambda r: replace(r, keys=[replace(r.keys[0], key=bytes(32))]))),
    ("ENV-007", kari(scheme(oids.ECDH_SHA256, oids.AES128_WRAP))),
    ("ENV-013", kari(lambda r: replace(r, keys=[]))),
    ("ENV-013", kari(lambda r: replace(r, keys=r.keys * 2))),
    ("ENV-013", kari(scheme(oids.ECDH_SHA1))),
    ("ENV-013", kari(scheme(oids.ECDH_SHA384))),
    ("ENV-013", kari(lambda r: replace(r, originator=bytes(20)))),
    ("ENV-013", kari(lambda r: replace(r, originator=BY_ISSUER))),
    ("ENV-013", kari(ephemeral(POINT, oid=oids.RSA_ENCRYPTION))),
    ("ENV-013", kari(ephemeral(POINT, P_256))),
    ("ENV-013", kari(ephemeral(POINT, asn1.Null()))),
    ("ENV-013", kari(ephemeral(POINT[:33]))),
    ("ENV-013", kari(ephemeral(POINT[:-1] + bytes([POINT[-1] ^ 1])))),
    ("ENV-013", kari(ephemeral(b"\x02" + POINT[1:]))),
    ("ENV-013", kari(ephemeral(POINT[:-1] + b"\0", padding=1))),
    ("ENV-014", ktri(padded(oids.RSA_ENCRYPTION))),
    ("ENV-014", ktri(padded(oids.RSAES_OAEP))),
    ("ENV-014", ktri(padded(oids.RSAES_OAEP, OAEP_SHA512))),
    ("ENV-015", kari(lambda r: replace(r, ukm=bytes(1025)))),
    ("ENV-015", kemri(lambda r: replace(r, ukm=bytes(1025)))),
]


@pytest.mark.parametrize(("rule", "der"), BROKEN, ids=[f"{rule}-{n}" for n, (rule, _) in enumerate(BROKEN)])
def test_broken_rule(rule: str, der: bytes) -> None:
    """Each rule of a recipient, broken once, names itself, and says where."""
    with pytest.raises((ProfileError, AlgorithmError)) as caught:
        envelope.parse(enveloped([der], auth_attrs=asn1.SetOf([TYPE])))
    assert caught.value.rule == rule
    assert caught.value.offset is not None


READABLE: list[tuple[str, bytes]] = [
    ("key encryption key", b"\xa2\x02\x05\x00"),
    ("password", b"\xa3\x02\x05\x00"),
    ("SHA1", kari(scheme(oids.ECDH_SHA1))),
    ("ephemeral", kari(lambda r: replace(r, originator=bytes(20)))),
    ("curve", kari(ephemeral(POINT[:33]))),
    ("AES", kari(scheme(oids.ECDH_SHA256, oids.SHA512))),
    ("PKCS #1 v1.5", ktri(padded(oids.RSA_ENCRYPTION))),
    ("SHA-256", ktri(padded(oids.RSAES_OAEP, OAEP_SHA512))),
    ("encapsulation", kemri(lambda r: replace(r, kem=SHA512))),
    ("HKDF", kemri(lambda r: replace(r, kdf=SHA512))),
]


@pytest.mark.parametrize(("word", "der"), READABLE, ids=[word for word, _ in READABLE])
def test_read_says_why_a_recipient_cannot_be_used(word: str, der: bytes) -> None:
    """A recipient that nobody here can be does not keep the others from opening."""
    ours = owner(KemAlgorithm.COMPOSITE)
    whole = enveloped([der, asn1.encode(recipients.make(ours.recipient(), bytes(32)))], auth_attrs=asn1.SetOf([TYPE]))
    parsed = envelope.parse(whole, profile=Profile.READ)
    (unsupported,) = parsed.unsupported
    assert word in f"{unsupported.kind} {unsupported.reason}"
    assert [one.ski for one in parsed.recipients] == [ours.ski]


@pytest.mark.parametrize("oid", [oids.ECDH_SHA256, oids.ECDH_SHA384, oids.ECDH_SHA512, oids.COFACTOR_ECDH_SHA256])
@pytest.mark.parametrize("named", [None, P_256, asn1.Null()])
def test_read_takes_key_agreements_of_others(oid: Any, named: Any) -> None:
    """To read, the hash need not be the curve's, the curve may be named, and several may share one ephemeral key."""
    one = owner(EC)
    point, shared = agreement.agree(EC, one.recipient().public_key)
    wrap = asn1.AlgorithmIdentifier(algorithm=oids.AES256_WRAP, parameters=None)
    kek = agreement.derive(shared, agreement.SCHEMES[oid], wrap=wrap, size=32, ukm=UKM)
    mine = recipients.EncryptedKey(rid=recipients.KeyIdentifier(ski=one.ski), key=aes_key_wrap(kek, b"c" * 32))
    whole = enveloped(
        [
            kari(
                lambda r: replace(
                    ephemeral(point, named)(scheme(oid)(r)), keys=[replace(r.keys[0], rid=BY_ISSUER), mine]
                )
            )
        ]
    )
    parsed = envelope.parse(whole, profile=Profile.READ)
    assert len(parsed.recipients) == 2
    (found,) = [item for item in parsed.recipients if item.ski]
    assert found.content_key(one.recover) == b"c" * 32


def test_enveloped_data_is_refused_by_name() -> None:
    """ENV-001: unauthenticated encryption is refused to read, too, and the error says why."""
    der = asn1.encode(asn1.ContentInfo(content_type=oids.ENVELOPED_DATA, content=asn1.tlv(b"\x30\x00")))
    for profile in Profile:
        with pytest.raises(ProfileError, match="nothing authenticates") as caught:
            envelope.parse(der, profile=profile)
        assert caught.value.rule == "ENV-001"


@pytest.mark.parametrize("profile", list(Profile))
@pytest.mark.parametrize("count", [0, 257, 10_000])
def test_env_003_too_many_recipients_are_not_decoded(profile: Profile, count: int) -> None:
    """ENV-003: ten thousand recipients are refused in fewer steps than there are recipients."""
    whole = enveloped(sorted(b"\xa4\x03\x02\x01" + bytes([n % 128]) for n in range(count)))

    def refused() -> str | None:
        with pytest.raises(ProfileError) as caught:
            envelope.parse(whole, profile=profile)
        return caught.value.rule

    assert refused() == "ENV-003"
    assert calls(refused) < 10_000


def test_env_003_recipients_twice() -> None:
    """ENV-003: nobody is a recipient twice, also not by two kinds of key or by issuer and serial; nor is it made."""
    one = owner(EC)
    with pytest.raises(ProfileError):
        envelope.wrap(b"", oids.DATA, [one.recipient(), owner(EC).recipient()])
    with pytest.raises(ProfileError):
        envelope.wrap(b"", oids.DATA, [])
    both = [kari(), ktri(lambda r: replace(r, rid=one.ski))]
    by_issuer = [
        kari(lambda r: replace(r, keys=[replace(r.keys[0], rid=BY_ISSUER)])),
        ktri(lambda r: replace(r, rid=BY_ISSUER, version=0)),
    ]
    with pytest.raises(ProfileError) as wrong:
        envelope.parse(enveloped([ktri(lambda r: replace(r, rid=BY_ISSUER))]), profile=Profile.READ)
    assert wrong.value.rule == "ENV-002"
    for listed in (both, by_issuer):
        with pytest.raises(ProfileError) as caught:
            envelope.parse(enveloped(listed), profile=Profile.READ)
        assert caught.value.rule == "ENV-003"


def test_every_failure_is_the_same_error() -> None:
    """Whatever the kind of key, what goes wrong with it cannot be told apart (no oracle)."""
    told = set()
    for algorithm in (EC, RSA, KemAlgorithm.ML_KEM_768):
        one = owner(algorithm)
        parsed = envelope.parse(envelope.wrap(b"content", oids.DATA, [one.recipient()], ukm=UKM))
        (found,) = parsed.recipients
        attempts: list[ParsedEnvelope] = [
            replace(parsed, mac=bytes(16)),
            replace(parsed, key_size=16),
            replace(
                parsed,
                recipients=(replace(found, ciphertext=found.ciphertext[:-1] + bytes([found.ciphertext[-1] ^ 1])),),
            ),
            replace(parsed, recipients=(replace(found, ciphertext=b""),)),
            replace(parsed, recipients=()),
        ]
        for attempt in attempts:
            with pytest.raises(UnwrapError) as caught:
                envelope.unwrap(attempt, one.ski, one.recover)
            error = caught.value
            told.add((str(error), error.on, error.rule, error.hint, error.__cause__))
    assert len(told) == 1


@pytest.mark.parametrize("alg", [EC, RSA])
def test_any_flipped_bit_is_refused(alg: KeyAlgorithm) -> None:
    """No single bit of an envelope for a classical key can be changed unseen."""
    one = owner(alg)
    der = envelope.wrap(b"content", oids.DATA, [one.recipient()], ukm=UKM)
    for bit in range(0, len(der) * 8, 7 if alg is EC else 97):
        changed = bytearray(der)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(KeymailboxError):
            one.open(bytes(changed))


def test_junk_recipients() -> None:
    """Recipients that are no DER of their kind raise MalformedError."""
    for tag in (b"\x30", b"\xa1", b"\xa4"):
        with pytest.raises(MalformedError):
            envelope.parse(enveloped([tag + b"\x03\x02\x01\x00"], auth_attrs=asn1.SetOf([TYPE])))


def test_attributes_are_measured_before_they_are_decoded() -> None:
    """ENV-011: authenticated attributes without bound are refused before one is decoded."""
    many = asn1.SetOf([attributes.attribute(oids.SIGNING_TIME, asn1.encode(n)) for n in range(2000)])
    for profile in Profile:
        with pytest.raises(ProfileError) as caught:
            envelope.parse(enveloped([kari()], auth_attrs=many), profile=profile)
        assert caught.value.rule == "ENV-011"
