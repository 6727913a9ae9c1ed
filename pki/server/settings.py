"""The server's settings: read once from ``KMB_*`` variables, each with a safe default."""

from __future__ import annotations

import os
from datetime import timedelta
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


class Settings(BaseSettings):
    """What one server process is told; see docs of each field for its unit."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

    home: Path = Path("keymailbox-home")
    """The folder of the embedded database, the CA's sealed keys and its certificates."""
    database_url: str = Field(default="", repr=False)
    """A SQLAlchemy URL; empty means SQLite in ``home``."""
    broker_url: str = Field(default="memory://", repr=False)
    """Where wake-ups travel; ``memory://`` means workers inside of the server process."""
    passphrase: SecretStr | None = None
    """Opens the CA's sealed keys; only ``init`` and the issuer need it."""
    public_url: str = ""
    """How clients reach the server; signatures are bound to its host and port. Empty: http://host:port."""
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    max_deposit_bytes: int = Field(default=1024 * 1024, ge=16 * 1024, le=64 * 1024 * 1024)
    deposit_max_lifetime: timedelta = timedelta(days=90)
    invitation_ttl: timedelta = timedelta(hours=24)
    certificate_lifetime: timedelta = timedelta(days=365)
    crl_lifetime: timedelta = timedelta(hours=24)
    webhook_allow_private: bool = False
    """Webhooks may reach private and loopback addresses; for development only."""
    queue_prefix: str = Field(default="keymailbox", pattern=r"^[a-z][a-z0-9-]{0,31}$")
    long_poll_max: float = Field(default=30.0, ge=0, le=60)
    """The longest that a request may wait for news, in seconds."""
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

    @field_validator("deposit_max_lifetime", "invitation_ttl", "certificate_lifetime", "crl_lifetime")
    @classmethod
    def _positive(cls, value: timedelta) -> timedelta:
        if value <= timedelta(0):
            raise ValueError("must be longer than nothing")
        return value

    @field_validator("certificate_lifetime")
    @classmethod
    def _not_for_ever(cls, value: timedelta) -> timedelta:
        # A day less than relying parties take, since a certificate starts a little before it is issued.
        if value >= MAX_LIFETIME:
            raise ValueError(f"must be shorter than {MAX_LIFETIME.days} days, which is what agents take")
        return value

    @field_validator("public_url")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if value and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).netloc):
            raise ValueError("must be an absolute http:// or https:// URL")
        return value.rstrip("/")

    @model_validator(mode="before")
    @classmethod
    def _from_home(cls, data: Any) -> Any:
        home = Path(data.get("home") or cls.model_fields["home"].default).expanduser().absolute()
        filled: dict[str, Any] = {**data, "home": home}
        if not filled.get("database_url"):
            filled["database_url"] = f"sqlite:///{home / DATABASE_NAME}"
        return filled

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

    @property
    def authorities(self) -> frozenset[str]:
        """The values of ``@authority`` for which a signature is meant for this server (RFC 9421 §2.2.3)."""
        parts = urlsplit(self.url)
        names = {parts.netloc.lower()}
        if parts.hostname in _LOOPBACK:
            port = "" if parts.port is None else f":{parts.port}"
            names |= {f"[{name}]{port}" if ":" in name else f"{name}{port}" for name in _LOOPBACK}
        return frozenset(names)

    @property
    def max_body_bytes(self) -> int:
        """The largest request body that is read at all."""
        return self.max_deposit_bytes + _BODY_OVERHEAD

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
            hint=f"{PREFIX}PASSPHRASE_FILE=/path/to/passphrase kmb-server init --home {self.home}",
        )

    @property
    def passphrase_path(self) -> Path:
        """Where the passphrase lies when it is not given otherwise; ``init`` writes it there."""
        return self.home / PASSPHRASE_NAME


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
