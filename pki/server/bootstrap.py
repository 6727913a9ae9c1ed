"""Put the parts together: what a process needs, from its settings; and a home, from nothing."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from pki.core.authorities import authority_key
from pki.core.errors import KeymailboxError, SettingsError
from pki.core.x509 import CertificateKind
from pki.server import metrics, tracing
from pki.server.adapters import broker
from pki.server.adapters.linter import PkiLinter
from pki.server.adapters.metrics import Lookout
from pki.server.adapters.profiles import FileProfiles
from pki.server.adapters.registration import RegistrationKey
from pki.server.adapters.registration import create as create_registration
from pki.server.adapters.signers.file import KEYS, FileKeys
from pki.server.adapters.signers.held import hold_all
from pki.server.adapters.signers.home import create_ca, other_root
from pki.server.adapters.signers.homes import SeveralHomes
from pki.server.adapters.signers.root import root_algorithm
from pki.server.facts import CaChain
from pki.server.hierarchy import read_chain, read_registration
from pki.server.ports import CA_FOLDER, CaKeys, IssuingKeys
from pki.server.services import retention
from pki.server.services.deps import Deps
from pki.server.services.doctor import Finding
from pki.server.services.metrics import Figures, scrape
from pki.server.settings import Settings
from pki.server.store.engine import Store
from pki.server.store.migrating import Patience


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


def build(settings: Settings, *, for_api: bool = False) -> Deps:
    """Return what the services need; connects to nothing yet. The API has a login of its own where it is given one."""
    return Deps(
        store=Store((for_api and settings.api_database_url) or settings.database_url),
        settings=settings,
        clock=SystemClock(),
        linter=PkiLinter(),
        profiles=FileProfiles(settings.home),
    )


def migrate(settings: Settings, tell: Callable[[str], None] = lambda _: None) -> str | None:
    """Bring the schema to this release's, as the tables' owner, with the rights of the other logins; return it.

    What keeps it waiting is told. A later release's schema is left as it is.
    """
    store = Store(settings.owner_database_url or settings.database_url)
    urls = (settings.api_database_url, settings.database_url) if settings.owner_database_url else ("", "")
    try:
        store.migrate(api_url=urls[0], workers_url=urls[1], patience=Patience(tell=tell))
        return store.schema_version()
    finally:
        store.close()


@contextmanager
def watched(
    deps: Deps,
    role: str,
    ready: Callable[[], None],
    *,
    site: bool = False,
    counted: CollectorRegistry = metrics.REGISTRY,
) -> Iterator[None]:
    """While a process runs, tell on KMB_METRICS_PORT what it has counted, that it lives, and whether it is of use.

    ``ready`` raises what stands against that. With ``site`` the figures that the database has are told too. Spans are
    sent where that is asked for, by a process that has a role in the work.
    """
    if role:
        record_traces(deps.settings, role)
    registries = (counted, Figures(deps)) if site else (counted,)
    lookout = Lookout(deps.settings, lambda: scrape(*registries), ready)
    try:
        yield
    finally:
        lookout.close()
        tracing.close()


def record_traces(settings: Settings, role: str) -> None:
    """Send spans to the collector that the settings name, or OpenTelemetry's own variables; else load nothing of it."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    asked = settings.otlp_endpoint or any(os.environ.get(name) for name in names)
    if not asked or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return
    from pki.server.adapters.otlp import Spans

    tracing.record(Spans(settings.otlp_endpoint, role))


def check_profiles(deps: Deps) -> None:
    """Read the certificate profiles; raises SettingsError when the operator's files cannot be used or are too wide."""
    for kind in CertificateKind:
        deps.profiles.of(kind)


def ca_keys(settings: Settings) -> CaKeys:
    """Return the issuing CAs' keys, for the one process that issues. Raises SettingsError, SealError."""
    return hold_all(issuing_keys(settings), read_chain(settings.home), SystemClock().now())


def registration(settings: Settings) -> RegistrationKey | None:
    """Return the registration key, for the one process that issues; None where none was made yet. Raises SealError."""
    if read_registration(settings.home) is None:
        return None
    return RegistrationKey(settings.home, settings.passphrase_bytes)


class OpenKeys:
    """The issuing CAs' keys in the one process that issues, opened again when ``ca install`` has changed the chain."""

    def __init__(self, deps: Deps) -> None:
        """Open them. Raises SettingsError, SealError."""
        self._deps = deps
        self._opened = self._open()

    def __call__(self) -> CaKeys:
        """Return the keys of the issuing CAs that there are now."""
        opened = self._opened
        if self._deps.chain != opened[0]:
            opened = self._opened = self._open()
        return opened[1]

    def _open(self) -> tuple[CaChain, CaKeys]:
        chain = self._deps.chain
        return chain, hold_all(issuing_keys(self._deps.settings), chain, self._deps.clock.now())


def issuing_keys(settings: Settings, *, in_token: bool = False, rsa_bits: int = 0) -> IssuingKeys:
    """Return where the issuing CAs' keys are kept: files, and the token if there is one.

    New ones are made in files, or ``in_token``, where ``rsa_bits`` is the size of an RSA key. Raises SettingsError
    without a passphrase, a token that is asked for, or its PIN.
    """
    files = FileKeys(settings.home, settings.passphrase_bytes)
    if not settings.pkcs11_module:
        if in_token:
            raise SettingsError(
                "No token is configured",
                on="KMB_PKCS11_MODULE",
                hint="set KMB_PKCS11_MODULE, KMB_PKCS11_TOKEN and KMB_TOKEN_PIN_FILE: docs/operations.md",
            )
        return files
    # Only here: who has no token loads nothing of it.
    from pki.server.adapters.signers.pkcs11 import TokenKeys
    from pki.server.adapters.signers.tokens import token

    held = token(settings.pkcs11_module, settings.pkcs11_token, settings.pin)
    tokens = TokenKeys(held, settings.pkcs11_key, rsa_bits=rsa_bits)
    return SeveralHomes(tokens, files) if in_token else SeveralHomes(files, tokens)


def check_keys(settings: Settings) -> None:
    """Open the issuing CAs' keys and let go of them again; raises what stands against that."""
    ca_keys(settings)
    if settings.pkcs11_module:
        from pki.server.adapters.signers.tokens import release

        release()


def examine_broker(settings: Settings) -> list[Finding]:
    """Return whether the broker is there, and has given nothing up."""
    try:
        return [Finding("broker", True, broker.examine(settings.broker_url, settings.queue_prefix))]
    except KeymailboxError as error:
        return [Finding("broker", False, str(error), error.hint)]


def examine_token(settings: Settings) -> list[Finding]:
    """Return whether the token is there, for a process that has one; no PIN is sent, so a wrong one locks nothing."""
    if not settings.pkcs11_module:
        return []
    from pki.server.adapters.signers.tokens import Token

    try:
        detail = Token(settings.pkcs11_module, settings.pkcs11_token, SecretStr("")).describe()
    except KeymailboxError as error:
        return [Finding("token", False, str(error), error.hint)]
    return [Finding("token", True, detail)]


def init(settings: Settings, *, root: str = "", root_passphrase: bytes = b"") -> Home:
    """Create home, passphrase, database schema and CA where they are missing; harmless when they are there.

    ``root`` is the label of a new root's algorithm, by default ml-dsa-65; a root of another one raises SettingsError.
    ``root_passphrase`` seals a new root's key, by default the CA's passphrase does.
    """
    algorithm = root_algorithm(root) if root else None
    written = prepare_home(settings)
    deps = build(settings)
    try:
        schema = migrate(settings)
        retention.prepare(deps)
        chain = create_ca(
            settings.home,
            settings.passphrase_bytes,
            deps.clock.now(),
            root=algorithm,
            root_passphrase=root_passphrase,
        )
        create_registration(settings.home, settings.passphrase_bytes)
        ca_keys(settings)
        there = authority_key(chain.root).algorithm
        if algorithm not in (None, there):
            raise other_root(settings.home, there)
        return Home(
            root_algorithm=there.title,
            root_fingerprint=hashlib.sha256(chain.root).hexdigest(),
            issuing_fingerprint=hashlib.sha256(chain.issuing).hexdigest(),
            schema=schema,
            passphrase_written=written,
        )
    finally:
        deps.store.close()


def prepare_home(settings: Settings) -> bool:
    """Make the home and, where none is configured, the passphrase of its keys; True when that was written just now."""
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _passphrase(settings)
    except OSError as error:
        raise SettingsError(
            f"The home cannot be written: {error.strerror}", on=str(settings.home), hint="kmb-server init --home DIR"
        ) from None


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
    # No message tells which line of code it is from, and to find that out is a third of what it costs (the logging
    # documentation, "Optimization").
    logging._srcfile = None
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
    """Write a fresh passphrase when none is configured, readable by the owner only; False when there was one.

    Where keys are sealed already there is one, wherever it is: another would seal a key that the issuer cannot open.
    """
    sealed = (settings.home / CA_FOLDER / KEYS).glob("*.sealed")
    if settings.passphrase is not None or settings.passphrase_path.exists() or any(sealed):
        return False
    handle = os.open(settings.passphrase_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return True
