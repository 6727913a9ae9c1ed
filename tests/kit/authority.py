"""A CA and two instances with real keys and certificates, made without server or disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property, lru_cache

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from pki.core import certificates, crl, deposits, kem, keys, requests, signatures, signers, x509
from pki.core.capabilities import Capabilities, prefer
from pki.core.certificates import VerifiedCertificate
from pki.core.crl import Crl, Reason, Revoked
from pki.core.envelope import Recipient
from pki.core.ids import KeyId
from pki.core.kem import Hkdf
from pki.core.keys import EcAlgorithm, KemAlgorithm, KeyAlgorithm, RsaAlgorithm
from pki.core.packages import KeyMaterial
from pki.core.signatures import SignatureAlgorithm, VerifyingKey
from pki.core.signers import SigningKey
from pki.core.tenants import Address, parse_address
from pki.core.x509 import CertificateKind
from tests.kit.leaves import leaf_tbs

NOW = datetime(2030, 5, 17, 12, 30, 15, tzinfo=UTC)
DAY = timedelta(days=1)
KEY = KeyMaterial(bytes(range(32)), "application/x-test")
PACKAGE_ID = bytes(range(16))


def signing_key(seed: int, algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65) -> SigningKey:
    """Return the same key for the same number; of SLH-DSA and RSA a new one."""
    if algorithm is SignatureAlgorithm.RSA:
        return rsa_signing_key()
    if algorithm in signatures.SLH_DSA:
        return signers.load(algorithm, signers.generate(algorithm))
    return signers.load(algorithm, bytes([seed]) * signers.secret_size(algorithm))


def new_signing_key(algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65) -> SigningKey:
    """Return a new key."""
    if algorithm is SignatureAlgorithm.RSA:
        return rsa_signing_key()
    return signers.load(algorithm, signers.generate(algorithm))


def rsa_signing_key(bits: int = 3072) -> SigningKey:
    """Return a new RSA key of an authority, which is otherwise made in a token alone."""
    key = rsa.generate_private_key(65537, bits)
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return SigningKey(signatures.load(public), lambda message: key.sign(message, padding.PKCS1v15(), hashes.SHA384()))


@lru_cache(maxsize=8)
def rsa_key(number: int) -> bytes:
    """Return the same RSA key for the same number, in one run: they are slow to make."""
    return keys.generate(RsaAlgorithm.OAEP_SHA256)


@dataclass(frozen=True)
class Authority:
    """A root and an issuing CA."""

    seed: int = 1
    root_algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65
    algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65

    @cached_property
    def root_key(self) -> SigningKey:
        """The root's key."""
        return signing_key(self.seed, self.root_algorithm)

    @cached_property
    def key(self) -> SigningKey:
        """The issuing CA's key."""
        return signing_key(self.seed + 1, self.algorithm)

    @cached_property
    def root_der(self) -> bytes:
        """The root's certificate."""
        tbs = x509.ca_tbs(
            "Test root",
            self.root_key.public.spki,
            issuer_der=None,
            serial=1,
            not_before=NOW - 400 * DAY,
            not_after=NOW + 4000 * DAY,
            path_length=1,
        )
        return x509.assemble(tbs, self.root_key.sign(tbs))

    @cached_property
    def issuing_der(self) -> bytes:
        """The issuing CA's certificate."""
        tbs = x509.ca_tbs(
            "Test issuing CA",
            self.key.public.spki,
            issuer_der=self.root_der,
            serial=2,
            not_before=NOW - 400 * DAY,
            not_after=NOW + 2000 * DAY,
            path_length=0,
        )
        return x509.assemble(tbs, self.root_key.sign(tbs))

    def issue(
        self,
        address: Address,
        spki: bytes,
        kind: CertificateKind,
        *,
        serial: int = 1000,
        not_before: datetime = NOW - timedelta(hours=1),
        not_after: datetime = NOW + 365 * DAY,
        capabilities: Capabilities | None = None,
    ) -> bytes:
        """Return a certificate."""
        tbs = leaf_tbs(
            serial=serial,
            issuer_der=self.issuing_der,
            address=address,
            spki=spki,
            not_before=not_before,
            not_after=not_after,
            kind=kind,
            capabilities=capabilities.der if capabilities else None,
        )
        return x509.assemble(tbs, self.key.sign(tbs))

    def crl(self, serials: Iterable[int] = (), *, at: datetime = NOW) -> Crl:
        """Return a verified list that revokes these serials."""
        return crl.verify_crl(self.crl_der(serials, at=at), issuing_der=self.issuing_der, now=at)

    def crl_der(self, serials: Iterable[int] = (), *, at: datetime = NOW) -> bytes:
        """Return a list that revokes these serials, in DER."""
        revoked = [(serial, Revoked(at, Reason.KEY_COMPROMISE)) for serial in serials]
        tbs = crl.crl_tbs(self.issuing_der, number=7, this_update=at, next_update=at + DAY, revoked=revoked)
        return crl.assemble(tbs, self.key.sign(tbs), self.issuing_der)

    def delta_der(
        self,
        serials: Iterable[int] = (),
        *,
        number: int = 8,
        base: int = 7,
        removed: Iterable[int] = (),
        at: datetime = NOW,
    ) -> bytes:
        """Return a delta list to the full one."""
        revoked = [(serial, Revoked(at, Reason.KEY_COMPROMISE)) for serial in serials]
        tbs = crl.crl_tbs(
            self.issuing_der,
            number=number,
            this_update=at,
            next_update=at + DAY,
            revoked=revoked,
            base=base,
            removed=removed,
        )
        return crl.assemble(tbs, self.key.sign(tbs), self.issuing_der)


@dataclass(frozen=True)
class Party:
    """One KMS instance with its keys, requests and certificates."""

    authority: Authority
    address: Address
    seed: int
    algorithm: KeyAlgorithm = KemAlgorithm.COMPOSITE
    requested: datetime = NOW - timedelta(hours=1)
    identity: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65
    kdf: Hkdf = Hkdf.SHA256

    @cached_property
    def key(self) -> SigningKey:
        """The identity key."""
        return signing_key(self.seed, self.identity)

    @property
    def spki(self) -> bytes:
        """The identity key's SubjectPublicKeyInfo."""
        return self.key.public.spki

    @property
    def private(self) -> bytes:
        """The encryption key."""
        if isinstance(self.algorithm, RsaAlgorithm):
            return rsa_key(self.seed)
        size = self.algorithm.size if isinstance(self.algorithm, EcAlgorithm) else self.algorithm.private_size
        return bytes([self.seed]) * size

    @property
    def capabilities(self) -> Capabilities | None:
        """What the owner of the encryption key prefers."""
        return prefer(self.algorithm, self.kdf)

    @cached_property
    def kem_spki(self) -> bytes:
        """The encryption key's SubjectPublicKeyInfo."""
        return keys.spki(self.algorithm, keys.public_from_private(self.algorithm, self.private))

    @cached_property
    def identity_request(self) -> bytes:
        """The request for the identity certificate."""
        return requests.identity_request(
            self.address, self.spki, sign=self.key.sign, signing_time=self.requested, algorithm=self.identity
        )

    @cached_property
    def identity_der(self) -> bytes:
        """The identity certificate."""
        return self.authority.issue(self.address, self.spki, CertificateKind.IDENTITY, serial=self.seed * 10)

    @cached_property
    def statement(self) -> requests.Statement:
        """Names the identity certificate as RFC 9883 does."""
        parsed = x509.parse_certificate(self.identity_der)
        return requests.Statement(parsed.issuer_der, parsed.serial)

    @cached_property
    def encryption_request(self) -> bytes:
        """The request for the encryption certificate, which endorses it."""
        return requests.encryption_request(
            self.address,
            self.kem_spki,
            self.statement,
            sign=self.key.sign,
            signing_time=self.requested,
            algorithm=self.identity,
            capabilities=self.capabilities,
        )

    @cached_property
    def encryption_der(self) -> bytes:
        """The encryption certificate."""
        return self.authority.issue(
            self.address,
            self.kem_spki,
            CertificateKind.ENCRYPTION,
            serial=self.seed * 10 + 1,
            capabilities=self.capabilities,
        )

    @cached_property
    def access_key(self) -> SigningKey:
        """The access key."""
        return signing_key(self.seed + 100, SignatureAlgorithm.ED25519)

    @cached_property
    def access_request(self) -> bytes:
        """The request for the access certificate, signed by the access key."""
        return requests.access_request(
            self.address, self.access_key.public.spki, sign=self.access_key.sign, signing_time=self.requested
        )

    @cached_property
    def access_der(self) -> bytes:
        """The access certificate."""
        spki = self.access_key.public.spki
        return self.authority.issue(self.address, spki, CertificateKind.ACCESS, serial=self.seed * 10 + 2)

    def listed(self, kind: CertificateKind) -> tuple[bytes, bytes, VerifyingKey]:
        """Return a certificate of a kind, its request, and the key that has to have signed that."""
        return {
            CertificateKind.IDENTITY: (self.identity_der, self.identity_request, self.key.public),
            CertificateKind.ENCRYPTION: (self.encryption_der, self.encryption_request, self.key.public),
            CertificateKind.ACCESS: (self.access_der, self.access_request, self.access_key.public),
        }[kind]

    @cached_property
    def ski(self) -> bytes:
        """The identity key's identifier."""
        return kem.ski(self.spki)

    @cached_property
    def kem_ski(self) -> bytes:
        """The encryption key's identifier."""
        return kem.ski(self.kem_spki)

    @property
    def recipient(self) -> Recipient:
        """Whom others wrap for."""
        public = keys.public_from_private(self.algorithm, self.private)
        return Recipient(self.kem_ski, self.algorithm, public, self.kdf)

    def decapsulate(self, algorithm: KeyAlgorithm, ciphertext: bytes) -> bytes:
        """Return what the encryption key recovers."""
        return keys.recover(algorithm, self.private, ciphertext)

    def verified(self, kind: CertificateKind = CertificateKind.IDENTITY, *, now: datetime = NOW) -> VerifiedCertificate:
        """Return one of the certificates with every check passed."""
        certificate, request, key = self.listed(kind)
        return certificates.check_listed(
            certificate,
            request,
            address=self.address,
            kind=kind,
            identity_key=key,
            issuing_der=self.authority.issuing_der,
            root_der=self.authority.root_der,
            crl=None,
            now=now,
        )

    def deposit(
        self,
        to: Party,
        *,
        material: KeyMaterial = KEY,
        signing_time: datetime = NOW,
        expires: datetime = NOW + 30 * DAY,
    ) -> bytes:
        """Return a deposit of a key for ``to``."""
        return deposits.compose(
            material,
            self.context(to, expires=expires),
            package_id=PACKAGE_ID,
            recipient=to.recipient,
            signer_ski=self.ski,
            sign=self.key.sign,
            signing_time=signing_time,
            algorithm=self.identity,
        )

    def context(self, to: Party, *, expires: datetime = NOW + 30 * DAY) -> deposits.Context:
        """Return what a deposit for ``to`` says about itself."""
        return deposits.Context(self.address, to.address, KeyId("orders-2030"), 3, "orders", expires)


@lru_cache(maxsize=1)
def authority() -> Authority:
    """Return the one CA of a test run."""
    return Authority()


@cache
def acme(algorithm: KeyAlgorithm = KemAlgorithm.COMPOSITE) -> Party:
    """Return acme/eu-west."""
    return Party(authority(), parse_address("acme/eu-west"), 11, algorithm)


@lru_cache(maxsize=1)
def globex() -> Party:
    """Return globex/main."""
    return Party(authority(), parse_address("globex/main"), 12)
