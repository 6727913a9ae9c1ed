"""Put the parts together: what a process needs, from its settings; and a home, from nothing."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

from pki.core.authorities import authority_key
from pki.core.errors import SettingsError
from pki.core.signatures import SignatureAlgorithm
from pki.server.adapters.signers.file import FileSigner, create_ca, root_algorithm
from pki.server.services.deps import Deps
from pki.server.settings import Settings
from pki.server.store.engine import Store


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the time in UTC."""
        return datetime.now(UTC)


@dataclass(frozen=True)
class Home:
    """What ``init`` made or found; fingerprints are SHA-256 in hex."""

    root_algorithm: str
    root_fingerprint: str
    issuing_fingerprint: str
    schema: str | None
    passphrase_written: bool


def build(settings: Settings) -> Deps:
    """Return what the services need; connects to nothing yet."""
    return Deps(store=Store(settings.database_url), settings=settings, clock=SystemClock())


def signer(settings: Settings) -> FileSigner:
    """Return the issuing CA's key, for the one process that issues. Raises SettingsError, SealError."""
    return FileSigner(settings.home, settings.passphrase_bytes)


def init(settings: Settings, *, root: str = "") -> Home:
    """Create home, passphrase, database schema and CA where they are missing; harmless when they are there.

    ``root`` is the label of a new root's algorithm, by default ml-dsa-65; a root of another one raises SettingsError.
    """
    algorithm = root_algorithm(root or SignatureAlgorithm.ML_DSA_65.label)
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        written = _passphrase(settings)
    except OSError as error:
        raise SettingsError(
            f"The home cannot be written: {error.strerror}", on=str(settings.home), hint="kmb-server init --home DIR"
        ) from None
    deps = build(settings)
    try:
        deps.store.migrate()
        create_ca(settings.home, settings.passphrase_bytes, deps.clock.now(), root=algorithm)
        ca = signer(settings)
        there = authority_key(ca.root_der).algorithm
        if root and there is not algorithm:
            raise SettingsError(
                "There is a root of another algorithm, and it stays",
                on=f"{settings.home}: {there.title}",
                hint="kmb-server init --home ANOTHER",
            )
        return Home(
            root_algorithm=there.title,
            root_fingerprint=hashlib.sha256(ca.root_der).hexdigest(),
            issuing_fingerprint=hashlib.sha256(ca.certificate_der).hexdigest(),
            schema=deps.store.schema_version(),
            passphrase_written=written,
        )
    finally:
        deps.store.close()


def configure_logging(settings: Settings) -> None:
    """Log JSON lines on standard error, for the libraries too; for people where it is a development server."""
    import structlog

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    last: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if settings.development:
        last = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for chatty in ("httpx2", "httpcore", "httpcore2"):
        # They log whole URLs, and a webhook's path may be a token.
        logging.getLogger(chatty).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared[:3],
            shared[4],
            shared[5],
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _passphrase(settings: Settings) -> bool:
    """Write a fresh passphrase when none is configured, readable by the owner only; False when there was one."""
    if settings.passphrase is not None or settings.passphrase_path.exists():
        return False
    handle = os.open(settings.passphrase_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return True
