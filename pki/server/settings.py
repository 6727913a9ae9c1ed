"""The server's settings: read once from ``KMB_*`` variables, each with a safe default."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cached_property, lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pki.core.certificates import MAX_LIFETIME
from pki.core.errors import SettingsError

PREFIX = "KMB_"
DATABASE_NAME = "keymailbox.sqlite"
PASSPHRASE_NAME = "passphrase"  # noqa: S105  the name of a file, not its content

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# A deposit travels alone in a request body; enrolments and JSON answers need a little more than their payload.
_BODY_OVERHEAD = 64 * 1024
_FILE_CAP = 64 * 1024
# A hundred deposits of the usual six kilobytes take a fifth of it.
_BATCH_BYTES = 4 * 1024 * 1024


class Settings(BaseSettings):
    """What one server process is told; see docs of each field for its unit."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

    home: Path = Path("keymailbox-home")
    """The folder of the embedded database, the CA's sealed keys and its certificates."""
    database_url: str = Field(default="", repr=False)
    """A SQLAlchemy URL; empty means SQLite in ``home``."""
    api_database_url: str = Field(default="", repr=False)
    """The same database for the API process, with a login that row-level security holds for; empty: `database_url`."""
    owner_database_url: str = Field(default="", repr=False)
    """The same database for ``init`` and ``migrate``, with the login that owns the tables; empty: `database_url`.

    With it, both make the logins of the other two URLs and give them their rights: docs/operations.md.
    """
    broker_url: str = Field(default="memory://", repr=False)
    """Where wake-ups travel; ``memory://`` means workers inside of the server process."""
    passphrase: SecretStr | None = None
    """Opens the CA's sealed keys; only ``init`` and the issuer need it."""
    pkcs11_module: str = ""
    """The path of the PKCS #11 library of the token that holds issuing CAs' keys; empty: they are in files."""
    pkcs11_token: str = ""
    """The token's label (CKA_LABEL of the token)."""
    pkcs11_key: str = Field(default="keymailbox-issuing", min_length=1, max_length=64)
    """The label of the issuing CAs' keys in the token; which of them is whose, their certificates say."""
    token_pin: SecretStr | None = None
    """The token's user PIN; only the issuer, and who makes a key in the token, needs it."""
    public_url: str = ""
    """How clients reach the server; signatures are bound to its host and port. Empty: http://host:port."""
    client_cert_from: str = ""
    """The addresses and networks, with commas, of those who end TLS in front and say in Client-Cert (RFC 9440) who the
    client is; from nobody else that is believed. Empty: from nobody."""
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    metrics_host: str = "127.0.0.1"
    """Where figures and liveness are told, to the operator's own machines: they are not signed, and nobody else's."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """The port for them, one for each process on a machine; 0: nowhere."""
    drain_seconds: float = Field(default=0.0, ge=0, le=300)
    """For how long the API goes on serving after it was told to stop, with 503 at /readyz, in seconds: longer than a
    load balancer in front takes to notice; 0 where there is none."""
    max_deposit_bytes: int = Field(default=1024 * 1024, ge=16 * 1024, le=64 * 1024 * 1024)
    deposit_max_lifetime: timedelta = timedelta(days=90)
    limit_sender_deposits: int = Field(default=50_000, ge=0)
    """How many deposits one sender may have under way that it could take back."""
    limit_sender_bytes: int = Field(default=1024 * 1024 * 1024, ge=0)
    """How many bytes those may have."""
    limit_sender_daily: int = Field(default=200_000, ge=0)
    """How many deposits of one sender are accepted in a day (UTC)."""
    limit_mailbox_deposits: int = Field(default=50_000, ge=0)
    """How many deposits may be in one mailbox without an answer."""
    limit_mailbox_bytes: int = Field(default=1024 * 1024 * 1024, ge=0)
    """How many bytes those may have."""
    limit_share_deposits: int = Field(default=20_000, ge=0)
    """How many deposits of one tenant, all its senders together, may be in one mailbox without an answer: less than
    half of what fits, so that nobody fills it alone, not even while as many take the place of others."""
    limit_share_bytes: int = Field(default=400 * 1024 * 1024, ge=0)
    """How many bytes those may have."""
    limit_pair_deposits: int = Field(default=10_000, ge=0)
    """How many deposits of one sender may be in one mailbox without an answer."""
    limit_pair_bytes: int = Field(default=256 * 1024 * 1024, ge=0)
    """How many bytes those may have."""
    body_retention: timedelta = timedelta(days=30)
    """How long a deposit's bytes are kept after it was acknowledged, refused, rejected, superseded or withdrawn, or has
    expired: what is deleted cannot be looked into any more. Digests, signatures and receipts stay for good."""
    rate_requests: int = Field(default=0, ge=0)
    """How many signed requests of one tenant one API process takes in a second; 0: what its share lets through."""
    rate_bytes: int = Field(default=0, ge=0)
    """How many bytes of bodies it takes of one tenant in a second; 0: likewise."""
    invitation_ttl: timedelta = timedelta(hours=24)
    certificate_lifetime: timedelta | None = None
    """How long certificates are valid, within what their profile allows; as the profile says when it is not set."""
    crl_lifetime: timedelta = timedelta(hours=24)
    webhook_allow_private: bool = False
    """Webhooks may reach private and loopback addresses; for development only."""
    queue_prefix: str = Field(default="keymailbox", pattern=r"^[a-z][a-z0-9-]{0,31}$")
    long_poll_max: float = Field(default=30.0, ge=0, le=60)
    """The longest that a request may wait for news, in seconds."""
    waiting_per_address: int = Field(default=64, ge=1)
    """How many streams and long polls one API process holds open for one address."""
    waiting_per_tenant: int = Field(default=256, ge=1)
    """The same for all addresses of a tenant."""
    waiting_max: int = Field(default=4096, ge=1)
    """The same for everybody; each takes a file descriptor."""
    order_cap: int = Field(default=10, ge=0, le=100_000)
    """How many certificates the officers' orders may revoke in 24 hours, unless two of them lift it."""
    otlp_endpoint: str = ""
    """Where spans are sent to, an OTLP/HTTP collector's base URL such as http://127.0.0.1:4318; empty: nowhere, unless
    OpenTelemetry's own OTEL_EXPORTER_OTLP_ENDPOINT says so."""
    development: bool = False
    log_level: str = Field(default="info", pattern=r"^(debug|info|warning|error)$")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments first, then variables, then the files that ``*_FILE`` variables name."""
        return init_settings, env_settings, _FileVariables(settings_cls)

    @field_validator("deposit_max_lifetime", "body_retention", "invitation_ttl", "certificate_lifetime", "crl_lifetime")
    @classmethod
    def _positive(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value <= timedelta(0):
            raise ValueError("must be longer than nothing")
        return value

    @field_validator("certificate_lifetime")
    @classmethod
    def _not_for_ever(cls, value: timedelta | None) -> timedelta | None:
        # A day less than relying parties take, since a certificate starts a little before it is issued.
        if value is not None and value >= MAX_LIFETIME:
            raise ValueError(f"must be shorter than {MAX_LIFETIME.days} days, which is what agents take")
        return value

    @field_validator("public_url", "otlp_endpoint")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if value and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).netloc):
            raise ValueError("must be an absolute http:// or https:// URL")
        return value.rstrip("/")

    @field_validator("client_cert_from")
    @classmethod
    def _networks(cls, value: str) -> str:
        try:
            _parsed(value)
        except ValueError:
            raise ValueError("must be IP addresses or networks, with commas between") from None
        return value

    @model_validator(mode="before")
    @classmethod
    def _from_home(cls, data: Any) -> Any:
        home = Path(data.get("home") or cls.model_fields["home"].default).expanduser().absolute()
        filled: dict[str, Any] = {**data, "home": home}
        if not filled.get("database_url"):
            filled["database_url"] = f"sqlite:///{home / DATABASE_NAME}"
        return filled

    @model_validator(mode="after")
    def _which_token(self) -> Self:
        if self.pkcs11_module and not self.pkcs11_token:
            raise ValueError("KMB_PKCS11_MODULE needs the label of a token in KMB_PKCS11_TOKEN")
        return self

    @model_validator(mode="after")
    def _development_stays_at_home(self) -> Self:
        if self.development and self.host not in _LOOPBACK:
            raise ValueError("a development server listens on loopback only")
        return self

    @property
    def url(self) -> str:
        """Where clients reach the server, without a slash at the end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.public_url or f"http://{host}:{self.port}"

    @cached_property
    def authorities(self) -> frozenset[str]:
        """The values of ``@authority`` for which a signature is meant for this server (RFC 9421 §2.2.3)."""
        parts = urlsplit(self.url)
        names = {parts.netloc.lower()}
        if parts.hostname in _LOOPBACK:
            port = "" if parts.port is None else f":{parts.port}"
            names |= {f"[{name}]{port}" if ":" in name else f"{name}{port}" for name in _LOOPBACK}
        return frozenset(names)

    @property
    def takes_passwords(self) -> bool:
        """Whether a client may show a secret: over TLS, or without leaving the machine."""
        parts = urlsplit(self.url)
        return parts.scheme == "https" or parts.hostname in _LOOPBACK

    def is_front(self, address: str) -> bool:
        """Whether ``address`` is of those who end TLS in front of this server."""
        try:
            found = ip_address(address)
        except ValueError:
            return False
        if isinstance(found, IPv6Address) and found.ipv4_mapped:
            found = found.ipv4_mapped
        return any(found in network for network in _parsed(self.client_cert_from))

    @property
    def max_body_bytes(self) -> int:
        """The largest request body that is read at all."""
        return self.max_deposit_bytes + _BODY_OVERHEAD

    @property
    def max_batch_bytes(self) -> int:
        """The largest request body with several deposits: one of the largest always fits, in base64."""
        return max(_BATCH_BYTES, self.max_deposit_bytes * 4 // 3 + _BODY_OVERHEAD)

    @property
    def passphrase_bytes(self) -> bytes:
        """The CA's passphrase, given or from ``home``; SettingsError when this process has none.

        Read when asked for: only ``init`` and the issuer ever hold it.
        """
        if self.passphrase is not None:
            return self.passphrase.get_secret_value().encode()
        if self.passphrase_path.is_file():
            return _read(self.passphrase_path).encode()
        raise SettingsError(
            "The CA's passphrase is not set",
            on=f"{PREFIX}PASSPHRASE_FILE",
            hint=f"{PREFIX}PASSPHRASE_FILE=FILE; a new server makes one: kmb-server init --home {self.home}",
        )

    @property
    def pin(self) -> SecretStr:
        """The token's PIN; SettingsError when this process has none."""
        if self.token_pin is None:
            raise SettingsError(
                "The token's PIN is not set",
                on=f"{PREFIX}TOKEN_PIN_FILE",
                hint=f"{PREFIX}TOKEN_PIN_FILE=/path/to/pin kmb-server worker --queues issue",
            )
        return self.token_pin

    @property
    def passphrase_path(self) -> Path:
        """Where the passphrase lies when it is not given otherwise; ``init`` writes it there."""
        return self.home / PASSPHRASE_NAME


@lru_cache(maxsize=8)
def _parsed(networks: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(one.strip()) for one in networks.split(",") if one.strip())


def load_settings(**overrides: object) -> Settings:
    """Return the settings of this process; ``overrides`` that are None count as not given. Raises SettingsError."""
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]  # pydantic judges the types
    except ValidationError as error:
        # Only places and reasons: the values may be secret.
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        name = f"{PREFIX}{str(first['loc'][0]).upper()}" if first["loc"] else "settings"
        hint = f"kmb-server doctor, after {name} was put right" if first["loc"] else "kmb-server doctor"
        reason = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"The configuration cannot be used: {reason}", on=name, hint=hint) from None


class _FileVariables(PydanticBaseSettingsSource):
    """``KMB_X_FILE=/path`` gives ``x`` the file's content, so that no secret stands in an environment."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Return one field's value from the file that its variable names."""
        path = os.environ.get(f"{PREFIX}{field_name.upper()}_FILE")
        return (_read(Path(path)) if path else None), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return all the values that come from files."""
        values = {name: self.get_field_value(None, name)[0] for name in self.settings_cls.model_fields}
        return {name: value for name, value in values.items() if value is not None}


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_CAP).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(
            f"A file of the configuration cannot be read: {reason}", on=str(path), hint=f"ls -l {path}"
        ) from None
    return content.rstrip("\r\n")
