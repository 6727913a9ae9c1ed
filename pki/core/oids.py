"""Object identifiers of the wire profile, with their sources."""

from __future__ import annotations

from cryptography.x509 import ObjectIdentifier as Oid

# Content types
DATA = Oid("1.2.840.113549.1.7.1")  # RFC 5652 §4
SIGNED_DATA = Oid("1.2.840.113549.1.7.2")  # RFC 5652 §5.1
AUTH_ENVELOPED_DATA = Oid("1.2.840.113549.1.9.16.1.23")  # RFC 5083 §2.1
SYMMETRIC_KEY_PACKAGE = Oid("1.2.840.113549.1.9.16.1.25")  # RFC 6031 §2
KEY_PACKAGE_RECEIPT = Oid("2.16.840.1.101.2.1.2.78.3")  # RFC 7191 §3.2
KEY_PACKAGE_ERROR = Oid("2.16.840.1.101.2.1.2.78.6")  # RFC 7191 §4

# Attributes
CONTENT_TYPE = Oid("1.2.840.113549.1.9.3")  # RFC 5652 §11.1
MESSAGE_DIGEST = Oid("1.2.840.113549.1.9.4")  # RFC 5652 §11.2
SIGNING_TIME = Oid("1.2.840.113549.1.9.5")  # RFC 5652 §11.3
EXTENSION_REQUEST = Oid("1.2.840.113549.1.9.14")  # RFC 2985 §5.4.2
KEY_PACKAGE_ID_AND_RECEIPT_REQUEST = Oid("2.16.840.1.101.2.1.5.65")  # RFC 7191 §3.1
POSSESSION_STATEMENT = Oid("1.3.6.1.4.1.22112.2.1")  # RFC 9883 §3
SIREN_DN = Oid("2.16.840.1.101.2.1.16.0")  # RFC 7191 §3.1.2: an entity named by its distinguished name

# Algorithms
SHA512 = Oid("2.16.840.1.101.3.4.2.3")  # RFC 5754 §2.4
ML_DSA_65 = Oid("2.16.840.1.101.3.4.3.18")  # RFC 9881 §2
ML_KEM_768 = Oid("2.16.840.1.101.3.4.4.2")  # RFC 9935 §3
ML_KEM_1024 = Oid("2.16.840.1.101.3.4.4.3")  # RFC 9935 §3
ML_KEM_768_X25519 = Oid("1.3.6.1.5.5.7.6.58")  # draft-ietf-lamps-pq-composite-kem
KEM_RECIPIENT_INFO = Oid("1.2.840.113549.1.9.16.13.3")  # RFC 9629 §4
HKDF_SHA256 = Oid("1.2.840.113549.1.9.16.3.28")  # RFC 8619 §3
AES256_WRAP = Oid("2.16.840.1.101.3.4.1.45")  # RFC 3565 §4
AES256_GCM = Oid("2.16.840.1.101.3.4.1.46")  # RFC 5084 §3.2

# Ours: an arc that nobody had to hand out, from a random UUID (X.667 §6.4)
_ARC = "2.25.190657131263726506617233032095942278161"
DEPOSIT_CONTEXT = Oid(f"{_ARC}.1.1")  # signed and authenticated attribute: who, whom, which key
DEPOSIT_DIGEST = Oid(f"{_ARC}.1.2")  # signed attribute of a receipt: the SHA-512 of the deposit
MEDIA_TYPE = Oid(f"{_ARC}.1.3")  # key attribute: what the key material is
REVOCATION_REQUEST = Oid(f"{_ARC}.2.1")  # content type: the owner asks to revoke
REFUSAL_ARC = f"{_ARC}.3"  # error codes of refusals without one of RFC 7191's

NAMES: dict[Oid, str] = {
    ML_DSA_65: "ML-DSA-65",
    ML_KEM_768: "ML-KEM-768",
    ML_KEM_1024: "ML-KEM-1024",
    ML_KEM_768_X25519: "MLKEM768-X25519-SHA3-256",
    AES256_GCM: "AES-256-GCM",
    AES256_WRAP: "AES-256-wrap",
    HKDF_SHA256: "HKDF-SHA256",
}
"""What people read instead of numbers."""


def name(oid: Oid) -> str:
    """Return the name of an algorithm, or its number."""
    return NAMES.get(oid, oid.dotted_string)
