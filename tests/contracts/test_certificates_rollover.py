"""Contract of issuing in a roll-over: what was begun under the former issuing CA ends there, and nothing else does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pki.core import kem
from pki.core.certificates import RequestState
from pki.core.errors import SettingsError
from pki.core.ids import RequestId
from pki.core.signatures import SignatureAlgorithm
from pki.core.tenants import parse_address
from pki.server import bootstrap
from pki.server.adapters.signers import home as ca
from pki.server.adapters.signers.file import FileKeys
from pki.server.adapters.signers.held import hold_all
from pki.server.adapters.signers.root import open_root
from pki.server.facts import CaChain, RequestRecord
from pki.server.ports import CaKeys
from pki.server.services import certificates, issuing
from pki.server.store import certificates as certificate_store
from pki.server.store.engine import Store
from tests.kit.office import PASSPHRASE, Kms, Office, open_office
from tests.kit.rollover import issuer_of, pem


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA."""
    return open_office(store, tmp_path)


def roll_over(office: Office) -> tuple[CaChain, CaKeys]:
    """Give the office its next issuing CA; return the chain and what the issuer process holds from then on."""
    home, now = office.deps.settings.home, office.clock.now()
    keys = FileKeys(home, PASSPHRASE)
    _, request = ca.request_issuing(home, keys, SignatureAlgorithm.ECDSA_P256)
    root = open_root(home / ca.ROOT_FOLDER, PASSPHRASE)
    chain = ca.install(home, keys, pem(root.sign_issuing(request, now), root.certificate_der), now)
    return chain, hold_all(keys, chain, now)


def under(office: Office, chain: CaChain, request_id: RequestId, keys: CaKeys) -> str:
    """Have a request issued, and return under which CA."""
    answer = issuing.issue(office.deps, keys, [request_id])[request_id]
    assert isinstance(answer, RequestRecord)
    assert answer.state is RequestState.ISSUED, answer.reason
    assert answer.fingerprint is not None
    with office.deps.store.read() as unit:
        found = certificate_store.certificate(unit, answer.fingerprint)
    assert found is not None
    return issuer_of(chain, found.der)


def test_what_was_prepared_ends_under_the_ca_that_it_names(office: Office) -> None:
    """A crash between store and signature, and a roll-over after it: the very bytes are signed, by the former CA."""
    kms = Kms(parse_address("acme/eu-west"))
    caller = office.settle(kms)
    first, second, third = (
        certificates.submit_request(office.deps, caller, kms.encryption_request(office, kem.generate())).id
        for _ in range(3)
    )
    issuing.prepare(office.deps, office.keys, [first, third], office.clock.now())
    chain, keys = roll_over(office)
    assert under(office, chain, first, keys) == "former"
    # Its identity is the former CA's; that does not keep the new key from the new one.
    assert under(office, chain, second, keys) == "current"
    # Where the former key is gone, what names it is not signed by another.
    answer = issuing.issue(office.deps, CaKeys(keys.current), [third])[third]
    assert not isinstance(answer, RequestRecord) or answer.state is RequestState.REJECTED
    assert issuing.issue(office.deps, keys, [first])[first] == issuing.issue(office.deps, keys, [first])[first]


def test_a_listing_names_both_issuing_cas(office: Office) -> None:
    """Identity under the former, encryption under the current one."""
    kms = Kms(parse_address("acme/eu-west"))
    caller = office.settle(kms)
    chain, keys = roll_over(office)
    private = kem.generate()
    record = certificates.submit_request(office.deps, caller, kms.encryption_request(office, private))
    assert under(office, chain, record.id, keys) == "current"
    certificates.prove(office.deps, caller, record.id, kms.decrypt(office, record.id, private))
    listing = certificates.lookup(office.deps, kms.address)
    assert (listing.issuing, listing.encryption_issuing) == (chain.former[0], chain.issuing)


def test_the_issuer_opens_the_keys_again(office: Office) -> None:
    """At its next claim it issues under the new CA; without the new key it says so, instead of using the old one."""
    settings = office.deps.settings
    (settings.home / "passphrase").write_bytes(PASSPHRASE)
    opened = bootstrap.OpenKeys(replace(office.deps, settings=settings))
    before = opened()
    assert opened() is before
    chain, _ = roll_over(office)
    assert [one.certificate_der for one in opened().all] == list(chain.all)
    chain, _ = roll_over(office)
    newest = max((settings.home / "ca" / "private").glob("*.sealed"), key=lambda path: path.stat().st_mtime_ns)
    newest.unlink()
    with pytest.raises(SettingsError):
        opened()
