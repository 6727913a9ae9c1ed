"""Contract of the file signer: sealed, made once, and whole or not at all."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.x509 import BasicConstraints, load_der_x509_certificate
from pqcrypto.sign import slh_dsa_sha2_128s

from pki.core import crl, x509
from pki.core.authorities import authority_key
from pki.core.certificates import CertificateKind, check_listed
from pki.core.crl import Reason, Revoked
from pki.core.errors import AlgorithmError, SealError, SettingsError
from pki.core.sealing import unseal
from pki.core.signatures import SignatureAlgorithm
from pki.server.adapters.signers.file import FileKeys
from pki.server.adapters.signers.held import HeldKey, hold
from pki.server.adapters.signers.home import create_ca
from pki.server.hierarchy import read_chain
from tests.kit.authority import NOW, acme
from tests.kit.leaves import leaf_tbs
from tests.kit.office import PASSPHRASE
from tests.kit.threads import together


def signer_of(home: Path, passphrase: bytes = PASSPHRASE) -> HeldKey:
    """Return the current issuing CA of a home."""
    return hold(FileKeys(home, passphrase), read_chain(home).issuing)


def test_the_ca_signs_under_its_root(tmp_path: Path) -> None:
    """Root and issuing CA chain, with path lengths 1 and 0; the key signs certificates and lists."""
    chain = create_ca(tmp_path, PASSPHRASE, NOW)
    root, issuing = load_der_x509_certificate(chain.root), load_der_x509_certificate(chain.issuing)
    root.verify_directly_issued_by(root)
    issuing.verify_directly_issued_by(root)
    lengths = [c.extensions.get_extension_for_class(BasicConstraints).value.path_length for c in (root, issuing)]
    assert lengths == [1, 0]
    signer = signer_of(tmp_path)
    assert (signer.certificate_der, read_chain(tmp_path)) == (chain.issuing, chain)
    key = issuing.public_key()
    assert isinstance(key, MLDSA65PublicKey)
    key.verify(signer.sign(b"message"), b"message")
    revoked = Revoked(NOW, Reason.KEY_COMPROMISE)
    assert crl.verify_crl(_list(signer, 3, [(42, revoked)]), issuing_der=chain.issuing, now=NOW).revoked == {
        42: revoked
    }


def test_a_root_of_slh_dsa(tmp_path: Path) -> None:
    """The root signs the issuing CA once, and lies sealed; pqcrypto verifies it, and an exchange stands under it."""
    chain = create_ca(tmp_path, PASSPHRASE, NOW - timedelta(days=1), root=SignatureAlgorithm.SLH_DSA_SHA2_128S)
    root, issuing = load_der_x509_certificate(chain.root), load_der_x509_certificate(chain.issuing)
    key = authority_key(chain.root)
    assert key.algorithm is SignatureAlgorithm.SLH_DSA_SHA2_128S
    for one in (root, issuing):
        slh_dsa_sha2_128s.verify(key.raw, one.tbs_certificate_bytes, one.signature)
    sealed = (tmp_path / "root" / "root.key.sealed").read_bytes()
    secret = unseal(sealed, PASSPHRASE, purpose="keymailbox CA root key, SLH-DSA-SHA2-128s")
    assert secret[32:] == key.raw
    assert secret[:32] not in sealed
    signer = signer_of(tmp_path)
    for number, kind in enumerate(CertificateKind):
        listed, request, key = acme().listed(kind)
        tbs = leaf_tbs(
            serial=number + 7,
            issuer_der=signer.certificate_der,
            address=acme().address,
            spki=x509.parse_certificate(listed).spki,
            not_before=NOW,
            not_after=NOW + timedelta(days=30),
            kind=kind,
        )
        check_listed(
            x509.assemble(tbs, signer.sign(tbs)),
            request,
            address=acme().address,
            kind=kind,
            identity_key=key,
            issuing_der=chain.issuing,
            root_der=chain.root,
            crl=crl.verify_crl(_list(signer, 1, []), issuing_der=chain.issuing, now=NOW),
            now=NOW,
        )


def test_a_root_is_of_a_few_algorithms(tmp_path: Path) -> None:
    """A root that could not last is not made, and nothing is left of the attempt."""
    for algorithm in (SignatureAlgorithm.ED25519, SignatureAlgorithm.ML_DSA_65_ED25519):
        with pytest.raises(AlgorithmError):
            create_ca(tmp_path, PASSPHRASE, NOW, root=algorithm)
    assert list(tmp_path.iterdir()) == []


def test_it_is_made_once(tmp_path: Path) -> None:
    """A second call, even with another passphrase and at the same time, finds the first one's."""
    chains = together(4, lambda number: create_ca(tmp_path, f"secret {number}".encode(), NOW))
    assert len(set(chains)) == 1
    assert create_ca(tmp_path, b"another", NOW + timedelta(days=1)) == chains[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca", "root"]


def test_keys_lie_sealed_for_their_owner_only(tmp_path: Path) -> None:
    """Neither seed nor PKCS #8 of a key is on disk, and no other user of the machine reads the sealed ones."""
    create_ca(tmp_path, PASSPHRASE, NOW)
    private = tmp_path / "ca" / "private"
    (sealed,) = private.iterdir()
    seed = unseal(sealed.read_bytes(), PASSPHRASE, purpose="keymailbox CA issuing key")
    root = tmp_path / "root" / "root.key.sealed"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 7
    for path in files:
        assert seed not in path.read_bytes()
        assert seed.hex().encode() not in path.read_bytes()
    for secret in (sealed, root):
        assert stat.S_IMODE(secret.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert repr(signer_of(tmp_path)) == "HeldKey()"
    assert PASSPHRASE.decode() not in repr(FileKeys(tmp_path, PASSPHRASE))


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    """No CA, an empty or a wrong passphrase, an altered file, the root's key in the issuing key's place."""
    with pytest.raises(SettingsError):
        signer_of(tmp_path)
    with pytest.raises(SettingsError):
        create_ca(tmp_path, b"", NOW)
    assert not (tmp_path / "ca").exists()
    create_ca(tmp_path, PASSPHRASE, NOW)
    with pytest.raises(SealError):
        signer_of(tmp_path, b"wrong")
    (key,) = (tmp_path / "ca" / "private").iterdir()
    sealed = key.read_bytes()
    key.write_bytes((tmp_path / "root" / "root.key.sealed").read_bytes())
    with pytest.raises(SealError):
        signer_of(tmp_path)
    key.write_bytes(sealed.replace(b'"n": 1024', b'"n": 512'))
    with pytest.raises(SealError):
        signer_of(tmp_path)
    other = tmp_path / "other"
    create_ca(other, PASSPHRASE, NOW)
    (theirs,) = (other / "ca" / "private").iterdir()
    key.write_bytes(theirs.read_bytes())
    with pytest.raises(SettingsError):
        signer_of(tmp_path)
    key.unlink()
    with pytest.raises(SettingsError):
        signer_of(tmp_path)
    key.write_bytes(sealed)
    (tmp_path / "ca" / "issuers.pem").write_bytes((other / "ca" / "issuers.pem").read_bytes())
    with pytest.raises(SettingsError):
        signer_of(tmp_path)


def _list(signer: HeldKey, number: int, revoked: list[tuple[int, Revoked]]) -> bytes:
    issuing, until = signer.certificate_der, NOW + timedelta(days=1)
    tbs = crl.crl_tbs(issuing, number=number, this_update=NOW, next_update=until, revoked=revoked)
    return crl.assemble(tbs, signer.sign(tbs), issuing)
