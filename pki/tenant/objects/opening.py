"""Open an envelope, or a SignedData around one, with a private key: what others made, as far as it is authenticated."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import envelope, kem, oids, signatures, signing
from pki.core.envelope import ParsedEnvelope
from pki.core.errors import AlgorithmError, UnwrapError, UsageError, WrongPartyError
from pki.core.packages import CONTENT_TYPES, KeyMaterial, decode_package
from pki.core.profile import Profile
from pki.core.signatures import IDENTITY
from pki.core.signing import UnverifiedSigned
from pki.tenant.holders.pkcs8 import OpeningKey
from pki.tenant.objects.kinds import Kind, kind_of
from pki.tenant.objects.nesting import enveloped
from pki.tenant.objects.people import Foreign
from pki.tenant.objects.reading import Source


@dataclass(frozen=True)
class Opened:
    """What was in the envelope. ``material`` is the key of a key package, ``content`` else the content itself.

    ``signed_by`` is the subject of the certificate that the signature was verified with; empty: nobody verified it.
    """

    content: bytes = field(repr=False)
    content_type: Oid
    material: KeyMaterial | None
    algorithm: str
    signed: bool
    signed_by: str
    signed_at: datetime | None


def open_object(
    source: Source, key: OpeningKey, certificate: Foreign | None = None, *, verify_with: Foreign | None = None
) -> Opened:
    """Return the content of an envelope for ``key``, found by ``certificate`` or by the key's own identifier.

    With ``verify_with`` the object has to be signed by that certificate's key: what is not, raises before it is opened.
    Raises ProfileError, MalformedError, AlgorithmError (a recipient that cannot be used, by name), WrongPartyError,
    SignatureError, UsageError, and for whatever fails in opening one and the same UnwrapError.
    """
    if certificate is not None and certificate.spki != key.spki:
        raise UsageError("The key is not the key of the certificate", on=certificate.subject, hint="--cert CERT")
    signed = _signed(source)
    signed_by = ""
    if verify_with is not None:
        if signed is None:
            raise UsageError("The object is not signed", on=source.name, hint="leave out --verify-with")
        signed.verify(signatures.load(verify_with.spki, allowed=IDENTITY), name=verify_with.signer_name)
        signed_by = verify_with.subject
    read = envelope.parse(source.der if signed is None else _inside(signed, source.name), profile=Profile.READ)
    if signed is not None:
        _check_context(signed, read)
    content, algorithm = _unwrap(read, key, certificate, source.name)
    material = None
    if read.content_type in CONTENT_TYPES:
        material = decode_package(read.content_type, content, profile=Profile.READ)
        content = material.key
    return Opened(
        content=content,
        content_type=read.content_type,
        material=material,
        algorithm=algorithm,
        signed=signed is not None,
        signed_by=signed_by,
        signed_at=None if signed is None else signed.signed_at,
    )


def _signed(source: Source) -> UnverifiedSigned | None:
    kind = kind_of(source.der)
    if kind in (Kind.ENVELOPE, Kind.UNAUTHENTICATED):
        return None
    if kind not in (Kind.DEPOSIT, Kind.SIGNED):
        hint = f"kmb object show {source.name or 'FILE'}"
        raise UsageError(f"The object is no envelope but: {kind}", on=source.name, hint=hint)
    return signing.parse(source.der, content_types=None, extra=(), profile=Profile.READ)


def _inside(signed: UnverifiedSigned, name: str) -> bytes:
    found = enveloped(signed)
    if found is None:
        hint = f"openssl cms -verify -inform DER -in {name or 'FILE'} writes what is signed"
        raise UsageError("What is signed is no envelope", on=oids.name(signed.content_type), hint=hint)
    return found


def _check_context(signed: UnverifiedSigned, read: ParsedEnvelope) -> None:
    # Who signs another's envelope as his own would be taken for its sender (docs/adr/0001).
    outside = signed.attributes.get(oids.DEPOSIT_CONTEXT)
    if (outside is not None or read.context is not None) and outside != read.context:
        raise WrongPartyError("The context inside differs from the one outside", rule="DEP-004")


def _unwrap(read: ParsedEnvelope, key: OpeningKey, certificate: Foreign | None, name: str) -> tuple[bytes, str]:
    names = {kem.ski(key.spki)}
    issuer_serial = None
    if certificate is not None:
        names.add(certificate.ski)
        issuer_serial = certificate.issuer_serial
    for one in read.recipients:
        if (one.ski and one.ski in names) or (issuer_serial is not None and one.issuer_serial == issuer_serial):
            return envelope.unwrap(read, one.ski, key.recover, issuer_serial=one.issuer_serial), one.algorithm.title
    for other in read.unsupported:
        if (other.ski and other.ski in names) or (issuer_serial is not None and other.issuer_serial == issuer_serial):
            raise AlgorithmError(other.reason, on=name, hint=other.hint or f"kmb object show {name}")
    hint = f"kmb object show {name or 'FILE'} --cert CERT tells for whom it is"
    if certificate is None:
        hint = "--cert CERT: foreign envelopes name the certificate, not the key"
    raise UnwrapError("The envelope is for somebody else than this key", on=name, hint=hint)
