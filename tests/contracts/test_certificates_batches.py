"""Contract of issuing in batches: few statements for many requests, and no request suffers for another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, update

from pki.core import kem, requests, x509
from pki.core.certificates import CertificateState, RequestState
from pki.core.crl import Reason, verify_crl
from pki.core.errors import ConflictError
from pki.core.ids import RequestId
from pki.core.signatures import SignatureAlgorithm as S
from pki.core.tenants import parse_address
from pki.core.x509 import CertificateKind
from pki.server.facts import RequestRecord
from pki.server.services import certificates, issuing, status
from pki.server.store import certificates as certificate_store
from pki.server.store import requests as request_store
from pki.server.store import tables
from pki.server.store.engine import Store
from tests.kit.authority import new_signing_key
from tests.kit.office import Kms, Office, open_office
from tests.kit.threads import together

ENCRYPTION = CertificateKind.ENCRYPTION


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA."""
    return open_office(store, tmp_path)


def settled(office: Office, address: str) -> Kms:
    """Return an instance with an identity certificate."""
    kms = Kms(parse_address(address))
    office.settle(kms)
    return kms


def submit(office: Office, kms: Kms, private: bytes | None = None) -> RequestId:
    """Submit a request for an encryption certificate."""
    der = kms.encryption_request(office, private or kem.generate())
    return certificates.submit_request(office.deps, kms.caller(office), der).id


def statements(office: Office, work: Callable[[], object]) -> Counter[str]:
    """Return how many statements of each kind ``work`` sends to the database."""
    seen: Counter[str] = Counter()

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen[statement.split(" ", 1)[0]] += 1

    engine = office.deps.store._engine
    event.listen(engine, "before_cursor_execute", count)
    try:
        work()
    finally:
        event.remove(engine, "before_cursor_execute", count)
    return seen


def revoked(office: Office) -> dict[int, Reason]:
    """Return the serials on a fresh revocation list."""
    chain = office.deps.chain
    published = status.publish(office.deps, office.keys)
    found = verify_crl(published.der, issuing_der=chain.issuing, now=office.clock.now())
    return {serial: entry.reason for serial, entry in found.revoked.items()}


def test_forty_requests_cost_as_many_statements_as_four(office: Office) -> None:
    """Each way there is one statement for all, so that a batch is worth being one."""
    kms = settled(office, "acme/eu-west")

    def issue(count: int) -> Counter[str]:
        ids = [submit(office, kms) for _ in range(count)]
        return statements(office, lambda: issuing.issue(office.deps, office.keys, ids))

    small, large = issue(4), issue(40)
    assert large == small
    assert sum(large.values()) <= 20


def test_each_of_a_batch_has_its_own_answer(office: Office) -> None:
    """Good and bad ones in one batch: the good ones are issued, each bad one is rejected for its own reason."""
    kms, other = settled(office, "acme/eu-west"), settled(office, "globex/main")
    good = [submit(office, kms), submit(office, other)]
    forged, garbage, foreign = submit(office, kms), submit(office, kms), submit(office, other)
    lie = Kms(kms.address).encryption_request(office, kem.generate(), statement=kms.statement(office))
    with office.deps.store.unit() as unit:
        for request_id, der in ((forged, lie), (garbage, b"\x30\x03nop"), (foreign, b"")):
            unit.connection.execute(update(tables.requests).where(tables.requests.c.id == request_id).values(der=der))
    unknown = RequestId("0" * 64)
    answers = issuing.issue(office.deps, office.keys, [forged, good[0], unknown, garbage, good[1], foreign])
    said = {key: answer.state.value if isinstance(answer, RequestRecord) else "" for key, answer in answers.items()}
    assert said == {
        forged: "rejected",
        good[0]: "issued",
        unknown: "",
        garbage: "rejected",
        good[1]: "issued",
        foreign: "rejected",
    }
    for request_id in (forged, garbage, foreign):
        assert office.told(about=request_id) == ["certificate.requested", "certificate.rejected"]


def test_one_key_for_two_uses_in_one_batch_is_certified_for_the_first(office: Office) -> None:
    """Neither is in the directory yet when both are looked at; still an identity key is nobody's encryption key."""
    kms, other = Kms(parse_address("acme/eu-west"), new_signing_key(S.ECDSA_P256)), settled(office, "globex/main")
    office.enrol(kms)
    with office.deps.store.read() as unit:
        own = [one for one in office.jobs() if one.kind == certificates.ISSUE_JOB]
        assert certificate_store.history(unit, kms.address) == []
    der = requests.encryption_request(
        other.address,
        kms.spki,
        other.statement(office),
        sign=other.identity.sign,
        signing_time=office.clock.now(),
    )
    stolen = certificates.submit_request(office.deps, other.caller(office), der).id
    answers = issuing.issue(office.deps, office.keys, [RequestId(own[0].subject), stolen])
    states = [answer.state for answer in answers.values() if isinstance(answer, RequestRecord)]
    # Who comes first is a matter of ids: the other use is refused, or was never proved and bars nobody.
    assert states[0] is RequestState.ISSUED
    assert len(states) == 2


def test_one_encryption_key_for_two_instances_in_one_batch_bars_nobody(office: Office) -> None:
    """As when they come one after the other: whose it is shows when one of them proves it."""
    kms, other = settled(office, "acme/eu-west"), settled(office, "globex/main")
    private = kem.generate()
    ids = [submit(office, kms, private), submit(office, other, private)]
    answers = issuing.issue(office.deps, office.keys, ids)
    assert {answer.state for answer in answers.values() if isinstance(answer, RequestRecord)} == {RequestState.ISSUED}
    with office.deps.store.read() as unit:
        listed = [certificate_store.history(unit, one.address, ENCRYPTION) for one in (kms, other)]
    assert [[record.state for record in records] for records in listed] == 2 * [[CertificateState.UNPROVED]]


def test_renewals_of_one_identity_in_one_batch_leave_one_active(office: Office) -> None:
    """The later one retires the one before, as if each had come alone."""
    kms = settled(office, "acme/eu-west")
    ids = []
    for _ in range(3):
        office.clock.step(timedelta(seconds=1))
        der = kms.identity_request(office.clock.now())
        ids.append(certificates.submit_request(office.deps, kms.caller(office), der).id)
    issuing.issue(office.deps, office.keys, ids)
    with office.deps.store.read() as unit:
        states = [record.state for record in certificate_store.history(unit, kms.address)]
    assert sorted(states) == [CertificateState.ACTIVE] + 3 * [CertificateState.RETIRED]
    assert office.told().count("certificate.retired") == 3


def test_overlapping_batches_of_two_issuers_issue_each_once(office: Office) -> None:
    """Batches that share requests, at the same time and again: one certificate each, and no deadlock."""
    kms = settled(office, "acme/eu-west")
    ids = [submit(office, kms) for _ in range(12)]
    der = kms.identity_request(office.clock.now() + timedelta(seconds=1))
    ids.append(certificates.submit_request(office.deps, kms.caller(office), der).id)
    # A new identity ends what was asked for under the one before (REQ-006), so it is in those batches that have all.
    batches = [ids, ids[::-1], ids[3:-1], ids[:9]]
    answers = together(4, lambda number: issuing.issue(office.deps, office.keys, batches[number]))
    for request_id in ids:
        given = [answer[request_id] for answer in answers if request_id in answer]
        assert all(isinstance(one, RequestRecord) for one in given), given
        assert {one.state for one in given if isinstance(one, RequestRecord)} == {RequestState.ISSUED}
        assert len({one.fingerprint for one in given if isinstance(one, RequestRecord)}) == 1
        assert office.told(about=request_id).count("certificate.issued") == 1


def test_who_cannot_be_entered_holds_up_nobody(office: Office) -> None:
    """A serial that somebody put into the directory already is that one's error; the others are entered."""
    kms = settled(office, "acme/eu-west")
    ids = [submit(office, kms) for _ in range(3)]
    now = office.clock.now()
    drafts, _ = issuing.prepare(office.deps, office.keys, ids, now)
    with office.deps.store.unit() as unit:
        taken = certificate_store.history(unit, kms.address)[0]
        values = {"serial": certificate_store.serial_text(drafts[1].serial)}
        chosen = tables.certificates.c.fingerprint == taken.fingerprint
        unit.connection.execute(update(tables.certificates).where(chosen).values(values))
    signed, failed = issuing.sign(office.deps, drafts, now)
    answers = issuing.enter(office.deps, signed, now)
    assert not failed
    assert isinstance(answers[drafts[1].id], ConflictError)
    assert [answers[drafts[n].id].state for n in (0, 2)] == 2 * [RequestState.ISSUED]  # type: ignore[union-attr]  # none is an error


def test_a_key_revoked_while_its_certificate_was_signed_gets_none(office: Office) -> None:
    """The signature was made, so its serial is on the revocation list although nobody was given the certificate."""
    kms = settled(office, "acme/eu-west")
    private = kem.generate()
    listed = office.publish(kms, private)
    again, now = submit(office, kms, private), office.clock.now()
    drafts, _ = issuing.prepare(office.deps, office.keys, [again], now)
    signed, _ = issuing.sign(office.deps, drafts, now)
    certificates.revoke(office.deps, kms.caller(office), kms.revocation(office, listed.fingerprint))
    answer = issuing.enter(office.deps, signed, now)[again]
    assert isinstance(answer, RequestRecord)
    assert answer.state is RequestState.REJECTED
    assert certificates.CRL_JOB in [job.kind for job in office.jobs()]
    assert revoked(office) == {
        listed.serial: Reason.KEY_COMPROMISE,
        signed[0].draft.serial: Reason.CESSATION_OF_OPERATION,
    }


def test_what_was_prepared_and_then_rejected_is_revoked_until_it_would_have_expired(office: Office) -> None:
    """Whether it was signed before the crash nobody knows: nothing is signed and forgotten."""
    kms = settled(office, "acme/eu-west")
    request_id = submit(office, kms)
    [draft], _ = issuing.prepare(office.deps, office.keys, [request_id], office.clock.now())
    with office.deps.store.unit() as unit:
        chosen = tables.requests.c.id == request_id
        unit.connection.execute(update(tables.requests).where(chosen).values(der=b"lost"))
    answer = issuing.issue(office.deps, office.keys, [request_id])[request_id]
    assert isinstance(answer, RequestRecord)
    assert answer.state is RequestState.REJECTED
    with office.deps.store.read() as unit:
        [given_up] = request_store.abandoned(unit)
    assert (given_up.serial, given_up.tbs, given_up.at) == (draft.serial, draft.tbs, office.clock.now())
    assert draft.serial in revoked(office)
    office.clock.step(x509.validity(draft.tbs)[1] - office.clock.now())
    assert draft.serial in revoked(office)
    office.clock.step(timedelta(days=2))
    assert draft.serial not in revoked(office)
