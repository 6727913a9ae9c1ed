"""What an object is, for whom, by whom, and which rules it keeps: everything that ``kmb object show`` tells."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pki.core import (
    deposits,
    envelope,
    keys,
    oids,
    packages,
    receipts,
    requests,
    revocations,
    signatures,
    signing,
    x509,
)
from pki.core.capabilities import parse_capabilities
from pki.core.der import located
from pki.core.envelope import ParsedEnvelope, ParsedRecipient, UnsupportedRecipient
from pki.core.errors import AlgorithmError, KeymailboxError
from pki.core.names import name_text, safe
from pki.core.policy import RULES
from pki.core.profile import Profile
from pki.core.signing import UnverifiedSigned
from pki.tenant.objects.kinds import SECRET, Kind, kind_of, package_type, shape_of
from pki.tenant.objects.nesting import enveloped
from pki.tenant.objects.outline import Node, outline
from pki.tenant.objects.people import Foreign
from pki.tenant.objects.reading import Source

FORMAT = "keymailbox-object/1"


@dataclass(frozen=True)
class Broken:
    """The first rule that an object breaks; ``rule`` is empty where its encoding is at fault."""

    rule: str
    code: str
    message: str
    on: str
    offset: int | None
    hint: str


@dataclass(frozen=True)
class Verdict:
    """What one profile says. ``rules`` are those that its parser looks at; when ``broken``, some were not reached."""

    profile: Profile
    rules: tuple[str, ...]
    broken: Broken | None


@dataclass(frozen=True)
class Party:
    """A recipient or a signer, by key identifier or by issuer and serial (both in hex or as text).

    ``certificate`` is the subject of the certificate that was given and fits; ``unsupported`` says why a recipient's
    key could not be used here.
    """

    ski: str
    issuer: str
    serial: str
    algorithm: str
    certificate: str = ""
    unsupported: str = ""


@dataclass(frozen=True)
class Look:
    """All that can be told of an object without a key. Nothing of it is verified."""

    file: str
    kind: Kind
    label: str
    ber: bool
    size: int
    der_size: int
    sha256: str
    recipients: tuple[Party, ...]
    signer: Party | None
    signed_at: str
    verdicts: tuple[Verdict, ...]
    tree: Node


def look(source: Source, certificates: Sequence[Foreign] = ()) -> Look:
    """Return what ``source`` is; ``certificates`` give names to recipients and signer. Raises MalformedError."""
    der = source.der
    kind = kind_of(der)
    signed = _signed(der) if kind in _SIGNED else None
    inside = _inside(signed) if signed is not None else der
    read = _read_envelope(inside) if kind in _ENVELOPED and inside is not None else None
    return Look(
        file=safe(source.name),
        kind=kind,
        label=source.label,
        ber=source.ber,
        size=source.size,
        der_size=len(der),
        # A digest of something secret could be tried against guesses.
        sha256="" if kind in SECRET else hashlib.sha256(der).hexdigest(),
        recipients=tuple(_recipients(read, certificates)),
        signer=None if signed is None else _signer(signed, certificates),
        signed_at=signed.signed_at.isoformat() if signed is not None and signed.signed_at is not None else "",
        verdicts=tuple(_verdicts(der, kind, holds=signed is not None and inside is not None)),
        tree=outline(der, shape_of(der, kind), str(kind)),
    )


_SIGNED = frozenset({Kind.DEPOSIT, Kind.SIGNED, Kind.RECEIPT, Kind.REFUSAL, Kind.REVOCATION})
_ENVELOPED = frozenset({Kind.DEPOSIT, Kind.ENVELOPE, Kind.SIGNED})


def _signed(der: bytes) -> UnverifiedSigned | None:
    try:
        return signing.parse(der, content_types=None, extra=(), profile=Profile.READ)
    except KeymailboxError:
        return None


def _inside(signed: UnverifiedSigned) -> bytes | None:
    try:
        return enveloped(signed)
    except KeymailboxError:
        return None


def _read_envelope(der: bytes) -> ParsedEnvelope | None:
    try:
        return envelope.parse(der, profile=Profile.READ)
    except KeymailboxError:
        return None


def _recipients(read: ParsedEnvelope | None, certificates: Sequence[Foreign]) -> list[Party]:
    listed: list[ParsedRecipient | UnsupportedRecipient] = []
    if read is not None:
        listed = [*read.recipients, *read.unsupported]
    found = []
    for one in listed:
        named = (b"", 0) if one.issuer_serial is None else (one.issuer_serial.issuer_der, one.issuer_serial.serial)
        algorithm = one.algorithm.title if isinstance(one, ParsedRecipient) else one.kind
        reason = safe(one.reason) if isinstance(one, UnsupportedRecipient) else ""
        found.append(_party(one.ski, *named, algorithm, certificates, reason))
    return found


def _party(
    ski: bytes, issuer: bytes, serial: int, algorithm: str, certificates: Sequence[Foreign], unsupported: str = ""
) -> Party:
    fitting = [
        one.subject
        for one in certificates
        if (ski and ski == one.ski) or (issuer and (issuer, serial) == (one.issuer_der, one.serial))
    ]
    return Party(
        ski=ski.hex(),
        issuer=name_text(issuer) if issuer else "",
        serial=f"{serial:x}" if issuer else "",
        algorithm=algorithm,
        certificate=fitting[0] if fitting else "",
        unsupported=unsupported,
    )


def _signer(signed: UnverifiedSigned, certificates: Sequence[Foreign]) -> Party:
    named = signed.signer_serial or (b"", 0)
    return _party(signed.signer_ski, *named, oids.name(signed.signature_algorithm), certificates)


# Rules


def _numbers(**families: Sequence[int]) -> tuple[str, ...]:
    found = tuple(f"{family}-{number:03d}" for family, numbers in families.items() for number in numbers)
    return tuple(rule for rule in found if rule in RULES)


_FORM_SIG = range(1, 6)
_FORM_ENV = range(1, 100)
_FORM: Mapping[Kind, tuple[str, ...]] = {
    Kind.DEPOSIT: _numbers(SIG=_FORM_SIG, ENV=_FORM_ENV, DEP=range(1, 5)),
    Kind.ENVELOPE: _numbers(ENV=_FORM_ENV),
    Kind.UNAUTHENTICATED: _numbers(ENV=[1]),
    Kind.SIGNED: _numbers(SIG=_FORM_SIG),
    Kind.RECEIPT: _numbers(SIG=_FORM_SIG, RCP=range(1, 4)),
    Kind.REFUSAL: _numbers(SIG=_FORM_SIG, RCP=range(1, 4)),
    Kind.REVOCATION: _numbers(SIG=_FORM_SIG, REV=[1]),
    Kind.REQUEST: _numbers(REQ=range(1, 5), CRT=[9, 15]),
    Kind.CERTIFICATE: _numbers(CRT=[1, 2, 4, 5, 6, 9, 15, 16]),
    Kind.PACKAGE: _numbers(PKG=range(1, 10)),
    Kind.CAPABILITIES: _numbers(CRT=[15]),
    Kind.PUBLIC: _numbers(CRT=[9]),
}
"""The rules of form, which need neither a key nor a clock nor another object."""


def _verdicts(der: bytes, kind: Kind, *, holds: bool) -> list[Verdict]:
    found = []
    form = (*_FORM.get(kind, ()), *(_FORM[Kind.ENVELOPE] if holds and kind is Kind.SIGNED else ()))
    for profile in Profile:
        parser = _PARSERS.get(kind)
        if parser is None or (profile is Profile.READ and kind in _STRICT_ALONE):
            continue
        rules = tuple(one for one in form if profile is Profile.STRICT or one[:3] not in _OURS)
        found.append(Verdict(profile, rules, _broken(parser, der, profile)))
    return found


def _broken(parser: Callable[[bytes, Profile], object], der: bytes, profile: Profile) -> Broken | None:
    try:
        parser(der, profile)
    except KeymailboxError as error:
        return Broken(error.rule, error.code, safe(error.message), safe(error.on), error.offset, safe(error.hint))
    return None


@located
def _deposit(der: bytes, profile: Profile) -> object:
    return deposits.parse_deposit(der) if profile is Profile.STRICT else _with_envelope(der, profile)


@located
def _with_envelope(der: bytes, profile: Profile) -> object:
    signed = _read_signed(der, profile)
    inside = enveloped(signed)
    if inside is not None:
        envelope.parse(signed.content if profile is Profile.STRICT else inside, profile=profile)
    return signed


def _read_signed(der: bytes, profile: Profile) -> UnverifiedSigned:
    return signing.parse(der, content_types=None, extra=(), profile=profile)


def _revocation(der: bytes, profile: Profile) -> object:
    return revocations.parse_revocation(der) if profile is Profile.STRICT else _read_signed(der, profile)


def _package(der: bytes, profile: Profile) -> object:
    return packages.decode_package(package_type(der), der, profile=profile)


def _public(der: bytes, profile: Profile) -> object:
    try:
        return signatures.load(der)
    except AlgorithmError:
        return keys.parse_spki(der, profile=profile)


def _certificate(der: bytes, profile: Profile) -> object:
    return x509.parse_certificate(der)


_PARSERS: Mapping[Kind, Callable[[bytes, Profile], object]] = {
    Kind.DEPOSIT: _deposit,
    Kind.ENVELOPE: lambda der, profile: envelope.parse(der, profile=profile),
    Kind.UNAUTHENTICATED: lambda der, profile: envelope.parse(der, profile=profile),
    Kind.SIGNED: _with_envelope,
    Kind.RECEIPT: lambda der, profile: receipts.parse_receipt(der, profile=profile),
    Kind.REFUSAL: lambda der, profile: receipts.parse_receipt(der, profile=profile),
    Kind.REVOCATION: _revocation,
    Kind.REQUEST: lambda der, _: requests.parse_request(der),
    Kind.CERTIFICATE: _certificate,
    Kind.PACKAGE: _package,
    Kind.CAPABILITIES: lambda der, _: parse_capabilities(der),
    Kind.PUBLIC: _public,
}
_OURS = frozenset({"DEP", "REV"})
"""Families of rules that only the strict profile has."""
_STRICT_ALONE = frozenset({Kind.REQUEST, Kind.CERTIFICATE, Kind.CAPABILITIES})
"""What is the same in both profiles, or of ours alone."""
