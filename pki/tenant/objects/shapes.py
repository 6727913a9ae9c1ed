"""What the fields of the profile's objects are called and how each is shown: one table, after the ASN.1 modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import oids


class Look(Enum):
    """How a value is shown."""

    ANY = auto()
    FIELDS = auto()
    LIST = auto()
    OID = auto()
    NUMBER = auto()
    SERIAL = auto()
    SECONDS = auto()
    FLAG = auto()
    TEXT = auto()
    TIME = auto()
    NAME = auto()
    BYTES = auto()
    BITS = auto()
    USAGE = auto()
    SIZE = auto()
    SECRET = auto()
    INSIDE = auto()
    CODE = auto()
    DEPENDS = auto()


@dataclass(frozen=True)
class Field:
    """A field of a sequence: its name, its shape, the tags that it may have (none: any), whether explicit."""

    name: str
    shape: Shape
    tags: tuple[int, ...] = ()
    explicit: bool = False


@dataclass(frozen=True)
class Shape:
    """A type: ``fields`` of a sequence, ``of`` what a list or an OCTET STRING holds.

    ``by_type`` gives the shape of the field that depends on the first object identifier of the sequence.
    """

    look: Look
    fields: tuple[Field, ...] = ()
    of: Shape | None = None
    by_type: Mapping[Oid, Shape] = field(default_factory=dict, compare=False)
    names: Mapping[int, str] = field(default_factory=dict, compare=False)
    alternatives: Mapping[int, Shape] = field(default_factory=dict, compare=False)


ANY = Shape(Look.ANY)
OID, NUMBER, SERIAL = Shape(Look.OID), Shape(Look.NUMBER), Shape(Look.SERIAL)
SECONDS, FLAG = Shape(Look.SECONDS), Shape(Look.FLAG)
TEXT, TIME, NAME, BYTES, BITS = (
    Shape(Look.TEXT),
    Shape(Look.TIME),
    Shape(Look.NAME),
    Shape(Look.BYTES),
    Shape(Look.BITS),
)
SIZE, SECRET, DEPENDS = Shape(Look.SIZE), Shape(Look.SECRET), Shape(Look.DEPENDS)
SEQUENCE, SET, INTEGER, OCTETS, BIT_STRING = 0x30, 0x31, 0x02, 0x04, 0x03
_UTC, _GENERALIZED = 0x17, 0x18


def sequence(*fields: Field, by_type: Mapping[Oid, Shape] | None = None) -> Shape:
    """Return the shape of a SEQUENCE."""
    return Shape(Look.FIELDS, fields, by_type={} if by_type is None else by_type)


def listed(of: Shape) -> Shape:
    """Return the shape of a SEQUENCE OF or SET OF."""
    return Shape(Look.LIST, of=of)


def inside(of: Shape) -> Shape:
    """Return the shape of an OCTET STRING that holds DER."""
    return Shape(Look.INSIDE, of=of)


def choice(alternatives: Mapping[int, Shape]) -> Shape:
    """Return the shape of a CHOICE by tag."""
    return Shape(Look.ANY, alternatives=alternatives)


ALGORITHM = sequence(
    Field("algorithm", OID, (0x06,)),
    Field("parameters", DEPENDS),
    by_type={
        gcm: sequence(Field("nonce", BYTES, (OCTETS,)), Field("tag size", NUMBER, (INTEGER,)))
        for gcm in (oids.AES128_GCM, oids.AES192_GCM, oids.AES256_GCM)
    }
    | {oids.EC_PUBLIC_KEY: OID},
)
_ISSUER_AND_SERIAL = sequence(Field("issuer", NAME, (SEQUENCE,)), Field("serial", SERIAL, (INTEGER,)))
_IDENTIFIER = choice({SEQUENCE: _ISSUER_AND_SERIAL, 0x80: BYTES})
_ENTITY = sequence(Field("kind", OID, (0x06,)), Field("name", inside(NAME), (OCTETS,)))
_CAPABILITIES = listed(ALGORITHM)
PUBLIC_KEY = sequence(Field("algorithm", ALGORITHM, (SEQUENCE,)), Field("key", BITS, (BIT_STRING,)))
_CONTEXT = sequence(
    Field("version", NUMBER, (INTEGER,)),
    Field("sender", TEXT, (0x0C,)),
    Field("recipient", TEXT, (0x0C,)),
    Field("key", TEXT, (0x0C,)),
    Field("key version", NUMBER, (INTEGER,)),
    Field("purpose", TEXT, (0x0C,)),
    Field("expires", TIME, (_GENERALIZED,)),
)
_PACKAGE_ID = sequence(
    Field("key package id", BYTES, (OCTETS,)),
    Field(
        "receipt request",
        sequence(Field("encrypt", FLAG, (0x01,)), Field("receipts to", listed(_ENTITY), (SEQUENCE,))),
        (SEQUENCE,),
    ),
)
_KEY_ALGORITHM = sequence(
    Field("algorithm", OID, (0x06,)), Field("check word", OID, (0x81,)), Field("check sum", OID, (0x82,))
)
_VALIDITY = sequence(Field("not before", SECONDS, (INTEGER,)), Field("not after", SECONDS, (INTEGER,)))
_DISTRIBUTION = sequence(Field("not before", SECONDS, (0x80,)), Field("not after", SECONDS, (INTEGER,)))
_RECEIVERS = listed(choice({0xA0: _ENTITY}))
ATTRIBUTES = listed(
    sequence(
        Field("attribute", OID, (0x06,)),
        Field("values", DEPENDS, (SET,)),
        by_type={
            kind: listed(shape)
            for kind, shape in {
                oids.CONTENT_TYPE: OID,
                oids.MESSAGE_DIGEST: BYTES,
                oids.SIGNING_TIME: TIME,
                oids.SMIME_CAPABILITIES: _CAPABILITIES,
                oids.KEY_PACKAGE_ID_AND_RECEIPT_REQUEST: _PACKAGE_ID,
                oids.POSSESSION_STATEMENT: sequence(Field("signer", _ISSUER_AND_SERIAL, (SEQUENCE,))),
                oids.DEPOSIT_CONTEXT: _CONTEXT,
                oids.DEPOSIT_DIGEST: BYTES,
                oids.MEDIA_TYPE: TEXT,
                oids.KEY_ALGORITHM: _KEY_ALGORITHM,
                oids.KEY_PURPOSE: NUMBER,
                oids.KEY_VALIDITY_PERIOD: _VALIDITY,
                oids.KEY_DISTRIBUTION_PERIOD: _DISTRIBUTION,
                oids.KEY_PACKAGE_RECEIVERS: _RECEIVERS,
            }.items()
        },
    )
)
# Key packages: what the key is, never the key
ONE_ASYMMETRIC = sequence(
    Field("version", NUMBER, (INTEGER,)),
    Field("algorithm", ALGORITHM, (SEQUENCE,)),
    Field("private key", SECRET, (OCTETS,)),
    Field("attributes", ATTRIBUTES, (0xA0,)),
    Field("public key", BITS, (0x81,)),
)
ASYMMETRIC_PACKAGE = listed(ONE_ASYMMETRIC)
SYMMETRIC_PACKAGE = sequence(
    Field("version", NUMBER, (INTEGER,)),
    Field("attributes", ATTRIBUTES, (0xA0,)),
    Field(
        "keys",
        listed(sequence(Field("attributes", ATTRIBUTES, (SEQUENCE,)), Field("key", SECRET, (OCTETS,)))),
        (SEQUENCE,),
    ),
)
ENCRYPTED_KEY = sequence(Field("encryption", ALGORITHM, (SEQUENCE,)), Field("encrypted private key", SIZE, (OCTETS,)))
# Answers and wishes
_RECEIPT = sequence(
    Field("version", NUMBER, (INTEGER,)),
    Field("receipt of", BYTES, (OCTETS,)),
    Field("received by", _ENTITY, (SEQUENCE,)),
)
_REFUSAL = sequence(
    Field("version", NUMBER, (INTEGER,)),
    Field("refusal of", BYTES, (0xA0,), explicit=True),
    Field("refused by", _ENTITY, (SEQUENCE,)),
    Field("error code", Shape(Look.CODE), (0x0A, 0x06)),
)
_REVOCATION = sequence(
    Field("version", NUMBER, (INTEGER,)),
    Field("certificate (SHA-256)", BYTES, (OCTETS,)),
    Field("reason", NUMBER, (INTEGER,)),
    Field("requested", TIME, (_GENERALIZED,)),
)
# Envelopes
_TRANSPORT = sequence(
    Field("version", NUMBER, (INTEGER,)),
    Field("recipient", _IDENTIFIER, (SEQUENCE, 0x80)),
    Field("key encryption", ALGORITHM, (SEQUENCE,)),
    Field("encrypted key", SIZE, (OCTETS,)),
)
_AGREEMENT = sequence(
    Field("version", NUMBER, (INTEGER,)),
    Field("originator", choice({SEQUENCE: _ISSUER_AND_SERIAL, 0x80: BYTES, 0xA1: PUBLIC_KEY}), (0xA0,), explicit=True),
    Field("user keying material", BYTES, (0xA1,), explicit=True),
    Field("key agreement", ALGORITHM, (SEQUENCE,)),
    Field(
        "recipients",
        listed(
            sequence(
                Field(
                    "recipient",
                    choice({SEQUENCE: _ISSUER_AND_SERIAL, 0xA0: sequence(Field("key identifier", BYTES, (OCTETS,)))}),
                    (SEQUENCE, 0xA0),
                ),
                Field("encrypted key", SIZE, (OCTETS,)),
            )
        ),
        (SEQUENCE,),
    ),
)
_KEM = sequence(
    Field("version", NUMBER, (INTEGER,)),
    Field("recipient", _IDENTIFIER, (SEQUENCE, 0x80)),
    Field("key encapsulation", ALGORITHM, (SEQUENCE,)),
    Field("ciphertext", SIZE, (OCTETS,)),
    Field("key derivation", ALGORITHM, (SEQUENCE,)),
    Field("key size", NUMBER, (INTEGER,)),
    Field("user keying material", BYTES, (0xA0,), explicit=True),
    Field("key wrap", ALGORITHM, (SEQUENCE,)),
    Field("encrypted key", SIZE, (OCTETS,)),
)
_OTHER = sequence(Field("kind", OID, (0x06,)), Field("KEM recipient", DEPENDS), by_type={oids.KEM_RECIPIENT_INFO: _KEM})
_ENVELOPED = sequence(
    Field("version", NUMBER, (INTEGER,)),
    Field("originator", ANY, (0xA0,)),
    Field("recipients", listed(choice({SEQUENCE: _TRANSPORT, 0xA1: _AGREEMENT, 0xA4: _OTHER})), (SET,)),
    Field(
        "encrypted content",
        sequence(
            Field("content type", OID, (0x06,)),
            Field("encryption", ALGORITHM, (SEQUENCE,)),
            Field("ciphertext", SIZE, (0x80,)),
        ),
        (SEQUENCE,),
    ),
    Field("authenticated attributes", ATTRIBUTES, (0xA1,)),
    Field("authentication tag", BYTES, (OCTETS,)),
    Field("attributes that nothing protects", ATTRIBUTES, (0xA2,)),
)
_BY_CONTENT: dict[Oid, Shape] = {}
CONTENT_INFO = sequence(
    Field("content type", OID, (0x06,)), Field("content", DEPENDS, (0xA0,), explicit=True), by_type=_BY_CONTENT
)
_SIGNED = sequence(
    Field("version", NUMBER, (INTEGER,)),
    Field("digest algorithms", listed(ALGORITHM), (SET,)),
    Field(
        "signed content",
        sequence(
            Field("content type", OID, (0x06,)),
            Field("content", DEPENDS, (0xA0,), explicit=True),
            by_type={
                oids.CONTENT_INFO: inside(CONTENT_INFO),
                oids.AUTH_ENVELOPED_DATA: inside(_ENVELOPED),
                oids.ENVELOPED_DATA: inside(_ENVELOPED),
                oids.KEY_PACKAGE_RECEIPT: inside(_RECEIPT),
                oids.KEY_PACKAGE_ERROR: inside(_REFUSAL),
                oids.REVOCATION_REQUEST: inside(_REVOCATION),
                oids.SYMMETRIC_KEY_PACKAGE: inside(SYMMETRIC_PACKAGE),
                oids.ASYMMETRIC_KEY_PACKAGE: inside(ASYMMETRIC_PACKAGE),
                oids.DATA: SIZE,
            },
        ),
        (SEQUENCE,),
    ),
    Field("certificates that came along", listed(SIZE), (0xA0,)),
    Field("revocation lists that came along", listed(SIZE), (0xA1,)),
    Field(
        "signers",
        listed(
            sequence(
                Field("version", NUMBER, (INTEGER,)),
                Field("signer", _IDENTIFIER, (SEQUENCE, 0x80)),
                Field("digest", ALGORITHM, (SEQUENCE,)),
                Field("signed attributes", ATTRIBUTES, (0xA0,)),
                Field("signature algorithm", ALGORITHM, (SEQUENCE,)),
                Field("signature", SIZE, (OCTETS,)),
                Field("unsigned attributes", ATTRIBUTES, (0xA1,)),
            )
        ),
        (SET,),
    ),
)
_BY_CONTENT |= {
    oids.SIGNED_DATA: _SIGNED,
    oids.AUTH_ENVELOPED_DATA: _ENVELOPED,
    oids.ENVELOPED_DATA: _ENVELOPED,
    oids.SYMMETRIC_KEY_PACKAGE: SYMMETRIC_PACKAGE,
    oids.ASYMMETRIC_KEY_PACKAGE: ASYMMETRIC_PACKAGE,
    oids.DATA: SIZE,
}
# X.509, RFC 5280, and PKCS #10, RFC 2986
_USAGES = (
    "digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment", "keyAgreement", "keyCertSign",
    "cRLSign", "encipherOnly", "decipherOnly",
)  # fmt: skip
_GENERAL_NAMES = listed(choice({0x81: TEXT, 0x82: TEXT, 0x86: TEXT}))
_EXTENSIONS = listed(
    sequence(
        Field("extension", OID, (0x06,)),
        Field("critical", FLAG, (0x01,)),
        Field("value", DEPENDS, (OCTETS,)),
        by_type={
            Oid("2.5.29.14"): inside(BYTES),
            Oid("2.5.29.15"): inside(Shape(Look.USAGE, names=dict(enumerate(_USAGES)))),
            Oid("2.5.29.17"): inside(_GENERAL_NAMES),
            Oid("2.5.29.19"): inside(
                sequence(Field("authority", FLAG, (0x01,)), Field("path length", NUMBER, (INTEGER,)))
            ),
            Oid("2.5.29.20"): inside(NUMBER),
            Oid("2.5.29.21"): inside(NUMBER),
            Oid("2.5.29.35"): inside(
                sequence(
                    Field("key identifier", BYTES, (0x80,)),
                    Field("issuer", ANY, (0xA1,)),
                    Field("serial", SERIAL, (0x82,)),
                )
            ),
            oids.SMIME_CAPABILITIES: inside(_CAPABILITIES),
        },
    )
)
_TIMES = (_UTC, _GENERALIZED)
_SIGNATURE = (Field("signature algorithm", ALGORITHM, (SEQUENCE,)), Field("signature", BITS, (BIT_STRING,)))
CERTIFICATE = sequence(
    Field(
        "to be signed",
        sequence(
            Field("version", NUMBER, (0xA0,), explicit=True),
            Field("serial", SERIAL, (INTEGER,)),
            Field("signature algorithm", ALGORITHM, (SEQUENCE,)),
            Field("issuer", NAME, (SEQUENCE,)),
            Field(
                "validity",
                sequence(Field("not before", TIME, _TIMES), Field("not after", TIME, _TIMES)),
                (SEQUENCE,),
            ),
            Field("subject", NAME, (SEQUENCE,)),
            Field("public key", PUBLIC_KEY, (SEQUENCE,)),
            Field("issuer's unique id", SIZE, (0x81,)),
            Field("subject's unique id", SIZE, (0x82,)),
            Field("extensions", _EXTENSIONS, (0xA3,), explicit=True),
        ),
        (SEQUENCE,),
    ),
    *_SIGNATURE,
)
REVOCATION_LIST = sequence(
    Field(
        "to be signed",
        sequence(
            Field("version", NUMBER, (INTEGER,)),
            Field("signature algorithm", ALGORITHM, (SEQUENCE,)),
            Field("issuer", NAME, (SEQUENCE,)),
            Field("this update", TIME, _TIMES),
            Field("next update", TIME, _TIMES),
            Field(
                "revoked",
                listed(
                    sequence(
                        Field("serial", SERIAL, (INTEGER,)),
                        Field("since", TIME, _TIMES),
                        Field("extensions", _EXTENSIONS, (SEQUENCE,)),
                    )
                ),
                (SEQUENCE,),
            ),
            Field("extensions", _EXTENSIONS, (0xA0,), explicit=True),
        ),
        (SEQUENCE,),
    ),
    *_SIGNATURE,
)
REQUEST = sequence(
    Field(
        "to be signed",
        sequence(
            Field("version", NUMBER, (INTEGER,)),
            Field("subject", NAME, (SEQUENCE,)),
            Field("public key", PUBLIC_KEY, (SEQUENCE,)),
            Field("attributes", ATTRIBUTES, (0xA0,)),
        ),
        (SEQUENCE,),
    ),
    *_SIGNATURE,
)
CAPABILITIES = _CAPABILITIES
