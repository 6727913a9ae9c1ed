"""Certificate profiles: what the certificates of one kind look like, as data, and certificates built from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from functools import lru_cache

from cryptography import x509 as library
from cryptography.x509.oid import ExtendedKeyUsageOID

from pki.core import keys, oids, signatures, x509
from pki.core.authorities import authority_key, ca_key_identifier
from pki.core.capabilities import Capabilities
from pki.core.errors import demand
from pki.core.keys import EcAlgorithm, KemAlgorithm, KeyAlgorithm
from pki.core.signatures import SignatureAlgorithm
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind

USAGES = ("signature", "kem", "agreement", "transport")
"""What a key may be for: signing, encapsulation, key agreement, key transport; each has a key usage of its own."""


@dataclass(frozen=True)
class ExtensionRule:
    """One extension by its name in RFC 5280; an optional one is there when the request asks for it."""

    name: str
    critical: bool = False
    optional: bool = False


@dataclass(frozen=True)
class CertificateProfile:
    """What certificates of one kind look like, and who gets them.

    ``algorithms`` are the labels of keys; ``usage`` names the key usages (RFC 5280 §4.2.1.3) for each of `USAGES`;
    ``addresses`` are patterns with ``*``; ``extensions`` stand in this order.
    """

    kind: CertificateKind
    version: int
    lifetime: timedelta
    """How long a certificate is valid where nobody says otherwise, and at most ``max_lifetime``."""
    max_lifetime: timedelta
    algorithms: frozenset[str]
    usage: Mapping[str, tuple[str, ...]]
    extended_usage: tuple[str, ...]
    addresses: tuple[str, ...]
    extensions: tuple[ExtensionRule, ...]

    def lasts(self, wanted: timedelta | None) -> timedelta:
        """Return how long a certificate is valid when the operator wants ``wanted``, or nothing special."""
        return min(wanted or self.lifetime, self.max_lifetime)


@dataclass(frozen=True)
class Subject:
    """Whom a certificate is for: address, key as SubjectPublicKeyInfo in DER, and what its owner prefers."""

    address: Address
    spki: bytes
    capabilities: Capabilities | None = None


def to_be_signed(
    profile: CertificateProfile,
    subject: Subject,
    *,
    serial: int,
    issuer_der: bytes,
    not_before: datetime,
    not_after: datetime,
) -> bytes:
    """Return the to-be-signed part of a certificate; ``issuer_der`` is the issuing CA's certificate.

    Raises ProfileError where the profile does not allow it: key, address, validity or preferences (rule ISS-003), and
    what is wrong with the key.
    """
    use = check(profile, subject)
    good = timedelta(0) < not_after - not_before <= profile.max_lifetime
    demand(good, "ISS-003", f"The profile allows at most {profile.max_lifetime.days} days")
    made = [(rule.critical, _MAKERS[rule.name](profile, subject, use, issuer_der)) for rule in profile.extensions]
    return x509.encode_tbs(
        serial=serial,
        algorithm=authority_key(issuer_der).algorithm,
        issuer=_subject_of(issuer_der),
        subject=x509.name_der(subject.address),
        spki=subject.spki,
        not_before=not_before,
        not_after=not_after,
        extensions=[(critical, extension) for critical, extension in made if extension is not None],
    )


def check(profile: CertificateProfile, subject: Subject) -> str:
    """Return what the key is for, one of `USAGES`; raises ProfileError unless the profile allows it (rule ISS-003)."""
    label, use = _key(profile.kind, subject)
    demand(label in profile.algorithms, "ISS-003", f"The profile {profile.kind} does not allow keys of {label}")
    named = any(fnmatchcase(str(subject.address), pattern) for pattern in profile.addresses)
    demand(named, "ISS-003", f"The profile {profile.kind} is not for this address: {subject.address}")
    room = subject.capabilities is None or any(rule.name == _CAPABILITIES for rule in profile.extensions)
    demand(room, "ISS-003", f"The profile {profile.kind} has no room for preferences")
    return use


def check_narrower(profile: CertificateProfile, widest: CertificateProfile) -> None:
    """Raise ProfileError, with the rule of relying parties, where a profile gives what ``widest`` does not.

    ``widest`` is what relying parties take: whatever is issued beyond it would be refused by all of them.
    """

    def within(good: bool, rule: str, what: str) -> None:
        demand(good, rule, f"The profile is wider than what relying parties take: {what}")

    within(profile.kind is widest.kind, "CRT-011", f"it is for {profile.kind}, not {widest.kind}")
    within(profile.max_lifetime <= widest.max_lifetime, "CRT-017", f"more than {widest.max_lifetime.days} days")
    more = sorted(profile.algorithms - widest.algorithms)
    within(not more, "CRT-009", f"keys of {', '.join(more)}")
    for use in sorted({*profile.usage, *widest.usage}):
        same = set(profile.usage.get(use, ())) == set(widest.usage.get(use, ()))
        within(
            same, "CRT-006", f"another key usage of {use} keys than {', '.join(widest.usage.get(use, ())) or 'none'}"
        )
    within(set(profile.extended_usage) == set(widest.extended_usage), "CRT-018", "another extended key usage")
    given, taken = ({rule.name: rule for rule in one.extensions} for one in (profile, widest))
    within(len(given) == len(profile.extensions), "CRT-005", "an extension twice")
    within(set(given) <= set(taken), "CRT-005", f"the extensions {', '.join(sorted(set(given) - set(taken)))}")
    gone = sorted(name for name, rule in taken.items() if name not in given and not rule.optional)
    within(not gone, "CRT-005", f"without {', '.join(gone)}")
    for name, rule in given.items():
        within(rule == taken[name], "CRT-006" if name == "keyUsage" else "CRT-005", f"{name} in another way")


_CAPABILITIES = "smimeCapabilities"
_BITS = {
    "digitalSignature": "digital_signature",
    "contentCommitment": "content_commitment",
    "keyEncipherment": "key_encipherment",
    "dataEncipherment": "data_encipherment",
    "keyAgreement": "key_agreement",
    "keyCertSign": "key_cert_sign",
    "cRLSign": "crl_sign",
}
_PURPOSES = {"clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH, "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH}


def _key(kind: CertificateKind, subject: Subject) -> tuple[str, str]:
    """Return label and use of a key; raises AlgorithmError or ProfileError for one that is none of the kind's."""
    if kind is not CertificateKind.ENCRYPTION:
        return signatures.load(subject.spki, allowed=_SIGNING).algorithm.label, "signature"
    algorithm, _ = keys.parse_spki(subject.spki)
    if subject.capabilities is not None:
        algorithm = subject.capabilities.algorithm(algorithm)
    if isinstance(algorithm, KemAlgorithm):
        return _LABELS[algorithm], "kem"
    return _LABELS[algorithm], "agreement" if isinstance(algorithm, EcAlgorithm) else "transport"


_SIGNING = signatures.IDENTITY | {SignatureAlgorithm.ED25519}
_LABELS: Mapping[KeyAlgorithm, str] = {algorithm: label for label, algorithm in keys.ALGORITHMS.items()}


@lru_cache(maxsize=64)
def _key_usage(names: tuple[str, ...]) -> library.KeyUsage:
    bits = dict.fromkeys(_BITS.values(), False) | {_BITS[name]: True for name in names}
    return library.KeyUsage(**bits, encipher_only=False, decipher_only=False)


@lru_cache(maxsize=16)
def _subject_of(certificate_der: bytes) -> bytes:
    return library.load_der_x509_certificate(certificate_der).subject.public_bytes()


def _purposes(profile: CertificateProfile) -> library.ExtendedKeyUsage:
    return library.ExtendedKeyUsage([_PURPOSES[one] for one in profile.extended_usage])


_Maker = Callable[[CertificateProfile, Subject, str, bytes], library.ExtensionType | None]
_MAKERS: Mapping[str, _Maker] = {
    "keyUsage": lambda profile, _subject, use, _issuer: _key_usage(profile.usage[use]),
    "extendedKeyUsage": lambda profile, *_: _purposes(profile),
    "subjectAltName": lambda _profile, subject, *_: x509.alternative_name(subject.address),
    "subjectKeyIdentifier": lambda _profile, subject, *_: library.SubjectKeyIdentifier(
        x509.key_identifier(subject.spki)
    ),
    "authorityKeyIdentifier": lambda _profile, _subject, _use, issuer: library.AuthorityKeyIdentifier(
        ca_key_identifier(issuer), None, None
    ),
    _CAPABILITIES: lambda _profile, subject, *_: (
        None
        if subject.capabilities is None
        else library.UnrecognizedExtension(oids.SMIME_CAPABILITIES, subject.capabilities.der)
    ),
}
EXTENSIONS = tuple(_MAKERS)
"""The names of extensions that a profile may have."""
