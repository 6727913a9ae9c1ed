"""What is made comes back as it was, and what is accepted is written in one way only."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.x509 import ObjectIdentifier as Oid
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pki.core import asn1, deposits, envelope, errorcodes, keys, oids, packages, receipts, requests, revocations, x509
from pki.core.crl import Reason
from pki.core.deposits import Context
from pki.core.errors import KeymailboxError
from pki.core.ids import DepositId, Fingerprint, KeyId
from pki.core.keyattributes import KeyAttributes, KeyPurpose, Period
from pki.core.packages import KeyMaterial
from pki.core.receipts import RefusalReason
from pki.core.recipients import Recipient
from pki.core.tenants import Address, parse_address
from tests.kit import forge, forge_pki
from tests.kit.authority import acme, globex

ROUNDS = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])
FEW = settings(ROUNDS, max_examples=8)
MANY = settings(ROUNDS, max_examples=400)
LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,29}[a-z0-9])?", fullmatch=True)
SECONDS = st.datetimes(datetime(2026, 1, 1), datetime(2049, 12, 31), timezones=st.just(UTC)).map(
    lambda moment: moment.replace(microsecond=0)
)
KEY_IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}", fullmatch=True).map(KeyId)
ENTROPY = st.binary(min_size=64, max_size=64)


@st.composite
def addresses(draw: Any) -> Address:
    """Draw an address."""
    return parse_address(f"{draw(LABEL)}/{draw(LABEL)}")


@st.composite
def contexts(draw: Any) -> Context:
    """Draw the context of a deposit."""
    return Context(
        sender=draw(addresses()),
        recipient=draw(addresses()),
        key_id=draw(KEY_IDS),
        key_version=draw(st.integers(1, (1 << 31) - 1)),
        purpose=draw(st.text(max_size=128).filter(str.isprintable)),
        expires=draw(SECONDS),
    )


@st.composite
def periods(draw: Any) -> Period:
    """Draw a period of at least a second, with both ends."""
    start = draw(SECONDS)
    return Period(start, start + timedelta(seconds=draw(st.integers(1, 10**8))))


@st.composite
def materials(draw: Any) -> KeyMaterial:
    """Draw a key with what is said of it."""
    said = KeyAttributes(
        algorithm=draw(st.none() | st.just(oids.AES256_GCM)),
        purpose=draw(st.none() | st.sampled_from(KeyPurpose)),
        validity=draw(st.none() | periods()),
        distribution=draw(st.none() | periods()),
        receivers=tuple(draw(st.lists(addresses(), max_size=5, unique=True))),
    )
    media_type = draw(st.sampled_from([packages.OCTETS, "application/x-covercrypt", "a/b", "application/jwk+json"]))
    return KeyMaterial(draw(st.binary(min_size=1, max_size=2000)), media_type, said)


# What is made comes back


@ROUNDS
@given(contexts())
def test_a_context(context: Context) -> None:
    """Whatever is said about a deposit comes back."""
    assert deposits.decode_context(context.encode()) == context


@ROUNDS
@given(materials())
def test_a_package(material: KeyMaterial) -> None:
    """Whatever is said of a key comes back, with the key, and is written in the same way again."""
    kind, der = packages.encode_package(material)
    found = packages.decode_package(kind, der)
    assert found == material
    assert packages.encode_package(found) == (kind, der)


@pytest.mark.parametrize("algorithm", list(keys.ALGORITHMS.values()), ids=lambda algorithm: algorithm.title)
@FEW
@given(content=st.binary(max_size=500), ukm=st.none() | st.binary(max_size=1024))
def test_an_envelope(algorithm: keys.KeyAlgorithm, content: bytes, ukm: bytes | None) -> None:
    """Whatever content and user keying material, for each kind of key."""
    private = private_key(algorithm)
    recipient = Recipient(bytes(20), algorithm, keys.public_from_private(algorithm, private))
    parsed = envelope.parse(envelope.wrap(content, oids.DATA, [recipient], ukm=ukm))
    opened = envelope.unwrap(parsed, bytes(20), lambda found, sent: keys.recover(found, private, sent))
    assert opened == content


PRIVATE: dict[str, bytes] = {}


def private_key(algorithm: keys.KeyAlgorithm) -> bytes:
    """Return a private key, the same all through the run."""
    return PRIVATE.setdefault(algorithm.title, keys.generate(algorithm))


@ROUNDS
@given(
    deposit=st.binary(min_size=16, max_size=16),
    sha512=ENTROPY,
    by=addresses(),
    reason=st.none() | st.sampled_from(RefusalReason),
    at=SECONDS,
)
def test_a_receipt(deposit: bytes, sha512: bytes, by: Address, reason: RefusalReason | None, at: datetime) -> None:
    """Whatever deposit, recipient, reason and time: they come back."""
    common: dict[str, Any] = {"signer_ski": acme().ski, "sign": acme().key.sign, "signing_time": at}
    named = DepositId(deposit.hex())
    if reason is None:
        der = receipts.compose_receipt(named, sha512, by, **common)
    else:
        der = receipts.compose_refusal(named, sha512, by, reason, **common)
    found = receipts.parse_receipt(der)
    found.verify(acme().key.public, recipient=by, deposit=named, sha512=sha512)
    assert (found.deposit_id, found.received_by, found.reason) == (named, by, reason)
    assert (found.digest, found.signed.signing_time) == (sha512, at)


@ROUNDS
@given(digest=st.binary(min_size=32, max_size=32), reason=st.sampled_from(Reason), at=SECONDS)
def test_a_revocation(digest: bytes, reason: Reason, at: datetime) -> None:
    """Whatever certificate, reason and time: they come back."""
    named = Fingerprint(digest.hex())
    der = revocations.compose_revocation(named, reason, signer_ski=acme().ski, sign=acme().key.sign, signing_time=at)
    found = revocations.parse_revocation(der).verify(acme().key.public)
    assert (found.named.fingerprint, found.reason, found.requested) == (named, reason, at)


@ROUNDS
@given(address=addresses(), at=SECONDS, serial=st.integers(1, (1 << 159) - 1))
def test_requests_and_certificates(address: Address, at: datetime, serial: int) -> None:
    """Whatever address, time and serial: they come back from a request and from a certificate."""
    party = globex()
    for der in (
        requests.identity_request(address, party.spki, sign=party.key.sign, signing_time=at),
        requests.encryption_request(
            address,
            party.kem_spki,
            requests.Statement(x509.name_der(address), serial),
            sign=party.key.sign,
            signing_time=at,
        ),
    ):
        found = requests.parse_request(der).verify(party.key.public)
        assert (found.address, found.signing_time) == (address, at)
    end = at + timedelta(days=1)
    issued = party.authority.issue(
        address, party.kem_spki, x509.CertificateKind.ENCRYPTION, serial=serial, not_before=at, not_after=end
    )
    parsed = x509.parse_certificate(issued)
    assert (parsed.address, parsed.serial) == (address, serial)
    assert (parsed.not_before, parsed.not_after, parsed.spki) == (at, end, party.kem_spki)


@ROUNDS
@given(number=st.integers(0, (1 << 31) - 1))
def test_an_error_code(number: int) -> None:
    """Each number comes back as it was."""
    code = errorcodes.ErrorCode(number)
    assert errorcodes.parse_code(code.encode()) == code


# What is accepted is written in one way only

CONTEXT = forge.deposit_context()
SOURCES: dict[str, tuple[bytes, Callable[[bytes], object], Callable[[bytes], bytes]]] = {
    "context": (CONTEXT, deposits.decode_context, lambda der: deposits.decode_context(der).encode()),
    "package": (
        packages.encode_package(
            KeyMaterial(b"key", "a/b", KeyAttributes(purpose=KeyPurpose.SAMPLE, receivers=(acme().address,)))
        )[1],
        lambda der: packages.decode_package(oids.SYMMETRIC_KEY_PACKAGE, der),
        lambda der: again(asn1.SymmetricKeyPackage, der),
    ),
    "deposit": (acme().deposit(globex()), deposits.parse_deposit, lambda der: signed_again(der)),
    "envelope": (
        envelope.wrap(b"content", oids.DATA, [globex().recipient]),
        envelope.parse,
        lambda der: enveloped_again(der),
    ),
    "receipt": (forge_pki.receipt(), receipts.parse_receipt, lambda der: signed_again(der)),
    "request": (acme().identity_request, requests.parse_request, lambda der: request_again(der)),
    "certificate": (acme().encryption_der, x509.parse_certificate, lambda der: certificate_again(der)),
}


def again(kind: type, der: bytes) -> bytes:
    """Return what is written of what was read."""
    return asn1.encode(asn1.decode(kind, der, what="The object"))


def signed_again(der: bytes) -> bytes:
    """Return a SignedData, written anew in both layers."""
    outer = asn1.decode(asn1.ContentInfo, der, what="The object")
    inner = again(asn1.SignedData, asn1.encode(outer.content))
    return asn1.encode(asn1.ContentInfo(content_type=outer.content_type, content=asn1.tlv(inner)))


def enveloped_again(der: bytes) -> bytes:
    """Return an AuthEnvelopedData, written anew in both layers."""
    outer = asn1.decode(asn1.ContentInfo, der, what="The object")
    inner = again(asn1.AuthEnvelopedData, asn1.encode(outer.content))
    return asn1.encode(asn1.ContentInfo(content_type=outer.content_type, content=asn1.tlv(inner)))


def request_again(der: bytes) -> bytes:
    """Return a request, written anew in both layers."""
    outer = asn1.decode(asn1.Request, der, what="The object")
    info = asn1.tlv(again(asn1.RequestInfo, asn1.encode(outer.info)))
    return asn1.encode(
        asn1.Request(info=info, signature_algorithm=outer.signature_algorithm, signature=outer.signature)
    )


def certificate_again(der: bytes) -> bytes:
    """Return a certificate, written anew in both layers."""
    outer = asn1.decode(asn1.Certificate, der, what="The object")
    tbs = asn1.tlv(again(asn1.TbsCertificate, asn1.encode(outer.tbs)))
    return asn1.encode(
        asn1.Certificate(tbs=tbs, signature_algorithm=outer.signature_algorithm, signature=outer.signature)
    )


@pytest.mark.parametrize("kind", list(SOURCES))
def test_what_is_good_is_written_in_one_way(kind: str) -> None:
    """A good object, read and written again, has the same bytes."""
    good, parse, rewrite = SOURCES[kind]
    parse(good)
    assert rewrite(good) == good


@pytest.mark.parametrize("kind", list(SOURCES))
@MANY
@given(data=st.data())
def test_what_is_accepted_is_written_in_one_way(kind: str, data: st.DataObject) -> None:
    """Objects with a few bytes changed, added or taken away are refused, or written again with the same bytes."""
    good, parse, rewrite = SOURCES[kind]
    start = data.draw(st.integers(0, len(good)))
    length = data.draw(st.integers(0, 4))
    instead = data.draw(st.binary(max_size=4))
    changed = good[:start] + instead + good[start + length :]
    assume(changed != good)
    try:
        parse(changed)
    except KeymailboxError:
        return
    assert rewrite(changed) == changed


@MANY
@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_typed_error(data: bytes) -> None:
    """No bytes make a parser fail in another way than with a typed error."""
    kinds: list[Callable[[bytes], object]] = [parse for _, parse, _ in SOURCES.values()]
    kinds += [keys.load_private, keys.parse_spki, errorcodes.parse_code]
    kinds += [lambda der: packages.decode_package(Oid(forge_pki.POSSESSION), der)]
    for parse in kinds:
        with pytest.raises(KeymailboxError):
            parse(data)
