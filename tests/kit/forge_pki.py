"""Certificates, revocation lists, requests, receipts and revocations, put together by hand as in `tests.kit.forge`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from pki.core.tenants import parse_address
from tests.kit import forge, tlv
from tests.kit.authority import NOW
from tests.kit.forge import GOOD, Signer
from tests.kit.forge_classical import RsaSigner

DAY = timedelta(days=1)
ROOT, ISSUING = Signer(1), Signer(2)
ACME, GLOBEX, STRANGER = Signer(11), Signer(12), Signer(13)
ACME_KEY, GLOBEX_KEY = forge.Reader(11), forge.Reader(12)
ISSUER_NAME = forge.name(("2.5.4.3", "Test issuing CA"))
KEY_USAGE, SAN, SKI, AKI, BASIC = "2.5.29.15", "2.5.29.17", "2.5.29.14", "2.5.29.35", "2.5.29.19"
CRL_NUMBER, DELTA = "2.5.29.20", "2.5.29.27"
RECEIPT, REFUSAL = "2.16.840.1.101.2.1.2.78.3", "2.16.840.1.101.2.1.2.78.6"
POSSESSION = "1.3.6.1.4.1.22112.2.1"
SIGNING = b"\x07\x80"
ENCIPHERMENT = b"\x05\x20"


def extension(kind: str, value: bytes, *, critical: bool = False) -> bytes:
    """Return an Extension."""
    return tlv.seq(tlv.oid(kind), tlv.boolean(True) if critical else b"", tlv.octets(value))


def ending(signature: bytes, unused: int) -> bytes:
    """Return a signature's BIT STRING; bits that are said to be unused are zero, as DER asks."""
    return tlv.bits(signature[:-1] + bytes([signature[-1] >> unused << unused]), unused)


def usage(bits: bytes = SIGNING, *, critical: bool = True) -> bytes:
    """Return the key usage; ``bits`` are the number of unused bits and the bits."""
    return extension(KEY_USAGE, tlv.tlv(0x03, bits), critical=critical)


def names(*uris: str) -> bytes:
    """Return subjectAltName of URIs."""
    return extension(SAN, tlv.seq(*(tlv.context(6, uri.encode(), constructed=False) for uri in uris)))


def ski(identifier: bytes) -> bytes:
    """Return the subject key identifier."""
    return extension(SKI, tlv.octets(identifier))


def aki(identifier: bytes = ISSUING.ski) -> bytes:
    """Return the authority key identifier."""
    return extension(AKI, tlv.seq(tlv.context(0, identifier, constructed=False)))


def uri(address: str) -> str:
    """Return an address as its URI."""
    return parse_address(address).uri


def certificate(
    address: str = "globex/main",
    key: Signer | forge.Reader = GLOBEX,
    *,
    version: int = 2,
    serial: int = 4711,
    inner: bytes = GOOD,
    outer: bytes = GOOD,
    issuer: bytes = ISSUER_NAME,
    subject: bytes | None = None,
    not_before: datetime = NOW - timedelta(hours=1),
    not_after: datetime = NOW + 365 * DAY,
    spki: bytes | None = None,
    extensions: Sequence[bytes] | None = None,
    sign: Callable[[bytes], bytes] = ISSUING.sign,
    unused: int = 0,
) -> bytes:
    """Return an instance's certificate."""
    public = key.spki if spki is None else spki
    bits = SIGNING if isinstance(key, Signer) else ENCIPHERMENT
    listed = [usage(bits), names(uri(address)), ski(key.ski), aki()] if extensions is None else extensions
    tbs = tlv.seq(
        tlv.context(0, tlv.integer(version)),
        tlv.integer(serial),
        inner,
        issuer,
        tlv.seq(tlv.utc(not_before), tlv.utc(not_after)),
        forge.address_name(address) if subject is None else subject,
        public,
        tlv.context(3, tlv.seq(*listed)),
    )
    return tlv.seq(tbs, outer, ending(sign(tbs), unused))


def ca(
    title: str,
    key: Signer | RsaSigner,
    issuer: tuple[str, Signer],
    *,
    serial: int,
    path: int,
    basic: bool = True,
    not_after: datetime = NOW + 2000 * DAY,
    extra: Sequence[bytes] = (),
) -> bytes:
    """Return the certificate of a root or issuing CA; without ``basic`` it says that it is none."""
    above, signer = issuer
    constraints = tlv.seq(tlv.boolean(True), tlv.integer(path)) if basic else tlv.seq()
    listed = [extension(BASIC, constraints, critical=True), usage(b"\x01\x06"), ski(key.ski), aki(signer.ski), *extra]
    tbs = tlv.seq(
        tlv.context(0, tlv.integer(2)),
        tlv.integer(serial),
        GOOD,
        forge.name(("2.5.4.3", above)),
        tlv.seq(tlv.utc(NOW - 400 * DAY), tlv.utc(not_after)),
        forge.name(("2.5.4.3", title)),
        key.spki,
        tlv.context(3, tlv.seq(*listed)),
    )
    return tlv.seq(tbs, GOOD, tlv.bits(signer.sign(tbs)))


def crl(
    serials: Sequence[int] = (),
    *,
    number: int = 7,
    issuer: bytes = ISSUER_NAME,
    at: datetime = NOW,
    until: datetime = NOW + DAY,
    extra: Sequence[bytes] = (),
    entry: bytes = b"",
    algorithm: bytes = GOOD,
    by: bytes = ISSUING.ski,
    sign: Callable[[bytes], bytes] = ISSUING.sign,
) -> bytes:
    """Return a revocation list; ``entry`` are extensions of each entry, ``by`` is the key identifier of the signer."""
    entries = [tlv.seq(tlv.integer(serial), tlv.utc(at), tlv.seq(entry) if entry else b"") for serial in serials]
    listed = [extension(CRL_NUMBER, tlv.integer(number)), aki(by), *extra]
    tbs = tlv.seq(
        tlv.integer(1),
        algorithm,
        issuer,
        tlv.utc(at),
        tlv.utc(until),
        tlv.seq(*entries) if entries else b"",
        tlv.context(0, tlv.seq(*listed)),
    )
    return tlv.seq(tbs, algorithm, tlv.bits(sign(tbs)))


def statement(serial: int = 4711) -> bytes:
    """Return RFC 9883's statement of possession, naming a certificate of the issuing CA."""
    return tlv.attribute(POSSESSION, tlv.seq(tlv.seq(ISSUER_NAME, tlv.integer(serial))))


def request(
    address: str = "globex/main",
    key: Signer | forge.Reader = GLOBEX,
    *,
    version: int = 0,
    subject: bytes | None = None,
    attributes: Sequence[bytes] | None = None,
    spki: bytes | None = None,
    algorithm: bytes = GOOD,
    at: datetime = NOW - timedelta(hours=1),
    sign: Callable[[bytes], bytes] = GLOBEX.sign,
    unused: int = 0,
) -> bytes:
    """Return a certificate request, for an encryption key with a statement of possession."""
    time = tlv.attribute(forge.SIGNING_TIME, tlv.utc(at))
    usual = [time] if isinstance(key, Signer) else [time, statement()]
    listed = tlv.set_of(*(usual if attributes is None else attributes))
    info = tlv.seq(
        tlv.integer(version),
        forge.address_name(address) if subject is None else subject,
        key.spki if spki is None else spki,
        tlv.retag(0xA0, listed),
    )
    return tlv.seq(info, algorithm, ending(sign(info), unused))


DEPOSIT_ID = bytes(range(16))
DEPOSIT_SHA512 = hashlib.sha512(b"a deposit").digest()


def entity(name: bytes, kind: str = forge.SIREN_DN) -> bytes:
    """Return a SIREntityName."""
    return tlv.seq(tlv.oid(kind), tlv.octets(name))


def receipt(
    *,
    version: int | None = None,
    deposit: bytes = DEPOSIT_ID,
    by: bytes | None = None,
    sha512: bytes = DEPOSIT_SHA512,
    signer: Signer = GLOBEX,
) -> bytes:
    """Return a signed KeyPackageReceipt by globex/main."""
    content = tlv.seq(
        b"" if version is None else tlv.integer(version),
        tlv.octets(deposit),
        by or entity(forge.address_name("globex/main")),
    )
    return answer(RECEIPT, content, sha512=sha512, signer=signer)


def refusal(*, deposit: bytes | None = DEPOSIT_ID, error: bytes = b"\x0a\x01\x47") -> bytes:
    """Return a signed KeyPackageError by globex/main; ``error`` is the error code's DER."""
    named = b"" if deposit is None else tlv.context(0, tlv.octets(deposit))
    return answer(REFUSAL, tlv.seq(named, entity(forge.address_name("globex/main")), error))


def answer(kind: str, content: bytes, *, sha512: bytes = DEPOSIT_SHA512, signer: Signer = GLOBEX) -> bytes:
    """Return a signed answer with these bytes."""
    digest = tlv.attribute(forge.DEPOSIT_DIGEST, tlv.octets(sha512))
    info = forge.signer_info(signer, forge.signed_attributes(kind, content, [digest]))
    return forge.signed(kind, content, [info])


def revocation(*, version: int = 1, fingerprint: bytes = bytes(32), reason: int = 1, signer: Signer = GLOBEX) -> bytes:
    """Return globex/main's signed wish to revoke a certificate."""
    content = tlv.seq(tlv.integer(version), tlv.octets(fingerprint), tlv.integer(reason), tlv.generalized(NOW))
    info = forge.signer_info(signer, forge.signed_attributes(forge.REVOCATION, content))
    return forge.signed(forge.REVOCATION, content, [info])
