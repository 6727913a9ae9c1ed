"""Attack 6: who has recorded signed requests sends them again, to this API process or to another one."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psycopg
import pytest

from pki.core.tenants import parse_address
from pki.server.store import tenants
from pki.server.store.engine import Store
from pki.tenant.enrolment import Invitation
from tests.kit.daemons import NOBODY, free_port
from tests.kit.processes import Installation, answers, wait_until
from tests.kit.services import Services, drop_database, new_database
from tests.kit.site import Instance, code

REPLAYED = (409, "replayed")
_SLOW = (
    "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN WHILE NOT pg_try_advisory_xact_lock(33)"
    " LOOP PERFORM pg_sleep(0.2); END LOOP; RETURN NULL; END$$"
)
_SLOWED = (
    "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON idempotency DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW EXECUTE FUNCTION slow()"
)
_COMMITTING = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"


@dataclass(frozen=True)
class Door:
    """One of several API processes behind one address; an `Instance` knocks at it."""

    installation: Installation
    http: httpx2.Client

    @property
    def url(self) -> str:
        """The address that is signed, whichever process is behind."""
        return self.installation.url

    def invite(self, tenant: str) -> tuple[Invitation, str]:
        """Return an invitation and its secret."""
        told = self.installation.invite(tenant)
        return Invitation(told["reference"], told["secret"]), told["secret"]


@pytest.fixture(scope="module")
def doors(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Door, Door]]:
    """Two API processes on one database."""
    database = new_database(services.postgres.url)
    installed = Installation(tmp_path_factory.mktemp("replays"), database, services.rabbitmq.url)
    try:
        with installed:
            installed.variables["KMB_PUBLIC_URL"] = installed.url
            installed.start("api")
            second = free_port()
            installed.ports["api-2"] = second
            installed.start("api-2")
            wait_until(lambda: answers(f"http://127.0.0.1:{second}/readyz"), on=installed.running["api-2"])
            host = {"Host": installed.url.removeprefix("http://")}
            with (
                httpx2.Client(base_url=installed.url, timeout=60, trust_env=False, verify=NOBODY) as one,
                httpx2.Client(
                    base_url=f"http://127.0.0.1:{second}", headers=host, timeout=60, trust_env=False, verify=NOBODY
                ) as two,
            ):
                yield Door(installed, one), Door(installed, two)
    finally:
        drop_database(database)


@pytest.fixture
def pair(doors: tuple[Door, Door]) -> tuple[Instance, Instance]:
    """A sender and a recipient; nobody certifies them, since no worker runs."""
    made = [Instance(doors[0], parse_address(f"{tenant}/{secrets.token_hex(4)}")) for tenant in ("acme", "globex")]  # type: ignore[arg-type]  # all that an instance needs of a site
    for one in made:
        assert one.enrol().status_code == 201
    return made[0], made[1]


def recorded(sender: Instance, recipient: Instance) -> list[tuple[str, str, bytes, dict[str, str]]]:
    """Return signed requests of each kind: reading, changing, a deposit, several, and what is refused anyway."""
    kms, octets = "application/cms", {"Content-Type": "application/json"}
    batch = {"items": [{"body": "MAA=", "idempotency_key": "one"}]}
    plain: list[tuple[str, str, bytes, dict[str, str]]] = [
        ("GET", sender.mailbox, b"", {}),
        ("GET", f"{sender.mailbox}?after=5&limit=7", b"", {}),
        ("GET", "/v1/sent", b"", {}),
        ("GET", f"/v1/directory/{recipient.address}", b"", {}),
        ("GET", recipient.mailbox, b"", {}),
        ("POST", f"{sender.mailbox}/collection", json.dumps({"ids": ["ab" * 16]}).encode(), octets),
        ("POST", "/v1/deposits", sender.compose(recipient)[1], {"Content-Type": kms, "Idempotency-Key": "a"}),
        ("POST", "/v1/deposits", b"nothing", {"Content-Type": kms, "Idempotency-Key": "b"}),
        ("POST", "/v1/deposits", sender.compose(recipient)[1], {"Content-Type": "text/plain", "Idempotency-Key": "c"}),
        ("POST", "/v1/deposits/batch", json.dumps(batch).encode(), octets),
        ("POST", "/v1/deposits/batch", b"{", octets),
        ("POST", "/v1/webhooks", b"{}", octets),
    ]
    return [
        (method, path, body, fields | sender.signature(method, path, body, fields))
        for method, path, body, fields in plain
    ]


def send(door: Door, call: tuple[str, str, bytes, dict[str, str]]) -> httpx2.Response:
    """Send a request as it was recorded."""
    method, path, body, headers = call
    deadline = time.monotonic() + 120
    while True:
        answer = door.http.request(method, path, content=body, headers=headers)
        # Whoever waited too long for its turn has used up nothing, and comes again.
        if answer.status_code != 429 or code(answer)[1] != "busy" or time.monotonic() > deadline:
            return answer
        time.sleep(1)


def test_every_recorded_call_is_good_once(doors: tuple[Door, Door], pair: tuple[Instance, Instance]) -> None:
    """Sent again, at the same process or the other one, each is a replay: those that were refused as well."""
    first, second = doors
    for call in recorded(*pair):
        was = send(first, call)
        assert was.status_code < 500
        assert was.status_code != 409
        assert code(send(second, call)) == REPLAYED, call[:2]
        assert code(send(first, call)) == REPLAYED, call[:2]
    assert len(pair[0].get("/v1/sent").json()["items"]) == 1


def test_twenty_at_once_with_one_nonce(doors: tuple[Door, Door], pair: tuple[Instance, Instance]) -> None:
    """Of twenty that arrive together at two processes one is let in, whatever they ask for."""
    sender, recipient = pair
    for call in recorded(sender, recipient):
        with ThreadPoolExecutor(20) as pool:
            told = list(pool.map(lambda number, call=call: send(doors[number % 2], call), range(20)))
        assert [one.status_code for one in told].count(409) == 19, call[:2]
    nonce = secrets.token_hex(16)
    given = [("/v1/deposits", sender.compose(recipient)[1]) for _ in range(20)]

    def deposit(number: int) -> httpx2.Response:
        path, body = given[number]
        fields = {"Content-Type": "application/cms", "Idempotency-Key": secrets.token_hex(8)}
        return send(
            doors[number % 2], ("POST", path, body, fields | sender.signature("POST", path, body, fields, nonce=nonce))
        )

    with ThreadPoolExecutor(20) as pool:
        told = list(pool.map(deposit, range(20)))
    assert sorted(one.status_code for one in told) == [202] + [409] * 19


def test_one_idempotency_key_at_once(doors: tuple[Door, Door], pair: tuple[Instance, Instance]) -> None:
    """Twenty different deposits under one key at two processes: one is stored, the others are told."""
    sender, recipient = pair
    bodies = [sender.compose(recipient)[1] for _ in range(20)]
    path, fields = "/v1/deposits", {"Content-Type": "application/cms", "Idempotency-Key": "the-key"}

    def deposit(number: int) -> httpx2.Response:
        body = bodies[number]
        return send(doors[number % 2], ("POST", path, body, fields | sender.signature("POST", path, body, fields)))

    with ThreadPoolExecutor(20) as pool:
        told = list(pool.map(deposit, range(20)))
    assert sorted(one.status_code for one in told) == [202] + [409] * 19
    assert {code(one)[1] for one in told if one.status_code == 409} == {"idempotency-key-reused"}
    assert len(sender.get("/v1/sent").json()["items"]) == 1


def test_a_key_that_is_taken_away(doors: tuple[Door, Door], pair: tuple[Instance, Instance]) -> None:
    """Both processes remember a key that signed; from the commit that takes it away it is nobody's, in both."""
    sender, recipient = pair
    calls = [recorded(sender, recipient) for _ in range(3)]
    assert [send(door, calls[0][place]).status_code for place, door in enumerate(doors)] == [200, 200]
    store = Store(doors[0].installation.database_url)
    with store.unit() as unit:
        tenants.withdraw_access_key(unit, sender.address)
    store.close()
    for door, recorded_calls in zip(doors, calls[1:], strict=True):
        for call in recorded_calls:
            assert code(send(door, call)) == (401, "not-authenticated"), call[:2]


def test_a_lost_answer(services: Services, tmp_path: Path) -> None:
    """An API process that is killed between commit and answer has stored the deposit; the same again is the same."""
    database = new_database(services.postgres.url)
    try:
        with Installation(tmp_path, database, services.rabbitmq.url) as installed:
            installed.start("api")
            with httpx2.Client(base_url=installed.url, timeout=60, trust_env=False, verify=NOBODY) as http:
                door = Door(installed, http)
                sender, recipient = (Instance(door, parse_address(one)) for one in ("acme/a", "globex/b"))  # type: ignore[arg-type]  # as above
                assert [one.enrol().status_code for one in (sender, recipient)] == [201, 201]
                # The commit itself lasts until we let it go, so that there is a moment to kill who waits for it.
                installed.sql(_SLOW)
                installed.sql(_SLOWED)
                deposit_id, body = sender.compose(recipient)
                with ThreadPoolExecutor(1) as pool, psycopg.connect(installed.libpq_url, autocommit=True) as holding:
                    holding.execute("SELECT pg_advisory_lock(33)")
                    waiting = pool.submit(sender.deposit, body, "the-key")
                    wait_until(lambda: installed.sql(_COMMITTING))
                    installed.running.pop("api").kill()
                    with pytest.raises(httpx2.TransportError):
                        waiting.result(60)
                wait_until(lambda: installed.sql("SELECT 1 FROM deposits"))
                installed.sql("DROP TRIGGER slow ON idempotency")
                installed.start("api")
                for _ in range(2):
                    again = sender.deposit(body, "the-key")
                    assert (again.status_code, again.json()["id"]) == (202, deposit_id)
                assert installed.sql("SELECT count(*) FROM jobs WHERE kind = 'deposit'") == [(1,)]
                assert installed.sql("SELECT count(*) FROM events WHERE subject = %s", deposit_id) == [(1,)]
    finally:
        drop_database(database)
