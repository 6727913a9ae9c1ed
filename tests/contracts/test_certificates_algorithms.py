"""An issuing CA of each algorithm serves: certificates are linted, issued, believed by agents, and revoked."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pki.core import crl, x509
from pki.core.authorities import authority_key, ca_key_identifier
from pki.core.crl import Reason
from pki.core.issuers import parse_request
from pki.core.signatures import SignatureAlgorithm
from pki.core.x509 import CertificateKind
from pki.server import bootstrap
from pki.server.adapters.signers.home import install, request_issuing
from pki.server.adapters.signers.root import open_root
from pki.server.services import status
from tests.kit.ceremony import hold_ceremony, settings_with
from tests.kit.desk import Desk
from tests.kit.site import Site
from tests.kit.tokens import forget, soft_token


@pytest.fixture(
    params=[("p-256", False), ("p-384", False), ("ml-dsa-87", False), ("p-384", True), ("rsa-3072", True)],
    ids=lambda one: f"{one[0]}-{'token' if one[1] else 'file'}",
)
def desk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A server whose issuing CA is of another algorithm, in a file or in a token."""
    algorithm, in_token = request.param
    token = soft_token(tmp_path / "hsm") if in_token else None
    if token is not None:
        monkeypatch.setenv("SOFTHSM2_CONF", token.environment["SOFTHSM2_CONF"])
        forget()
    settings = settings_with(tmp_path / "home", token, log_level="error")
    hold_ceremony(settings, algorithm, datetime.now(UTC), in_token=in_token)
    bootstrap.init(settings)
    given = settings.model_dump(exclude={"home", "database_url", "port"}, exclude_unset=True)
    with Site(settings.home, settings.database_url, **given) as site, Desk(site, tmp_path / "tenants") as opened:
        yield opened
    if in_token:
        forget()


def test_a_key_is_handed_over_under_this_authority(desk: Desk) -> None:
    """Two agents enrol, believe each other's certificates, hand a key over; a revoked certificate is on the list."""
    acme, globex = desk.enrol("acme/eu-west"), desk.enrol("globex/main")
    name = acme.create_key("orders")
    acme.send_key(name, [globex.address])
    assert [one.kind for one in globex.receive(wait=20).taken] == ["receipt"]
    assert globex.load_key(name).key == acme.load_key(name).key
    [current, *_] = globex.certificates(CertificateKind.ENCRYPTION)
    globex.revoke(current.fingerprint, Reason.KEY_COMPROMISE)
    later = acme.send_key(acme.create_key("later"), [globex.address])
    assert not later.delivered and [address for address, _ in later.failed] == [globex.address]
    for one in [*acme.certificates(CertificateKind.IDENTITY), *globex.certificates(CertificateKind.ENCRYPTION)]:
        chain = desk.site.deps.chain
        parsed = x509.parse_certificate(one.der)
        assert parsed.signature_algorithm is authority_key(chain.issuing).algorithm
        x509.verify_chain(parsed, issuing_der=chain.issuing, root_der=chain.root, now=datetime.now(UTC))


def test_a_server_rolls_over_to_a_token_while_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those certified by the key in a file and those by the one in the token hand keys over; both have their lists."""
    token = soft_token(tmp_path / "hsm")
    monkeypatch.setenv("SOFTHSM2_CONF", token.environment["SOFTHSM2_CONF"])
    forget()
    settings = settings_with(tmp_path / "home", token, log_level="error")
    bootstrap.init(settings)
    given = settings.model_dump(exclude={"home", "database_url", "port"}, exclude_unset=True)
    with Site(settings.home, settings.database_url, **given) as site, Desk(site, tmp_path / "tenants") as desk:
        acme = desk.enrol("acme/eu-west")
        keys = bootstrap.issuing_keys(settings, in_token=True)
        request, _ = request_issuing(settings.home, keys, SignatureAlgorithm.ECDSA_P384)
        root = open_root(settings.home / "root", settings.passphrase_bytes)
        issued = root.sign_issuing(parse_request(request).verify(), datetime.now(UTC))
        install(settings.home, keys, issued, datetime.now(UTC))
        globex = desk.enrol("globex/main")
        name = acme.create_key("orders")
        acme.send_key(name, [globex.address])
        assert [one.kind for one in globex.receive(wait=20).taken] == ["receipt"]
        back = globex.create_key("answers")
        globex.send_key(back, [acme.address])
        assert [one.kind for one in acme.receive(wait=20).taken] == ["receipt"]
        signed = [
            x509.parse_certificate(agent.certificates(CertificateKind.ENCRYPTION)[0].der).signature_algorithm
            for agent in (acme, globex)
        ]
        assert signed == [SignatureAlgorithm.ML_DSA_65, SignatureAlgorithm.ECDSA_P384]
        # What the former one signed is revoked by it: its list is signed by the key in the file.
        acme.revoke(acme.certificates(CertificateKind.ENCRYPTION)[0].fingerprint, Reason.KEY_COMPROMISE)
        assert not globex.send_key(globex.create_key("later"), [acme.address]).delivered
        status.publish(site.deps, site.keys)
        for issuing in site.deps.chain.all:
            found = status.latest_crl(site.deps, ca_key_identifier(issuing).hex())
            assert found is not None
            listed = crl.verify_crl(found.der, issuing_der=issuing, now=datetime.now(UTC))
            assert len(listed.revoked) == (0 if issuing == issued else 1)
    forget()
