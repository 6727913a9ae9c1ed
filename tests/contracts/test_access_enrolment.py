"""Contract of invitations and enrolment, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pki.core import kem, requests, x509
from pki.core.errors import (
    AccessError,
    AddressTakenError,
    ConflictError,
    EnrolmentError,
    KeymailboxError,
    MalformedError,
    SignatureError,
    StaleError,
    UsageError,
    WrongPartyError,
)
from pki.core.tenants import parse_address
from pki.server.services import access, certificates
from pki.server.store import tenants
from pki.server.store.engine import Store
from tests.kit.office import Kms, Office, open_office
from tests.kit.threads import together

EU_WEST = parse_address("acme/eu-west")


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA."""
    return open_office(store, tmp_path)


def enrolled(office: Office) -> int:
    """Return how many instances there are."""
    with office.deps.store.read() as unit:
        return len(tenants.list_instances(unit))


def test_an_invited_instance_enrols_and_gets_its_identity_certificate(office: Office) -> None:
    """One transaction leaves instance, request, job and events; the worker issues, and the certificate is active."""
    kms = Kms(EU_WEST)
    result = office.enrol(kms)
    assert result.instance.address == EU_WEST
    assert [job.subject for job in office.jobs()] == [result.request_id]
    office.work()
    status = certificates.status(office.deps, kms.caller(office), result.request_id)
    assert status.request.state == "issued"
    assert status.certificate is not None
    assert status.certificate_state == "active"
    assert certificates.lookup(office.deps, EU_WEST).identity == status.certificate
    assert office.told() == [
        "tenant.invited",
        "instance.enrolled",
        "certificate.requested",
        "crl.published",
        "certificate.issued",
        "certificate.activated",
    ]


def test_the_secret_is_not_stored(office: Office) -> None:
    """The store has a hash of it, and so has nobody who reads the store."""
    reference, secret = office.invite("acme")
    with office.deps.store.unit() as unit:
        invitation = tenants.lock_invitation(unit, reference)
    assert invitation is not None
    assert secret.encode() not in invitation.secret_hash
    assert secret not in repr(invitation)
    assert secret not in repr(Kms(EU_WEST).enrolment(reference, secret, now=office.clock.now()))


def test_a_token_that_cannot_be_used_is_refused_alike(office: Office) -> None:
    """Unknown, malformed, wrong, used twice, expired: one error in the same words, and nothing is left of the try."""
    used = office.invite("acme")
    access.enroll(office.deps, Kms(EU_WEST).enrolment(*used, now=office.clock.now()))
    reference, secret = office.invite("acme")
    late = office.invite("acme")
    kms = Kms(parse_address("acme/us-east"))
    refused = [
        ("00" * 8, secret),
        ("\x00", secret),
        ("' OR 1=1 --", secret),
        (reference, secret[:-1]),
        (reference, ""),
        (reference, "\ud800"),
        (reference, used[1]),
        used,
    ]
    errors = [refuse(office, kms, *token) for token in refused]
    office.clock.step(office.deps.settings.invitation_ttl)
    errors.append(refuse(office, kms, *late))
    assert len({(type(error), str(error), error.hint) for error in errors}) == 1
    assert enrolled(office) == 1


def refuse(office: Office, kms: Kms, reference: str, secret: str) -> EnrolmentError:
    """Return the error that an enrolment meets."""
    with pytest.raises(EnrolmentError) as caught:
        access.enroll(office.deps, kms.enrolment(reference, secret, now=office.clock.now()))
    return caught.value


def test_a_token_is_used_once_when_many_try_at_once(office: Office) -> None:
    """Of eight instances that race with one token, one is enrolled."""
    token = office.invite("acme")
    answers: list[object] = []

    def race(number: int) -> None:
        kms = Kms(parse_address(f"acme/n{number}"))
        try:
            answers.append(access.enroll(office.deps, kms.enrolment(*token, now=office.clock.now())))
        except KeymailboxError as error:
            answers.append(error)

    together(8, race)
    assert sum(isinstance(answer, access.EnrolmentResult) for answer in answers) == 1
    assert sum(isinstance(answer, EnrolmentError) for answer in answers) == 7
    assert enrolled(office) == 1


def test_a_taken_address_is_refused_and_the_token_stays_good(office: Office) -> None:
    """A second instance cannot claim it, and may choose another address with the same token."""
    first = Kms(EU_WEST)
    office.enrol(first)
    token = office.invite("acme")
    with pytest.raises(AddressTakenError):
        access.enroll(office.deps, Kms(EU_WEST).enrolment(*token, now=office.clock.now()))
    assert first.caller(office).instance.identity_spki == first.spki
    second = Kms(parse_address("acme/us-east"))
    assert access.enroll(office.deps, second.enrolment(*token, now=office.clock.now())).instance.address.instance == (
        "us-east"
    )


def test_an_invitation_is_for_its_tenant_only(office: Office) -> None:
    """A token of acme enrols nobody into globex."""
    token = office.invite("acme")
    with pytest.raises(WrongPartyError):
        access.enroll(office.deps, Kms(parse_address("globex/main")).enrolment(*token, now=office.clock.now()))
    assert enrolled(office) == 0


def test_an_access_key_belongs_to_one_instance(office: Office) -> None:
    """A second instance with the same access key could act as the first, so there is none."""
    first = Kms(EU_WEST)
    office.enrol(first)
    second = Kms(parse_address("acme/us-east"), access_key=first.access_key)
    with pytest.raises(ConflictError):
        office.enrol(second)


def test_an_instance_is_admitted_without_an_access_key(office: Office) -> None:
    """Other protocols have none at first: the identity is certified, the token used up, and nothing more allowed."""
    kms, now = Kms(EU_WEST), office.clock.now()
    reference, secret = office.invite("acme")
    request = access.identity_request(kms.identity_request(now), EU_WEST, now)
    with office.deps.store.unit() as unit:
        invitation = access.usable(unit, reference, secret, now, tenant=EU_WEST.tenant)
        admitted = access.admit(unit, invitation, request, None, now)
    assert (admitted.access_key, admitted.access_key_id) == (None, None)
    office.work()
    assert certificates.lookup(office.deps, EU_WEST).identity.request_der == request.der
    with pytest.raises(AccessError):
        kms.caller(office)
    assert refuse(office, Kms(parse_address("acme/us-east")), reference, secret)


def test_an_identity_key_belongs_to_one_instance(office: Office) -> None:
    """A deposit's signer is named by the key: two instances with one key could not be told apart."""
    first = Kms(EU_WEST)
    office.settle(first)
    with pytest.raises(ConflictError):
        office.enrol(Kms(parse_address("acme/us-east"), identity=first.identity))


def _kem_request(kms: Kms, office: Office) -> bytes:
    statement = requests.Statement(x509.name_der(kms.address), 1)
    return kms.encryption_request(office, kem.generate(), statement=statement)


def _flipped(der: bytes) -> bytes:
    return der[:-1] + bytes([der[-1] ^ 1])


BAD: list[tuple[str, Callable[[Kms, Office], dict[str, Any]], type[KeymailboxError]]] = [
    ("noise", lambda kms, office: {"identity_request": b"noise"}, MalformedError),
    ("empty", lambda kms, office: {"identity_request": b""}, MalformedError),
    (
        "trailing byte",
        lambda kms, office: {"identity_request": kms.identity_request(office.clock.now()) + b"\0"},
        MalformedError,
    ),
    (
        "altered signature",
        lambda kms, office: {"identity_request": _flipped(kms.identity_request(office.clock.now()))},
        SignatureError,
    ),
    (
        "another address",
        lambda kms, office: {"identity_request": Kms(parse_address("acme/b")).identity_request(office.clock.now())},
        WrongPartyError,
    ),
    ("an encryption key", lambda kms, office: {"identity_request": _kem_request(kms, office)}, UsageError),
    (
        "an old request",
        lambda kms, office: {"identity_request": kms.identity_request(office.clock.now() - timedelta(hours=48))},
        StaleError,
    ),
    (
        "a request from the future",
        lambda kms, office: {"identity_request": kms.identity_request(office.clock.now() + timedelta(minutes=6))},
        StaleError,
    ),
    ("a short access key", lambda kms, office: {"access_key": bytes(31)}, UsageError),
]


def test_a_bad_enrolment_leaves_nothing(office: Office) -> None:
    """Each is refused with an error of its own, and the token can still be used."""
    kms = Kms(EU_WEST)
    enrolment = kms.enrolment(*office.invite("acme"), now=office.clock.now())
    met: dict[str, type[KeymailboxError]] = {}
    for name, change, _ in BAD:
        with pytest.raises(KeymailboxError) as caught:
            access.enroll(office.deps, replace(enrolment, **change(kms, office)))
        met[name] = type(caught.value)
    assert met == {name: expected for name, _, expected in BAD}
    assert enrolled(office) == 0
    assert office.jobs() == []
    access.enroll(office.deps, enrolment)
