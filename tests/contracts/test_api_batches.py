"""Contract of several deposits in one request: each has its own answer, and the request is good once."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import httpx2

from pki.core import httpsig
from pki.core.errors import KeymailboxError, UnknownRecipientError
from pki.core.tenants import parse_address
from pki.tenant.client import AccessKey, Client
from pki.tenant.messages import Handed, Stored
from tests.kit.site import Instance, Site, code, now

pytest_plugins = ["tests.kit.api_fixtures"]

PATH = "/v1/deposits/batch"


def item(body: bytes, key: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a deposit as it stands in a request for several."""
    return {"body": base64.b64encode(body).decode(), "idempotency_key": key or secrets.token_hex(8), **more}


def outcomes(answer: httpx2.Response) -> list[str]:
    """Return "received" or the problem's code for each."""
    assert answer.status_code == 200, answer.text
    return [one["error"]["code"] if "error" in one else one["state"] for one in answer.json()["items"]]


def test_each_has_its_own_answer(site: Site, acme: Instance, globex: Instance, initech: Instance) -> None:
    """Good ones are stored, and each bad one among them is told what is wrong with it, at its own place."""
    first, body = acme.compose(globex)
    second, other = acme.compose(globex)
    key = secrets.token_hex(8)
    given: list[Mapping[str, Any]] = [
        item(body, key),
        item(b"no deposit"),
        item(body + b"\0"),
        item(initech.compose(globex)[1]),
        item(acme.compose(globex, recipient=parse_address("globex/nobody"))[1]),
        item(body, key),
        item(other, key),
        item(body),
        item(other, supersedes="ab" * 16),
        item(other, supersedes="no id"),
        item(other, "with space"),
        item(other, respond_by="tomorrow"),
        item(other, respond_by="2030-01-31T12:00:00"),
        {"body": "%%%", "idempotency_key": "k"},
        {"body": ""},
        {**item(other), "more": 1},
        item(bytes(site.settings.max_deposit_bytes + 1)),
        item(other, respond_by=(now() + timedelta(hours=2)).isoformat()),
    ]
    answer = acme.post(PATH, {"items": given})
    expected = ["received", "malformed", "malformed", "wrong-party", "unknown-recipient", "received"]
    expected += ["idempotency-key-reused", "replayed", "not-found"]
    expected += ["bad-request"] * 7 + ["too-large", "received"]
    assert outcomes(answer) == expected
    told = answer.json()["items"]
    assert told[0] == told[5] == {"id": first, "state": "received", "status": f"/v1/deposits/{first}"}
    assert told[17]["id"] == second
    assert "items.14" in told[14]["error"]["detail"]
    site.work()
    assert {one["id"] for one in globex.get(globex.mailbox).json()["items"]} == {first, second}


def test_items_that_are_nothing_at_all(acme: Instance, globex: Instance) -> None:
    """Whatever stands where a deposit should is that one's problem alone."""
    _, body = acme.compose(globex)
    nothing: list[object] = [None, 1, "x", [], {}, [[[]]], {"body": None}, {"body": 5, "idempotency_key": 5}]
    answer = acme.post(PATH, {"items": [*nothing, item(body)]})
    assert outcomes(answer) == ["bad-request"] * len(nothing) + ["received"]


def test_a_request_that_is_wrong_as_a_whole(site: Site, acme: Instance, globex: Instance) -> None:
    """No JSON, another JSON, none, or too many: nothing of it is stored, and it is used up all the same."""
    _, body = acme.compose(globex)
    good = json.dumps({"items": [item(body)]}).encode()
    wrong = [
        (b"", "application/json", "malformed"),
        (good[:-1], "application/json", "malformed"),
        (b"[" * 100_000, "application/json", "malformed"),
        (b"[]", "application/json", "bad-request"),
        (b'{"items": {}}', "application/json", "bad-request"),
        (b'{"items": []}', "application/json", "bad-request"),
        (json.dumps({"items": [item(body)] * 101}).encode(), "application/json", "bad-request"),
        (json.dumps({"items": [item(body)], "more": 1}).encode(), "application/json", "bad-request"),
        (good, "text/plain", "bad-request"),
    ]
    for content, kind, expected in wrong:
        nonce = secrets.token_hex(16)
        assert code(acme.call("POST", PATH, content, kind, nonce=nonce)) == (400, expected)
        assert code(acme.call("POST", PATH, content, kind, nonce=nonce)) == (409, "replayed")
    assert acme.get("/v1/sent").json()["items"] == []


def test_a_batch_has_a_size(site: Site, acme: Instance) -> None:
    """More bytes than the cap are refused before they are read; a deposit of the largest size fits."""
    assert site.settings.max_batch_bytes > site.settings.max_deposit_bytes * 4 / 3
    answer = acme.call("POST", PATH, bytes(site.settings.max_batch_bytes + 1), "application/json")
    assert code(answer) == (413, "too-large")


def test_a_replayed_batch_is_refused(site: Site, acme: Instance, globex: Instance) -> None:
    """The very same request again is a replay; signed again it is the same deposits, with the same answer."""
    content = json.dumps({"items": [item(acme.compose(globex)[1]) for _ in range(5)]}).encode()
    headers = {"Content-Type": "application/json"}
    headers |= acme.signature("POST", PATH, content, headers)
    first = site.http.request("POST", PATH, content=content, headers=headers)
    assert outcomes(first) == ["received"] * 5
    assert code(site.http.request("POST", PATH, content=content, headers=headers)) == (409, "replayed")
    again = acme.call("POST", PATH, content, "application/json")
    assert again.json() == first.json()
    assert len(acme.get("/v1/sent").json()["items"]) == 5


def test_what_is_signed_is_the_whole(site: Site, acme: Instance, globex: Instance) -> None:
    """One item more, or one less, is another request than the one that was signed."""
    items = [item(acme.compose(globex)[1]) for _ in range(2)]
    headers = {"Content-Type": "application/json"}
    headers |= acme.signature("POST", PATH, json.dumps({"items": items}).encode(), headers)
    for changed in (items[:1], [*items, item(acme.compose(globex)[1])], items[::-1]):
        answer = site.http.request("POST", PATH, content=json.dumps({"items": changed}).encode(), headers=headers)
        assert code(answer) == (401, "not-authenticated")
    assert acme.get("/v1/sent").json()["items"] == []


def test_a_hundred_at_once(site: Site, acme: Instance, globex: Instance) -> None:
    """As many as a request takes are stored by one, and all become available."""
    ids, bodies = zip(*(acme.compose(globex) for _ in range(100)), strict=True)
    answer = acme.post(PATH, {"items": [item(body) for body in bodies]})
    assert [one["id"] for one in answer.json()["items"]] == list(ids)
    site.work()
    assert globex.get(globex.mailbox).json()["next"] == 100


def test_the_client_deposits_several(site: Site, acme: Instance, globex: Instance) -> None:
    """The client gets an answer for each, errors as errors of the family."""
    deposit_id, body = acme.compose(globex)
    _, nowhere = acme.compose(globex, recipient=parse_address("globex/nobody"))
    client = Client(site.url, AccessKey(httpsig.key_id(acme.access_raw), acme.access.sign), now)
    told = client.deposit_many([Handed(body, "one"), Handed(nowhere, "two"), Handed(b"", "three")])
    client.close()
    assert told[0] == Stored(deposit_id, "received")
    assert isinstance(told[1], UnknownRecipientError)
    assert isinstance(told[2], KeymailboxError)
    assert told[2].code == "malformed"
