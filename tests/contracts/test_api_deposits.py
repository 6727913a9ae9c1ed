"""Contract of the mailbox over HTTP: a deposit's way, and everything that is not let through."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from pki.core import kem
from pki.core.tenants import parse_address
from pki.server.store import lag
from tests.kit.processes import wait_until
from tests.kit.site import Instance, Site, code, in_time, now

pytest_plugins = ["tests.kit.api_fixtures"]
pytestmark = pytest.mark.usefixtures("only_the_bell")


def test_the_way_of_a_deposit(site: Site, acme: Instance, globex: Instance) -> None:
    """Deposited, validated, listed, collected, acknowledged; each side sees it, and the receipt comes back."""
    deposit_id, body = acme.compose(globex)
    accepted = acme.deposit(body)
    path = f"/v1/deposits/{deposit_id}"
    assert accepted.status_code == 202
    assert accepted.json() == {"id": deposit_id, "state": "received", "status": path}
    assert accepted.headers["location"] == path
    assert acme.get(path).json()["state"] == "received"
    assert globex.get(globex.mailbox).json() == {"items": [], "next": 0}
    site.work()
    page = globex.get(globex.mailbox).json()
    assert page["next"] == 1
    [item] = page["items"]
    expected = {
        "id": deposit_id,
        "sender": "acme/eu-west",
        "recipient": "globex/main",
        "state": "available",
        "sequence": 1,
        "key_id": "orders",
        "key_version": 1,
        "purpose": "encrypt",
        "size": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "rejected": None,
        "collected_at": None,
        "settled_at": None,
        "body_deleted_at": None,
        "respond_by": None,
        "overdue_at": None,
        "supersedes": None,
        "superseded_by": None,
    }
    assert expected.items() <= item.items()
    assert set(item) - set(expected) == {"received_at", "expires_at", "certificate"}
    collected = globex.post(f"{globex.mailbox}/collection", {"ids": [deposit_id]}).json()
    handed_out = {"id": deposit_id, "state": "collected", "body": base64.b64encode(body).decode()}
    assert collected == {"items": [handed_out]}
    receipt = globex.receipt(deposit_id, body)
    for _ in range(2):
        handed = globex.call("POST", f"{path}/receipt", receipt, "application/cms")
        assert (handed.status_code, handed.json()["kind"]) == (201, "receipt")
    settled = acme.get(path).json()
    assert settled["state"] == "acknowledged"
    assert settled["settled_at"]
    fetched = acme.get(f"{path}/receipt")
    assert fetched.headers["content-type"] == "application/cms"
    assert fetched.content == receipt
    listed = acme.get("/v1/receipts").json()
    assert [(one["deposit_id"], one["kind"]) for one in listed["items"]] == [(deposit_id, "receipt")]
    assert base64.b64decode(listed["items"][0]["receipt"]) == receipt
    assert acme.get(f"/v1/receipts?after={listed['next']}").json() == {"items": [], "next": listed["next"]}
    sent = acme.get("/v1/sent?state=acknowledged").json()
    assert [one["id"] for one in sent["items"]] == [deposit_id]
    assert acme.get("/v1/sent?state=available").json()["items"] == []


def test_pages_follow_each_other(site: Site, acme: Instance, globex: Instance) -> None:
    """Cursors lead through mailbox and sent list without a gap and without a double."""
    ids = [acme.send(globex)[0] for _ in range(5)]
    seen: list[str] = []
    after = 0
    while (page := globex.get(f"{globex.mailbox}?after={after}&limit=2").json())["items"]:
        seen += [item["id"] for item in page["items"]]
        after = page["next"]
    assert seen == ids
    cursor, sent = "", []
    while (page := acme.get(f"/v1/sent?limit=2&after={cursor}").json())["items"]:
        sent += [item["id"] for item in page["items"]]
        cursor = page["next"]
    assert sent == ids


def test_an_unknown_recipient_is_told(acme: Instance, globex: Instance) -> None:
    """There is no mailbox to deposit into."""
    _, body = acme.compose(globex, recipient=parse_address("globex/nobody"))
    assert code(acme.deposit(body)) == (404, "unknown-recipient")
    assert acme.get("/v1/sent").json()["items"] == []


def test_a_strangers_deposit_is_not_seen(acme: Instance, globex: Instance, initech: Instance) -> None:
    """For a third tenant a deposit of others is exactly like none, on every route that takes its id."""
    deposit_id, body = acme.send(globex)
    none = secrets.token_hex(16)
    for method, path, content, kind in [
        ("GET", "/v1/deposits/{}", b"", ""),
        ("GET", "/v1/deposits/{}/receipt", b"", ""),
        ("POST", "/v1/deposits/{}/withdrawal", b"", ""),
        ("POST", "/v1/deposits/{}/receipt", initech.receipt(deposit_id, body), "application/cms"),
    ]:
        answers = [initech.call(method, path.format(one), content, kind) for one in (deposit_id, none)]
        assert {code(answer) for answer in answers} == {(404, "not-found")}, path
        assert answers[0].text.replace(deposit_id, none) == answers[1].text
    for path in (globex.mailbox, "/v1/mailboxes/globex/nobody"):
        assert code(initech.get(path)) == (404, "not-found")
        assert code(initech.post(f"{path}/collection", {"ids": [deposit_id]})) == (404, "not-found")
    [item] = initech.post(f"{initech.mailbox}/collection", {"ids": [deposit_id]}).json()["items"]
    assert (item["error"]["status"], item["error"]["code"]) == (404, "not-found")
    assert globex.get(f"/v1/deposits/{deposit_id}").json()["state"] == "available"
    # The recipient may not take it back, the sender may not answer it.
    assert code(globex.call("POST", f"/v1/deposits/{deposit_id}/withdrawal")) == (404, "not-found")
    answer = acme.call("POST", f"/v1/deposits/{deposit_id}/receipt", acme.receipt(deposit_id, body), "application/cms")
    assert code(answer) == (404, "not-found")


def test_a_broken_deposit_is_told(site: Site, acme: Instance, globex: Instance) -> None:
    """Whatever the bytes alone show to be wrong is answered at once, with a stable code, and leaves nothing."""
    _, body = acme.compose(globex)
    broken = [
        (b"", (400, "malformed")),
        (b"\x30\x03\x02\x01\x01", (400, "malformed")),
        (body + b"\0", (400, "malformed")),
        (body[:-1], (400, "malformed")),
        (b"\x30\x80" + body[4:] + b"\0\0", (400, "malformed")),
        (secrets.token_bytes(2000), (400, "malformed")),
    ]
    for content, expected in broken:
        assert code(acme.deposit(content)) == expected, content[:10]
    assert code(globex.deposit(body)) == (422, "wrong-party")
    assert acme.get("/v1/sent").json()["items"] == []
    with site.deps.store.read() as unit:
        assert "validate" not in lag.queues(unit, now())


def test_an_oversized_deposit_is_told(site: Site, acme: Instance, globex: Instance) -> None:
    """A deposit may be as large as the limit and no larger, whether the request's cap lets it in or not."""
    limit = site.settings.max_deposit_bytes
    for size in (limit + 1, site.settings.max_body_bytes, site.settings.max_body_bytes + 1):
        assert code(acme.deposit(bytes(size))) == (413, "too-large")
    assert acme.get("/v1/sent").json()["items"] == []


def test_idempotency(site: Site, acme: Instance, globex: Instance, initech: Instance) -> None:
    """The same key with the same body is the same deposit, with another body an error; keys are each sender's own."""
    deposit_id, body = acme.compose(globex)
    answers = [acme.deposit(body, "key-1") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert {answer.json()["id"] for answer in answers} == {deposit_id}
    _, other = acme.compose(globex)
    assert code(acme.deposit(other, "key-1")) == (409, "idempotency-key-reused")
    assert code(acme.deposit(body, "key-2")) == (409, "replayed")
    _, foreign = initech.compose(globex)
    assert initech.deposit(foreign, "key-1").status_code == 202
    missing = acme.call("POST", "/v1/deposits", other, "application/cms")
    assert code(missing) == (400, "bad-request")
    assert code(acme.deposit(other, "with space")) == (400, "bad-request")
    assert len(acme.get("/v1/sent").json()["items"]) == 1


def test_deposits_that_come_together(site: Site, acme: Instance, globex: Instance, initech: Instance) -> None:
    """Requests that are gathered into one commit each get their own answer, the bad ones among them too."""
    composed = [one.compose(globex) for one in [acme, initech] * 8]
    senders = [acme, initech] * 8
    bodies = [body if place % 5 else body + b"\0" for place, (_, body) in enumerate(composed)]
    bodies[6] = bodies[4]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda place: senders[place].deposit(bodies[place]), range(16)))
    codes = [answer.status_code for answer in answers]
    for place in range(16):
        expected = {400} if place % 5 == 0 else {202, 409} if place in (4, 6) else {202}
        assert codes[place] in expected, place
    assert sorted((codes[4], codes[6])) == [202, 409]
    site.work()
    assert globex.get(globex.mailbox).json()["next"] == codes.count(202)


def test_an_altered_deposit_is_rejected_by_the_worker(site: Site, acme: Instance, globex: Instance) -> None:
    """What only a signature shows is found out later: the sender reads why, the recipient never sees it."""
    deposit_id, body = acme.compose(globex)
    altered = bytearray(body)
    altered[-1] ^= 1
    assert acme.deposit(bytes(altered)).status_code == 202
    site.work()
    told = acme.get(f"/v1/deposits/{deposit_id}?wait=5").json()
    assert (told["state"], told["rejected"]["code"]) == ("rejected", "bad-signature")
    assert globex.get(globex.mailbox).json()["items"] == []
    assert code(globex.get(f"/v1/deposits/{deposit_id}")) == (404, "not-found")


def test_withdrawal(site: Site, acme: Instance, globex: Instance) -> None:
    """The sender takes back what was not collected, twice if need be, and nothing that was."""
    first, _ = acme.send(globex)
    second, _ = acme.send(globex)
    globex.post(f"{globex.mailbox}/collection", {"ids": [second]})
    for _ in range(2):
        answer = acme.call("POST", f"/v1/deposits/{first}/withdrawal", b"{}", "application/json")
        assert (answer.status_code, answer.json()["state"]) == (200, "withdrawn")
    assert code(acme.call("POST", f"/v1/deposits/{second}/withdrawal")) == (409, "illegal-state")
    assert code(acme.call("POST", f"/v1/deposits/{second}/withdrawal", b"{ }")) == (400, "bad-request")
    asked = globex.post(f"{globex.mailbox}/collection", {"ids": [first, second]}).json()["items"]
    assert asked[0]["error"]["code"] == "illegal-state"
    assert asked[1]["body"]


def test_receipts_are_checked(site: Site, acme: Instance, globex: Instance, initech: Instance) -> None:
    """Only the recipient's own signature over these very bytes settles a deposit."""
    deposit_id, body = acme.send(globex)
    path = f"/v1/deposits/{deposit_id}/receipt"
    assert code(acme.get(path)) == (404, "not-found")
    assert code(globex.call("POST", path, globex.receipt(deposit_id, body), "application/cms")) == (
        409,
        "illegal-state",
    )
    globex.post(f"{globex.mailbox}/collection", {"ids": [deposit_id]})
    other_id, _ = acme.compose(globex)
    for wrong in [
        b"",
        globex.receipt(deposit_id, body)[:-1],
        globex.receipt(deposit_id, body + b"\0"),
        globex.receipt(other_id, body),
        initech.receipt(deposit_id, body),
    ]:
        answer = globex.call("POST", path, wrong, "application/cms")
        assert answer.status_code in (400, 422)
        code(answer)
    assert code(globex.call("POST", path, b"x", "text/plain")) == (400, "bad-request")
    assert acme.get(f"/v1/deposits/{deposit_id}").json()["state"] == "collected"


def test_a_poll_waits_for_mail(site: Site, acme: Instance, globex: Instance) -> None:
    """A long poll of an empty mailbox is answered when something arrives."""
    answer = in_time(site, lambda: globex.get(f"{globex.mailbox}?wait=20"), lambda: acme.send(globex))
    assert [item["sequence"] for item in answer.json()["items"]] == [1]


def test_a_poll_ends(globex: Instance) -> None:
    """With nothing to tell, a long poll ends in time, empty."""
    started = time.monotonic()
    assert globex.get(f"{globex.mailbox}?wait=1").json() == {"items": [], "next": 0}
    assert 0.9 < time.monotonic() - started < 15


def test_a_collection_tells_what_came_of_each(acme: Instance, globex: Instance) -> None:
    """What is no id, nobody's and a stranger's fail alone, as they were asked for; what is no list fails as a whole."""
    deposit_id, body = acme.send(globex)
    collection = f"{globex.mailbox}/collection"
    asked = ["no id at all\x00é", deposit_id, "", "0" * 32, "X" * 64]
    answer = globex.post(collection, {"ids": asked})
    assert answer.status_code == 200, answer.text
    told = answer.json()["items"]
    assert [one["id"] for one in told] == asked
    assert [one.get("state") or one["error"]["code"] for one in told] == [
        "not-found",
        "collected",
        "not-found",
        "not-found",
        "not-found",
    ]
    assert base64.b64decode(told[1]["body"]) == body
    for ids in (["X" * 65], [1], [None], [[deposit_id]], [], [deposit_id] * 101, deposit_id):
        assert code(globex.post(collection, {"ids": ids})) == (400, "bad-request"), str(ids)[:80]
    for content in (b'{"ids": ["\\ud800"]}', b'{"ids": ["\xff"]}'):
        assert code(globex.call("POST", collection, content, "application/json")) == (400, "malformed")


def test_a_sender_waits_for_the_verdict(site: Site, acme: Instance, globex: Instance) -> None:
    """Following a deposit with wait is answered when it leaves the state that was named."""
    deposit_id, body = acme.compose(globex)
    assert acme.deposit(body).status_code == 202
    path = f"/v1/deposits/{deposit_id}"
    assert in_time(site, lambda: acme.get(f"{path}?wait=20&state=received"), site.work).json()["state"] == "available"
    collection = f"{globex.mailbox}/collection"
    answer = in_time(
        site,
        lambda: acme.get(f"{path}?wait=20&state=available"),
        lambda: globex.post(collection, {"ids": [deposit_id]}),
    )
    assert answer.json()["state"] == "collected"


def test_many_wait_without_threads(site: Site, globex: Instance) -> None:
    """More clients wait than there are threads and connections, and others are served meanwhile."""
    held = site.server._app.state.waiting
    with ThreadPoolExecutor(60) as pool:
        polls = [pool.submit(globex.get, f"{globex.mailbox}?wait=25") for _ in range(60)]
        wait_until(lambda: site.waiting == 60)
        assert site.http.get("/readyz").status_code == 200
        assert globex.get(globex.mailbox).status_code == 200
        # They were not answered because one that waited was done.
        assert not any(poll.done() for poll in polls)
        held._loop.call_soon_threadsafe(held.close)
        assert {poll.result().status_code for poll in polls} == {200}


def test_stopping_answers_who_waits(site: Site, globex: Instance) -> None:
    """A server that is told to stop answers its long polls instead of cutting them."""

    def stop() -> None:
        site.server.should_exit = True

    answer = in_time(site, lambda: globex.get(f"{globex.mailbox}?wait=20"), stop)
    assert answer.json() == {"items": [], "next": 0}


def test_revocation_quarantines(site: Site, acme: Instance, globex: Instance) -> None:
    """What was not collected is held back when its certificate is revoked, and replaced by a new wrap."""
    deposit_id, _ = acme.send(globex)
    fingerprint = hashlib.sha256(globex.encryption_certificate).hexdigest()
    path = f"/v1/certificates/{fingerprint}/revocation"
    assert globex.call("POST", path, globex.revocation(fingerprint), "application/cms").status_code == 200
    assert acme.get(f"/v1/deposits/{deposit_id}").json()["state"] == "quarantined"
    [item] = globex.post(f"{globex.mailbox}/collection", {"ids": [deposit_id]}).json()["items"]
    assert item["error"]["code"] == "illegal-state"
    globex.encryption = kem.generate()
    globex.certify()
    successor, body = acme.compose(globex)
    assert code(acme.deposit(body, Supersedes="f" * 32)) == (404, "not-found")
    assert acme.deposit(body, Supersedes=deposit_id).status_code == 202
    site.work()
    old = acme.get(f"/v1/deposits/{deposit_id}").json()
    assert (old["state"], old["superseded_by"]) == ("superseded", successor)
    assert acme.get(f"/v1/deposits/{successor}").json()["supersedes"] == deposit_id


def test_an_expired_deposit_is_refused(site: Site, acme: Instance, globex: Instance) -> None:
    """A deposit whose time is over, or too far away, does not become available."""
    for lifetime in (timedelta(seconds=-5), timedelta(days=91)):
        deposit_id, body = acme.compose(globex, expires=now() + lifetime)
        answer = acme.deposit(body)
        if answer.status_code == 202:
            site.work()
            assert acme.get(f"/v1/deposits/{deposit_id}").json()["state"] == "rejected"
        else:
            assert code(answer)[0] == 422
    assert globex.get(globex.mailbox).json()["items"] == []


def test_a_time_to_respond_by_is_told_to_both(site: Site, acme: Instance, globex: Instance) -> None:
    """It stands in the deposit as both see it; without a zone it is refused, and another time is another request."""
    by = "2031-01-31T12:00:00+01:00"
    deposit_id, body = acme.compose(globex)
    refused = acme.deposit(body, **{"Respond-By": "2031-01-31T12:00:00"})
    assert (refused.status_code, refused.json()["code"]) == (400, "bad-request")
    assert acme.deposit(body, "a1", **{"Respond-By": by}).status_code == 202
    assert acme.deposit(body, "a1", **{"Respond-By": by}).status_code == 202
    assert code(acme.deposit(body, "a1")) == (409, "idempotency-key-reused")
    site.work()
    [item] = globex.get(globex.mailbox).json()["items"]
    assert (item["respond_by"], item["overdue_at"]) == ("2031-01-31T11:00:00Z", None)
    assert acme.get(f"/v1/deposits/{deposit_id}").json()["respond_by"] == "2031-01-31T11:00:00Z"


@pytest.mark.parametrize("by", ["9999-12-31T23:59:59-23:59", "9999-01-01T00:00:00Z", "1999-12-31T23:59:59Z"])
def test_a_time_to_respond_by_that_nobody_can_tell(acme: Instance, globex: Instance, by: str) -> None:
    """At the ends of time it is refused, alone and among others, which are stored; and each request is good once."""
    _, body = acme.compose(globex)
    answer = acme.deposit(body, **{"Respond-By": by})
    assert code(answer) == (400, "bad-request")
    items = [
        {"body": base64.b64encode(one).decode(), "idempotency_key": str(place)} | more
        for place, (one, more) in enumerate([(body, {"respond_by": by}), (acme.compose(globex)[1], {})])
    ]
    nonce = secrets.token_hex(16)
    content = json.dumps({"items": items}).encode()
    told = acme.call("POST", "/v1/deposits/batch", content, "application/json", nonce=nonce)
    assert [one.get("state", one.get("error", {}).get("code")) for one in told.json()["items"]] == [
        "bad-request",
        "received",
    ]
    again = acme.call("POST", "/v1/deposits/batch", content, "application/json", nonce=nonce)
    assert code(again) == (409, "replayed")
