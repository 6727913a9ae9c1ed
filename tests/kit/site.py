"""A server that really listens, on loopback, over a real store; and instances that speak HTTP to it with real keys."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import jsonschema_rs
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pki.core import certificates as facts
from pki.core import deposits, envelope, httpsig, kem, receipts, requests, revocations, x509
from pki.core.crl import Reason
from pki.core.envelope import Recipient
from pki.core.ids import DepositId, Fingerprint, KeyId, RequestId
from pki.core.kem import KemAlgorithm
from pki.core.packages import KeyMaterial
from pki.core.signers import SigningKey
from pki.core.tenants import Address, parse_address, parse_tenant
from pki.server import bootstrap
from pki.server.adapters.registration import RegistrationKey
from pki.server.api import openapi
from pki.server.app import Server
from pki.server.facts import Invitation
from pki.server.ports import CaKeys, Clock
from pki.server.services import access, issuing, status
from pki.server.services import deposits as deposit_service
from pki.server.services.cmp import handling
from pki.server.settings import Settings, load_settings
from pki.server.store import outbox
from pki.server.store.engine import Store
from tests.kit.authority import new_signing_key
from tests.kit.daemons import NOBODY
from tests.kit.services import login

KEY = KeyMaterial(b"a shared key, 32 bytes of it, ok", "application/x-test")
_PATIENCE = 60.0


def now() -> datetime:
    """Return the time, as the server sees it too."""
    return datetime.now(UTC)


class Site:
    """One API process on a port of its own; workers work when a test says so."""

    def __init__(self, home: Path, database_url: str, *, clock: Clock | None = None, **overrides: Any) -> None:
        """Take a home that has a CA, and a migrated database; ``clock`` replaces the machine's."""
        # By its full name: only then does asyncio switch off Nagle, which costs 40 ms an answer.
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self.port: int = self._listener.getsockname()[1]
        self.settings: Settings = load_settings(home=home, database_url=database_url, port=self.port, **overrides)
        self.deps = bootstrap.build(self.settings)
        if clock is not None:
            self.deps = replace(self.deps, clock=clock)
        # Where the database has logins, the API has its own, as in production.
        found = self.deps.store.standing()
        self.served = self.deps
        if found.api is not None and found.workers is not None and not self.settings.development:
            self.deps.store.close()
            as_workers, as_api = (Store(login(database_url, name)) for name in (found.workers, found.api))
            self.deps, self.served = replace(self.deps, store=as_workers), replace(self.deps, store=as_api)
        self.server = Server(self.settings, self.served)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self._listener]}, daemon=True)
        self.http = httpx2.Client(base_url=self.url, timeout=_PATIENCE, trust_env=False, verify=NOBODY)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + _PATIENCE
        while not self.server.started:
            assert self._thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.005)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        self.server.should_exit = True
        self._thread.join(_PATIENCE)
        self.deps.store.close()
        self.served.store.close()
        self._listener.close()

    @property
    def keys(self) -> CaKeys:
        """What the issuer process holds."""
        return self._open_keys()

    @cached_property
    def _open_keys(self) -> bootstrap.OpenKeys:
        return bootstrap.OpenKeys(self.deps)

    @cached_property
    def opener(self) -> RegistrationKey | None:
        """What opens the secrets of invitations."""
        return bootstrap.registration(self.settings)

    @property
    def waiting(self) -> int:
        """How many requests wait for news."""
        return self.server._app.state.waiting.count

    def invite(self, tenant: str) -> tuple[Invitation, str]:
        """Make an invitation."""
        return access.invite(self.deps, parse_tenant(tenant))

    def work(self) -> None:
        """Do what workers would do for requests and deposits, until nothing is due."""
        while True:
            at = self.deps.clock.now()
            with self.deps.store.unit() as unit:
                issue = outbox.claim(unit, "issue", 100, now=at, lease=timedelta(seconds=60))
                validate = outbox.claim(unit, "validate", 100, now=at, lease=timedelta(seconds=60))
            if not issue and not validate:
                return
            asked = [RequestId(job.subject) for job in issue if job.kind == "certificate"]
            for result in issuing.issue(self.deps, self.keys, asked).values():
                if isinstance(result, Exception):
                    raise result
            if any(job.kind == "crl" for job in issue):
                status.publish(self.deps, self.keys)
            messages = [job.subject for job in issue if job.kind == "cmp"]
            for failed in handling.handle(handling.Desk(self.deps, self.keys, self.opener), messages).values():
                if failed is not None:
                    raise failed
            for validated in deposit_service.validate(self.deps, [DepositId(job.subject) for job in validate]).values():
                if isinstance(validated, Exception):
                    raise validated
            with self.deps.store.unit() as unit:
                outbox.finish(unit, [job.id for job in [*issue, *validate]])

    def instance(self, address: str) -> Instance:
        """Return an instance that is enrolled and has both certificates."""
        made = Instance(self, parse_address(address))
        assert made.enrol().status_code == 201
        self.work()
        made.certify()
        return made


@dataclass
class Instance:
    """A tenant's KMS instance: three keys, and signed requests."""

    site: Site
    address: Address
    access: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    identity: SigningKey = field(default_factory=new_signing_key)
    encryption: bytes = field(default_factory=kem.generate)
    identity_certificate: bytes = b""
    encryption_certificate: bytes = b""

    @property
    def access_raw(self) -> bytes:
        """The access key's public half."""
        return self.access.public_key().public_bytes_raw()

    @property
    def spki(self) -> bytes:
        """The identity key's public half."""
        return self.identity.public.spki

    @property
    def ski(self) -> bytes:
        """The identity key's name."""
        return x509.key_identifier(self.spki)

    @property
    def recipient(self) -> Recipient:
        """What others wrap to."""
        algorithm = KemAlgorithm.COMPOSITE
        public = kem.public_from_private(algorithm, self.encryption)
        return Recipient(kem.ski(kem.spki(algorithm, public)), algorithm, public)

    @property
    def mailbox(self) -> str:
        """The mailbox's path."""
        return f"/v1/mailboxes/{self.address}"

    def call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        content_type: str = "",
        headers: Mapping[str, str] | None = None,
        *,
        created: datetime | None = None,
        nonce: str | None = None,
    ) -> httpx2.Response:
        """Send a signed request."""
        fields = dict(headers or {}) | ({"Content-Type": content_type} if content_type else {})
        fields |= self.signature(method, path, body, fields, created=created, nonce=nonce)
        answer = self.site.http.request(method, path, content=body, headers=fields)
        described(method, path, answer)
        return answer

    def signature(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        created: datetime | None = None,
        nonce: str | None = None,
    ) -> dict[str, str]:
        """Return the headers that sign a request."""
        return httpsig.sign_request(
            method,
            self.site.url + path,
            headers or {},
            body,
            key_id=httpsig.key_id(self.access_raw),
            sign=self.access.sign,
            created=created or now(),
            nonce=nonce or secrets.token_hex(16),
        )

    def get(self, path: str) -> httpx2.Response:
        """Read."""
        return self.call("GET", path)

    def post(self, path: str, content: Any) -> httpx2.Response:
        """Send JSON."""
        return self.call("POST", path, json.dumps(content).encode(), "application/json")

    def enrolment(self, invitation: Invitation, secret: str) -> dict[str, str]:
        """Return the enrolment's JSON."""
        request = requests.identity_request(self.address, self.spki, sign=self.identity.sign, signing_time=now())
        return {
            "reference": invitation.reference,
            "secret": secret,
            "address": str(self.address),
            "access_key": base64.b64encode(self.access_raw).decode(),
            "identity_request": base64.b64encode(request).decode(),
        }

    def enrol(self) -> httpx2.Response:
        """Enrol with a fresh invitation."""
        return self.post("/v1/enrolments", self.enrolment(*self.site.invite(self.address.tenant)))

    def certify(self) -> None:
        """Fetch the identity certificate, get the encryption key certified and prove it."""
        directory = self.get(f"/v1/directory/{self.address}").json()
        self.identity_certificate = base64.b64decode(directory["identity"]["certificate"])
        answer = self.request_encryption()
        assert answer.status_code == 202, answer.text
        self.site.work()
        told = self.get(answer.headers["location"]).json()
        opened = self.open_challenge(base64.b64decode(told["challenge"]))
        proved = self.post(answer.headers["location"] + "/proof", {"sha256": facts.proof_of_decryption(opened)})
        assert proved.status_code == 200, proved.text
        self.encryption_certificate = opened

    def request_encryption(self) -> httpx2.Response:
        """Submit a request for the encryption key."""
        identity = x509.parse_certificate(self.identity_certificate)
        algorithm = KemAlgorithm.COMPOSITE
        der = requests.encryption_request(
            self.address,
            kem.spki(algorithm, kem.public_from_private(algorithm, self.encryption)),
            requests.Statement(identity.issuer_der, identity.serial),
            sign=self.identity.sign,
            signing_time=now(),
        )
        return self.call("POST", "/v1/certificate-requests", der, "application/pkcs10")

    def open_challenge(self, challenge: bytes) -> bytes:
        """Decrypt what came encrypted to the encryption key."""
        return envelope.unwrap(
            envelope.parse(challenge),
            self.recipient.ski,
            lambda algorithm, text: kem.decapsulate(algorithm, self.encryption, text),
        )

    def compose(self, to: Instance, *, recipient: Address | None = None, **changes: Any) -> tuple[DepositId, bytes]:
        """Return a deposit's id and bytes."""
        package_id = secrets.token_bytes(16)
        context = deposits.Context(
            sender=changes.get("sender", self.address),
            recipient=recipient or to.address,
            key_id=KeyId(changes.get("key_id", "orders")),
            key_version=1,
            purpose="encrypt",
            expires=changes.get("expires", now() + timedelta(days=1)),
        )
        body = deposits.compose(
            changes.get("material", KEY),
            context,
            package_id=package_id,
            recipient=to.recipient,
            signer_ski=self.ski,
            sign=self.identity.sign,
            signing_time=now(),
        )
        return DepositId(package_id.hex()), body

    def deposit(self, body: bytes, key: str | None = None, **headers: str) -> httpx2.Response:
        """Hand a deposit in."""
        fields = {"Idempotency-Key": key or secrets.token_hex(8)} | headers
        return self.call("POST", "/v1/deposits", body, "application/cms", fields)

    def send(self, to: Instance) -> tuple[DepositId, bytes]:
        """Hand in a deposit that is accepted and becomes available."""
        deposit_id, body = self.compose(to)
        answer = self.deposit(body)
        assert answer.status_code == 202, answer.text
        self.site.work()
        return deposit_id, body

    def receipt(self, deposit_id: DepositId, body: bytes) -> bytes:
        """Return a signed receipt."""
        return receipts.compose_receipt(
            deposit_id,
            hashlib.sha512(body).digest(),
            self.address,
            signer_ski=self.ski,
            sign=self.identity.sign,
            signing_time=now(),
        )

    def revocation(self, fingerprint: str) -> bytes:
        """Return a signed wish to revoke."""
        return revocations.compose_revocation(
            Fingerprint(fingerprint),
            Reason.KEY_COMPROMISE,
            signer_ski=self.ski,
            sign=self.identity.sign,
            signing_time=now(),
        )


class Homes:
    """Copies of a home with a CA: making one takes a while, copying does not."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._template = directory / "template"
        bootstrap.init(load_settings(home=self._template))

    def new(self) -> Path:
        """Return a fresh home."""
        home = self._directory / secrets.token_hex(6)
        shutil.copytree(self._template, home)
        return home


@cache
def _operations() -> list[tuple[str, re.Pattern[str], dict[str, Any]]]:
    found = openapi.describe()
    return [
        (method.upper(), re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), operation)
        for path, operations in found["paths"].items()
        for method, operation in operations.items()
    ]


@cache
def _schema(name: str) -> Any:
    reference = {"$ref": f"#/components/schemas/{name}", "components": openapi.describe()["components"]}
    return jsonschema_rs.validator_for(reference, validate_formats=True)


def described(method: str, path: str, answer: httpx2.Response) -> None:
    """Check that a JSON answer is what the API's description says."""
    kind = answer.headers.get("content-type", "")
    if kind == "application/problem+json":
        _schema("Problem").validate(answer.json())
    elif kind == "application/json":
        bare = path.partition("?")[0]
        [operation] = [one for verb, form, one in _operations() if verb == method and form.fullmatch(bare)]
        told = operation["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
        _schema(told["$ref"].rpartition("/")[2]).validate(answer.json())


def code(response: httpx2.Response) -> tuple[int, str]:
    """Return status and stable code of a problem, having checked its form (RFC 9457)."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    told = response.json()
    assert set(told) >= {"type", "title", "status", "detail", "code", "hint"}, told
    assert told["status"] == response.status_code
    assert told["type"] == f"https://keymailbox.invalid/problems/{told['code']}"
    assert told["hint"]
    return response.status_code, told["code"]


def in_time(site: Site, act: Callable[[], httpx2.Response], then: Callable[[], object]) -> httpx2.Response:
    """Start a long poll, see that it waits, do something, and return its answer, which comes soon."""
    found: list[httpx2.Response] = []
    poller = threading.Thread(target=lambda: found.append(act()))
    poller.start()
    deadline = time.monotonic() + _PATIENCE
    while not site.waiting:
        assert not found and time.monotonic() < deadline
        time.sleep(0.01)
    then()
    started = time.monotonic()
    poller.join(60)
    # Long before the poll would have ended by itself.
    assert time.monotonic() - started < 15
    return found[0]
