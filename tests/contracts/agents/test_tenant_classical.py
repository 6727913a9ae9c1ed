"""Keys of EC and RSA: their owner publishes one on purpose, and nobody sends to it who has not allowed that."""

from __future__ import annotations

import pytest

from pki.core import deposits as core_deposits
from pki.core.crl import Reason
from pki.core.errors import AlgorithmError
from pki.core.kem import Hkdf, KemAlgorithm
from pki.core.keys import EcAlgorithm, KeyAlgorithm, RsaAlgorithm
from pki.tenant.agent import Agent
from pki.tenant.records.sent import Sent
from tests.kit.desk import Desk

pytest_plugins = ["tests.kit.api_fixtures"]


@pytest.fixture
def globex(desk: Desk) -> Agent:
    """Who receives, with hardware that knows EC and RSA alone."""
    return desk.enrol("globex/main")


def last(agent: Agent) -> Sent:
    """Return the newest deposit."""
    return agent.sent()[-1]


def recipient_of(one: Sent) -> KeyAlgorithm:
    """Return what a deposit is wrapped with."""
    assert one.body is not None
    return core_deposits.parse_deposit(one.body).envelope.recipients[0].algorithm


@pytest.mark.parametrize("algorithm", [*EcAlgorithm, *RsaAlgorithm])
def test_the_way_of_a_key_to_a_classical_recipient(acme: Agent, globex: Agent, algorithm: KeyAlgorithm) -> None:
    """Refused without opt-in, with a hint; with it sent, validated, received and receipted."""
    globex.publish(algorithm)
    name = acme.create_key("k")
    refused = acme.send_key(name, [globex.address])
    assert refused.delivered == []
    ((recipient, error),) = refused.failed
    assert (recipient, type(error)) == (globex.address, AlgorithmError)
    assert "--allow-classical" in error.hint
    assert globex.receive().taken == []
    sent = acme.send_key(name, [globex.address], allow_classical=True)
    assert ([one.state for one in sent.delivered], sent.failed) == (["available"], [])
    assert recipient_of(last(acme)) is algorithm
    assert [one.kind for one in globex.receive().taken] == ["receipt"]
    assert globex.load_key(name) == acme.load_key(name)
    assert [one.kind for one in acme.receipts().settled] == ["receipt"]


def test_the_opt_in_is_for_who_was_named(desk: Desk, acme: Agent, globex: Agent) -> None:
    """What was allowed for one key and recipient holds for its next versions, and for no other."""
    initech = desk.enrol("initech/lab")
    globex.publish(EcAlgorithm.P_256)
    acme.send_key(acme.create_key("k"), [globex.address], allow_classical=True)
    acme.send_key(acme.find_key("k"), [initech.address])
    initech.publish(EcAlgorithm.P_256)
    rotated = acme.rotate_key("k")
    assert [one.recipient for one in rotated.delivered] == [globex.address]
    assert [(recipient, type(error)) for recipient, error in rotated.failed] == [(initech.address, AlgorithmError)]
    other = acme.send_key(acme.create_key("other"), [globex.address])
    assert [type(error) for _, error in other.failed] == [AlgorithmError]


def test_wrapping_again_does_not_fall_to_classical(acme: Agent, globex: Agent) -> None:
    """A recipient that comes back with a classical key gets nothing until the sender allows it."""
    acme.send_key(acme.create_key("k"), [globex.address])
    _revoke(globex)
    globex.publish(EcAlgorithm.P_384)
    result = acme.rewrap_quarantined()
    assert result.delivered == []
    ((_, error),) = result.waiting
    assert isinstance(error, AlgorithmError)
    assert len(acme.sent()) == 1
    globex.publish()
    assert len(acme.rewrap_quarantined().delivered) == 1
    assert recipient_of(last(acme)) is KemAlgorithm.COMPOSITE


def test_wrapping_again_remembers_the_opt_in(desk: Desk, acme: Agent, globex: Agent) -> None:
    """What was sent to a classical key may be wrapped for the next one."""
    globex.publish(EcAlgorithm.P_256)
    acme.send_key(acme.create_key("k"), [globex.address], allow_classical=True)
    _revoke(globex)
    globex.publish(RsaAlgorithm.OAEP_SHA1)
    result = acme.rewrap_quarantined()
    assert (len(result.delivered), result.waiting) == (1, [])
    assert (recipient_of(last(acme)), last(acme).allow_classical) == (RsaAlgorithm.OAEP_SHA1, True)
    desk.settle()
    assert [one.kind for one in globex.receive().taken] == ["receipt"]


def test_a_preferred_key_derivation_is_followed_and_renewed(acme: Agent, globex: Agent) -> None:
    """Senders derive with what the certificate prefers; a renewal keeps algorithm and preference."""
    first = globex.publish(KemAlgorithm.ML_KEM_768, kdf=Hkdf.SHA512)
    acme.send_key(acme.create_key("k"), [globex.address])
    body = last(acme).body
    assert body is not None
    (recipient,) = core_deposits.parse_deposit(body).envelope.recipients
    assert recipient.kdf == Hkdf.SHA512.oid
    assert [one.kind for one in globex.receive().taken] == ["receipt"]
    globex.revoke(first.fingerprint, Reason.SUPERSEDED)
    globex.publish(RsaAlgorithm.OAEP_SHA1)
    assert globex._certificates.suite() == (RsaAlgorithm.OAEP_SHA1, Hkdf.SHA256)
    with pytest.raises(AlgorithmError):
        globex.publish(EcAlgorithm.P_256, kdf=Hkdf.SHA512)


def test_another_algorithm_than_the_one_under_way(globex: Agent) -> None:
    """A request for a classical key that was held back is not taken up by somebody who asks for a better one."""
    held = globex._certificates.encryption_request(EcAlgorithm.P_256)
    assert globex._certificates.encryption_request(EcAlgorithm.P_256).id == held.id
    better = globex._certificates.encryption_request(KemAlgorithm.COMPOSITE)
    assert better.id != held.id
    globex.publish(KemAlgorithm.COMPOSITE)
    assert globex._certificates.suite() == (KemAlgorithm.COMPOSITE, Hkdf.SHA256)


def _revoke(agent: Agent) -> None:
    active = next(one for one in agent.certificates() if one.kind == "encryption")
    agent.revoke(active.fingerprint, Reason.SUPERSEDED)
