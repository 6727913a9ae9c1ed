"""What a token signed is believed by everybody: OpenSSL and pyca verify certificates and lists of such a CA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509 as cx509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from pki.core import x509
from pki.core.kem import KemAlgorithm
from pki.core.signatures import SignatureAlgorithm
from pki.core.x509 import CertificateKind
from tests.interop.commands import RefusedError, Tool
from tests.interop.holdings import pem, trust
from tests.kit.authority import NOW, Party, acme
from tests.kit.tokens import TokenAuthority, forget, soft_token

_S = SignatureAlgorithm
CHAINS = {
    "P-384 over P-384": (_S.ECDSA_P384, _S.ECDSA_P384),
    "P-256 over ML-DSA-65": (_S.ML_DSA_65, _S.ECDSA_P256),
    "RSA over RSA": (_S.RSA, _S.RSA),
}


@pytest.fixture(params=CHAINS)
def party(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Party]:
    """acme/eu-west, certified by a CA whose key is in a token."""
    soft = soft_token(tmp_path / "hsm")
    for name, value in soft.environment.items():
        monkeypatch.setenv(name, value)
    forget()
    root, issuing = CHAINS[request.param]
    yield Party(TokenAuthority(31, root, issuing, keys=soft.keys()), acme().address, 11, KemAlgorithm.ML_KEM_768)
    forget()


def test_openssl_verifies_what_a_token_signed(openssl: Tool, party: Party) -> None:
    """Chain and list, strictly by RFC 5280; who is on the list is refused, and an altered certificate too."""
    trusted = trust(openssl, party)
    serial = x509.parse_certificate(party.identity_der).serial
    openssl.put("crl.der", party.authority.crl_der([serial]))
    said = openssl.run("crl", "-inform", "DER", "-in", "crl.der", "-CAfile", "issuing.pem", "-out", "crl.pem")
    assert "verify OK" in said
    common = ("-x509_strict", "-check_ss_sig", "-untrusted", "issuing.pem", "-no-CApath", "-no-CAstore")
    words = ("verify", *trusted, *common, "-crl_check", "-CRLfile", "crl.pem")
    assert "OK" in openssl.run(*words, openssl.put("leaf.pem", pem(party.encryption_der)))
    with pytest.raises(RefusedError, match="revoked"):
        openssl.run(*words, openssl.put("leaf.pem", pem(party.identity_der)))
    altered = party.encryption_der[:-1] + bytes([party.encryption_der[-1] ^ 1])
    with pytest.raises(RefusedError):
        openssl.run(*words, openssl.put("leaf.pem", pem(altered)))


def test_pyca_verifies_what_a_token_signed(party: Party) -> None:
    """The library's own check of issuer and signature, of certificate and list; and ours, rule by rule."""
    issuing = cx509.load_der_x509_certificate(party.authority.issuing_der)
    key = issuing.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    for der in (party.identity_der, party.encryption_der):
        cx509.load_der_x509_certificate(der).verify_directly_issued_by(issuing)
    revoked = cx509.load_der_x509_crl(party.authority.crl_der([4711]))
    assert revoked.is_signature_valid(key)
    assert revoked.get_revoked_certificate_by_serial_number(4711) is not None
    assert party.verified(now=NOW).identity_key == party.key.public
    assert party.verified(CertificateKind.ENCRYPTION).recipient.public_key == party.recipient.public_key
    assert party.authority.crl([5]).revoked.keys() == {5}
