"""Certificate status: each issuing CA's revocation lists, full and delta, are published and handed out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from weakref import WeakKeyDictionary

from pki.core import crl
from pki.core.authorities import ca_key_identifier
from pki.core.crl import Crl, Revoked
from pki.core.errors import CertificateError, ConflictError, KeymailboxError
from pki.core.events import EventType
from pki.server.facts import CrlHead, CrlRecord
from pki.server.ports import CaKeys, CaSigner
from pki.server.services import events, evidence
from pki.server.services.deps import Deps
from pki.server.services.quarantine import quarantine
from pki.server.store import certificates as certificate_store
from pki.server.store import events as event_store
from pki.server.store import ocsp as ocsp_store
from pki.server.store import outbox
from pki.server.store import status as store
from pki.server.store.engine import Store, Unit

QUEUE = "issue"
REFRESH_JOB = "ocsp-refresh"
"""The kind of job that makes OCSP responses before anybody asks, and its subject."""
REVOKED = "revoked"
"""What a stored OCSP response says; the other one is ``good``."""

_CRL_ATTEMPTS = 8
_SMALL_DELTA = 64
"""Entries that a delta list may have however short the full list is."""


def publish(deps: Deps, keys: CaKeys) -> CrlRecord:
    """Sign and store a new list of what is revoked for each issuing CA; return the current one's.

    A delta list goes with each but the first. Raises ConflictError when others were always quicker, and what one key's
    failure was once the others are done.
    """
    failed: KeymailboxError | None = None
    published = []
    for signer in keys.all:
        try:
            published.append(_publish(deps, signer))
        except KeymailboxError as error:
            failed = failed or error
    if failed is not None:
        raise failed
    return published[0]


def publish_first(deps: Deps, keys: CaKeys) -> None:
    """Publish unless the current issuing CA has a list: nobody uses a certificate without one."""
    with deps.store.read() as unit:
        there = store.newest(unit, _name(keys.current.certificate_der))
    if there is None:
        publish(deps, keys)


def latest_crl(deps: Deps, issuer: str | None = None) -> CrlRecord | None:
    """Return an issuing CA's newest publication, None before the first; without a name the current one's."""
    with deps.store.read() as unit:
        return store.latest_crl(unit, _name(deps.chain.issuing) if issuer is None else issuer)


def newest(deps: Deps, issuer: str | None = None) -> CrlHead | None:
    """Return what `latest_crl` would, without its bytes."""
    with deps.store.read() as unit:
        return store.newest(unit, _name(deps.chain.issuing) if issuer is None else issuer)


def listed(deps: Deps, unit: Unit, issuing: bytes) -> Crl | None:
    """Return what an issuing CA's newest list says that it really signed, fresh or not; parsed once in a process."""
    issuer = _name(issuing)
    cached = _lists.setdefault(deps.store, {})
    head = store.newest(unit, issuer)
    if head is not None and issuer in cached and cached[issuer][0] == head:
        return cached[issuer][1]
    for record in store.newest_crls(unit, issuer):
        try:
            found = evidence.signed_list(record.der, issuing)
        except KeymailboxError:
            continue
        if found.number != record.number:
            # An old list, put there again under a new number.
            continue
        if head is not None:
            cached[issuer] = (head, found)
        return found
    return None


_lists: WeakKeyDictionary[Store, dict[str, tuple[CrlHead, Crl]]] = WeakKeyDictionary()


def _publish(deps: Deps, signer: CaSigner) -> CrlRecord:
    for _ in range(_CRL_ATTEMPTS - 1):
        try:
            return _publish_once(deps, signer)
        except ConflictError:
            # Their list may be older than what we know: ours comes after it.
            continue
    return _publish_once(deps, signer)


def _publish_once(deps: Deps, signer: CaSigner) -> CrlRecord:
    now = deps.clock.now().replace(microsecond=0)
    until = now + deps.settings.crl_lifetime
    issuing = signer.certificate_der
    issuer = _name(issuing)
    with deps.store.read() as unit:
        latest = store.latest_crl(unit, issuer)
        before = None if latest is None or latest.base is None else store.crl(unit, issuer, latest.base)
        proof = evidence.proved(deps, unit, now)
    revoked = dict(proof.of(bytes.fromhex(issuer)))
    number = latest.number + 1 if latest else 1
    # The bytes are made here and now and never read from a table, where they could have been put for us to sign. A
    # number is used up by storing the list, so one that was signed and lost in a crash was never seen by anybody.
    where = f"{deps.settings.url}/v1/crl/{issuer}/delta"
    tbs = crl.crl_tbs(
        issuing, number=number, this_update=now, next_update=until, revoked=revoked.items(), freshest=where
    )
    der = crl.assemble(tbs, signer.sign(tbs), issuing)
    full = evidence.signed_list(der, issuing)
    record = CrlRecord(number, der, now, until, issuer)
    changed = _changes([one for one in (before, latest) if one is not None], revoked, issuing, now)
    if changed is not None:
        base, new, gone = changed
        entries = new.items()
        tbs = crl.crl_tbs(
            issuing, number=number, this_update=now, next_update=until, revoked=entries, base=base.number, removed=gone
        )
        delta = crl.assemble(tbs, signer.sign(tbs), issuing)
        if crl.apply_delta(base, crl.verify_delta(delta, issuing_der=issuing, now=now)) != full:
            raise CertificateError("The delta list does not lead to the full one", on=str(number))
        record = replace(record, base=base.number, delta=delta)
    told = events.event(
        EventType.CRL_PUBLISHED,
        str(number),
        now,
        number=number,
        issuer=issuer,
        revoked=len(revoked),
        next_update=events.time(until),
    )
    with deps.store.unit() as unit:
        store.insert_crl(unit, record)
        # Whoever asks about these is told anew; what a row in the directory says does not matter.
        news = new if changed is not None else revoked
        if ocsp_store.overtake(unit, list(news), REVOKED, now):
            outbox.add(unit, QUEUE, REFRESH_JOB, [REFRESH_JOB], now=now, rank=outbox.URGENT)
        # Once more: a deposit may have become available while its certificate was being revoked.
        revoked_lately = []
        for entry in proof.entries.values():
            if entry.fingerprint is None or entry.revoked.at <= now - deps.settings.crl_lifetime:
                continue
            item = certificate_store.certificate(unit, entry.fingerprint)
            if item is not None:
                revoked_lately.append(item)
        quarantine(unit, revoked_lately, now)
        evidence.alarm(unit, proof.suspicions, now)
        event_store.append(unit, [told])
    return record


def _changes(
    candidates: Sequence[CrlRecord], revoked: Mapping[int, Revoked], issuing: bytes, now: datetime
) -> tuple[Crl, dict[int, Revoked], list[int]] | None:
    """Return what a delta list builds on and says, for what is revoked now; None where there is nothing to build on.

    The base of the list before is kept as long as somebody may hold it and the delta list stays short; otherwise it is
    the list before, which comes last.
    """
    for record in candidates:
        try:
            base = evidence.signed_list(record.der, issuing)
        except KeymailboxError:
            # Not ours: what somebody else put into the table is not built upon.
            continue
        if (base.number, base.issuer.hex()) != (record.number, record.issuer):
            continue
        new, gone = crl.changes(base, revoked)
        short = len(new) + len(gone) <= max(_SMALL_DELTA, len(revoked) // 2)
        if record is candidates[-1] or (short and base.next_update > now):
            return base, new, gone
    return None


def _name(issuing: bytes) -> str:
    return ca_key_identifier(issuing).hex()
