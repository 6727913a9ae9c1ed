"""Contract of the stream of events: what the page tells, in its order, once; and nobody holds more than his places."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from pki.core.errors import AccessError
from pki.core.events import Event, EventType
from pki.core.ids import EventId
from pki.server.api import connections, streams
from pki.server.services import notices
from pki.server.store import events as event_store
from pki.tenant.streams import Message, messages
from tests.kit.daemons import NOBODY
from tests.kit.processes import wait_until
from tests.kit.site import Homes, Instance, Site, code

pytest_plugins = ["tests.kit.api_fixtures"]

STREAM = "/v1/events/stream"
AVAILABLE = "keymailbox.deposit.available"


@contextlib.contextmanager
def opened(who: Instance, path: str = STREAM, **headers: str) -> Iterator[httpx2.Response]:
    """Open a stream with a connection of its own."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    signed = named | who.signature("GET", path, b"", named)
    with httpx2.Client(base_url=who.site.url, timeout=20, trust_env=False, verify=NOBODY) as client:
        with client.stream("GET", path, headers=signed) as response:
            yield response


def told(response: httpx2.Response) -> Iterator[Message]:
    """Return what a stream says."""
    assert response.status_code == 200, response.read()
    assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
    return messages(response.iter_bytes())


def items(who: Instance, after: int = 0) -> list[dict[str, Any]]:
    """Return the page of all events."""
    found: list[dict[str, Any]] = who.get(f"/v1/events?limit=500&after={after}").json()["items"]
    return found


def take(stream: Iterator[Message], count: int) -> list[Message]:
    """Return the next events."""
    found: list[Message] = []
    while len(found) < count:
        one = next(stream)
        found += [one] if one.data else []
    return found


def happen(site: Site, who: Instance, count: int, size: int = 10) -> None:
    """Let something happen to somebody, without much ado."""
    now = datetime.now(UTC)
    with site.deps.store.unit() as unit:
        event_store.append(
            unit,
            [
                Event(
                    EventId(f"{number:032x}"),
                    EventType.DEPOSIT_COLLECTED,
                    "x",
                    now,
                    (str(who.address),),
                    {"x": "y" * size},
                )
                for number in range(count)
            ],
        )
    notices.sequence_events(site.deps, None)


def test_a_stream_tells_what_the_page_tells(site: Site, acme: Instance, globex: Instance) -> None:
    """The same events in the same order under the same numbers, and after Last-Event-ID what is left, once."""
    for _ in range(3):
        acme.send(globex)
    notices.sequence_events(site.deps, None)
    page = items(globex)
    with opened(globex, f"{STREAM}?after=0") as response:
        stream = told(response)
        assert next(stream) == Message("0", "message", "")
        heard = take(stream, len(page))
    assert [json.loads(one.data) for one in heard] == page
    assert [(one.id, one.event) for one in heard] == [(str(item["position"]), item["type"]) for item in page]
    middle = len(page) // 2
    with opened(globex, f"{STREAM}?after=0", Last_Event_ID=heard[middle].id) as response:
        assert take(told(response), len(page) - middle - 1) == heard[middle + 1 :]
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-accel-buffering"] == "no"


def test_a_stream_begins_now_and_goes_on(
    site: Site, acme: Instance, globex: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a place it begins at the newest event, says where that is, and tells of what happens then."""
    # That a listener has gone is not noticed by writing to it.
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 600.0)
    acme.send(globex)
    notices.sequence_events(site.deps, None)
    newest = items(globex)[-1]["position"]
    with opened(globex) as response:
        stream = told(response)
        assert next(stream) == Message(str(newest), "message", "")
        for _ in range(2):
            deposit_id, _ = acme.send(globex)
            notices.sequence_events(site.deps, None)
            [one] = take(stream, 1)
            assert (one.event, json.loads(one.data)["subject"]) == (AVAILABLE, deposit_id)
    wait_until(lambda: site.server._app.state.places.taken == 0)


def test_a_stream_of_one_type(site: Site, acme: Instance, globex: Instance) -> None:
    """Others are left out, and the place moves past them."""
    acme.send(globex)
    notices.sequence_events(site.deps, None)
    page = items(globex)
    with opened(globex, f"{STREAM}?after=0&type={AVAILABLE}") as response:
        [one] = take(told(response), 1)
    assert json.loads(one.data) == next(item for item in page if item["type"] == AVAILABLE)
    with opened(globex, f"{STREAM}?after=0&type=keymailbox.certificate.expiring") as response:
        stream = told(response)
        assert [next(stream).id, next(stream).id] == ["0", str(page[-1]["position"])]


def test_more_than_a_page(site: Site, globex: Instance) -> None:
    """Page after page, without a gap."""
    happen(site, globex, 3 * streams._PAGE + 7)
    page = [item["position"] for item in items(globex)]
    with opened(globex, f"{STREAM}?after=0") as response:
        assert [int(one.id) for one in take(told(response), len(page))] == page


def test_silence_has_a_heartbeat_and_an_end(globex: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments keep the line alive; at the deadline the answer is complete."""
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(streams, "LONGEST_SECONDS", 4.0)
    with opened(globex) as response:
        raw = b"".join(response.iter_bytes())
    assert raw.startswith(b"id: ")
    assert b"retry: 1000\n" in raw
    assert raw.count(b"\n: \n") > 3


def test_the_server_s_end_ends_streams(site: Site, globex: Instance) -> None:
    """A server that stops answers who listens, and does not wait for anybody."""
    with opened(globex) as response:
        stream = told(response)
        next(stream)
        site.server.should_exit = True
        assert list(stream) == []


def test_who_was_revoked_signs_again(site: Site, globex: Instance) -> None:
    """A stream ends when a certificate of its listener is revoked: the access key may be gone with it."""
    fingerprint = globex.get(f"/v1/directory/{globex.address}").json()["encryption"]["fingerprint"]
    with opened(globex, f"{STREAM}?type={AVAILABLE}") as response:
        stream = told(response)
        next(stream)
        answer = globex.call(
            "POST", f"/v1/certificates/{fingerprint}/revocation", globex.revocation(fingerprint), "application/cms"
        )
        assert answer.status_code == 200, answer.text
        notices.sequence_events(site.deps, None)
        assert [one.data for one in stream] == [""]


def test_where_to_go_on_is_signed(globex: Instance) -> None:
    """Somebody on the way can neither add Last-Event-ID nor change it, and what is no position is told."""
    signed = globex.signature("GET", STREAM)
    added = globex.site.http.get(STREAM, headers=signed | {"Last-Event-ID": "0"})
    assert code(added) == (401, AccessError.code)
    own = {"Last-Event-ID": "7"}
    changed = globex.site.http.get(
        STREAM, headers=own | globex.signature("GET", STREAM, b"", own) | {"Last-Event-ID": "0"}
    )
    assert code(changed) == (401, AccessError.code)
    for bad in ("x", "-1", "1e3", "9" * 30):
        assert code(globex.call("GET", STREAM, headers={"Last-Event-ID": bad})) == (400, "bad-request"), bad
    assert globex.get(f"{STREAM}?after=-1").status_code == 400
    assert globex.get(f"{STREAM}?type=keymailbox.nothing").status_code == 400
    assert globex.site.http.get(STREAM).status_code == 401


def test_nobody_takes_all_the_places(homes: Homes, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address and a tenant have their own, streams and long polls together; others are not concerned."""
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 600.0)
    with Site(
        homes.new(), database_url, log_level="error", waiting_per_address=2, waiting_per_tenant=3, waiting_max=4
    ) as site:
        acme, second, globex = (site.instance(name) for name in ("acme/eu-west", "acme/us-east", "globex/main"))
        initech = site.instance("initech/spy")
        with contextlib.ExitStack() as held:
            listening = [told(held.enter_context(opened(who))) for who in (acme, acme, second)]
            for stream in listening:
                next(stream)
            for who, path in ((acme, STREAM), (second, STREAM), (acme, f"{acme.mailbox}?wait=20")):
                refused = who.get(path)
                assert code(refused) == (429, "busy")
                assert int(refused.headers["retry-after"]) >= 1
            assert acme.get(acme.mailbox).status_code == 200
            listening.append(told(held.enter_context(opened(globex))))
            next(listening[-1])
            full = initech.get(STREAM)
            assert code(full) == (503, "unavailable")
            assert "retry-after" in full.headers
        state = site.server._app.state
        wait_until(lambda: state.places.taken == 0)
        with opened(acme) as response:
            next(told(response))


def test_who_does_not_read_is_cut_off(site: Site, globex: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server keeps a page for a slow reader and no more, and after a while not even the socket."""
    monkeypatch.setattr(connections, "STALLED_SECONDS", 0.5)
    happen(site, globex, 400, size=30_000)
    path = f"{STREAM}?after=0"
    with socket.socket() as slow:
        slow.settimeout(60)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", site.port))
        fields = {"Host": f"127.0.0.1:{site.port}"} | globex.signature("GET", path)
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        slow.sendall(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
        state = site.server._app.state
        assert slow.recv(4) == b"HTTP"
        wait_until(lambda: state.places.taken == 0)
    monkeypatch.setattr(connections, "STALLED_SECONDS", 60.0)
    with opened(globex, path) as response:
        assert len(take(told(response), 400)) == 400


def test_a_stream_in_http_1_0_has_no_chunks(globex: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that speaks no other gets events and nothing else, up to the end of the connection."""
    monkeypatch.setattr(streams, "LONGEST_SECONDS", 0.5)
    port = globex.site.port
    with socket.create_connection(("127.0.0.1", port), timeout=20) as old:
        fields = {"Host": f"127.0.0.1:{port}"} | globex.signature("GET", STREAM)
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        old.sendall(f"GET {STREAM} HTTP/1.0\r\n{head}\r\n".encode())
        answer, _, body = b"".join(iter(lambda: old.recv(65536), b"")).partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in answer.lower()
    assert body.startswith((b"id: ", b"retry: "))
    assert body.endswith(b"\n\n")


def test_who_asks_nothing_is_cut_off(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a request, with a head that never ends, or with a drop after an answer."""
    for first, then in (
        (b"", b""),
        (b"", b"GET /livez HTTP/1.1\r\nHo"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", b"G"),
    ):
        # What is answered first may take its time.
        monkeypatch.setattr(connections, "HEAD_SECONDS", 20.0 if first else 0.3)
        with socket.create_connection(("127.0.0.1", site.port), timeout=60) as idle:
            idle.sendall(first)
            assert not first or b"200 OK" in idle.recv(65536)
            monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
            idle.sendall(then)
            with contextlib.suppress(ConnectionResetError):
                while idle.recv(65536):
                    pass


def test_a_deaf_bell_is_noticed(site: Site, acme: Instance, globex: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """When rings are lost without a word, streams hear of what happened all the same, a little later."""
    notices.sequence_events(site.deps, None)
    with opened(globex) as response:
        stream = told(response)
        next(stream)
        waiting = site.server._app.state.waiting
        monkeypatch.setattr(waiting, "_heard", lambda topic: None)
        waiting._unsubscribe()
        acme.send(globex)
        done = threading.Event()
        threading.Thread(target=lambda: (notices.sequence_events(site.deps, None), done.set())).start()
        assert done.wait(60)
        assert take(stream, 1)[0].event == AVAILABLE
