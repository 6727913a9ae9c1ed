"""Contract of events and webhooks over HTTP: each hears of its own, and keeps its secrets."""

from __future__ import annotations

import pytest

from pki.server.services import notices
from tests.kit.site import Instance, Site, code, in_time

pytest_plugins = ["tests.kit.api_fixtures"]

HOOK = "https://hooks.acme.example/keymailbox"


def test_events_are_for_those_concerned(site: Site, acme: Instance, globex: Instance, initech: Instance) -> None:
    """Sender and recipient read of a deposit, a third does not; pages go on where the last one ended."""
    deposit_id, _ = acme.send(globex)
    notices.sequence_events(site.deps, None)
    page = acme.get("/v1/events?limit=100").json()
    told = [item for item in page["items"] if item["subject"] == deposit_id]
    assert [item["type"] for item in told] == ["keymailbox.deposit.received", "keymailbox.deposit.available"]
    assert told[0]["specversion"] == "1.0"
    assert [item["position"] for item in page["items"]] == sorted(item["position"] for item in page["items"])
    assert acme.get(f"/v1/events?after={page['next']}").json() == {"items": [], "next": page["next"]}
    heard = [item["type"] for item in globex.get("/v1/events").json()["items"] if item["subject"] == deposit_id]
    assert heard == ["keymailbox.deposit.available"]
    assert deposit_id not in initech.get("/v1/events").text


def test_events_of_one_type(site: Site, acme: Instance, globex: Instance) -> None:
    """The page holds that type alone, and its end lies past what was left out; a type that is none is refused."""
    acme.send(globex)
    notices.sequence_events(site.deps, None)
    everything = globex.get("/v1/events?limit=500").json()
    wanted = "keymailbox.deposit.available"
    page = globex.get(f"/v1/events?limit=500&type={wanted}").json()
    assert page["items"] == [one for one in everything["items"] if one["type"] == wanted]
    assert page["items"]
    assert page["next"] == everything["next"]
    short = globex.get(f"/v1/events?limit=1&type={wanted}").json()
    assert (len(short["items"]), short["next"]) == (1, short["items"][0]["position"])
    none = globex.get("/v1/events?type=keymailbox.certificate.expiring").json()
    assert none == {"items": [], "next": everything["next"]}
    assert globex.get("/v1/events?type=keymailbox.nothing").status_code == 400


@pytest.mark.usefixtures("only_the_bell")
def test_a_listener_waits_for_events(site: Site, acme: Instance, globex: Instance) -> None:
    """A long poll of the events is answered when there is one."""
    notices.sequence_events(site.deps, None)
    after = globex.get("/v1/events?limit=500").json()["next"]

    def happen() -> None:
        acme.send(globex)
        notices.sequence_events(site.deps, None)

    answer = in_time(site, lambda: globex.get(f"/v1/events?after={after}&wait=20"), happen)
    assert answer.json()["items"][0]["type"] == "keymailbox.deposit.available"


def test_webhooks_are_each_ones_own(acme: Instance, globex: Instance) -> None:
    """Registered with a secret that is told once, listed without it, removed by nobody else."""
    made = acme.post("/v1/webhooks", {"url": HOOK, "types": ["keymailbox.deposit.available"]})
    assert made.status_code == 201
    told = made.json()
    assert told["secret"].startswith("whsec_")
    listed = acme.get("/v1/webhooks")
    assert told["secret"] not in listed.text
    assert [(one["id"], one["url"]) for one in listed.json()["items"]] == [(told["id"], HOOK)]
    assert globex.get("/v1/webhooks").json() == {"items": []}
    path = f"/v1/webhooks/{told['id']}"
    assert code(globex.call("DELETE", path)) == (404, "not-found")
    removed = acme.call("DELETE", path)
    assert (removed.status_code, removed.content) == (204, b"")
    assert code(acme.call("DELETE", path)) == (404, "not-found")
    assert acme.post("/v1/webhooks", {"url": HOOK}).json()["types"] is None


def test_bad_webhooks_are_told(acme: Instance) -> None:
    """An address that is no HTTPS URL, or an event that does not exist."""
    for body in (
        {"url": "http://hooks.acme.example/"},
        {"url": "file:///etc/passwd"},
        {"url": "https://user:word@hooks.acme.example/"},
        {"url": HOOK, "types": ["keymailbox.unheard.of"]},
        {"url": HOOK, "types": []},
    ):
        assert code(acme.post("/v1/webhooks", body)) == (400, "bad-request"), body
    assert acme.get("/v1/webhooks").json() == {"items": []}
