"""A crowd of instances that ask for certificates: honestly, carelessly, and with every malice that bytes allow."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509 as library
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from pki.core import asn1, attributes, oids, requests, signers, signing, x509
from pki.core import keys as key_kinds
from pki.core.capabilities import Capabilities, prefer
from pki.core.kem import Hkdf
from pki.core.keys import EcAlgorithm, KemAlgorithm, KeyAlgorithm, RsaAlgorithm
from pki.core.requests import Statement
from pki.core.signatures import SignatureAlgorithm
from pki.core.signers import SigningKey
from pki.core.tenants import Address, TenantName
from pki.core.x509 import CertificateKind

S, K = SignatureAlgorithm, CertificateKind
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
# Most are quick; each is there.
_IDENTITIES = (*20 * (S.ED25519,), *20 * (S.ECDSA_P256,), S.ECDSA_P384, S.ML_DSA_44, S.ML_DSA_65, S.ML_DSA_87)
_KEYS: Sequence[KeyAlgorithm] = (
    *4 * (KemAlgorithm.COMPOSITE,),
    *3 * (KemAlgorithm.ML_KEM_768,),
    *2 * (KemAlgorithm.ML_KEM_1024,),
    *3 * (EcAlgorithm.P_256,),
    EcAlgorithm.P_384,
)


@dataclass(frozen=True)
class Wish:
    """A request in DER as it lies in the store, under whose address, and what has to become of it.

    For a good one: the kind, the key and the preferences that the certificate has to have.
    """

    der: bytes
    address: Address
    good: bool
    what: str
    kind: CertificateKind = K.ENCRYPTION
    spki: bytes = b""
    capabilities: Capabilities | None = None


@dataclass
class Member:
    """One instance with its keys, and the keys that are certified for it.

    ``statement`` names its active identity certificate, None before the first.
    """

    address: Address
    identity: SigningKey
    access: SigningKey
    statement: Statement | None = None
    certified: list[bytes] = field(default_factory=list)
    rsa_spki: bytes = b""


class Crowd:
    """Members and what they ask for, all from one seed but for the keys and signatures."""

    def __init__(self, seed: int, size: int, now: datetime) -> None:
        self.random = random.Random(seed)
        self.now = now
        self._rsa = [key_kinds.generate(RsaAlgorithm.OAEP_SHA256) for _ in range(3)]
        self._small = rsa.generate_private_key(65537, 2048).public_key()
        self.members = [self._member(number) for number in range(size)]
        for member, private in zip(self.members, self._rsa, strict=False):
            public = key_kinds.public_from_private(RsaAlgorithm.OAEP_SHA256, private)
            member.rsa_spki = key_kinds.spki(RsaAlgorithm.OAEP_SHA256, public)

    def first(self) -> list[Wish]:
        """Return each member's first request, for its identity certificate."""
        return [self._identity(member) for member in self.members]

    def wish(self) -> Wish:
        """Return the next request: two of three are good."""
        member = self.random.choice(self.members)
        if self.random.random() < 0.67:
            return self.random.choice(_GOOD)(self, member)
        what = self.random.choice(sorted(_BAD))
        der = _BAD[what](self, member)
        return Wish(der, member.address, False, what)

    # Honest

    def _identity(self, member: Member) -> Wish:
        der = requests.identity_request(
            member.address,
            member.identity.public.spki,
            sign=member.identity.sign,
            signing_time=self._when(),
            algorithm=member.identity.public.algorithm,
        )
        return Wish(der, member.address, True, "identity", K.IDENTITY, member.identity.public.spki)

    def _access(self, member: Member) -> Wish:
        key = member.access
        der = requests.access_request(member.address, key.public.spki, sign=key.sign, signing_time=self._when())
        return Wish(der, member.address, True, "access", K.ACCESS, key.public.spki)

    def _encryption(self, member: Member) -> Wish:
        algorithm, spki = self._key(member)
        kdf = self.random.choice(list(Hkdf)) if isinstance(algorithm, KemAlgorithm) else Hkdf.SHA256
        capabilities = prefer(algorithm, kdf)
        der = self.asks(member, spki, capabilities=capabilities)
        return Wish(der, member.address, True, f"encryption {algorithm.title}", K.ENCRYPTION, spki, capabilities)

    def _key(self, member: Member) -> tuple[KeyAlgorithm, bytes]:
        if member.rsa_spki and self.random.random() < 0.1:
            return self.random.choice(list(RsaAlgorithm)), member.rsa_spki
        algorithm = self.random.choice(_KEYS)
        return algorithm, key_kinds.spki(
            algorithm, key_kinds.public_from_private(algorithm, key_kinds.generate(algorithm))
        )

    def asks(
        self,
        member: Member,
        spki: bytes,
        *,
        capabilities: Capabilities | None = None,
        key: SigningKey | None = None,
        at: datetime | None = None,
        statement: Statement | None = None,
        address: Address | None = None,
    ) -> bytes:
        """Return a request for an encryption key, with something changed."""
        chosen = statement or member.statement
        assert chosen is not None
        signer = key or member.identity
        return requests.encryption_request(
            address or member.address,
            spki,
            chosen,
            sign=signer.sign,
            signing_time=at or self._when(),
            algorithm=signer.public.algorithm,
            capabilities=capabilities,
        )

    # Not so

    def forged(self, member: Member) -> bytes:
        """Signed by somebody else of the same algorithm."""
        algorithm = member.identity.public.algorithm
        key = signers.load(algorithm, signers.generate(algorithm))
        return self.asks(member, self._key(member)[1], key=key)

    def flipped(self, member: Member) -> bytes:
        """A good one with one bit changed, anywhere."""
        der = bytearray(self.random.choice((self._identity, self._access, self._drop))(member).der)
        der[self.random.randrange(len(der))] ^= 1 << self.random.randrange(8)
        return bytes(der)

    def mangled(self, member: Member) -> bytes:
        """Cut, with something behind, doubled, or noise."""
        der = self._identity(member).der
        cut = self.random.randrange(len(der))
        noise = self.random.randbytes(self.random.randrange(1, 400))
        return self.random.choice((der[:cut], der + noise, der + der, noise, der[:cut] + noise, b"0" * 17_000))

    def elsewhere(self, member: Member) -> bytes:
        """For another address, by the same key."""
        other = self._other(member)
        return self.asks(member, self._key(member)[1], address=other.address)

    def timeless(self, member: Member) -> bytes:
        """Signed long ago, or tomorrow."""
        hours = self.random.choice((-49, -72, -24 * 365, 1, 24, 24 * 365 * 5))
        return self.asks(member, self._key(member)[1], at=self.now + timedelta(hours=hours))

    def untrue(self, member: Member) -> bytes:
        """A possession statement that names another certificate."""
        assert member.statement is not None
        issuer, serial = member.statement.issuer_der, member.statement.serial
        other = self._other(member).statement
        assert other is not None
        lie = self.random.choice(
            (Statement(issuer, serial + 1), Statement(x509.name_der(member.address), serial), other)
        )
        return self.asks(member, self._key(member)[1], statement=lie)

    def stolen(self, member: Member) -> bytes:
        """For a key that is another instance's."""
        others = [one for one in self.members if one.certified and one is not member]
        if not others:
            return self.forged(member)
        return self.asks(member, self.random.choice(self.random.choice(others).certified))

    def own(self, member: Member) -> bytes:
        """To encrypt to the identity key, or to have the access key as identity."""
        if self.random.random() < 0.5 and member.identity.public.algorithm.curve:
            return self.asks(member, member.identity.public.spki)
        key = member.access
        return requests.identity_request(
            member.address, key.public.spki, sign=key.sign, signing_time=self._when(), algorithm=S.ED25519
        )

    def weak(self, member: Member) -> bytes:
        """For a key that is too small, malformed, or of a curve or an algorithm that is not taken."""
        return self.asks(member, self.random.choice(_WEAK)(self))

    def named(self, member: Member) -> bytes:
        """Under a name that is no address, or more than one."""
        common = str(member.address)
        text = self.random.choice(
            (f"*.{common}", common.upper(), common + "é", "x" * 64, "../etc", f" {common}", "a/b/c")
        )
        names = [library.NameAttribute(NameOID.COMMON_NAME, text)]
        if self.random.random() < 0.5:
            names = [
                library.NameAttribute(NameOID.ORGANIZATION_NAME, member.address.tenant),
                library.NameAttribute(NameOID.COMMON_NAME, common),
                library.NameAttribute(NameOID.COMMON_NAME, text),
            ]
        return self._odd(member, subject=library.Name(names).public_bytes())

    def greedy(self, member: Member) -> bytes:
        """Asks to be a CA, for another name, for more usages, or for what nobody knows."""
        usage = {"content_commitment": False, "key_encipherment": False, "data_encipherment": False}
        usage |= {"key_agreement": False, "encipher_only": False, "decipher_only": False}
        other = self._other(member).address
        wanted: library.ExtensionType = self.random.choice(
            (
                library.BasicConstraints(ca=True, path_length=None),
                library.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage),
                library.SubjectAlternativeName([library.UniformResourceIdentifier(other.uri)]),
                library.SubjectAlternativeName([library.DNSName("mail.example")]),
                library.ExtendedKeyUsage([library.oid.ExtendedKeyUsageOID.SERVER_AUTH]),
                library.UnrecognizedExtension(library.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00"),
            )
        )
        critical = self.random.random() < 0.5
        asked = asn1.Extension(oid=wanted.oid, critical=critical, value=wanted.public_bytes())
        value = asn1.sequence_of([asn1.encode(asked)])
        return self._odd(member, more=[attributes.attribute(oids.EXTENSION_REQUEST, value)])

    def talkative(self, member: Member) -> bytes:
        """With an attribute twice, or one that has no place there."""
        password = attributes.attribute(library.ObjectIdentifier("1.2.840.113549.1.9.7"), asn1.encode("secret"))
        again = attributes.attribute(oids.SIGNING_TIME, signing.encode_time(self.now))
        return self._odd(member, more=[self.random.choice((password, again))])

    def mislabelled(self, member: Member) -> bytes:
        """The signature is said to be of another algorithm."""
        labels = (S.ED25519, S.ECDSA_P256, S.ECDSA_P384, S.ML_DSA_65)
        label = self.random.choice([one for one in labels if one is not member.identity.public.algorithm])
        return self._odd(member, label=label)

    def _drop(self, member: Member) -> Wish:
        der = self.asks(member, self._key(member)[1])
        return Wish(der, member.address, False, "")

    def _odd(
        self,
        member: Member,
        *,
        subject: bytes | None = None,
        more: Sequence[asn1.Attribute] = (),
        label: SignatureAlgorithm | None = None,
    ) -> bytes:
        """Return a request for the identity key that is signed, and odd."""
        time = attributes.attribute(oids.SIGNING_TIME, signing.encode_time(self._when()))
        key = member.identity
        info = asn1.encode(
            asn1.RequestInfo(
                version=0,
                subject=asn1.tlv(subject or x509.name_der(member.address)),
                public_key=asn1.decode(asn1.SubjectPublicKeyInfo, key.public.spki, what="x"),
                attributes=asn1.SetOf([time, *more]),
            )
        )
        algorithm = label or key.public.algorithm
        signature = asn1.BitString(key.sign(info), 0)
        return asn1.encode(
            asn1.Request(info=asn1.tlv(info), signature_algorithm=algorithm.identifier, signature=signature)
        )

    def _other(self, member: Member) -> Member:
        return self.random.choice([one for one in self.members if one is not member])

    def _when(self) -> datetime:
        # Two days back is too old by the time that it takes.
        return self.now - timedelta(seconds=self.random.randrange(0, 47 * 3600))

    def _member(self, number: int) -> Member:
        def label() -> str:
            length = self.random.randrange(1, 25)
            text = "".join(self.random.choice(_LETTERS + "-") for _ in range(length)).strip("-")
            return (text or "x") + str(number)

        algorithm = self.random.choice(_IDENTITIES)
        return Member(
            Address(TenantName(label()), label()),
            signers.load(algorithm, signers.generate(algorithm)),
            signers.load(S.ED25519, signers.generate(S.ED25519)),
        )


def _raw(oid: library.ObjectIdentifier, public: bytes) -> bytes:
    identifier = asn1.AlgorithmIdentifier(algorithm=oid, parameters=None)
    info = asn1.SubjectPublicKeyInfo(algorithm=identifier, subject_public_key=asn1.BitString(public, 0))
    return asn1.encode(info)


def _on(curve: ec.EllipticCurve, form: PublicFormat = PublicFormat.SubjectPublicKeyInfo) -> bytes:
    return ec.generate_private_key(curve).public_key().public_bytes(Encoding.DER, form)


def _off_the_curve(crowd: Crowd) -> bytes:
    der = bytearray(_on(ec.SECP256R1()))
    der[-1 - crowd.random.randrange(30)] ^= 1
    return bytes(der)


def _rsa_of(numbers: rsa.RSAPublicNumbers) -> bytes:
    modulus = asn1.encode(numbers.n) + asn1.encode(numbers.e)
    return key_kinds.spki(RsaAlgorithm.OAEP_SHA256, asn1.retagged(0x30, asn1.encode(modulus)))


def _even(crowd: Crowd) -> bytes:
    return _rsa_of(rsa.RSAPublicNumbers(65537, 1 << 3071 | crowd.random.getrandbits(3000) << 1))


def _kem(algorithm: KemAlgorithm) -> bytes:
    return key_kinds.public_from_private(algorithm, key_kinds.generate(algorithm))


_WEAK: Sequence[Callable[[Crowd], bytes]] = (
    lambda crowd: crowd._small.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    _even,
    lambda crowd: _rsa_of(rsa.RSAPublicNumbers(3, 1 << 3071 | crowd.random.getrandbits(3000) << 1 | 1)),
    lambda _: _on(ec.SECP192R1()),
    lambda _: _on(ec.SECP224R1()),
    lambda _: _on(ec.SECP521R1()),
    lambda _: _on(ec.SECP256K1()),
    _off_the_curve,
    # Coefficients that are not reduced (FIPS 203 §7.2), and sizes that are none.
    lambda _: _raw(oids.ML_KEM_768, b"\xff" * 1184),
    lambda _: _raw(oids.ML_KEM_768, _kem(KemAlgorithm.ML_KEM_768)[:-1]),
    lambda _: _raw(oids.ML_KEM_1024, _kem(KemAlgorithm.ML_KEM_768)),
    lambda crowd: _raw(oids.ML_KEM_1024, crowd.random.randbytes(1568)),
    # The X25519 half of low order (RFC 7748 §6.1).
    lambda _: _raw(oids.ML_KEM_768_X25519, _kem(KemAlgorithm.COMPOSITE)[:-32] + bytes(32)),
    lambda _: _raw(oids.ML_KEM_512, bytes(800)),
    lambda crowd: _raw(library.ObjectIdentifier("1.2.3.4"), crowd.random.randbytes(32)),
)
_GOOD: Sequence[Callable[[Crowd, Member], Wish]] = (
    Crowd._identity,
    Crowd._access,
    *4 * (Crowd._encryption,),
)
_BAD: Mapping[str, Callable[[Crowd, Member], bytes]] = {
    method.__name__: method
    for method in (
        Crowd.forged,
        Crowd.flipped,
        Crowd.mangled,
        Crowd.elsewhere,
        Crowd.timeless,
        Crowd.untrue,
        Crowd.stolen,
        Crowd.own,
        Crowd.weak,
        Crowd.named,
        Crowd.greedy,
        Crowd.talkative,
        Crowd.mislabelled,
    )
}
