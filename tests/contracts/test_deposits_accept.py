"""Deposits are stored at once or refused with a stable code, and a refused one leaves nothing."""

from __future__ import annotations

import secrets
from datetime import timedelta
from pathlib import Path

import pytest

from pki.core.deposits import DepositState
from pki.core.errors import KeymailboxError
from pki.core.events import EventType
from pki.core.tenants import parse_address
from pki.server.services.deposits import Accepted, Incoming, accept
from pki.server.services.mailbox import collect, sent
from pki.server.store.engine import Store
from tests.kit.mail import ACME, GLOBEX, INITECH, Office, codes, compose
from tests.kit.threads import together

ML_DSA_65 = bytes.fromhex("0609608648016503040312")
SLH_DSA = bytes.fromhex("0609608648016503040314")
AES_256_GCM = bytes.fromhex("060960864801650304012e")
AES_128_GCM = bytes.fromhex("0609608648016503040106")
SHA_512 = bytes.fromhex("0609608648016503040203")
SHA_256 = bytes.fromhex("0609608648016503040201")


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Three certified instances."""
    return Office(store, database_url, tmp_path)


def indefinite(der: bytes) -> bytes:
    """Return the same in BER: the outer length left open (X.690 §8.1.3.6)."""
    assert der[:2] == b"\x30\x82"
    return b"\x30\x80" + der[4:] + b"\x00\x00"


def nothing_left(office: Office) -> bool:
    """Return whether the store holds no trace of a deposit."""
    return not office.events() and not office.jobs("validate") and not sent(office.deps, office.caller(GLOBEX))[0]


def test_a_deposit_is_stored_with_its_job_and_event(office: Office) -> None:
    """State, outbox row and event are there after the answer, and the recipient does not hear of it yet."""
    body = compose(GLOBEX, ACME)
    (answer,) = office.accept(GLOBEX, body)
    assert isinstance(answer, Accepted)
    assert (answer.state, answer.repeated) == (DepositState.RECEIVED, False)
    record = office.record(answer.id)
    assert (record.body, record.sender, record.recipient) == (body, GLOBEX.address, ACME.address)
    assert (record.recipient_ski, record.sender_ski) == (ACME.kem_ski.hex(), GLOBEX.ski.hex())
    assert [(job.kind, job.subject) for job in office.jobs("validate")] == [("deposit", answer.id)]
    (event,) = office.events()
    assert (event.type, event.subject) == (EventType.DEPOSIT_RECEIVED, answer.id)
    assert event.audience == (str(GLOBEX.address),)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed"),
        (b"\x30\x80\x00\x00", "malformed"),
        (b"\x04\x84\xff\xff\xff\xff", "malformed"),
        (b"\x30\x82" * 20_000, "malformed"),
        (compose(GLOBEX, ACME)[:-1], "malformed"),
        (compose(GLOBEX, ACME) + b"\x00", "malformed"),
        (indefinite(compose(GLOBEX, ACME)), "malformed"),
        (compose(GLOBEX, ACME).replace(ML_DSA_65, SLH_DSA), "algorithm-not-allowed"),
        (compose(GLOBEX, ACME).replace(AES_256_GCM, AES_128_GCM), "algorithm-not-allowed"),
        (compose(GLOBEX, ACME).replace(SHA_512, SHA_256), "algorithm-not-allowed"),
        (compose(GLOBEX, ACME) + bytes(1024 * 1024), "too-large"),
        (compose(INITECH, ACME), "wrong-party"),
        (compose(GLOBEX, ACME, recipient=parse_address("hooli/main")), "unknown-recipient"),
    ],
    ids=[
        "empty",
        "indefinite-empty",
        "huge-length",
        "nested",
        "truncated",
        "trailing",
        "ber",
        "signature-algorithm",
        "cipher",
        "digest",
        "oversized",
        "somebody-elses",
        "unknown-recipient",
    ],
)
def test_bad_bytes_are_refused_and_leave_nothing(office: Office, body: bytes, code: str) -> None:
    """What the bytes alone show to be wrong has its stable code and no row, job or event."""
    assert codes(office.accept(GLOBEX, body)) == [code]
    assert nothing_left(office)


def test_the_size_limit_is_the_settings(store: Store, database_url: str, tmp_path: Path) -> None:
    """A smaller limit refuses what the default takes."""
    office = Office(store, database_url, tmp_path, max_deposit_bytes=16 * 1024)
    from tests.kit.authority import KeyMaterial

    big = compose(GLOBEX, ACME, material=KeyMaterial(bytes(20_000), "application/x-test"))
    assert codes(office.accept(GLOBEX, big, compose(GLOBEX, ACME))) == ["too-large", "ok"]


def test_the_same_request_has_the_same_answer(office: Office) -> None:
    """An idempotency key with the same body names the first deposit, with its state of now, and adds nothing."""
    caller, item = office.caller(GLOBEX), Incoming(compose(GLOBEX, ACME), "a-key")
    (first,) = accept(office.deps, caller, [item])
    office.clock.go_on(hours=1)
    again = accept(office.deps, caller, [item, item])
    assert isinstance(first, Accepted)
    assert again == [Accepted(first.id, DepositState.RECEIVED, repeated=True)] * 2
    assert len(office.events()) == len(office.jobs("validate")) == 1


def test_an_idempotency_key_with_another_body_is_refused(office: Office) -> None:
    """Neither another deposit nor the same one in another's place passes under a key that was used."""
    caller, body = office.caller(GLOBEX), compose(GLOBEX, ACME)
    items = [Incoming(body, "a-key"), Incoming(compose(GLOBEX, ACME), "a-key")]
    assert codes(accept(office.deps, caller, items)) == ["ok", "idempotency-key-reused"]
    more = [Incoming(compose(GLOBEX, ACME), "a-key"), Incoming(body, "a-key", "ab" * 16)]
    assert codes(accept(office.deps, caller, more)) == ["idempotency-key-reused"] * 2
    assert len(office.events()) == 1


def test_idempotency_keys_are_the_senders_own(office: Office) -> None:
    """Two senders may use the same key."""
    items = [(GLOBEX, Incoming(compose(GLOBEX, ACME), "1")), (INITECH, Incoming(compose(INITECH, ACME), "1"))]
    assert codes(office.accept_together(*items)) == ["ok", "ok"]


@pytest.mark.parametrize("key", ["", "a" * 256, "with space", "größe", "line\n"])
def test_an_idempotency_key_has_a_form(office: Office, key: str) -> None:
    """What could not stand in a header is refused."""
    answers = accept(office.deps, office.caller(GLOBEX), [Incoming(compose(GLOBEX, ACME), key)])
    assert codes(answers) == ["bad-request"]
    assert nothing_left(office)


def test_a_replayed_deposit_is_refused(office: Office) -> None:
    """The same bytes under another key, and another sender's deposit with the same id, are replays."""
    package_id = secrets.token_bytes(16)
    body = compose(GLOBEX, ACME, package_id=package_id)
    assert codes(office.accept(GLOBEX, body)) == ["ok"]
    assert codes(office.accept(GLOBEX, body)) == ["replayed"]
    assert codes(office.accept(INITECH, compose(INITECH, ACME, package_id=package_id))) == ["replayed"]
    assert len(office.events()) == 1


def test_each_of_a_batch_has_its_own_answer(office: Office) -> None:
    """Bad ones do not keep good ones from being stored, and the answers keep the order."""
    good, twin = compose(GLOBEX, ACME), compose(GLOBEX, ACME)
    answers = office.accept(GLOBEX, good, b"no", twin, twin, compose(GLOBEX, ACME, recipient=parse_address("a/b")))
    assert codes(answers) == ["ok", "malformed", "ok", "replayed", "unknown-recipient"]
    assert len(office.events()) == len(office.jobs("validate")) == 2


def test_requests_at_once_with_one_key_make_one_deposit(office: Office) -> None:
    """Eight clients that repeat a request at the same time get the same answer."""
    item = Incoming(compose(GLOBEX, ACME), "a-key")
    answers = together(8, lambda _: accept(office.deps, office.caller(GLOBEX), [item])[0])
    assert {found.id for found in answers if isinstance(found, Accepted)} == {office.events()[0].subject}
    assert sorted(isinstance(found, Accepted) and found.repeated for found in answers) == [False] + [True] * 7
    assert len(office.jobs("validate")) == 1


def test_the_same_deposit_at_once_is_stored_once(office: Office) -> None:
    """Of eight batches that hold the same deposit one wins, and the rest of each batch is stored."""
    shared = compose(GLOBEX, ACME)
    batches = [[compose(GLOBEX, ACME), shared] for _ in range(8)]
    answers = together(8, lambda number: office.accept(GLOBEX, *batches[number]))
    assert [codes(found)[0] for found in answers] == ["ok"] * 8
    assert sorted(codes(found)[1] for found in answers) == ["ok"] + ["replayed"] * 7
    assert len(office.jobs("validate")) == 9


def test_what_may_be_superseded(office: Office) -> None:
    """Only an own deposit for the same recipient and key, that nobody has collected, has its place taken."""
    (mine,) = office.send_available(GLOBEX, ACME)
    (theirs,) = office.send_available(INITECH, ACME)
    (other,) = office.send_available(GLOBEX, INITECH)

    def code(supersedes: str) -> str:
        (answer,) = accept(
            office.deps, office.caller(GLOBEX), [Incoming(compose(GLOBEX, ACME), secrets.token_hex(8), supersedes)]
        )
        return answer.code if isinstance(answer, KeymailboxError) else "ok"

    assert code("ab" * 16) == code(theirs) == code("no id") == "not-found"
    assert code(other) == "conflict"
    assert code(mine) == "ok"
    # Until the successor is validated, the old one stands.
    assert office.record(mine).superseded_by is None
    collect(office.deps, office.caller(ACME), ACME.address, [mine])
    assert code(mine) == "illegal-state"


def test_an_expired_deposit_is_stored_and_left_to_validation(office: Office) -> None:
    """Time is judged in one place."""
    body = compose(GLOBEX, ACME, expires=office.clock.now() - timedelta(minutes=1))
    assert codes(office.accept(GLOBEX, body)) == ["ok"]
