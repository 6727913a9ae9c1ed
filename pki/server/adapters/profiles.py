"""Certificate profiles in files: those that come along, and the operator's in ``<home>/profiles``, which may narrow."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from pki.core.errors import ProfileError, SettingsError
from pki.core.issuance import CertificateProfile, ExtensionRule, check_narrower
from pki.core.x509 import CertificateKind

FOLDER = "profiles"
"""Where the operator's profiles lie in the server's home, each named after its kind."""
_LARGEST = 64 * 1024


class FileProfiles:
    """The profiles of one server: for each kind the operator's, where there is one, else the one that comes along.

    Read when asked for first, and once: a changed file counts from the next start on.
    """

    def __init__(self, home: Path) -> None:
        """Read nothing yet."""
        self._folder = home / FOLDER

    def of(self, kind: CertificateKind) -> CertificateProfile:
        """Return the profile of a kind; raises SettingsError when a file cannot be used or widens one."""
        return self._all[kind]

    @property
    def all(self) -> Mapping[CertificateKind, CertificateProfile]:
        """All profiles, with the same errors."""
        return self._all

    def path(self, kind: CertificateKind) -> Path | None:
        """Return the operator's file for a kind, None where the profile is the one that comes along."""
        path = self._folder / f"{kind}.toml"
        return path if path.is_file() else None

    @cached_property
    def _all(self) -> Mapping[CertificateKind, CertificateProfile]:
        self._refuse_strangers()
        found = {}
        for kind in CertificateKind:
            path = self.path(kind)
            found[kind] = packaged(kind) if path is None else read(path)
            if found[kind].kind is not kind:
                raise SettingsError(
                    f"The profile is for {found[kind].kind}", on=str(path), hint=f"mv {path} {found[kind].kind}.toml"
                )
        return found

    def _refuse_strangers(self) -> None:
        # A misspelt name would leave the wider profile in place without a word.
        known = {f"{kind}.toml" for kind in CertificateKind}
        strange = sorted(one.name for one in self._folder.glob("*.toml") if one.name not in known)
        if strange:
            raise SettingsError(
                "There is no kind of certificate with this profile",
                on=str(self._folder / strange[0]),
                hint=f"one of {', '.join(sorted(known))}",
            )


def read(path: Path) -> CertificateProfile:
    """Return an operator's profile; raises SettingsError when it cannot be read, is none, or is too wide."""
    hint = f"kmb-server profile check {path}"
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise SettingsError(
            f"The profile cannot be read: {error.strerror}", on=str(path), hint=f"ls -l {path}"
        ) from None
    if len(content) > _LARGEST:
        raise SettingsError(f"A profile has at most {_LARGEST} bytes", on=str(path), hint=hint)
    try:
        found = parse(content.decode())
        check_narrower(found, packaged(found.kind))
    except ProfileError as error:
        raise SettingsError(error.message, on=str(path), rule=error.rule, hint=hint) from None
    except UnicodeDecodeError:
        raise SettingsError("The profile is not UTF-8 text", on=str(path), hint=hint) from None
    return found


def parse(text: str) -> CertificateProfile:
    """Return the profile that a TOML text is; raises ProfileError that says where it is none."""
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"The profile is no TOML: {error}") from None
    wrong = next(_validator().iter_errors(given), None)
    if wrong is not None:
        place = ".".join(map(str, wrong.instance_path)) or "the file"
        raise ProfileError(f"The profile does not fit its schema: {place}: {wrong.message}")
    key, validity = given["key"], given["validity"]
    if validity["days"] > validity["max_days"]:
        raise ProfileError("The profile does not fit its schema: validity.days: more than max_days")
    return CertificateProfile(
        kind=CertificateKind(given["kind"]),
        version=given["version"],
        lifetime=timedelta(days=validity["days"]),
        max_lifetime=timedelta(days=validity["max_days"]),
        algorithms=frozenset(key["algorithms"]),
        usage={use: tuple(usages) for use, usages in key["usage"].items()},
        extended_usage=tuple(key.get("extended_usage", ())),
        addresses=tuple(given["names"]["addresses"]),
        extensions=tuple(ExtensionRule(**one) for one in given["extensions"]),
    )


@cache
def packaged(kind: CertificateKind) -> CertificateProfile:
    """Return the profile that comes along: the widest that relying parties take."""
    return parse(text(kind))


def text(kind: CertificateKind) -> str:
    """Return the file of the profile that comes along, as a start for one's own."""
    return (resources.files("pki.server") / "profiles" / f"{kind}.toml").read_text()


@cache
def _validator() -> Any:
    # Three quarters of a tenth of a second: for who reads a profile only.
    import jsonschema_rs

    schema = (resources.files("schemas") / "certificate-profile.schema.json").read_text()
    return jsonschema_rs.validator_for(json.loads(schema))
