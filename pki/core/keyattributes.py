"""What a sender says of a key inside of its package: the attributes of RFC 7906 that fit a shared key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Annotated

from cryptography.hazmat.asn1 import sequence
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, oids
from pki.core.der import members
from pki.core.entities import address_of, entity
from pki.core.errors import ProfileError, UsageError, demand
from pki.core.profile import Profile
from pki.core.tenants import Address

MAX_RECEIVERS = 64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_SECOND = int((datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - _EPOCH).total_seconds())
_SECOND = timedelta(seconds=1)


class KeyPurpose(Enum):
    """What a key is meant for in its life (RFC 7906 §11): the number on the wire, and the word that people read."""

    NOT_APPLICABLE = (0, "not-applicable")
    OPERATIONAL = (65, "operational")
    COMPATIBLE_MULTIPLE_KEY = (66, "compatible-multiple-key")
    LOGISTICS_COMBINATIONS = (76, "logistics-combinations")
    MAINTENANCE = (77, "maintenance")
    REFERENCE = (82, "reference")
    SAMPLE = (83, "sample")
    TRAINING = (84, "training")
    DEVELOPMENTAL = (86, "developmental")
    EXERCISE = (88, "exercise")
    ON_THE_AIR_TESTING = (90, "on-the-air-testing")

    def __init__(self, number: int, word: str) -> None:
        self.number = number
        self.word = word


@dataclass(frozen=True)
class Period:
    """From when until when, both included, in whole seconds with a time zone; an open end is None."""

    not_before: datetime | None = None
    not_after: datetime | None = None

    def __post_init__(self) -> None:
        for moment in (self.not_before, self.not_after):
            if moment is None:
                continue
            if moment.tzinfo is None or moment.microsecond or moment < _EPOCH:
                raise UsageError("A period is in whole seconds since 1970, with a time zone", on=str(moment))
        if self.not_before and self.not_after and self.not_after <= self.not_before:
            raise UsageError("A period ends after it starts", on=f"{self.not_before} to {self.not_after}")


@dataclass(frozen=True)
class KeyAttributes:
    """What the sender says of a key; each field is there or not.

    ``algorithm`` is what the key is used with (RFC 7906 §7), ``validity`` when it may be used (§15, has a start),
    ``distribution`` when it may be handed over (§14, has an end), ``receivers`` who may have it (§9; empty: not said).
    """

    algorithm: Oid | None = None
    purpose: KeyPurpose | None = None
    validity: Period | None = None
    distribution: Period | None = None
    receivers: tuple[Address, ...] = ()

    def __post_init__(self) -> None:
        if self.validity is not None and self.validity.not_before is None:
            raise UsageError("The validity of a key has a start", hint="--valid-from TIME")
        if self.distribution is not None and self.distribution.not_after is None:
            raise UsageError("The distribution period of a key has an end", hint="--distribute-until TIME")
        if len(self.receivers) > MAX_RECEIVERS or len(set(self.receivers)) != len(self.receivers):
            raise UsageError(f"A key names at most {MAX_RECEIVERS} receivers, none twice", hint="--receiver ADDRESS")


NOTHING_SAID = KeyAttributes()


def of_next_version(said: KeyAttributes, *, owner: Address, removed: Collection[Address]) -> KeyAttributes:
    """Return what holds for the next version too: not the periods, and of the receivers those that stay.

    When none of them stays, ``owner`` alone is named: nobody named would mean that everybody may have it.
    """
    staying = tuple(one for one in said.receivers if one not in removed)
    receivers = (staying or (owner,)) if said.receivers else ()
    return KeyAttributes(algorithm=said.algorithm, purpose=said.purpose, receivers=receivers)


@sequence
class _KeyAlgorithm:
    """RFC 7906 §7; check word and CRC belong to keys that are typed in."""

    algorithm: Oid
    check_word: Annotated[Oid | None, asn1.Implicit(1)]
    crc: Annotated[Oid | None, asn1.Implicit(2)]


@sequence
class _ValidityPeriod:
    """RFC 7906 §15; times are BinaryTime, seconds since 1970 (RFC 6019 §2)."""

    not_before: int
    not_after: int | None


@sequence
class _DistributionPeriod:
    """RFC 7906 §14; times are BinaryTime."""

    not_before: Annotated[int | None, asn1.Implicit(0)]
    not_after: int


ORDER = (
    oids.KEY_ALGORITHM,
    oids.KEY_PURPOSE,
    oids.KEY_VALIDITY_PERIOD,
    oids.KEY_DISTRIBUTION_PERIOD,
    oids.KEY_PACKAGE_RECEIVERS,
)
"""The attributes in the order in which they are written where order counts."""

_SEQUENCE, _SIR_ENTITY = 0x30, 0xA0


def encode(said: KeyAttributes) -> dict[Oid, bytes]:
    """Return each attribute that is there with its value in DER, in `ORDER`."""
    values: dict[Oid, bytes] = {}
    if said.algorithm is not None:
        values[oids.KEY_ALGORITHM] = asn1.encode(_KeyAlgorithm(algorithm=said.algorithm, check_word=None, crc=None))
    if said.purpose is not None:
        values[oids.KEY_PURPOSE] = asn1.enumerated(said.purpose.number)
    if said.validity is not None and said.validity.not_before is not None:
        start, end = _seconds(said.validity.not_before), _seconds_or_none(said.validity.not_after)
        values[oids.KEY_VALIDITY_PERIOD] = asn1.encode(_ValidityPeriod(not_before=start, not_after=end))
    if said.distribution is not None and said.distribution.not_after is not None:
        first, last = _seconds_or_none(said.distribution.not_before), _seconds(said.distribution.not_after)
        values[oids.KEY_DISTRIBUTION_PERIOD] = asn1.encode(_DistributionPeriod(not_before=first, not_after=last))
    if said.receivers:
        names = b"".join(asn1.retagged(_SIR_ENTITY, asn1.encode(entity(one))) for one in said.receivers)
        values[oids.KEY_PACKAGE_RECEIVERS] = asn1.retagged(_SEQUENCE, asn1.encode(names))
    return values


def decode(values: Mapping[Oid, bytes], *, profile: Profile = Profile.STRICT) -> KeyAttributes:
    """Return what the values in DER say (rules PKG-007 to PKG-009); READ passes over what has no field here."""
    found = {oid: values.get(oid) for oid in ORDER}
    algorithm, purpose, validity, distribution, receivers = found.values()
    return KeyAttributes(
        algorithm=None if algorithm is None else _algorithm(algorithm, profile),
        purpose=None if purpose is None else _purpose(purpose),
        validity=None if validity is None else _validity(validity),
        distribution=None if distribution is None else _distribution(distribution),
        receivers=() if receivers is None else _receivers(receivers, profile),
    )


def _algorithm(der: bytes, profile: Profile) -> Oid:
    raw = asn1.decode(_KeyAlgorithm, der, what="The key's algorithm")
    strange = raw.check_word is not None or raw.crc is not None
    demand(profile is Profile.READ or not strange, "PKG-008", "The key's algorithm is more than one identifier")
    return raw.algorithm


def _purpose(der: bytes) -> KeyPurpose:
    number = asn1.enumerated_number(der, what="The key's purpose")
    for purpose in KeyPurpose:
        if purpose.number == number:
            return purpose
    raise ProfileError("The key's purpose is not in the list", rule="PKG-008")


def _validity(der: bytes) -> Period:
    raw = asn1.decode(_ValidityPeriod, der, what="The key's validity")
    return _period(raw.not_before, raw.not_after)


def _distribution(der: bytes) -> Period:
    raw = asn1.decode(_DistributionPeriod, der, what="The key's distribution period")
    return _period(raw.not_before, raw.not_after)


def _period(start: int | None, end: int | None) -> Period:
    # The numbers are not told: a sender may have made them megabytes long.
    known = [one for one in (start, end) if one is not None]
    demand(all(0 <= one <= _LAST_SECOND for one in known), "PKG-007", "A time is not from 1970 to 9999")
    demand(start is None or end is None or start < end, "PKG-007", "A period ends before it starts")
    return Period(_moment(start), _moment(end))


def _receivers(der: bytes, profile: Profile) -> tuple[Address, ...]:
    listed = members(der, _SEQUENCE, most=MAX_RECEIVERS)
    demand(bool(listed), "PKG-009", "The list of receivers is empty")
    receivers = []
    for one in listed:
        try:
            # The other choice is a community (RFC 4108 §2.2.7), which nobody here belongs to.
            demand(one[0] == _SIR_ENTITY, "PKG-009", "A receiver is not one entity")
            name = asn1.decode(asn1.EntityName, asn1.retagged(_SEQUENCE, one), what="A receiver")
            receivers.append(address_of(name, rule="PKG-009"))
        except ProfileError:
            if profile is Profile.STRICT:
                raise
    demand(len(set(receivers)) == len(receivers), "PKG-009", "A receiver is named twice")
    return tuple(receivers)


def _seconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _SECOND


def _seconds_or_none(moment: datetime | None) -> int | None:
    return None if moment is None else _seconds(moment)


def _moment(seconds: int | None) -> datetime | None:
    return None if seconds is None else _EPOCH + seconds * _SECOND
