"""OCSP requests are read within bounds, each rule OCS-… broken once; responses are what others expect."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as foreign
from hypothesis import given, settings
from hypothesis import strategies as st

from pki.core import ocsp
from pki.core.crl import Reason, Revoked
from pki.core.errors import CertificateError, KeymailboxError
from pki.core.ocsp import Answer, Refusal, Standing
from pki.core.signatures import SignatureAlgorithm
from tests.kit import forge_pki as pki
from tests.kit import tlv
from tests.kit.authority import DAY, NOW, Authority, acme, authority
from tests.vectors.cases.status import NONCE, SHA256, SHA512, named, nonce, question

ISSUING = pki.ca("Test issuing CA", pki.ISSUING, ("Test root", pki.ROOT), serial=2, path=0)


def asked(hashed: hashes.HashAlgorithm, *, said: bytes | None = None) -> bytes:
    """Return a request that pyca makes for acme's identity certificate."""
    certificate = x509.load_der_x509_certificate(acme().identity_der)
    builder = foreign.OCSPRequestBuilder().add_certificate(
        certificate, x509.load_der_x509_certificate(authority().issuing_der), hashed
    )
    if said is not None:
        builder = builder.add_extension(x509.OCSPNonce(said), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def respond(request: ocsp.Request, status: ocsp.Status, ca: Authority, *, expired: bool = False) -> bytes:
    """Return a signed response."""
    cutoff = NOW - DAY if expired else None
    answers = [Answer(one, status, NOW, NOW + DAY, cutoff) for one in request.asked]
    tbs = ocsp.response_tbs(ca.issuing_der, answers, produced_at=NOW, nonce=request.nonce)
    return ocsp.assemble(tbs, ca.key.sign(tbs), ca.issuing_der)


@pytest.mark.parametrize("hashed", [hashes.SHA1(), hashes.SHA256()], ids=["sha1", "sha256"])
@pytest.mark.parametrize("said", [None, b"n", bytes(128)], ids=["none", "1", "128"])
def test_a_request_of_others(hashed: hashes.HashAlgorithm, said: bytes | None) -> None:
    """A request that pyca makes is read, is of our issuing CA, and is the one that we would have made."""
    der = asked(hashed, said=said)
    request = ocsp.parse_request(der)
    assert request.nonce == said
    assert (
        ocsp.issuer_of(request, [Authority(seed=101).issuing_der, authority().issuing_der]) == authority().issuing_der
    )
    assert ocsp.encode_request(request) == der
    serial = x509.load_der_x509_certificate(acme().identity_der).serial_number
    assert request.asked[0] in [ocsp.cert_id(one, serial) for one in ocsp.issuer_ids(authority().issuing_der)]


def test_a_signed_request_is_read() -> None:
    """Who asks, and a signature over that, are not looked at: everybody may ask."""
    requestor = tlv.context(1, tlv.context(6, b"https://example.org", constructed=False))
    bare = question(version=requestor)
    signed = tlv.seq(bare[4:] if bare[1] == 0x82 else bare[2:], tlv.context(0, tlv.seq(tlv.seq(), tlv.bits(b"x"))))
    assert ocsp.parse_request(signed).asked == ocsp.parse_request(question()).asked


@pytest.mark.parametrize(
    "status",
    [Standing.GOOD, Standing.UNKNOWN, Revoked(NOW - DAY, Reason.KEY_COMPROMISE), Revoked(NOW, Reason.UNSPECIFIED)],
    ids=["good", "unknown", "revoked", "no-reason"],
)
@pytest.mark.parametrize(
    "algorithm", [SignatureAlgorithm.ML_DSA_65, SignatureAlgorithm.ECDSA_P384], ids=lambda a: a.label
)
def test_a_response_to_others(status: ocsp.Status, algorithm: SignatureAlgorithm) -> None:
    """Pyca reads status, times, nonce, responder and archive cutoff of a response, and its signature verifies."""
    ca = Authority(seed=31, algorithm=algorithm)
    request = ocsp.Request((ocsp.cert_id(ocsp.issuer_ids(ca.issuing_der)[0], 77),), bytes(32))
    found = foreign.load_der_ocsp_response(respond(request, status, ca, expired=True))
    assert found.response_status is foreign.OCSPResponseStatus.SUCCESSFUL
    expected = status.name if isinstance(status, Standing) else "REVOKED"
    assert found.certificate_status.name == expected
    if isinstance(status, Revoked):
        assert found.revocation_time_utc == status.at
        given_reason = found.revocation_reason.name if found.revocation_reason else "unspecified"
        assert given_reason.upper() == status.reason.name
    assert (found.serial_number, found.this_update_utc, found.next_update_utc) == (77, NOW, NOW + DAY)
    assert found.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == bytes(32)
    assert [one.oid for one in found.single_extensions] == [ocsp.ARCHIVE_CUTOFF]
    assert found.responder_key_hash == hashlib.sha1(ca.key.public.raw).digest()
    assert found.certificates == []
    ca.key.public.verify(found.signature, found.tbs_response_bytes)


@pytest.mark.parametrize("why", list(Refusal))
def test_refusals(why: Refusal) -> None:
    """A refusal is five bytes, unsigned, and is read as what it is."""
    der = ocsp.refuse(why)
    assert len(der) == 5
    assert foreign.load_der_ocsp_response(der).response_status.value == why


def refused(make: Callable[[], bytes]) -> str:
    """Return the rule that a request breaks."""
    with pytest.raises(KeymailboxError) as caught:
        ocsp.issuer_of(ocsp.parse_request(make()), [ISSUING])
    return caught.value.rule


def test_ocs_001_bounds() -> None:
    """OCS-001: more than 4 KiB, 17 certificates, or none."""
    assert refused(lambda: question(extensions=[pki.extension("1.2.3", bytes(5000))])) == "OCS-001"
    assert refused(lambda: question([named()] * 17)) == "OCS-001"
    assert refused(lambda: tlv.seq(tlv.seq(tlv.seq()))) == "OCS-001"


def test_ocs_002_version_and_critical_extensions() -> None:
    """OCS-002: another version, or a critical extension that is not understood; a critical nonce is."""
    unknown = pki.extension("1.2.3.4", tlv.NULL, critical=True)
    assert refused(lambda: question(version=tlv.context(0, tlv.integer(1)))) == "OCS-002"
    assert refused(lambda: question(extensions=[unknown])) == "OCS-002"
    assert refused(lambda: question(single=tlv.context(0, tlv.seq(unknown)))) == "OCS-002"
    ocsp.parse_request(question(extensions=[pki.extension(NONCE, tlv.octets(b"n"), critical=True)]))


def test_ocs_003_nonces() -> None:
    """OCS-003: no byte, 129 bytes, or two nonces (RFC 9654 §2.1)."""
    for extensions in ([nonce(0)], [nonce(129)], [nonce(8), nonce(8)]):
        assert refused(lambda: question(extensions=extensions)) == "OCS-003"  # noqa: B023  called at once


def test_ocs_004_serials() -> None:
    """OCS-004: 21 bytes; 20 bytes and negative numbers, which nobody has, can be asked about."""
    assert refused(lambda: question([named(1 << 160)])) == "OCS-004"
    for serial in ((1 << 160) - 1, 0, -1):
        assert ocsp.parse_request(question([named(serial)])).asked[0].serial == serial


def test_ocs_005_issuers() -> None:
    """OCS-005: another issuer's name or key, issuers mixed, another hash; no issuing CA at all."""
    other = named(key=pki.STRANGER.public)
    for wanted in ([other], [named(), other], [named(hashed=SHA512)]):
        assert refused(lambda: question(wanted)) == "OCS-005"  # noqa: B023  called at once
    with pytest.raises(CertificateError):
        ocsp.issuer_of(ocsp.parse_request(question()), [])
    assert ocsp.issuer_of(ocsp.parse_request(question([named(), named(hashed=SHA256)])), [ISSUING]) == ISSUING


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_junk(junk: bytes) -> None:
    """Junk raises our errors only."""
    with pytest.raises(KeymailboxError):
        ocsp.parse_request(junk)
