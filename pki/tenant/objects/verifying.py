"""Verify a signed object, a certificate, a request or a revocation list under trust anchors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from pki.core import asn1, crl, oids, signatures, signing
from pki.core.der import header, parts
from pki.core.errors import CertificateError, KeymailboxError, SignatureError, UsageError
from pki.core.paths import find as path
from pki.core.paths import verify_signature
from pki.core.profile import Profile
from pki.core.signatures import IDENTITY
from pki.core.signing import UnverifiedSigned
from pki.tenant.objects.kinds import Kind, kind_of
from pki.tenant.objects.people import Foreign, parse
from pki.tenant.objects.reading import Source

MAX_EMBEDDED = 16
_SIGNED = frozenset({Kind.SIGNED, Kind.DEPOSIT, Kind.RECEIPT, Kind.REFUSAL, Kind.REVOCATION})


@dataclass(frozen=True)
class Verified:
    """What was verified: the kind of object, the signer (subject), the path to the trust anchor (subjects), the rest.

    ``checked`` and ``unchecked`` are sentences for people and logs; ``signed_at`` is what the signer says.
    """

    kind: Kind
    signer: str
    path: tuple[str, ...]
    algorithm: str
    content_type: str
    signed_at: datetime | None
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]


def verify(
    source: Source,
    *,
    trust: Sequence[Foreign],
    untrusted: Sequence[Foreign] = (),
    signer: Foreign | None = None,
    now: datetime,
) -> Verified:
    """Return what holds, or raise the error of what does not.

    ``signer`` says whose signature is expected. Without it, it is looked for in the certificates that were given or
    came along; those prove nothing by themselves: the path has to end in ``trust``.
    """
    kind = kind_of(source.der)
    if kind is Kind.CERTIFICATE:
        return _certificate(parse(source.der), trust, untrusted, now)
    if kind is Kind.CRL:
        return _crl(source.der, trust, untrusted, now)
    if kind is Kind.REQUEST:
        return _request(source.der, trust, untrusted, signer, now)
    if kind not in _SIGNED:
        hint = f"kmb object show {source.name or 'FILE'}"
        raise UsageError(f"The object has no signature: {kind}", on=source.name, hint=hint)
    return _signed(source, kind, trust, untrusted, signer, now)


_REVOCATION = "whether a certificate of the path is revoked"


def _signed(
    source: Source,
    kind: Kind,
    trust: Sequence[Foreign],
    untrusted: Sequence[Foreign],
    signer: Foreign | None,
    now: datetime,
) -> Verified:
    read = signing.parse(source.der, content_types=None, extra=(), profile=Profile.READ)
    others = [*untrusted, *_embedded(source.der)]
    found = _find(read, [signer] if signer is not None else [*trust, *others], source.name)
    if found.usage is not None and not found.usage.digital_signature:
        raise CertificateError("The signer's certificate is not for signatures", on=found.subject)
    way = path(found, trust=trust, untrusted=others, now=now)
    read.verify(signatures.load(found.spki, allowed=IDENTITY), name=found.signer_name)
    inside = "what is inside of the envelope, and when it was really signed"
    return Verified(
        kind=kind,
        signer=found.subject,
        path=tuple(one.subject for one in way),
        algorithm=oids.name(read.signature_algorithm),
        content_type=oids.name(read.content_type),
        signed_at=read.signed_at,
        checked=("the signature over content and signed attributes", "the path to a trusted certificate, valid now"),
        unchecked=(_REVOCATION, inside if kind is Kind.DEPOSIT else "when it was really signed"),
    )


def _find(read: UnverifiedSigned, candidates: Sequence[Foreign], name: str) -> Foreign:
    for one in candidates:
        if read.signer_serial is not None:
            if read.signer_serial == (one.issuer_der, one.serial):
                return one
        elif read.signer_ski and read.signer_ski == one.ski:
            return one
    raise CertificateError(
        "The signer's certificate is not among those that were given or came along",
        on=f"{name}, key identifier {read.signer_ski.hex()}" if read.signer_ski else name,
        hint="--signer CERT",
    )


def _embedded(der: bytes) -> Iterator[Foreign]:
    """Yield the certificates of a SignedData (RFC 5652 §5.1); what cannot be read there is passed over."""
    info = header(der, 0, len(der))
    explicit = header(der, header(der, info.content, info.end).end, info.end)
    signed = header(der, explicit.content, explicit.end)
    for part in parts(der, signed.content, signed.end):
        if part.tag != 0xA0:
            continue
        for one in islice(parts(der, part.content, part.end), MAX_EMBEDDED):
            try:
                yield parse(der[one.start : one.end])
            except KeymailboxError:
                continue


def _certificate(leaf: Foreign, trust: Sequence[Foreign], untrusted: Sequence[Foreign], now: datetime) -> Verified:
    way = path(leaf, trust=trust, untrusted=untrusted, now=now)
    return Verified(
        kind=Kind.CERTIFICATE,
        signer=way[1].subject if len(way) > 1 else leaf.subject,
        path=tuple(one.subject for one in way),
        algorithm=oids.name(leaf.signature_algorithm.algorithm),
        content_type="",
        signed_at=None,
        checked=("the path to a trusted certificate, valid now",),
        unchecked=(_REVOCATION, "whether its address is the one that you mean: kmb peer verify"),
    )


def _crl(der: bytes, trust: Sequence[Foreign], untrusted: Sequence[Foreign], now: datetime) -> Verified:
    first: KeymailboxError | None = None
    for issuer in (*trust, *untrusted):
        if issuer.usage is not None and not issuer.usage.crl_sign:
            continue
        try:
            listed = crl.verify_crl(der, issuing_der=issuer.der, now=now)
            way = path(issuer, trust=trust, untrusted=untrusted, now=now)
        except KeymailboxError as error:
            first = first if first is not None and first.rule != "CRL-001" else error
            continue
        return Verified(
            kind=Kind.CRL,
            signer=issuer.subject,
            path=tuple(one.subject for one in way),
            algorithm=signatures.load(issuer.spki).algorithm.title,
            content_type="",
            signed_at=listed.this_update,
            checked=(
                "the signature of the issuing CA",
                f"that it is in date, until {listed.next_update:%Y-%m-%d %H:%M}Z",
                "the path to a trusted certificate",
            ),
            unchecked=("whether it is the newest",),
        )
    if first is not None:
        raise first
    raise CertificateError("No certificate that was given may sign revocation lists", hint="--trust CERT")


def _request(
    der: bytes, trust: Sequence[Foreign], untrusted: Sequence[Foreign], signer: Foreign | None, now: datetime
) -> Verified:
    outer = asn1.decode(asn1.Request, der, what="The certificate request")
    info = asn1.inner(asn1.RequestInfo, outer.info, what="The certificate request")
    if outer.signature.padding_bits():
        raise SignatureError("The signature's bits are not whole bytes")
    spki = asn1.encode(info.public_key)
    way: tuple[str, ...] = ()
    if signer is not None:
        way = tuple(one.subject for one in path(signer, trust=trust, untrusted=untrusted, now=now))
    elif info.public_key.algorithm.algorithm not in {one.key_oid for one in IDENTITY}:
        raise UsageError(
            "The request is for a key that cannot sign; the identity key signed it (RFC 9883)",
            hint="--signer CERT: the identity certificate of the one who asks",
        )
    key = signatures.load(spki if signer is None else signer.spki, allowed=IDENTITY)
    verify_signature(key, outer.signature_algorithm, outer.signature.as_bytes(), asn1.encode(outer.info))
    return Verified(
        kind=Kind.REQUEST,
        signer="the key that it is for" if signer is None else signer.subject,
        path=way,
        algorithm=key.algorithm.title,
        content_type="",
        signed_at=None,
        checked=("the signature",) if signer is None else ("the signature", "the path to a trusted certificate"),
        unchecked=("whose key it is",) if signer is None else (_REVOCATION,),
    )
