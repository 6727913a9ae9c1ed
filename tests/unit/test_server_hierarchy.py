"""The CA's certificates in the home, and which of them is a certificate's issuer."""

from __future__ import annotations

from pathlib import Path

import pytest

from pki.core.authorities import ca_key_identifier, issuer_of
from pki.core.errors import CertificateError, SettingsError
from pki.core.x509 import authority_key_identifier, parse_certificate
from pki.server.hierarchy import encode_issuers, read_chain
from pki.server.ports import CA_FOLDER, ISSUERS_FILE, ISSUING_FILE, ROOT_FILE
from tests.kit.authority import Authority, acme, authority


def test_the_issuer_is_the_one_whose_key_is_named() -> None:
    """Of several candidates the authority key identifier's is taken, and none where none fits (rule CRT-007)."""
    other = Authority(seed=70)
    leaf = parse_certificate(acme().identity_der)
    assert authority_key_identifier(leaf.tbs) == leaf.aki == ca_key_identifier(authority().issuing_der)
    assert issuer_of([other.issuing_der, authority().issuing_der], leaf.aki) == authority().issuing_der
    for candidates in ([], [other.issuing_der], [other.issuing_der, authority().root_der]):
        with pytest.raises(CertificateError) as caught:
            issuer_of(candidates, leaf.aki)
        assert caught.value.rule == "CRT-007"
    for broken in (b"", b"\x30\x00", authority().issuing_der[:-1], acme().identity_request):
        with pytest.raises(CertificateError):
            issuer_of([broken], leaf.aki)


def test_a_process_sees_what_has_changed(tmp_path: Path) -> None:
    """One issuing CA as it ever was; then two, the current one first, without a restart."""
    with pytest.raises(SettingsError):
        read_chain(tmp_path)
    folder = tmp_path / CA_FOLDER
    folder.mkdir()
    first, second = authority().issuing_der, Authority(seed=70).issuing_der
    (folder / ROOT_FILE).write_bytes(authority().root_der)
    (folder / ISSUING_FILE).write_bytes(first)
    assert read_chain(tmp_path).all == (first,)
    assert read_chain(tmp_path) is read_chain(tmp_path)
    (folder / ISSUERS_FILE).write_bytes(encode_issuers((second, first)))
    chain = read_chain(tmp_path)
    assert (chain.issuing, chain.former, chain.root) == (second, (first,), authority().root_der)
    (folder / ISSUERS_FILE).write_bytes(b"nothing that is PEM")
    with pytest.raises(SettingsError):
        read_chain(tmp_path)
