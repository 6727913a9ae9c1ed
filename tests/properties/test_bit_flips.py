"""Every single bit that is another is noticed: of a deposit by the server, of an envelope by its recipient."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pki.core import certificates, deposits, envelope, oids, policy, receipts, revocations
from pki.core.certificates import VerifiedCertificate
from pki.core.crl import Reason
from pki.core.errors import KeymailboxError
from pki.core.ids import DepositId, fingerprint
from pki.core.x509 import CertificateKind
from tests.kit.authority import NOW, PACKAGE_ID, acme, authority, globex

DEPOSIT = acme().deposit(globex())
ENVELOPE = envelope.wrap(b"content", oids.DATA, [globex().recipient], context=b"\x05\0")
SHA512 = bytes(range(64))
RECEIPT = receipts.compose_receipt(
    DepositId(PACKAGE_ID.hex()),
    SHA512,
    globex().address,
    signer_ski=globex().ski,
    sign=globex().key.sign,
    signing_time=NOW,
)
REVOCATION = revocations.compose_revocation(
    fingerprint(globex().identity_der),
    Reason.KEY_COMPROMISE,
    signer_ski=globex().ski,
    sign=globex().key.sign,
    signing_time=NOW,
)


SIGNATURE = 3309
"""Bytes of an ML-DSA-65 signature, which ends every signed object."""


def flips(der: bytes, sampled: int) -> Iterator[tuple[int, bytes]]:
    """Yield bits' numbers, and the bytes with this bit flipped; of the last ``sampled`` bytes each 17th bit."""
    changed = bytearray(der)
    most = (len(der) - sampled) * 8
    for bit in [*range(most), *range(most, len(der) * 8, 17)]:
        changed[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(changed)
        changed[bit // 8] ^= 1 << bit % 8


def unnoticed(der: bytes, check: Callable[[bytes], object], *, sampled: int = 0) -> list[int]:
    """Return the bits whose flip lets ``check`` pass; whatever else than a typed error comes out fails the test."""
    passed = []
    for bit, changed in flips(der, sampled):
        try:
            check(changed)
        except KeymailboxError:
            continue
        passed.append(bit)
    return passed


def test_every_bit_of_a_deposit() -> None:
    """The server refuses a deposit with any one bit flipped: all 43,000 are tried."""
    sender: VerifiedCertificate = acme().verified()
    crl = authority().crl()

    def server(der: bytes) -> object:
        parsed = deposits.parse_deposit(der)
        return policy.verify_deposit(parsed, sender=sender, crl=crl, recipient_skis={globex().kem_ski}, now=NOW)

    server(DEPOSIT)
    assert unnoticed(DEPOSIT, server) == []


def test_every_bit_of_an_envelope() -> None:
    """The recipient refuses an envelope with any one bit flipped, though nobody has signed it."""

    def recipient(der: bytes) -> object:
        return envelope.unwrap(envelope.parse(der), globex().kem_ski, globex().decapsulate)

    assert recipient(ENVELOPE) == b"content"
    assert unnoticed(ENVELOPE, recipient) == []


def test_every_bit_of_a_receipt() -> None:
    """The sender refuses a receipt with any one bit flipped."""
    key = globex().key.public

    def sender(der: bytes) -> object:
        parsed = receipts.parse_receipt(der)
        return parsed.verify(key, recipient=globex().address, deposit=DepositId(PACKAGE_ID.hex()), sha512=SHA512)

    sender(RECEIPT)
    assert unnoticed(RECEIPT, sender, sampled=SIGNATURE) == []


def test_every_bit_of_a_revocation() -> None:
    """The server refuses a wish to revoke with any one bit flipped."""
    key = globex().key.public
    revocations.parse_revocation(REVOCATION).verify(key)
    assert unnoticed(REVOCATION, lambda der: revocations.parse_revocation(der).verify(key), sampled=SIGNATURE) == []


@pytest.mark.parametrize("kind", list(CertificateKind))
def test_every_bit_of_a_certificate(kind: CertificateKind) -> None:
    """A relying party refuses a certificate with any one bit flipped."""
    party = acme()
    good, request, key = party.listed(kind)

    def relying(der: bytes) -> object:
        return certificates.check_listed(
            der,
            request,
            address=party.address,
            kind=kind,
            identity_key=key,
            issuing_der=party.authority.issuing_der,
            root_der=party.authority.root_der,
            crl=None,
            now=NOW,
        )

    relying(good)
    assert unnoticed(good, relying, sampled=SIGNATURE) == []
