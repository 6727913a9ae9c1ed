"""Issuing CAs: what is requested is certified, and nothing else; each rule ICA-… has vectors besides."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509 as cx509
from pyasn1.codec.der.decoder import decode as ber_decode
from pyasn1.codec.der.encoder import encode as ber_encode
from pyasn1_alt_modules import rfc2986

from pki.core import issuers, signers, x509
from pki.core.authorities import authority_key, verify_authorities
from pki.core.errors import AlgorithmError, CertificateError, ProfileError, SignatureError
from pki.core.signatures import SignatureAlgorithm
from tests.kit.authority import NOW, authority, new_signing_key, signing_key

NAME = "keymailbox issuing 1a2b3c4d"


def requested(algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65) -> issuers.IssuingRequest:
    """Return a verified request."""
    key = new_signing_key(algorithm)
    return issuers.parse_request(issuers.compose_request(NAME, key.public, key.sign)).verify()


def certified(request: issuers.IssuingRequest, lifetime: timedelta = issuers.ISSUING_LIFETIME) -> bytes:
    """Return the certificate of an issuing CA under the test's root."""
    tbs = issuers.issuing_tbs(request, root_der=authority().root_der, serial=9, now=NOW, lifetime=lifetime)
    assert issuers.same_tbs(tbs, request, root_der=authority().root_der) == tbs
    return x509.assemble(tbs, authority().root_key.sign(tbs))


@pytest.mark.parametrize("algorithm", sorted(issuers.ISSUING & signers.MADE, key=lambda one: one.label))
def test_a_request_becomes_an_issuing_ca(algorithm: SignatureAlgorithm) -> None:
    """Other decoders read the request; the certificate has its name and key, path length 0, and chains to the root."""
    key = new_signing_key(algorithm)
    der = issuers.compose_request(NAME, key.public, key.sign)
    found, rest = ber_decode(der, asn1Spec=rfc2986.CertificationRequest())
    assert not rest
    assert ber_encode(found) == der
    request = issuers.parse_request(der).verify()
    assert (request.name, request.key) == (NAME, key.public)
    issuing = certified(request)
    verify_authorities(issuing_der=issuing, root_der=authority().root_der, now=NOW)
    assert authority_key(issuing) == key.public
    loaded = cx509.load_der_x509_certificate(issuing)
    assert loaded.extensions.get_extension_for_class(cx509.BasicConstraints).value.path_length == 0
    assert loaded.subject.rfc4514_string() == f"CN={NAME}"


def test_an_issuing_ca_ends_with_its_root() -> None:
    """Longer than the root lives, it would be of no use (RFC 5280 §6.1)."""
    issuing = cx509.load_der_x509_certificate(certified(requested(), timedelta(days=30_000)))
    assert issuing.not_valid_after_utc == cx509.load_der_x509_certificate(authority().root_der).not_valid_after_utc


def test_what_is_prepared_is_what_is_signed() -> None:
    """Bytes that were stored for a request count if they are what the request comes to, and no others."""
    request, other = requested(), requested()
    tbs = issuers.issuing_tbs(request, root_der=authority().root_der, serial=9, now=NOW)
    with pytest.raises(CertificateError):
        issuers.same_tbs(tbs, other, root_der=authority().root_der)
    unlimited = x509.ca_tbs(
        request.name,
        request.key.spki,
        issuer_der=authority().root_der,
        serial=9,
        not_before=NOW,
        not_after=NOW + timedelta(days=10),
        path_length=3,
    )
    with pytest.raises(CertificateError):
        issuers.same_tbs(unlimited, request, root_der=authority().root_der)


def test_a_key_that_is_not_for_an_issuing_ca() -> None:
    """ICA-003: an algorithm that an issuing CA does not have; a signature by somebody else."""
    small = new_signing_key(SignatureAlgorithm.ML_DSA_44)
    with pytest.raises(AlgorithmError) as refused:
        issuers.parse_request(issuers.compose_request(NAME, small.public, small.sign))
    assert refused.value.rule == "ICA-003"
    der = issuers.compose_request(NAME, signing_key(5).public, signing_key(6).sign)
    with pytest.raises(SignatureError) as unsigned:
        issuers.parse_request(der).verify()
    assert unsigned.value.rule == "ICA-003"


def test_the_bounds_of_a_request() -> None:
    """ICA-001 and ICA-002: too large before anything is decoded; the longest name there is; a bell."""
    key = signing_key(5)
    for size in (1, 64):
        der = issuers.compose_request("x" * size, key.public, key.sign)

        assert issuers.parse_request(der).name == "x" * size
    with pytest.raises(ProfileError) as caught:
        issuers.parse_request(bytes(issuers.MAX_REQUEST + 1))
    assert caught.value.rule == "ICA-001"
    with pytest.raises(ProfileError) as named:
        issuers.parse_request(issuers.compose_request("na\x07me", key.public, key.sign))
    assert named.value.rule == "ICA-002"
