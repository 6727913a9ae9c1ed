"""Error codes of RFC 7191 §5: why a key package was not taken, as a number or an object identifier, with names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1
from pki.core.errors import ProfileError, UsageError

_MAX_NUMBER = (1 << 31) - 1

NUMBERED: Mapping[int, str] = {
    1: "decodeFailure",
    2: "badContentInfo",
    3: "badSignedData",
    4: "badEncapContent",
    5: "badCertificate",
    6: "badSignerInfo",
    7: "badSignedAttrs",
    8: "badUnsignedAttrs",
    9: "missingContent",
    10: "noTrustAnchor",
    11: "notAuthorized",
    12: "badDigestAlgorithm",
    13: "badSignatureAlgorithm",
    14: "unsupportedKeySize",
    15: "unsupportedParameters",
    16: "signatureFailure",
    17: "insufficientMemory",
    23: "incorrectTarget",
    29: "missingSignature",
    30: "resourcesBusy",
    31: "versionNumberMismatch",
    33: "revokedCertificate",
    60: "ambiguousDecrypt",
    61: "noDecryptKey",
    62: "badEncryptedData",
    63: "badEnvelopedData",
    64: "badAuthenticatedData",
    65: "badAuthEnvelopedData",
    66: "badKeyAgreeRecipientInfo",
    67: "badKEKRecipientInfo",
    68: "badEncryptContent",
    69: "badEncryptAlgorithm",
    70: "missingCiphertext",
    71: "decryptFailure",
    72: "badMACAlgorithm",
    73: "badAuthAttrs",
    74: "badUnauthAttrs",
    75: "invalidMAC",
    76: "mismatchedDigestAlg",
    77: "missingCertificate",
    78: "tooManySigners",
    79: "missingSignedAttributes",
    80: "derEncodingNotUsed",
    81: "missingContentHints",
    82: "invalidAttributeLocation",
    83: "badMessageDigest",
    84: "badKeyPackage",
    85: "badAttributes",
    86: "attributeComparisonFailure",
    87: "unsupportedSymmetricKeyPackage",
    88: "unsupportedAsymmetricKeyPackage",
    89: "constraintViolation",
    90: "ambiguousDefaultValue",
    91: "noMatchingRecipientInfo",
    92: "unsupportedKeyWrapAlgorithm",
    93: "badKeyTransRecipientInfo",
    127: "other",
}
"""EnumeratedErrorCode; up to 33 the numbers are those of RFC 5934 §5."""

IDENTIFIED: Mapping[Oid, str] = {
    Oid("2.16.840.1.101.2.1.22.1"): "missingKeyType",
    Oid("2.16.840.1.101.2.1.22.2"): "privacyMarkTooLong",
    Oid("2.16.840.1.101.2.1.22.3"): "unrecognizedSecurityPolicy",
}
"""The codes that RFC 7906 §29 adds."""


@dataclass(frozen=True)
class ErrorCode:
    """ErrorCodeChoice: either a number from 0 or an object identifier, whether it has a name or not."""

    value: int | Oid

    def __post_init__(self) -> None:
        if isinstance(self.value, int) and not 0 <= self.value <= _MAX_NUMBER:
            raise UsageError("An error code is from 0 to 2147483647", on=f"{self.value.bit_length()} bits")

    @property
    def name(self) -> str:
        """The code's name, or the code itself where it has none."""
        if isinstance(self.value, Oid):
            return IDENTIFIED.get(self.value, self.value.dotted_string)
        return NUMBERED.get(self.value, f"code {self.value}")

    def encode(self) -> bytes:
        """Return the code in DER."""
        return asn1.encode(self.value) if isinstance(self.value, Oid) else asn1.enumerated(self.value)


def parse_code(der: bytes) -> ErrorCode:
    """Return a code, known or not; what is neither ENUMERATED nor OBJECT IDENTIFIER raises ProfileError (RCP-002)."""
    if der[:1] == b"\x0a":
        number = asn1.enumerated_number(der, what="The error code")
        if 0 <= number <= _MAX_NUMBER:
            return ErrorCode(number)
    elif der[:1] == b"\x06":
        return ErrorCode(asn1.decode(Oid, der, what="The error code"))
    raise ProfileError("The refusal's error code is neither a number of 31 bits nor an identifier", rule="RCP-002")
