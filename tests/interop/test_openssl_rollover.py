"""Two issuing CAs side by side: OpenSSL follows both chains from the files of a home, and makes requests itself."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pki.core import crl, issuers, x509
from pki.core.authorities import authority_key, issuer_of
from pki.core.signatures import SignatureAlgorithm
from pki.core.x509 import CertificateKind
from pki.server.adapters.signers import home as ca
from pki.server.adapters.signers.file import FileKeys
from pki.server.adapters.signers.held import hold_all
from pki.server.adapters.signers.root import create_root, open_root
from pki.server.facts import CaChain
from pki.server.hierarchy import read_chain
from pki.server.ports import CaKeys
from tests.interop.commands import RefusedError, Tool
from tests.interop.holdings import pem
from tests.kit.authority import acme
from tests.kit.leaves import leaf_tbs
from tests.kit.rollover import pem as bundle

_S = SignatureAlgorithm
PASSPHRASE = b"correct horse"
DAY = timedelta(days=1)
STRICT = ("-x509_strict", "-check_ss_sig", "-no-CApath", "-no-CAstore")


@dataclass(frozen=True)
class Rolled:
    """A home after a roll-over, a leaf under each issuing CA, and one of its requests."""

    home: Path
    chain: CaChain
    keys: CaKeys
    leaves: tuple[bytes, bytes]
    request: bytes


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> Rolled:
    """SLH-DSA above, ML-DSA-65 below, and after the roll-over ECDSA P-384; made by the ceremony's own code."""
    room, now = tmp_path_factory.mktemp("rolled"), datetime.now(UTC)
    home, keys = room / "home", FileKeys(room / "home", PASSPHRASE)
    create_root(room / "root", PASSPHRASE, now, _S.SLH_DSA_SHA2_128S)
    root = open_root(room / "root", PASSPHRASE)
    leaves = []
    for algorithm in (_S.ML_DSA_65, _S.ECDSA_P384):
        der, request = ca.request_issuing(home, keys, algorithm)
        content = bundle(root.sign_issuing(request, now), root.certificate_der)
        ca.install(home, keys, content, now, root_fingerprint=ca._fingerprint(root.certificate_der))
        leaves.append(_leaf(hold_all(keys, read_chain(home), now), now))
    chain = read_chain(home)
    return Rolled(home, chain, hold_all(keys, chain, now), (leaves[0], leaves[1]), der)


def _leaf(keys: CaKeys, now: datetime) -> bytes:
    tbs = leaf_tbs(
        serial=secrets.randbits(150),
        issuer_der=keys.current.certificate_der,
        address=acme().address,
        spki=acme().spki,
        not_before=now - timedelta(minutes=5),
        not_after=now + 30 * DAY,
        kind=CertificateKind.IDENTITY,
    )
    return x509.assemble(tbs, keys.current.sign(tbs))


def _verify(openssl: Tool, rolled: Rolled, leaf: bytes, *words: str, untrusted: bytes | None = None) -> str:
    openssl.put("leaf.pem", pem(leaf))
    openssl.put("root.pem", pem((rolled.home / "ca" / "root.der").read_bytes()))
    openssl.put("issuers.pem", untrusted or (rolled.home / "ca" / "issuers.pem").read_bytes())
    return openssl.run("verify", *STRICT, "-CAfile", "root.pem", "-untrusted", "issuers.pem", *words, "leaf.pem")


def test_both_chains_verify(openssl: Tool, rolled: Rolled) -> None:
    """A certificate of before the roll-over and one of after it, each with its own issuing CA out of one file."""
    issuing = [issuer_of(rolled.chain.all, x509.parse_certificate(leaf).aki) for leaf in rolled.leaves]
    assert issuing == [*rolled.chain.former, rolled.chain.issuing]
    for leaf in rolled.leaves:
        assert "OK" in _verify(openssl, rolled, leaf)


def test_a_chain_needs_its_own_issuing_ca(openssl: Tool, rolled: Rolled) -> None:
    """The proof can fail: with the other issuing CA alone neither verifies."""
    old, new = rolled.leaves
    for leaf, other in ((old, rolled.chain.issuing), (new, rolled.chain.former[0])):
        with pytest.raises(RefusedError, match="unable to get local issuer"):
            _verify(openssl, rolled, leaf, untrusted=pem(other))


def test_each_has_its_own_list(openssl: Tool, rolled: Rolled) -> None:
    """A certificate is revoked by its own issuing CA's list; the other one's does not count for it."""
    now = datetime.now(UTC)
    lists = {}
    for signer, leaf in zip(rolled.keys.all, reversed(rolled.leaves), strict=True):
        for title, serials in (("good", [1]), ("bad", [x509.parse_certificate(leaf).serial])):
            revoked = [(serial, crl.Revoked(now, crl.Reason.KEY_COMPROMISE)) for serial in serials]
            issuing = signer.certificate_der
            tbs = crl.crl_tbs(issuing, number=1, this_update=now, next_update=now + DAY, revoked=revoked)
            lists[issuing, title] = pem(crl.assemble(tbs, signer.sign(tbs), issuing), "X509 CRL")
    for leaf in rolled.leaves:
        own = issuer_of(rolled.chain.all, x509.parse_certificate(leaf).aki)
        [other] = [one for one in rolled.chain.all if one != own]
        check = ("-crl_check", "-CRLfile", "lists.pem")
        openssl.put("lists.pem", lists[own, "good"] + lists[other, "bad"])
        assert "OK" in _verify(openssl, rolled, leaf, *check)
        openssl.put("lists.pem", lists[own, "bad"] + lists[other, "good"])
        with pytest.raises(RefusedError, match="revoked"):
            _verify(openssl, rolled, leaf, *check)
        openssl.put("lists.pem", lists[other, "good"])
        with pytest.raises(RefusedError, match="CRL"):
            _verify(openssl, rolled, leaf, *check)


def test_openssl_reads_a_request_for_an_issuing_ca(openssl: Tool, rolled: Rolled) -> None:
    """It sees name and key, and that the key signed it."""
    openssl.put("request.der", rolled.request)
    said = openssl.run("req", "-inform", "DER", "-in", "request.der", "-verify", "-subject", "-noout")
    assert "verify OK" in said
    assert "CN=keymailbox issuing" in said.replace(" = ", "=")


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (("ML-DSA-87",), _S.ML_DSA_87),
        (("EC", "-pkeyopt", "ec_paramgen_curve:P-384"), _S.ECDSA_P384),
        (("RSA", "-pkeyopt", "rsa_keygen_bits:3072"), _S.RSA),
    ],
    ids=["ML-DSA-87", "P-384", "RSA"],
)
def test_a_request_that_openssl_made(
    openssl: Tool, tmp_path: Path, key: tuple[str, ...], algorithm: SignatureAlgorithm
) -> None:
    """An HSM's own tools may write the request: name and key are all that counts, and OpenSSL believes the result."""
    openssl.run("genpkey", "-algorithm", *key, "-out", "issuing.key")
    digest = () if algorithm is _S.ML_DSA_87 else ("-sha384",)
    openssl.run(
        *("req", "-new", *digest, "-key", "issuing.key", "-subj", "/CN=Our token's issuing CA"),
        *("-outform", "DER", "-out", "request.der"),
    )
    request = issuers.parse_request(openssl.get("request.der")).verify()
    assert (request.name, request.key.algorithm) == ("Our token's issuing CA", algorithm)
    now = datetime.now(UTC)
    create_root(tmp_path / "root", PASSPHRASE, now, _S.ECDSA_P384)
    root = open_root(tmp_path / "root", PASSPHRASE)
    issuing = root.sign_issuing(request, now)
    assert authority_key(issuing) == request.key
    openssl.put("root.pem", pem(root.certificate_der))
    openssl.put("leaf.pem", pem(issuing))
    assert "OK" in openssl.run("verify", *STRICT, "-CAfile", "root.pem", "leaf.pem")
