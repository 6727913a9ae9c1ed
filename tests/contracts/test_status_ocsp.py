"""Contract of OCSP: what is said of each certificate, made before it is asked for or freshly, and bounded."""

from __future__ import annotations

import base64
import dataclasses
import secrets
import time
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.x509 import ocsp as foreign
from sqlalchemy import update

from pki.core import ocsp as core
from pki.core.authorities import authority_key, ca_key_identifier
from pki.core.certificates import CertificateState
from pki.core.errors import CertificateError, UnavailableError
from pki.core.ocsp import Refusal
from pki.core.tenants import parse_address
from pki.server import metrics
from pki.server.api import ocsp as api_ocsp
from pki.server.ports import CaKeys
from pki.server.services import certificates, doctor, ocsp, rotation, status
from pki.server.services.metrics import Figures, scrape
from pki.server.services.ocsp import Question
from pki.server.store import certificates as certificate_store
from pki.server.store import ocsp as store_ocsp
from pki.server.store import outbox, tables
from pki.server.store import status as store_status
from pki.server.store.engine import Store
from tests.contracts.test_status_lists import ISSUERS, Desk, desk, issuer_of, revoke, settled
from tests.kit.issuers import HeldSigner, at_work
from tests.kit.office import Kms, Office, open_office
from tests.kit.site import Instance, Site
from tests.kit.threads import together
from tests.vectors.cases.status import named, nonce, question
from workers.handlers import Hands

pytest_plugins = ["tests.kit.api_fixtures"]

__all__ = ["desk"]

REQUEST, RESPONSE = "application/ocsp-request", "application/ocsp-response"
Read = foreign.OCSPResponse


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA."""
    return open_office(store, tmp_path)


def request_for(issuing: bytes, *serials: int, said: bytes | None = None, hashed: int = 0) -> bytes:
    """Return a request about certificates of an issuing CA; ``hashed`` is 0 for SHA-1 and 1 for SHA-256."""
    issuer = core.issuer_ids(issuing)[hashed]
    return core.encode_request(core.Request(tuple(core.cert_id(issuer, one) for one in serials), said))


def asked(office: Office, *serials: int, said: bytes | None = b"n" * 32, hashed: int = 0) -> Question:
    """Return a question that the server has read."""
    return ocsp.read(office.deps, request_for(office.deps.chain.issuing, *serials, said=said, hashed=hashed))


def read(der: bytes | None, issuing: bytes) -> Read:
    """Return a response in pyca's words, its signature verified."""
    assert der is not None
    found = foreign.load_der_ocsp_response(der)
    assert found.response_status is foreign.OCSPResponseStatus.SUCCESSFUL
    authority_key(issuing).verify(found.signature, found.tbs_response_bytes)
    return found


def fresh(office: Office, *serials: int, said: bytes | None = b"n" * 32, hashed: int = 0) -> Read:
    """Ask, let the issuer answer, and return what it says."""
    question = asked(office, *serials, said=said, hashed=hashed)
    assert ocsp.ask(office.deps, [question]) == [True]
    assert ocsp.answer_questions(office.deps, office.keys) == 1
    return read(ocsp.answered(office.deps, question), question.issuing)


def prepared(office: Office, serial: int, *, hashed: int = 0) -> Read | None:
    """Return what was made before it was asked for."""
    question = asked(office, serial, said=None, hashed=hashed)
    found, _ = ocsp.prepared(office.deps, question)
    return None if found is None else read(found.der, question.issuing)


def said(found: Read | None) -> str:
    """Return a status in a word."""
    return "nothing" if found is None else found.certificate_status.name.lower()


def refresh_all(office: Office) -> int:
    """Let the issuer make what is due."""
    total = 0
    while made := ocsp.refresh(office.deps, office.keys):
        total += made
    return total


# What is said


@pytest.mark.parametrize("hashed", [0, 1], ids=["sha1", "sha256"])
def test_what_is_said_of_a_certificate(office: Office, hashed: int) -> None:
    """Good while it is listed, or retired; revoked with time and reason; unknown before possession is proved."""
    kms, record = settled(office)
    identity = certificates.lookup(office.deps, kms.address).identity
    assert [said(fresh(office, one.serial, hashed=hashed)) for one in (record, identity)] == ["good", "good"]
    caller = kms.caller(office)
    certificates.submit_request(office.deps, caller, kms.encryption_request(office, secrets.token_bytes(96)))
    office.work()
    with office.deps.store.read() as unit:
        every = certificate_store.history(unit, kms.address)
    (unproved,) = [one for one in every if one.state is CertificateState.UNPROVED]
    assert said(fresh(office, unproved.serial, hashed=hashed)) == "unknown"
    office.publish(kms)
    assert said(fresh(office, record.serial, said=b"retired", hashed=hashed)) == "good"
    office.clock.step(timedelta(minutes=1))
    revoke(office, kms, record)
    for which in (b"by its row", b"by the list"):
        found = fresh(office, record.serial, said=which, hashed=hashed)
        assert said(found) == "revoked"
        assert found.revocation_reason is x509.ReasonFlags.superseded
        assert found.revocation_time_utc == office.clock.now().replace(microsecond=0)
        office.work()
    assert said(fresh(office, 4711, hashed=hashed)) == "unknown"


def test_a_row_that_says_revoked_and_over_proves_nothing(office: Office) -> None:
    """REV-003: whoever edits a certificate's row, its end as well, has no status signed that nobody asked for."""
    _, record = settled(office)
    values = {
        "state": CertificateState.REVOKED.value,
        "revoked_at": office.clock.now(),
        "not_after": office.clock.now() - timedelta(days=1),
    }
    with office.deps.store.unit() as unit:
        unit.connection.execute(
            update(tables.certificates).where(tables.certificates.c.fingerprint == record.fingerprint).values(values)
        )
    assert said(fresh(office, record.serial)) == "good"
    office.clock.step(record.not_after - office.clock.now())
    assert said(fresh(office, record.serial)) == "revoked"


def test_a_serial_that_was_prepared_and_not_signed_is_unknown(office: Office) -> None:
    """It may never come to be, so nothing good is said of it; given up, it is revoked as on the list."""
    kms = Kms(parse_address("acme/eu-west"))
    office.settle(kms)
    record = certificates.submit_request(office.deps, kms.caller(office), kms.identity_request(office.clock.now()))

    class Away(HeldSigner):
        """Nothing can be signed."""

        def sign(self, message: bytes, /) -> bytes:
            """Say so."""
            raise UnavailableError("away")

    away = CaKeys(Away(office.signer.certificate_der, kms.identity))
    certificates.issue(office.deps, away, [record.id])
    with office.deps.store.read() as unit:
        found = unit.connection.exec_driver_sql("SELECT serial FROM requests WHERE state = 'pending'").scalar_one()
    serial = int(found, 16)
    assert said(fresh(office, serial)) == "unknown"
    with office.deps.store.unit() as unit:
        unit.connection.execute(update(tables.requests).where(tables.requests.c.id == record.id).values(der=b"lost"))
    certificates.issue(office.deps, office.keys, [record.id])
    office.work()
    assert said(fresh(office, serial, said=b"given up")) == "revoked"


def test_expired_certificates_stay_answerable(office: Office) -> None:
    """A revoked one stays revoked when it has left the lists; the archive cutoff is where the CA began."""
    kms, record = settled(office)
    identity = certificates.lookup(office.deps, kms.address).identity
    revoke(office, kms, record)
    office.work()
    office.clock.step(timedelta(days=500))
    rotation.expire(office.deps)
    status.publish(office.deps, office.keys)
    began = x509.load_der_x509_certificate(office.deps.chain.issuing).not_valid_before_utc
    for one, expected in ((record, "revoked"), (identity, "good")):
        found = fresh(office, one.serial)
        assert said(found) == expected
        (cutoff,) = found.single_extensions
        assert cutoff.oid == core.ARCHIVE_CUTOFF
        assert began.strftime("%Y%m%d%H%M%SZ").encode() in cutoff.value.value
    # What is made for one who wants no nonce is kept, and not made anew by itself any more.
    assert said(fresh(office, identity.serial, said=None)) == "good"
    assert said(prepared(office, identity.serial)) == "good"
    refresh_all(office)
    with office.deps.store.read() as unit:
        assert store_ocsp.overdue(unit, office.clock.now() + timedelta(days=9)) == (0, None)


def test_a_nonce_comes_back_and_several_are_answered_at_once(office: Office) -> None:
    """One response has an answer for each certificate that was asked about, and the nonce as it was."""
    kms, record = settled(office)
    identity = certificates.lookup(office.deps, kms.address).identity
    question = asked(office, record.serial, identity.serial, 99, said=b"once")
    ocsp.ask(office.deps, [question])
    ocsp.answer_questions(office.deps, office.keys)
    found = read(ocsp.answered(office.deps, question), question.issuing)
    assert found.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == b"once"
    singles = [(one.serial_number, one.certificate_status.name) for one in found.responses]
    assert singles == [(record.serial, "GOOD"), (identity.serial, "GOOD"), (99, "UNKNOWN")]
    assert found.extensions is not None


def test_former_issuing_cas_answer_for_themselves(desk: Desk) -> None:
    """Each issuing CA signs for its own certificates; without its key nobody does, nor for a mixed request."""
    _, old = settled(desk)
    desk.roll_over(0, 1)
    _, new = settled(desk, "globex/main")
    for number, record in ((1, old), (0, new)):
        issuing = issuer_of(number)[1]
        mine = ocsp.read(desk.deps, request_for(issuing, record.serial, said=b"n"))
        ocsp.ask(desk.deps, [mine])
        ocsp.answer_questions(desk.deps, desk.keys)
        assert said(read(ocsp.answered(desk.deps, mine), issuing)) == "good"
        # A serial of the other issuing CA is unknown to this one.
        other = ocsp.read(desk.deps, request_for(issuing, (new if record is old else old).serial, said=b"n"))
        ocsp.ask(desk.deps, [other])
        ocsp.answer_questions(desk.deps, desk.keys)
        assert said(read(ocsp.answered(desk.deps, other), issuing)) == "unknown"
    left = ocsp.read(desk.deps, request_for(issuer_of(1)[1], old.serial, said=b"later"))
    ocsp.ask(desk.deps, [left])
    ocsp.answer_questions(desk.deps, ISSUERS.keys_of(0))
    assert ocsp.answered(desk.deps, left) == core.refuse(Refusal.UNAUTHORIZED)
    ids = [core.cert_id(core.issuer_ids(issuer_of(one)[1])[0], 5) for one in (0, 1)]
    with pytest.raises(CertificateError):
        ocsp.read(desk.deps, core.encode_request(core.Request(tuple(ids))))


# What was made before


def test_responses_are_made_before_anybody_asks(office: Office) -> None:
    """What is listed gets one within a tick; it is made anew at half of its life, and the old one holds meanwhile."""
    _, record = settled(office)
    assert said(prepared(office, record.serial)) == "nothing"
    assert refresh_all(office) == 2
    first = prepared(office, record.serial)
    assert first is not None
    assert said(first) == "good"
    assert first.next_update_utc == first.this_update_utc + office.deps.settings.crl_lifetime
    assert refresh_all(office) == 0
    office.clock.step(office.deps.settings.crl_lifetime / 2)
    held = prepared(office, record.serial)
    assert held is not None
    assert held.this_update_utc == first.this_update_utc
    assert refresh_all(office) == 2
    second = prepared(office, record.serial)
    assert second is not None
    assert second.this_update_utc > first.this_update_utc
    office.clock.step(office.deps.settings.crl_lifetime)
    assert said(prepared(office, record.serial)) == "nothing"


def test_what_was_good_is_not_said_after_a_revocation(office: Office) -> None:
    """From the revocation's commit on the prepared answer is held back; with the list it is replaced."""
    kms, record = settled(office)
    refresh_all(office)
    assert said(prepared(office, record.serial)) == "good"
    _, before = ocsp.prepared(office.deps, asked(office, record.serial, said=None))
    revoke(office, kms, record)
    assert said(prepared(office, record.serial)) == "nothing"
    # Nor does what was answered freshly a moment ago come back: it is another question now.
    _, after = ocsp.prepared(office.deps, asked(office, record.serial, said=None))
    assert before.id != after.id
    office.work()
    assert [job.kind for job in office.jobs()] == ["ocsp-refresh"]
    refresh_all(office)
    assert said(prepared(office, record.serial)) == "revoked"


def test_a_revocation_that_is_taken_back_in_the_table_holds(office: Office) -> None:
    """Whoever edits the row changes nothing: what the CA has listed is revoked."""
    kms, record = settled(office)
    refresh_all(office)
    revoke(office, kms, record)
    office.work()
    with office.deps.store.unit() as unit:
        unit.connection.exec_driver_sql("UPDATE certificates SET state = 'retired' WHERE state = 'revoked'")
    refresh_all(office)
    assert said(prepared(office, record.serial)) == "nothing"
    assert said(fresh(office, record.serial)) == "revoked"
    # Nor does an old list help, put there again as the newest one.
    issuer = ca_key_identifier(office.deps.chain.issuing).hex()
    with office.deps.store.unit() as unit:
        first, last = store_status.crl(unit, issuer, 1), store_status.latest_crl(unit, issuer)
        assert first is not None
        assert last is not None
        store_status.insert_crl(unit, dataclasses.replace(last, number=last.number + 1, der=first.der))
    assert said(fresh(office, record.serial, said=b"again")) == "revoked"


def test_an_answer_to_one_is_kept_for_the_next(office: Office) -> None:
    """Asked without a nonce, by SHA-256: made once, kept, and made anew from then on. Unknown ones are not kept."""
    _, record = settled(office)
    assert said(fresh(office, record.serial, said=None, hashed=1)) == "good"
    assert said(prepared(office, record.serial, hashed=1)) == "good"
    assert said(fresh(office, 4711, said=None)) == "unknown"
    assert said(prepared(office, 4711)) == "nothing"
    assert refresh_all(office) == 2
    office.clock.step(office.deps.settings.crl_lifetime / 2)
    assert refresh_all(office) == 3


def test_a_name_that_is_written_otherwise_is_answered_as_it_is_written(office: Office) -> None:
    """Parameters of the hash that are absent come back absent, so that the response fits; nobody else gets it."""
    _, record = settled(office)
    refresh_all(office)
    usual = core.cert_id(core.issuer_ids(office.deps.chain.issuing)[0], record.serial).der
    bare = usual.replace(b"\x30\x09\x06\x05\x2b\x0e\x03\x02\x1a\x05\x00", b"\x30\x07\x06\x05\x2b\x0e\x03\x02\x1a")
    bare = bytes([0x30, len(bare) - 2]) + bare[2:]
    issuer_id = core.issuer_ids(office.deps.chain.issuing)[0]
    wanted = core.Request((core.CertId(issuer_id, record.serial, bare),))
    question = ocsp.read(office.deps, core.encode_request(wanted))
    assert ocsp.prepared(office.deps, question)[0] is None
    ocsp.ask(office.deps, [question])
    ocsp.answer_questions(office.deps, office.keys)
    answer = ocsp.answered(office.deps, question)
    assert answer is not None
    assert bare in answer
    assert said(read(answer, question.issuing)) == "good"
    assert said(prepared(office, record.serial)) == "good"


def test_many_are_made_in_turns(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some at a time, and a job for the next ones that lets everything else go first."""
    monkeypatch.setattr(ocsp, "REFRESHED", 2)
    for number in range(3):
        office.settle(Kms(parse_address(f"acme/n{number}")))
    office.jobs()
    assert ocsp.refresh(office.deps, office.keys) == 2
    waiting = [job for job in office.jobs() if job.kind == "ocsp-refresh"]
    assert len(waiting) == 1
    assert ocsp.refresh(office.deps, office.keys) == 1
    assert ocsp.refresh(office.deps, office.keys) == 0


def test_two_issuers_at_once_make_the_same(office: Office) -> None:
    """Nothing breaks when two make responses and answer questions at the same time."""
    _, record = settled(office)
    questions = [asked(office, record.serial, said=secrets.token_bytes(16)) for _ in range(8)]
    ocsp.ask(office.deps, questions)
    together(4, lambda _: (ocsp.refresh(office.deps, office.keys), ocsp.answer_questions(office.deps, office.keys)))
    assert said(prepared(office, record.serial)) == "good"
    assert [said(read(ocsp.answered(office.deps, one), one.issuing)) for one in questions] == ["good"] * 8


def test_the_doctor_sees_that_nobody_makes_them(office: Office) -> None:
    """Responses that are overdue are told, and who makes them."""
    settled(office)
    refresh_all(office)

    def found() -> list[bool]:
        return [one.ok for one in doctor.examine(office.deps) if one.check == "ocsp"]

    assert found() == [True]
    office.clock.step(office.deps.settings.crl_lifetime * 3 / 4)
    assert found() == [False]
    refresh_all(office)
    assert found() == [True]


# Bounds


def test_a_flood_of_questions_is_bounded(office: Office) -> None:
    """At most 64 wait, in one job; a thousand within ten seconds; who comes later is told so."""
    _, record = settled(office)
    office.jobs()
    flood = [asked(office, record.serial, said=number.to_bytes(4)) for number in range(300)]
    heard = [ocsp.ask(office.deps, flood[start : start + 50]) for start in range(0, 300, 50)]
    assert [sum(one) for one in heard] == [50, 14, 0, 0, 0, 0]
    assert [job.kind for job in office.jobs()].count("ocsp") == 1
    # The same bytes again are the same question, for which there is room.
    assert ocsp.ask(office.deps, flood[:3]) == [True] * 3
    assert ocsp.answer_questions(office.deps, office.keys) == 64
    total = 64
    while total < ocsp.MOST:
        more = [asked(office, record.serial, said=secrets.token_bytes(8)) for _ in range(64)]
        total += sum(ocsp.ask(office.deps, more))
        ocsp.answer_questions(office.deps, office.keys)
    assert total == ocsp.MOST
    late = [asked(office, record.serial, said=b"late")]
    assert ocsp.ask(office.deps, late) == [False]
    office.clock.step(ocsp.KEPT + timedelta(seconds=1))
    assert ocsp.ask(office.deps, late) == [True]
    with office.deps.store.read() as unit:
        assert unit.connection.exec_driver_sql("SELECT count(*) FROM ocsp_questions").scalar_one() == 1


def test_urgent_work_overtakes(office: Office) -> None:
    """Behind a hundred requests a revocation list comes first, and questions of strangers come last."""
    now = office.clock.now()
    with office.deps.store.unit() as unit:
        outbox.add(unit, "issue", "ocsp", ["ocsp"], now=now - timedelta(hours=1), rank=outbox.IDLE)
        outbox.add(unit, "issue", "certificate", [str(number) for number in range(150)], now=now - timedelta(minutes=1))
        outbox.add(unit, "issue", "crl", ["crl"], now=now, rank=outbox.URGENT)
    claimed = []
    for _ in range(2):
        with office.deps.store.unit() as unit:
            jobs = outbox.claim(unit, "issue", 100, now=now, lease=timedelta(minutes=1))
        claimed.append([job.kind for job in jobs])
    assert [(one[0], one[-1], len(one)) for one in claimed] == [
        ("crl", "certificate", 100),
        ("certificate", "ocsp", 52),
    ]


def test_what_somebody_put_into_the_table_is_not_signed(office: Office) -> None:
    """A question that no API would have stored gets a refusal."""
    settled(office)
    with office.deps.store.unit() as unit:
        planted = [("0" * 64, b"junk"), ("1" * 64, question([named()]))]
        rows = [store_ocsp.OcspQuestion(one, der, office.clock.now()) for one, der in planted]
        store_ocsp.ask(unit, rows, kept=ocsp.KEPT, waiting=10, most=10)
    assert ocsp.answer_questions(office.deps, office.keys) == 2
    with office.deps.store.read() as unit:
        assert {store_ocsp.answered(unit, one) for one, _ in planted} == {core.refuse(Refusal.MALFORMED)}


# Over HTTP


def post(site: Site, der: bytes) -> bytes:
    """Ask by POST; whatever comes is a response in DER."""
    answer = site.http.post("/v1/ocsp", content=der, headers={"Content-Type": REQUEST})
    assert (answer.status_code, answer.headers["content-type"]) == (200, RESPONSE)
    return answer.content


def outcome(der: bytes) -> str:
    """Return the status of a response, or why there is none."""
    found = foreign.load_der_ocsp_response(der)
    if found.response_status is not foreign.OCSPResponseStatus.SUCCESSFUL:
        return found.response_status.name.lower()
    return said(found)


def test_ocsp_over_http(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """By POST and GET, with and without a nonce; what was made before may be cached for ten seconds, nothing else."""
    monkeypatch.setattr(api_ocsp, "WAIT_SECONDS", 30)
    acme = site.instance("acme/eu-west")
    issuing = site.deps.chain.issuing
    serial = x509.load_der_x509_certificate(acme.encryption_certificate).serial_number
    with at_work(Hands(site.deps, ["issue"])):
        with_nonce = request_for(issuing, serial, said=secrets.token_bytes(32))
        assert outcome(post(site, with_nonce)) == "good"
        assert read(post(site, with_nonce), issuing).extensions.get_extension_for_class(x509.OCSPNonce)
        plain = request_for(issuing, serial, hashed=1)
        path = f"/v1/ocsp/{quote(base64.b64encode(plain).decode(), safe='')}"
        first = site.http.get(path)
        assert (outcome(first.content), first.headers["cache-control"]) == ("good", "no-store")
        assert outcome(post(site, request_for(issuing, 5))) == "unknown"
    # The issuer is away: what it has made is there.
    second = site.http.get(path)
    assert second.content == first.content
    assert second.headers["cache-control"] == "max-age=10, public, no-transform, must-revalidate"
    found = read(second.content, issuing)
    form = "%a, %d %b %Y %H:%M:%S GMT"
    assert second.headers["last-modified"] == found.this_update_utc.strftime(form)
    assert second.headers["expires"] == found.next_update_utc.strftime(form) if found.next_update_utc else False
    again = site.http.get(path, headers={"If-None-Match": second.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    unescaped = site.http.get(f"/v1/ocsp/{base64.b64encode(plain).decode()}")
    assert unescaped.content == first.content
    assert post(site, plain) == first.content
    monkeypatch.setattr(api_ocsp, "WAIT_SECONDS", 0.5)
    began = time.monotonic()
    # With a nonce that nobody answers in time: the one without (RFC 9654 §2.1), and for others: later.
    assert post(site, request_for(issuing, serial, said=b"n" * 16, hashed=1)) == first.content
    assert outcome(post(site, request_for(issuing, 5, said=b"n" * 16))) == "try_later"
    assert 1 < time.monotonic() - began < 30
    figures = scrape(metrics.REGISTRY, Figures(site.deps)).decode()
    assert 'keymailbox_ocsp_responses_total{answer="try_later"}' in figures
    assert "keymailbox_crl_age_seconds{" in figures


def test_bad_requests_over_http(site: Site) -> None:
    """Each has the status that RFC 6960 gives it, at once and unsigned; none of them becomes a row."""
    site.instance("acme/eu-west")
    issuing = site.deps.chain.issuing
    for der, expected in (
        (b"", "malformed_request"),
        (b"junk", "malformed_request"),
        (bytes(4097), "malformed_request"),
        (bytes(100_000), "malformed_request"),
        (request_for(issuing, *range(1, 18)), "malformed_request"),
        (request_for(issuing, 1, said=b""), "malformed_request"),
        (request_for(issuing, 1, said=bytes(129)), "malformed_request"),
        (question([named()]), "unauthorized"),
        (question([named()], extensions=[nonce(16)]), "unauthorized"),
    ):
        assert outcome(post(site, der)) == expected
    for path in ("!!!!", "%00", "A" * 6000, "", "MAoG/..//%2e%2e", base64.b64encode(question([named()])).decode()):
        assert outcome(site.http.get(f"/v1/ocsp/{path}").content) in ("malformed_request", "unauthorized")
    wrong = site.http.post("/v1/ocsp", content=request_for(issuing, 1), headers={"Content-Type": "text/plain"})
    assert wrong.status_code == 400
    with site.deps.store.read() as unit:
        assert unit.connection.exec_driver_sql("SELECT count(*) FROM ocsp_questions").scalar_one() == 0


def test_a_flood_over_http_holds_nobody_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While strangers ask for hundreds of fresh answers, a certificate is issued, and the prepared answer comes."""
    monkeypatch.setattr(api_ocsp, "WAIT_SECONDS", 30)
    acme = site.instance("acme/eu-west")
    issuing = site.deps.chain.issuing
    serial = x509.load_der_x509_certificate(acme.encryption_certificate).serial_number
    with at_work(Hands(site.deps, ["issue"])):
        assert outcome(post(site, request_for(issuing, serial))) == "good"

        def stranger(number: int) -> list[str]:
            if number == 0:
                globex = Instance(site, parse_address("globex/main"))
                request = globex.enrol().json()["request_id"]
                return [globex.get(f"/v1/certificate-requests/{request}?wait=20").json()["state"]]
            return [outcome(post(site, request_for(issuing, serial, said=secrets.token_bytes(32)))) for _ in range(20)]

        heard = together(9, stranger)
    assert heard[0] == ["issued"]
    assert {one for each in heard[1:] for one in each} == {"good"}
    with site.deps.store.read() as unit:
        assert unit.connection.exec_driver_sql("SELECT count(*) FROM ocsp_questions").scalar_one() <= ocsp.MOST


def test_a_row_that_says_revoked_is_not_believed(office: Office) -> None:
    """REV-003: nobody is revoked by who edits the row."""
    _, record = settled(office)
    status.publish(office.deps, office.keys)
    with office.deps.store.unit() as unit:
        unit.connection.exec_driver_sql("UPDATE certificates SET state = 'revoked', revoked_at = issued_at")
    assert said(fresh(office, record.serial)) == "good"
