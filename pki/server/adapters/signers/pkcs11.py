"""The CA's key in a PKCS #11 token: made there, used there, and never to be had out of it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import cast

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509 import ObjectIdentifier as Oid
from pkcs11 import exceptions as failures
from pkcs11.constants import Attribute, MechanismFlag, ObjectClass
from pkcs11.mechanisms import KeyType, Mechanism, MLDSAParameterSet
from pkcs11.types import Object, PrivateKey, PublicKey, SignMixin

from pki.core import asn1, oids, signatures
from pki.core.errors import AlgorithmError, SettingsError, SignatureError, UnavailableError
from pki.core.signatures import RSA_MAX_BITS, RSA_MIN_BITS, SignatureAlgorithm, VerifyingKey
from pki.server.adapters.signers.tokens import Session, Token

_log = logging.getLogger(__name__)
_S = SignatureAlgorithm
_MOST_KEYS = 16
"""Keys of one label that are looked at: roll-overs leave a few."""
_PROBE = b"keymailbox: is this the issuing CA's key?"
"""Signed when a key is opened; it is no beginning of anything in DER."""
_SHA384_INFO = bytes.fromhex("3041300d060960864801650304020205000430")
"""What stands before a SHA-384 digest in PKCS #1 v1.5 (RFC 8017 §9.2, note 1)."""


class SigningKey(PrivateKey, SignMixin):
    """What the library makes of a private key that may sign; it puts the class together at run time."""


class TokenKeys:
    """The issuing CAs' keys in one token: made there, known by their public halves, and not to be taken out."""

    def __init__(self, token: Token, label: str, *, rsa_bits: int = 0) -> None:
        """Keys of this ``label`` are ours; new ones get it too. ``rsa_bits`` is new RSA keys' size, by default 3072."""
        self._token = token
        self._label = label
        self._rsa_bits = rsa_bits or RSA_MIN_BITS

    def __repr__(self) -> str:
        return f"TokenKeys({self._token!r}, {self._label!r})"

    def create(self, algorithm: SignatureAlgorithm) -> TokenKey:
        """Make a key in the token, sensitive and not extractable; both halves' id is the key's identifier (RFC 7093).

        Raises AlgorithmError when the token or its library does not know the algorithm, SettingsError when it made a
        key that it would give away, or library, token or PIN is not the right one, UnavailableError when it is away.
        """
        way = _way(algorithm)
        if algorithm is _S.RSA and not RSA_MIN_BITS <= self._rsa_bits <= RSA_MAX_BITS:
            raise AlgorithmError(
                f"An RSA key that signs has {RSA_MIN_BITS} to {RSA_MAX_BITS} bits", on=f"{self._rsa_bits} bits"
            )
        if not {int(way.generation), int(way.mechanism)} <= self._token.mechanisms():
            raise AlgorithmError(
                "The token does not make keys of this algorithm",
                on=f"{self._token.label}: {algorithm.title}",
                hint="choose another one: p-384 is what most tokens know",
            )

        def work(session: Session) -> VerifyingKey:
            public, private = way.generate(session, self._label, self._rsa_bits)
            try:
                _demand_kept(private, self._token.label)
                key = signatures.load(way.spki(public), allowed={algorithm}, rule="CRT-014")
            except Exception as error:
                private.destroy()
                public.destroy()
                if isinstance(error, ValueError):
                    raise SettingsError("The token's new key cannot be read", on=self._token.label) from None
                raise
            for half in (public, private):
                # The id is for people and other tools; where a token fixes it at birth, keys are found by trying them.
                with suppress(failures.PKCS11Error):
                    half[Attribute.ID] = key.ski
            return key

        made = self._token.change(work)
        _log.info("a key was made in the token: %s, %s", made.algorithm.title, made.ski.hex())
        return TokenKey(self._token, self._label, made)

    def open(self, public: VerifyingKey) -> TokenKey:
        """Return a key of the token, having seen it sign; a token that is away is asked again with each signature.

        Raises SettingsError when the key is not there or could be taken out, or library, token or PIN is not the right
        one, AlgorithmError when the token does not sign so.
        """
        key = TokenKey(self._token, self._label, public)
        with suppress(UnavailableError):
            key.find()
        return key

    def discard(self, public: VerifyingKey) -> None:
        """Destroy a key that no certificate was made for; one that is not there is no error."""

        def work(session: Session) -> None:
            with suppress(SettingsError):
                _search(session, self._token, self._label, public)[0].destroy()
            halves = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.LABEL: self._label, Attribute.ID: public.ski}
            for half in list(session.get_objects(halves)):
                half.destroy()

        self._token.change(work)


class TokenKey:
    """One key in a token; each signature is verified before it is given."""

    def __init__(self, token: Token, label: str, public: VerifyingKey) -> None:
        """Nothing is looked at before the key is used."""
        self.public = public
        self._token = token
        self._label = label
        self._way = _way(public.algorithm)
        self._found: tuple[Session, SigningKey, bool] | None = None

    def __repr__(self) -> str:
        return f"TokenKey({self._token!r}, {self._label!r}, {self.public.ski.hex()})"

    def find(self) -> None:
        """Find the key in the token and see it sign; raises as `sign` does."""
        self._token.use(self._key)

    def sign(self, message: bytes, /) -> bytes:
        """Return the token's signature over ``message``, verified under the public half.

        Raises UnavailableError when the token is away or gives another signature, SettingsError when it is there
        without the key, or its PIN is another one.
        """
        signature = self._token.use(lambda session: self._sign(session, message))
        try:
            self.public.verify(signature, message)
        except SignatureError:
            # A stale handle, or a token that computes wrongly: neither must get into a certificate.
            self._token.close()
            raise UnavailableError(
                "The token's signature does not verify under its own public key", on=self._token.label
            ) from None
        return signature

    def _sign(self, session: Session, message: bytes) -> bytes:
        key, asks = self._key(session)
        return self._way.sign(key, message, self._token.pin if asks else None)

    def _key(self, session: Session) -> tuple[SigningKey, bool]:
        # Handles are the session's: with another session they are looked for again, and the token may be another one.
        if self._found is None or self._found[0] is not session:
            self._found = (session, *_search(session, self._token, self._label, self.public))
        return self._found[1:]


def _search(session: Session, token: Token, label: str, public: VerifyingKey) -> tuple[SigningKey, bool]:
    """Return the private key of ``public`` and whether it asks for the PIN each time; raises SettingsError."""
    way = _way(public.algorithm)
    wanted = {
        Attribute.CLASS: ObjectClass.PRIVATE_KEY,
        Attribute.KEY_TYPE: way.key_type,
        **way.marks,
        Attribute.LABEL: label,
        Attribute.SIGN: True,
    }
    keys = cast(list[SigningKey], list(islice(session.get_objects(wanted), _MOST_KEYS)))
    for key in sorted(keys, key=lambda one: _told(one, Attribute.ID) != public.ski):
        asks = bool(_told(key, Attribute.ALWAYS_AUTHENTICATE))
        # What its public half in the token says proves nothing: the private one shows itself.
        with suppress(SignatureError):
            public.verify(way.sign(key, _PROBE, token.pin if asks else None), _PROBE)
            _demand_kept(key, token.label)
            return key, asks
    raise SettingsError(
        "The token does not have the key of the issuing CA's certificate",
        on=f"{token.label}: {len(keys)} keys for {public.algorithm.title} are labelled {label}",
        hint="set KMB_PKCS11_TOKEN and KMB_PKCS11_KEY, or bring the token that the key was made in",
    )


@dataclass(frozen=True)
class _Way:
    """How one algorithm is done in tokens: its mechanisms, how keys are made, sign, and say what they are."""

    key_type: KeyType
    generation: Mechanism
    mechanism: Mechanism
    generate: Callable[[Session, str, int], tuple[PublicKey, PrivateKey]]
    sign: Callable[[SigningKey, bytes, str | None], bytes]
    spki: Callable[[PublicKey], bytes]
    marks: Mapping[Attribute, bytes | int] = field(default_factory=dict)
    """What its private keys say of themselves besides their type."""


def _way(algorithm: SignatureAlgorithm) -> _Way:
    try:
        return _WAYS[algorithm]
    except KeyError:
        raise AlgorithmError("Keys of this algorithm are not used in tokens here", on=algorithm.title) from None


def _demand_kept(key: Object, where: str) -> None:
    """Raise SettingsError unless the token says that it keeps the key to itself."""
    if not (_told(key, Attribute.SENSITIVE) and _told(key, Attribute.EXTRACTABLE) is False):
        raise SettingsError(
            "The token would give the key away: it is not sensitive, or it is extractable",
            on=where,
            hint="kmb-server ca request --token makes another one",
        )


def _told(key: Object, attribute: Attribute) -> object:
    """Return what the token tells of a key, None when it does not know the attribute."""
    try:
        value: object = key[attribute]
    except (failures.AttributeTypeInvalid, failures.AttributeSensitive):
        return None
    return value


_SIGNS = MechanismFlag.SIGN | MechanismFlag.VERIFY
_PRIVATE = {Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
_PUBLIC = {Attribute.PRIVATE: False}


def _generate_ec(curve: Oid) -> Callable[[Session, str, int], tuple[PublicKey, PrivateKey]]:
    def generate(session: Session, label: str, _bits: int) -> tuple[PublicKey, PrivateKey]:
        domain = session.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: asn1.encode(curve)}, local=True)
        return domain.generate_keypair(
            label=label, store=True, capabilities=_SIGNS, public_template=_PUBLIC, private_template=_PRIVATE
        )

    return generate


def _generate_rsa(session: Session, label: str, bits: int) -> tuple[PublicKey, PrivateKey]:
    return session.generate_keypair(
        KeyType.RSA,
        bits,
        label=label,
        store=True,
        capabilities=_SIGNS,
        public_template=_PUBLIC,
        private_template=_PRIVATE,
    )


def _generate_ml_dsa(parameters: MLDSAParameterSet) -> Callable[[Session, str, int], tuple[PublicKey, PrivateKey]]:
    def generate(session: Session, label: str, _bits: int) -> tuple[PublicKey, PrivateKey]:
        return session.generate_keypair(
            KeyType.ML_DSA,
            label=label,
            store=True,
            capabilities=_SIGNS,
            public_template={**_PUBLIC, Attribute.PARAMETER_SET: parameters},
            private_template=_PRIVATE,
        )

    return generate


def _ecdsa(digest: Callable[[bytes], bytes]) -> Callable[[SigningKey, bytes, str | None], bytes]:
    def sign(key: SigningKey, message: bytes, pin: str | None) -> bytes:
        # Hashed here: not every token has ECDSA with a hash. PKCS #11 §6.3.1: r and s, of the same length.
        raw = key.sign(digest(message), mechanism=Mechanism.ECDSA, pin=pin)
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))

    return sign


def _rsa(key: SigningKey, message: bytes, pin: str | None) -> bytes:
    # Hashed here too: a list of ten thousand revoked certificates need not travel to the token.
    info = _SHA384_INFO + hashlib.sha384(message).digest()
    return key.sign(info, mechanism=Mechanism.RSA_PKCS, pin=pin)


def _ml_dsa(key: SigningKey, message: bytes, pin: str | None) -> bytes:
    # Pure, with an empty context (FIPS 204 §5.2, RFC 9881 §2): the mechanism without a parameter.
    return key.sign(message, mechanism=Mechanism.ML_DSA, pin=pin)


def _spki_ec(algorithm: SignatureAlgorithm) -> Callable[[PublicKey], bytes]:
    def spki(public: PublicKey) -> bytes:
        # An OCTET STRING around the point (PKCS #11 §6.3.3), which some tokens leave away.
        point: bytes = public[Attribute.EC_POINT]
        return signatures.from_raw(point[-algorithm.key_size :], algorithm).spki

    return spki


def _spki_rsa(public: PublicKey) -> bytes:
    exponent, modulus = (int.from_bytes(public[one], "big") for one in (Attribute.PUBLIC_EXPONENT, Attribute.MODULUS))
    return (
        rsa.RSAPublicNumbers(exponent, modulus)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def _spki_ml_dsa(algorithm: SignatureAlgorithm) -> Callable[[PublicKey], bytes]:
    return lambda public: signatures.from_raw(public[Attribute.VALUE], algorithm).spki


def _ec(algorithm: SignatureAlgorithm, curve: Oid, digest: Callable[[bytes], bytes]) -> _Way:
    return _Way(
        KeyType.EC,
        Mechanism.EC_KEY_PAIR_GEN,
        Mechanism.ECDSA,
        _generate_ec(curve),
        _ecdsa(digest),
        _spki_ec(algorithm),
        {Attribute.EC_PARAMS: asn1.encode(curve)},
    )


def _lattice(algorithm: SignatureAlgorithm, parameters: MLDSAParameterSet) -> _Way:
    return _Way(
        KeyType.ML_DSA,
        Mechanism.ML_DSA_KEY_PAIR_GEN,
        Mechanism.ML_DSA,
        _generate_ml_dsa(parameters),
        _ml_dsa,
        _spki_ml_dsa(algorithm),
        {Attribute.PARAMETER_SET: parameters},
    )


_WAYS: dict[SignatureAlgorithm, _Way] = {
    _S.ECDSA_P384: _ec(_S.ECDSA_P384, oids.P_384, lambda message: hashlib.sha384(message).digest()),
    _S.ECDSA_P256: _ec(_S.ECDSA_P256, oids.P_256, lambda message: hashlib.sha256(message).digest()),
    _S.RSA: _Way(KeyType.RSA, Mechanism.RSA_PKCS_KEY_PAIR_GEN, Mechanism.RSA_PKCS, _generate_rsa, _rsa, _spki_rsa),
    _S.ML_DSA_44: _lattice(_S.ML_DSA_44, MLDSAParameterSet.ML_DSA_44),
    _S.ML_DSA_65: _lattice(_S.ML_DSA_65, MLDSAParameterSet.ML_DSA_65),
    _S.ML_DSA_87: _lattice(_S.ML_DSA_87, MLDSAParameterSet.ML_DSA_87),
}
TOKENS: frozenset[SignatureAlgorithm] = frozenset(_WAYS)
"""What a token's keys may be here, if the token knows it."""
