"""Contexts: who one is, at which server, with which keys; several side by side in ``$KMB_HOME``."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from pki.core.errors import ConflictError, KeymailboxError, NotFoundError, SettingsError, UsageError
from pki.core.tenants import Address, parse_address
from pki.tenant import disk

_FORMAT = "keymailbox-context/1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_FILE = "context.json"


@dataclass(frozen=True)
class Context:
    """What is known after enrolment: the server, one's own address, and the root certificate that is trusted."""

    name: str
    folder: Path
    server: str
    address: Address
    root: bytes
    issuing: bytes
    passphrase_file: Path | None = None
    """The file that opens the keys; None: a key file of our own inside the context."""
    enrolled: bool = False

    @property
    def root_fingerprint(self) -> str:
        """SHA-256 of the root certificate, in hex: compare it with what the operator tells you."""
        return hashlib.sha256(self.root).hexdigest()

    @property
    def keys(self) -> Path:
        """The folder of the file holder."""
        return self.folder / "keys"

    @property
    def lock(self) -> Path:
        """The file that the one agent has locked that runs by itself."""
        return self.folder / "agent.lock"

    @property
    def key_file(self) -> Path:
        """The passphrase of our own, when there is no other."""
        return self.folder / "passphrase"

    @property
    def journal(self) -> Path:
        """The journal's database."""
        return self.folder / "journal.sqlite"


def home() -> Path:
    """Return ``$KMB_HOME``, or ``~/.config/keymailbox``."""
    named = os.environ.get("KMB_HOME", "")
    return Path(named).expanduser().absolute() if named else Path.home() / ".config" / "keymailbox"


def check_server(url: str, *, allow_http: bool = False) -> str:
    """Return the server's URL without a slash at its end; plain http only to this machine, or when asked for."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise SettingsError("The server's URL cannot be used", on=url[:200], hint="--server https://mailbox.example")
    if parts.scheme == "http" and not allow_http and not _is_loopback(parts.hostname):
        raise SettingsError(
            "Plain http shows everybody on the way who writes to whom",
            on=url[:200],
            hint="use https, or say --allow-http",
        )
    return url.rstrip("/")


def default_name(address: Address) -> str:
    """Return the name of a context for an address."""
    return f"{address.tenant}.{address.instance}"


def save(context: Context) -> None:
    """Write a context to disk, in the place of its earlier state."""
    _check_name(context.name)
    disk.private_folder(context.folder)
    body = {
        "format": _FORMAT,
        "server": context.server,
        "address": str(context.address),
        "root": base64.b64encode(context.root).decode(),
        "issuing": base64.b64encode(context.issuing).decode(),
        "passphrase_file": str(context.passphrase_file) if context.passphrase_file else None,
        "enrolled": context.enrolled,
    }
    disk.replace(context.folder / _FILE, json.dumps(body, indent=1).encode() + b"\n")


def mark_enrolled(context: Context) -> Context:
    """Write down that the server knows us, and return the context that says so."""
    done = replace(context, enrolled=True)
    save(done)
    return done


def folder_of(name: str, *, base: Path | None = None) -> Path:
    """Return where a context of this name lives."""
    return (base or home()) / "contexts" / _check_name(name)


def load(name: str, *, base: Path | None = None) -> Context:
    """Read a context, or raise NotFoundError."""
    folder = folder_of(name, base=base)
    try:
        body = json.loads((folder / _FILE).read_bytes())
    except FileNotFoundError:
        raise NotFoundError("There is no such context", on=name, hint="kmb context list") from None
    except ValueError:
        raise SettingsError("The context's file is damaged", on=str(folder / _FILE), hint="restore it") from None
    try:
        if body["format"] != _FORMAT:
            raise ValueError(body["format"])
        return Context(
            name=name,
            folder=folder,
            server=check_server(body["server"], allow_http=True),
            address=parse_address(body["address"]),
            root=base64.b64decode(body["root"], validate=True),
            issuing=base64.b64decode(body["issuing"], validate=True),
            passphrase_file=Path(body["passphrase_file"]) if body["passphrase_file"] else None,
            enrolled=body["enrolled"] is True,
        )
    except (KeyError, TypeError, ValueError, AttributeError, KeymailboxError):
        raise SettingsError("The context's file is damaged", on=str(folder / _FILE), hint="restore it") from None


def names(*, base: Path | None = None) -> list[str]:
    """Return the names of all contexts, in order."""
    return sorted(path.parent.name for path in ((base or home()) / "contexts").glob(f"*/{_FILE}"))


def choose(name: str | None = None, *, base: Path | None = None) -> str:
    """Return the context to use: the one named, else ``$KMB_CONTEXT``, else the chosen one, else the only one."""
    chosen = name or os.environ.get("KMB_CONTEXT", "") or _chosen(base)
    if chosen:
        return _check_name(chosen)
    there = names(base=base)
    if not there:
        hint = "kmb enroll TENANT/INSTANCE --server URL --invitation FILE"
        raise NotFoundError("Nobody is enrolled here yet", on=str(base or home()), hint=hint)
    if len(there) > 1:
        raise UsageError("There are several contexts", on=", ".join(there), hint=f"kmb context use {there[0]}")
    return there[0]


def use(name: str, *, base: Path | None = None) -> None:
    """Make a context the one that is used when none is named."""
    load(name, base=base)
    disk.replace((base or home()) / "context", name.encode() + b"\n")


def claim(name: str, *, base: Path | None = None) -> None:
    """Refuse a name that an enrolled context has."""
    if name in names(base=base) and load(name, base=base).enrolled:
        hint = f"kmb --context {name} whoami, or choose another name with --name"
        raise ConflictError("A context of this name is enrolled already", on=name, hint=hint)


def _chosen(base: Path | None) -> str:
    try:
        return ((base or home()) / "context").read_text().strip()
    except FileNotFoundError:
        return ""


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError("A context's name has letters, digits and . _ -", on=name[:90], hint="kmb context list")
    return name


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
