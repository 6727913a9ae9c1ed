"""Contract of certificate requests, certificates and CRLs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pki.core.certificates import CERTIFICATE_MOVES, CertificateRecord, CertificateState, RequestState
from pki.core.errors import ConflictError, IllegalMoveError, NotFoundError, ReplayedError
from pki.core.ids import Fingerprint, RequestId
from pki.core.x509 import CertificateKind
from pki.server.facts import CrlHead, CrlRecord
from pki.server.store import certificates, requests, status
from pki.server.store.engine import Store
from pki.server.store.requests import Abandoned, Settled
from tests.kit.facts import ACME, GLOBEX, NOW, at, certificate, certificate_request
from tests.kit.threads import together


def test_a_request_is_stored_once_and_followed(store: Store) -> None:
    """It comes back as stored; what is learnt later is added and nothing else is lost."""
    first, second = certificate_request(), certificate_request(GLOBEX)
    with store.unit() as unit:
        certificates.insert_request(unit, first)
        certificates.insert_request(unit, second)
        with pytest.raises(ReplayedError):
            certificates.insert_request(unit, first)
        issued = Settled(first.id, RequestState.ISSUED, None, Fingerprint("ab"), b"\x00encrypted")
        requests.settle(unit, [issued, Settled(second.id, RequestState.REJECTED, "why\x00" + 600 * "!")], NOW)
    with store.read() as unit:
        assert certificates.request(unit, first.id) == replace(
            first, state=RequestState.ISSUED, fingerprint=Fingerprint("ab"), challenge=b"\x00encrypted"
        )
        refused = certificates.request(unit, second.id)
        assert refused is not None
        assert refused.reason == "why\ufffd" + 496 * "!"
        found = certificates.requests_by_ids(unit, [second.id, first.id, second.id, RequestId("00")])
        assert [item.id for item in found] == sorted([first.id, second.id])
        assert certificates.request(unit, RequestId("00")) is None
        assert certificates.requests_by_ids(unit, []) == []


def test_what_is_prepared_first_is_what_is_signed(store: Store) -> None:
    """Who holds a request sees what was stored for it; the second of two issuers finds the first's; 159 bits fit."""
    record = certificate_request()
    with store.unit() as unit:
        certificates.insert_request(unit, record)
        assert [(one.serial, one.tbs) for one in requests.held(unit, [record.id, RequestId("00")])] == [(None, None)]

    def prepare(number: int) -> tuple[int | None, bytes | None]:
        with store.unit() as unit:
            [one] = requests.held(unit, [record.id], lock=True)
            if one.serial is None:
                requests.prepare(unit, [(record.id, (1 << 159) - 1 - number, b"tbs %d" % number)])
        with store.read() as unit:
            [one] = requests.held(unit, [record.id])
            return one.serial, one.tbs

    [(serial, tbs)] = set(together(4, prepare))
    assert serial is not None
    assert tbs is not None
    assert serial == (1 << 159) - 1 - int(tbs.split()[1])


def test_a_prepared_request_that_is_rejected_is_abandoned(store: Store) -> None:
    """Its serial is found again, with when it was given up; one that was issued, or never prepared, is not."""
    given_up, good, bare = (certificate_request() for _ in range(3))
    with store.unit() as unit:
        for record in (given_up, good, bare):
            certificates.insert_request(unit, record)
        requests.held(unit, [given_up.id, good.id], lock=True)
        requests.prepare(unit, [(given_up.id, 5, b"tbs"), (good.id, 6, b"other")])
        states = {given_up.id: RequestState.REJECTED, good.id: RequestState.ISSUED, bare.id: RequestState.REJECTED}
        requests.settle(unit, [Settled(request_id, state) for request_id, state in states.items()], at(3))
        assert requests.abandoned(unit) == [Abandoned(5, b"tbs", at(3))]


def test_a_certificate_is_found_every_way(store: Store) -> None:
    """By fingerprint, by key, as the active one, and in the history, newest first."""
    old = certificate(state=CertificateState.RETIRED, ski="cc" * 20)
    new = certificate(issued_at=at(10), ski="cc" * 20)
    identity = certificate(kind=CertificateKind.IDENTITY, issued_at=at(5))
    other = certificate(GLOBEX)
    with store.unit() as unit:
        for record in (old, new, identity, other):
            assert certificates.insert_certificate(unit, record)
            assert not certificates.insert_certificate(unit, record)
    with store.read() as unit:
        assert certificates.certificate(unit, new.fingerprint) == new
        assert certificates.certificate(unit, Fingerprint("00")) is None
        assert certificates.by_ski(unit, "cc" * 20) == [new, old]
        assert certificates.active(unit, ACME, CertificateKind.ENCRYPTION) == new
        assert certificates.active(unit, ACME, CertificateKind.IDENTITY) == identity
        assert certificates.active(unit, GLOBEX, CertificateKind.IDENTITY) is None
        assert certificates.history(unit, ACME) == [new, identity, old]
        assert certificates.history(unit, ACME, CertificateKind.ENCRYPTION) == [new, old]


def test_one_certificate_of_a_kind_is_active_at_an_address(store: Store) -> None:
    """A second active one, and a second certificate with the same serial, are refused."""
    active, waiting = certificate(), certificate(state=CertificateState.UNPROVED)
    with store.unit() as unit:
        certificates.insert_certificate(unit, active)
        certificates.insert_certificate(unit, waiting)
        with pytest.raises(ConflictError):
            certificates.insert_certificate(unit, certificate())
        with pytest.raises(ConflictError):
            certificates.insert_certificate(unit, certificate(GLOBEX, serial=active.serial))
        with pytest.raises(ConflictError):
            certificates.set_certificate_state(unit, waiting.fingerprint, CertificateState.ACTIVE, now=NOW)
        certificates.set_certificate_state(unit, active.fingerprint, CertificateState.RETIRED, now=NOW)
        certificates.set_certificate_state(unit, waiting.fingerprint, CertificateState.ACTIVE, now=NOW)
        found = certificates.active(unit, ACME, CertificateKind.ENCRYPTION)
    assert found == replace(waiting, state=CertificateState.ACTIVE)


def test_activations_at_once_leave_one_active(store: Store) -> None:
    """Two unproved certificates proved at the same moment do not both become active."""
    waiting = [certificate(state=CertificateState.UNPROVED) for _ in range(4)]
    with store.unit() as unit:
        for record in waiting:
            certificates.insert_certificate(unit, record)

    def activate(number: int) -> bool:
        try:
            with store.unit() as unit:
                fingerprint = waiting[number].fingerprint
                certificates.set_certificate_state(unit, fingerprint, CertificateState.ACTIVE, now=NOW)
        except ConflictError:
            return False
        return True

    assert sum(together(4, activate)) == 1
    with store.read() as unit:
        states = [record.state for record in certificates.history(unit, ACME)]
    assert states.count(CertificateState.ACTIVE) == 1


def test_one_of_two_opposite_moves_wins(store: Store) -> None:
    """Revoking and expiring at the same moment: one is done, the other is refused."""
    for _ in range(5):
        record = certificate()
        with store.unit() as unit:
            certificates.insert_certificate(unit, record)

        def move(number: int, record: CertificateRecord = record) -> bool:
            to = [CertificateState.REVOKED, CertificateState.EXPIRED][number]
            try:
                with store.unit() as unit:
                    certificates.set_certificate_state(unit, record.fingerprint, to, now=NOW, reason=1)
            except IllegalMoveError:
                return False
            return True

        assert sorted(together(2, move)) == [False, True]


@pytest.mark.parametrize("start", CertificateState)
def test_certificates_move_along_the_table_only(store: Store, start: CertificateState) -> None:
    """From each state exactly the legal moves work; the others change nothing."""
    for to in CertificateState:
        record = certificate(GLOBEX if start is CertificateState.ACTIVE else ACME, state=start)
        try:
            with store.unit() as unit:
                certificates.insert_certificate(unit, record)
                certificates.set_certificate_state(unit, record.fingerprint, to, now=NOW, reason=1)
                assert to in CERTIFICATE_MOVES[start]
                raise InterruptedError  # not kept: the next one needs the place
        except IllegalMoveError:
            assert to not in CERTIFICATE_MOVES[start]
        except InterruptedError:
            pass
    with pytest.raises(NotFoundError), store.unit() as unit:
        certificates.set_certificate_state(unit, Fingerprint("00"), CertificateState.REVOKED, now=NOW)


def test_revoked_and_expired_certificates_are_found(store: Store) -> None:
    """Revocations come with time and reason, in their order; what is over and not marked is due."""
    first, second = certificate(), certificate(GLOBEX)
    over = certificate(kind=CertificateKind.IDENTITY, not_after=at(100))
    with store.unit() as unit:
        for record in (first, second, over):
            certificates.insert_certificate(unit, record)
        certificates.set_certificate_state(unit, second.fingerprint, CertificateState.REVOKED, now=at(1), reason=4)
        certificates.set_certificate_state(unit, first.fingerprint, CertificateState.REVOKED, now=at(2), reason=1)
        assert certificates.due_expiry(unit, at(99), 10) == []
        assert certificates.due_expiry(unit, at(100), 10) == [over]
        certificates.set_certificate_state(unit, over.fingerprint, CertificateState.EXPIRED, now=at(100))
        assert certificates.due_expiry(unit, at(100), 10) == []
    with store.read() as unit:
        found = [certificates.certificate(unit, one.fingerprint) for one in (second, first)]
    assert found == [
        replace(second, state=CertificateState.REVOKED, revoked_at=at(1), revocation_reason=4),
        replace(first, state=CertificateState.REVOKED, revoked_at=at(2), revocation_reason=1),
    ]


def test_the_latest_crl_is_the_one_with_the_highest_number(store: Store) -> None:
    """A number is used once by each issuing CA."""
    with store.unit() as unit:
        assert status.latest_crl(unit, "aa") is None
        lists = [CrlRecord(number, b"der %d" % number, at(number), at(number + 60), "aa") for number in (1, 3, 2)]
        other = CrlRecord(3, b"other", at(3), at(63), "bb", base=1, delta=b"delta")
        for crl in (*lists, other):
            status.insert_crl(unit, crl)
        with pytest.raises(ConflictError):
            status.insert_crl(unit, lists[0])
        assert status.latest_crl(unit, "aa") == lists[1]
        assert status.latest_crl(unit, "bb") == other
        assert status.newest(unit, "bb") == CrlHead("bb", 3, at(3), at(63), 1)


def test_old_lists_are_forgotten_but_not_the_base(store: Store) -> None:
    """The newest ones and what they build on stay."""
    with store.unit() as unit:
        for number in range(1, 41):
            base = 3 if number > 3 else None
            status.insert_crl(unit, CrlRecord(number, b"der", at(number), at(number + 60), "aa", base, b"delta"))
        kept = [number for number in range(1, 41) if status.crl(unit, "aa", number) is not None]
    assert kept == [3, *range(24, 41)]
