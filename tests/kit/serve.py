"""Run the whole service on loopback: `make serve`. State is kept in var/serve; Ctrl-C stops everything in order."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import socket
import string
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import psycopg.errors
from honcho.environ import parse_procfile
from honcho.manager import Manager
from sqlalchemy import make_url

from tests.kit.services import ServiceMissingError, Services, create_database, logins

ROOT = Path(__file__).resolve().parents[2]
DATABASE = "keymailbox_serve"
LOOPBACK = "127.0.0.1"
API, ISSUER = "api", "issuer"


def main() -> int:
    """Find or start database and broker, initialise, then run the Procfile until a signal or a process's end."""
    signal.signal(signal.SIGTERM, _interrupt)
    state = ROOT / "var" / "serve"
    state.mkdir(mode=0o711, parents=True, exist_ok=True)
    with Services(state) as services:
        try:
            port = _port()
            everyone, keyholder = _environments(services, state, port)
            owner = _database(services)
            api, workers = logins(owner)
            everyone["KMB_DATABASE_URL"] = keyholder["KMB_DATABASE_URL"] = workers
            urls = {"KMB_OWNER_DATABASE_URL": owner, "KMB_API_DATABASE_URL": api}
            # What it says to do next fits a server that is set up by hand; what fits this one is said below.
            subprocess.run(["kmb-server", "init"], env=keyholder | urls, check=True, stdout=subprocess.DEVNULL)
            _keep_environment(state / "env", everyone)
            return _run({"": everyone, ISSUER: keyholder, API: everyone | {"KMB_DATABASE_URL": api}})
        except (ServiceMissingError, UnusableError) as error:
            print(f"serve: {error}", file=sys.stderr)
            return 1
        except subprocess.CalledProcessError as error:
            print(f"serve: '{shlex.join(error.cmd)}' failed ({error.returncode}), see above", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 0
        finally:
            # What we started is stopped next, and a second Ctrl-C must not leave half of it running.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


class UnusableError(Exception):
    """Something that was asked for cannot be used."""


def commands(procfile: str, port: int) -> dict[str, list[str]]:
    """Each process of a Procfile as an argument vector, with ${KMB_PORT} filled in and nothing else."""
    lines = parse_procfile(procfile).processes
    return {name: shlex.split(string.Template(line).substitute(KMB_PORT=port)) for name, line in lines.items()}


def _environments(services: Services, state: Path, port: int) -> tuple[dict[str, str], dict[str, str]]:
    """The environment of every process, and that of those which hold the CA key: init and the issuer."""
    everyone = {name: value for name, value in os.environ.items() if not name.startswith("KMB_")}
    everyone |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "KMB_BROKER_URL": services.rabbitmq.url,
        "KMB_HOME": str(state / "home"),
        "KMB_HOST": LOOPBACK,
        "KMB_PORT": str(port),
        "KMB_PUBLIC_URL": f"http://{LOOPBACK}:{port}",
        # Its own queues, since the broker may be one that others use too.
        "KMB_QUEUE_PREFIX": "keymailbox-serve",
    }
    return everyone, everyone | {"KMB_PASSPHRASE_FILE": str(_passphrase(state))}


def _keep_environment(path: Path, everyone: Mapping[str, str]) -> None:
    """Write the settings as shell variables, for the operator's commands; they may hold passwords."""
    settings = {name: value for name, value in everyone.items() if name.startswith("KMB_")}
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items()))


def _run(environments: Mapping[str, Mapping[str, str]]) -> int:
    manager = Manager()
    everyone = environments[""]
    processes = commands((ROOT / "Procfile").read_text(), int(everyone["KMB_PORT"]))
    for name, arguments in processes.items():
        environment = environments.get(name, everyone)
        # honcho goes through a shell: a quoted vector leaves it nothing to interpret, and exec leaves no shell behind.
        manager.add_process(name, f"exec {shlex.join(arguments)}", env=dict(environment), cwd=str(ROOT))
    print(f"serve: {everyone['KMB_PUBLIC_URL']} (state in var/serve; Ctrl-C stops). Next, in another terminal:")
    print("  set -a; . var/serve/env; set +a; .venv/bin/kmb-server tenant invite acme", flush=True)
    manager.loop()
    # 130 and 143 are honcho's words for Ctrl-C and SIGTERM, which are how this is meant to end.
    return 0 if manager.returncode in (0, 130, 143) else 1


def _port() -> int:
    text = os.environ.get("KMB_PORT", "8080")
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise UnusableError(f"KMB_PORT is not a port: {text!r}. Next: KMB_PORT=8080 make serve")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, int(text)))
        except OSError as error:
            raise UnusableError(f"port {text} is taken. Next: KMB_PORT={int(text) % 65000 + 1} make serve") from error
    return int(text)


def _database(services: Services) -> str:
    admin = services.postgres
    with contextlib.suppress(psycopg.errors.DuplicateDatabase):
        create_database(admin.url, DATABASE)
    return make_url(admin.url).set(database=DATABASE).render_as_string(hide_password=False)


def _passphrase(state: Path) -> Path:
    path = state / "passphrase"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32))
    return path


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
