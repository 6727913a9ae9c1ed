"""The server for playing and for scripts: one process on loopback, on SQLite, with the worker inside."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

from pki.core.errors import SettingsError
from pki.server import bootstrap
from pki.server.settings import Settings, load_settings
from pki.server.stopping import FORCED_SECONDS, end_within

_LOOPBACK = "127.0.0.1"


def serve(home: Path | None, port: int | None) -> None:
    """Make the home if there is none, serve until SIGTERM or SIGINT, stop in order. Raises SettingsError."""
    from pki.server.app import Server
    from workers.embedded import Embedded

    listener = _listen(load_settings(home=home, port=port, **_FIXED).port)
    with listener:
        # Signatures are bound to the port, so it has to be known before anything is built on it.
        settings = load_settings(home=home, port=listener.getsockname()[1], **_FIXED)
        made = bootstrap.init(settings)
        bootstrap.configure_logging(settings)
        deps = bootstrap.build(settings)
        try:
            hands = Embedded(deps)
            server = Server(settings, deps)
            # Before and after uvicorn has its own: by then there is still a worker to stop.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: end_within(FORCED_SECONDS))
            with bootstrap.watched(deps, "dev", server.ready, site=True):
                hands.start()
                try:
                    _explain(settings, made)
                    server.run(sockets=[listener])
                finally:
                    hands.stop()
        finally:
            deps.store.close()


_FIXED: dict[str, object] = {
    "host": _LOOPBACK,
    "public_url": "",
    "database_url": "",
    "broker_url": "memory://",
    "development": True,
    "webhook_allow_private": True,
}


def _listen(port: int) -> socket.socket:
    # By its full name: only then does asyncio switch off Nagle, which costs 40 ms an answer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_LOOPBACK, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"The port cannot be had: {error.strerror}", on=f"{_LOOPBACK}:{port}", hint="kmb-server dev --port 0"
        ) from None
    return listener


def _explain(settings: Settings, made: bootstrap.Home) -> None:
    home, url, root = settings.home, settings.url, made.root_fingerprint
    lines = (
        f"keymailbox for development on {url}: loopback only, no TLS, SQLite, the worker inside. Not for real keys.",
        "",
        f"  home              {home}",
        f"  passphrase        {settings.passphrase_path} (opens the CA's keys; yours to read only)",
        f"  root fingerprint  {root}",
        "",
        "Invite a tenant, from another terminal:",
        "",
        f"  KMB_PUBLIC_URL={url} kmb-server tenant invite acme --home {home}",
        "",
        "Enrol one of its KMS instances with what that prints:",
        "",
        f"  kmb enroll acme/eu-west --server {url} --reference REFERENCE --root {root}",
        "",
        "Ctrl-C stops it; everything stays in the home.",
    )
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
