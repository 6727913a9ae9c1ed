"""Tenants with real agents at a server that really listens; and between them, if wanted, somebody who interferes."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from pki.core import kem, requests, x509
from pki.core.errors import UnavailableError
from pki.core.kem import KemAlgorithm
from pki.core.signatures import SignatureAlgorithm, VerifyingKey
from pki.core.tenants import Address, parse_address
from pki.core.x509 import CertificateKind
from pki.server.services import status
from pki.server.store import lag
from pki.tenant.agent import Agent
from pki.tenant.contexts import Context, default_name, load
from pki.tenant.enrolment import Invitation
from pki.tenant.records.own import OwnCertificate
from pki.tenant.rounds import Round
from tests.kit.authority import new_signing_key
from tests.kit.leaves import leaf_tbs
from tests.kit.memory_holder import MemoryHolder
from tests.kit.processes import wait_until
from tests.kit.site import Site, now

Change = Callable[[httpx2.Request, int, bytes], tuple[int, bytes]]
"""Sees a request, and the status and body of its answer; returns what the client gets instead."""


def impatient(seconds: float) -> None:
    """Sleep, but not for long."""
    time.sleep(min(seconds, 0.02))


class RestingSite(Site):
    """A server whose workers may rest."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._rests = False
        self._working = threading.Lock()

    @property
    def rests(self) -> bool:
        """Whether they rest; who has them rest waits until they have done what they are at."""
        return self._rests

    @rests.setter
    def rests(self, rests: bool) -> None:
        with self._working:
            self._rests = rests

    def work(self) -> None:
        """Do what is due, unless they rest."""
        with self._working:
            if not self._rests:
                super().work()


def turn(agent: Agent) -> Round:
    """Let the agent do what is due."""
    return next(agent.run(once=True))


def encryption(agent: Agent) -> OwnCertificate:
    """Return the encryption certificate that the agent has now."""
    return agent.certificates(CertificateKind.ENCRYPTION)[0]


class Wire(httpx2.BaseTransport):
    """The way to the server, with somebody on it: the operator, or a man in the middle."""

    def __init__(self) -> None:
        self._inner = httpx2.HTTPTransport()
        self.change: Change | None = None
        self.cut: Callable[[httpx2.Request], bool] = lambda request: False
        """Requests that do not get through."""
        self.deaf: Callable[[httpx2.Request], bool] = lambda request: False
        """Requests that get through, and whose answers do not."""
        self.seen: list[httpx2.Request] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Pass a request on, or not."""
        request.read()
        self.seen.append(request)
        if self.cut(request):
            raise httpx2.ConnectError("cut")
        answer = self._inner.handle_request(request)
        content = answer.read()
        answer.close()
        if self.deaf(request):
            raise httpx2.ReadError("cut")
        status = answer.status_code
        if self.change is not None:
            status, content = self.change(request, status, content)
        headers = [(name, value) for name, value in answer.headers.items() if name != "content-length"]
        return httpx2.Response(status, headers=headers, content=content)

    def close(self) -> None:
        """Let go of the connections."""
        self._inner.close()

    def honest(self) -> None:
        """Interfere no more."""
        self.change = None
        self.cut = self.deaf = lambda request: False


@dataclass(frozen=True)
class Forged:
    """A certificate that the CA's key has signed and its subject knows nothing of."""

    certificate: bytes
    request: bytes
    identity_key: VerifyingKey


class Desk:
    """A server with its workers in a thread, and agents that are enrolled there."""

    def __init__(self, site: Site, room: Path) -> None:
        self.site = site
        self._room = room
        self._open = ExitStack()
        self._stop = threading.Event()
        self._hands = threading.Thread(target=self._work, daemon=True)
        self.trouble: list[Exception] = []

    def __enter__(self) -> Self:
        status.publish(self.site.deps, self.site.keys)
        self._hands.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        self._stop.set()
        self._hands.join(30)
        assert not self.trouble, self.trouble

    def enrol(
        self,
        address: str,
        wire: Wire | None = None,
        *,
        identity: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65,
    ) -> Agent:
        """Return the agent of a new instance, with both certificates."""
        invitation, secret = self.site.invite(address.partition("/")[0])
        agent = Agent.enroll(
            parse_address(address),
            server=self.site.url,
            invitation=Invitation(invitation.reference, secret),
            home=self.home(address),
            holder=MemoryHolder(),
            identity=identity,
            clock=self.site.deps.clock.now,
            sleep=impatient,
            transport=wire,
        )
        return self._open.enter_context(agent)

    def reopen(self, agent: Agent, wire: Wire | None = None) -> Agent:
        """Return the agent as a new process sees it."""
        clock = self.site.deps.clock.now
        return self._open.enter_context(
            Agent(self.context(agent), agent.holder, clock=clock, sleep=impatient, transport=wire)
        )

    def settle(self) -> None:
        """Return once the workers have nothing left to do: a deposit that was sent is in its mailbox."""
        wait_until(self._idle)

    def context(self, agent: Agent) -> Context:
        """Return an agent's context from the disk."""
        return self.context_of(str(agent.address), self.home(str(agent.address)))

    def context_of(self, address: str, home: Path) -> Context:
        """Return the context of an address in a home."""
        return load(default_name(parse_address(address)), base=home)

    def home(self, address: str) -> Path:
        """Return the home of an instance."""
        return self._room / address.replace("/", ".")

    def forge_identity(self, address: Address) -> Forged:
        """Return what an operator with the CA's key can make up: an identity for somebody, with a key of its own."""
        key = new_signing_key()
        spki = key.public.spki
        request = requests.identity_request(address, spki, sign=key.sign, signing_time=now())
        certificate = self._sign(address, spki, CertificateKind.IDENTITY)
        return Forged(certificate, request, key.public)

    def forge(self, address: Address) -> Forged:
        """Return an encryption certificate for somebody, endorsed by an identity that the operator made up."""
        key = new_signing_key()
        spki = kem.spki(KemAlgorithm.COMPOSITE, kem.public_from_private(KemAlgorithm.COMPOSITE, kem.generate()))
        parsed = x509.parse_certificate(self._sign(address, spki, CertificateKind.ENCRYPTION))
        statement = requests.Statement(parsed.issuer_der, parsed.serial)
        request = requests.encryption_request(address, spki, statement, sign=key.sign, signing_time=now())
        return Forged(parsed.der, request, key.public)

    def _sign(self, address: Address, spki: bytes, kind: CertificateKind) -> bytes:
        signer = self.site.keys.current
        tbs = leaf_tbs(
            serial=secrets.randbits(150),
            issuer_der=signer.certificate_der,
            address=address,
            spki=spki,
            not_before=now() - timedelta(minutes=5),
            not_after=now() + timedelta(days=30),
            kind=kind,
        )
        return x509.assemble(tbs, signer.sign(tbs))

    def _idle(self) -> bool:
        with self.site.deps.store.read() as unit:
            return not {"issue", "validate"} & lag.queues(unit, self.site.deps.clock.now()).keys()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self.site.work()
            except UnavailableError:
                pass
            except Exception as error:
                self.trouble.append(error)
                return
            time.sleep(0.01)


def path_ends(*ends: str, method: str = "") -> Callable[[httpx2.Request], bool]:
    """Choose requests by the end of their path."""
    return lambda request: request.url.path.endswith(ends) and method in ("", request.method)


def edit(choose: Callable[[httpx2.Request], bool], change: Callable[[Any], Any]) -> Change:
    """Change the JSON of some answers."""

    def apply(request: httpx2.Request, status: int, content: bytes) -> tuple[int, bytes]:
        if status >= 300 or not choose(request):
            return status, content
        return status, json.dumps(change(json.loads(content))).encode()

    return apply
