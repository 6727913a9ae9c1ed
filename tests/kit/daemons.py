"""Private daemons on loopback: their user, their directory, their processes, and Debian's packages of them."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

LOOPBACK = "127.0.0.1"
NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""What HTTP without TLS trusts: to read all authorities of the machine for it takes 20 ms of each client."""
START_SECONDS = 90
STOP_SECONDS = 20
START_TRIES = 3
APT_SECONDS = 480
_PORTS = (10_240, 24_000)
_DRAWN = random.SystemRandom()
_ours: set[int] = set()

T = TypeVar("T")


class ServiceMissingError(RuntimeError):
    """A service that the tests need can be neither found nor started."""


class StartError(ServiceMissingError):
    """A private daemon ended early or stayed deaf; on another port it may come up."""


@dataclass(frozen=True)
class Daemon:
    """A process that we started, with the signal that ends it in order."""

    process: subprocess.Popen[bytes]
    stop_signal: signal.Signals
    watcher: subprocess.Popen[bytes]
    again: Callable[[], Daemon] | None = field(default=None, repr=False, compare=False)
    """Starts the same command once more, for who has killed it."""

    def stop(self) -> None:
        """End it by its process id: first in order, then, after `STOP_SECONDS`, with its whole session."""
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                # Its session was made for it alone, so the group holds nothing that is not its own.
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(STOP_SECONDS)
        # Before its pipe is closed, or it would signal a process id that may be another's by now.
        self.watcher.kill()
        self.watcher.wait(STOP_SECONDS)
        if self.watcher.stdin is not None:
            self.watcher.stdin.close()

    def crash(self) -> Daemon:
        """Kill -9 it with all its children, and return the same started again, which may not answer yet."""
        # PostgreSQL's children have sessions of their own, and would outlive their parent for a moment.
        for pid in [self.process.pid, *_children(self.process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)
        self.stop()
        assert self.again is not None, "nobody said how it is started"
        return self.again()


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.name))
    return found


def spawn(
    command: Sequence[str],
    log: Path,
    user: pwd.struct_passwd | None,
    environment: Mapping[str, str] | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
) -> Daemon:
    """Start a daemon in the foreground, as `user` when given, with its output appended to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=environment,
            # A session of its own: Ctrl-C reaches the tests first, and they stop the daemon in order.
            start_new_session=True,
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        )
    return Daemon(
        process,
        stop_signal,
        _watch(process.pid, stop_signal),
        lambda: spawn(command, log, user, environment, stop_signal),
    )


def _watch(pid: int, stop_signal: signal.Signals) -> subprocess.Popen[bytes]:
    """End a daemon when we do, even by SIGKILL: only we hold the other end of the pipe that this shell reads."""
    script = 'read -r _; kill -s "$1" "$2"'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "watcher", stop_signal.name.removeprefix("SIG"), str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def run(command: Sequence[str], log: Path, user: pwd.struct_passwd | None) -> None:
    """Run a preparing command to its end, or raise with the end of its log."""
    daemon = spawn(command, log, user)
    try:
        code = daemon.process.wait(START_SECONDS)
    except subprocess.TimeoutExpired:
        code = -1
    finally:
        daemon.stop()
    if code != 0:
        raise ServiceMissingError(f"{Path(command[0]).name} failed ({code}):\n{_tail(log)}")


def await_answer(name: str, answers: Callable[[], bool], log: Path, *daemons: Daemon) -> None:
    """Wait until the daemon answers; if it ends or stays deaf, stop all of `daemons` and raise `StartError`."""
    deadline = time.monotonic() + START_SECONDS
    try:
        while time.monotonic() < deadline:
            if any(daemon.process.poll() is not None for daemon in daemons):
                raise StartError(f"{name}: ended while starting:\n{_tail(log)}")
            if answers():
                return
            time.sleep(0.1)
        raise StartError(f"{name}: no answer in {START_SECONDS} s:\n{_tail(log)}")
    except BaseException:
        for daemon in daemons:
            daemon.stop()
        raise


def with_other_ports(start: Callable[[], T]) -> T:
    """A free port may be taken before the daemon binds it: try again with others, a few times."""
    for _ in range(START_TRIES - 1):
        with suppress(StartError):
            return start()
    return start()


def free_port() -> int:
    """A loopback port that nobody has at this moment, and that no other test process of this user is given.

    Below those of outgoing connections (from 32768 on Linux), which would take it while its process is being started
    again. A port is locked for as long as the test process that drew it lives: one that is free because its server is
    just starting, or starting again, is not drawn by anybody else.
    """
    for _ in range(1000):
        port = _DRAWN.randrange(*_PORTS)
        if _lock_port(port) and _is_free(port):
            return port
    raise OSError(f"no loopback port between {_PORTS[0]} and {_PORTS[1]} is free")


def _lock_port(port: int) -> bool:
    if port in _ours:
        return False
    try:
        # A record lock on one byte: it goes with the process, however that ends.
        fcntl.lockf(_lock_file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    _ours.add(port)
    return True


@cache
def _lock_file() -> int:
    # Never closed: closing any handle of the file would let go of every lock that this process has on it.
    return os.open(Path(tempfile.gettempdir()) / f"kmb-ports-{os.geteuid()}", os.O_RDWR | os.O_CREAT, 0o600)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def daemon_user(name: str) -> pwd.struct_passwd | None:
    """Whom to run as: for root the package's own user, else nobody; for everyone else themselves (None)."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return pwd.getpwnam("nobody")


def room(state_dir: Path, name: str, user: pwd.struct_passwd | None) -> Path:
    """A private directory of the daemon's; outside `state_dir` when its user may not go there, noted in NAME.path."""
    state_dir.mkdir(parents=True, exist_ok=True)
    path = state_dir.resolve() / name
    if not reachable(path.parent, user):
        note = state_dir / f"{name}.path"
        if not (note.exists() and Path(note.read_text()).is_dir()):
            note.write_text(tempfile.mkdtemp(prefix=f"keymailbox-{name}-", dir="/var/tmp"))
        path = Path(note.read_text())
    path.mkdir(exist_ok=True)
    own(path, user, 0o700)
    return path


def own(path: Path, user: pwd.struct_passwd | None, mode: int) -> None:
    """Give a path to the daemon's user alone."""
    path.chmod(mode)
    if user is not None:
        os.chown(path, user.pw_uid, user.pw_gid)


def reachable(path: Path, user: pwd.struct_passwd | None) -> bool:
    """Whether the daemon's user may enter `path` and every directory above it."""
    if user is None:
        return True
    for place in (path, *path.parents):
        status = place.stat()
        bit = 0o100 if status.st_uid == user.pw_uid else 0o010 if status.st_gid == user.pw_gid else 0o001
        if not status.st_mode & bit:
            return False
    return True


def open_scratch() -> Path:
    """A temporary directory that a daemon's user may pass through; the daemons' own rooms in it are closed."""
    base = Path(tempfile.gettempdir())
    passable = os.geteuid() != 0 or reachable(base, pwd.getpwnam("nobody"))
    scratch = Path(tempfile.mkdtemp(prefix="keymailbox-", dir=base if passable else "/var/tmp"))
    scratch.chmod(0o711)
    return scratch


def remove(path: Path) -> None:
    """Remove a scratch directory, whose files a daemon may still be removing too."""
    for _ in range(5):
        with suppress(FileNotFoundError):
            try:
                shutil.rmtree(path)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                time.sleep(0.1)
                continue
        return
    raise OSError(errno.ENOTEMPTY, "files keep appearing", str(path))


def apt_install(package: str, proof: Path) -> None:
    """Install a Debian package without starting its system daemon, or say what to do."""
    hint = f"Next: apt-get install {package}"
    if os.geteuid() != 0:
        raise ServiceMissingError(f"{package} neither answers on loopback nor is installed. {hint} (as root)")
    if shutil.which("apt-get") is None:
        raise ServiceMissingError(
            f"{package} neither answers on loopback nor is installed, and there is no apt-get here"
        )
    # One at a time: apt-get waits for another's installing, but not for another's lists.
    with Path("/run/keymailbox-apt.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not proof.exists():
            _install(package, hint)
    if not proof.exists():
        raise ServiceMissingError(f"{package} is installed, but {proof} is not there")


def _install(package: str, hint: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_autostart():
        for arguments in (["update"], ["install", "--yes", "--no-install-recommends", package]):
            command = ["apt-get", "--quiet", "-o", "DPkg::Lock::Timeout=300", *arguments]
            try:
                done = subprocess.run(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    timeout=APT_SECONDS,
                )
            except subprocess.TimeoutExpired:
                raise ServiceMissingError(f"{package}: apt-get took more than {APT_SECONDS} s. {hint}") from None
            if done.returncode != 0:
                output = done.stdout.decode(errors="replace")[-2000:]
                raise ServiceMissingError(f"{package}: apt-get {arguments[0]} failed. {hint}\n{output}")


@contextmanager
def _no_autostart() -> Iterator[None]:
    """Debian's own way to say that an installation must start nothing; a policy that is there already stays."""
    policy = Path("/usr/sbin/policy-rc.d")
    try:
        descriptor = os.open(policy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
    except FileExistsError:
        yield
        return
    try:
        with os.fdopen(descriptor, "w") as script:
            script.write("#!/bin/sh\nexit 101\n")
        yield
    finally:
        policy.unlink(missing_ok=True)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:] if log.exists() else "(no log)"
