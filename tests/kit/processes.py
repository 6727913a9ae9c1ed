"""The server as it runs in production: api, relay, the workers and beat, each a real process."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx2
import kombu
import psycopg
import redis

from pki.core.tenants import parse_tenant
from pki.server import bootstrap
from pki.server.services import access
from pki.server.settings import Settings, load_settings
from tests.kit.daemons import LOOPBACK, NOBODY, free_port
from tests.kit.proxy import TcpProxy
from tests.kit.services import logins
from tests.kit.tokens import SoftToken
from workers.app import QUEUES

START_SECONDS = 180.0
STOP_SECONDS = 40.0

ROLES: Mapping[str, tuple[str, ...]] = {
    "api": ("api",),
    "relay": ("relay",),
    "validator": ("worker", "--queues", "validate"),
    "worker": ("worker", "--queues", "notify,rotate,report"),
    "issuer": ("worker", "--queues", "issue"),
    "sequencer": ("worker", "--queues", "sequence"),
    "beat": ("beat",),
}
"""What is typed after ``kmb-server`` for each process."""
_OWNERS = ("init", "migrate")
"""The commands that have the login that owns the tables."""

T = TypeVar("T")


@dataclass
class Running:
    """One process of the server, in a session of its own so that its children can be killed with it."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """Kill -9, children and all: what a power cut does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)

    def ask_to_stop(self) -> None:
        """Send SIGTERM, once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def stopped(self) -> int:
        """Return the exit code of what was asked to stop; kill it when it does not listen."""
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop:\n{self.tail()}") from None

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-4000:]


@dataclass
class Installation:
    """A home, a database and a broker behind proxies that can be cut, and the processes that work on them."""

    room: Path
    database_url: str
    broker_url: str
    prefix: str = field(default_factory=lambda: f"kmb-t{secrets.token_hex(6)}")
    port: int = field(default_factory=free_port)
    running: dict[str, Running] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    lookouts: dict[str, int] = field(default_factory=dict)
    """Where each process tells its figures."""
    ports: dict[str, int] = field(default_factory=dict)
    """Where an API process listens that does not listen where the clients connect to: there is something in front."""
    token: SoftToken | None = None
    """Holds the issuing CA's key, made in a ceremony; without one the key is in a file."""
    code: Path | None = None
    """Where the code of all processes and commands lies that `codes` does not name; None is this release's own."""
    codes: dict[str, Path | None] = field(default_factory=dict)
    """The code of one process or command by its name."""
    direct: bool = False
    """Nothing is cut, so nothing is in between: the proxies would cost what is measured."""
    apart: bool = False
    """The root is kept apart from the home, and the first issuing CA made in a ceremony too."""

    def __post_init__(self) -> None:
        self.home = self.room / "home"
        self.passphrase = self.room / "passphrase"
        self.logs = self.room / "logs"
        self.database = proxy_to(self.database_url)
        self.broker = proxy_to(self.broker_url)

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True)
        self.passphrase.write_text(secrets.token_urlsafe(24))
        self.passphrase.chmod(0o600)
        if self.token is not None or self.apart:
            self.hold_ceremony(*(["--token"] if self.token is not None else []))
        self.command("init", private=True)
        return self

    def hold_ceremony(self, *request: str, root: str = "p-384") -> dict[str, Any]:
        """Make a root, and the next issuing CA of this server as ``ca request`` is told; return what was installed."""
        folder, asked, issued = (self.room / name for name in ("root", "asked.csr", "issued.pem"))
        self.command("ca", "init", "--root", str(folder), "--algorithm", root, root=True)
        wanted = json.loads(self.command("ca", "request", *request, "--out", str(asked), "--json", private=True))
        words = ("--root", str(folder), "--request", str(asked), "--out", str(issued), "--json")
        signed = self.command("ca", "sign-issuing", *words, "--fingerprint", wanted["key_fingerprint"], root=True)
        known = json.loads(signed)["root_fingerprint"]
        told = self.command("ca", "install", str(issued), "--root-fingerprint", known, "--json", private=True)
        return {**wanted, **json.loads(told)}

    def __exit__(self, _kind: object, failure: BaseException | None, _trace: object) -> None:
        for one in self.running.values():
            if failure is not None and one.process.poll() is not None:
                # What a test saw of it was at most a refused connection.
                failure.add_note(f"{one.name} ended by itself with {one.process.returncode}:\n{one.tail()}")
        self.database.restore()
        self.broker.restore()
        try:
            self.stop()
        finally:
            self.database.close()
            self.broker.close()
            forget_broker(self.broker_url, self.prefix)

    @property
    def url(self) -> str:
        """Where the API is."""
        return f"http://{LOOPBACK}:{self.port}"

    def start(self, *names: str) -> None:
        """Start processes, all when none is named, and wait until each is ready; NAME-2 is a second one of a role."""
        names = names or tuple(ROLES)
        for name in names:
            role = name.partition("-")[0]
            if name not in self.lookouts:
                self.lookouts[name] = free_port()
            log = self.logs / f"{name}-{secrets.token_hex(2)}.log"
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "workers.cli", *ROLES[role]],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self.environment(private=role == "issuer", role=role, name=name)
                    | {"KMB_METRICS_PORT": str(self.lookouts[name]), "KMB_PORT": str(self.ports.get(name, self.port))},
                    cwd=self._code(name),
                    start_new_session=True,
                )
            self.running[name] = Running(name, process, log)
        for name in names:
            self._ready(self.running[name])

    def stop(self, *names: str) -> dict[str, int]:
        """Stop processes in order, all when none is named, and return their exit codes."""
        chosen = [self.running.pop(name) for name in names or tuple(self.running)]
        for one in chosen:
            one.ask_to_stop()
        codes, deaf = {}, []
        for one in chosen:
            try:
                codes[one.name] = one.stopped()
            except AssertionError as failure:
                # The others are waited for all the same.
                deaf.append(str(failure))
        assert not deaf, "\n".join(deaf)
        return codes

    def kill(self, name: str) -> None:
        """Kill -9 a process with its children."""
        self.running.pop(name).kill()

    def command(self, *arguments: str, private: bool = False, root: bool = False) -> str:
        """Run a ``kmb-server`` command to its end, ``root`` with the root's passphrase; return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "workers.cli", *arguments],
            env=self.environment(private=private, role=arguments[0])
            | ({"KMB_ROOT_PASSPHRASE_FILE": str(self.passphrase)} if root else {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=self._code(arguments[0]),
            timeout=START_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode()

    def told(self, name: str, path: str = "/metrics") -> httpx2.Response:
        """Return what a process tells on its own port."""
        return httpx2.get(f"http://{LOOPBACK}:{self.lookouts[name]}{path}", timeout=30, trust_env=False, verify=NOBODY)

    def invite(self, tenant: str) -> dict[str, str]:
        """Return an invitation for an instance of a tenant, as ``kmb-server tenant invite --json`` prints it."""
        # As the owner: what an earlier release has made knows no other login yet.
        url = logins(self.database_url)[1] if self.code is None else self.database_url
        return invite(load_settings(home=self.home, database_url=url), tenant)

    def environment(self, *, private: bool = False, role: str = "", name: str = "") -> dict[str, str]:
        """Return the environment of a process; only with ``private`` does it lead to the CA's passphrase and token.

        ``role`` is the command: the API has a login of its own, and who migrates has the one that owns the tables.
        An earlier release has that one everywhere. ``name`` is the process, where it is not called like its command.
        """
        owner, code = self._reach(self.database_url, self.database.port), self._code(name or role)
        api, workers = (self._reach(url, self.database.port) for url in logins(self.database_url))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KMB_")}
        told = {
            "KMB_HOME": str(self.home),
            "KMB_DATABASE_URL": api if role == "api" else workers,
            "KMB_BROKER_URL": self._reach(self.broker_url, self.broker.port),
            "KMB_QUEUE_PREFIX": self.prefix,
            "KMB_PORT": str(self.port),
            "KMB_WEBHOOK_ALLOW_PRIVATE": "true",
            **self.variables,
        }
        if role in _OWNERS:
            told |= {"KMB_OWNER_DATABASE_URL": owner, "KMB_API_DATABASE_URL": api}
        if code is not None:
            told |= {"KMB_DATABASE_URL": owner, "PYTHONPATH": str(code)}
        if private:
            told["KMB_PASSPHRASE_FILE"] = str(self.passphrase)
            told |= self.token.settings if self.token is not None else {}
        return {**clean, **told}

    def _code(self, name: str) -> Path | None:
        return self.codes.get(name, self.code)

    def _reach(self, url: str, port: int) -> str:
        return url if self.direct else through(url, port)

    def sql(self, statement: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement on the database itself, past the proxy, and return its rows."""
        with psycopg.connect(self.libpq_url, autocommit=True) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    @property
    def libpq_url(self) -> str:
        """The database as psycopg reads it, past the proxy."""
        return self.database_url.replace("postgresql+psycopg://", "postgresql://")

    def logged(self) -> bytes:
        """Return all that the processes have logged."""
        return b"".join(log.read_bytes() for log in sorted(self.logs.iterdir()))

    def _ready(self, one: Running) -> None:
        if one.name.startswith("api"):
            port = self.ports.get(one.name, self.port)
            wait_until(lambda: answers(f"http://{LOOPBACK}:{port}/readyz"), on=one)
        elif one.name.partition("-")[0] in ("relay", "beat"):
            # Alive, not ready: they are started while what they need is away, too. The previous release does not say.
            wait_until(
                lambda: self._code(one.name) or answers(f"http://{LOOPBACK}:{self.lookouts[one.name]}/livez"), on=one
            )
        else:
            wait_until(lambda: b" ready." in one.log.read_bytes(), on=one)


def wait_until(condition: Callable[[], T | None], seconds: float = START_SECONDS, *, on: Running | None = None) -> T:
    """Return what ``condition`` says once it is true; fail after ``seconds``, or when the process ``on`` has ended."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if on is not None and on.process.poll() is not None:
            raise AssertionError(f"{on.name} ended with {on.process.returncode}:\n{on.tail()}")
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s\n{on.tail() if on else ''}")
        time.sleep(0.05)


def invite(settings: Settings, tenant: str) -> dict[str, str]:
    """Return an invitation as ``kmb-server tenant invite --json`` prints it, without starting a process for it."""
    deps = bootstrap.build(settings)
    try:
        invitation, secret = access.invite(deps, parse_tenant(tenant))
    finally:
        deps.store.close()
    return {"tenant": tenant, "reference": invitation.reference, "secret": secret}


def answers(url: str, status: int = 200) -> bool:
    """Tell whether a GET has this status; no connection at all is no."""
    try:
        return httpx2.get(url, timeout=30, trust_env=False, verify=NOBODY).status_code == status
    except httpx2.HTTPError:
        return False


def forget_broker(url: str, prefix: str) -> None:
    """Remove the queues, exchanges and keys of one installation from a broker that others use too."""
    if url.startswith("redis"):
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            for key in client.scan_iter(match=f"*{prefix}*", count=1000):
                client.delete(key)
        return
    with kombu.Connection(url) as connection, connection.channel() as channel:
        for name in (*QUEUES, "dead"):
            with contextlib.suppress(*connection.channel_errors):
                kombu.Queue(f"{prefix}.{name}", channel=channel).delete()
        for name in ("wakeups", "dead", "events"):
            with contextlib.suppress(*connection.channel_errors):
                kombu.Exchange(f"{prefix}.{name}", channel=channel).delete()


@contextlib.contextmanager
def taken_away(proxy: TcpProxy) -> Iterator[None]:
    """Cut what is behind a proxy, and give it back at the end."""
    proxy.cut()
    try:
        yield
    finally:
        proxy.restore()


def proxy_to(url: str) -> TcpProxy:
    """Return a proxy in front of the database or broker of a URL."""
    parts = urlsplit(url)
    defaults = {"redis": 6379, "amqp": 5672}
    return TcpProxy(parts.hostname or LOOPBACK, parts.port or defaults.get(parts.scheme, 5432))


def through(url: str, port: int) -> str:
    """Return a URL of the same at a port of this machine, behind which it is."""
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{credentials}{at}{LOOPBACK}:{port}"))
