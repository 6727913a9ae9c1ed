"""Certificates from profiles: what comes along makes what relying parties take, and nothing may be wider."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import product

import pytest

from pki.core import issuance, x509
from pki.core.capabilities import prefer
from pki.core.errors import KeymailboxError, ProfileError
from pki.core.issuance import CertificateProfile, ExtensionRule, Subject, check_narrower
from pki.core.kem import Hkdf
from pki.core.keys import EcAlgorithm, KemAlgorithm, KeyAlgorithm, RsaAlgorithm
from pki.core.signatures import IDENTITY, SignatureAlgorithm
from pki.core.x509 import CertificateKind
from pki.server.adapters.profiles import packaged
from tests.kit.authority import DAY, NOW, Party, authority, signing_key
from tests.kit.facts import ACME, GLOBEX
from tests.kit.leaves import leaf_tbs

K = CertificateKind
KEYS: tuple[KeyAlgorithm, ...] = (*KemAlgorithm, *EcAlgorithm, *RsaAlgorithm)
MADE = tuple(one for one in KEYS if one is not KemAlgorithm.ML_KEM_512)


def made(
    subject: Subject, kind: CertificateKind, profile: CertificateProfile | None = None, days: int = 30, serial: int = 9
) -> bytes:
    """Return the to-be-signed bytes by a profile."""
    return issuance.to_be_signed(
        profile or packaged(kind),
        subject,
        serial=serial,
        issuer_der=authority().issuing_der,
        not_before=NOW,
        not_after=NOW + days * DAY,
    )


def subjects() -> list[tuple[CertificateKind, Subject]]:
    """Return somebody for every key and preference that there is."""
    signs = [(K.IDENTITY, one) for one in IDENTITY] + [(K.ACCESS, SignatureAlgorithm.ED25519)]
    found = [(kind, Subject(ACME, signing_key(8, one).public.spki)) for kind, one in signs]
    for algorithm, kdf in product(MADE, Hkdf):
        if kdf is Hkdf.SHA256 or isinstance(algorithm, KemAlgorithm):
            spki = Party(authority(), ACME, 11, algorithm).kem_spki
            found.append((K.ENCRYPTION, Subject(ACME, spki, prefer(algorithm, kdf))))
    return found


def test_the_profiles_that_come_along_make_what_relying_parties_take() -> None:
    """For every key there is, byte for byte what is read here as a certificate of its kind, and as it is meant."""
    for kind, subject in subjects():
        tbs = made(subject, kind)
        parsed = x509.parse_certificate(x509.assemble(tbs, bytes(3309)))
        assert (parsed.kind, parsed.address, parsed.spki) == (kind, ACME, subject.spki)
        assert parsed.capabilities == subject.capabilities
        assert tbs == leaf_tbs(
            serial=9,
            issuer_der=authority().issuing_der,
            address=ACME,
            spki=subject.spki,
            not_before=NOW,
            not_after=NOW + 30 * DAY,
            kind=kind,
            capabilities=subject.capabilities.der if subject.capabilities else None,
        )


IDENTITY_SUBJECT = Subject(ACME, signing_key(8).public.spki)
PREFERENCE = Subject(ACME, Party(authority(), ACME, 11).kem_spki, prefer(KemAlgorithm.COMPOSITE, Hkdf.SHA512))
NARROW = replace(
    packaged(K.ENCRYPTION),
    algorithms=frozenset({"composite"}),
    addresses=("acme/*",),
    extensions=packaged(K.ENCRYPTION).extensions[:-1],
)
REFUSED: dict[str, Callable[[], object]] = {
    "a key that is not listed": lambda: made(
        Subject(ACME, Party(authority(), ACME, 11, EcAlgorithm.P_256).kem_spki), K.ENCRYPTION, NARROW
    ),
    "an address that is not named": lambda: made(
        replace(PREFERENCE, address=GLOBEX, capabilities=None), K.ENCRYPTION, NARROW
    ),
    "preferences where there is no room": lambda: made(PREFERENCE, K.ENCRYPTION, NARROW),
    "a day too long": lambda: made(IDENTITY_SUBJECT, K.IDENTITY, days=401),
    "an end before the start": lambda: made(IDENTITY_SUBJECT, K.IDENTITY, days=-1),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_profile_does_not_allow(case: str) -> None:
    """A certificate is of its profile, or is not made (rule ISS-003)."""
    with pytest.raises(ProfileError) as caught:
        REFUSED[case]()
    assert caught.value.rule == "ISS-003"


def test_what_a_narrow_profile_allows() -> None:
    """What it still gives is what the wide one gives."""
    subject = replace(PREFERENCE, capabilities=None)
    assert made(subject, K.ENCRYPTION, NARROW) == made(subject, K.ENCRYPTION)


def test_a_key_of_another_kind_gets_no_certificate() -> None:
    """A KEM key is no identity, an identity of ML-DSA no access key, and an Ed25519 key nothing to encrypt to."""
    kem, ed25519 = replace(PREFERENCE, capabilities=None), signing_key(8, SignatureAlgorithm.ED25519)
    for subject, kind in (
        (kem, K.IDENTITY),
        (IDENTITY_SUBJECT, K.ACCESS),
        (Subject(ACME, ed25519.public.spki), K.ENCRYPTION),
        (Subject(ACME, b"\x30\x00"), K.IDENTITY),
    ):
        with pytest.raises(KeymailboxError):
            made(subject, kind)


def test_how_long_a_certificate_is_valid() -> None:
    """What the operator wants, within what the profile allows; the profile's own wish where nobody says."""
    profile = replace(packaged(K.IDENTITY), lifetime=90 * DAY, max_lifetime=180 * DAY)
    assert profile.lasts(None) == 90 * DAY
    assert profile.lasts(timedelta(hours=8)) == timedelta(hours=8)
    assert profile.lasts(365 * DAY) == 180 * DAY


WIDE = packaged(K.ENCRYPTION)
USAGE = ExtensionRule("keyUsage", critical=True)
WIDER: dict[str, tuple[CertificateProfile, str]] = {
    "another kind": (replace(WIDE, kind=K.IDENTITY), "CRT-011"),
    "longer": (replace(WIDE, max_lifetime=401 * DAY), "CRT-017"),
    "more keys": (replace(WIDE, algorithms=WIDE.algorithms | {"ml-kem-512"}), "CRT-009"),
    "a usage beside": (replace(WIDE, usage={**WIDE.usage, "kem": ("keyEncipherment", "dataEncipherment")}), "CRT-006"),
    "a usage for another use": (replace(WIDE, usage={**WIDE.usage, "signature": ("digitalSignature",)}), "CRT-006"),
    "no usage for a use": (replace(WIDE, usage={"kem": ("keyEncipherment",)}), "CRT-006"),
    "an extended usage": (replace(WIDE, extended_usage=("serverAuth",)), "CRT-018"),
    "an extension beside": (replace(WIDE, extensions=(*WIDE.extensions, ExtensionRule("extendedKeyUsage"))), "CRT-005"),
    "an extension less": (replace(WIDE, extensions=(USAGE, *WIDE.extensions[2:])), "CRT-005"),
    "an extension twice": (replace(WIDE, extensions=(*WIDE.extensions, USAGE)), "CRT-005"),
    "a usage that is not critical": (
        replace(WIDE, extensions=(ExtensionRule("keyUsage"), *WIDE.extensions[1:])),
        "CRT-006",
    ),
    "a name that is critical": (
        replace(WIDE, extensions=(USAGE, ExtensionRule("subjectAltName", critical=True), *WIDE.extensions[2:])),
        "CRT-005",
    ),
}


@pytest.mark.parametrize("case", WIDER)
def test_a_profile_that_is_wider_than_relying_parties(case: str) -> None:
    """It is refused by the rule by which they would refuse its certificates."""
    profile, rule = WIDER[case]
    with pytest.raises(ProfileError) as caught:
        check_narrower(profile, WIDE)
    assert caught.value.rule == rule


def test_a_narrower_profile_is_taken() -> None:
    """Fewer keys, fewer days, fewer addresses, no preferences; and the same."""
    for kind in CertificateKind:
        check_narrower(packaged(kind), packaged(kind))
    check_narrower(replace(NARROW, lifetime=DAY, max_lifetime=2 * DAY, version=7), WIDE)
