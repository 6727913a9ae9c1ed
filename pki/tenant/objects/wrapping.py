"""Wrap a content for any certificates, and sign it: envelopes for people whom no mailbox connects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import envelope, keys, oids, signatures, signing
from pki.core.authorities import check_validity
from pki.core.envelope import Recipient
from pki.core.errors import AlgorithmError, CertificateError, ProfileError, UsageError
from pki.core.kem import Hkdf
from pki.core.keys import EcAlgorithm, KemAlgorithm, KeyAlgorithm
from pki.core.packages import KeyMaterial, encode_package
from pki.core.signatures import IDENTITY
from pki.core.signers import SigningKey
from pki.tenant.objects.people import Foreign

_MAX_SKI = 64


@dataclass(frozen=True)
class Signer:
    """Who signs: the key, and its certificate."""

    key: SigningKey
    certificate: Foreign

    def __post_init__(self) -> None:
        theirs, hint = self.certificate, "--signer-cert CERT"
        public = signatures.load(theirs.spki, allowed=IDENTITY)
        if public != self.key.public:
            raise UsageError("The signing key is not the key of its certificate", on=theirs.subject, hint=hint)
        if theirs.usage is not None and not theirs.usage.digital_signature:
            raise CertificateError("The certificate is not for signatures", on=theirs.subject, hint=hint)
        if not 1 <= len(theirs.ski) <= _MAX_SKI:
            raise CertificateError(
                "The signer's certificate has no key identifier to name it by",
                on=theirs.subject,
                hint="one with the extension subjectKeyIdentifier",
            )


@dataclass(frozen=True)
class Wrapped:
    """An object in DER: its content's type, for whom (subject and algorithm), signed by whom (empty: by nobody)."""

    der: bytes
    content_type: Oid
    recipients: tuple[tuple[str, str], ...]
    signer: str


def wrap(
    content: bytes | KeyMaterial,
    certificates: Sequence[Foreign],
    *,
    now: datetime,
    allow_classical: bool = False,
    kdf: Hkdf | None = None,
    signer: Signer | None = None,
) -> Wrapped:
    """Return an envelope (SignedData around it with ``signer``) that the owner of each certificate can open.

    Bytes are wrapped as data, `KeyMaterial` as a key package. The certificates are taken as they are: whose they are,
    the caller has verified. Raises UsageError, CertificateError, ExpiredError, AlgorithmError, ProfileError.
    """
    if not certificates:
        raise UsageError("There is nobody to wrap for", hint="--to CERT")
    recipients = [recipient(one, now=now, allow_classical=allow_classical, kdf=kdf) for one in certificates]
    content_type, payload = (oids.DATA, content) if isinstance(content, bytes) else encode_package(content)
    der = envelope.wrap(payload, content_type, recipients)
    if signer is not None:
        theirs = signer.certificate
        check_validity(theirs.subject, theirs.not_before, theirs.not_after, now)
        der = signing.sign(
            oids.CONTENT_INFO,
            der,
            extra={},
            signing_time=now,
            signer_ski=theirs.ski,
            sign=signer.key.sign,
            algorithm=signer.key.public.algorithm,
        )
    told = tuple((one.subject, whom.algorithm.title) for one, whom in zip(certificates, recipients, strict=True))
    return Wrapped(der, content_type, told, "" if signer is None else signer.certificate.subject)


def recipient(
    certificate: Foreign, *, now: datetime, allow_classical: bool = False, kdf: Hkdf | None = None
) -> Recipient:
    """Return whom to wrap for, by key identifier or, without one, by issuer and serial.

    ``kdf`` is for KEM keys, instead of what the certificate prefers.
    """
    on = certificate.subject
    check_validity(on, certificate.not_before, certificate.not_after, now)
    try:
        algorithm, public = keys.parse_spki(certificate.spki)
    except (AlgorithmError, ProfileError) as error:
        hint = "a certificate for encryption: ML-KEM-768, ML-KEM-1024, the composite, P-256, P-384, RSA from 3072 bits"
        told = ", ".join(part for part in (on, error.on) if part)
        raise type(error)(error.message, on=told, hint=hint, rule=error.rule) from None
    said = certificate.capabilities
    algorithm = algorithm if said is None else said.algorithm(algorithm)
    if algorithm.classical and not allow_classical:
        raise AlgorithmError(
            "The recipient's key can be opened by a quantum computer, and this was not allowed",
            on=f"{on}, {algorithm.title}",
            hint="a certificate with ML-KEM; or the same command with --allow-classical",
        )
    _check_usage(certificate, algorithm)
    named = 1 <= len(certificate.ski) <= _MAX_SKI
    return Recipient(
        ski=certificate.ski if named else b"",
        algorithm=algorithm,
        public_key=public,
        kdf=kdf or (Hkdf.SHA256 if said is None else said.kdf),
        issuer_serial=None if named else certificate.issuer_serial,
    )


def _check_usage(certificate: Foreign, algorithm: KeyAlgorithm) -> None:
    usage = certificate.usage
    if usage is None:
        return
    good = usage.key_agreement if isinstance(algorithm, EcAlgorithm) else usage.key_encipherment
    if not good:
        kind = "key agreement" if isinstance(algorithm, EcAlgorithm) else "key encipherment"
        hint = "kmb object show CERT; ask its owner for the one for encryption"
        raise CertificateError(f"The certificate is not for {kind}", on=certificate.subject, hint=hint)
    assert isinstance(algorithm, KemAlgorithm) or algorithm.classical
