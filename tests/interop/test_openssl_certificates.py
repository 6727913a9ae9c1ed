"""Certificates, lists and requests: OpenSSL believes ours under every kind of root, and we believe those it makes."""

from __future__ import annotations

import pytest

from pki.core import x509
from pki.core.kem import KemAlgorithm
from pki.core.signatures import SignatureAlgorithm
from tests.interop.commands import RefusedError, Tool
from tests.interop.holdings import AT, IDENTITIES, TITLE, pem, trust
from tests.kit.authority import Authority, Party, acme

_S = SignatureAlgorithm
AUTHORITIES = {
    "ML-DSA-65": Authority(),
    "ML-DSA-87 over ML-DSA-65": Authority(root_algorithm=_S.ML_DSA_87),
    "ECDSA P-384": Authority(root_algorithm=_S.ECDSA_P384, algorithm=_S.ECDSA_P384),
    "SLH-DSA-SHA2-128s over ML-DSA-65": Authority(root_algorithm=_S.SLH_DSA_SHA2_128S),
    "SLH-DSA-SHAKE-256f over ECDSA P-384": Authority(root_algorithm=_S.SLH_DSA_SHAKE_256F, algorithm=_S.ECDSA_P384),
}


def party(authority: Authority, identity: SignatureAlgorithm = _S.ML_DSA_65) -> Party:
    """Return acme/eu-west with certificates of another CA, and an encryption key that OpenSSL knows."""
    return Party(authority, acme().address, 11, KemAlgorithm.ML_KEM_768, identity=identity)


def verify(openssl: Tool, leaf: bytes, of: Party, *words: str) -> str:
    """Let OpenSSL verify a certificate under the root alone."""
    name = openssl.put("leaf.pem", pem(leaf))
    common = ("-x509_strict", "-check_ss_sig", "-untrusted", "issuing.pem", "-no-CApath", "-no-CAstore")
    return openssl.run("verify", *trust(openssl, of), *common, *words, name)


@pytest.mark.parametrize("name", AUTHORITIES)
def test_openssl_verifies_our_chains(openssl: Tool, name: str) -> None:
    """Root, issuing CA and leaf, strictly by RFC 5280, for an identity and for an encryption key."""
    of = party(AUTHORITIES[name])
    for leaf in (of.identity_der, of.encryption_der):
        assert "OK" in verify(openssl, leaf, of)


@pytest.mark.parametrize("identity", IDENTITIES, ids=TITLE)
def test_openssl_verifies_every_identity(openssl: Tool, identity: SignatureAlgorithm) -> None:
    """A certificate for an identity key of each algorithm."""
    of = party(Authority(), identity)
    assert "OK" in verify(openssl, of.identity_der, of)


def test_openssl_refuses_other_chains(openssl: Tool) -> None:
    """The proof can fail: another root, an altered certificate, one of the past."""
    of, other = party(Authority()), party(Authority(seed=50))
    altered = of.identity_der[:-1] + bytes([of.identity_der[-1] ^ 1])
    for leaf, root in ((of.identity_der, other), (altered, of)):
        with pytest.raises(RefusedError):
            verify(openssl, leaf, root)
    with pytest.raises(RefusedError, match="expired"):
        verify(openssl, of.identity_der, of, "-attime", str(int(AT[1]) + 400 * 86400))


@pytest.mark.parametrize("name", ["ML-DSA-65", "ECDSA P-384"])
def test_openssl_believes_our_list(openssl: Tool, name: str) -> None:
    """OpenSSL verifies the list, lets pass who is not on it, and refuses who is."""
    of = party(AUTHORITIES[name])
    serial = x509.parse_certificate(of.identity_der).serial
    openssl.put("crl.der", of.authority.crl_der([serial]))
    trust(openssl, of)
    said = openssl.run("crl", "-inform", "DER", "-in", "crl.der", "-CAfile", "issuing.pem", "-text", "-out", "crl.pem")
    assert "verify OK" in said
    assert "Key Compromise" in openssl.get("crl.pem").decode()
    words = ("-crl_check", "-CRLfile", "crl.pem")
    assert "OK" in verify(openssl, of.encryption_der, of, *words)
    with pytest.raises(RefusedError, match="revoked"):
        verify(openssl, of.identity_der, of, *words)


def test_openssl_refuses_another_cas_list(openssl: Tool) -> None:
    """The proof can fail: a list of another CA with the same name does not verify."""
    of = party(Authority())
    openssl.put("crl.der", Authority(seed=50).crl_der([1]))
    trust(openssl, of)
    with pytest.raises(RefusedError, match="verify failure"):
        openssl.run("crl", "-inform", "DER", "-in", "crl.der", "-CAfile", "issuing.pem", "-noout")


@pytest.mark.parametrize("identity", IDENTITIES, ids=TITLE)
def test_openssl_verifies_our_requests(openssl: Tool, identity: SignatureAlgorithm) -> None:
    """An identity's PKCS #10 proves possession to OpenSSL, and an altered one does not."""
    request = party(Authority(), identity).identity_request
    words = ("req", "-inform", "DER", "-in", "request.der", "-verify", "-noout")
    openssl.put("request.der", request)
    assert "verify OK" in openssl.run(*words)
    at = request.index(b"acme/eu-west")
    openssl.put("request.der", request[:at] + b"b" + request[at + 1 :])
    with pytest.raises(RefusedError):
        openssl.run(*words)


def test_openssl_sees_that_another_key_signed(openssl: Tool) -> None:
    """RFC 9883: a request for a KEM key is signed by the identity key, so no tool may take it as self-signed."""
    openssl.put("request.der", party(Authority()).encryption_request)
    with pytest.raises(RefusedError):
        openssl.run("req", "-inform", "DER", "-in", "request.der", "-verify", "-noout")
    assert "ML-KEM-768" in openssl.run("req", "-inform", "DER", "-in", "request.der", "-text", "-noout")
