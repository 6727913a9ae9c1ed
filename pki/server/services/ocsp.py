"""OCSP: requests are answered by what was made before, or freshly by the issuer, within bounds (docs/adr/0014)."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography.x509 import load_der_x509_certificate

from pki.core import ocsp
from pki.core.authorities import authority_key, ca_key_identifier
from pki.core.certificates import CertificateState
from pki.core.crl import Crl, Revoked, parse_reason
from pki.core.errors import CertificateError, KeymailboxError
from pki.core.ocsp import Answer, CertId, IssuerId, Refusal, Request, Status
from pki.server.facts import OcspQuestion, OcspResponse, Standing
from pki.server.ports import CaKeys, CaSigner
from pki.server.services import evidence, status
from pki.server.services.deps import Deps
from pki.server.services.status import QUEUE, REFRESH_JOB, REVOKED
from pki.server.store import ocsp as store
from pki.server.store import outbox
from pki.server.store.engine import Unit

QUESTIONS_JOB = "ocsp"
"""The kind of job that answers whatever questions there are, and its subject."""

WAITING = 64
"""Questions that wait for the issuer at a time."""
MOST = 1024
"""Questions that are asked within `KEPT`: with the time, the bound on what anybody can make the issuer sign."""
KEPT = timedelta(seconds=10)
"""How long a question and its answer are kept: longer than anybody waits."""
REFRESHED = 200
"""Responses that are made in one go; the job for the next ones lets everything else go first."""

GOOD = "good"
_UNKNOWN_LIFETIME = timedelta(minutes=1)
"""How long `unknown` is believed: the certificate may be proved any moment."""
_SPREAD = 256

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """A request that is well formed and about one issuing CA here, whose certificate is ``issuing``.

    ``state`` is that of the one certificate that it is about, where that was looked at: when that changes, it is
    another question.
    """

    der: bytes
    request: Request
    issuing: bytes
    state: str = ""

    @property
    def id(self) -> str:
        """What the answer is waited for by: the same bytes about the same state are the same question."""
        return hashlib.sha256(self.der + self.state.encode()).hexdigest()


@dataclass(frozen=True)
class Prepared:
    """A response that was made before it was asked for, and until when it is good."""

    der: bytes
    this_update: datetime
    next_update: datetime


def read(deps: Deps, der: bytes) -> Question:
    """Read a request; raises what `pki.core.ocsp.parse_request` does, and CertificateError when it is not for us."""
    request = ocsp.parse_request(der)
    return Question(der, request, ocsp.issuer_of(request, deps.chain.all))


def prepared(deps: Deps, question: Question) -> tuple[Prepared | None, Question]:
    """Return the response that was made for the one certificate that is asked about, if it still holds.

    And the question to ask the issuer if it does not.
    """
    if len(question.request.asked) != 1:
        return None, question
    asked = question.request.asked[0]
    with deps.store.read() as unit:
        standing = store.standings(unit, [asked.serial]).get(asked.serial)
        response = store.response(unit, asked.serial, asked.issuer.digest)
    if standing is None:
        return None, question
    found = None if response is None else _holds(response, standing, question, deps.clock.now())
    return found, replace(question, state=standing.state.value)


def _holds(response: OcspResponse, standing: Standing, question: Question, now: datetime) -> Prepared | None:
    asked = question.request.asked[0]
    if ocsp.cert_id(asked.issuer, asked.serial) != asked:
        # Written in another way, and to be answered in that way.
        return None
    # Good until it is revoked, and not a moment longer.
    called = REVOKED if standing.state is CertificateState.REVOKED else GOOD
    if response.der is None or response.status != called or response.issuer != _name(question.issuing):
        return None
    if response.this_update is None or response.next_update is None or response.next_update <= now:
        return None
    return Prepared(response.der, response.this_update, response.next_update)


def ask(deps: Deps, questions: Sequence[Question]) -> Sequence[bool]:
    """Ask the issuer, as far as there is room; say for each whether an answer is to be waited for.

    News rings ``ocsp:<id>``. One job asks for all: whoever asks in masses makes no mass of jobs.
    """
    now = deps.clock.now()
    wanted = {one.id: OcspQuestion(one.id, one.der, now) for one in questions}
    with deps.store.unit() as unit:
        there = store.ask(unit, list(wanted.values()), kept=KEPT, waiting=WAITING, most=MOST)
        if there and not outbox.waits(unit, QUEUE, QUESTIONS_JOB):
            outbox.add(unit, QUEUE, QUESTIONS_JOB, [QUESTIONS_JOB], now=now, rank=outbox.IDLE)
    return [one.id in there for one in questions]


def answered(deps: Deps, question: Question) -> bytes | None:
    """Return the issuer's answer, None while there is none."""
    with deps.store.read() as unit:
        return store.answered(unit, question.id)


# What the issuer does


def answer_questions(deps: Deps, keys: CaKeys) -> int:
    """Answer what was asked and is still waited for; return how much that was.

    What is said of one certificate at the request of somebody who wants no nonce is kept for the next one.
    """
    now = deps.clock.now()
    with deps.store.read() as unit:
        asked = store.unanswered(unit, now - KEPT, WAITING)
        questions, refused = _read_again(deps, asked)
        wanted = [(one.issuing, each.serial) for _, one in questions for each in one.request.asked]
        facts = _Facts.gather(deps, unit, wanted)
    answers: dict[str, bytes] = dict(refused)
    kept: list[OcspResponse] = []
    for name, question in questions:
        try:
            signer = keys.of(ca_key_identifier(question.issuing))
        except CertificateError:
            # A former issuing CA whose key is gone: nobody may answer in its place.
            answers[name] = ocsp.refuse(Refusal.UNAUTHORIZED)
            continue
        said = [facts.answer(deps, question.issuing, one, now) for one in question.request.asked]
        der = _sign(signer, said, now, question.request.nonce)
        answers[name] = der
        if question.request.nonce is None and len(said) == 1:
            kept += _kept(deps, question.issuing, said[0], der, facts, now)
    with deps.store.unit() as unit:
        store.answer(unit, answers)
        store.keep(unit, kept)
    return len(answers)


def refresh(deps: Deps, keys: CaKeys) -> int:
    """Make the responses that are due, some hundred at a time, and ask for the next ones; return how many were made."""
    now = deps.clock.now()
    signers = {_name(one.certificate_der): one for one in keys.all}
    with deps.store.read() as unit:
        due = store.due(unit, now, REFRESHED)
        wanted = [(signers[one.issuer].certificate_der, one.serial) for one in due if one.issuer in signers]
        facts = _Facts.gather(deps, unit, wanted)
    made: list[OcspResponse] = []
    for one in due:
        signer = signers.get(one.issuer)
        named = None if signer is None else _issuer_id(signer.certificate_der, one.algorithm)
        fresh: list[OcspResponse] = []
        if signer is not None and named is not None:
            said = facts.answer(deps, signer.certificate_der, ocsp.cert_id(named, one.serial), now)
            if said.status is not ocsp.Standing.UNKNOWN:
                der = _sign(signer, [said], now, None)
                fresh = _kept(deps, signer.certificate_der, said, der, facts, now)
        # What cannot be answered for is not due again.
        made += fresh or [_without(one, now)]
    with deps.store.unit() as unit:
        store.keep(unit, made)
        if len(due) == REFRESHED and not outbox.waits(unit, QUEUE, REFRESH_JOB):
            outbox.add(unit, QUEUE, REFRESH_JOB, [REFRESH_JOB], now=now, rank=outbox.IDLE)
    return len(made)


@dataclass(frozen=True)
class _Facts:
    """What is known of some certificates: the directory's rows, and each issuing CA's newest list."""

    standings: Mapping[int, Standing]
    lists: Mapping[bytes, Crl | None]
    proved: Mapping[tuple[bytes, int], Revoked]
    """By issuer's key identifier and serial, what is to come on the next list."""
    over: frozenset[int]
    """Those that rows call revoked, that no list has, and that have expired, as their own bytes say."""

    @classmethod
    def gather(cls, deps: Deps, unit: Unit, wanted: Sequence[tuple[bytes, int]]) -> _Facts:
        """Look up what is known of these serials of these issuing CAs."""
        serials: dict[bytes, list[int]] = defaultdict(list)
        for issuing, serial in wanted:
            serials[issuing].append(serial)
        found = store.standings(unit, [serial for _, serial in wanted])
        lists = {issuing: status.listed(deps, unit, issuing) for issuing in serials}
        now = deps.clock.now()
        known = {serial for one in lists.values() if one is not None for serial in one.revoked}
        called = [
            serial for serial, one in found.items() if one.state is CertificateState.REVOKED and serial not in known
        ]
        over = frozenset(serial for serial, end in evidence.ends(deps, unit, called).items() if end <= now)
        proved: Mapping[tuple[bytes, int], Revoked] = {}
        if not over.issuperset(called):
            entries = evidence.proved(deps, unit, now).entries
            proved = {place: entry.revoked for place, entry in entries.items()}
        return cls(found, lists, proved, over)

    def status(self, issuing: bytes, serial: int, now: datetime) -> Status:
        """Return what is to be said of a certificate.

        What the issuing CA has listed is revoked, whatever the row says; what the row calls revoked is, before it is
        listed, if that is proved (rule REV-003) or the certificate is over. A certificate whose owner has not proved
        possession is as unknown as one that was never issued: so is a serial number that is prepared and not signed.
        """
        listed = self.lists.get(issuing)
        if listed is not None and serial in listed.revoked:
            return listed.revoked[serial]
        found = self.standings.get(serial)
        if found is None or found.issuer != _name(issuing) or found.state is CertificateState.UNPROVED:
            return ocsp.Standing.UNKNOWN
        if found.state is CertificateState.REVOKED:
            to_come = self.proved.get((ca_key_identifier(issuing), serial))
            if to_come is not None:
                return to_come
            if found.revoked_at is not None and serial in self.over:
                return Revoked(found.revoked_at, parse_reason(found.reason))
        return ocsp.Standing.GOOD

    def answer(self, deps: Deps, issuing: bytes, named: CertId, now: datetime) -> Answer:
        """Return the answer for one certificate."""
        said = self.status(issuing, named.serial, now)
        lifetime = _UNKNOWN_LIFETIME if said is ocsp.Standing.UNKNOWN else deps.settings.crl_lifetime
        # We forget nothing: the answers reach back to the beginning of the CA (RFC 6960 §4.4.4).
        cutoff = load_der_x509_certificate(issuing).not_valid_before_utc if self.has_ended(named.serial, now) else None
        return Answer(named, said, now, now + lifetime, cutoff)

    def has_ended(self, serial: int, now: datetime) -> bool:
        """Tell whether a certificate has expired."""
        found = self.standings.get(serial)
        return found is not None and found.not_after <= now


def _read_again(deps: Deps, asked: Sequence[OcspQuestion]) -> tuple[list[tuple[str, Question]], dict[str, bytes]]:
    """Return the questions in some rows, and refusals for what no API has put there."""
    questions, refused = [], {}
    for one in asked:
        try:
            questions.append((one.id, read(deps, one.request)))
        except KeymailboxError:
            refused[one.id] = ocsp.refuse(Refusal.MALFORMED)
    return questions, refused


def _sign(signer: CaSigner, said: Sequence[Answer], now: datetime, nonce: bytes | None) -> bytes:
    issuing = signer.certificate_der
    tbs = ocsp.response_tbs(issuing, said, produced_at=now, nonce=nonce)
    signature = signer.sign(tbs)
    # Nobody is to find out for us that a key's device has failed.
    authority_key(issuing).verify(signature, tbs)
    return ocsp.assemble(tbs, signature, issuing)


def _kept(deps: Deps, issuing: bytes, said: Answer, der: bytes, facts: _Facts, now: datetime) -> list[OcspResponse]:
    """Return an answer as it is kept for whoever asks next; what is unknown is not kept."""
    if said.status is ocsp.Standing.UNKNOWN or said.cert_id != ocsp.cert_id(said.cert_id.issuer, said.cert_id.serial):
        return []
    serial = said.cert_id.serial
    called = REVOKED if isinstance(said.status, Revoked) else GOOD
    if called == REVOKED and serial not in facts.standings:
        # A serial that was given up has no certificate, so nobody asks for it.
        return []
    half = deps.settings.crl_lifetime / 2
    # Half of its life, and less for some, so that those that were made together are not due together.
    again = None if facts.has_ended(serial, now) else now + half - half / 4 * (serial % _SPREAD) / _SPREAD
    return [
        OcspResponse(
            serial, said.cert_id.issuer.digest, _name(issuing), der, called, said.this_update, said.next_update, again
        )
    ]


def _without(one: OcspResponse, now: datetime) -> OcspResponse:
    return OcspResponse(one.serial, one.algorithm, one.issuer, None, None, now, None, None)


def _issuer_id(issuing: bytes, digest: str) -> IssuerId | None:
    return next((one for one in ocsp.issuer_ids(issuing) if one.digest == digest), None)


def _name(issuing: bytes) -> str:
    return ca_key_identifier(issuing).hex()
