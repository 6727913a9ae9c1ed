"""The tenant's side against a server that lies: what it shows, withholds, swaps or alters is refused and noticed."""

from __future__ import annotations

import base64
import hashlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pki.core.authorities import ca_key_identifier
from pki.core.errors import (
    CertificateError,
    KeymailboxError,
    MalformedError,
    PinError,
    StaleError,
    UnavailableError,
    VerificationError,
    WrongPartyError,
)
from pki.core.kem import KemAlgorithm
from pki.server import bootstrap
from pki.server.services import status
from pki.server.settings import load_settings
from pki.tenant import authority as authority_module
from pki.tenant.agent import Agent
from pki.tenant.deposits import Campaign
from pki.tenant.records.pins import identity_fingerprint
from tests.kit.desk import Change, Desk, Wire, edit, impatient, path_ends
from tests.kit.site import Homes, Site

pytest_plugins = ["tests.kit.api_fixtures"]

COUNT = itertools.count()
LISTED = path_ends("/globex/main", method="GET")


def is_page(request: httpx2.Request) -> bool:
    """A look into the mailbox."""
    return request.method == "GET" and "/mailboxes/" in request.url.path


@dataclass
class Stage:
    """Two tenants and a liar, on one server for all tests; ``sender`` and ``reader`` speak over wires of their own."""

    desk: Desk
    acme: Agent
    globex: Agent
    initech: Agent

    def __post_init__(self) -> None:
        self.to_sender, self.to_reader = Wire(), Wire()
        self.sender = self.desk.reopen(self.acme, self.to_sender)
        self.reader = self.desk.reopen(self.globex, self.to_reader)

    def send(self, by: Agent | None = None) -> Campaign:
        """Send one more key to globex."""
        agent = by or self.sender
        return agent.send_key(agent.create_key(f"k{next(COUNT)}"), [self.globex.address])

    def stranger(self, wire: Wire, room: Path) -> Agent:
        """Return acme with an empty journal: it knows nobody yet."""
        context = replace(self.acme.context, folder=room / f"stranger{next(COUNT)}")
        return Agent(context, self.acme.holder, sleep=impatient, transport=wire)


@pytest.fixture(scope="module")
def everybody(homes: Homes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Enrolled once for all tests of this file."""
    with Site(homes.new(), "", log_level="error") as site, Desk(site, tmp_path_factory.mktemp("room")) as desk:
        acme, globex, initech = (desk.enrol(one) for one in ("acme/eu-west", "globex/main", "initech/lab"))
        acme.peer(globex.address)
        globex.peer(acme.address)
        yield Stage(desk, acme, globex, initech)


@pytest.fixture
def stage(everybody: Stage) -> Iterator[Stage]:
    """Nobody lies before a test or after it, and the mailbox is read to its end."""
    everybody.to_sender.honest()
    everybody.to_reader.honest()
    yield everybody
    everybody.to_sender.honest()
    everybody.to_reader.honest()
    everybody.reader.receive()
    for seen in everybody.reader.journal.seen.unanswered():
        everybody.reader.journal.seen.mark_answered([seen.deposit_id])
    for alarm in everybody.reader.alarms():
        everybody.reader.journal.alarms.clear(alarm.kind, alarm.subject)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Site]:
    """A server with a CA of its own."""
    home = tmp_path / "other"
    bootstrap.init(load_settings(home=home))
    with Site(home, "", log_level="error") as site:
        yield site


def refused(campaign: Campaign) -> KeymailboxError:
    """Return why a deposit was not made; nothing may have left."""
    ((_, error),) = campaign.failed
    assert campaign.delivered == []
    return error


# Look-up


def listed_as(stage: Stage, part: str, **changes: Any) -> Change:
    """The directory shows something else for globex."""
    return edit(LISTED, lambda entry: {**entry, part: {**entry[part], **changes}} if part else {**entry, **changes})


def entry_of(agent: Agent) -> dict[str, Any]:
    """Return an honest directory entry."""
    return dict(agent.client._get(f"/v1/directory/{agent.address}").json())


def test_a_certificate_of_somebody_else_is_refused(stage: Stage) -> None:
    """The operator puts another tenant's CA-valid certificate in globex's place: the address is wrong."""
    theirs = entry_of(stage.initech)["encryption"]
    stage.to_sender.change = listed_as(stage, "encryption", **theirs)
    assert isinstance(refused(stage.send()), WrongPartyError)
    assert not any(request.url.path == "/v1/deposits" for request in stage.to_sender.seen)
    stage.to_sender.seen.clear()


def test_an_older_certificate_is_refused(stage: Stage) -> None:
    """The operator shows globex's key of before its renewal, still valid in itself: old keys do not come back."""
    before = entry_of(stage.globex)["encryption"]
    time.sleep(1.1)  # a signing time is of whole seconds
    stage.globex.publish()
    assert stage.send().failed == []
    stage.to_sender.change = listed_as(stage, "encryption", **before)
    error = refused(stage.send())
    assert isinstance(error, StaleError)
    assert "older encryption certificate" in error.message
    stage.to_sender.honest()
    resumed = stage.sender.resume()
    assert resumed is not None
    assert len(resumed.delivered) >= 1


def test_a_certificate_that_the_ca_made_up_is_refused(stage: Stage) -> None:
    """The operator issues itself a certificate for globex's address: globex's identity key has not endorsed it."""
    forged = stage.desk.forge(stage.globex.address)
    genuine = entry_of(stage.globex)["encryption"]
    for request in (base64.b64encode(forged.request).decode(), genuine["request"]):
        changes = {"certificate": base64.b64encode(forged.certificate).decode(), "request": request}
        stage.to_sender.change = listed_as(stage, "encryption", **changes)
        error = refused(stage.send())
        assert isinstance(error, VerificationError)
        assert error.rule in ("REQ-005", "CRT-012")


def test_another_identity_is_refused_until_a_person_accepts(stage: Stage, tmp_path: Path) -> None:
    """A CA-valid identity for globex with another key: pinned, so refused; the error shows both fingerprints."""
    forged = stage.desk.forge_identity(stage.globex.address)
    changes = {
        "certificate": base64.b64encode(forged.certificate).decode(),
        "request": base64.b64encode(forged.request).decode(),
    }
    stage.to_sender.change = listed_as(stage, "identity", **changes)
    error = refused(stage.send())
    assert isinstance(error, PinError)
    pinned = stage.sender.journal.pins.of(stage.globex.address)
    assert pinned is not None
    assert pinned.fingerprint in error.on
    assert identity_fingerprint(forged.identity_key) in error.on
    assert "kmb peer verify globex/main --accept" in error.hint
    with pytest.raises(PinError):
        stage.sender.confirm_peer(stage.globex.address, pinned.fingerprint)
    with pytest.raises(PinError):
        stage.sender.confirm_peer(stage.globex.address)
    assert stage.sender.journal.pins.of(stage.globex.address) == pinned
    # Whoever accepts it gets the new key, and on the record.
    stranger = stage.stranger(stage.to_sender, tmp_path)
    stage.to_sender.honest()
    stranger.peer(stage.globex.address)
    stage.to_sender.change = listed_as(stage, "identity", **changes)
    accepted = stranger.confirm_peer(stage.globex.address, accept=True)
    assert accepted.identity_key == forged.identity_key
    stranger.close()


def test_first_contact_pins_and_says_so(stage: Stage, tmp_path: Path) -> None:
    """The first look-up is marked, the second is not; a confirmed fingerprint is kept as confirmed."""
    stranger = stage.stranger(stage.to_sender, tmp_path)
    assert stranger.peer(stage.globex.address).first_contact
    assert not stranger.peer(stage.globex.address).first_contact
    shown = identity_fingerprint(stage.globex.holder.identity_public())
    spoken = ":".join(shown[place : place + 2].upper() for place in range(0, 64, 2))
    assert stranger.confirm_peer(stage.globex.address, spoken).how == "confirmed"
    stranger.close()


def test_an_entry_that_fails_a_check_pins_nothing(stage: Stage, tmp_path: Path) -> None:
    """A first contact that breaks a rule leaves no pin."""
    stranger = stage.stranger(stage.to_sender, tmp_path)
    stage.to_sender.change = listed_as(stage, "encryption", **entry_of(stage.initech)["encryption"])
    with pytest.raises(WrongPartyError):
        stranger.peer(stage.globex.address)
    assert stranger.pins() == []
    stranger.close()


def test_an_answer_about_somebody_else_is_refused(stage: Stage) -> None:
    """The whole entry of another, honest in itself."""
    stage.to_sender.change = edit(LISTED, lambda _: entry_of(stage.initech))
    assert isinstance(refused(stage.send()), WrongPartyError)


def test_another_authority_is_refused(stage: Stage, other: Site) -> None:
    """A chain to a root that was not there at enrolment, wherever it is named."""
    theirs = base64.b64encode(other.deps.chain.issuing).decode()
    for part in ("", "identity", "encryption"):
        stage.to_sender.change = listed_as(stage, part, issuing=theirs)
        assert isinstance(refused(stage.send()), CertificateError)


@pytest.mark.parametrize("part", ["identity", "encryption"])
@pytest.mark.parametrize("field", ["certificate", "request"])
def test_flipped_bits_are_refused(stage: Stage, part: str, field: str) -> None:
    """One bit anywhere in what the directory shows: never wrapped for."""
    genuine = base64.b64decode(entry_of(stage.globex)[part][field])
    for place in range(5, len(genuine), len(genuine) // 9):
        flipped = bytearray(genuine)
        flipped[place] ^= 4
        stage.to_sender.change = listed_as(stage, part, **{field: base64.b64encode(flipped).decode()})
        with pytest.raises(KeymailboxError) as caught:
            stage.sender.peer(stage.globex.address)
        assert isinstance(caught.value, (VerificationError, KeymailboxError))
        assert caught.value.code != "unavailable"


def test_nobody_published_anything(stage: Stage) -> None:
    """Without an encryption certificate there is nothing to wrap for, and the error says whom to ask."""
    stage.to_sender.change = listed_as(stage, "", encryption=None)
    error = refused(stage.send())
    assert (error.code, "globex" in error.hint) == ("not-found", True)


# Revocation


def no_list(request: httpx2.Request, status: int, body: bytes) -> tuple[int, bytes]:
    """The server has no revocation list."""
    return (404, b"") if "/v1/crl/" in request.url.path else (status, body)


def this_list(crl: bytes) -> Change:
    """The server shows this revocation list."""
    return lambda request, status, body: (200, crl) if "/v1/crl/" in request.url.path else (status, body)


def test_without_a_revocation_list_nothing_is_wrapped(stage: Stage) -> None:
    """Blocked, it is as if everything were revoked."""
    stage.to_sender.change = no_list
    assert isinstance(refused(stage.send()), StaleError)


def test_an_older_revocation_list_is_refused(stage: Stage) -> None:
    """A list that was shown before, still valid in itself, strips no revocation."""
    old = stage.sender.client.crl(ca_key_identifier(stage.desk.site.deps.chain.issuing))
    assert old is not None
    status.publish(stage.desk.site.deps, stage.desk.site.keys)
    stage.sender.peer(stage.globex.address)
    stage.to_sender.change = lambda request, status, body: (
        (200, old) if "/v1/crl/" in request.url.path else (status, body)
    )
    error = refused(stage.send())
    assert isinstance(error, StaleError)
    assert "older" in error.message
    stage.to_sender.honest()
    resumed = stage.sender.resume()
    assert resumed is not None
    assert len(resumed.delivered) >= 1


def test_a_list_past_the_freshness_limit_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a list says about its own next update."""
    monkeypatch.setattr(authority_module, "CRL_MAX_AGE", timedelta(seconds=-1))
    assert isinstance(refused(stage.send()), StaleError)


def test_a_list_of_another_authority_is_refused(stage: Stage, other: Site) -> None:
    """A list has to be signed by the CA that issued the certificate."""
    status.publish(other.deps, other.keys)
    foreign = other.http.get("/v1/crl").content
    stage.to_sender.change = this_list(foreign)
    assert isinstance(refused(stage.send()), CertificateError)


# The mailbox


def bodies(change: Any) -> Change:
    """Change the bytes of collected deposits."""

    def apply(answer: dict[str, Any]) -> dict[str, Any]:
        for item in answer["items"]:
            item["body"] = base64.b64encode(change(base64.b64decode(item["body"]))).decode()
        return answer

    return edit(path_ends("/collection"), apply)


def flip(place: int) -> Any:
    """Flip a bit at a place."""

    def change(body: bytes) -> bytes:
        changed = bytearray(body)
        changed[place % len(changed)] ^= 1
        return bytes(changed)

    return change


@pytest.mark.parametrize("place", [3, 40, 700, 1500, 2500, -3])
def test_altered_on_the_way_is_not_taken_and_not_lost(stage: Stage, place: int) -> None:
    """Other bytes than listed raise an alarm and are fetched again; the right ones are taken."""
    stage.send(stage.acme)
    stage.to_reader.change = bodies(flip(place))
    received = stage.reader.receive()
    assert (received.taken, len(received.held)) == ([], 1)
    assert [kind for kind, _ in received.alarms] == ["altered"]
    stage.to_reader.honest()
    assert [one.kind for one in stage.reader.receive().taken] == ["receipt"]


def lying(change: Any) -> Change:
    """Change collected bytes and the listed digest with them, as only the server can."""
    digests: dict[str, str] = {}

    def collected(answer: dict[str, Any]) -> dict[str, Any]:
        for item in answer["items"]:
            item["body"] = base64.b64encode(digested(item["id"], base64.b64decode(item["body"]))).decode()
        return answer

    def digested(name: str, body: bytes) -> bytes:
        changed: bytes = change(body)
        digests[name] = hashlib.sha256(changed).hexdigest()
        return changed

    def apply(request: httpx2.Request, status: int, content: bytes) -> tuple[int, bytes]:
        if is_page(request):
            return edit(is_page, lambda page: {**page, "items": [foretold(item) for item in page["items"]]})(
                request, status, content
            )
        return edit(path_ends("/collection"), collected)(request, status, content)

    def foretold(item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "sha256": known.get(item["id"], item["sha256"])}

    known = digests
    return apply


@pytest.mark.parametrize("place", [700, 2500, -3])
def test_altered_at_rest_is_refused_with_a_signature(stage: Stage, place: int) -> None:
    """When the server's own listing agrees with the altered bytes, the key is not stored, and an alarm stands."""
    stage.send(stage.acme)
    before = list(stage.reader.shared_keys())
    stage.to_reader.change = lying(flip(place))
    # The liar learns the digest while handing out, so the first round only holds.
    stage.reader.receive()
    received = stage.reader.receive()
    (taken,) = received.taken
    assert (taken.kind, taken.altered) == ("refusal", True)
    assert {kind for kind, _ in received.alarms} >= {"altered"}
    assert list(stage.reader.shared_keys()) == before


def test_the_bytes_of_another_deposit_are_refused(stage: Stage) -> None:
    """An old deposit under a new number is not accepted a second time."""
    stage.send(stage.acme)
    kept: list[bytes] = []
    stage.to_reader.change = bodies(lambda body: kept.append(body) or body)
    stage.reader.receive()
    count = len(list(stage.reader.shared_keys()))
    stage.send(stage.acme)
    stage.to_reader.change = lying(lambda _: kept[0])
    stage.reader.receive()
    received = stage.reader.receive()
    assert [one.kind for one in received.taken] == ["refusal"]
    assert len(list(stage.reader.shared_keys())) == count


def test_a_withheld_number_raises_an_alarm(stage: Stage) -> None:
    """A hole in the sequence is noticed at once, said again, and closed when the deposit turns up."""
    for _ in range(3):
        stage.send(stage.acme)
    hidden = stage.reader.journal.marks.number("mailbox") + 2
    stage.to_reader.change = edit(
        is_page, lambda page: {**page, "items": [one for one in page["items"] if one["sequence"] != hidden]}
    )
    received = stage.reader.receive()
    assert len(received.taken) == 2
    assert set(received.alarms) == {("missing", str(hidden))}
    assert set(stage.reader.receive().alarms) == {("missing", str(hidden))}
    stage.to_reader.honest()
    again = stage.reader.receive()
    assert [one.sequence for one in again.taken] == [hidden]
    assert again.alarms == {}
    assert [alarm for alarm in stage.reader.alarms() if alarm.kind == "missing"] == []


def test_a_deposit_under_another_number_is_a_replay(stage: Stage) -> None:
    """What was decided on is not decided on again, whatever number it comes with."""
    stage.send(stage.acme)
    shown: list[dict[str, Any]] = []
    stage.to_reader.change = edit(is_page, lambda page: shown.extend(page["items"]) or page)
    (taken,) = stage.reader.receive().taken
    after = stage.reader.journal.marks.number("mailbox")
    old = next(one for one in shown if one["id"] == taken.deposit_id)

    def replayed(page: dict[str, Any]) -> dict[str, Any]:
        return {**page, "items": page["items"] or [{**old, "sequence": after + 1, "state": "available"}]}

    stage.to_reader.change = edit(lambda request: is_page(request) and f"after={after}&" in str(request.url), replayed)
    received = stage.reader.receive()
    assert received.taken == []
    assert set(received.alarms) == {("replayed", taken.deposit_id)}
    stage.to_reader.honest()
    stage.send(stage.acme)
    assert [one.sequence for one in stage.reader.receive().taken] == [after + 1]


def test_pages_out_of_order_are_refused(stage: Stage) -> None:
    """Numbers only go up."""
    for _ in range(2):
        stage.send(stage.acme)
    stage.to_reader.change = edit(is_page, lambda page: {**page, "items": page["items"][::-1]})
    with pytest.raises(MalformedError):
        stage.reader.receive()
    stage.to_reader.honest()
    assert len(stage.reader.receive().taken) == 2


def test_a_sender_that_cannot_be_checked_is_waited_for(stage: Stage) -> None:
    """While the directory or the revocation list is away, nothing is refused and nothing is taken."""
    stage.send(stage.acme)
    stage.to_reader.change = no_list
    received = stage.reader.receive()
    assert (received.taken, [type(one.error) for one in received.held]) == ([], [StaleError])
    stage.to_reader.honest()
    assert [one.kind for one in stage.reader.receive().taken] == ["receipt"]


def test_a_holder_that_is_away_refuses_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A locked KMS says nothing about the deposit: it waits."""
    stage.send(stage.acme)

    def away(ski: bytes, algorithm: KemAlgorithm, ciphertext: bytes) -> bytes:
        raise UnavailableError("The KMS is away")

    with monkeypatch.context() as patched:
        patched.setattr(stage.reader.holder, "decapsulate", away)
        received = stage.reader.receive()
    assert (received.taken, [type(one.error) for one in received.held]) == ([], [UnavailableError])
    assert [one.kind for one in stage.reader.receive().taken] == ["receipt"]


def test_a_deposit_that_does_not_open_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason that goes out says that it does not open, and nothing more."""
    stage.send(stage.acme)
    with monkeypatch.context() as patched:
        patched.setattr(stage.reader.holder, "decapsulate", lambda *_: bytes(32))
        (taken,) = stage.reader.receive().taken
    assert (taken.kind, taken.reason.partition(":")[0], taken.altered) == ("refusal", "cannot-open", False)


# Receipts


def receipts(change: Any) -> Change:
    """Change the receipts that the server shows."""
    return edit(path_ends("/v1/receipts"), lambda page: {**page, "items": [change(one) for one in page["items"]]})


def test_an_altered_receipt_counts_for_nothing(stage: Stage) -> None:
    """It raises an alarm, and the deposit is not acknowledged by it."""
    (delivery,) = stage.send().delivered
    stage.reader.receive()

    def alter(one: dict[str, Any]) -> dict[str, Any]:
        if one["deposit_id"] != delivery.deposit_id:
            return one
        return {**one, "receipt": base64.b64encode(flip(-40)(base64.b64decode(one["receipt"]))).decode()}

    stage.to_sender.change = receipts(alter)
    answers = stage.sender.receipts()
    assert delivery.deposit_id in {alarm.subject for alarm in answers.alarms}
    sent = stage.sender.journal.sent.of(delivery.deposit_id)
    assert sent is not None
    assert (sent.receipt, sent.state) == (None, "available")


def test_a_receipt_for_another_deposit_counts_for_nothing(stage: Stage) -> None:
    """The receipt of one deposit is no receipt of the next."""
    (first,) = stage.send().delivered
    (second,) = stage.send().delivered
    stage.reader.receive()
    kept: dict[str, str] = {}

    def swap(one: dict[str, Any]) -> dict[str, Any]:
        kept[one["deposit_id"]] = one["receipt"]
        return {**one, "receipt": kept.get(first.deposit_id, one["receipt"])}

    stage.to_sender.change = receipts(swap)
    answers = stage.sender.receipts()
    assert [one.deposit_id for one in answers.settled if one.deposit_id == first.deposit_id]
    assert [alarm.subject for alarm in answers.alarms] == [second.deposit_id]


def test_a_receipt_for_what_was_not_sent_is_an_alarm(stage: Stage) -> None:
    """The server calls something ours that is not."""
    stage.send()
    stage.reader.receive()
    stage.to_sender.change = receipts(lambda one: {**one, "deposit_id": "ab" * 16})
    answers = stage.sender.receipts()
    assert answers.settled == []
    assert {alarm.subject for alarm in answers.alarms} == {"ab" * 16}


def test_a_receipt_waits_for_a_recipient_that_cannot_be_checked(stage: Stage) -> None:
    """Without a revocation list it is judged neither good nor bad; later it is good."""
    stage.sender.receipts()
    (delivery,) = stage.send().delivered
    stage.reader.receive()
    stage.to_sender.change = no_list
    answers = stage.sender.receipts()
    assert [deposit for deposit, _ in answers.held] == [delivery.deposit_id]
    stage.to_sender.honest()
    assert [one.deposit_id for one in stage.sender.receipts().settled] == [delivery.deposit_id]
