"""What a hostile tenant or a hurried revocation must not reach: found by review, kept from coming back."""

from __future__ import annotations

import secrets
from datetime import timedelta
from pathlib import Path

import pytest

from pki.core import asn1, revocations
from pki.core.certificates import CertificateState
from pki.core.crl import Reason, parse_reason
from pki.core.deposits import DepositState, decode_context
from pki.core.errors import KeymailboxError, ProfileError, UsageError
from pki.core.x509 import CertificateKind, parse_certificate
from pki.server.services import certificates, mailbox, rotation, validation
from pki.server.services.deposits import Accepted, Incoming, validate
from pki.server.store.engine import Store
from tests.kit.authority import NOW, Party
from tests.kit.mail import ACME, GLOBEX, INITECH, Office, answer, compose


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Three certified instances."""
    return Office(store, database_url, tmp_path)


def lose(office: Office, party: Party) -> None:
    """Revoke an identity whose key is lost."""
    office.clock.go_on(seconds=1)
    wish = revocations.compose_revocation(
        parse_certificate(party.identity_der).fingerprint,
        Reason.KEY_COMPROMISE,
        signer_ski=party.ski,
        sign=party.key.sign,
        signing_time=office.clock.now(),
    )
    certificates.revoke(office.deps, office.caller(party), wish)


def test_a_number_of_any_length_is_a_typed_error() -> None:
    """A version with thousands of digits is refused like any other, and is not told back."""
    context = asn1.DepositContext(
        version=1,
        sender="acme/a",
        recipient="globex/b",
        key_id="k",
        key_version=1 << 40000,
        purpose="",
        expires=asn1.GeneralizedTime(NOW),
    )
    with pytest.raises(ProfileError, match="key version"):
        decode_context(asn1.encode(context))
    with pytest.raises(UsageError):
        parse_reason(1 << 40000)


def test_one_bad_deposit_fails_alone(office: Office) -> None:
    """Whatever reading one item raises, those that came with it are accepted."""
    good = Incoming(compose(GLOBEX, ACME), secrets.token_hex(8))
    bad = Incoming(b"\x30\x03\x02\x01", secrets.token_hex(8))
    answers = office.accept_together((GLOBEX, good), (INITECH, bad))
    assert isinstance(answers[0], Accepted)
    assert isinstance(answers[1], KeymailboxError)


def test_a_sender_revoked_during_validation_gets_nothing_in(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """The revocation that comes between verdict and commit is seen at the commit."""
    (found,) = office.send(GLOBEX, ACME)
    judge = validation._judge

    def late(*arguments: object) -> object:
        verdict = judge(*arguments)  # type: ignore[arg-type]  # passed on as it came
        office.move(GLOBEX, CertificateKind.IDENTITY, CertificateState.REVOKED)
        return verdict

    monkeypatch.setattr(validation, "_judge", late)
    validate(office.deps, [found])
    assert (office.record(found).state, office.record(found).rejected_code) == (
        DepositState.REJECTED,
        "certificate-revoked",
    )


def test_a_lost_identity_takes_its_encryption_keys_along(office: Office) -> None:
    """Nothing new becomes available to an instance whose identity key is lost."""
    (waiting,) = office.send(GLOBEX, ACME)
    lose(office, ACME)
    validate(office.deps, [waiting])
    assert office.record(waiting).state is DepositState.REJECTED


def test_a_collected_deposit_waits_for_its_receipt(office: Office) -> None:
    """The recipient holds the key, so its receipt counts after the deposit's time too."""
    (found,) = office.send_available(GLOBEX, ACME, expires=NOW + timedelta(minutes=5))
    mailbox.collect(office.deps, office.caller(ACME), ACME.address, [found])
    office.clock.go_on(minutes=6)
    rotation.expire(office.deps)
    mailbox.receipt(office.deps, office.caller(ACME), found, answer(ACME, office.record(found)))
    assert office.record(found).state is DepositState.ACKNOWLEDGED


def test_what_was_never_validated_expires_unheard_by_the_recipient(office: Office) -> None:
    """A forged deposit tells the recipient nothing, not even its end."""
    (found,) = office.send(GLOBEX, ACME, expires=NOW + timedelta(minutes=5), key=INITECH.key)
    office.clock.go_on(minutes=6)
    rotation.expire(office.deps)
    (expired,) = [told for told in office.events() if told.subject == found and told.type.endswith("expired")]
    assert expired.audience == (str(GLOBEX.address),)
