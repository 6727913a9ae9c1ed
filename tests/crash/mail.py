"""Deposits: accepted, validated, collected, answered, taken back, expired, wrapped again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from pki.core.crl import Reason
from pki.core.errors import KeymailboxError, ReplayedError
from pki.core.ids import DepositId
from pki.core.receipts import RefusalReason
from pki.server.services import calls, certificates, mailbox
from pki.server.services.calls import Keyring, Ticket
from pki.server.services.deposits import Accepted, Answer, Handed, accept, accept_all, read, withdraw
from tests.crash.attempts import Attempt, Case, client
from tests.kit.town import Resident, Town


def accept_one(town: Town) -> Attempt:
    """One deposit, from the check of its request's signature on."""
    item = town.compose(town.acme, town.globex)
    answers: list[Accepted | KeymailboxError] = []

    def work() -> None:
        answers[:] = accept(town.deps, town.caller(town.acme), [item])

    def check() -> None:
        [answer] = answers
        assert isinstance(answer, Accepted)
        assert town.state(answer.id) == "available"

    return client(work, check)


def accept_together(town: Town) -> Attempt:
    """Several requests in one commit with their nonces, one of them for two deposits, and one with a stranger's."""
    first = [town.compose(town.acme, town.globex) for _ in range(2)]
    batches = [(town.acme, first), (town.globex, [town.compose(town.globex, town.acme)])]
    batches.append((town.acme, [town.compose(town.globex, town.acme)]))
    answers: list[Answer] = []

    def work() -> None:
        handed = []
        for who, items in batches:
            caller = town.caller(who)
            handed.append(Handed([read(town.deps, caller, one) for one in items], _ticket(town, who)))
        told = accept_all(town.deps, handed)
        assert not [one for one in told if isinstance(one, KeymailboxError)]
        answers[:] = [answer for one in told if isinstance(one, list) for answer in one]

    def check() -> None:
        *good, bad = answers
        assert isinstance(bad, KeymailboxError)
        assert bad.code == "wrong-party"
        assert [town.state(one.id) for one in good if isinstance(one, Accepted)] == ["available"] * 3

    return client(work, check)


def _ticket(town: Town, who: Resident) -> Ticket:
    """Return what a freshly signed request is good for once."""
    keyring = Keyring()
    keyring.remember(town.caller(who).instance)
    return calls.verify(town.deps, keyring, *who.kms.call(town.office, "POST", "/v1/deposits"))


def validate(town: Town) -> Attempt:
    """A batch for two mailboxes, one of them signed with a key that is not the sender's."""
    sound = [*town.send(town.acme, town.globex, 2), *town.send(town.globex, town.acme)]
    stranger = Resident(type(town.acme.kms)(town.acme.kms.address))
    forged = town.compose(stranger, town.globex)
    [answer] = accept(town.deps, town.caller(town.acme), [forged])
    assert isinstance(answer, Accepted)

    def check() -> None:
        assert [town.state(one) for one in (*sound, answer.id)] == ["available"] * 3 + ["rejected"]

    return Attempt(lambda: town.hands.drain("validate"), check)


def poll(town: Town) -> Attempt:
    """Two mailboxes are asked for together; whoever hears nothing signs again, and a ticket is good once."""
    [found] = town.deliver(town.acme, town.globex)
    memory = calls.Memory()
    newest: list[int | KeymailboxError] = []
    used: list[Ticket] = []

    def work() -> None:
        used[:] = [_ticket(town, who) for who in (town.globex, town.acme)]
        newest[:] = mailbox.poll(town.deps, memory, used)

    def check() -> None:
        assert newest[0] == town.record(found).sequence
        assert isinstance(newest[1], int)
        assert all(isinstance(one, ReplayedError) for one in mailbox.poll(town.deps, memory, used))

    return client(work, check)


def collect(town: Town) -> Attempt:
    """Several at once; the bytes come, and come again."""
    ids = town.deliver(town.acme, town.globex, 2)
    bodies: list[bytes] = []

    def work() -> None:
        handed = mailbox.collect(town.deps, town.caller(town.globex), town.globex.kms.address, ids)
        bodies[:] = [one[1] for one in handed if not isinstance(one, KeymailboxError)]

    def check() -> None:
        assert [town.state(one) for one in ids] == ["collected"] * 2
        assert bodies == [town.record(one).body for one in ids]

    return client(work, check)


def _answer(town: Town, refusal: RefusalReason | None, state: str) -> Attempt:
    found = town.hand_over(town.acme, town.globex)
    der = town.answer(town.globex, found, refusal)

    def check() -> None:
        assert town.state(found) == state
        assert mailbox.receipt_of(town.deps, town.caller(town.acme), found).der == der

    return client(lambda: mailbox.receipt(town.deps, town.caller(town.globex), found, der), check)


def receipt(town: Town) -> Attempt:
    """A signed receipt."""
    return _answer(town, None, "acknowledged")


def refusal(town: Town) -> Attempt:
    """A signed refusal."""
    return _answer(town, next(iter(RefusalReason)), "refused")


def withdraw_early(town: Town) -> Attempt:
    """Taken back before it is validated."""
    [found] = town.send(town.acme, town.globex)
    return client(
        lambda: withdraw(town.deps, town.caller(town.acme), found),
        lambda: _stands(town, found, "withdrawn", number=False),
    )


def withdraw_late(town: Town) -> Attempt:
    """Taken back while it is available."""
    [found] = town.deliver(town.acme, town.globex)
    return client(
        lambda: withdraw(town.deps, town.caller(town.acme), found),
        lambda: _stands(town, found, "withdrawn", number=True),
    )


def expire(town: Town) -> Attempt:
    """One that was not collected in its time, found by the beat's job."""
    [found] = town.deliver(town.acme, town.globex, days=0.5)
    town.clock.step(timedelta(days=1))
    town.tick("expire")
    return Attempt(
        lambda: town.hands.drain("rotate"),
        lambda: _stands(town, found, "expired", number=True),
    )


def clear_up(town: Town) -> Attempt:
    """What nobody needs any more goes after its time: nonces, idempotency keys, bodies, ticks."""
    # Others from time to time: a week goes by at each attempt, and certificates end.
    month = town.clock.now().strftime("%Y-%m")
    one, other = town.neighbour(f"a-{month}"), town.neighbour(f"b-{month}")
    found = town.hand_over(one, other)
    mailbox.receipt(town.deps, town.caller(other), found, town.answer(other, found))
    town.clock.step(timedelta(days=7, hours=1))
    town.tick("purge", "retain")

    # A week's bodies go at once on PostgreSQL, up to eight days late, and a failure puts that off to the next look.
    gone_before = town.clock.now() - town.deps.settings.body_retention - timedelta(days=8 + 7)

    def check() -> None:
        assert town.count("idempotency") == 0
        assert town.state(found) == "acknowledged"
        assert not [settled for settled in town.settled_with_bodies() if settled < gone_before]

    return Attempt(lambda: town.hands.drain("rotate"), check)


def quarantine(town: Town) -> Attempt:
    """The recipient revokes: what it has not collected is held back, what it has stays."""
    who = town.newcomer()
    taken = town.hand_over(town.acme, who)
    held, late = town.deliver(town.acme, who)[0], town.send(town.acme, who)[0]
    assert who.certificate is not None
    wish = who.kms.revocation(town.office, who.certificate.fingerprint, Reason.KEY_COMPROMISE)

    def check() -> None:
        assert (town.state(taken), town.state(held), town.state(late)) == ("collected", "quarantined", "rejected")

    return client(lambda: certificates.revoke(town.deps, town.caller(who), wish), check)


def wrap_again(town: Town) -> Attempt:
    """Its sender wraps for the successor's key: the one deposit takes the other's place."""
    who = town.newcomer()
    [old] = town.deliver(town.acme, who)
    assert who.certificate is not None
    wish = who.kms.revocation(town.office, who.certificate.fingerprint)
    certificates.revoke(town.deps, town.caller(who), wish)
    renewed = Resident(who.kms)
    renewed.certificate = town.office.publish(who.kms, renewed.private)
    item = town.compose(town.acme, renewed, supersedes=old)
    answers: list[Accepted | KeymailboxError] = []

    def work() -> None:
        answers[:] = accept(town.deps, town.caller(town.acme), [item])
        town.hands.drain("validate")

    def check() -> None:
        [answer] = answers
        assert isinstance(answer, Accepted)
        assert (town.state(old), town.state(answer.id)) == ("superseded", "available")

    return client(work, check)


def _stands(town: Town, found: DepositId, state: str, *, number: bool) -> None:
    record = town.record(found)
    assert (record.state.value, record.sequence is not None) == (state, number)


CASES: Mapping[str, Case] = {
    one.__name__: one
    for one in (
        accept_one,
        accept_together,
        validate,
        poll,
        collect,
        receipt,
        refusal,
        withdraw_early,
        withdraw_late,
        expire,
        clear_up,
        quarantine,
        wrap_again,
    )
}
