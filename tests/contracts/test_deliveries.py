"""What a webhook was not told is its owner's to see and to have told again; operators see whose it is."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
import structlog
from typer.testing import CliRunner

from pki.core.errors import ForbiddenError
from pki.server.cli import app as operator
from pki.server.services import deliveries, jobs, notices, webhooks
from pki.server.services.deps import Deps
from pki.server.store import lag, outbox
from pki.tenant import output
from tests.contracts.agents.test_tenant_commands import Room, room
from tests.kit.site import Instance, Site, code

pytest_plugins = ["tests.kit.api_fixtures"]
HOOK = "https://203.0.113.7/hook"
NOBODY = "0" * 32
__all__ = ["room"]


class Receiver:
    """A notifier that takes everything or nothing, and remembers the ids."""

    def __init__(self, *, takes: bool) -> None:
        self.takes = takes
        self.heard: list[str] = []

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Take a post, or be where no post may go."""
        if not self.takes:
            raise ForbiddenError("The webhook's address is private")
        self.heard.append(headers["webhook-id"])
        return 204


def work(deps: Deps, receiver: Receiver) -> None:
    """Number events and work the queue off, as the handlers of a worker do."""
    notices.sequence_events(deps, None)

    def tell(_: object, batch: object) -> Mapping[int, Exception | None]:
        assert isinstance(batch, list)
        webhooks.deliver(deps, receiver, [job.subject for job in batch], again=[j.subject for j in batch if j.error])
        return {job.id: None for job in batch}

    def again(_: object, batch: object) -> Mapping[int, Exception | None]:
        assert isinstance(batch, list)
        webhooks.deliver(deps, receiver, deliveries.revive(deps, [job.subject for job in batch]))
        return {job.id: None for job in batch}

    while jobs.run(deps, webhooks.QUEUE, {webhooks.JOB: tell, webhooks.REPLAY: again}):
        pass


def give_up(site: Site, acme: Instance, globex: Instance, count: int) -> str:
    """Register a webhook of globex that is not told of ``count`` deposits; return its id."""
    told = globex.post("/v1/webhooks", {"url": HOOK, "types": ["keymailbox.deposit.available"]}).json()
    for _ in range(count):
        acme.send(globex)
    work(site.deps, Receiver(takes=False))
    return str(told["id"])


def test_an_owner_sees_and_replays(site: Site, acme: Instance, globex: Instance) -> None:
    """In pages, first given up first; told again they come once, under their old id, and are dead letters no more."""
    path = f"/v1/webhooks/{give_up(site, acme, globex, 3)}"
    page = globex.get(f"{path}/deliveries?state=dead&limit=2").json()
    rest = globex.get(f"{path}/deliveries?limit=2&after={page['next']}").json()
    found = [*page["items"], *rest["items"]]
    assert [len(page["items"]), len(rest["items"])] == [2, 1]
    assert {one["type"] for one in found} == {"keymailbox.deposit.available"}
    assert found[0]["error"].startswith("forbidden") and len({one["id"] for one in found}) == 3
    assert globex.get(f"{path}/deliveries?after={rest['next']}").json() == {"items": [], "next": rest["next"]}

    first = found[0]["id"]
    for _ in range(2):
        answer = globex.post(f"{path}/replay", {"ids": [first, NOBODY]})
        assert (answer.status_code, answer.json()) == (202, {"ids": [first]})
    receiver = Receiver(takes=True)
    work(site.deps, receiver)
    assert receiver.heard == [found[0]["event"]]
    assert globex.post(f"{path}/replay", {"ids": [first]}).json() == {"ids": []}
    assert len(globex.post(f"{path}/replay", {}).json()["ids"]) == 2
    work(site.deps, receiver)
    assert sorted(receiver.heard) == sorted(one["event"] for one in found)
    assert globex.get(f"{path}/deliveries").json()["items"] == []
    with site.deps.store.read() as unit:
        assert lag.dead_jobs(unit) == {}


def test_nobody_else_does(site: Site, acme: Instance, globex: Instance) -> None:
    """To others, another's webhook is not there; what cannot be meant is told."""
    path = f"/v1/webhooks/{give_up(site, acme, globex, 1)}"
    for owner, where in ((acme, path), (globex, f"/v1/webhooks/{NOBODY}")):
        assert code(owner.get(f"{where}/deliveries")) == (404, "not-found")
        assert code(owner.post(f"{where}/replay", {})) == (404, "not-found")
    for query in ("state=delivered", "after=zz", "limit=0", f"after={'f' * 48}", f"after=03{'f' * 46}"):
        assert code(globex.get(f"{path}/deliveries?{query}")) == (400, "bad-request"), query
    assert code(globex.post(f"{path}/replay", {"ids": ["x"]})) == (400, "bad-request")


def test_what_is_switched_off_is_not_told_again(site: Site, acme: Instance, globex: Instance) -> None:
    """A webhook that answered 410 has to be registered anew."""
    told = globex.post("/v1/webhooks", {"url": HOOK}).json()

    class Gone(Receiver):
        def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
            return 410

    acme.send(globex)
    work(site.deps, Gone(takes=True))
    [dead, *_] = globex.get(f"/v1/webhooks/{told['id']}/deliveries").json()["items"]
    assert "410" in dead["error"]
    assert code(globex.post(f"/v1/webhooks/{told['id']}/replay", {})) == (409, "conflict")


def test_an_operator_shows_and_discards(site: Site, acme: Instance, globex: Instance) -> None:
    """A dead job tells whose post it was and from which request; let go, it is gone, and the owner's letter stays."""
    hook = give_up(site, acme, globex, 2)
    environment = {"KMB_HOME": str(site.settings.home), "KMB_DATABASE_URL": site.settings.database_url}

    def typed(*words: str, fine: int = 0) -> str:
        result = CliRunner().invoke(operator, list(words), env=environment)
        assert (result.exit_code == 0) is (fine == 0), result.output
        return result.stdout

    first, second = json.loads(typed("dead", "list", "--json"))["jobs"]
    [only] = json.loads(typed("dead", "list", "--limit", "1", "--json"))["jobs"]
    assert only == first
    told = json.loads(typed("dead", "show", str(first["id"]), "--json"))
    assert (told["webhook"], told["address"], told["delivery"]) == (hook, "globex/main", "dead")
    assert "kmb-server dead replay" in typed("dead", "show", str(first["id"]))
    assert HOOK not in typed("dead", "show", str(first["id"]))
    typed("dead", "discard", str(first["id"]))
    typed("dead", "discard", str(first["id"]), fine=3)
    typed("dead", "show", str(first["id"]), fine=3)
    assert len(globex.get(f"/v1/webhooks/{hook}/deliveries").json()["items"]) == 2
    typed("dead", "replay", str(second["id"]))
    receiver = Receiver(takes=True)
    work(site.deps, receiver)
    assert len(receiver.heard) == 1
    with site.deps.store.read() as unit:
        assert outbox.dead(unit) == []


def test_kmb_has_commands_for_it(room: Room) -> None:
    """Add, list, see what was given up, replay, remove: by typing."""
    made = room.globex.read("webhook", "add", HOOK, "--type", "keymailbox.deposit.available")
    assert made["secret"].startswith("whsec_")
    [listed] = room.globex.read("webhook", "list")
    assert (listed["id"], listed["types"], listed["state"]) == (made["id"], "keymailbox.deposit.available", "on")
    room.acme.read("key", "create", "for-webhooks")
    [sent] = room.acme.read("key", "send", "for-webhooks", "--to", "globex/main")
    deps = room.desk.site.deps
    work(deps, Receiver(takes=False))
    [dead] = room.globex.read("webhook", "dead", made["id"])
    assert (dead["subject"], dead["type"]) == (sent["deposit"], "keymailbox.deposit.available")
    assert "1 delivery is under way again" in room.globex.type("webhook", "replay", made["id"], dead["delivery"]).output
    receiver = Receiver(takes=True)
    work(deps, receiver)
    assert len(receiver.heard) == 1
    assert "0 deliveries" in room.globex.type("webhook", "replay", made["id"]).output
    room.acme.type("webhook", "dead", made["id"], fine=output.NOT_FOUND)
    room.globex.type("webhook", "remove", made["id"])
    assert room.globex.read("webhook", "list") == []


@pytest.mark.parametrize("words", [("add", "http://plain.example/"), ("add", HOOK, "--type", "no.such.event")])
def test_what_cannot_be_is_told(room: Room, words: tuple[str, ...]) -> None:
    """A URL without TLS, a type that does not exist."""
    room.globex.type("webhook", *words, fine=output.USAGE)


def test_each_failure_is_a_line(site: Site, acme: Instance, globex: Instance) -> None:
    """A post that fails is told at each attempt: which webhook and delivery, which attempt, why; never where to."""
    with structlog.testing.capture_logs() as caught:
        hook = give_up(site, acme, globex, 1)
    [line] = [line for line in caught if line["event"] == "post_failed"]
    assert (line["webhook"], line["attempt"], line["log_level"]) == (hook, 1, "warning")
    assert line["error"] == "forbidden: The webhook's address is private" and "request_id" in line
    assert "203.0.113.7" not in repr(caught)
