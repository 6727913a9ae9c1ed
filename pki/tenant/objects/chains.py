"""Paths of certificates from anybody to a trust anchor (RFC 5280 §6.1), as short as they are in practice."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pki.core import asn1, oids, signatures
from pki.core.authorities import check_validity
from pki.core.errors import AlgorithmError, CertificateError, SignatureError
from pki.core.signatures import VerifyingKey
from pki.tenant.objects.people import Foreign

MAX_PATH = 8
_MAX_CHECKS = 64
"""Signatures of certificates that are looked at for one path."""


def path(
    leaf: Foreign, *, trust: Sequence[Foreign], untrusted: Sequence[Foreign], now: datetime
) -> tuple[Foreign, ...]:
    """Return the certificates from ``leaf`` to one of ``trust``, each verified and valid now.

    A leaf that is itself trusted is a path of one. Raises CertificateError or ExpiredError (rules CRT-003, CRT-014),
    AlgorithmError when a signature is of an algorithm that is not known. Revocation is not looked at.
    """
    check_validity(leaf.subject, leaf.not_before, leaf.not_after, now)
    return _Search(trust, untrusted, now).up((leaf,))


def verify_signature(key: VerifyingKey, identifier: asn1.AlgorithmIdentifier, signature: bytes, message: bytes) -> None:
    """Raise SignatureError unless ``key`` signed ``message``, or AlgorithmError for one of another algorithm."""
    digest = _ECDSA.get(identifier.algorithm, "") if key.algorithm.curve else ""
    if identifier.parameters is not None or not (digest or identifier.algorithm == key.algorithm.oid):
        said = oids.name(identifier.algorithm)
        raise AlgorithmError("The signature is of another algorithm than the key", on=f"{said}, {key.algorithm.title}")
    key.verify(signature, message, digest=digest)


_ECDSA = {oids.ECDSA_SHA256: "sha256", oids.ECDSA_SHA384: "sha384", oids.ECDSA_SHA512: "sha512"}


class _Search:
    """One search for a path; the first error that stopped it is told if none is found."""

    def __init__(self, trust: Sequence[Foreign], untrusted: Sequence[Foreign], now: datetime) -> None:
        self._trust = {one.der: one for one in trust}
        self._others = {one.der: one for one in untrusted if one.der not in self._trust}
        self._now = now
        self._left = _MAX_CHECKS
        self._first: CertificateError | AlgorithmError | None = None

    def up(self, found: tuple[Foreign, ...]) -> tuple[Foreign, ...]:
        """Return the path that begins with ``found``, or raise."""
        result = self._up(found)
        if result is not None:
            return result
        top = found[-1]
        if self._first is not None:
            raise self._first
        raise CertificateError(
            "The certificate does not chain to a trusted one",
            on=f"{top.subject}, by {top.issuer}",
            hint="give its issuer: --trust CERT, or --untrusted CERT for one in between",
            rule="CRT-014",
        )

    def _up(self, found: tuple[Foreign, ...]) -> tuple[Foreign, ...] | None:
        last = found[-1]
        if last.unknown:
            self._stop(
                "A certificate has a critical extension that is not understood", f"{last.subject}: {last.unknown[0]}"
            )
            return None
        if last.der in self._trust:
            return found
        if len(found) == MAX_PATH:
            self._stop(f"A path has more than {MAX_PATH} certificates", last.subject)
            return None
        for pool in (self._trust, self._others):
            for issuer in pool.values():
                if (
                    issuer.subject_der != last.issuer_der
                    or issuer in found
                    or not self._signed(last, issuer, len(found))
                ):
                    continue
                longer = self._up((*found, issuer))
                if longer is not None:
                    return longer
        return None

    def _signed(self, last: Foreign, issuer: Foreign, below: int) -> bool:
        """Say whether ``issuer`` may sign, is valid, and signed ``last``; ``below`` certificates are under it."""
        self._left -= 1
        if self._left < 0:
            self._stop("There are too many certificates to try", last.subject)
            return False
        limits = issuer.constraints
        if limits is None or not limits.ca or not (issuer.usage is None or issuer.usage.key_cert_sign):
            self._stop("A CA certificate may not sign certificates", issuer.subject)
            return False
        if limits.path_length is not None and below - 1 > limits.path_length:
            self._stop("A CA certificate allows no path of this length", issuer.subject)
            return False
        try:
            check_validity(issuer.subject, issuer.not_before, issuer.not_after, self._now)
            key = signatures.load(issuer.spki, rule="CRT-014")
            verify_signature(key, last.signature_algorithm, last.signature, last.tbs)
        except SignatureError:
            self._stop("A certificate is not signed by its issuer", f"{last.subject}, by {issuer.subject}")
        except (CertificateError, AlgorithmError) as error:
            self._first = self._first or error
        else:
            return True
        return False

    def _stop(self, message: str, on: str) -> None:
        self._first = self._first or CertificateError(message, on=on, rule="CRT-014")
