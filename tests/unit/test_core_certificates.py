"""Certificates: what a relying party checks, each rule CRT-… broken once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509 as cx509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st
from pyasn1.codec.der.decoder import decode as ber_decode
from pyasn1.codec.der.encoder import encode as ber_encode
from pyasn1_alt_modules import rfc5280

from pki.core import asked, asn1, certificates, envelope, kem, oids, requests, x509
from pki.core.certificates import CERTIFICATE_MOVES, CertificateKind, CertificateState, VerifiedCertificate
from pki.core.errors import (
    AlgorithmError,
    CertificateError,
    ExpiredError,
    IllegalMoveError,
    KeymailboxError,
    MalformedError,
    ProfileError,
    RevokedError,
    SignatureError,
    WrongPartyError,
)
from pki.core.kem import MADE, KemAlgorithm
from pki.core.signatures import SignatureAlgorithm
from tests.kit.authority import DAY, NOW, Authority, Party, acme, authority, globex
from tests.kit.leaves import leaf_tbs

IDENTITY, ENCRYPTION, ACCESS = CertificateKind


def check(party: Party, kind: CertificateKind, **changes: Any) -> VerifiedCertificate:
    """Check one of a party's certificates as listed, with something changed."""
    certificate, request, key = party.listed(kind)
    fields: dict[str, Any] = {
        "certificate_der": certificate,
        "request_der": request,
        "address": party.address,
        "kind": kind,
        "identity_key": key,
        "issuing_der": authority().issuing_der,
        "root_der": authority().root_der,
        "crl": None,
        "now": NOW,
        **changes,
    }
    return certificates.check_listed(fields.pop("certificate_der"), fields.pop("request_der"), **fields)


@pytest.mark.parametrize("kind", list(CertificateKind))
@pytest.mark.parametrize("algorithm", MADE)
def test_a_good_certificate(kind: CertificateKind, algorithm: KemAlgorithm) -> None:
    """A listed certificate passes, with an empty revocation list too."""
    party = acme(algorithm)
    found = check(party, kind, crl=authority().crl())
    assert (found.parsed.address, found.parsed.kind) == (party.address, kind)
    if kind is ENCRYPTION:
        assert found.recipient == party.recipient
    else:
        assert found.identity_key == party.listed(kind)[2]


def test_crt_011_an_access_certificate_is_for_access_alone() -> None:
    """CRT-011: who looks for an identity or a key to wrap for takes no access certificate, nor the reverse."""
    certificate, request, key = acme().listed(ACCESS)
    for kind in (IDENTITY, ENCRYPTION):
        for signer in (key, acme().key.public):
            with pytest.raises(CertificateError) as caught:
                check(acme(), kind, certificate_der=certificate, request_der=request, identity_key=signer)
            assert caught.value.rule == "CRT-011"
    with pytest.raises(CertificateError) as caught:
        check(acme(), ACCESS, certificate_der=acme().identity_der, request_der=acme().identity_request)
    assert caught.value.rule == "CRT-011"


def test_crt_012_an_access_request_endorses_no_identity() -> None:
    """CRT-012: what the access key signed is a request for access, whatever the CA makes of it."""
    _, request, key = acme().listed(ACCESS)
    identity = authority().issue(acme().address, key.spki, IDENTITY)
    with pytest.raises(CertificateError) as caught:
        check(acme(), IDENTITY, certificate_der=identity, request_der=request, identity_key=key)
    assert caught.value.rule == "CRT-012"


def test_a_foreign_authority() -> None:
    """CRT-007: another CA's certificate, and CRT-014: an issuing CA that does not chain to the root, are refused."""
    other = Authority(seed=101)
    with pytest.raises(CertificateError) as caught:
        check(acme(), IDENTITY, issuing_der=other.issuing_der, root_der=other.root_der)
    assert caught.value.rule == "CRT-007"
    with pytest.raises(CertificateError) as caught:
        check(acme(), IDENTITY, root_der=other.root_der)
    assert caught.value.rule == "CRT-014"
    with pytest.raises(CertificateError) as caught:
        check(acme(), IDENTITY, issuing_der=acme().identity_der)
    assert caught.value.rule == "CRT-014"


def test_crt_008_wrong_signature() -> None:
    """CRT-008: the right names do not replace the issuing CA's signature."""
    tbs = leaf_tbs(
        serial=5,
        issuer_der=authority().issuing_der,
        address=acme().address,
        spki=acme().spki,
        not_before=NOW,
        not_after=NOW + DAY,
        kind=IDENTITY,
    )
    forged = x509.assemble(tbs, acme().key.sign(tbs))
    with pytest.raises(CertificateError) as caught:
        check(acme(), IDENTITY, certificate_der=forged)
    assert caught.value.rule == "CRT-008"


@pytest.mark.parametrize(
    ("now", "error"),
    [
        (NOW - DAY, CertificateError),
        (NOW + 366 * DAY, ExpiredError),
        (NOW + 2001 * DAY, ExpiredError),
        (NOW + 4001 * DAY, ExpiredError),
        (NOW - 401 * DAY, CertificateError),
    ],
)
def test_crt_003_validity(now: Any, error: type[Exception]) -> None:
    """CRT-003: before its time and after it, nothing is accepted; the issuers' times count too."""
    with pytest.raises(error) as caught:
        check(acme(), IDENTITY, now=now)
    assert getattr(caught.value, "rule", "") == "CRT-003"


def test_crt_010_revoked() -> None:
    """CRT-010: a revoked serial is refused, another one is not."""
    serial = x509.parse_certificate(acme().encryption_der).serial
    with pytest.raises(RevokedError) as caught:
        check(acme(), ENCRYPTION, crl=authority().crl([serial]))
    assert caught.value.rule == "CRT-010"
    check(acme(), ENCRYPTION, crl=authority().crl([serial + 1]))


def test_crt_011_address_and_kind() -> None:
    """CRT-011: somebody else's certificate, or one for another use, is refused."""
    with pytest.raises(WrongPartyError) as wrong:
        check(acme(), IDENTITY, address=globex().address)
    assert wrong.value.rule == "CRT-011"
    with pytest.raises(CertificateError) as caught:
        check(acme(), ENCRYPTION, certificate_der=acme().identity_der)
    assert caught.value.rule == "CRT-011"
    with pytest.raises(CertificateError):
        certificates.check_stored(
            acme().identity_der,
            kind=ENCRYPTION,
            issuing_der=authority().issuing_der,
            root_der=authority().root_der,
            now=NOW,
        )


def test_a_substitute_that_the_operator_made() -> None:
    """CRT-012: a certificate that the CA really issued, for a key that the owner never asked for, is refused."""
    theirs = kem.spki(KemAlgorithm.COMPOSITE, kem.public_from_private(KemAlgorithm.COMPOSITE, kem.generate()))
    substitute = authority().issue(acme().address, theirs, ENCRYPTION)
    with pytest.raises(CertificateError) as caught:
        check(acme(), ENCRYPTION, certificate_der=substitute)
    assert caught.value.rule == "CRT-012"
    own = requests.encryption_request(
        acme().address, theirs, acme().statement, sign=globex().key.sign, signing_time=NOW
    )
    with pytest.raises(SignatureError) as signature:
        check(acme(), ENCRYPTION, certificate_der=substitute, request_der=own)
    assert signature.value.rule == "REQ-005"
    with pytest.raises(CertificateError) as caught:
        check(acme(), ENCRYPTION, request_der=acme().identity_request)
    assert caught.value.rule == "CRT-012"


@pytest.mark.parametrize("days", [400, 401, 16 * 365])
def test_crt_017_for_ever(days: int) -> None:
    """CRT-017: what was endorsed once cannot be made valid for ever by whoever has the CA's key."""
    start = acme().requested
    end = start + timedelta(days=days)
    lasting = authority().issue(acme().address, acme().kem_spki, ENCRYPTION, not_before=start, not_after=end)
    if days <= 400:
        assert check(acme(), ENCRYPTION, certificate_der=lasting).endorsed_at == acme().requested
        return
    with pytest.raises(CertificateError) as caught:
        check(acme(), ENCRYPTION, certificate_der=lasting)
    assert caught.value.rule == "CRT-017"


@pytest.mark.parametrize("hours", [-49, 49])
def test_crt_013_old_endorsement(hours: int) -> None:
    """CRT-013: a new certificate under an old request is refused (docs/adr/0002)."""
    start = acme().requested + timedelta(hours=hours)
    late = authority().issue(acme().address, acme().kem_spki, ENCRYPTION, not_before=start, not_after=start + 90 * DAY)
    with pytest.raises(CertificateError) as caught:
        check(acme(), ENCRYPTION, certificate_der=late, now=start + DAY)
    assert caught.value.rule == "CRT-013"


# The certificate's profile


def recertified(change: Callable[[Any], Any], *, kind: CertificateKind = IDENTITY) -> bytes:
    """Return a certificate that the CA signed, with its to-be-signed part changed."""
    der = acme().listed(kind)[0]
    outer = asn1.decode(asn1.Certificate, der, what="x")
    tbs = change(asn1.decode(asn1.TbsCertificate, asn1.encode(outer.tbs), what="x"))
    encoded = asn1.encode(tbs)
    return x509.assemble(encoded, authority().key.sign(encoded))


def with_extension(extension: cx509.ExtensionType, *, critical: bool = False) -> Callable[[Any], Any]:
    """Return a change that replaces or adds an extension."""
    new = asn1.Extension(oid=extension.oid, critical=critical, value=extension.public_bytes())
    return lambda tbs: replace(tbs, extensions=[e for e in tbs.extensions if e.oid != new.oid] + [new])


def names(*uris: str) -> cx509.SubjectAlternativeName:
    """Return an alternative name of URIs."""
    return cx509.SubjectAlternativeName([cx509.UniformResourceIdentifier(uri) for uri in uris])


def usage(*, critical: bool = True, **bits: bool) -> Callable[[Any], Any]:
    """Return a change of the key usage."""
    none = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return with_extension(cx509.KeyUsage(**{**none, **bits}), critical=critical)


def outside(change: Callable[[Any], Any]) -> bytes:
    """Return acme's identity certificate with its outer part changed."""
    return asn1.encode(change(asn1.decode(asn1.Certificate, acme().identity_der, what="x")))


def swap(validity: Any) -> Any:
    """Return a validity that ends before it begins."""
    return replace(validity, not_before=validity.not_after, not_after=validity.not_before)


EC_SPKI = (
    ec.generate_private_key(ec.SECP521R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
)
EC_KEY = asn1.decode(asn1.SubjectPublicKeyInfo, EC_SPKI, what="x")
OTHER_ALGORITHM = asn1.AlgorithmIdentifier(algorithm=oids.SHA512, parameters=None)
WITH_NULL = asn1.AlgorithmIdentifier(algorithm=oids.ML_DSA_65, parameters=asn1.Null())
SERVERS = cx509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
BOTH = cx509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
URI = "https://keymailbox.invalid/acme/eu-west"
BAD_CERTIFICATES = [
    ("CRT-001", recertified(lambda t: replace(t, serial=-5))),
    ("CRT-001", recertified(lambda t: replace(t, serial=0))),
    ("CRT-001", recertified(lambda t: replace(t, serial=1 << 159))),
    ("CRT-001", recertified(lambda t: replace(t, version=1))),
    ("CRT-002", recertified(lambda t: replace(t, signature=OTHER_ALGORITHM))),
    ("CRT-002", recertified(lambda t: replace(t, signature=WITH_NULL))),
    ("CRT-002", outside(lambda c: replace(c, signature_algorithm=OTHER_ALGORITHM))),
    ("CRT-003", recertified(lambda t: replace(t, validity=swap(t.validity)))),
    ("CRT-004", recertified(with_extension(names(URI, URI)))),
    ("CRT-004", recertified(with_extension(names("https://example.com/acme/eu-west")))),
    ("CRT-004", recertified(with_extension(names("https://keymailbox.invalid/globex/main")))),
    ("CRT-004", recertified(with_extension(cx509.SubjectAlternativeName([cx509.DNSName("acme.example")])))),
    ("CRT-004", recertified(lambda t: replace(t, subject=asn1.tlv(x509.name_der(globex().address))))),
    ("CRT-005", recertified(lambda t: replace(t, extensions=t.extensions[1:]))),
    ("CRT-005", recertified(with_extension(cx509.BasicConstraints(ca=True, path_length=None), critical=True))),
    ("CRT-005", recertified(with_extension(cx509.UnrecognizedExtension(oids.MEDIA_TYPE, b"\x05\x00"), critical=True))),
    ("CRT-005", recertified(with_extension(cx509.SubjectKeyIdentifier(bytes(20))))),
    ("CRT-005", recertified(with_extension(cx509.AuthorityKeyIdentifier(None, [cx509.DNSName("ca")], 5)))),
    ("CRT-006", recertified(usage(key_cert_sign=True))),
    ("CRT-006", recertified(usage(digital_signature=True, key_encipherment=True))),
    ("CRT-006", recertified(usage(digital_signature=True, critical=False))),
    ("CRT-009", recertified(usage(digital_signature=True), kind=ENCRYPTION)),
    ("CRT-009", recertified(with_extension(asked.CLIENTS, critical=True))),
    ("CRT-018", recertified(with_extension(asked.CLIENTS), kind=ACCESS)),
    ("CRT-018", recertified(with_extension(SERVERS, critical=True), kind=ACCESS)),
    ("CRT-018", recertified(with_extension(BOTH, critical=True), kind=ACCESS)),
    ("CRT-018", recertified(with_extension(asked.CLIENTS, critical=True), kind=ENCRYPTION)),
    (
        "CRT-009",
        recertified(lambda t: replace(t, public_key=asn1.decode(asn1.SubjectPublicKeyInfo, EC_SPKI, what="x"))),
    ),
]


@pytest.mark.parametrize(
    ("rule", "der"), BAD_CERTIFICATES, ids=[f"{rule}-{n}" for n, (rule, _) in enumerate(BAD_CERTIFICATES)]
)
def test_a_certificate_outside_of_the_profile(rule: str, der: bytes) -> None:
    """Each rule of a certificate's form, broken once under the CA's good signature, names itself."""
    with pytest.raises((ProfileError, AlgorithmError)) as caught:
        x509.parse_certificate(der)
    assert caught.value.rule == rule


def test_unused_bits_of_a_signature() -> None:
    """CRT-002: unused bits would give one signed certificate two fingerprints."""
    changed = bytearray(acme().identity_der)
    changed[-1] &= 0xFE
    changed[-SignatureAlgorithm.ML_DSA_65.size - 1] = 1
    with pytest.raises(ProfileError) as caught:
        x509.parse_certificate(bytes(changed))
    assert caught.value.rule == "CRT-002"


def test_the_same_extension_twice() -> None:
    """A doubled extension cannot be read."""
    with pytest.raises(MalformedError):
        x509.parse_certificate(recertified(lambda t: replace(t, extensions=t.extensions + t.extensions[:1])))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(CertificateKind)), st.data())
def test_any_flipped_bit_of_a_certificate_or_request(kind: CertificateKind, data: st.DataObject) -> None:
    """No single bit of a certificate or of its request can be changed unseen."""
    certificate, request, _ = acme().listed(kind)
    for name, der in (("certificate_der", certificate), ("request_der", request)):
        bit = data.draw(st.integers(0, len(der) * 8 - 1))
        changed = bytearray(der)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(KeymailboxError):
            check(acme(), kind, **{name: bytes(changed)})


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100))
def test_junk(junk: bytes) -> None:
    """Junk raises our errors only."""
    for parse in (x509.parse_certificate, requests.parse_request, kem.parse_spki, x509.identity_public_key):
        with pytest.raises(KeymailboxError):
            parse(junk)


def test_other_decoders_read_certificates() -> None:
    """Two other decoders read what we build, and one writes the same bytes."""
    for der in (acme().identity_der, acme().encryption_der, authority().root_der, authority().issuing_der):
        found, rest = ber_decode(der, asn1Spec=rfc5280.Certificate())
        assert not rest
        assert ber_encode(found) == der
    leaf = cx509.load_der_x509_certificate(acme().identity_der)
    leaf.verify_directly_issued_by(cx509.load_der_x509_certificate(authority().issuing_der))


# Proof of decryption, states


def test_proof_of_decryption() -> None:
    """The encrypted certificate opens with its own key only, and its hash is the proof."""
    challenge = envelope.parse(certificates.encrypt_certificate(acme().encryption_der, acme().recipient))
    opened = envelope.unwrap(challenge, acme().kem_ski, acme().decapsulate)
    assert opened == acme().encryption_der
    assert certificates.proof_of_decryption(opened) == x509.parse_certificate(acme().encryption_der).fingerprint


def test_moves() -> None:
    """Every move is in the table or illegal, and nothing leaves a final state."""
    for old in CertificateState:
        for new in CertificateState:
            if new in CERTIFICATE_MOVES[old]:
                certificates.check_move(old, new)
            else:
                with pytest.raises(IllegalMoveError):
                    certificates.check_move(old, new)
    assert not CERTIFICATE_MOVES[CertificateState.REVOKED]


def test_facts_are_frozen() -> None:
    """A checked fact cannot be changed afterwards."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        check(acme(), IDENTITY).parsed = x509.parse_certificate(globex().identity_der)  # type: ignore[misc]  # the point


def test_what_was_just_signed_is_what_was_to_be_signed() -> None:
    """Other bytes break ISS-002, another key or algorithm CRT-008, a chain that does not hold CRT-014."""
    tbs = x509.parse_certificate(acme().identity_der).tbs
    other = x509.parse_certificate(acme().encryption_der).tbs
    ca, stranger = authority(), Authority(77)
    good = x509.assemble(tbs, ca.key.sign(tbs))

    def rule(der: bytes, expected: bytes = tbs, root: bytes = ca.root_der) -> str:
        with pytest.raises(KeymailboxError) as caught:
            certificates.check_signed(der, expected, issuing_der=ca.issuing_der, root_der=root, now=NOW)
        return caught.value.rule

    certificates.check_signed(good, tbs, issuing_der=ca.issuing_der, root_der=ca.root_der, now=NOW)
    assert rule(good, other) == "ISS-002"
    assert rule(x509.assemble(other, ca.key.sign(tbs))) == "ISS-002"
    assert rule(x509.assemble(tbs, ca.key.sign(other))) == "CRT-008"
    assert rule(x509.assemble(tbs, stranger.key.sign(tbs))) == "CRT-008"
    assert rule(asn1.signed(tbs, SignatureAlgorithm.ML_DSA_87.identifier, bytes(4627))) == "CRT-008"
    assert rule(good, root=stranger.root_der) == "CRT-014"
    assert rule(good[:-1]) == "DER-001"
