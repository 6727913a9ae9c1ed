"""Attacks 28, 35: every route as every tenant; what is not one's own is not there, whether it exists or not."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from pki.core import certificates, httpsig, kem, requests, x509
from pki.core.ids import DepositId
from pki.core.tenants import parse_address
from pki.server.api import openapi
from pki.server.services import notices, status
from tests.kit.site import Homes, Instance, Site, now

pytest_plugins = ["tests.kit.api_fixtures"]

ROLES = ("owner", "party", "sibling", "unrelated", "stranger")
"""Whose the thing is; whom it was sent to; another instance of the owner's tenant; another tenant; somebody whose key
nobody has enrolled."""
HEX32, HEX64 = "0" * 32, "1" * 64
KEY_ID = "canary-of-acme"
URL = "https://canary-of-acme.example/hook"

Body = Callable[["World", Instance], tuple[bytes, str]]


@dataclass
class World:
    """A server, five who ask, and what acme has: mail to globex, a request, certificates, a webhook, events."""

    site: Site
    people: dict[str, Instance]
    ids: dict[str, str] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)
    proof: str = ""

    @property
    def canaries(self) -> set[str]:
        """What no answer to anybody else may have in it."""
        owner, party = self.people["owner"], self.people["party"]
        keys = {httpsig.key_id(one.access_raw) for one in (owner, party)}
        bodies = {base64.b64encode(body).decode()[:80] for body in self.bodies.values()}
        return {*self.ids.values(), *keys, *bodies, KEY_ID, URL, str(owner.address), str(party.address)}


@dataclass(frozen=True)
class Route:
    """One route: what is asked of it about acme's things, and the status for each of `ROLES`, in their order."""

    path: str
    statuses: tuple[int, int, int, int, int]
    body: Body | None = None
    headers: tuple[tuple[str, str], ...] = ()
    public: bool = False
    """What it tells is told to everybody who may ask."""


def _json(**content: Any) -> Body:
    return lambda world, who: (json.dumps(content).encode(), "application/json")


def _filled(**content: Any) -> Body:
    """JSON with the things' ids filled in."""

    def body(world: World, who: Instance) -> tuple[bytes, str]:
        return json.dumps(content).replace("{", "{{").replace("}", "}}").replace("<", "{").replace(">", "}").format(
            **world.ids
        ).encode(), "application/json"

    return body


def _raw(content: bytes, kind: str) -> Body:
    return lambda world, who: (content, kind)


def _deposit(world: World, who: Instance) -> tuple[bytes, str]:
    # In acme's name, by whoever it is.
    return who.compose(world.people["party"], sender=world.people["owner"].address)[1], "application/cms"


def _receipt(world: World, who: Instance) -> tuple[bytes, str]:
    return who.receipt(DepositId(world.ids["open"]), world.bodies["open"]), "application/cms"


def _receipts(world: World, who: Instance) -> tuple[bytes, str]:
    der, _ = _receipt(world, who)
    item = {"deposit_id": world.ids["open"], "receipt": base64.b64encode(der).decode()}
    return json.dumps({"items": [item]}).encode(), "application/json"


def _revocation(world: World, who: Instance) -> tuple[bytes, str]:
    return who.revocation(world.ids["fingerprint"]), "application/cms"


def _proof(world: World, who: Instance) -> tuple[bytes, str]:
    # The right one: even who knows it proves nothing for somebody else.
    return json.dumps({"sha256": world.proof}).encode(), "application/json"


def _request(world: World, who: Instance) -> tuple[bytes, str]:
    owner = world.people["owner"].address
    return requests.identity_request(owner, who.spki, sign=who.identity.sign, signing_time=now()), "application/pkcs10"


def _enrolment(world: World, who: Instance) -> tuple[bytes, str]:
    invitation, _ = world.site.invite("acme")
    return json.dumps(who.enrolment(invitation, "guessed")).encode(), "application/json"


def _batch(world: World, who: Instance) -> tuple[bytes, str]:
    body, _ = _deposit(world, who)
    item = {"idempotency_key": secrets.token_hex(8), "body": base64.b64encode(body).decode()}
    return json.dumps({"items": [item]}).encode(), "application/json"


OPEN = (200, 200, 200, 200, 200)
ABSENT = (404, 404, 404, 404, 404)
ASKING = (200, 200, 200, 200, 401)
"""About the caller's own, whoever it is."""
OWNERS = (200, 404, 404, 404, 401)
BOTHS = (200, 200, 404, 404, 401)
PARTYS = (404, 200, 404, 404, 401)

ROUTES: dict[str, Route] = {
    "GET /livez": Route("/livez", OPEN),
    "GET /readyz": Route("/readyz", OPEN),
    "GET /version": Route("/version", OPEN),
    "GET /metrics": Route("/metrics", ABSENT),
    "GET /v1/ca": Route("/v1/ca", OPEN, public=True),
    "GET /v1/crl": Route("/v1/crl", OPEN, public=True),
    "GET /v1/crl/{issuer}": Route("/v1/crl/{issuer}", OPEN, public=True),
    "GET /v1/crl/{issuer}/delta": Route("/v1/crl/{issuer}/delta", OPEN, public=True),
    "POST /v1/ocsp": Route("/v1/ocsp", OPEN, _raw(b"x", "application/ocsp-request"), public=True),
    "GET /v1/ocsp/{encoded}": Route("/v1/ocsp/eA==", OPEN, public=True),
    "POST /v1/enrolments": Route("/v1/enrolments", (403, 403, 403, 403, 403), _enrolment),
    "GET /.well-known/est/cacerts": Route("/.well-known/est/cacerts", OPEN, public=True),
    "GET /.well-known/est/csrattrs": Route("/.well-known/est/csrattrs", OPEN, public=True),
    "POST /.well-known/est/simpleenroll": Route(
        "/.well-known/est/simpleenroll", (401,) * 5, _raw(b"x", "application/pkcs10")
    ),
    "POST /.well-known/est/simplereenroll": Route(
        "/.well-known/est/simplereenroll", (401,) * 5, _raw(b"x", "application/pkcs10")
    ),
    "POST /.well-known/est/serverkeygen": Route("/.well-known/est/serverkeygen", (501,) * 5),
    "POST /.well-known/est/fullcmc": Route("/.well-known/est/fullcmc", (501,) * 5),
    "POST /.well-known/cmp": Route("/.well-known/cmp", (400,) * 5, _raw(b"x", "application/pkixcmp")),
    "POST /.well-known/cmp/p/{label}": Route("/.well-known/cmp/p/x", ABSENT, _raw(b"x", "application/pkixcmp")),
    "POST /v1/certificate-requests": Route("/v1/certificate-requests", (202, 422, 422, 422, 401), _request),
    "GET /v1/certificate-requests/{request_id}": Route("/v1/certificate-requests/{request}", OWNERS),
    "POST /v1/certificate-requests/{request_id}/proof": Route(
        "/v1/certificate-requests/{request}/proof", OWNERS, _proof
    ),
    "GET /v1/directory/{tenant}/{instance}": Route("/v1/directory/{owner}", ASKING, public=True),
    "GET /v1/directory/{tenant}/{instance}/history": Route("/v1/directory/{owner}/history", ASKING, public=True),
    "GET /v1/certificates": Route("/v1/certificates", ASKING),
    "GET /v1/certificates/{fingerprint}": Route("/v1/certificates/{fingerprint}", ASKING, public=True),
    "POST /v1/certificates/{fingerprint}/revocation": Route(
        "/v1/certificates/{fingerprint}/revocation", (200, 404, 404, 404, 401), _revocation
    ),
    "POST /v1/deposits": Route(
        "/v1/deposits", (202, 422, 422, 422, 401), _deposit, (("Idempotency-Key", "one-of-acme"),)
    ),
    "POST /v1/deposits/batch": Route("/v1/deposits/batch", ASKING, _batch),
    "GET /v1/deposits/{deposit_id}": Route("/v1/deposits/{closed}", BOTHS),
    "POST /v1/deposits/{deposit_id}/withdrawal": Route("/v1/deposits/{waiting}/withdrawal", OWNERS),
    "POST /v1/deposits/{deposit_id}/receipt": Route("/v1/deposits/{open}/receipt", (404, 201, 404, 404, 401), _receipt),
    "GET /v1/deposits/{deposit_id}/receipt": Route("/v1/deposits/{closed}/receipt", BOTHS),
    "POST /v1/receipts": Route("/v1/receipts", ASKING, _receipts),
    "GET /v1/receipts": Route("/v1/receipts", ASKING),
    "GET /v1/mailboxes/{tenant}/{instance}": Route("/v1/mailboxes/{party}", PARTYS),
    "POST /v1/mailboxes/{tenant}/{instance}/collection": Route(
        "/v1/mailboxes/{party}/collection", PARTYS, _filled(ids=["<closed>", "<open>"])
    ),
    "GET /v1/mailboxes/{tenant}/{instance}/senders": Route("/v1/mailboxes/{owner}/senders", OWNERS),
    "PUT /v1/mailboxes/{tenant}/{instance}/senders": Route(
        "/v1/mailboxes/{owner}/senders", OWNERS, _json(mode="anyone")
    ),
    "GET /v1/sent": Route("/v1/sent", ASKING),
    "GET /v1/webhooks": Route("/v1/webhooks", ASKING),
    "POST /v1/webhooks": Route(
        "/v1/webhooks", (201, 201, 201, 201, 401), _json(url="https://everybodys.example/", types=None)
    ),
    "GET /v1/webhooks/{webhook_id}/deliveries": Route("/v1/webhooks/{webhook}/deliveries", OWNERS),
    "POST /v1/webhooks/{webhook_id}/replay": Route("/v1/webhooks/{webhook}/replay", (202, 404, 404, 404, 401), _json()),
    "DELETE /v1/webhooks/{webhook_id}": Route("/v1/webhooks/{webhook}", (204, 404, 404, 404, 401)),
    "GET /v1/events": Route("/v1/events", ASKING),
    "GET /v1/events/stream": Route("/v1/events/stream", ASKING),
}
"""By method and path of the API's description: a route that is missing here fails the test. They are asked in this
order, and the owner last: what takes something away comes after what looks at it."""

PROBES: dict[str, Route] = {
    "another's deposits from one's own mailbox": Route(
        "/v1/mailboxes/{self}/collection", ASKING, _filled(ids=["<closed>", "<open>"])
    ),
    "another's deposit as a cursor": Route("/v1/sent?after={closed}", (200, 404, 404, 404, 401)),
    "another's list of receipts from its middle": Route("/v1/receipts?after=0", ASKING),
    "events from the first": Route("/v1/events?after=0&limit=500", ASKING),
    "another's mailbox, waiting": Route("/v1/mailboxes/{party}?wait=1", PARTYS),
    "another's body under another idempotency key": Route(
        "/v1/deposits",
        (202, 422, 422, 422, 401),
        lambda world, who: (world.bodies["closed"], "application/cms"),
        (("Idempotency-Key", "as-before"),),
    ),
}
"""More about what is not one's own, where the route itself is open to everybody who is enrolled."""


@pytest.fixture
def world(homes: Homes, database_url: str) -> Iterator[World]:
    """On both databases; on PostgreSQL the API has the login of production."""
    with Site(homes.new(), database_url, long_poll_max=1, log_level="error") as site:
        names = {"owner": "acme/eu-west", "party": "globex/main", "sibling": "acme/other", "unrelated": "initech/spy"}
        people = {role: site.instance(name) for role, name in names.items()}
        people["stranger"] = Instance(site, parse_address("umbrella/nobody"))
        yield _furnished(World(site, people))


def _furnished(world: World) -> World:
    owner, party = world.people["owner"], world.people["party"]
    for name in ("closed", "open", "waiting"):
        deposit_id, body = owner.compose(party, key_id=KEY_ID)
        fields = {"key": "as-before"} if name == "closed" else {}
        assert owner.deposit(body, **fields).status_code == 202
        world.ids[name], world.bodies[name] = deposit_id, body
    world.site.work()
    taken = party.post(f"{party.mailbox}/collection", {"ids": [world.ids["closed"], world.ids["open"]]})
    assert [item["state"] for item in taken.json()["items"]] == ["collected"] * 2
    answer = party.receipt(DepositId(world.ids["closed"]), world.bodies["closed"])
    path = f"/v1/deposits/{world.ids['closed']}/receipt"
    assert party.call("POST", path, answer, "application/cms").status_code == 201
    # A certificate that is in use, and the request for the next one, which is not proved yet.
    world.ids["fingerprint"] = x509.parse_certificate(owner.encryption_certificate).fingerprint
    owner.encryption = kem.generate()
    asked = owner.request_encryption()
    world.ids["request"] = asked.json()["id"]
    world.site.work()
    told = owner.get(f"/v1/certificate-requests/{world.ids['request']}").json()
    world.proof = certificates.proof_of_decryption(owner.open_challenge(base64.b64decode(told["challenge"])))
    world.ids["webhook"] = owner.post("/v1/webhooks", {"url": URL, "types": None}).json()["id"]
    status.publish(world.site.deps, world.site.keys)
    notices.sequence_events(world.site.deps, None)
    return world


def test_every_route_is_in_the_matrix() -> None:
    """What the API describes is what is tried below, no more and no less."""
    described = {
        f"{method.upper()} {path}" for path, operations in openapi.describe()["paths"].items() for method in operations
    }
    assert described == set(ROUTES)


def test_every_route_as_everybody(world: World) -> None:
    """Each gets the status that the matrix says, and nobody a byte of what is not his."""
    wrong: list[str] = []
    for name, route in {**PROBES, **ROUTES}.items():
        expected = dict(zip(ROLES, route.statuses, strict=True))
        for role in reversed(ROLES):
            answer = _ask(world, role, route, world.ids)
            if answer.status_code != expected[role]:
                wrong.append(f"{name} as {role}: {answer.status_code}, not {expected[role]}: {answer.text[:200]}")
            if not route.public:
                wrong += [f"{name} tells {role} of {found}" for found in _leaked(world, role, route, answer)]
    assert not wrong, "\n".join(wrong)
    # Nothing that others tried has changed what is acme's.
    owner = world.people["owner"]
    states = {one["id"]: one["state"] for one in owner.get("/v1/sent?limit=500").json()["items"]}
    kept = [states[world.ids[name]] for name in ("closed", "open", "waiting")]
    assert kept == ["acknowledged", "acknowledged", "withdrawn"]


def test_what_is_anothers_is_as_if_it_were_not_there(world: World) -> None:
    """For ids that exist and ids that do not, answers are the same, but for the id; on every route that has one."""
    nothing = dict.fromkeys(("closed", "open", "waiting", "webhook"), HEX32)
    nothing |= {"request": HEX64, "fingerprint": HEX64}
    compared = 0
    for name, route in {**PROBES, **ROUTES}.items():
        if route.public or not re.search(r"\{(closed|open|waiting|webhook|request)\}", route.path):
            continue
        for role in ("unrelated", "sibling"):
            there, absent = (_ask(world, role, route, ids) for ids in (world.ids, nothing))
            told = [_without(answer.text, ids.values()) for answer, ids in ((there, world.ids), (absent, nothing))]
            assert (there.status_code, told[0]) == (absent.status_code, told[1]), (name, role)
            assert there.status_code == 404, (name, role)
            headers = [{key for key in answer.headers if key != "content-length"} for answer in (there, absent)]
            assert headers[0] == headers[1], (name, role)
            compared += 1
    assert compared == 20


def test_addresses_that_nobody_has_are_as_those_of_others(world: World) -> None:
    """A mailbox of somebody who is enrolled and one of nobody are refused in the same words."""
    spy = world.people["unrelated"]
    for suffix, ask in (("", spy.get), ("/senders", spy.get)):
        there, absent = (ask(f"/v1/mailboxes/{one}{suffix}") for one in ("globex/main", "globex/none"))
        assert there.status_code == absent.status_code == 404
        assert there.text.replace("globex/main", "X") == absent.text.replace("globex/none", "X")


def test_unsigned_requests_are_told_nothing(world: World) -> None:
    """Who signs nothing gets the same 401 on every route that is not open, whatever it is about."""
    told = set()
    for name, route in ROUTES.items():
        if route.statuses[4] != 401 or "/est/" in route.path:
            continue
        path = route.path.format(**_places(world, "stranger", world.ids))
        answer = world.site.http.request(name.partition(" ")[0], path)
        told.add((answer.status_code, answer.text))
    assert len(told) == 1
    assert next(iter(told))[0] == 401


def _places(world: World, role: str, ids: dict[str, str]) -> dict[str, str]:
    people = {one: str(who.address) for one, who in world.people.items()}
    issuer = x509.parse_certificate(world.people["owner"].identity_certificate).aki.hex()
    return {**people, **ids, "issuer": issuer, "self": people[role]}


def _ask(world: World, role: str, route: Route, ids: dict[str, str]) -> httpx2.Response:
    """Ask a route as somebody, signed with that one's own key."""
    who = world.people[role]
    path = route.path.format(**_places(world, role, ids))
    method = next((name.partition(" ")[0] for name, one in ROUTES.items() if one is route), None)
    method = method or ("POST" if route.body else "GET")
    body, kind = route.body(world, who) if route.body else (b"", "")
    if path.endswith("/stream"):
        return _first_of(who, path)
    return who.call(method, path, body, kind, dict(route.headers))


def _first_of(who: Instance, path: str) -> httpx2.Response:
    """Return what a stream says at first: all that there is so far."""
    fields = who.signature("GET", f"{path}?after=0")
    with who.site.http.stream("GET", f"{path}?after=0", headers=fields) as answer:
        return httpx2.Response(answer.status_code, content=next(answer.iter_bytes(), b""))


def _leaked(world: World, role: str, route: Route, answer: httpx2.Response) -> list[str]:
    """Return the canaries in an answer to somebody who is to know nothing, but for what the question had."""
    if role in ("owner", "party"):
        return []
    asked = route.path.format(**_places(world, role, world.ids))
    body = route.body(world, world.people[role])[0].decode(errors="replace") if route.body else ""
    if route.body is _batch:
        asked += str(world.people["owner"].address)
    return [one for one in world.canaries if one in answer.text and one not in asked + body]


def _without(text: str, words: Any) -> str:
    for word in words:
        text = text.replace(word, "ID")
    return text
