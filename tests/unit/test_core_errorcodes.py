"""Error codes: the table is RFC 7191's, and every code, known or not, goes out and comes in as pyasn1 has it."""

from __future__ import annotations

import pytest
from cryptography.x509 import ObjectIdentifier as Oid
from hypothesis import given
from hypothesis import strategies as st
from pyasn1.codec.der.decoder import decode as ber_decode
from pyasn1.codec.der.encoder import encode as ber_encode
from pyasn1_alt_modules import rfc7191, rfc7906

from pki.core import asn1, errorcodes
from pki.core.errorcodes import ErrorCode
from pki.core.errors import KeymailboxError, MalformedError, ProfileError, UsageError
from pki.core.receipts import RefusalReason


def theirs(value: int | Oid) -> bytes:
    """Return a code as pyasn1 encodes it."""
    choice = rfc7191.ErrorCodeChoice()
    if isinstance(value, Oid):
        choice["oid"] = value.dotted_string
    else:
        choice["enum"] = value
    return bytes(ber_encode(choice))


def test_the_table_is_the_other_decoders() -> None:
    """Each number has the name that RFC 7191 gives it, and none is missing; RFC 7906 adds three identifiers."""
    named = rfc7191.EnumeratedErrorCode.namedValues
    assert {int(number): str(name) for name, number in named.items()} == dict(errorcodes.NUMBERED)
    added = (rfc7906.id_missingKeyType, rfc7906.id_privacyMarkTooLong, rfc7906.id_unrecognizedSecurityPolicy)
    assert [oid.dotted_string for oid in errorcodes.IDENTIFIED] == [str(oid) for oid in added]


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        (RefusalReason.CANNOT_OPEN, "decryptFailure"),
        (RefusalReason.BAD_SIGNATURE, "signatureFailure"),
        (RefusalReason.BAD_PACKAGE, "badKeyPackage"),
        (RefusalReason.WRONG_TARGET, "incorrectTarget"),
        (RefusalReason.REVOKED, "revokedCertificate"),
        (RefusalReason.NOT_WANTED, "notAuthorized"),
        (RefusalReason.OUTSIDE_PERIOD, "constraintViolation"),
    ],
)
def test_our_reasons(reason: RefusalReason, name: str) -> None:
    """What we refuse for is said with the code that others know it by."""
    assert ErrorCode(reason.number).name == name
    assert len(RefusalReason) == 7


@given(st.integers(0, (1 << 31) - 1) | st.sampled_from([0, 127, 128, 255, 256, 32767, 32768]))
def test_numbers(number: int) -> None:
    """Any number, also above 127, is encoded as the other encoder does, and read from it."""
    code = ErrorCode(number)
    assert code.encode() == theirs(number)
    assert errorcodes.parse_code(theirs(number)) == code
    found, rest = ber_decode(code.encode(), asn1Spec=rfc7191.ErrorCodeChoice())
    assert (int(found["enum"]), rest) == (number, b"")
    assert code.name == errorcodes.NUMBERED.get(number, f"code {number}")


@pytest.mark.parametrize(
    ("dotted", "name"), [("2.16.840.1.101.2.1.22.1", "missingKeyType"), ("1.3.6.1.4.1.99999.7", "1.3.6.1.4.1.99999.7")]
)
def test_identifiers(dotted: str, name: str) -> None:
    """An object identifier as error code is read, and shown by its name if it has one."""
    code = ErrorCode(Oid(dotted))
    assert (code.name, code.encode()) == (name, theirs(Oid(dotted)))
    assert errorcodes.parse_code(theirs(Oid(dotted))) == code


@pytest.mark.parametrize(
    ("der", "kind"),
    [
        (asn1.encode(71), ProfileError),
        (asn1.enumerated(-1), ProfileError),
        (asn1.enumerated(1 << 31), ProfileError),
        (asn1.enumerated(1 << 80_000), ProfileError),
        (b"\x0a\x00", MalformedError),
        (b"\x0a\x02\x00\x47", MalformedError),
        (b"\x06\x00", MalformedError),
        (b"", ProfileError),
    ],
    ids=["INTEGER", "negative", "32 bits", "80,000 bits", "empty", "padded", "no identifier", "nothing"],
)
def test_what_is_no_code(der: bytes, kind: type[KeymailboxError]) -> None:
    """RCP-002: neither an ENUMERATED of 31 bits nor an OBJECT IDENTIFIER is a typed error."""
    with pytest.raises(kind):
        errorcodes.parse_code(der)
    with pytest.raises(UsageError):
        ErrorCode(-1)
