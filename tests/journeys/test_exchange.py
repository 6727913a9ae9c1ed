"""The whole way of a key through real processes, once on RabbitMQ and once on Redis."""

from __future__ import annotations

import base64
import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
from cryptography.x509.ocsp import OCSPResponseStatus, load_der_ocsp_response
from standardwebhooks import Webhook

from pki.core import crl, ocsp
from pki.core.authorities import ca_key_identifier
from pki.core.crl import Reason
from pki.core.x509 import CertificateKind, parse_certificate
from tests.kit.daemons import NOBODY
from tests.kit.members import Pair, signed_call
from tests.kit.processes import wait_until


def test_a_key_goes_all_the_way(pair: Pair) -> None:
    """A key is sent, validated, received, receipted, believed, and stands in the report."""
    name = pair.acme.create_key("orders-2026")

    campaign = pair.acme.send_key(name, [pair.globex.address], purpose="decrypt orders")
    received = pair.globex.receive(wait=20)
    answers = pair.acme.receipts()

    [delivery] = campaign.delivered
    assert delivery.state == "available"
    assert [taken.kind for taken in received.taken] == ["receipt"]
    assert pair.globex.load_key(name).key == pair.acme.load_key(name).key
    assert [(settled.deposit_id, settled.kind) for settled in answers.settled] == [(delivery.deposit_id, "receipt")]
    report = json.loads(pair.installation.command("report", "distribution", "--format", "json"))
    [line] = [row for row in report["rows"] if row["deposit_id"] == delivery.deposit_id]
    assert (line["key_id"], line["purpose"], line["state"]) == ("orders-2026", "decrypt orders", "acknowledged")
    assert base64.b64decode(line["receipt"])


def test_events_are_numbered_and_chained(pair: Pair) -> None:
    """The sequencer has given every event a place, without a gap."""
    wait_until(lambda: not pair.installation.sql("SELECT 1 FROM events WHERE position IS NULL"), 30)
    places = [row[0] for row in pair.installation.sql("SELECT position FROM events ORDER BY position")]
    assert places == list(range(1, len(places) + 1))
    assert len(places) > 10


def test_a_webhook_is_told(pair: Pair) -> None:
    """The recipient's webhook hears of a deposit, with a signature that verifies."""
    with _sink() as (url, heard):
        wanted = {"url": url, "types": ["keymailbox.deposit.available"]}
        made = signed_call(pair.globex, "POST", "/v1/webhooks", json.dumps(wanted).encode())
        assert made.status_code == 201, made.text
        campaign = pair.acme.send_key(pair.acme.create_key("told"), [pair.globex.address])
        wait_until(lambda: heard, 30)
        gone = signed_call(pair.globex, "DELETE", f"/v1/webhooks/{made.json()['id']}")
    headers, body = heard[0]
    event = Webhook(made.json()["secret"]).verify(body, headers)
    assert gone.status_code == 204
    assert event["subject"] == campaign.delivered[0].deposit_id
    assert pair.globex.receive(wait=20).taken


def test_a_revocation_is_seen_within_ten_seconds(pair: Pair) -> None:
    """List, delta list and OCSP, with and without a nonce, say so, and nobody hears `good` after the revocation."""
    pair.globex.publish()
    [current, *_] = pair.globex.certificates(CertificateKind.ENCRYPTION)
    parsed = parse_certificate(current.der)
    issuing = pair.globex.client.authority().issuing
    path = f"/v1/crl/{ca_key_identifier(issuing).hex()}"
    named = ocsp.cert_id(ocsp.issuer_ids(issuing)[0], parsed.serial)

    def fetch(path: str) -> bytes:
        return httpx2.get(f"{pair.installation.url}{path}", timeout=30, trust_env=False, verify=NOBODY).content

    def said(nonce: bytes | None) -> str:
        answer = httpx2.post(
            f"{pair.installation.url}/v1/ocsp",
            content=ocsp.encode_request(ocsp.Request((named,), nonce)),
            headers={"Content-Type": "application/ocsp-request"},
            timeout=30,
            trust_env=False,
            verify=NOBODY,
        )
        found = load_der_ocsp_response(answer.content)
        if found.response_status is not OCSPResponseStatus.SUCCESSFUL:
            return found.response_status.name
        return found.certificate_status.name

    def listed(full: crl.Crl) -> bool:
        now = datetime.now(UTC)
        newest = crl.verify_crl(fetch(path), issuing_der=issuing, now=now)
        if newest.number == full.number:
            return False
        change = crl.verify_delta(fetch(f"{path}/delta"), issuing_der=issuing, now=now)
        return parsed.serial in newest.revoked and parsed.serial in crl.apply_delta(full, change).revoked

    wait_until(lambda: said(None) == said(secrets.token_bytes(32)) == "GOOD")
    before = crl.verify_crl(fetch(path), issuing_der=issuing, now=datetime.now(UTC))
    # Nor does anybody look for what was forgotten meanwhile.
    pair.installation.stop("beat")
    try:
        pair.globex.revoke(current.fingerprint, Reason.SUPERSEDED)
        assert said(None) != "GOOD"
        wait_until(lambda: said(None) == said(secrets.token_bytes(32)) == "REVOKED", 10)
        wait_until(lambda: listed(before), 10)
    finally:
        pair.installation.start("beat")
    pair.globex.publish()


def test_a_revoked_certificate_is_replaced(pair: Pair) -> None:
    """What is undelivered is quarantined, the recipient publishes a new key, the sender wraps again."""
    name = pair.acme.create_key("survivor")
    campaign = pair.acme.send_key(name, [pair.globex.address])
    [current, *_] = pair.globex.certificates(CertificateKind.ENCRYPTION)
    pair.globex.revoke(current.fingerprint, Reason.SUPERSEDED)
    assert [view.state for view in pair.globex.mailbox() if view.id == campaign.delivered[0].deposit_id] == [
        "quarantined"
    ]

    pair.globex.publish()
    rewrapped = wait_until(lambda: pair.acme.rewrap_quarantined().delivered, 30)
    wait_until(lambda: pair.globex.receive(wait=5).taken, 30)

    assert len(rewrapped) == 1
    assert pair.globex.load_key(name).key == pair.acme.load_key(name).key
    answers = pair.acme.receipts()
    assert [settled.kind for settled in answers.settled if settled.key == "survivor v1"] == ["receipt"]


def test_only_the_issuer_leads_to_the_passphrase(pair: Pair) -> None:
    """No other process has the CA's passphrase in its environment, nor does its home hold it."""
    holders = {
        name
        for name, one in pair.installation.running.items()
        if b"KMB_PASSPHRASE" in Path(f"/proc/{one.process.pid}/environ").read_bytes()
    }
    assert holders == {"issuer"}
    assert not (pair.installation.home / "passphrase").exists()


def test_a_job_that_was_given_up_is_seen_and_replayed(pair: Pair) -> None:
    """After ten attempts a job is dead: the operator lists it, and replays it."""
    pair.installation.sql(
        "INSERT INTO jobs (queue, kind, subject, created_at, due_at, wake_at, attempts, wakes)"
        " VALUES ('rotate', 'unheard-of', 'nothing', now(), now(), now(), 9, 0)"
    )
    wait_until(lambda: pair.installation.sql("SELECT 1 FROM jobs WHERE dead_at IS NOT NULL"), 30)
    listed = json.loads(pair.installation.command("dead", "list", "--json"))["jobs"]
    assert [(job["queue"], job["kind"]) for job in listed] == [("rotate", "unheard-of")]

    said = pair.installation.command("dead", "replay", str(listed[0]["id"]))

    assert said == "1 job is due again\n"
    pair.installation.sql("DELETE FROM jobs WHERE kind = 'unheard-of'")


@contextmanager
def _sink() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """Listen for webhooks; yields the URL, and the list of what was posted to it."""
    heard: list[tuple[dict[str, str], bytes]] = []

    class Sink(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            heard.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", heard
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
