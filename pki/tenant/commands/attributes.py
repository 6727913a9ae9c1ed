"""What is said of a key: options of ``kmb key``, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from pki.core.errors import UsageError

if TYPE_CHECKING:
    from cryptography.x509 import ObjectIdentifier

    from pki.core.keyattributes import KeyAttributes, KeyPurpose, Period
    from pki.core.packages import KeyMaterial

_UNITS = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}
_TIME = "YYYY-MM-DD[THH:MM[:SS]], in UTC unless it says otherwise"
Algorithm = Annotated[str, typer.Option("--key-algorithm", help="What it is used with: a name or an OID.")]
KeyPurposeWord = Annotated[str, typer.Option("--key-purpose", help="operational, training, sample, … (RFC 7906).")]
ValidFrom = Annotated[str, typer.Option("--valid-from", metavar="TIME", help=f"Use from: {_TIME}. Default: now.")]
ValidUntil = Annotated[str, typer.Option("--valid-until", metavar="TIME", help=f"Use until: {_TIME}.")]
DistributeFrom = Annotated[str, typer.Option("--distribute-from", metavar="TIME", help="Hand over from.")]
DistributeUntil = Annotated[
    str, typer.Option("--distribute-until", metavar="TIME", help="Hand over until; nobody takes it afterwards.")
]
Receivers = Annotated[
    list[str] | None,
    typer.Option("--receiver", metavar="TENANT/INSTANCE", help="Who alone may have it; may be repeated."),
]


def read_attributes(
    *,
    algorithm: str = "",
    purpose: str = "",
    valid: tuple[str, str] = ("", ""),
    distribute: tuple[str, str] = ("", ""),
    receivers: Sequence[str] = (),
) -> KeyAttributes:
    """Return what the options say, or raise UsageError; an empty text says nothing."""
    from pki.core.keyattributes import KeyAttributes
    from pki.core.tenants import parse_address

    starts = valid[0] or (datetime.now(UTC).isoformat() if valid[1] else "")
    return KeyAttributes(
        algorithm=_algorithm(algorithm) if algorithm else None,
        purpose=_purpose(purpose) if purpose else None,
        validity=_period(starts, valid[1]),
        distribution=_period(*distribute),
        receivers=tuple(parse_address(one) for one in receivers),
    )


def read_deadline(text: str, now: datetime) -> datetime | None:
    """Return the moment that ``--deadline`` names, in whole seconds; None when it is empty. Raises UsageError."""
    if not text:
        return None
    if text[:-1].isascii() and text[:-1].isdigit() and text[-1] in _UNITS and len(text) <= 6:
        return now.replace(microsecond=0) + int(text[:-1]) * _UNITS[text[-1]]
    return _time(text)


def told(material: KeyMaterial) -> dict[str, object]:
    """Return what is said of a key and how large it is, for people and programs; never the key."""
    from pki.core import oids

    said = material.attributes
    fields = {
        "algorithm": oids.name(said.algorithm) if said.algorithm else None,
        "purpose": said.purpose.word if said.purpose else None,
        "valid_from": said.validity.not_before if said.validity else None,
        "valid_until": said.validity.not_after if said.validity else None,
        "distribute_from": said.distribution.not_before if said.distribution else None,
        "distribute_until": said.distribution.not_after if said.distribution else None,
        "receivers": ", ".join(str(one) for one in said.receivers) or None,
    }
    known = {name: value for name, value in fields.items() if value is not None}
    return {"media_type": material.media_type, "size": len(material.key), **known}


def validity_note(material: KeyMaterial, now: datetime) -> str:
    """Return what a person should know before using the key now, or an empty text."""
    period = material.attributes.validity
    if period is not None and period.not_before is not None and now < period.not_before:
        return f"This key is to be used from {period.not_before} on, not yet."
    if period is not None and period.not_after is not None and now > period.not_after:
        return f"This key was to be used until {period.not_after}, not any more."
    return ""


def _algorithm(text: str) -> ObjectIdentifier:
    from cryptography.x509 import ObjectIdentifier

    from pki.core import oids

    named = {name.lower(): oid for oid, name in oids.NAMES.items()}
    if text.lower() in named:
        return named[text.lower()]
    try:
        return ObjectIdentifier(text)
    except ValueError:
        hint = "--key-algorithm AES-256-GCM, or a dotted number"
        raise UsageError("The algorithm is no known name and no object identifier", on=text[:80], hint=hint) from None


def _purpose(text: str) -> KeyPurpose:
    from pki.core.keyattributes import KeyPurpose

    for one in KeyPurpose:
        if one.word == text:
            return one
    words = ", ".join(one.word for one in KeyPurpose)
    raise UsageError("There is no such purpose of a key", on=text[:80], hint=f"--key-purpose, one of: {words}")


def _period(start: str, end: str) -> Period | None:
    from pki.core.keyattributes import Period

    if not start and not end:
        return None
    return Period(_time(start) if start else None, _time(end) if end else None)


def _time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError("The time cannot be read", on=text[:80], hint=_TIME) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).replace(microsecond=0)
