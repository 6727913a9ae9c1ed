"""What is said of a key travels with it and is obeyed, against a real server; and a private key travels as one."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pki.core import deposits, oids
from pki.core.errors import UsageError
from pki.core.keyattributes import KeyAttributes, KeyPurpose, Period
from pki.core.packages import PKCS8, KeyMaterial
from pki.core.x509 import CertificateKind
from pki.tenant.agent import Agent
from tests.kit.desk import Desk
from tests.kit.site import now

pytest_plugins = ["tests.kit.api_fixtures"]
DAY = timedelta(days=1)
PRIVATE_KEY = Ed25519PrivateKey.generate().private_bytes(
    serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)


def smuggled(sender: Agent, to: Agent, material: KeyMaterial) -> str:
    """Deposit a key that a well-behaved sender would not have wrapped, and return its id."""
    peer = sender.peer(to.address)
    assert peer.encryption is not None
    active = next(one for one in sender.certificates(CertificateKind.IDENTITY) if one.state == "active")
    context = deposits.Context(
        sender.address, to.address, sender.create_key("smuggled").key_id, 1, "", now() + timedelta(hours=1)
    )
    package_id = secrets.token_bytes(16)
    body = deposits.compose(
        material,
        context,
        package_id=package_id,
        recipient=peer.encryption.recipient,
        signer_ski=active.ski,
        sign=sender.holder.sign,
        signing_time=now(),
    )
    sender.client.deposit(body, idempotency_key=package_id.hex(), supersedes=None)
    return package_id.hex()


def test_a_private_key_and_all_that_is_said_of_it(acme: Agent, globex: Agent) -> None:
    """As an AsymmetricKeyPackage it goes out, and in the receiver's holder it is what it was in the sender's."""
    at = now().replace(microsecond=0)
    said = KeyAttributes(
        algorithm=oids.ML_KEM_768,
        purpose=KeyPurpose.OPERATIONAL,
        validity=Period(at + DAY, at + 365 * DAY),
        distribution=Period(at - DAY, at + 10 * DAY),
        receivers=(globex.address,),
    )
    name = acme.create_key("signing-2026", PRIVATE_KEY, media_type=PKCS8, attributes=said)
    campaign = acme.send_key(name, [globex.address])
    assert (campaign.failed, [one.state for one in campaign.delivered]) == ([], ["available"])
    sent = acme.sent()[-1]
    assert sent.body is not None
    assert deposits.parse_deposit(sent.body).envelope.content_type == oids.ASYMMETRIC_KEY_PACKAGE
    # Nobody may have it after its distribution period, so the mailbox does not keep it longer.
    assert sent.expires_at == at + 10 * DAY
    assert [(one.kind, one.name) for one in globex.receive().taken] == [("receipt", name)]
    assert globex.load_key(name) == acme.load_key(name) == KeyMaterial(PRIVATE_KEY, PKCS8, said)
    assert [one.kind for one in acme.receipts().settled] == ["receipt"]


def test_what_a_sender_does_not_send(desk: Desk, acme: Agent, globex: Agent) -> None:
    """Neither to somebody who is no receiver, nor outside of the distribution period; the recipient may not either."""
    initech = desk.enrol("initech/lab")
    named = acme.create_key("named", attributes=KeyAttributes(receivers=(globex.address, acme.address)))
    campaign = acme.send_key(named, [initech.address, globex.address])
    assert [(one, error.rule) for one, error in campaign.failed] == [(initech.address, "PKG-011")]
    assert [one.recipient for one in campaign.delivered] == [globex.address]
    globex.receive()
    assert [error.rule for _, error in globex.send_key(named, [initech.address]).failed] == ["PKG-011"]
    at = now().replace(microsecond=0)
    for period in (Period(at + DAY, at + 2 * DAY), Period(at - 2 * DAY, at - DAY)):
        name = acme.create_key("timed", attributes=KeyAttributes(distribution=period))
        campaign = acme.send_key(name, [globex.address])
        assert [(error.rule, error.code) for _, error in campaign.failed] == [("PKG-010", "outside-period")]
    assert globex.receive().taken == []


def test_what_a_recipient_does_not_take(acme: Agent, globex: Agent) -> None:
    """A sender that does not ask itself is refused with a signature, and nothing is stored."""
    at = now().replace(microsecond=0)
    late = smuggled(acme, globex, KeyMaterial(b"k", attributes=KeyAttributes(distribution=Period(None, at - DAY))))
    other = smuggled(acme, globex, KeyMaterial(b"k", attributes=KeyAttributes(receivers=(acme.address,))))
    for deposit in (late, other):
        acme.client.status(deposit, wait=50)
    taken = {one.deposit_id: one.reason.partition(":")[0] for one in globex.receive().taken}
    assert taken == {late: "outside-period", other: "wrong-target"}
    assert list(globex.shared_keys()) == []


def test_a_rotation_keeps_what_still_holds(acme: Agent, globex: Agent) -> None:
    """Algorithm, purpose and the receivers that stay; the periods were the old version's."""
    at = now().replace(microsecond=0)
    lasting = KeyAttributes(purpose=KeyPurpose.OPERATIONAL, receivers=(globex.address,))
    first = acme.create_key("k", attributes=replace(lasting, validity=Period(at, at + DAY)))
    acme.send_key(first, [globex.address])
    second = acme.rotate_key("k").name
    assert acme.load_key(second).attributes == lasting
    third = acme.rotate_key("k", except_=["globex"]).name
    assert acme.load_key(third).attributes == replace(lasting, receivers=(acme.address,))
    given = KeyAttributes(purpose=KeyPurpose.SAMPLE)
    assert acme.load_key(acme.rotate_key("k", attributes=given).name).attributes == given


def test_what_cannot_be_sent_is_not_kept(acme: Agent) -> None:
    """A private key that is none is refused when it is made, not weeks later."""
    with pytest.raises(UsageError, match="PKCS #8"):
        acme.create_key("k", b"-----BEGIN PRIVATE KEY-----", media_type=PKCS8)
    assert list(acme.shared_keys()) == []
