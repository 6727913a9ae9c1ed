"""Paths of certificates to a trust anchor (RFC 5280 §6.1): each certificate and each link checked, and the search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Generic, TypeAlias, TypeVar

from cryptography.x509.oid import ExtensionOID

from pki.core import asn1, keys, oids, signatures
from pki.core.errors import (
    AlgorithmError,
    CertificateError,
    ExpiredError,
    KeymailboxError,
    MalformedError,
    ProfileError,
    SignatureError,
)
from pki.core.links import Link
from pki.core.profile import Profile
from pki.core.signatures import SignatureAlgorithm, VerifyingKey

MAX_PATH = 8
"""Certificates of a path, leaf and anchor included."""
MAX_CHECKS = 64
"""Signatures that are looked at in the search for one path."""
L = TypeVar("L", bound=Link)


def check_validity(title: str, start: datetime, end: datetime, now: datetime) -> None:
    """Raise CertificateError or ExpiredError unless ``now`` lies between the two (rule CRT-003)."""
    if now < start:
        raise CertificateError("A certificate is not valid yet", on=f"{title}, from {start}", rule="CRT-003")
    if now > end:
        raise ExpiredError("A certificate has expired", on=f"{title}, at {end}", rule="CRT-003")


def verify_signature(key: VerifyingKey, identifier: asn1.AlgorithmIdentifier, signature: bytes, message: bytes) -> None:
    """Raise SignatureError unless ``key`` signed ``message``, or AlgorithmError for one of another algorithm."""
    algorithm = key.algorithm
    digests = _RSA if algorithm is SignatureAlgorithm.RSA else _ECDSA if algorithm.curve else {}
    digest = digests.get(identifier.algorithm, "")
    known = digest or identifier.algorithm == algorithm.oid
    if not known or identifier.parameters != algorithm.identifier.parameters:
        said = oids.name(identifier.algorithm)
        raise AlgorithmError("The signature is of another algorithm than the key", on=f"{said}, {algorithm.title}")
    key.verify(signature, message, digest=digest)


def check_path(path: Sequence[Link], *, authority: bool = False) -> None:
    """Raise unless each certificate of a path is signed by the next, which may do so (rule CRT-014).

    ``authority`` asks that the first one may sign a certificate, too.

    The leaf comes first and the trust anchor last, whose own limits count (RFC 5937 §3) but not its signature. All of
    RFC 5280 §6.1 but time and revocation: names, keys, signatures, basic constraints, key usage, length, critical
    extensions; and what §4 says of certificates that conform. Policies and names are not constrained here, so what
    constrains them is refused. CertificateError, and AlgorithmError for algorithms that are not known here.
    """
    _check_path(path, _signed, authority=authority)


def validate(path: Sequence[Link], now: datetime) -> None:
    """Raise unless a path keeps `check_path` and is valid ``now`` from end to end (rules CRT-003, CRT-014)."""
    _check_times(path, now)
    check_path(path)


def find(leaf: L, *, trust: Sequence[L], untrusted: Sequence[L], now: datetime) -> tuple[L, ...]:
    """Return a path from ``leaf`` to one of ``trust`` that `validate` lets through; raises what stopped the first try.

    A leaf that is itself trusted is a path of one. The search is bounded: `MAX_PATH`, `MAX_CHECKS`.
    """
    check_validity(leaf.subject, leaf.not_before, leaf.not_after, now)
    return _Search(trust, untrusted, now).up(leaf)


_ECDSA = {oids.ECDSA_SHA256: "sha256", oids.ECDSA_SHA384: "sha384", oids.ECDSA_SHA512: "sha512"}
_RSA = {oids.RSA_SHA256: "sha256", oids.RSA_SHA384: "sha384", oids.RSA_SHA512: "sha512"}
_MAY_BE_CRITICAL = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    oids.SMIME_CAPABILITIES,
}
_NOT_OBEYED = {
    ExtensionOID.NAME_CONSTRAINTS: "name constraints",
    ExtensionOID.POLICY_CONSTRAINTS: "policy constraints",
    ExtensionOID.INHIBIT_ANY_POLICY: "inhibitAnyPolicy",
}
_EMPTY = b"\x30\x00"


_Signed: TypeAlias = Callable[[Link, Link], None]
"""Raises unless the first is signed by the second."""


def _check_path(path: Sequence[Link], signed: _Signed, *, authority: bool = False) -> None:
    anchor = path[-1]
    _check_extensions(path[0])
    _check_key(path[0])
    if len(path) == 1 and not authority:
        # Whoever trusts a certificate itself need not be told how it should be written.
        return
    for place, one in enumerate(path):
        _check_form(one, issues=authority or place > 0, anchor=one is anchor)
    room = len(path)
    for place in range(len(path) - 1, -1, -1):
        one = path[place]
        if place < len(path) - 1:
            above = path[place + 1]
            _check_named(one, above)
            signed(one, above)
            # §6.1.4 (l) and (m); neither the anchor nor the last one is counted, nor what only changes a key.
            if (place or authority) and not one.self_issued:
                _demand(room > 0, "A CA certificate allows no path of this length", above.subject)
                room -= 1
        if one.constraints is not None and one.constraints.path_length is not None:
            room = min(room, one.constraints.path_length)


def _check_extensions(one: Link) -> None:
    for oid, critical in one.extensions.items():
        limit = _NOT_OBEYED.get(oid, "")
        _demand(not limit, "A certificate sets limits that are not obeyed here", f"{one.subject}: {limit}")
        _demand(
            not critical or oid in _MAY_BE_CRITICAL,
            "A certificate has a critical extension that is not understood",
            f"{one.subject}: {oid.dotted_string}",
        )


def _check_form(one: Link, *, issues: bool, anchor: bool) -> None:
    """Check what a certificate says of itself (§4.1, §4.2.1); ``issues`` when another one is under it."""
    on, there = one.subject, one.extensions
    _check_extensions(one)
    _demand(one.version == 3, "A certificate is not of version 3", on)
    _demand(one.serial < 1 << 159, "A certificate's serial number has more than 20 bytes", on)
    _demand(one.issuer_der != _EMPTY, "A certificate does not name its issuer", on)
    authority = one.constraints is not None and one.constraints.ca
    signs = one.usage is not None and one.usage.key_cert_sign
    if issues:
        critical = there.get(ExtensionOID.BASIC_CONSTRAINTS, False)
        may = authority and critical and (signs or one.usage is None)
        _demand(may, "A CA certificate may not sign certificates", on)
        _demand(bool(one.ski), "A CA certificate has no subject key identifier", on)
        _demand(one.subject_der != _EMPTY, "A CA certificate has no subject", on)
    _demand(authority or not signs, "A certificate is for signing certificates and is not a CA's", on)
    named = one.subject_der != _EMPTY or there.get(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, False)
    _demand(named, "A certificate without a subject has no critical other name", on)
    if anchor and one.self_issued and ExtensionOID.AUTHORITY_KEY_IDENTIFIER not in there:
        return
    _demand(bool(one.aki), "A certificate has no authority key identifier", on)
    if anchor and one.self_issued:
        _check_named(one, one)


def _check_named(one: Link, above: Link) -> None:
    """Check that a certificate names ``above`` as its issuer, in each of the ways in which it does."""
    _demand(one.issuer_der == above.subject_der, "A certificate names another issuer", one.subject)
    _demand(one.aki == above.ski, "A certificate names another key of its issuer", one.subject)
    if one.named is not None:
        names, serial = one.named
        same = above.issuer_der in names and serial == above.serial
        _demand(same, "A certificate names another certificate of its issuer", one.subject)


def _check_key(leaf: Link) -> None:
    # A key that is weak, or of nothing that is used here, is not vouched for.
    try:
        signatures.load(leaf.spki)
    except (AlgorithmError, ProfileError, MalformedError):
        keys.parse_spki(leaf.spki, profile=Profile.READ)


def _check_times(path: Sequence[Link], now: datetime) -> None:
    for one in path:
        check_validity(one.subject, one.not_before, one.not_after, now)


def _signed(below: Link, issuer: Link) -> None:
    key = signatures.load(issuer.spki, rule="CRT-014")
    try:
        verify_signature(key, below.signature_algorithm, below.signature, below.tbs)
    except SignatureError:
        raise CertificateError(
            "A certificate is not signed by its issuer", on=f"{below.subject}, by {issuer.subject}", rule="CRT-014"
        ) from None


def _demand(condition: bool, message: str, on: str) -> None:
    if not condition:
        raise CertificateError(message, on=on, rule="CRT-014")


class _Search(Generic[L]):
    """One search for a path; the first error that stopped it is told if none is found."""

    def __init__(self, trust: Sequence[L], untrusted: Sequence[L], now: datetime) -> None:
        self._trust = {one.der: one for one in trust}
        self._others = {one.der: one for one in untrusted if one.der not in self._trust}
        self._now = now
        self._left = MAX_CHECKS
        self._known: dict[tuple[bytes, bytes], KeymailboxError | None] = {}
        self._first: KeymailboxError | None = None
        self._other: KeymailboxError | None = None

    def up(self, leaf: L) -> tuple[L, ...]:
        """Return the path that begins with ``leaf``, or raise."""
        found = self._up((leaf,))
        if found is not None:
            return found
        stopped = self._first or self._other
        if stopped is not None:
            raise stopped
        raise CertificateError(
            "The certificate does not chain to a trusted one",
            on=f"{leaf.subject}, by {leaf.issuer}",
            hint="give its issuer: --trust CERT, or --untrusted CERT for one in between",
            rule="CRT-014",
        )

    def _up(self, found: tuple[L, ...]) -> tuple[L, ...] | None:
        last = found[-1]
        if last.der in self._trust:
            return found if self._holds(found) else None
        if not self._may_stand(last, issues=len(found) > 1):
            return None
        for pool in (self._trust, self._others):
            for issuer in pool.values():
                if issuer.subject_der != last.issuer_der or self._stands_in(issuer, found):
                    continue
                if len(found) == MAX_PATH:
                    self._note(
                        CertificateError(
                            f"A path has more than {MAX_PATH} certificates", on=last.subject, rule="CRT-014"
                        )
                    )
                    return None
                if self._links(last, issuer):
                    longer = self._up((*found, issuer))
                    if longer is not None:
                        return longer
        return None

    @staticmethod
    def _stands_in(issuer: L, found: Sequence[L]) -> bool:
        # §6.1: no certificate twice; the same name and key under another signature would only go in circles.
        return any((one.subject_der, one.spki) == (issuer.subject_der, issuer.spki) for one in found)

    def _holds(self, path: Sequence[L]) -> bool:
        try:
            _check_times(path, self._now)
            _check_path(path, self._signed)
        except KeymailboxError as error:
            return self._note(error)
        return True

    def _may_stand(self, one: L, *, issues: bool) -> bool:
        try:
            _check_form(one, issues=issues, anchor=False)
        except KeymailboxError as error:
            return self._note(error)
        return True

    def _links(self, below: L, issuer: L) -> bool:
        """Say whether ``issuer`` may be above; the cheap questions come before the signature."""
        try:
            _check_named(below, issuer)
        except KeymailboxError as error:
            # Another of the same name: told only if nothing else stood in the way.
            self._other = self._other or error
            return False
        try:
            _check_form(issuer, issues=True, anchor=issuer.der in self._trust)
            check_validity(issuer.subject, issuer.not_before, issuer.not_after, self._now)
            self._signed(below, issuer)
        except KeymailboxError as error:
            return self._note(error)
        return True

    def _signed(self, below: Link, issuer: Link) -> None:
        pair = (below.der, issuer.der)
        if pair not in self._known:
            self._left -= 1
            _demand(self._left >= 0, "There are too many certificates to try", below.subject)
            try:
                _signed(below, issuer)
            except KeymailboxError as error:
                self._known[pair] = error
            else:
                self._known[pair] = None
        known = self._known[pair]
        if known is not None:
            raise known

    def _note(self, error: KeymailboxError) -> bool:
        self._first = self._first or error
        return False
