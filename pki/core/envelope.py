"""The envelope: CMS AuthEnvelopedData (RFC 5083) with AES-GCM (RFC 5084), for recipients of several kinds."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, attributes, oids
from pki.core.der import Header, header, located, parts
from pki.core.errors import (
    AlgorithmError,
    KeymailboxError,
    MalformedError,
    ProfileError,
    UnavailableError,
    UnwrapError,
    demand,
)
from pki.core.profile import Profile
from pki.core.recipients import MAX_RECIPIENT, make, read
from pki.core.recipients import IssuerSerial as IssuerSerial
from pki.core.recipients import ParsedRecipient as ParsedRecipient
from pki.core.recipients import Recipient as Recipient
from pki.core.recipients import Recover as Recover
from pki.core.recipients import UnsupportedRecipient as UnsupportedRecipient

_NONCE = 12
_TAG = 16
_LARGE = 1024 * 1024
"""Bytes of which a copy costs more than a look."""
_SMALL = 4096
"""Bytes in which so little fits that it need not be counted before it is decoded."""
MAX_RECIPIENTS = 16
_MOST = {Profile.STRICT: MAX_RECIPIENTS, Profile.READ: 256}
_MAX_ATTRIBUTES = {Profile.STRICT: 4096, Profile.READ: 16384}
_MAX_FIELD = 256
_MOST_PARTS = 7
"""Of AuthEnvelopedData, with all that is optional (RFC 5083 §2.1)."""
_FIELDS = {0x02: "ENV-002", 0x04: "ENV-010"}
"""Fields that have a few bytes: the version, the tag (MAC)."""
_GCM = {
    Profile.STRICT: {oids.AES256_GCM: 32},
    Profile.READ: {oids.AES256_GCM: 32, oids.AES192_GCM: 24, oids.AES128_GCM: 16},
}


@dataclass(frozen=True)
class ParsedEnvelope:
    """An envelope that keeps the profile; whether it opens, only the recipient can tell.

    ``unsupported`` and ``extra`` (authenticated attributes that are not known, in DER) hold something only when it was
    read with `Profile.READ`. ``key_size`` is that of the content key in bytes.
    """

    recipients: tuple[ParsedRecipient, ...]
    content_type: Oid
    context: bytes | None
    nonce: bytes
    ciphertext: bytes
    mac: bytes
    aad: bytes
    key_size: int = 32
    unsupported: tuple[UnsupportedRecipient, ...] = ()
    extra: tuple[bytes, ...] = ()


def wrap(
    content: bytes,
    content_type: Oid,
    recipients: Sequence[Recipient],
    *,
    context: bytes | None = None,
    ukm: bytes | None = None,
) -> bytes:
    """Return a ContentInfo in DER that each recipient can open, whatever the kind of its key.

    ``context`` (DER) is authenticated with the content; ``ukm`` goes into each key derivation. A malformed key, none or
    too many recipients, or one twice, raise ProfileError.
    """
    _demand_distinct(recipients, Profile.STRICT)
    cek, nonce = secrets.token_bytes(32), secrets.token_bytes(_NONCE)
    listed = [attributes.attribute(oids.CONTENT_TYPE, asn1.encode(content_type))]
    if context is not None:
        listed.append(attributes.attribute(oids.DEPOSIT_CONTEXT, context))
    auth_attrs = asn1.SetOf(listed)
    sealed = AESGCM(cek).encrypt(nonce, content, _aad(auth_attrs))
    parameters = asn1.tlv(asn1.encode(asn1.GcmParameters(nonce=nonce, tag_length=_TAG)))
    envelope = asn1.AuthEnvelopedData(
        version=0,
        recipients=asn1.SetOf([make(recipient, cek, ukm=ukm) for recipient in recipients]),
        encrypted=asn1.EncryptedContent(
            content_type=content_type,
            algorithm=asn1.AlgorithmIdentifier(algorithm=oids.AES256_GCM, parameters=parameters),
            ciphertext=sealed[:-_TAG],
        ),
        auth_attrs=auth_attrs,
        mac=sealed[-_TAG:],
    )
    info = asn1.ContentInfo(content_type=oids.AUTH_ENVELOPED_DATA, content=asn1.tlv(asn1.encode(envelope)))
    return asn1.encode(info)


@located
def parse(der: bytes, *, profile: Profile = Profile.STRICT) -> ParsedEnvelope:
    """Return an envelope that keeps the profile (rules ENV-…)."""
    if len(der) > _LARGE:
        _measure_ahead(der, profile)
    info = asn1.decode(asn1.ContentInfo, der, what="The envelope")
    if info.content_type == oids.ENVELOPED_DATA:
        raise ProfileError(
            "This is EnvelopedData, which nothing authenticates: whoever carried it could have changed what it holds",
            hint="ask for AuthEnvelopedData; with openssl cms -encrypt: -aes-256-gcm",
            rule="ENV-001",
        )
    demand(info.content_type == oids.AUTH_ENVELOPED_DATA, "ENV-001", "The content is not AuthEnvelopedData")
    fields = info.content.data
    if len(fields) > _SMALL:
        _measure(fields, profile)
    try:
        envelope = asn1.inner(asn1.AuthEnvelopedData, info.content, what="The envelope")
    except MalformedError:
        _measure(fields, profile)
        raise
    demand(envelope.version == 0, "ENV-002", "The version of AuthEnvelopedData is not 0")
    slots = envelope.recipients.as_list()
    demand(1 <= len(slots) <= _MOST[profile], "ENV-003", f"There are not 1 to {_MOST[profile]} recipients")
    found = [one for slot in slots for one in read(asn1.encode(slot), profile)]
    _demand_distinct(found, profile)
    content = envelope.encrypted
    nonce = _nonce(content.algorithm, profile)
    demand(len(envelope.mac) == _TAG, "ENV-010", "The GCM tag does not have 16 bytes")
    context, extra = _attributes(envelope.auth_attrs, content.content_type, profile)
    return ParsedEnvelope(
        recipients=tuple(one for one in found if isinstance(one, ParsedRecipient)),
        content_type=content.content_type,
        context=context,
        nonce=nonce,
        ciphertext=content.ciphertext,
        mac=envelope.mac,
        aad=b"" if envelope.auth_attrs is None else _aad(envelope.auth_attrs),
        key_size=_GCM[profile][content.algorithm.algorithm],
        unsupported=tuple(one for one in found if isinstance(one, UnsupportedRecipient)),
        extra=extra,
    )


def unwrap(
    envelope: ParsedEnvelope, ski: bytes, recover: Recover, *, issuer_serial: IssuerSerial | None = None
) -> bytes:
    """Return the content for the recipient ``ski``; whatever goes wrong is one and the same UnwrapError.

    ``recover`` is called with algorithm and bytes of that one recipient. With ``issuer_serial`` a recipient that is
    named by it is found as well.
    """
    for recipient in envelope.recipients:
        if recipient.ski == ski if recipient.ski else recipient.issuer_serial == issuer_serial:
            break
    else:
        raise UnwrapError
    try:
        cek = recipient.content_key(recover)
        if len(cek) != envelope.key_size:
            raise UnwrapError
        return AESGCM(cek).decrypt(envelope.nonce, envelope.ciphertext + envelope.mac, envelope.aad)
    except UnavailableError:
        # The key's holder is away, whatever the envelope says: the caller may try again.
        raise
    except (KeymailboxError, InvalidUnwrap, InvalidTag, ValueError):
        pass
    # One answer for all, and not raised in the handler, where it would carry along which step failed: an oracle.
    cek = b""
    raise UnwrapError


def _measure_ahead(der: bytes, profile: Profile) -> None:
    """Measure an envelope where it lies: decoding even the outermost part would copy all of it."""
    with suppress(MalformedError):
        outer = header(der, 0, len(der))
        inside = header(der, header(der, outer.content, outer.end).end, outer.end)
        fields = header(der, inside.content, inside.end)
        _measure(memoryview(der)[fields.content : fields.end], profile)


def _measure(fields: memoryview, profile: Profile) -> None:
    """Refuse what is too many or too large before it is decoded (rules ENV-002, -003, -005, -009 to -011)."""
    with suppress(MalformedError):  # decoding will say where
        _measure_fields(fields, profile)


def _measure_fields(inner: memoryview, profile: Profile) -> None:
    for count, one in enumerate(parts(inner, 0, len(inner), 1), 1):
        size = one.end - one.start
        demand(count <= _MOST_PARTS, "ENV-001", "The envelope has too many parts")
        if one.tag == 0x31:
            _measure_recipients(inner, one, profile)
        elif one.tag == 0xA1:
            demand(size <= _MAX_ATTRIBUTES[profile], "ENV-011", "The authenticated attributes are too large")
        elif one.tag == 0x30 and one.content < one.end:
            algorithm = header(inner, header(inner, one.content, one.end).end, one.end)
            few = algorithm.end - algorithm.start <= _MAX_FIELD
            demand(few, "ENV-009", "The parameters of the encryption are too large")
        elif one.tag in _FIELDS:
            demand(size <= _MAX_FIELD, _FIELDS[one.tag], "The version or the tag of the envelope is too large")


def _measure_recipients(inner: memoryview, listed: Header, profile: Profile) -> None:
    count, most = 0, _MOST[profile]
    for count, one in enumerate(islice(parts(inner, listed.content, listed.end, 2), most + 1), 1):
        demand(one.end - one.start <= MAX_RECIPIENT[profile] or count > most, "ENV-005", "A recipient is too large")
    demand(1 <= count <= most, "ENV-003", f"There are not 1 to {most} recipients")


def _demand_distinct(listed: Sequence[Recipient | ParsedRecipient | UnsupportedRecipient], profile: Profile) -> None:
    most = _MOST[profile]
    demand(1 <= len(listed) <= most, "ENV-003", f"There are not 1 to {most} recipients")
    names = [one.ski or getattr(one, "issuer_serial", None) for one in listed]
    known = [name for name in names if name]
    demand(len(set(known)) == len(known), "ENV-003", "A recipient appears twice")


def _nonce(algorithm: asn1.AlgorithmIdentifier, profile: Profile) -> bytes:
    if algorithm.algorithm not in _GCM[profile]:
        raise AlgorithmError(
            "Only AES-256-GCM is allowed" if profile is Profile.STRICT else "Only AES-GCM is allowed",
            on=oids.name(algorithm.algorithm),
            rule="ENV-008",
            at=asn1.encode(algorithm),
        )
    if not isinstance(algorithm.parameters, asn1.TLV):
        raise ProfileError("The GCM parameters are missing", rule="ENV-009")
    gcm = asn1.inner(asn1.GcmParameters, algorithm.parameters, what="The GCM parameters")
    if len(gcm.nonce) != _NONCE:
        at = asn1.encode(algorithm.parameters)
        raise ProfileError("The GCM nonce does not have 12 bytes", rule="ENV-009", at=at)
    if gcm.tag_length != _TAG:
        at = asn1.encode(algorithm.parameters)
        raise ProfileError("The GCM tag does not have 16 bytes", rule="ENV-010", at=at)
    return gcm.nonce


def _attributes(
    auth_attrs: asn1.SetOf[asn1.Attribute] | None, content_type: Oid, profile: Profile
) -> tuple[bytes | None, tuple[bytes, ...]]:
    """Return the deposit's context and the attributes that are not known (rules ENV-011, ENV-012)."""
    if auth_attrs is None:
        # RFC 5083 §2.1: they may be absent only where the content is id-data.
        optional = profile is Profile.READ and content_type == oids.DATA
        demand(optional, "ENV-011", "The authenticated attributes are missing")
        return None, ()
    known, extra = auth_attrs.as_list(), []
    if profile is Profile.READ:
        extra = [one for one in known if one.oid not in (oids.CONTENT_TYPE, oids.DEPOSIT_CONTEXT)]
        known = [one for one in known if one not in extra]
    found = attributes.values(known, required=(oids.CONTENT_TYPE,), optional=(oids.DEPOSIT_CONTEXT,), rule="ENV-011")
    if found[oids.CONTENT_TYPE] != asn1.encoded_oid(content_type):
        typed = asn1.decode(Oid, found[oids.CONTENT_TYPE], what="The content type")
        raise ProfileError("The content type differs from the authenticated one", on=oids.name(typed), rule="ENV-012")
    return found.get(oids.DEPOSIT_CONTEXT), tuple(asn1.encode(one) for one in extra)


def _aad(auth_attrs: asn1.SetOf[asn1.Attribute]) -> bytes:
    # RFC 5083 §2.2: the attributes with the universal SET OF tag, not the implicit one
    return asn1.encode(auth_attrs)
