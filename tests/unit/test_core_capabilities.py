"""What an encryption certificate prefers is asked for by its owner, kept by the issuer, and followed by senders."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509 as library
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pki.core import asn1, attributes, certificates, deposits, envelope, keys, oids, policy, requests, x509
from pki.core.capabilities import MAX_ENTRIES, Capabilities, encode, parse_capabilities, prefer
from pki.core.errors import AlgorithmError, CertificateError, MalformedError, ProfileError
from pki.core.kem import Hkdf
from pki.core.keys import ALGORITHMS, EcAlgorithm, KemAlgorithm, KeyAlgorithm, RsaAlgorithm
from pki.core.tenants import parse_address
from pki.core.x509 import CertificateKind
from tests.kit.authority import NOW, Party, acme, authority

ENCRYPTION = CertificateKind.ENCRYPTION
SHA1, SHA256 = RsaAlgorithm.OAEP_SHA1, RsaAlgorithm.OAEP_SHA256


def initech(algorithm: KeyAlgorithm, kdf: Hkdf = Hkdf.SHA256) -> Party:
    """Return a party with such a key."""
    return Party(authority(), parse_address("initech/hsm"), 21, algorithm, kdf=kdf)


def entry(oid: Any, parameters: Any = None) -> asn1.AlgorithmIdentifier:
    """Return a capability."""
    return asn1.AlgorithmIdentifier(algorithm=oid, parameters=parameters)


def listed(*entries: asn1.AlgorithmIdentifier) -> bytes:
    """Return capabilities in DER."""
    return encode(list(entries))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_way_of_a_key_of_each_kind(name: str) -> None:
    """Requested, certified, checked, proved by decryption, wrapped for and opened: with a key of every kind."""
    party = initech(ALGORITHMS[name])
    verified = party.verified(ENCRYPTION)
    assert verified.recipient == party.recipient
    assert verified.parsed.key_algorithm is party.algorithm
    usage = library.load_der_x509_certificate(party.encryption_der).extensions.get_extension_for_class(library.KeyUsage)
    agreed = isinstance(party.algorithm, EcAlgorithm)
    assert (usage.value.key_agreement, usage.value.key_encipherment) == (agreed, not agreed)
    challenge = envelope.parse(certificates.encrypt_certificate(party.encryption_der, verified.recipient))
    assert envelope.unwrap(challenge, party.kem_ski, party.decapsulate) == party.encryption_der
    sha1 = {party.kem_ski} if party.algorithm is SHA1 else ()
    deposit = policy.verify_deposit(
        deposits.parse_deposit(acme().deposit(party)),
        sender=acme().verified(),
        crl=None,
        recipient_skis=[party.kem_ski],
        sha1_skis=sha1,
        now=NOW,
    )
    assert deposits.open_deposit(deposit, party.kem_ski, party.decapsulate).key == bytes(range(32))


@pytest.mark.parametrize("kdf", list(Hkdf))
def test_the_preferred_key_derivation(kdf: Hkdf) -> None:
    """Senders derive with what the certificate lists first; SHA-256 need not be said."""
    party = initech(KemAlgorithm.ML_KEM_1024, kdf)
    verified = party.verified(ENCRYPTION)
    assert (verified.parsed.capabilities is None) is (kdf is Hkdf.SHA256)
    (recipient,) = envelope.parse(envelope.wrap(b"", oids.DATA, [verified.recipient])).recipients
    assert recipient.kdf == kdf.oid


def test_preferences_are_read_in_order() -> None:
    """The first HKDF counts; OAEP with SHA-1 only without SHA-256; what is unknown is passed over."""
    strange = entry(oids.SHA512, asn1.Null())
    for entries, expected in [
        ([strange], (Hkdf.SHA256, SHA256)),
        ([entry(oids.HKDF_SHA512), entry(oids.HKDF_SHA384)], (Hkdf.SHA512, SHA256)),
        ([entry(oids.HKDF_SHA512, asn1.Null()), entry(oids.HKDF_SHA384)], (Hkdf.SHA384, SHA256)),
        ([strange, SHA1.identifier], (Hkdf.SHA256, SHA1)),
        ([SHA1.identifier, SHA256.identifier], (Hkdf.SHA256, SHA256)),
        ([entry(oids.RSAES_OAEP)], (Hkdf.SHA256, SHA256)),
    ]:
        found = parse_capabilities(listed(*entries))
        assert (found.kdf, found.oaep) == expected
        assert found.algorithm(KemAlgorithm.COMPOSITE) is KemAlgorithm.COMPOSITE
        assert found.algorithm(SHA256) is found.oaep


def test_a_preference_has_to_fit_the_key() -> None:
    """A key derivation is chosen for a KEM alone; what everybody does anyway is not said."""
    assert prefer(KemAlgorithm.COMPOSITE) is prefer(EcAlgorithm.P_256) is prefer(SHA256) is None
    for algorithm in (EcAlgorithm.P_256, SHA256, SHA1):
        with pytest.raises(AlgorithmError):
            prefer(algorithm, Hkdf.SHA512)


@pytest.mark.parametrize(
    "der", [listed(), listed(*[entry(oids.HKDF_SHA512)] * (MAX_ENTRIES + 1)), b"\x30\x82\x10\x00" + bytes(4096)]
)
def test_crt_015_bounded_capabilities(der: bytes) -> None:
    """CRT-015: none, too many, or too much."""
    with pytest.raises((ProfileError, MalformedError)) as caught:
        parse_capabilities(der)
    if isinstance(caught.value, ProfileError):
        assert caught.value.rule == "CRT-015"


@pytest.mark.parametrize("der", [b"", b"\x05\x00", b"\x30\x02\x05\x00", b"\x30\x00\x00"])
def test_malformed_capabilities(der: bytes) -> None:
    """What is no list of algorithms raises our errors alone."""
    with pytest.raises((ProfileError, MalformedError)):
        parse_capabilities(der)


def test_crt_012_capabilities_that_nobody_asked_for() -> None:
    """CRT-012: an operator cannot bring senders down to SHA-1, nor take away a preference."""
    modest, plain = initech(SHA1), initech(SHA256)
    for certificate, request in ((modest.encryption_der, plain), (plain.encryption_der, modest)):
        with pytest.raises(CertificateError) as caught:
            check(certificate, request.encryption_request)
        assert caught.value.rule == "CRT-012"
    assert check(modest.encryption_der, modest.encryption_request).recipient.algorithm is SHA1


def check(certificate_der: bytes, request_der: bytes) -> certificates.VerifiedCertificate:
    """Check a listed encryption certificate of initech."""
    return certificates.check_listed(
        certificate_der,
        request_der,
        address=initech(SHA256).address,
        kind=ENCRYPTION,
        identity_key=initech(SHA256).key.public,
        issuing_der=authority().issuing_der,
        root_der=authority().root_der,
        crl=None,
        now=NOW,
    )


def test_req_004_capabilities_are_for_encryption_keys() -> None:
    """REQ-004: a request for an identity key has no capabilities, and CRT-005 its certificate neither."""
    said = prefer(KemAlgorithm.COMPOSITE, Hkdf.SHA512)
    party = initech(KemAlgorithm.COMPOSITE)
    der = requests.identity_request(party.address, party.spki, sign=party.key.sign, signing_time=NOW)
    outer = asn1.decode(asn1.Request, der, what="x")
    info = asn1.decode(asn1.RequestInfo, asn1.encode(outer.info), what="x")
    assert said is not None
    more = [*info.attributes.as_list(), attributes.attribute(oids.SMIME_CAPABILITIES, said.der)]
    changed = asn1.tlv(asn1.encode(replace(info, attributes=asn1.SetOf(more))))
    with pytest.raises(ProfileError) as caught:
        requests.parse_request(asn1.encode(replace(outer, info=changed)))
    assert caught.value.rule == "REQ-004"
    with pytest.raises(ProfileError) as refused:
        x509.parse_certificate(
            authority().issue(party.address, party.spki, CertificateKind.IDENTITY, capabilities=said)
        )
    assert refused.value.rule == "CRT-005"


def altered(party: Party, change: Any) -> bytes:
    """Return the encryption certificate with its extensions changed; nobody signed it."""
    outer = asn1.decode(asn1.Certificate, party.encryption_der, what="x")
    tbs = asn1.decode(asn1.TbsCertificate, asn1.encode(outer.tbs), what="x")
    changed = replace(tbs, extensions=[change(one) for one in tbs.extensions])
    return asn1.encode(replace(outer, tbs=asn1.tlv(asn1.encode(changed))))


def test_crt_005_critical_capabilities() -> None:
    """CRT-005: capabilities are advice, so they are not critical."""
    critical = altered(
        initech(SHA1), lambda one: replace(one, critical=one.critical or one.oid == oids.SMIME_CAPABILITIES)
    )
    with pytest.raises(ProfileError) as caught:
        x509.parse_certificate(critical)
    assert caught.value.rule == "CRT-005"


@pytest.mark.parametrize("algorithm", [EcAlgorithm.P_384, SHA256, KemAlgorithm.ML_KEM_768])
def test_crt_006_the_usage_is_the_keys(algorithm: KeyAlgorithm) -> None:
    """CRT-006: an EC key agrees, RSA and KEM encipher, and never the other way round."""
    other = b"\x03\x02\x05\x20" if isinstance(algorithm, EcAlgorithm) else b"\x03\x02\x03\x08"
    swapped = altered(
        initech(algorithm),
        lambda one: replace(one, value=other) if one.oid == library.KeyUsage.oid else one,
    )
    with pytest.raises(ProfileError) as caught:
        x509.parse_certificate(swapped)
    assert caught.value.rule == "CRT-006"


def test_crt_009_a_small_rsa_key() -> None:
    """CRT-009: a request and a certificate for an RSA key below 3072 bits are refused."""
    small = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    public = small.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
    party = initech(SHA256)
    der = requests.encryption_request(
        party.address, keys.spki(SHA256, public), party.statement, sign=party.key.sign, signing_time=NOW
    )
    with pytest.raises(ProfileError) as caught:
        requests.parse_request(der)
    assert caught.value.rule == "CRT-009"


def test_dep_012_sha_1_only_where_the_certificate_asks() -> None:
    """DEP-012: a sender that uses RSA-OAEP with SHA-1 for a key whose certificate does not ask for it is refused."""
    parsed = deposits.parse_deposit(acme().deposit(initech(SHA1)))
    fields: dict[str, Any] = {"sender": acme().verified(), "crl": None, "now": NOW + timedelta(seconds=1)}
    ski = initech(SHA1).kem_ski
    policy.verify_deposit(parsed, recipient_skis=[ski], sha1_skis=[ski], **fields)
    for asking in ((), [bytes(20)]):
        with pytest.raises(AlgorithmError) as caught:
            policy.verify_deposit(parsed, recipient_skis=[ski], sha1_skis=asking, **fields)
        assert caught.value.rule == "DEP-012"


def test_capabilities_are_compared_byte_by_byte() -> None:
    """Two lists that mean the same are not the same endorsement."""
    one = Capabilities(Hkdf.SHA512, SHA256, listed(entry(oids.HKDF_SHA512)))
    other = parse_capabilities(listed(entry(oids.HKDF_SHA512), entry(oids.HKDF_SHA512)))
    assert one == parse_capabilities(one.der)
    assert one != other
