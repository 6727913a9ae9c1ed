"""What the CA says by CMP (RFC 9810 §5.3): the contents of the bodies of its answers."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7

from pki.core import asn1, oids, recipients
from pki.core.cmp import types
from pki.core.cmp.messages import tagged
from pki.core.cmp.types import Fail
from pki.core.keys import KemAlgorithm
from pki.core.recipients import Recipient

ACCEPTED, REJECTED = 0, 2
_MAX_TEXT = 400
_BLOCK = 128
_NULL = b"\x05\x00"
_ENVELOPED_DATA = 0xA0


def certificate(number: int, certificate_der: bytes, authorities: Sequence[bytes] = ()) -> bytes:
    """Return the content of an ip, cp or kup that brings a certificate; ``authorities`` may be trusted (caPubs)."""
    return _response(number, tagged(0xA0, certificate_der), authorities)


def encrypted_certificate(number: int, certificate_der: bytes, recipient: Recipient) -> bytes:
    """Return the content of an ip, cp or kup with a certificate that only the key's owner can read.

    It is EnvelopedData, as RFC 9810 §5.2.2 has it; the hash that comes back tells whether it was changed.
    """
    enveloped = asn1.retagged(_ENVELOPED_DATA, _enveloped(certificate_der, recipient))
    return _response(number, tagged(0xA1, enveloped), ())


def refusal(number: int, failure: Fail, text: str) -> bytes:
    """Return the content of an ip, cp or kup without a certificate."""
    response = types.CertResponse(number=number, status=_status(REJECTED, [failure], text), pair=None)
    return asn1.encode(types.CertRepMessage(authorities=None, responses=[response]))


def revoked() -> bytes:
    """Return the content of an rp for a certificate that is revoked."""
    return asn1.encode(types.RevRepContent(statuses=[_status(ACCEPTED)]))


def confirmed() -> bytes:
    """Return the content of a pkiconf."""
    return _NULL


def authorities(certificates: Sequence[bytes]) -> bytes:
    """Return the content of a genp that lists CA certificates (RFC 9810 §5.3.19.14)."""
    value = asn1.tlv(tagged(0x30, b"".join(certificates)))
    return tagged(0x30, asn1.encode(types.InfoTypeAndValue(kind=types.CA_CERTIFICATES, value=value)))


def error(failure: Fail, text: str) -> bytes:
    """Return the content of an error message."""
    return asn1.encode(types.ErrorContent(status=_status(REJECTED, [failure], text)))


def _response(number: int, choice: bytes, authorities: Sequence[bytes]) -> bytes:
    pair = types.CertifiedKeyPair(certificate=asn1.tlv(choice))
    listed = [asn1.tlv(one) for one in authorities] or None
    response = types.CertResponse(number=number, status=_status(ACCEPTED), pair=pair)
    return asn1.encode(types.CertRepMessage(authorities=listed, responses=[response]))


def _status(status: int, failures: Collection[Fail] = (), text: str = "") -> types.StatusInfo:
    return types.StatusInfo(
        status=status, texts=[text[:_MAX_TEXT]] if text else None, failure=_bits(failures) if failures else None
    )


def _bits(failures: Collection[Fail]) -> asn1.BitString:
    # A named bit list ends with its last bit that is set (X.690 §11.2.2).
    most = max(failures)
    size = most // 8 + 1
    number = sum(1 << (8 * size - 1 - bit) for bit in set(failures))
    return asn1.BitString(number.to_bytes(size, "big"), 8 * size - 1 - most)


def _enveloped(content: bytes, recipient: Recipient) -> bytes:
    key, start = secrets.token_bytes(32), secrets.token_bytes(16)
    padder, cipher = PKCS7(_BLOCK).padder(), Cipher(AES(key), CBC(start)).encryptor()
    ciphertext = cipher.update(padder.update(content) + padder.finalize()) + cipher.finalize()
    # RFC 5652 §6.1: other recipients than key transport and agreement make it version 3.
    version = 3 if isinstance(recipient.algorithm, KemAlgorithm) else 2
    enveloped = types.EnvelopedData(
        version=version,
        recipients=asn1.SetOf([recipients.make(recipient, key)]),
        encrypted=asn1.EncryptedContent(
            content_type=oids.DATA,
            algorithm=asn1.AlgorithmIdentifier(algorithm=types.AES256_CBC, parameters=asn1.tlv(asn1.encode(start))),
            ciphertext=ciphertext,
        ),
    )
    return asn1.encode(enveloped)
