"""Who proved that a certificate is revoked: what the issuer asks before it says so in a list or an answer.

The state of a certificate's row is not asked: whoever can edit the database could revoke, or take a revocation back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache, partial
from itertools import islice

from pki.core import asn1, crl, requests, revocations, x509
from pki.core.authorities import ca_key_identifier
from pki.core.certificates import CertificateState, check_stored
from pki.core.crl import Crl, Reason, Revoked
from pki.core.errors import CertificateError, KeymailboxError, ProfileError, WrongPartyError
from pki.core.events import EventType
from pki.core.ids import Fingerprint
from pki.core.x509 import CertificateKind, ParsedCertificate
from pki.server.facts import CaChain, RevocationRecord
from pki.server.services import events
from pki.server.services.deps import Deps
from pki.server.services.warrants import DAY, Cap, Warrants
from pki.server.store import certificates as certificate_store
from pki.server.store import events as event_store
from pki.server.store import requests as request_store
from pki.server.store import revocations as store
from pki.server.store import status as status_store
from pki.server.store.engine import Unit

OWNER, ORDER, LEGACY = "owner", "order", "legacy"
"""Kinds of evidence."""

MOST_GIVEN_UP = 50
"""How many serials of rejected requests come on lists within 24 hours: an outage of the key leaves a few."""

_log = logging.getLogger(__name__)

_GIVEN_UP = Reason.CESSATION_OF_OPERATION
_LISTS = 5
_TICK = "evidence.doubt"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER_STALE = datetime.min.replace(tzinfo=UTC)


class Doubt(StrEnum):
    """What does not fit together."""

    UNPROVED = "unproved"
    """A certificate is called revoked, and nothing proves it: it is not listed."""
    BROKEN = "broken"
    """There is evidence that proves nothing: the certificate is not listed because of it."""
    MISSING = "missing"
    """A certificate stands on the last list, and its evidence is gone: it stays listed."""
    TAKEN_BACK = "taken-back"
    """A certificate that is proved to be revoked is called something else: it is listed."""
    LIST = "list"
    """A stored revocation list is not one that the CA signed."""


@dataclass(frozen=True)
class Entry:
    """One certificate to be listed: ``issuer`` is its authority key identifier."""

    serial: int
    issuer: bytes
    revoked: Revoked
    fingerprint: Fingerprint | None


@dataclass(frozen=True)
class Suspicion:
    """What an operator has to look at; ``on`` is a certificate's fingerprint, or the number of a list."""

    doubt: Doubt
    on: str
    detail: str
    error: KeymailboxError | None = None


@dataclass(frozen=True)
class Proof:
    """Who is revoked, by issuer and serial, and what was found to be wrong."""

    entries: dict[tuple[bytes, int], Entry] = field(default_factory=dict)
    suspicions: list[Suspicion] = field(default_factory=list)
    cap: Cap | None = None
    """How many certificates the officers' orders may revoke, where that was ``counted``."""

    @property
    def room(self) -> int:
        """How many more they may revoke now; 0 where that was not counted."""
        return 0 if self.cap is None else self.cap.room

    def of(self, issuer: bytes) -> list[tuple[int, Revoked]]:
        """Return the entries for one issuing CA's list, first revoked first; ``issuer`` is its key identifier."""
        found = [entry for entry in self.entries.values() if entry.issuer == issuer]
        return [(one.serial, one.revoked) for one in sorted(found, key=lambda one: (one.revoked.at, one.serial))]


@dataclass(frozen=True)
class _Fact:
    """What a certificate of this CA says; it follows from the fingerprint."""

    serial: int
    issuer: bytes
    not_after: datetime


def proved(deps: Deps, unit: Unit, now: datetime, *, again: bool = False, counted: bool = False) -> Proof:
    """Return who is proved to be revoked, and what is suspicious.

    What stands on the newest list that the CA has signed stays on it until its certificate has been expired for a
    list's lifetime (RFC 5280 §3.3): it was proved when it came there, and is proved ``again`` for a doctor only.
    Everything else is listed when its evidence is good now.
    """
    suspicions: list[Suspicion] = []
    carried = _carried(deps, unit, suspicions)
    # The lists alone are counted: no row can be changed for more to come.
    ceased = sum(one.at > now - DAY and one.reason is _GIVEN_UP for one in carried.values())
    room_for_given_up = MOST_GIVEN_UP - ceased
    states = store.states(unit)
    witnessed = set(store.fingerprints(unit))
    known = [*witnessed, *states, *certificate_store.of_serials(unit, [serial for _, serial in carried])]
    facts = _facts(deps.chain, unit, known)
    over = now - deps.settings.crl_lifetime
    open_to_doubt = [
        one
        for one in witnessed
        if one in facts and facts[one].not_after > over and (again or _place(facts[one]) not in carried)
    ]
    chain = deps.chain
    rows = store.many(unit, open_to_doubt)
    listed_before = {one: carried[_place(fact)] for one, fact in facts.items() if _place(fact) in carried}
    warrants = Warrants(deps, unit, now, partial(_spent, chain, unit, dict(carried), listed_before, now))
    ordered = [row for row in rows if row.evidence == ORDER]
    verdicts = dict(warrants.judge(ordered, listed_before))
    for row in rows:
        if row.evidence != ORDER:
            verdicts[row.fingerprint] = _judge(chain, row, on_list=listed_before.get(row.fingerprint))
    proof = Proof(suspicions=suspicions, cap=warrants.cap if counted else None)
    for fingerprint in dict.fromkeys(known):
        called = states.get(fingerprint)
        fact = facts.get(fingerprint)
        if fact is None:
            _suspect(proof, Doubt.BROKEN, fingerprint, "the certificate in its row is not one of this CA")
            continue
        place = _place(fact)
        listed = carried.pop(place, None)
        if fact.not_after <= over:
            continue
        verdict = verdicts.get(fingerprint)
        if isinstance(verdict, KeymailboxError):
            proof.suspicions.append(Suspicion(Doubt.BROKEN, fingerprint, f"{verdict.code}: {verdict}", verdict))
        elif verdict is not None:
            listed = listed or verdict
        if listed is None:
            if fingerprint not in witnessed and called == CertificateState.REVOKED:
                _suspect(proof, Doubt.UNPROVED, fingerprint, "its row says revoked, and nothing proves it")
            continue
        proof.entries[place] = Entry(fact.serial, fact.issuer, listed, fingerprint)
        if fingerprint not in witnessed:
            _suspect(proof, Doubt.MISSING, fingerprint, "it is on the last list, and its evidence is gone")
        if called != CertificateState.REVOKED:
            _suspect(proof, Doubt.TAKEN_BACK, fingerprint, f"it is revoked, and its row says {called or 'nothing'}")
    _abandoned(unit, proof, carried, room_for_given_up, now, over)
    for (issuer, serial), listed in carried.items():
        _suspect(proof, Doubt.MISSING, f"{serial:x}", "a serial is on the last list, and its certificate is gone")
        proof.entries[issuer, serial] = Entry(serial, issuer, listed, None)
    return proof


def cap(deps: Deps, unit: Unit, now: datetime) -> Cap:
    """Return how many certificates the officers' orders may revoke now, and how many they have."""
    return proved(deps, unit, now, counted=True).cap or Cap(0, 0)


def ends(deps: Deps, unit: Unit, serials: Sequence[int]) -> Mapping[int, datetime]:
    """Return when certificates end, as they say themselves; those that are not this CA's are left out."""
    if not serials:
        return {}
    facts = _facts(deps.chain, unit, certificate_store.of_serials(unit, serials))
    return {fact.serial: fact.not_after for fact in facts.values()}


def look(deps: Deps) -> None:
    """Prove everything again, and raise the alarm about what does not fit together; the list changes nothing by it."""
    now = deps.clock.now()
    with deps.store.read() as unit:
        proof = proved(deps, unit, now, again=True)
    if proof.suspicions:
        with deps.store.unit() as unit:
            alarm(unit, proof.suspicions, now)


@lru_cache(maxsize=4)
def signed_list(der: bytes, issuing: bytes) -> Crl:
    """Return what an issuing CA's list says, fresh or not; a long one is read once in a process. Raises as a check."""
    return crl.verify_crl(der, issuing_der=issuing, now=_NEVER_STALE)


def alarm(unit: Unit, suspicions: Iterable[Suspicion], now: datetime) -> None:
    """Log what is suspicious and write it as events, each once a week; the owner of the certificate hears of it."""
    week = now - (now - _EPOCH) % timedelta(days=7)
    for one in suspicions:
        if not event_store.claim_tick(unit, _TICK, f"{week.isoformat()} {one.doubt} {one.on}"):
            continue
        _log.error("suspicious revocation: %s, %s: %s", one.doubt, one.on, one.detail)
        owner = certificate_store.owner(unit, Fingerprint(one.on))
        told = events.event(
            EventType.REVOCATION_DOUBTED,
            one.on,
            now,
            *([] if owner is None else [owner]),
            address=None if owner is None else str(owner),
            doubt=one.doubt.value,
            detail=one.detail[:_DETAIL],
        )
        event_store.append(unit, [told])


def _judge(chain: CaChain, row: RevocationRecord, *, on_list: Revoked | None) -> Revoked | KeymailboxError:
    """Return when and why a certificate was revoked, if the evidence in its row proves it, or what is wrong with it."""
    try:
        certificate = _certified(chain, row.certificate)
        if certificate.fingerprint != row.fingerprint:
            raise WrongPartyError("The evidence is for another certificate", on=row.fingerprint, rule="REV-002")
        if row.evidence == OWNER:
            return _owners_word(chain, row, certificate)
        if row.evidence == LEGACY and on_list is not None:
            return on_list
        raise ProfileError("There is no proof in this", on=row.evidence[:40], rule="REV-003")
    except KeymailboxError as error:
        return error


def _owners_word(chain: CaChain, row: RevocationRecord, certificate: ParsedCertificate) -> Revoked:
    signer = _certified(chain, row.signer or b"")
    if signer.kind is not CertificateKind.IDENTITY or signer.address != certificate.address:
        raise WrongPartyError("The owner did not sign the revocation", on=str(certificate.address), rule="REV-002")
    if certificate.kind is CertificateKind.IDENTITY and certificate.spki != signer.spki:
        raise WrongPartyError("Another identity key signed the revocation", on=str(certificate.address), rule="REV-002")
    if certificate.kind is CertificateKind.ENCRYPTION:
        _check_endorsed(row.endorsement or b"", certificate, signer)
    wish = revocations.parse_revocation(row.request or b"").verify(x509.identity_public_key(signer.spki))
    named = certificate if row.named is None else _certified(chain, row.named)
    revocations.check_falls(wish, named, certificate)
    return Revoked(wish.requested, wish.reason)


def _check_endorsed(request: bytes, certificate: ParsedCertificate, signer: ParsedCertificate) -> None:
    """Raise WrongPartyError unless the key that signed the revocation had signed the request for the certificate.

    Who can edit the database can have an identity certified at somebody's address, for a key of their own.
    """
    try:
        asked = requests.parse_request(request).verify(x509.identity_public_key(signer.spki))
    except KeymailboxError:
        asked = None
    if asked is None or (asked.address, asked.spki) != (certificate.address, certificate.spki):
        raise WrongPartyError(
            "The identity key that signed the revocation did not ask for the certificate",
            on=str(certificate.address),
            rule="REV-002",
        )


def _certified(chain: CaChain, der: bytes) -> ParsedCertificate:
    """Return a certificate that this CA has signed, whenever that was."""
    parsed = x509.parse_certificate(der)
    return check_stored(der, kind=parsed.kind, issuing_der=chain.all, root_der=chain.root, now=parsed.not_before).parsed


def _carried(deps: Deps, unit: Unit, suspicions: list[Suspicion]) -> dict[tuple[bytes, int], Revoked]:
    """Return what stands on the newest list of each issuing CA that is really one."""
    found: dict[tuple[bytes, int], Revoked] = {}
    for issuing in deps.chain.all:
        key = ca_key_identifier(issuing)
        for record in islice(status_store.newest_crls(unit, key.hex()), _LISTS):
            try:
                listed = signed_list(record.der, issuing)
                if listed.number != record.number:
                    raise CertificateError("The list has another number", on=str(listed.number))
            except KeymailboxError as error:
                suspicions.append(Suspicion(Doubt.LIST, str(record.number), f"{error.code}: {error}"))
                continue
            found |= {(key, serial): entry for serial, entry in listed.revoked.items()}
            break
    return found


def _spent(
    chain: CaChain,
    unit: Unit,
    carried: Mapping[tuple[bytes, int], Revoked],
    listed: Mapping[Fingerprint, Revoked],
    now: datetime,
) -> int:
    """Count what came on a list within a day and was neither revoked by its owner nor given up by the issuer."""
    since = now - DAY
    recent = {one for one, entry in listed.items() if entry.at > since}
    owners = [
        row
        for row in store.many(unit, list(recent))
        if row.evidence == OWNER and not isinstance(_judge(chain, row, on_list=None), KeymailboxError)
    ]
    nobodys = sum(entry.at > since for entry in carried.values()) - len(recent)
    if nobodys:
        given_up = {item.serial for item in request_store.abandoned(unit)}
        nobodys -= sum(entry.at > since and serial in given_up for (_, serial), entry in carried.items())
    return len(recent) - len(owners) + max(nobodys, 0)


def _facts(chain: CaChain, unit: Unit, wanted: Iterable[Fingerprint]) -> Mapping[Fingerprint, _Fact]:
    """Return what the certificates say that are this CA's, from either table; each is verified once in a process."""
    if len(_known) > _MOST_KNOWN:
        _known.clear()
    root = chain.root
    for source in (store.certificates_of, certificate_store.ders):
        missing = [one for one in dict.fromkeys(wanted) if (root, one) not in _known]
        for fingerprint, der in source(unit, missing):
            try:
                parsed = _certified(chain, der)
            except KeymailboxError:
                continue
            if parsed.fingerprint == fingerprint:
                _known[root, fingerprint] = _Fact(parsed.serial, parsed.aki, parsed.not_after)
    return {one: _known[root, one] for one in wanted if (root, one) in _known}


def _abandoned(
    unit: Unit, proof: Proof, carried: dict[tuple[bytes, int], Revoked], room: int, now: datetime, over: datetime
) -> None:
    """Add the serials that were fixed, and perhaps signed, for requests that were rejected: no certificate has one.

    That there never was one, rows alone say. So there is ``room`` for only so many, and the others come later: whoever
    deletes certificates and calls their requests rejected does not revoke everybody.
    """
    for item in request_store.abandoned(unit):
        try:
            place = (
                x509.authority_key_identifier(item.tbs),
                asn1.decode(asn1.TbsCertificate, item.tbs, what="What was prepared").serial,
            )
            ended = x509.validity(item.tbs)[1] <= over
        except KeymailboxError as error:
            _suspect(proof, Doubt.BROKEN, f"{item.serial:x}", f"{error.code}: {error}")
            continue
        listed = carried.pop(place, None)
        if ended or place in proof.entries:
            continue
        if listed is None and room <= 0:
            # Before the search below, which is slow.
            _suspect(
                proof, Doubt.UNPROVED, f"{item.serial:x}", "more serials were given up than come on lists in a day"
            )
            continue
        if listed is None and (place[1] != item.serial or certificate_store.holds(unit, item.serial)):
            _suspect(proof, Doubt.UNPROVED, f"{item.serial:x}", "a rejected request has the serial of a certificate")
            continue
        room -= listed is None
        # The time of the list, as with orders: what a row says could be set back.
        entry = listed or Revoked(now, _GIVEN_UP)
        proof.entries[place] = Entry(place[1], place[0], entry, None)


def _place(fact: _Fact) -> tuple[bytes, int]:
    return fact.issuer, fact.serial


def _suspect(proof: Proof, doubt: Doubt, on: str, detail: str) -> None:
    proof.suspicions.append(Suspicion(doubt, on, detail))


# A fingerprint is a hash: what its certificate says, and that the CA signed it, never changes.
_known: dict[tuple[bytes, Fingerprint], _Fact] = {}
_MOST_KNOWN = 200_000
_DETAIL = 300
