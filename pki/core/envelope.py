"""The envelope: CMS AuthEnvelopedData (RFC 5083) with AES-256-GCM for KEM recipients (RFC 9629)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, attributes, kem, oids
from pki.core.der import located
from pki.core.errors import AlgorithmError, KeymailboxError, ProfileError, UnavailableError, UnwrapError, demand
from pki.core.kem import KemAlgorithm

_KEK = 32
_NONCE = 12
_TAG = 16
MAX_RECIPIENTS = 16


@dataclass(frozen=True)
class Recipient:
    """A key to wrap for: 20-byte subject key identifier, algorithm, raw public key."""

    ski: bytes
    algorithm: KemAlgorithm
    public_key: bytes


@dataclass(frozen=True)
class ParsedRecipient:
    """What an envelope says about one recipient; nothing of it is verified."""

    ski: bytes
    algorithm: KemAlgorithm
    ciphertext: bytes
    encrypted_key: bytes
    ukm: bytes | None


@dataclass(frozen=True)
class ParsedEnvelope:
    """An envelope that keeps the profile; whether it opens, only the recipient can tell."""

    recipients: tuple[ParsedRecipient, ...]
    content_type: Oid
    context: bytes | None
    nonce: bytes
    ciphertext: bytes
    mac: bytes
    aad: bytes


def wrap(content: bytes, content_type: Oid, recipients: Sequence[Recipient], *, context: bytes | None = None) -> bytes:
    """Return a ContentInfo in DER that each recipient can open; ``context`` (DER) is authenticated with the content."""
    cek, nonce = secrets.token_bytes(32), secrets.token_bytes(_NONCE)
    listed = [attributes.attribute(oids.CONTENT_TYPE, asn1.encode(content_type))]
    if context is not None:
        listed.append(attributes.attribute(oids.DEPOSIT_CONTEXT, context))
    auth_attrs = asn1.SetOf(listed)
    sealed = AESGCM(cek).encrypt(nonce, content, _aad(auth_attrs))
    parameters = asn1.tlv(asn1.encode(asn1.GcmParameters(nonce=nonce, tag_length=_TAG)))
    envelope = asn1.AuthEnvelopedData(
        version=0,
        recipients=asn1.SetOf([_recipient(recipient, cek) for recipient in recipients]),
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
def parse(der: bytes) -> ParsedEnvelope:
    """Return an envelope that keeps the profile (rules ENV-001 to ENV-012)."""
    info = asn1.decode(asn1.ContentInfo, der, what="The envelope")
    demand(info.content_type == oids.AUTH_ENVELOPED_DATA, "ENV-001", "The content is not AuthEnvelopedData")
    envelope = asn1.decode(asn1.AuthEnvelopedData, asn1.encode(info.content), what="The envelope")
    demand(envelope.version == 0, "ENV-002", "The version of AuthEnvelopedData is not 0")
    slots = envelope.recipients.as_list()
    demand(1 <= len(slots) <= MAX_RECIPIENTS, "ENV-003", f"There are not 1 to {MAX_RECIPIENTS} recipients")
    recipients = tuple(_parse_recipient(asn1.encode(slot)) for slot in slots)
    demand(len({r.ski for r in recipients}) == len(recipients), "ENV-003", "A recipient appears twice")
    content = envelope.encrypted
    if content.algorithm.algorithm != oids.AES256_GCM:
        raise AlgorithmError("Only AES-256-GCM is allowed", on=oids.name(content.algorithm.algorithm), rule="ENV-008")
    demand(isinstance(content.algorithm.parameters, asn1.TLV), "ENV-009", "The GCM parameters are missing")
    gcm = asn1.decode(asn1.GcmParameters, asn1.encode(content.algorithm.parameters), what="The GCM parameters")
    at = asn1.encode(content.algorithm.parameters)
    demand(len(gcm.nonce) == _NONCE, "ENV-009", "The GCM nonce does not have 12 bytes", at)
    demand(gcm.tag_length == _TAG and len(envelope.mac) == _TAG, "ENV-010", "The GCM tag does not have 16 bytes", at)
    if envelope.auth_attrs is None:
        raise ProfileError("The authenticated attributes are missing", rule="ENV-011")
    found = attributes.values(
        envelope.auth_attrs.as_list(), required=(oids.CONTENT_TYPE,), optional=(oids.DEPOSIT_CONTEXT,), rule="ENV-011"
    )
    typed = asn1.decode(Oid, found[oids.CONTENT_TYPE], what="The content type")
    demand(typed == content.content_type, "ENV-012", "The content type differs from the authenticated one")
    return ParsedEnvelope(
        recipients=recipients,
        content_type=content.content_type,
        context=found.get(oids.DEPOSIT_CONTEXT),
        nonce=gcm.nonce,
        ciphertext=content.ciphertext,
        mac=envelope.mac,
        aad=_aad(envelope.auth_attrs),
    )


def unwrap(envelope: ParsedEnvelope, ski: bytes, decapsulate: Callable[[KemAlgorithm, bytes], bytes]) -> bytes:
    """Return the content for the recipient ``ski``; whatever goes wrong is one and the same UnwrapError."""
    for recipient in envelope.recipients:
        if recipient.ski == ski:
            break
    else:
        raise UnwrapError
    try:
        shared = decapsulate(recipient.algorithm, recipient.ciphertext)
        cek = aes_key_unwrap(_kek(shared, recipient.ukm), recipient.encrypted_key)
        return AESGCM(cek).decrypt(envelope.nonce, envelope.ciphertext + envelope.mac, envelope.aad)
    except UnavailableError:
        # The key's holder is away, whatever the envelope says: the caller may try again.
        raise
    except (KeymailboxError, InvalidUnwrap, InvalidTag, ValueError):
        # One answer for all: which step failed is an oracle.
        raise UnwrapError from None


def _recipient(recipient: Recipient, cek: bytes) -> asn1.TLV:
    ciphertext, shared = kem.encapsulate(recipient.algorithm, recipient.public_key)
    info = asn1.KemRecipient(
        version=0,
        rid=recipient.ski,
        kem=asn1.AlgorithmIdentifier(algorithm=recipient.algorithm.oid, parameters=None),
        kem_ciphertext=ciphertext,
        kdf=asn1.AlgorithmIdentifier(algorithm=oids.HKDF_SHA256, parameters=None),
        kek_length=_KEK,
        ukm=None,
        wrap=_WRAP,
        encrypted_key=aes_key_wrap(_kek(shared, None), cek),
    )
    other = asn1.OtherRecipient(kind=oids.KEM_RECIPIENT_INFO, value=asn1.tlv(asn1.encode(info)))
    return asn1.tlv(_retag(asn1.encode(other), 0x30, 0xA4))


def _parse_recipient(der: bytes) -> ParsedRecipient:
    demand(der[:1] == b"\xa4", "ENV-004", "A recipient is not a KEM recipient")
    other = asn1.decode(asn1.OtherRecipient, _retag(der, 0xA4, 0x30), what="A recipient")
    demand(other.kind == oids.KEM_RECIPIENT_INFO, "ENV-004", "A recipient is not a KEM recipient")
    info = asn1.decode(asn1.KemRecipient, asn1.encode(other.value), what="A KEM recipient")
    demand(info.version == 0, "ENV-002", "The version of a KEM recipient is not 0")
    alg = kem.algorithm(info.kem.algorithm)
    demand(info.kem.parameters is None, "ENV-004", "The KEM has parameters")
    demand(len(info.kem_ciphertext) == alg.ciphertext_size, "ENV-005", "The KEM ciphertext has a wrong size")
    demand(len(info.rid) == 20, "ENV-005", "The recipient's key identifier does not have 20 bytes")
    if info.kdf.algorithm != oids.HKDF_SHA256 or info.kdf.parameters is not None:
        raise AlgorithmError("Only HKDF-SHA256 is allowed", on=oids.name(info.kdf.algorithm), rule="ENV-006")
    if info.wrap.algorithm != oids.AES256_WRAP or info.wrap.parameters is not None or info.kek_length != _KEK:
        raise AlgorithmError("Only AES-256-wrap is allowed", on=oids.name(info.wrap.algorithm), rule="ENV-007")
    demand(len(info.encrypted_key) == 40, "ENV-007", "The wrapped content key does not have 40 bytes")
    return ParsedRecipient(info.rid, alg, info.kem_ciphertext, info.encrypted_key, info.ukm)


_WRAP = asn1.AlgorithmIdentifier(algorithm=oids.AES256_WRAP, parameters=None)


def _kek(shared: bytes, ukm: bytes | None) -> bytes:
    # RFC 9629 §5: the info is the DER of CMSORIforKEMOtherInfo; no salt (RFC 9936 §2.2.1)
    info = asn1.encode(asn1.KemOtherInfo(wrap=_WRAP, kek_length=_KEK, ukm=ukm))
    return HKDF(algorithm=hashes.SHA256(), length=_KEK, salt=None, info=info).derive(shared)


def _aad(auth_attrs: asn1.SetOf[asn1.Attribute]) -> bytes:
    # RFC 5083 §2.2: the attributes with the universal SET OF tag, not the implicit one
    return asn1.encode(auth_attrs)


def _retag(der: bytes, old: int, new: int) -> bytes:
    # A CHOICE's IMPLICIT alternative differs from the SEQUENCE in its first byte alone (X.690 §8.14).
    if der[0] != old:
        raise ProfileError("A recipient has an unexpected tag", rule="ENV-004")
    return bytes([new]) + der[1:]
