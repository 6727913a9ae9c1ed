"""Contract of linting: no certificate is signed that was not looked at, and none that has an error."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from pki.core import asn1, kem, x509
from pki.core.certificates import RequestState
from pki.core.errors import KeymailboxError
from pki.core.ids import RequestId
from pki.core.tenants import parse_address
from pki.server.adapters.linter import PkiLinter
from pki.server.facts import RequestRecord
from pki.server.ports import CaKeys, CaSigner, Finding
from pki.server.services import certificates, issuing
from pki.server.store import requests as request_store
from pki.server.store.engine import Store
from tests.kit.office import Kms, Office, open_office


class Strict(PkiLinter):
    """A linter that has something against some serial numbers, too: every one that is odd."""

    def findings(self, certificate_der: bytes, /) -> Sequence[Finding]:
        """Return the library's findings and ours."""
        own = Finding("ERROR", "house.odd_serial", "certificate.tbsCertificate.serialNumber", "odd", stops=True)
        found = super().findings(certificate_der)
        return [own, *found] if x509.parse_certificate(certificate_der).serial % 2 else found


@dataclass
class Counting:
    """The office's key; remembers what it signed, and can go wrong."""

    signer: CaSigner
    signed: list[bytes] = field(default_factory=list)
    wrong: bytes = b""

    @property
    def certificate_der(self) -> bytes:
        """The issuing CA's certificate."""
        return self.signer.certificate_der

    def sign(self, message: bytes, /) -> bytes:
        """Sign, or sign something else."""
        self.signed.append(message)
        return self.signer.sign(self.wrong or message)


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA."""
    return open_office(store, tmp_path)


def submitted(office: Office, count: int) -> list[RequestId]:
    """Submit requests for encryption certificates of one instance."""
    kms = Kms(parse_address("acme/eu-west"))
    caller = office.settle(kms)
    return [
        certificates.submit_request(office.deps, caller, kms.encryption_request(office, kem.generate())).id
        for _ in range(count)
    ]


def test_what_the_linter_finds_stops_the_signature(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    """The request is rejected by ISS-001 with the finding; nothing was stored to be signed, and nothing was signed."""
    ids = submitted(office, 64)
    linter, signer = Strict(), Counting(office.signer)
    with caplog.at_level(logging.ERROR):
        answers = issuing.issue(replace(office.deps, linter=linter), CaKeys(signer), ids)
    states = {key: answer.state for key, answer in answers.items() if isinstance(answer, RequestRecord)}
    rejected = [key for key, state in states.items() if state is RequestState.REJECTED]
    assert (linter.linted, len(states)) == (64, 64)
    assert len(signer.signed) == 64 - len(rejected)
    assert 0 < len(rejected) < 64
    with office.deps.store.read() as unit:
        assert all(one.serial is None and one.tbs is None for one in request_store.held(unit, rejected))
    for key in rejected:
        answer = answers[key]
        assert isinstance(answer, RequestRecord)
        assert answer.reason is not None
        assert "house.odd_serial" in answer.reason
        assert "[ISS-001]" in answer.reason
        assert office.told(about=key) == ["certificate.requested", "certificate.rejected"]
    assert sum("house.odd_serial" in line for line in caplog.messages) == len(rejected)


def test_each_certificate_is_linted_again_after_a_crash(office: Office) -> None:
    """What another process stored is looked at by this one, as it signs it."""
    ids = submitted(office, 3)
    issuing.prepare(office.deps, office.keys, ids, office.clock.now())
    linter = PkiLinter()
    issuing.issue(replace(office.deps, linter=linter), office.keys, ids)
    assert linter.linted == 3


def test_a_signer_that_signs_something_else_is_found_out(office: Office) -> None:
    """A faulty token's signature goes nowhere: the request waits, and a good signer issues the very same bytes."""
    [request_id] = submitted(office, 1)
    signer = Counting(office.signer)
    signer.wrong = b"something else"
    error = issuing.issue(office.deps, CaKeys(signer), [request_id])[request_id]
    assert isinstance(error, KeymailboxError)
    assert error.rule == "CRT-008"
    signer.wrong = b""
    office.clock.step(timedelta(minutes=7))
    answer = issuing.issue(office.deps, CaKeys(signer), [request_id])[request_id]
    assert isinstance(answer, RequestRecord)
    assert answer.state is RequestState.ISSUED
    assert signer.signed[0] == signer.signed[1]


def test_what_was_signed_is_what_was_stored(office: Office) -> None:
    """Each certificate in the directory holds the bytes that were stored before, under their serial (ISS-002)."""
    ids = submitted(office, 4)
    answers = issuing.issue(office.deps, office.keys, ids)
    with office.deps.store.read() as unit:
        for one in request_store.held(unit, ids):
            answer = answers[one.record.id]
            assert isinstance(answer, RequestRecord)
            assert answer.fingerprint is not None
            found = issuing.store.certificate(unit, answer.fingerprint)
            assert found is not None
            assert asn1.encode(asn1.decode(asn1.Certificate, found.der, what="it").tbs) == one.tbs
            assert found.serial == one.serial
