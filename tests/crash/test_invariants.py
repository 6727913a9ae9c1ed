"""What is asked of a database after every fault finds what is wrong with one: shown on databases that were spoilt."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from pki.core.crl import Reason
from pki.core.receipts import RefusalReason
from pki.server.services import certificates, mailbox, webhooks
from pki.server.services.deposits import withdraw
from pki.server.store import tables
from tests.kit.invariants import RULES, UNRULED, broken, broken_in
from tests.kit.town import Town

SPOILT = {
    "a deposit is lost": ("DELETE FROM deposits WHERE state = 'acknowledged'", "mailboxes"),
    "a deposit is there without its bytes": ("DELETE FROM bodies", "bodies"),
    "a deposit's bytes are others": ("UPDATE bodies SET body = CAST('x' AS {bytes})", "bodies"),
    "a number is missing": ("UPDATE deposits SET sequence = sequence + 1000 WHERE sequence = 3", "mailboxes"),
    "a counter is ahead": ("UPDATE mailboxes SET last_sequence = last_sequence + 1", "mailboxes"),
    "a receipt's number is missing": ("UPDATE receipts SET number = number + 7", "mailboxes"),
    "a state that nothing led to": ("UPDATE deposits SET state = 'expired' WHERE state = 'available'", "deposits"),
    "a move back": ("UPDATE deposits SET state = 'available' WHERE state = 'acknowledged'", "deposits"),
    "a count that is wrong": ("UPDATE tallies SET deposits = deposits + 1 WHERE recipient = ''", "tallies"),
    "a count of bytes that is wrong": ("UPDATE tallies SET bytes = bytes + 1 WHERE sender = ''", "tallies"),
    "a count that is gone": ("DELETE FROM tallies", "tallies"),
    "a deposit nobody works on": ("DELETE FROM jobs", "deposits"),
    "a deposit without its event": ("DELETE FROM events WHERE position IS NULL", "deposits"),
    "an effect twice": (
        "INSERT INTO events (id, type, subject, time, data) SELECT 'twice' || id, type, subject, time, data"
        " FROM events WHERE type = 'keymailbox.deposit.collected'",
        "deposits",
    ),
    "an idempotency key of nobody's": ("UPDATE idempotency SET deposit_id = 'none'", "idempotency"),
    "a receipt that is lost": ("DELETE FROM receipts", "deposits"),
    "a receipt for something else": ("UPDATE deposits SET body_sha512 = CAST('x' AS {bytes})", "receipts"),
    "an event that was altered": ("UPDATE events SET data = '{{}}' WHERE position = 2", "events"),
    "an event that was taken out": ("UPDATE events SET position = NULL WHERE position = 2", "events"),
    "an audience that was not told": ("UPDATE event_audience SET position = NULL", "event_audience"),
    "a reader past the end": ("UPDATE cursors SET position = 10000 WHERE name LIKE 'reader:%'", "cursors"),
    "a job that was given up": ("UPDATE jobs SET dead_at = created_at", "jobs"),
    "a job about nothing": ("UPDATE jobs SET subject = 'none'", "jobs"),
    "a post out of its place": ("UPDATE deliveries SET position = position + 1", "deliveries"),
    "an instance of nobody's": ("UPDATE instances SET access_key_id = 'x' || access_key_id", "instances"),
    "an invitation that is half used": ("UPDATE invitations SET used_by = NULL", "invitations"),
    "a request without its certificate": ("UPDATE requests SET fingerprint = 'none'", "requests"),
    "a request nobody works on": ("UPDATE requests SET state = 'pending'", "requests"),
    "a certificate in another's name": (
        "UPDATE certificates SET address = 'hooli/main' WHERE serial = (SELECT min(serial) FROM certificates)",
        "certificates",
    ),
    "a revocation taken back": ("UPDATE certificates SET state = 'active' WHERE state = 'revoked'", "certificates"),
    "a revocation without proof": ("DELETE FROM revocations", "certificates"),
    "a list that is gone": ("DELETE FROM crls", "crls"),
    "a list without what was revoked": (
        "DELETE FROM crls WHERE number = (SELECT max(number) FROM crls)",
        "revocations",
    ),
}
"""What is done to the database, and the table that is complained of."""


@pytest.fixture
def lively(place: Town) -> Town:
    """A town in which everything has happened, and some is on its way."""
    webhooks.register(place.deps, place.caller(place.acme), place.ear.url)
    found = place.hand_over(place.acme, place.globex)
    mailbox.receipt(place.deps, place.caller(place.globex), found, place.answer(place.globex, found))
    other = place.hand_over(place.acme, place.globex)
    refusal = place.answer(place.globex, other, next(iter(RefusalReason)))
    mailbox.receipt(place.deps, place.caller(place.globex), other, refusal)
    [gone] = place.deliver(place.acme, place.globex)
    withdraw(place.deps, place.caller(place.acme), gone)
    who = place.newcomer()
    place.deliver(place.acme, who)
    place.recover()
    assert who.certificate is not None
    wish = who.kms.revocation(place.office, who.certificate.fingerprint, Reason.KEY_COMPROMISE)
    certificates.revoke(place.deps, place.caller(who), wish)
    place.hands.drain("issue")
    place.deliver(place.acme, place.globex, 2)
    place.hands.drain("sequence")
    place.send(place.acme, place.globex)
    return place


def test_a_sound_database_has_no_complaint(lively: Town) -> None:
    """In the middle of the work and, with more that has to hold, at its end."""
    assert broken(lively.deps.store) == []
    assert broken(lively.deps.store, settled=True)
    lively.recover()
    assert broken(lively.deps.store, settled=True) == []


def test_what_is_spoilt_is_found(lively: Town) -> None:
    """Each way to lose, double or alter something is complained of, by its table."""
    unseen = []
    postgresql = lively.deps.store.dialect == "postgresql"
    kind = "bytea" if postgresql else "blob"
    unchecked = "SET LOCAL session_replication_role = replica" if postgresql else "PRAGMA defer_foreign_keys = ON"
    for what, (statement, table) in SPOILT.items():
        with lively.deps.store.unit() as unit:
            outer = unit.connection.begin_nested()
            unit.connection.execute(text(unchecked))
            changed = unit.connection.execute(text(statement.format(bytes=kind))).rowcount
            found = [one.partition(":")[0] for one in broken_in(unit)]
            outer.rollback()
        if not changed or table not in found:
            unseen.append((what, changed, found))
    assert unseen == []
    assert broken(lively.deps.store) == []


def test_each_table_has_its_rule() -> None:
    """Whoever adds a table says what holds of it, or why there is nothing to say."""
    named = RULES.keys() | UNRULED.keys()
    assert named == tables.metadata.tables.keys()
    assert not RULES.keys() & UNRULED.keys()
