"""Identifiers as types of their own, so that one is never taken for another."""

from __future__ import annotations

import hashlib
import re
from typing import NewType

from pki.core.errors import UsageError

DepositId = NewType("DepositId", str)
"""32 hex digits: the 16 random bytes that the sender signed as the key package id (RFC 7191 §3)."""
RequestId = NewType("RequestId", str)
"""The SHA-256 of a certificate request's DER, 64 hex digits."""
Fingerprint = NewType("Fingerprint", str)
"""The SHA-256 of a certificate's DER, 64 hex digits."""
KeyId = NewType("KeyId", str)
"""The name that a tenant gives to a shared key, 1 to 128 characters of ``A-Za-z0-9._:@/-``."""
EventId = NewType("EventId", str)
"""The id of a CloudEvent, 32 hex digits."""

_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}")


def fingerprint(certificate_der: bytes) -> Fingerprint:
    """Return the SHA-256 of a certificate in DER, in hex."""
    return Fingerprint(hashlib.sha256(certificate_der).hexdigest())


def request_id(request_der: bytes) -> RequestId:
    """Return the SHA-256 of a certificate request in DER, in hex."""
    return RequestId(hashlib.sha256(request_der).hexdigest())


def deposit_id(package_id: bytes) -> DepositId:
    """Return the text form of a 16-byte key package id."""
    if len(package_id) != 16:
        raise UsageError("A deposit id has 16 bytes", on=package_id[:32].hex())
    return DepositId(package_id.hex())


def key_id(text: str) -> KeyId:
    """Return ``text`` as the name of a shared key, or raise UsageError."""
    if not _KEY_ID.fullmatch(text):
        raise UsageError(
            "A key id has 1 to 128 characters: letters, digits and . _ : @ / -",
            on=text[:140],
            hint="kmb key send orders-2026 --to TENANT/INSTANCE --in FILE",
        )
    return KeyId(text)
