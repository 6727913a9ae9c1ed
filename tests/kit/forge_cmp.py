"""CMP messages put together by hand as in `tests.kit.forge`: right unless told otherwise."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from tests.kit import forge, tlv
from tests.kit import forge_pki as pki
from tests.kit.authority import NOW
from tests.kit.forge import GOOD, Signer
from tests.kit.forge_pki import GLOBEX, GLOBEX_KEY, ISSUER_NAME, ending

PBM, HMAC_SHA1, HMAC_SHA256 = "1.2.840.113533.7.66.13", "1.3.6.1.5.5.8.1.2", "1.2.840.113549.2.9"
IMPLICIT_CONFIRM, OLD_CERTIFICATE, CA_CERTS = "1.3.6.1.5.5.7.4.13", "1.3.6.1.5.5.7.5.1.5", "1.3.6.1.5.5.7.4.17"
IR, CR, P10CR, KUR, RR, GENM, CERTCONF = 0, 2, 4, 7, 11, 21, 24
SECRET = b"a secret of an invitation"
REFERENCE = b"0123456789abcdef"
ENCRYPTED = tlv.context(2, tlv.tlv(0x81, b"\0"))
"""Proof of possession: the certificate shall come encrypted."""
MINUTE = timedelta(minutes=1)

Protect = tuple[bytes, Callable[[bytes], bytes]]
"""An AlgorithmIdentifier, and what makes the bits."""


def general(name: bytes) -> bytes:
    """Return a Name as GeneralName."""
    return tlv.context(4, name)


def by_secret(
    secret: bytes = SECRET,
    *,
    salt: bytes = bytes(range(16)),
    owf: bytes = tlv.algorithm(forge.SHA_256),
    rounds: int = 500,
    mac: bytes = tlv.algorithm(HMAC_SHA256),
    honest: int | None = None,
) -> Protect:
    """Return a password-based MAC with SHA-256; ``honest`` rounds are made where others than the said ones are."""

    def protect(message: bytes) -> bytes:
        key = secret + salt
        for _ in range(rounds if honest is None else honest):
            key = hashlib.sha256(key).digest()
        return hmac.new(key, message, "sha1" if HMAC_SHA1 in _dotted(mac) else "sha256").digest()

    parameters = tlv.seq(tlv.octets(salt), owf, tlv.integer(rounds), mac)
    return tlv.algorithm(PBM, parameters), protect


def _dotted(identifier: bytes) -> set[str]:
    return {HMAC_SHA1} if tlv.oid(HMAC_SHA1) in identifier else set()


def by_key(signer: Signer = GLOBEX, algorithm: bytes = GOOD) -> Protect:
    """Return a signature."""
    return algorithm, signer.sign


def header(
    *,
    version: int = 2,
    sender: bytes = general(forge.address_name("globex/main")),
    recipient: bytes = general(ISSUER_NAME),
    time: datetime | None = NOW - MINUTE,
    algorithm: bytes | None = GOOD,
    key: bytes | None = None,
    transaction: bytes | None = bytes(range(16)),
    nonce: bytes | None = bytes(range(16, 32)),
    answers: bytes | None = None,
    information: Sequence[bytes] = (),
) -> bytes:
    """Return a PKIHeader."""

    def maybe(number: int, value: bytes | None) -> bytes:
        return b"" if value is None else tlv.context(number, tlv.octets(value))

    return tlv.seq(
        tlv.integer(version),
        sender,
        recipient,
        b"" if time is None else tlv.context(0, tlv.generalized(time)),
        b"" if algorithm is None else tlv.context(1, algorithm),
        maybe(2, key),
        maybe(4, transaction),
        maybe(5, nonce),
        maybe(6, answers),
        tlv.context(8, tlv.seq(*information)) if information else b"",
    )


def message(
    kind: int, content: bytes, protect: Protect | None, *, unused: int = 0, along: bytes = b"", **fields: object
) -> bytes:
    """Return a PKIMessage; ``fields`` are those of the header."""
    made = header(**{"algorithm": None if protect is None else protect[0], **fields})  # type: ignore[arg-type]  # as given
    body = tlv.context(kind, content)
    bits = b"" if protect is None else tlv.context(0, ending(protect[1](tlv.seq(made, body)), unused))
    return tlv.seq(made, body, bits, along)


def template(
    subject: bytes | None = forge.address_name("globex/main"),
    key: bytes | None = GLOBEX.spki,
    *,
    start: datetime | None = None,
    extensions: Sequence[bytes] = (),
    more: bytes = b"",
) -> bytes:
    """Return a CertTemplate; ``more`` stands in front, where version and serial number are."""
    return tlv.seq(
        more,
        b"" if start is None else tlv.context(4, tlv.context(0, tlv.utc(start))),
        b"" if subject is None else tlv.context(5, subject),
        b"" if key is None else tlv.retag(0xA6, key),
        tlv.context(9, *extensions) if extensions else b"",
    )


def asked(
    wanted: bytes, proof: bytes | Callable[[bytes], bytes], *, number: int = 0, controls: Sequence[bytes] = ()
) -> bytes:
    """Return a CertReqMsg; ``proof`` is DER, or makes a signature of ML-DSA-65."""
    request = tlv.seq(tlv.integer(number), wanted, tlv.seq(*controls) if controls else b"")
    shown = proof if isinstance(proof, bytes) else tlv.context(1, GOOD, tlv.bits(proof(request)))
    return tlv.seq(request, shown)


def identity(start: datetime | None = NOW - MINUTE, **changes: object) -> bytes:
    """Return the content of an ir for globex/main's identity key."""
    wanted = template(start=start, **changes)  # type: ignore[arg-type]  # as given
    return tlv.seq(asked(wanted, GLOBEX.sign))


def encryption(proof: bytes = ENCRYPTED, key: bytes = GLOBEX_KEY.spki, controls: Sequence[bytes] = ()) -> bytes:
    """Return the content of a cr for globex/main's encryption key."""
    return tlv.seq(asked(template(key=key), proof, controls=controls))


def first(content: bytes | None = None, protect: Protect | None = None, **fields: object) -> bytes:
    """Return an ir under a secret."""
    return message(IR, identity() if content is None else content, protect or by_secret(), key=REFERENCE, **fields)


def further(content: bytes | None = None, protect: Protect | None = None, **fields: object) -> bytes:
    """Return a cr that the identity key has signed."""
    return message(CR, encryption() if content is None else content, protect or by_key(), **fields)


def confirmation(digest: bytes = bytes(32), *, number: int = 0, status: int | None = None, by: bytes = b"") -> bytes:
    """Return the content of a certConf; ``by`` is the hash's AlgorithmIdentifier."""
    told = b"" if status is None else tlv.seq(tlv.integer(status))
    return tlv.seq(tlv.seq(tlv.octets(digest), tlv.integer(number), told, tlv.context(0, by) if by else b""))


def revocation(serial: int | None = 4711, reason: int | None = 1, issuer: bytes = ISSUER_NAME) -> bytes:
    """Return the content of an rr."""
    named = tlv.seq(
        b"" if serial is None else tlv.retag(0x81, tlv.integer(serial)),
        tlv.context(3, issuer),
    )
    told = b"" if reason is None else tlv.seq(pki.extension("2.5.29.21", tlv.tlv(0x0A, bytes([reason]))))
    return tlv.seq(tlv.seq(named, told))
