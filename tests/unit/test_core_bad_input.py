"""Bad input: whatever comes, a typed error with rule and place, and never more memory than four times the input."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from pki.core import (
    counterfoils,
    crl,
    deposits,
    envelope,
    issuers,
    links,
    ocsp,
    officers,
    oids,
    orders,
    packages,
    receipts,
    requests,
    revocations,
    signing,
    x509,
)
from pki.core.cmp import bodies, messages
from pki.core.errors import KeymailboxError, MalformedError
from pki.core.profile import Profile
from tests.kit import forge, forge_cmp, tlv
from tests.kit import forge_pki as pki
from tests.kit.authority import NOW, acme, authority, globex
from tests.kit.cost import memory
from tests.kit.vectors import load, own
from tests.vectors.cases import orders as cases
from tests.vectors.cases.deposits import deposit, inner
from tests.vectors.cases.issuers import issuing_requests
from tests.vectors.cases.status import question

Parser = Callable[[bytes], object]
THOUSANDS = 10_000
SLACK = 64 * 1024
"""Bytes that an error costs whatever the input: its texts, a traceback, the first use of a cache."""

PARSERS: dict[str, Parser] = {
    "deposit": deposits.parse_deposit,
    "counterfoil": counterfoils.parse,
    "context": deposits.decode_context,
    "envelope": envelope.parse,
    "envelope-read": lambda der: envelope.parse(der, profile=Profile.READ),
    "signed-read": lambda der: signing.parse(der, content_types=None, extra=(), profile=Profile.READ),
    "package": lambda der: packages.decode_package(oids.SYMMETRIC_KEY_PACKAGE, der),
    "package-asymmetric": lambda der: packages.decode_package(oids.ASYMMETRIC_KEY_PACKAGE, der),
    "receipt": receipts.parse_receipt,
    "revocation": revocations.parse_revocation,
    "request": requests.parse_request,
    "request-cmp": requests.parse_request,
    "cmp": lambda der: bodies.read(messages.parse(der)),
    "cmp-confirmation": lambda der: bodies.read(messages.parse(der)),
    "certificate": x509.parse_certificate,
    "any-certificate": links.parse,
    "crl": lambda der: crl.verify_crl(der, issuing_der=authority().issuing_der, now=NOW),
    "crl-delta": lambda der: crl.verify_delta(der, issuing_der=authority().issuing_der, now=NOW),
    "ocsp-request": ocsp.parse_request,
    "issuing-request": issuers.parse_request,
    "officers": officers.parse_officers,
    "order": orders.parse_order,
    "approval": orders.parse_approval,
}
ED25519 = tlv.seq(tlv.integer(0), tlv.algorithm("1.3.101.112"), tlv.octets(tlv.octets(bytes(32))))
UNPLACED = {"package", "package-asymmetric"}
"""What they are given is secret: their errors say nothing of where it is wrong."""


@cache
def good() -> dict[str, bytes]:
    """Return a good object for each parser."""
    signed = forge.signed(
        forge.DATA, b"content", [forge.signer_info(pki.ACME, forge.signed_attributes(forge.DATA, b"content"))]
    )
    wrapped = envelope.wrap(b"content", oids.DATA, [globex().recipient])
    return {
        "deposit": acme().deposit(globex()),
        "counterfoil": counterfoils.cut(acme().deposit(globex())),
        "context": forge.deposit_context(),
        "envelope": wrapped,
        "envelope-read": wrapped,
        "signed-read": signed,
        "package": forge.key_package(),
        "package-asymmetric": tlv.seq(ED25519),
        "receipt": pki.receipt(),
        "revocation": pki.revocation(),
        "request": acme().encryption_request,
        "request-cmp": forge_cmp.further(),
        "cmp": forge_cmp.first(),
        "cmp-confirmation": forge_cmp.message(
            forge_cmp.CERTCONF, forge_cmp.confirmation(by=tlv.algorithm(forge.SHA_256)), forge_cmp.by_secret()
        ),
        "certificate": acme().encryption_der,
        "any-certificate": acme().encryption_der,
        "crl": authority().crl_der([5]),
        "crl-delta": authority().delta_der([5]),
        "ocsp-request": question(),
        "issuing-request": next(issuing_requests()).body,
        "officers": cases.officers(),
        "order": cases.order(),
        "approval": cases.approval(cases.order()),
    }


def refused(name: str, der: bytes) -> KeymailboxError:
    """Return the error that a parser answers with, which must be a typed one that says where."""
    with pytest.raises(KeymailboxError) as caught:
        PARSERS[name](der)
    error = caught.value
    if name in UNPLACED:
        assert error.part is None
    elif name != "context":
        assert error.offset is not None, error
        assert 0 <= error.offset <= len(der)
    return error


def spent(name: str, der: bytes) -> int:
    """Return how many bytes a parser takes at the most while it refuses."""
    return memory(lambda: refused(name, der))


@pytest.mark.parametrize("name", list(PARSERS))
def test_good_objects(name: str) -> None:
    """What is used to go wrong below is right."""
    PARSERS[name](good()[name])


@pytest.mark.parametrize("name", list(PARSERS))
def test_cut_off_at_every_length(name: str) -> None:
    """No beginning of an object is an object, nor is an object with its first bytes missing."""
    der = good()[name]
    for length in range(len(der)):
        refused(name, der[:length])
    for start in range(1, min(len(der), 200)):
        refused(name, der[start:])


@pytest.mark.parametrize("name", list(PARSERS))
@pytest.mark.parametrize(
    "padding", [b"\0", b"\0\0", b"\x30\0", b"\n", bytes(1000)], ids=["00", "0000", "3000", "nl", "1k"]
)
def test_padded(name: str, padding: bytes) -> None:
    """Nothing may follow after an object, nor stand before it."""
    der = good()[name]
    refused(name, der + padding)
    refused(name, padding + der)
    assert isinstance(refused(name, der + der), MalformedError) or name in (
        "receipt",
        "revocation",
        "request",
        "request-cmp",
    )


def nested(levels: int) -> bytes:
    """Return a sequence in a sequence, and so on."""
    der = b""
    for _ in range(levels):
        der = tlv.seq(der)
    return der


DEEP = nested(20_000)
HUGE = {
    "2^63": b"\x30\x88\x80" + bytes(7),
    "2^64-1": b"\x30\x88" + b"\xff" * 8,
    "2^32-1": b"\x30\x84\xff\xff\xff\xff",
    "2^31": b"\x30\x84\x80\0\0\0",
    "127 bytes": b"\x30\xff" + b"\xff" * 127,
    "indefinite": b"\x30\x80",
    "not the shortest": b"\x30\x82\0\x05",
}


@pytest.mark.parametrize("name", list(PARSERS))
@pytest.mark.parametrize("length", list(HUGE))
def test_lengths(name: str, length: str) -> None:
    """A length of 2^63 is refused where it stands, as the whole and deep inside, and nothing is set aside for it."""
    whole = HUGE[length] + bytes(100)
    assert isinstance(refused(name, whole), MalformedError)
    assert refused(name, whole).rule == "DER-001"
    assert spent(name, whole) <= 4 * len(whole) + SLACK
    der = good()[name]
    # The first tag and length inside, and what stands there is refused with an offset.
    refused(name, der[:2] + HUGE[length] + der[2:])
    refused(name, tlv.seq(HUGE[length], bytes(50)))


@pytest.mark.parametrize("name", list(PARSERS))
def test_nested_20000_deep(name: str) -> None:
    """Twenty thousand levels are refused, at the top and wherever anything may stand."""
    holders = [
        DEEP,
        forge.content_info(forge.SIGNED_DATA, DEEP),
        forge.content_info(forge.AUTH_ENVELOPED_DATA, DEEP),
        forge.content_info(forge.AUTH_ENVELOPED_DATA, tlv.seq(tlv.integer(0), tlv.set_of(DEEP))),
        tlv.seq(DEEP, tlv.algorithm(forge.ML_DSA_65), tlv.bits(b"")),
        tlv.seq(tlv.seq(tlv.seq(tlv.seq(tlv.attribute(forge.MEDIA_TYPE, DEEP)), tlv.octets(b"k")))),
        pki.certificate(issuer=DEEP),
        pki.request(subject=DEEP),
        pki.crl(issuer=DEEP),
    ]
    for der in holders:
        refused(name, der)
        assert spent(name, der) <= 4 * len(der) + SLACK


def attributes(count: int) -> list[bytes]:
    """Return so many attributes that nobody knows."""
    return [tlv.attribute(f"1.2.3.{number}", tlv.NULL) for number in range(count)]


@cache
def crowds() -> dict[str, tuple[tuple[str, ...], str, bytes]]:
    """Return what there is too much of: for which parsers, with which rule, and the bytes."""
    one = forge.kem_recipient(pki.GLOBEX_KEY, forge.CEK)
    info = forge.signer_info(pki.ACME, forge.signed_attributes(forge.DATA, b"x"))
    read = ("signed-read",)
    both = ("envelope", "envelope-read")
    small = tlv.set_of(*(tlv.integer(number) for number in range(THOUSANDS)))
    typed = tlv.attribute(forge.CONTENT_TYPE, tlv.oid(forge.SYMMETRIC_KEY_PACKAGE))
    context = tlv.attribute(forge.DEPOSIT_CONTEXT, forge.deposit_context())
    within = forge.envelope(
        [b"\xa4\0"] * THOUSANDS,
        forge.key_package(),
        content_type=forge.SYMMETRIC_KEY_PACKAGE,
        attributes=[typed, context],
    )
    many = [pki.extension(f"1.2.3.{number}", b"x") for number in range(THOUSANDS)]
    return {
        "recipients": (both, "ENV-003", forge.envelope([one] * THOUSANDS)),
        "recipients in a deposit": (("deposit",), "ENV-003", deposit(content=within)),
        "authenticated attributes": (both, "ENV-011", forge.envelope([one], attributes=attributes(THOUSANDS))),
        "bytes of user keying material": (
            both,
            "ENV-005",
            forge.envelope([forge.kem_recipient(pki.GLOBEX_KEY, forge.CEK, ukm=bytes(10**6))]),
        ),
        "bytes of nonce": (
            both,
            "ENV-009",
            forge.envelope([one], parameters=tlv.seq(tlv.octets(bytes(10**6)), tlv.integer(16))),
        ),
        "signers": (read, "SIG-003", forge.signed(forge.DATA, b"x", [info] * 300)),
        "signers of a deposit": (("deposit",), "SIG-003", deposit(infos=lambda good, _: good * 100)),
        "digests": (read, "SIG-004", forge.signed(forge.DATA, b"x", [info], digests=[forge.SHA512_ID] * THOUSANDS)),
        "signed attributes": (
            read,
            "SIG-003",
            forge.signed(forge.DATA, b"x", [forge.signer_info(pki.ACME, attributes(THOUSANDS))]),
        ),
        "bits of a version": (
            read,
            "SIG-001",
            forge.content_info(forge.SIGNED_DATA, tlv.seq(tlv.integer(1 << 10**6), small)),
        ),
        "keys": (("package",), "PKG-001", tlv.seq(tlv.seq(*[tlv.seq(tlv.octets(b"k"))] * THOUSANDS))),
        "private keys": (("package-asymmetric",), "DER-001", tlv.seq(*[ED25519] * THOUSANDS)),
        "attributes of a key": (("package",), "PKG-002", forge.key_package(attributes=attributes(THOUSANDS))),
        "attributes of a private key": (
            ("package-asymmetric",),
            "PKG-002",
            tlv.seq(tlv.tlv(0x30, ED25519[2:], tlv.retag(0xA0, tlv.set_of(*attributes(THOUSANDS))))),
        ),
        "attributes of a request": (("request",), "REQ-001", pki.request(attributes=attributes(THOUSANDS))),
        "extensions": (("certificate",), "CRT-016", pki.certificate(extensions=many)),
        "small extensions": (("certificate",), "CRT-016", pki.certificate(extensions=many[:400])),
        "names": (
            ("certificate",),
            "CRT-016",
            pki.certificate(subject=forge.name(*[("2.5.4.10", "x" * 100)] * THOUSANDS)),
        ),
        "bytes of a receipt": (("receipt",), "RCP-001", pki.receipt(deposit=bytes(10**6))),
        "bytes of a revocation": (("revocation",), "REV-001", pki.revocation(fingerprint=bytes(10**6))),
        "bytes of an order": (("order",), "ORD-004", cases.order([bytes(10**6)])),
        "certificates of an order": (("order",), "ORD-004", cases.order([b""] * THOUSANDS)),
        "officers": (("officers",), "ORD-001", cases.officers([tlv.seq()] * THOUSANDS)),
    }


CROWDS = (
    "recipients",
    "recipients in a deposit",
    "authenticated attributes",
    "bytes of user keying material",
    "bytes of nonce",
    "signers",
    "signers of a deposit",
    "digests",
    "signed attributes",
    "bits of a version",
    "keys",
    "private keys",
    "attributes of a key",
    "attributes of a private key",
    "attributes of a request",
    "extensions",
    "small extensions",
    "names",
    "bytes of a receipt",
    "bytes of a revocation",
    "bytes of an order",
    "certificates of an order",
    "officers",
)


@pytest.mark.parametrize("crowd", CROWDS)
def test_too_many(crowd: str) -> None:
    """Ten thousand of anything are refused by their rule, before they are decoded: memory stays within four times."""
    names, rule, der = crowds()[crowd]
    for name in names:
        assert refused(name, der).rule == rule
        assert spent(name, der) <= 4 * len(der) + SLACK


def test_every_crowd_is_tried() -> None:
    """No crowd is forgotten."""
    assert set(CROWDS) == set(crowds())


@pytest.mark.parametrize("name", list(PARSERS))
def test_every_vector_is_refused_by_every_other_parser(name: str) -> None:
    """An object of one kind is none of another kind, and is refused as cheaply as all that is wrong."""
    kinds = {
        "envelope-read": "envelope",
        "signed-read": "deposit",
        "package-asymmetric": "package",
        "any-certificate": "certificate",
        "request-cmp": "request",
        "cmp-confirmation": "cmp",
    }
    signed = {"deposit", "receipt", "revocation", "order", "approval"}
    # A vector of a delta list that is none is a full list.
    lists = {"crl", "crl-delta"}
    # A CMP message may be a request or a revocation, and a plain PKCS #10 of an odd name one for an issuing CA.
    messages = ({"cmp", "request"}, {"cmp", "revocation"}, {"request", "revocation"}, {"request", "issuing-request"})
    for path in own():
        vector = load(path)
        kind = vector.header["kind"]
        same = kind == kinds.get(name, name) or (name == "signed-read" and kind in signed) or {kind, name} == lists
        same = same or {kind, kinds.get(name, name)} in messages
        if not same:
            refused(name, vector.body)


def test_a_rule_names_its_place() -> None:
    """The offset of what is wrong in the innermost part is the one in the whole object."""
    broken = deposit(content=inner(forge.deposit_context())).replace(
        tlv.oid(forge.KEM_RECIPIENT), tlv.oid("1.2.840.113549.1.9.16.13.4")
    )
    error = refused("deposit", broken)
    assert error.rule == "ENV-004"
    assert error.offset is not None
    assert broken[error.offset] == 0xA4


@pytest.mark.parametrize("part", [b"\x05\0", b"\x30\0", b"\x02\x01\0"], ids=["null", "sequence", "integer"])
@pytest.mark.parametrize("name", ["envelope", "envelope-read"])
def test_an_envelope_of_a_megabyte_of_parts(name: str, part: bytes) -> None:
    """The parts of an envelope are few: the eighth is not looked at."""
    der = forge.content_info(forge.AUTH_ENVELOPED_DATA, tlv.seq(part * (1 << 18)))
    assert refused(name, der).rule == "ENV-001"


MEGABYTE = 1 << 20
NULLS = tlv.NULL * (MEGABYTE // 2)
LONG_NAME = forge.name(*[("2.5.4.3", "x")] * 700)
RECEIVERS = tlv.attribute(
    oids.KEY_PACKAGE_RECEIVERS.dotted_string, tlv.seq(tlv.context(0, tlv.oid(forge.SIREN_DN), tlv.octets(LONG_NAME)))
)
FILLED = {
    "PKG-001 parts": ("package", tlv.seq(NULLS)),
    "PKG-002 values": (
        "package",
        forge.key_package(attributes=[tlv.attribute(forge.MEDIA_TYPE, *[tlv.NULL] * 20_000)]),
    ),
    "PKG-002 value": ("package", forge.key_package(media_type="a" * MEGABYTE)),
    "PKG-002 none": ("package", tlv.seq(tlv.seq(tlv.seq(tlv.seq(), tlv.octets(bytes(32)))))),
    "PKG-009 name": ("package", forge.key_package(attributes=[RECEIVERS])),
    "PKG-004 parts": ("package-asymmetric", tlv.seq(tlv.seq(NULLS))),
    "PKG-002 own": (
        "package-asymmetric",
        tlv.seq(tlv.seq(ED25519[2:], tlv.context(0, tlv.attribute("1.2.3", *[tlv.NULL] * 20_000)))),
    ),
    "CRT-016 fields": ("certificate", tlv.seq(tlv.seq(tlv.NULL * 30_000), pki.GOOD, tlv.bits(b"x"))),
    "CRT-016 extension": (
        "certificate",
        pki.certificate(extensions=[pki.usage(), pki.names(*["a"] * 19_000), pki.ski(bytes(20)), pki.aki()]),
    ),
    "REQ-003 name": ("request", pki.request(subject=LONG_NAME)),
    "RCP-003 name": ("receipt", pki.receipt(by=pki.entity(LONG_NAME))),
}


@pytest.mark.parametrize("case", list(FILLED))
def test_filled_with_small_things(case: str) -> None:
    """What is many within one value, and not many values, is counted as well before it is decoded."""
    name, der = FILLED[case]
    assert refused(name, der).rule == case.split()[0]
    assert spent(name, der) <= 4 * len(der) + SLACK


def test_times_are_of_whole_seconds() -> None:
    """A fraction of a second would be lost when it is written again, so it is not read (RFC 5652 §11.3)."""
    fraction = tlv.tlv(0x18, b"20500101000000.5Z")
    context = forge.deposit_context()
    changed = tlv.seq(context[2:-17] + fraction)
    assert refused("context", changed).rule == "DEP-002"
    with pytest.raises(MalformedError):
        signing.decode_time(fraction)
