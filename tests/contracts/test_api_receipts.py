"""Contract of receipts that are handed in together: one answer for each, in order, and no item harms another."""

from __future__ import annotations

import base64
import secrets

from pki.server.services import notices
from tests.kit.site import Instance, Site, code

pytest_plugins = ["tests.kit.api_fixtures"]


def item(deposit_id: str, receipt: bytes) -> dict[str, str]:
    """Return one answer as it is handed in."""
    return {"deposit_id": deposit_id, "receipt": base64.b64encode(receipt).decode()}


def test_each_receipt_has_its_own_answer(site: Site, acme: Instance, globex: Instance, initech: Instance) -> None:
    """Good ones are stored though others are refused; the same again is the same, and the sender reads them."""
    sent = [acme.send(globex) for _ in range(3)]
    globex.post(f"{globex.mailbox}/collection", {"ids": [deposit_id for deposit_id, _ in sent]})
    foreign, body = acme.send(initech)
    uncollected, late = acme.send(globex)
    (first, b1), (second, b2), (third, b3) = sent
    asked = [
        item(first, globex.receipt(first, b1)),
        item(second, globex.receipt(second, b1)),
        item(third, b"\x30\x00"),
        item(third, b"") | {"receipt": "?"},
        item(foreign, globex.receipt(foreign, body)),
        item(secrets.token_hex(16), globex.receipt(first, b1)),
        item("no id at all\x00é", globex.receipt(first, b1)),
        item(uncollected, globex.receipt(uncollected, late)),
        item(third, globex.receipt(third, b3)),
    ]
    answer = globex.post("/v1/receipts", {"items": asked})
    assert answer.status_code == 200, answer.text
    told = answer.json()["items"]
    assert [one["deposit_id"] for one in told] == [one["deposit_id"] for one in asked]
    assert [one.get("kind") or (one["error"]["status"], one["error"]["code"]) for one in told] == [
        "receipt",
        (422, "wrong-party"),
        (400, "malformed"),
        (400, "malformed"),
        (404, "not-found"),
        (404, "not-found"),
        (404, "not-found"),
        (409, "illegal-state"),
        "receipt",
    ]
    assert globex.post("/v1/receipts", {"items": asked}).json() == answer.json()
    assert [one["deposit_id"] for one in acme.get("/v1/receipts").json()["items"]] == [first, third]
    assert globex.post("/v1/receipts", {"items": [item(second, globex.receipt(second, b2))]}).status_code == 200
    notices.sequence_events(site.deps, None)
    heard = [one for one in acme.get("/v1/events?limit=500").json()["items"] if one["type"].endswith("acknowledged")]
    assert [one["subject"] for one in heard] == [first, third, second]


def test_what_is_no_list_of_receipts_is_told(globex: Instance) -> None:
    """Nothing, too many, other members, and what is no text."""
    good = item("0" * 32, b"x")
    for items in (
        [],
        [good] * 101,
        [good | {"more": 1}],
        [good | {"receipt": 1}],
        [good | {"deposit_id": "x" * 65}],
        "x",
    ):
        assert code(globex.post("/v1/receipts", {"items": items})) == (400, "bad-request"), str(items)[:80]
