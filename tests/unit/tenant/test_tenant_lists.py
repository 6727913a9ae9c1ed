"""An agent's revocation lists: changes on top of what it holds, never less than the full list, whatever is served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import httpx2
import pytest

from pki.core import crl
from pki.core.authorities import ca_key_identifier
from pki.core.crl import Crl, Reason, Revoked
from pki.core.errors import CertificateError, KeymailboxError, StaleError
from pki.tenant.authority import Authority
from pki.tenant.client import Client
from pki.tenant.journal import Journal
from tests.kit.authority import DAY, NOW
from tests.kit.authority import Authority as Ca
from tests.kit.authority import authority as ca

SKI = ca_key_identifier(ca().issuing_der).hex()
FULL, DELTA = f"/v1/crl/{SKI}", f"/v1/crl/{SKI}/delta"


def full(number: int, *serials: int, at: datetime = NOW, by: Ca | None = None) -> bytes:
    """Return a full list."""
    signer = by or ca()
    revoked = [(serial, Revoked(NOW, Reason.SUPERSEDED)) for serial in serials]
    tbs = crl.crl_tbs(signer.issuing_der, number=number, this_update=at, next_update=at + DAY, revoked=revoked)
    return crl.assemble(tbs, signer.key.sign(tbs), signer.issuing_der)


def delta(number: int, base: int, *serials: int, at: datetime = NOW, by: Ca | None = None) -> bytes:
    """Return a delta list."""
    return (by or ca()).delta_der(serials, number=number, base=base, at=at)


@dataclass
class Server(httpx2.BaseTransport):
    """Serves what a test says; what is not there is 404."""

    serves: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer."""
        path = request.url.path
        self.asked.append("delta" if path == DELTA else "full" if path == FULL else path)
        content = self.serves.get(path)
        return httpx2.Response(404 if content is None else 200, content=content or b"{}")


@dataclass
class Agent:
    """An agent that asks a server."""

    server: Server
    journal: Journal

    def look(self, now: datetime = NOW) -> Crl:
        """Return the list that is believed, and count it; a fresh process each time."""
        self.server.asked.clear()
        client = Client("http://127.0.0.1:1", None, lambda: now, sleep=lambda _: None, transport=self.server)
        authority = Authority(client, self.journal, ca().root_der)
        found = authority.crl(ca().issuing_der, now)
        authority.count(found)
        return found


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An agent with an empty journal."""
    with closing(Journal(tmp_path / "journal.sqlite")) as journal:
        yield Agent(Server(), journal)


def test_changes_are_enough_where_the_base_is_at_hand(agent: Agent) -> None:
    """The full list is fetched once; then the changes, which lead to the same."""
    agent.server.serves = {FULL: full(1, 5)}
    assert set(agent.look().revoked) == {5}
    assert agent.server.asked == ["full"]
    later = NOW + DAY / 4
    agent.server.serves = {FULL: full(2, 5, 6, at=later), DELTA: delta(2, 1, 6, at=later)}
    found = agent.look(later)
    assert agent.server.asked == ["delta"]
    assert (found.number, set(found.revoked), found.next_update) == (2, {5, 6}, later + DAY)


def test_the_list_at_hand_is_enough_while_it_is_the_newest(agent: Agent) -> None:
    """The changes that came out together with it say that there is nothing newer."""
    agent.server.serves = {FULL: full(2, 5, 6), DELTA: delta(2, 1, 6)}
    first = agent.look()
    assert agent.look() == first
    assert agent.server.asked == ["delta"]


@pytest.mark.parametrize(
    "changes",
    [
        b"",
        b"junk",
        delta(9, 9, 7),
        delta(4, 1),
        delta(6, 1, by=Ca(seed=101)),
        full(6, 5),
        delta(6, 1, at=NOW - 2 * DAY),
        delta(5, 1, at=NOW - DAY / 2),
    ],
    ids=["nothing", "junk", "newer base", "older", "another CA's", "a full list", "stale", "same number, other time"],
)
def test_what_is_wrong_with_the_changes_costs_only_the_full_list(agent: Agent, changes: bytes) -> None:
    """Nothing is believed of them; what counts is the full list."""
    agent.server.serves = {FULL: full(5, 5)}
    agent.look()
    agent.server.serves = {FULL: full(6, 5, 6), DELTA: changes}
    assert set(agent.look().revoked) == {5, 6}
    assert agent.server.asked == ["delta", "full"]


def test_a_list_without_changes_is_asked_for_them_once(agent: Agent) -> None:
    """In one process: the first list of a CA has none; the next is fetched whole, and from then on its changes."""
    client = Client("http://127.0.0.1:1", None, lambda: NOW, sleep=lambda _: None, transport=agent.server)
    authority = Authority(client, agent.journal, ca().root_der)

    def looks() -> tuple[list[str], int]:
        agent.server.asked.clear()
        found = authority.crl(ca().issuing_der, NOW)
        authority.count(found)
        return list(agent.server.asked), found.number

    agent.server.serves = {FULL: full(1, 5)}
    assert looks() == (["full"], 1)
    assert looks() == (["delta", "full"], 1)
    assert looks() == (["full"], 1)
    agent.server.serves = {FULL: full(2, 5, 6), DELTA: delta(2, 1, 6)}
    assert looks() == (["full"], 2)
    assert looks() == (["delta"], 2)
    agent.server.serves = {FULL: full(3, 5, 6, 7), DELTA: delta(3, 2, 7)}
    assert looks() == (["delta"], 3)


def test_old_lists_and_old_changes_are_refused(agent: Agent) -> None:
    """A server that shows an earlier state, by either list or by both, is not believed."""
    agent.server.serves = {FULL: full(1, 5), DELTA: b""}
    agent.look()
    old = dict(agent.server.serves) | {DELTA: delta(2, 1)}
    agent.server.serves = {FULL: full(3, 5, 6), DELTA: delta(3, 1, 6)}
    assert set(agent.look().revoked) == {5, 6}
    agent.server.serves = old
    with pytest.raises(StaleError) as caught:
        agent.look()
    assert "older revocation list" in str(caught.value)
    agent.server.serves = {FULL: full(4, 5, 6), DELTA: delta(2, 1)}
    assert agent.look().number == 4


def test_without_a_good_list_there_is_none(agent: Agent) -> None:
    """No list, a stale one, somebody else's: fails closed, whatever is at hand."""
    agent.server.serves = {FULL: full(1, 5)}
    agent.look()
    for served, now in (
        ({}, NOW),
        ({FULL: full(2, by=Ca(seed=101))}, NOW),
        ({FULL: full(1, 5)}, NOW + 2 * DAY),
        ({FULL: full(1, 5), DELTA: delta(2, 1)}, NOW + 2 * DAY),
    ):
        agent.server.serves = served
        with pytest.raises(KeymailboxError) as caught:
            agent.look(now)
        assert isinstance(caught.value, StaleError | CertificateError)


def test_a_list_at_hand_that_is_out_of_date_is_not_built_upon(agent: Agent) -> None:
    """Its time is over, so the whole is fetched."""
    agent.server.serves = {FULL: full(1, 5)}
    agent.look()
    later = NOW + DAY + DAY / 2
    agent.server.serves = {FULL: full(9, 5, 6, at=later), DELTA: delta(9, 1, 6, at=later)}
    assert agent.look(later).number == 9
    assert agent.server.asked == ["full"]


def test_a_damaged_journal_costs_only_the_full_list(agent: Agent) -> None:
    """What was kept is verified again in each process."""
    agent.server.serves = {FULL: full(1, 5), DELTA: delta(1, 1)}
    agent.look()
    agent.journal.lists.keep(bytes.fromhex(SKI), 2, b"damaged")
    assert agent.look().number == 1
    assert agent.server.asked == ["full"]
    agent.journal.lists.keep(bytes.fromhex(SKI), 1 << 70, b"beyond")
    assert agent.journal.lists.of(bytes.fromhex(SKI)) == b"damaged"
