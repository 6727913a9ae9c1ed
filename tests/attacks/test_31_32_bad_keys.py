"""Attacks 31 and 32: a tenant asks to have a key certified that is malformed, weak, lost, or somebody else's.

Each is tried at the door (`submit_request`, `enroll`), and once more with the request put into the store by hand, as
who edits rows would do: the issuer refuses it by itself. Nothing of it is ever listed.
"""

from __future__ import annotations

import json
import secrets
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from sqlalchemy import func, select

from pki.core import kem, keys, requests, signatures
from pki.core.certificates import CertificateKind, CertificateState, RequestState
from pki.core.crl import Reason
from pki.core.errors import (
    CertificateError,
    ConflictError,
    IllegalMoveError,
    KeymailboxError,
    RevokedError,
    SignatureError,
    VerificationError,
    WrongPartyError,
)
from pki.core.ids import request_id
from pki.core.kem import KemAlgorithm
from pki.core.keys import EcAlgorithm
from pki.core.signatures import SignatureAlgorithm
from pki.core.tenants import parse_address
from pki.server.facts import RequestRecord
from pki.server.services import access, certificates, issuing, rotation
from pki.server.services.access import Enrolment
from pki.server.store import certificates as certificate_store
from pki.server.store import tables
from pki.server.store.engine import Store
from tests.kit import tlv
from tests.kit.authority import new_signing_key
from tests.kit.office import Kms, Office, open_office

RSA, EC, P_256, P_384 = "1.2.840.113549.1.1.1", "1.2.840.10045.2.1", "1.2.840.10045.3.1.7", "1.3.132.0.34"
ML_KEM_512, ML_KEM_768, ML_KEM_1024 = (f"2.16.840.1.101.3.4.4.{one}" for one in (1, 2, 3))
COMPOSITE, ED25519, X25519 = KemAlgorithm.COMPOSITE.oid.dotted_string, "1.3.101.112", "1.3.101.110"
VECTORS = Path(__file__).parents[1] / "vectors" / "wycheproof" / "mlkem-keys.json"
S = SignatureAlgorithm


def spki(algorithm: bytes, public: bytes) -> bytes:
    """Return a SubjectPublicKeyInfo with anything in it."""
    return tlv.seq(algorithm, tlv.bits(public))


# Keys that are weak or malformed


@cache
def modulus(bits: int) -> int:
    """Return a sound RSA modulus of this size."""
    return rsa.generate_private_key(65537, bits).public_key().public_numbers().n


def rsa_key(number: int, exponent: int = 65537, *parameters: bytes) -> bytes:
    """Return an RSA key."""
    public = tlv.seq(tlv.integer(number), tlv.integer(exponent))
    return spki(tlv.algorithm(RSA, *(parameters or (tlv.NULL,))), public)


def divisible(by: int) -> int:
    """Return a number of 3072 bits that looks like a modulus and has a small factor."""
    start = modulus(3072)
    return start - start % by + (by if by % 2 else 0)


def ec_key(curve: str, point: bytes) -> bytes:
    """Return an EC key on a named curve."""
    return spki(tlv.algorithm(EC, tlv.oid(curve)), point)


def point_of(curve: ec.EllipticCurve) -> bytes:
    """Return an uncompressed point."""
    numbers = ec.generate_private_key(curve).public_key().public_numbers()
    size = (curve.key_size + 7) // 8
    return b"\x04" + numbers.x.to_bytes(size, "big") + numbers.y.to_bytes(size, "big")


def beside(point: bytes) -> bytes:
    """Return a point that lies next to the curve."""
    return point[:-1] + bytes([point[-1] ^ 1])


def explicit() -> bytes:
    """Return P-256 written out, as CVE-2020-0601 used it."""
    p = 2**256 - 2**224 + 2**192 + 2**96 - 1
    field = tlv.seq(tlv.oid("1.2.840.10045.1.1"), tlv.integer(p))
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
    curve = tlv.seq(tlv.octets((p - 3).to_bytes(32, "big")), tlv.octets(b.to_bytes(32, "big")))
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    point = point_of(ec.SECP256R1())
    parameters = tlv.seq(tlv.integer(1), field, curve, tlv.octets(point), tlv.integer(order), tlv.integer(1))
    return spki(tlv.algorithm(EC, parameters), point)


def kem_key(oid: str, public: bytes) -> bytes:
    """Return a KEM key."""
    return spki(tlv.algorithm(oid), public)


def sound(algorithm: KemAlgorithm) -> bytes:
    """Return a good public key."""
    return kem.public_from_private(algorithm, kem.generate(algorithm))


def unreduced(algorithm: KemAlgorithm, place: int) -> bytes:
    """Return a public key with one coefficient of 4095 at this place; 3328 is the largest there is."""
    public = bytearray(sound(algorithm))
    start = 3 * (place // 2)
    if place % 2:
        public[start + 1] |= 0xF0
        public[start + 2] = 0xFF
    else:
        public[start] = 0xFF
        public[start + 1] |= 0x0F
    return bytes(public)


def composite(x25519: bytes) -> bytes:
    """Return a composite key whose classical half is this."""
    return kem_key(COMPOSITE, sound(KemAlgorithm.COMPOSITE)[:-32] + x25519)


K768, K1024 = KemAlgorithm.ML_KEM_768, KemAlgorithm.ML_KEM_1024
P_25519 = 2**255 - 19
FACTORS = {"even": 2, "divisible by 3": 3, "divisible by 751": 751}
ENCRYPTION_KEYS: dict[str, Callable[[], bytes]] = {
    "RSA of 1024 bits": lambda: rsa_key(modulus(1024)),
    "RSA of 2048 bits": lambda: rsa_key(modulus(2048)),
    "RSA of 3064 bits": lambda: rsa_key(modulus(3072) >> 8 | 1),
    "RSA of 3073 bits": lambda: rsa_key(modulus(3072) | 1 << 3072),
    "RSA of 16384 bits": lambda: rsa_key((1 << 16383) + 1),
    **{f"RSA, modulus {name}": lambda by=by: rsa_key(divisible(by)) for name, by in FACTORS.items()},
    "RSA, modulus zero": lambda: rsa_key(0),
    "RSA, modulus negative": lambda: rsa_key(-modulus(3072)),
    "RSA, exponent 1": lambda: rsa_key(modulus(3072), 1),
    "RSA, exponent 3": lambda: rsa_key(modulus(3072), 3),
    "RSA, exponent even": lambda: rsa_key(modulus(3072), 65538),
    "RSA, exponent of 33 bits": lambda: rsa_key(modulus(3072), (1 << 32) + 1),
    "RSA, parameters not NULL": lambda: rsa_key(modulus(3072), 65537, tlv.seq()),
    "RSA for PSS alone": lambda: spki(tlv.algorithm("1.2.840.113549.1.1.10"), tlv.seq(tlv.integer(modulus(3072)))),
    "P-192": lambda: ec_key("1.2.840.10045.3.1.1", point_of(ec.SECP192R1())),
    "P-224": lambda: ec_key("1.3.132.0.33", point_of(ec.SECP224R1())),
    "P-521": lambda: ec_key("1.3.132.0.35", point_of(ec.SECP521R1())),
    "secp256k1": lambda: ec_key("1.3.132.0.10", point_of(ec.SECP256K1())),
    "brainpoolP256r1": lambda: ec_key("1.3.36.3.3.2.8.1.1.7", point_of(ec.BrainpoolP256R1())),
    "P-256 written out": explicit,
    "P-256, beside the curve": lambda: ec_key(P_256, beside(point_of(ec.SECP256R1()))),
    "P-384, beside the curve": lambda: ec_key(P_384, beside(point_of(ec.SECP384R1()))),
    "P-256, a point of P-384": lambda: ec_key(P_256, point_of(ec.SECP384R1())),
    "P-256, at infinity": lambda: ec_key(P_256, b"\0"),
    "P-256, zero": lambda: ec_key(P_256, b"\x04" + bytes(64)),
    "P-256, compressed": lambda: ec_key(P_256, b"\x02" + point_of(ec.SECP256R1())[1:33]),
    "P-256, hybrid form": lambda: ec_key(P_256, b"\x06" + point_of(ec.SECP256R1())[1:]),
    "ML-KEM-512": lambda: kem_key(ML_KEM_512, secrets.token_bytes(800)),
    "ML-KEM-768, first coefficient": lambda: kem_key(ML_KEM_768, unreduced(K768, 0)),
    "ML-KEM-768, last coefficient": lambda: kem_key(ML_KEM_768, unreduced(K768, 767)),
    "ML-KEM-768, all ones": lambda: kem_key(ML_KEM_768, b"\xff" * 1184),
    "ML-KEM-768, zero": lambda: kem_key(ML_KEM_768, bytes(1184)),
    "ML-KEM-768, zero but for rho": lambda: kem_key(ML_KEM_768, bytes(1152) + secrets.token_bytes(32)),
    "ML-KEM-768, short": lambda: kem_key(ML_KEM_768, sound(K768)[:-1]),
    "ML-KEM-768, long": lambda: kem_key(ML_KEM_768, sound(K768) + b"\0"),
    "ML-KEM-768, empty": lambda: kem_key(ML_KEM_768, b""),
    "ML-KEM-768 called ML-KEM-1024": lambda: kem_key(ML_KEM_1024, sound(K768)),
    "ML-KEM-1024, last coefficient": lambda: kem_key(ML_KEM_1024, unreduced(K1024, 1023)),
    "ML-KEM-1024, zero": lambda: kem_key(ML_KEM_1024, bytes(1568)),
    "composite, first coefficient": lambda: kem_key(COMPOSITE, unreduced(KemAlgorithm.COMPOSITE, 0)),
    "composite, zero": lambda: kem_key(COMPOSITE, bytes(1216)),
    "composite, X25519 zero": lambda: composite(bytes(32)),
    "composite, X25519 one": lambda: composite(b"\x01" + bytes(31)),
    "composite, X25519 of order 8": lambda: composite(
        bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")
    ),
    "composite, X25519 p": lambda: composite(P_25519.to_bytes(32, "little")),
    "composite, X25519 p - 1": lambda: composite((P_25519 - 1).to_bytes(32, "little")),
    "X25519 alone": lambda: kem_key(X25519, secrets.token_bytes(32)),
    "a key of an unknown algorithm": lambda: kem_key("1.2.3.4", secrets.token_bytes(64)),
    "DSA": lambda: spki(tlv.algorithm("1.2.840.10040.4.1", tlv.seq()), tlv.integer(5)),
}
ED_SMALL = {
    "zero": 0,
    "one": 1,
    "p - 1": P_25519 - 1,
    "p": P_25519,
    "of order 8": int.from_bytes(
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"
    ),
}
IDENTITY_KEYS: dict[str, Callable[[], bytes]] = {
    **{
        f"Ed25519, y is {name}": lambda y=y: spki(tlv.algorithm(ED25519), y.to_bytes(32, "little"))
        for name, y in ED_SMALL.items()
    },
    "Ed25519, all ones": lambda: spki(tlv.algorithm(ED25519), b"\xff" * 32),
    "ML-DSA-65, zero": lambda: spki(tlv.algorithm(S.ML_DSA_65.oid.dotted_string), bytes(1952)),
    "ML-DSA-65, zero but for rho": lambda: spki(
        tlv.algorithm(S.ML_DSA_65.oid.dotted_string), secrets.token_bytes(32) + bytes(1920)
    ),
    "ML-DSA-44, zero": lambda: spki(tlv.algorithm(S.ML_DSA_44.oid.dotted_string), bytes(1312)),
    "ML-DSA-65, short": lambda: spki(tlv.algorithm(S.ML_DSA_65.oid.dotted_string), secrets.token_bytes(1951)),
    "P-192": lambda: ec_key("1.2.840.10045.3.1.1", point_of(ec.SECP192R1())),
    "P-256, beside the curve": lambda: ec_key(P_256, beside(point_of(ec.SECP256R1()))),
    "P-256 written out": explicit,
    "SLH-DSA": lambda: spki(tlv.algorithm(S.SLH_DSA_SHA2_128S.oid.dotted_string), secrets.token_bytes(32)),
}


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """A server with a CA."""
    home = tmp_path_factory.mktemp("office")
    store = Store(f"sqlite:///{home / 'keymailbox.sqlite'}")
    store.migrate()
    yield open_office(store, home)
    store.close()


@pytest.fixture(scope="module")
def mallory(office: Office) -> Kms:
    """A tenant with an identity certificate, who means no good."""
    kms = Kms(parse_address("mallory/hq"))
    office.settle(kms)
    return kms


@pytest.fixture
def globex(office: Office) -> Kms:
    """Another tenant, new for each test."""
    kms = Kms(parse_address(f"globex/n{secrets.token_hex(4)}"))
    office.settle(kms)
    return kms


def counted(office: Office) -> tuple[int, int]:
    """Return how many requests and certificates there are."""
    with office.deps.store.read() as unit:
        one, two = (
            unit.connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (tables.requests, tables.certificates)
        )
    return one, two


def asked(office: Office, kms: Kms, key: bytes, **changes: Any) -> bytes:
    """Return a request for an encryption certificate for any key, signed as it should be."""
    fields: dict[str, Any] = {"sign": kms.identity.sign, "signing_time": office.clock.now()} | changes
    return requests.encryption_request(
        kms.address, key, fields.pop("statement", None) or kms.statement(office), **fields
    )


def refused(office: Office, kms: Kms, der: bytes) -> KeymailboxError:
    """Return why a request is refused at the door; nothing of it is stored."""
    before = counted(office)
    with pytest.raises(KeymailboxError) as caught:
        certificates.submit_request(office.deps, kms.caller(office), der)
    assert counted(office) == before
    return caught.value


def refused_by_the_issuer(office: Office, kms: Kms, der: bytes, kind: CertificateKind) -> str:
    """Put a request into the store by hand, as an administrator can, and return the issuer's reason to reject it."""
    _, before = counted(office)
    record = RequestRecord(request_id(der), kms.address, kind, der, RequestState.PENDING, office.clock.now())
    with office.deps.store.unit() as unit:
        certificate_store.insert_request(unit, record)
    result = issuing.issue(office.deps, office.keys, [record.id])[record.id]
    assert isinstance(result, RequestRecord)
    assert (result.state, result.fingerprint, counted(office)[1]) == (RequestState.REJECTED, None, before)
    return result.reason or ""


@pytest.mark.parametrize("name", ENCRYPTION_KEYS)
def test_31_an_encryption_key_that_is_weak_or_malformed(office: Office, mallory: Kms, name: str) -> None:
    """Refused with its rule before it is stored, and by the issuer whoever stored it."""
    der = asked(office, mallory, ENCRYPTION_KEYS[name]())
    error = refused(office, mallory, der)
    # What is written out where a name belongs is not even of the structure.
    rule = "DER-001" if name == "P-256 written out" else "CRT-009"
    assert error.rule == rule
    assert rule in refused_by_the_issuer(office, mallory, der, CertificateKind.ENCRYPTION)


@pytest.mark.parametrize("name", IDENTITY_KEYS)
def test_31_an_identity_key_under_which_others_could_sign(office: Office, name: str) -> None:
    """Refused at enrolment, with the invitation still good, and no renewal brings it in."""
    address = parse_address(f"initech/n{secrets.token_hex(4)}")
    reference, secret = office.invite("initech")
    key, now = IDENTITY_KEYS[name](), office.clock.now()
    algorithm = next((one for one in signatures.IDENTITY if tlv.oid(one.key_oid.dotted_string) in key), S.ED25519)
    der = requests.identity_request(
        address, key, sign=lambda _: bytes(algorithm.size), signing_time=now, algorithm=algorithm
    )
    before = counted(office)
    kms = Kms(address)
    with pytest.raises(KeymailboxError) as caught:
        access.enroll(office.deps, Enrolment(reference, secret, address, kms.access_public, der))
    assert caught.value.rule == "CRT-009"
    assert counted(office) == before
    access.enroll(office.deps, kms.enrolment(reference, secret, now=now))
    office.work()
    renewal = requests.identity_request(
        address, key, sign=lambda _: bytes(algorithm.size), signing_time=now, algorithm=algorithm
    )
    assert refused(office, kms, renewal).rule == "CRT-009"
    assert "CRT-009" in refused_by_the_issuer(office, kms, renewal, CertificateKind.IDENTITY)


@pytest.mark.parametrize("name", ED_SMALL)
def test_31_an_access_key_under_which_others_could_sign(office: Office, name: str) -> None:
    """An access key of small order, for which one signature is good for many calls, is refused at enrolment."""
    kms = Kms(parse_address(f"initech/n{secrets.token_hex(4)}"))
    enrolment = kms.enrolment(*office.invite("initech"), now=office.clock.now())
    bad = replace(enrolment, access_key=ED_SMALL[name].to_bytes(32, "little"))
    with pytest.raises(KeymailboxError):
        access.enroll(office.deps, bad)
    access.enroll(office.deps, enrolment)


@pytest.mark.parametrize("title", ["ML-KEM-512", "ML-KEM-768", "ML-KEM-1024"])
def test_31_wycheproofs_bad_keys(title: str) -> None:
    """Each that it calls invalid is refused, each that it calls valid is taken, but for the key that is zero."""
    algorithm = next(one for one in KemAlgorithm if one.title == title)
    answers: dict[str, set[str]] = {"valid": set(), "invalid": set()}
    for one in json.loads(VECTORS.read_text())["keys"]:
        if one["algorithm"] != title:
            continue
        try:
            kem.check_public(algorithm, b64decode(one["ek"]))
        except KeymailboxError as error:
            assert error.rule == "CRT-009"
            assert one["result"] == "invalid" or one["comment"] == "Zero secret and error"
            answers["invalid"].add(one["comment"])
        else:
            assert one["result"] == "valid"
            answers["valid"].add(one["comment"])
    assert {"ModulusOverflow", "Public key not reduced", "Zero secret and error"} <= answers["invalid"]
    assert len(answers["valid"]) > 5


def test_31_good_keys_are_taken(office: Office, mallory: Kms) -> None:
    """What is refused is refused for what it is: the same requests with a good key are queued."""
    good = [
        kem_key(COMPOSITE, sound(KemAlgorithm.COMPOSITE)),
        kem_key(ML_KEM_768, sound(K768)),
        kem_key(ML_KEM_1024, sound(K1024)),
        ec_key(P_256, point_of(ec.SECP256R1())),
        ec_key(P_384, point_of(ec.SECP384R1())),
        rsa_key(modulus(3072)),
    ]
    for key in good:
        der = asked(office, mallory, key)
        state = certificates.submit_request(office.deps, mallory.caller(office), der).state
        assert state is RequestState.PENDING
    assert all(isinstance(one, RequestRecord) and one.fingerprint for one in office.work().values())


# Keys that are somebody else's


def test_32_an_encryption_key_that_somebody_else_has_certified(office: Office, mallory: Kms, globex: Kms) -> None:
    """Whose key it is stands in the directory: for another instance it is refused, at the door and by the issuer."""
    private = kem.generate()
    office.publish(globex, private)
    stolen = kem.spki(KemAlgorithm.COMPOSITE, kem.public_from_private(KemAlgorithm.COMPOSITE, private))
    der = asked(office, mallory, stolen)
    assert isinstance(refused(office, mallory, der), ConflictError)
    assert "certified for another instance" in refused_by_the_issuer(office, mallory, der, CertificateKind.ENCRYPTION)


def test_32_an_encryption_key_that_nobody_has_certified_yet(office: Office, mallory: Kms, globex: Kms) -> None:
    """Its certificate comes encrypted to it: the public half alone proves nothing, and does not keep its owner out."""
    private = kem.generate()
    algorithm = KemAlgorithm.COMPOSITE
    stolen = kem.spki(algorithm, kem.public_from_private(algorithm, private))
    thief = mallory.caller(office)
    before = certificates.lookup(office.deps, mallory.address).encryption
    request = certificates.submit_request(office.deps, thief, asked(office, mallory, stolen)).id
    office.work()
    with pytest.raises(KeymailboxError):
        # Whatever else the thief has, it is not this key.
        mallory.decrypt(office, request, kem.generate())
    for guess in (request, secrets.token_hex(32), "", "00" * 32):
        with pytest.raises(VerificationError):
            certificates.prove(office.deps, thief, request, guess)
    assert certificates.lookup(office.deps, mallory.address).encryption == before
    mine = office.publish(globex, private)
    assert mine.state is CertificateState.ACTIVE
    proof = mallory.decrypt(office, request, private)
    with pytest.raises(IllegalMoveError, match="another instance"):
        # Even with the private half: the key is globex's by now.
        certificates.prove(office.deps, thief, request, proof)
    assert certificates.lookup(office.deps, mallory.address).encryption == before
    assert refused(
        office, mallory, asked(office, mallory, stolen, signing_time=office.clock.now() + timedelta(seconds=1))
    )


def test_32_a_claim_that_was_never_proved_does_not_outlive_its_certificate(tmp_path: Path) -> None:
    """A year later, too, the owner gets its key certified: what was never proved has expired, and bars nobody."""
    store = Store(f"sqlite:///{tmp_path / 'keymailbox.sqlite'}")
    store.migrate()
    office = open_office(store, tmp_path)
    thief, owner = Kms(parse_address("mallory/hq")), Kms(parse_address("globex/main"))
    office.settle(thief)
    private = kem.generate()
    stolen = kem.spki(KemAlgorithm.COMPOSITE, kem.public_from_private(KemAlgorithm.COMPOSITE, private))
    certificates.submit_request(office.deps, thief.caller(office), asked(office, thief, stolen))
    office.work()
    office.clock.step(timedelta(days=366))
    rotation.expire(office.deps)
    office.settle(owner)
    assert office.publish(owner, private).state is CertificateState.ACTIVE
    store.close()


def test_32_a_statement_in_somebody_elses_name(office: Office, mallory: Kms, globex: Kms) -> None:
    """RFC 9883's statement names the identity certificate that signed: another's is not believed, nor one of nobody."""
    key = kem_key(COMPOSITE, sound(KemAlgorithm.COMPOSITE))
    others = globex.statement(office)
    for statement in (others, replace(others, serial=4711), replace(mallory.statement(office), issuer_der=tlv.seq())):
        der = asked(office, mallory, key, statement=statement)
        error = refused(office, mallory, der)
        assert (type(error), error.rule) == (CertificateError, "REQ-006")
    assert "REQ-006" in refused_by_the_issuer(office, mallory, der, CertificateKind.ENCRYPTION)


def test_32_a_request_that_somebody_else_signed(office: Office, mallory: Kms, globex: Kms) -> None:
    """Presented as one's own it fails at the signature; with the thief's name in it, too."""
    theirs = globex.encryption_request(office, kem.generate())
    for der in (theirs, globex.identity_request(office.clock.now())):
        assert isinstance(refused(office, mallory, der), SignatureError)
    renamed = asked(office, mallory, kem_key(COMPOSITE, sound(KemAlgorithm.COMPOSITE)), sign=globex.identity.sign)
    assert refused(office, mallory, renamed).rule == "REQ-005"
    assert "REQ-005" in refused_by_the_issuer(office, mallory, renamed, CertificateKind.ENCRYPTION)


def test_32_a_certificate_in_somebody_elses_name(office: Office, mallory: Kms, globex: Kms) -> None:
    """Signed by the thief's own key, with the victim's address in it."""
    der = asked(
        office, Kms(globex.address, identity=mallory.identity), sound_key(), statement=mallory.statement(office)
    )
    error = refused(office, mallory, der)
    assert (type(error), error.rule) == (WrongPartyError, "REQ-003")
    assert "is not the one that was stored" in refused_by_the_issuer(office, mallory, der, CertificateKind.ENCRYPTION)


def sound_key() -> bytes:
    """Return a good composite key."""
    return kem_key(COMPOSITE, sound(KemAlgorithm.COMPOSITE))


def test_32_an_identity_key_of_somebody_else(office: Office, globex: Kms) -> None:
    """To enrol with a key one has to sign with it; a request that its owner signed names its owner."""
    address = parse_address(f"mallory/n{secrets.token_hex(4)}")
    thief = Kms(address)
    now = office.clock.now()
    reference, secret = office.invite("mallory")
    claimed = requests.identity_request(address, globex.spki, sign=thief.identity.sign, signing_time=now)
    with pytest.raises(SignatureError):
        access.enroll(office.deps, Enrolment(reference, secret, address, thief.access_public, claimed))
    replayed = globex.identity_request(now)
    with pytest.raises(WrongPartyError):
        access.enroll(office.deps, Enrolment(reference, secret, address, thief.access_public, replayed))
    with pytest.raises(KeymailboxError):
        # As a second globex: the address is taken, and no invitation of mallory's is for it.
        access.enroll(office.deps, Enrolment(reference, secret, globex.address, thief.access_public, replayed))
    with pytest.raises(ConflictError):
        # Its owner may not use it for two instances either: one revocation would not know which.
        twin = Kms(address, identity=globex.identity)
        access.enroll(office.deps, twin.enrolment(reference, secret, now=now))
    access.enroll(office.deps, thief.enrolment(reference, secret, now=now))


# Keys that are not for this


def test_31_a_key_that_was_lost_does_not_come_back(office: Office, globex: Kms) -> None:
    """After keyCompromise the same key is refused, for encryption and for the identity."""
    private = kem.generate()
    record = office.publish(globex, private)
    certificates.revoke(office.deps, globex.caller(office), globex.revocation(office, record.fingerprint))
    office.clock.step(timedelta(seconds=1))
    again = globex.encryption_request(office, private)
    assert isinstance(refused(office, globex, again), RevokedError)
    assert "does not come back" in refused_by_the_issuer(office, globex, again, CertificateKind.ENCRYPTION)
    identity = certificates.lookup(office.deps, globex.address).identity
    wish = globex.revocation(office, identity.fingerprint, Reason.KEY_COMPROMISE)
    certificates.revoke(office.deps, globex.caller(office), wish)
    office.clock.step(timedelta(seconds=1))
    renewal = globex.identity_request(office.clock.now())
    assert isinstance(refused(office, globex, renewal), RevokedError)
    assert "does not come back" in refused_by_the_issuer(office, globex, renewal, CertificateKind.IDENTITY)


def test_31_the_identity_key_is_no_encryption_key(office: Office) -> None:
    """ECDSA and ECDH keys look the same: one that signs is not certified to agree with, be it mine or another's."""
    both = []
    for _ in range(2):
        kms = Kms(parse_address(f"acme/n{secrets.token_hex(4)}"), identity=new_signing_key(S.ECDSA_P256))
        now = office.clock.now()
        request = requests.identity_request(
            kms.address, kms.spki, sign=kms.identity.sign, signing_time=now, algorithm=S.ECDSA_P256
        )
        reference, secret = office.invite("acme")
        access.enroll(office.deps, Enrolment(reference, secret, kms.address, kms.access_public, request))
        office.work()
        both.append(kms)
    mine, other = both
    own = asked(office, mine, mine.spki, algorithm=S.ECDSA_P256)
    assert refused(office, mine, own).rule == "REQ-005"
    assert "REQ-005" in refused_by_the_issuer(office, mine, own, CertificateKind.ENCRYPTION)
    theirs = asked(office, mine, other.spki, algorithm=S.ECDSA_P256)
    assert isinstance(refused(office, mine, theirs), ConflictError)


def test_31_the_tests_would_notice() -> None:
    """The keys are what they are called: sizes, factors and points are checked by other means than ours."""
    assert all(divisible(by) % by == 0 and divisible(by).bit_length() == 3072 for by in FACTORS.values())
    assert (prod(FACTORS.values()), modulus(3072).bit_length()) == (4506, 3072)
    with pytest.raises(ValueError, match="Invalid EC key"):
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), beside(point_of(ec.SECP256R1())))
    assert keys.parse_spki(ec_key(P_384, point_of(ec.SECP384R1())))[0] is EcAlgorithm.P_384
