"""Object identifiers of the wire profile, with their sources."""

from __future__ import annotations

from cryptography.x509 import ObjectIdentifier as Oid

# Content types
DATA = Oid("1.2.840.113549.1.7.1")  # RFC 5652 §4
CONTENT_INFO = Oid("1.2.840.113549.1.9.16.1.6")  # RFC 5652 §3: a ContentInfo inside of another
SIGNED_DATA = Oid("1.2.840.113549.1.7.2")  # RFC 5652 §5.1
ENVELOPED_DATA = Oid("1.2.840.113549.1.7.3")  # RFC 5652 §6.1: refused, as nothing authenticates it
AUTH_ENVELOPED_DATA = Oid("1.2.840.113549.1.9.16.1.23")  # RFC 5083 §2.1
SYMMETRIC_KEY_PACKAGE = Oid("1.2.840.113549.1.9.16.1.25")  # RFC 6031 §2
ASYMMETRIC_KEY_PACKAGE = Oid("2.16.840.1.101.2.1.2.78.5")  # RFC 5958 §2
KEY_PACKAGE_RECEIPT = Oid("2.16.840.1.101.2.1.2.78.3")  # RFC 7191 §4
KEY_PACKAGE_ERROR = Oid("2.16.840.1.101.2.1.2.78.6")  # RFC 7191 §5

# Attributes
CONTENT_TYPE = Oid("1.2.840.113549.1.9.3")  # RFC 5652 §11.1
MESSAGE_DIGEST = Oid("1.2.840.113549.1.9.4")  # RFC 5652 §11.2
SIGNING_TIME = Oid("1.2.840.113549.1.9.5")  # RFC 5652 §11.3
SMIME_CAPABILITIES = Oid("1.2.840.113549.1.9.15")  # RFC 8551 §2.5.2; as a certificate extension RFC 4262 §2
EXTENSION_REQUEST = Oid("1.2.840.113549.1.9.14")  # RFC 2985 §5.4.2
KEY_PACKAGE_ID_AND_RECEIPT_REQUEST = Oid("2.16.840.1.101.2.1.5.65")  # RFC 7191 §3
POSSESSION_STATEMENT = Oid("1.3.6.1.4.1.22112.2.1")  # RFC 9883 §3
SIREN_DN = Oid("2.16.840.1.101.2.1.16.0")  # RFC 7191 §2: an entity named by its distinguished name
KEY_ALGORITHM = Oid("2.16.840.1.101.2.1.13.1")  # RFC 7906 §7
KEY_PACKAGE_RECEIVERS = Oid("2.16.840.1.101.2.1.13.16")  # RFC 7906 §9
KEY_PURPOSE = Oid("2.16.840.1.101.2.1.13.13")  # RFC 7906 §11
KEY_DISTRIBUTION_PERIOD = Oid("2.16.840.1.101.2.1.13.5")  # RFC 7906 §14
KEY_VALIDITY_PERIOD = Oid("2.16.840.1.101.2.1.13.6")  # RFC 7906 §15

# Algorithms
SHA1 = Oid("1.3.14.3.2.26")  # RFC 8017 §B.1: inside of OAEP alone
SHA512 = Oid("2.16.840.1.101.3.4.2.3")  # RFC 5754 §2.4
SHA256 = Oid("2.16.840.1.101.3.4.2.1")  # RFC 5754 §2.2
SHA384 = Oid("2.16.840.1.101.3.4.2.2")  # RFC 5754 §2.3
SHAKE256 = Oid("2.16.840.1.101.3.4.2.12")  # RFC 8702 §3.1
ML_DSA_44 = Oid("2.16.840.1.101.3.4.3.17")  # RFC 9881 §2
ML_DSA_65 = Oid("2.16.840.1.101.3.4.3.18")  # RFC 9881 §2
ML_DSA_87 = Oid("2.16.840.1.101.3.4.3.19")  # RFC 9881 §2
SLH_DSA = tuple(Oid(f"2.16.840.1.101.3.4.3.{n}") for n in range(20, 32))  # RFC 9909 §3: sha2, shake; 128s, 128f, …
ECDSA_SHA256 = Oid("1.2.840.10045.4.3.2")  # RFC 5758 §3.2
ECDSA_SHA384 = Oid("1.2.840.10045.4.3.3")  # RFC 5758 §3.2
ECDSA_SHA512 = Oid("1.2.840.10045.4.3.4")  # RFC 5758 §3.2
EC_PUBLIC_KEY = Oid("1.2.840.10045.2.1")  # RFC 5480 §2.1.1
P_256 = Oid("1.2.840.10045.3.1.7")  # RFC 5480 §2.1.1.1
P_384 = Oid("1.3.132.0.34")  # RFC 5480 §2.1.1.1
ED25519 = Oid("1.3.101.112")  # RFC 8410 §3
ML_KEM_512 = Oid("2.16.840.1.101.3.4.4.1")  # RFC 9935 §3: read, never made
ML_KEM_768 = Oid("2.16.840.1.101.3.4.4.2")  # RFC 9935 §3
ML_KEM_1024 = Oid("2.16.840.1.101.3.4.4.3")  # RFC 9935 §3
ML_KEM_768_X25519 = Oid("1.3.6.1.5.5.7.6.58")  # draft-ietf-lamps-pq-composite-kem
KEM_RECIPIENT_INFO = Oid("1.2.840.113549.1.9.16.13.3")  # RFC 9629 §4
HKDF_SHA256 = Oid("1.2.840.113549.1.9.16.3.28")  # RFC 8619 §3
HKDF_SHA384 = Oid("1.2.840.113549.1.9.16.3.29")  # RFC 8619 §3
HKDF_SHA512 = Oid("1.2.840.113549.1.9.16.3.30")  # RFC 8619 §3
RSA_ENCRYPTION = Oid("1.2.840.113549.1.1.1")  # RFC 8017 §A.1: a key; as a recipient's algorithm PKCS #1 v1.5, refused
RSA_SHA256 = Oid("1.2.840.113549.1.1.11")  # RFC 4055 §5: read on other people's certificates
RSA_SHA384 = Oid("1.2.840.113549.1.1.12")  # RFC 4055 §5: PKCS #1 v1.5
RSA_SHA512 = Oid("1.2.840.113549.1.1.13")  # RFC 4055 §5: read on other people's certificates
RSASSA_PSS = Oid("1.2.840.113549.1.1.10")  # RFC 4055 §3.1: refused by name (docs/adr/0012)
RSAES_OAEP = Oid("1.2.840.113549.1.1.7")  # RFC 8017 §A.2.1
MGF1 = Oid("1.2.840.113549.1.1.8")  # RFC 8017 §B.2.1
ECDH_SHA1 = Oid("1.3.133.16.840.63.0.2")  # RFC 5753 §7.1.4, one-pass ECDH with the X9.63 KDF; refused
ECDH_SHA256 = Oid("1.3.132.1.11.1")  # RFC 5753 §7.1.4
ECDH_SHA384 = Oid("1.3.132.1.11.2")  # RFC 5753 §7.1.4
ECDH_SHA512 = Oid("1.3.132.1.11.3")  # RFC 5753 §7.1.4
COFACTOR_ECDH_SHA256 = Oid("1.3.132.1.14.1")  # RFC 5753 §7.1.4; where the cofactor is 1, the same as without
COFACTOR_ECDH_SHA384 = Oid("1.3.132.1.14.2")  # RFC 5753 §7.1.4
COFACTOR_ECDH_SHA512 = Oid("1.3.132.1.14.3")  # RFC 5753 §7.1.4
AES128_WRAP = Oid("2.16.840.1.101.3.4.1.5")  # RFC 3565 §4
AES192_WRAP = Oid("2.16.840.1.101.3.4.1.25")  # RFC 3565 §4
AES256_WRAP = Oid("2.16.840.1.101.3.4.1.45")  # RFC 3565 §4
AES128_GCM = Oid("2.16.840.1.101.3.4.1.6")  # RFC 5084 §3.2
AES192_GCM = Oid("2.16.840.1.101.3.4.1.26")  # RFC 5084 §3.2
AES256_GCM = Oid("2.16.840.1.101.3.4.1.46")  # RFC 5084 §3.2

# Ours: an arc that nobody had to hand out, from a random UUID (X.667 §6.4)
_ARC = "2.25.190657131263726506617233032095942278161"
DEPOSIT_CONTEXT = Oid(f"{_ARC}.1.1")  # signed and authenticated attribute: who, whom, which key
DEPOSIT_DIGEST = Oid(f"{_ARC}.1.2")  # signed attribute of a receipt: the SHA-512 of the deposit
MEDIA_TYPE = Oid(f"{_ARC}.1.3")  # key attribute: what the key material is
REVOCATION_REQUEST = Oid(f"{_ARC}.2.1")  # content type: the owner asks to revoke
REVOCATION_ORDER = Oid(f"{_ARC}.2.2")  # content type: an operator's officer orders to revoke
CAP_LIFT = Oid(f"{_ARC}.2.3")  # content type: an officer orders that more may be revoked for a while
ORDER_APPROVAL = Oid(f"{_ARC}.2.4")  # content type: another officer approves an order
OFFICER_LIST = Oid(f"{_ARC}.2.5")  # what the CA signs: who the officers are
REFUSAL_ARC = f"{_ARC}.3"  # error codes of refusals without one of RFC 7191's

_SLH_DSA_SIZES = ("128s", "128f", "192s", "192f", "256s", "256f")
NAMES: dict[Oid, str] = {
    ML_DSA_44: "ML-DSA-44",
    ML_DSA_65: "ML-DSA-65",
    ML_DSA_87: "ML-DSA-87",
    ECDSA_SHA256: "ECDSA with SHA-256",
    ECDSA_SHA384: "ECDSA with SHA-384",
    ECDSA_SHA512: "ECDSA with SHA-512",
    EC_PUBLIC_KEY: "elliptic curve key",
    ED25519: "Ed25519",
    **dict(
        zip(
            SLH_DSA,
            (f"SLH-DSA-{hash}-{size}" for hash in ("SHA2", "SHAKE") for size in _SLH_DSA_SIZES),
            strict=True,
        )
    ),
    ML_KEM_512: "ML-KEM-512",
    ML_KEM_768: "ML-KEM-768",
    ML_KEM_1024: "ML-KEM-1024",
    ML_KEM_768_X25519: "MLKEM768-X25519-SHA3-256",
    RSA_ENCRYPTION: "RSA",
    RSASSA_PSS: "RSA-PSS",
    RSA_SHA256: "RSA with SHA-256",
    RSA_SHA384: "RSA with SHA-384",
    RSA_SHA512: "RSA with SHA-512",
    RSAES_OAEP: "RSA-OAEP",
    ECDH_SHA1: "ECDH with X9.63-SHA1",
    ECDH_SHA256: "ECDH with X9.63-SHA256",
    ECDH_SHA384: "ECDH with X9.63-SHA384",
    ECDH_SHA512: "ECDH with X9.63-SHA512",
    COFACTOR_ECDH_SHA256: "cofactor ECDH with X9.63-SHA256",
    COFACTOR_ECDH_SHA384: "cofactor ECDH with X9.63-SHA384",
    COFACTOR_ECDH_SHA512: "cofactor ECDH with X9.63-SHA512",
    AES128_GCM: "AES-128-GCM",
    AES192_GCM: "AES-192-GCM",
    AES256_GCM: "AES-256-GCM",
    AES128_WRAP: "AES-128-wrap",
    AES192_WRAP: "AES-192-wrap",
    AES256_WRAP: "AES-256-wrap",
    HKDF_SHA256: "HKDF-SHA256",
    HKDF_SHA384: "HKDF-SHA384",
    HKDF_SHA512: "HKDF-SHA512",
    SHA1: "SHA-1",
    SHA256: "SHA-256",
    SHA384: "SHA-384",
    SHA512: "SHA-512",
    SHAKE256: "SHAKE256",
    MGF1: "MGF1",
    P_256: "P-256",
    P_384: "P-384",
    # Not used, and refused by name (RFC 5480 §2.1.1.1, RFC 8410 §3)
    Oid("1.3.132.0.35"): "P-521",
    Oid("1.3.101.110"): "X25519",
    Oid("1.3.101.111"): "X448",
    Oid("1.3.101.113"): "Ed448",
    KEM_RECIPIENT_INFO: "KEM recipient",
    DATA: "data",
    SIGNED_DATA: "SignedData",
    ENVELOPED_DATA: "EnvelopedData",
    CONTENT_INFO: "ContentInfo",
    AUTH_ENVELOPED_DATA: "AuthEnvelopedData",
    SYMMETRIC_KEY_PACKAGE: "symmetric key package",
    ASYMMETRIC_KEY_PACKAGE: "asymmetric key package",
    KEY_PACKAGE_RECEIPT: "key package receipt",
    KEY_PACKAGE_ERROR: "key package error",
    REVOCATION_REQUEST: "revocation request",
    CONTENT_TYPE: "content type",
    MESSAGE_DIGEST: "message digest",
    SIGNING_TIME: "signing time",
    SMIME_CAPABILITIES: "S/MIME capabilities",
    EXTENSION_REQUEST: "extension request",
    KEY_PACKAGE_ID_AND_RECEIPT_REQUEST: "key package id and receipt request",
    POSSESSION_STATEMENT: "statement of possession",
    SIREN_DN: "distinguished name",
    KEY_ALGORITHM: "key algorithm",
    KEY_PURPOSE: "key purpose",
    KEY_PACKAGE_RECEIVERS: "key package receivers",
    KEY_DISTRIBUTION_PERIOD: "key distribution period",
    KEY_VALIDITY_PERIOD: "key validity period",
    DEPOSIT_CONTEXT: "deposit context",
    DEPOSIT_DIGEST: "deposit digest",
    MEDIA_TYPE: "media type",
}
"""What people read instead of numbers."""


def name(oid: Oid) -> str:
    """Return the name of an algorithm, or its number."""
    return NAMES.get(oid, oid.dotted_string)
