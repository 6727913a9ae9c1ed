"""Objects are shown by name, with what they keep and break; nothing secret and nothing that moves a terminal."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12
from cryptography.x509.oid import NameOID

from pki.core import asn1, envelope, keyattributes, keys, oids, packages, receipts, revocations, signing
from pki.core.capabilities import prefer
from pki.core.crl import Reason
from pki.core.errors import MalformedError
from pki.core.ids import deposit_id, fingerprint
from pki.core.kem import Hkdf, KemAlgorithm
from pki.core.packages import KeyMaterial
from pki.core.policy import RULES
from pki.core.receipts import RefusalReason
from pki.tenant.commands.outlines import _who, record
from pki.tenant.objects import looking
from pki.tenant.objects.kinds import Kind, kind_of
from pki.tenant.objects.looking import Party, look
from pki.tenant.objects.outline import MAX_LISTED, Node, name_text, safe
from pki.tenant.objects.people import parse
from pki.tenant.objects.reading import Source, decode_all
from tests.kit.authority import NOW, PACKAGE_ID, acme, authority, globex

SCHEMA = json.loads((Path(__file__).parents[3] / "schemas" / "object.schema.json").read_text())
SECRET = bytes(range(0x40, 0x60))
SIGN: dict[str, Any] = {"signer_ski": globex().ski, "sign": globex().key.sign, "signing_time": NOW}


def private_key() -> bytes:
    """Return a PKCS #8 key of the composite in DER."""
    algorithm = asn1.AlgorithmIdentifier(algorithm=oids.ML_KEM_768_X25519, parameters=None)
    return asn1.encode(
        keys.PrivateKeyInfo(
            version=0, algorithm=algorithm, private_key=acme().private, attributes=None, public_key=None
        )
    )


def objects() -> dict[str, tuple[Kind, bytes]]:
    """Return one object of each kind."""
    identifier = deposit_id(PACKAGE_ID)
    said = keyattributes.KeyAttributes(receivers=(acme().address,), purpose=keyattributes.KeyPurpose.OPERATIONAL)
    preferred = prefer(KemAlgorithm.COMPOSITE, Hkdf.SHA512)
    assert preferred is not None
    plain = envelope.wrap(b"hello", oids.DATA, [acme().recipient])
    return {
        "deposit": (Kind.DEPOSIT, acme().deposit(globex())),
        "envelope": (Kind.ENVELOPE, plain),
        "signed": (Kind.SIGNED, signing.sign(oids.CONTENT_INFO, plain, extra={}, **SIGN)),
        "receipt": (Kind.RECEIPT, receipts.compose_receipt(identifier, bytes(64), globex().address, **SIGN)),
        "refusal": (
            Kind.REFUSAL,
            receipts.compose_refusal(identifier, bytes(64), globex().address, RefusalReason.NOT_WANTED, **SIGN),
        ),
        "revocation": (
            Kind.REVOCATION,
            revocations.compose_revocation(fingerprint(b""), Reason.SUPERSEDED, **SIGN),
        ),
        "identity request": (Kind.REQUEST, acme().identity_request),
        "encryption request": (Kind.REQUEST, acme().encryption_request),
        "identity": (Kind.CERTIFICATE, acme().identity_der),
        "encryption": (Kind.CERTIFICATE, acme().encryption_der),
        "root": (Kind.CERTIFICATE, authority().root_der),
        "list": (Kind.CRL, authority().crl_der([77])),
        "empty list": (Kind.CRL, authority().crl_der()),
        "symmetric package": (Kind.PACKAGE, packages.encode_package(KeyMaterial(SECRET, attributes=said))[1]),
        "asymmetric package": (
            Kind.PACKAGE,
            packages.encode_package(KeyMaterial(private_key(), packages.PKCS8, said))[1],
        ),
        "capabilities": (Kind.CAPABILITIES, preferred.der),
        "public": (Kind.PUBLIC, acme().kem_spki),
        "private": (Kind.PRIVATE, private_key()),
        "sealed": (Kind.ENCRYPTED, bytes.fromhex("3011300b060960864801650304040204020102")),
        "unknown": (Kind.UNKNOWN, bytes.fromhex("3006020101040142")),
    }


def source(der: bytes, name: str = "file") -> Source:
    """Return an object as it comes out of a file."""
    return next(decode_all(der, name=name))


def nodes(tree: Node) -> list[Node]:
    """Return all nodes of a tree."""
    return [tree, *(found for item in tree.items for found in nodes(item))]


@pytest.mark.parametrize("name", objects())
def test_each_kind_is_known_and_its_record_keeps_the_schema(name: str) -> None:
    """What it is, in the words of the schema; every node lies where it says."""
    kind, der = objects()[name]
    assert kind_of(der) is kind
    seen = look(source(der))
    jsonschema_rs.validate(SCHEMA, [json.loads(json.dumps(record(seen)))], validate_formats=True)
    for node in nodes(seen.tree):
        assert 0 <= node.offset < node.offset + node.size <= len(der)
    if kind not in (Kind.UNKNOWN, Kind.ENCRYPTED):
        unexpected = [one for one in nodes(seen.tree) if "not expected" in one.name or "cannot be read" in one.value]
        assert unexpected == []
    for verdict in seen.verdicts:
        assert set(verdict.rules) <= set(RULES)
        assert verdict.broken is None or name == "root"


@pytest.mark.parametrize("name", ["symmetric package", "asymmetric package", "private", "unknown"])
def test_no_key_is_shown(name: str) -> None:
    """Neither in hex nor in base64, neither whole nor in parts, and no digest of it."""
    _, der = objects()[name]
    seen = look(source(der))
    text = json.dumps(record(seen))
    for secret in (SECRET, acme().private[:32], acme().private[-32:], b"\x42"):
        if secret in der and len(secret) > 1:
            assert secret[:8].hex() not in text
            assert base64.b64encode(secret)[:10].decode() not in text
    assert seen.sha256 == ""


def test_raw_old_private_keys_show_sizes_alone() -> None:
    """A private key in a form that is not known is a tree of sizes."""
    number = int.from_bytes(b"\x71" * 128, "big")
    body = asn1.encode(0) + asn1.encode(number) + asn1.encode(SECRET)
    seen = look(source(b"\x30\x81" + bytes([len(body)]) + body))
    text = json.dumps(record(seen))
    assert seen.kind is Kind.UNKNOWN
    assert "71717171" not in text
    assert SECRET.hex()[:8] not in text


def test_a_deposit_tells_for_whom_and_by_whom() -> None:
    """Key identifiers, and the subject of a certificate that fits; context and rules in the tree."""
    der = acme().deposit(globex())
    seen = look(source(der), [parse(globex().encryption_der), parse(acme().identity_der)])
    (whom,) = seen.recipients
    assert (whom.ski, whom.algorithm) == (globex().kem_ski.hex(), "MLKEM768-X25519-SHA3-256")
    assert "globex/main" in whom.certificate
    assert seen.signer is not None
    assert "acme/eu-west" in seen.signer.certificate
    assert seen.signed_at == NOW.isoformat()
    told = {node.name: node.value for node in nodes(seen.tree)}
    assert (told["sender"], told["recipient"], told["key"]) == ("acme/eu-west", "globex/main", "orders-2030")
    assert [one.broken for one in seen.verdicts] == [None, None]
    assert "DEP-003" in seen.verdicts[0].rules
    assert "DEP-003" not in seen.verdicts[1].rules


def test_the_first_broken_rule_is_told_with_its_offset() -> None:
    """Strict and read each say which rule, what, and where."""
    der = envelope.wrap(b"hello", oids.DATA, [acme().recipient])
    at = der.rfind(b"\x02\x01\x10\x80")
    broken = der[: at + 2] + b"\x0d" + der[at + 3 :]
    for verdict in look(source(broken)).verdicts:
        assert verdict.broken is not None
        assert verdict.broken.rule == "ENV-010"
        assert verdict.broken.offset is not None
        assert abs(verdict.broken.offset - at) < 20


def test_the_profiles_differ() -> None:
    """A recipient by issuer and serial keeps read, and breaks strict."""
    certificate = parse(acme().encryption_der)
    foreign = replace(acme().recipient, ski=b"", issuer_serial=certificate.issuer_serial)
    seen = look(source(envelope.wrap(b"hello", oids.DATA, [foreign])), [certificate])
    strict, read = seen.verdicts
    assert strict.broken is not None
    assert (strict.broken.rule, read.broken) == ("ENV-005", None)
    assert (seen.recipients[0].issuer, seen.recipients[0].certificate) == (certificate.issuer, certificate.subject)


def test_nothing_moves_the_terminal() -> None:
    """Escapes, line ends and bidirectional tricks in an object are written as escapes."""
    evil = "a\x1b]0;owned\x07\x1b[2J\r\n\u202egnp.exe\u0000\x9b1m"
    context = asn1.DepositContext(
        version=1,
        sender=evil,
        recipient="b",
        key_id=evil,
        key_version=1,
        purpose=evil,
        expires=asn1.GeneralizedTime(NOW),
    )
    extra = {oids.DEPOSIT_CONTEXT: asn1.encode(context)}
    der = signing.sign(oids.DATA, b"x", extra=extra, **SIGN)
    seen = look(source(der, name="file\x1b[2J"))
    jsonschema_rs.validate(SCHEMA, [record(seen)])
    everything = "".join(one.name + one.value for one in nodes(seen.tree)) + seen.file
    assert everything.isprintable()
    assert "\\x1b]0;owned" in everything
    assert safe("[red]markup[/red]") == "[red]markup[/red]"
    assert safe("x" * 1000).endswith("…")


def test_odd_names_and_serials_warn_nobody() -> None:
    """A country of three letters is shown, and a serial number of zero refused, without a warning of the library."""
    named = bytes.fromhex("300e310c300a06035504061303414243")
    assert name_text(named) == "C=ABC"
    serial = asn1.encode(acme().seed * 10)
    with pytest.raises(MalformedError, match="serial"):
        parse(acme().identity_der.replace(serial, b"\x02\x01\x00", 1))


def test_large_and_odd_objects_are_shown_in_bounds() -> None:
    """A list of sixty thousand and a nesting of sixty: counted, cut, quick."""
    many = b"\x02\x01\x00" * 60_000
    wide = b"\x30\x83" + len(many).to_bytes(3, "big") + many
    start = time.thread_time()
    seen = look(source(wide))
    assert time.thread_time() - start < 2
    assert len(nodes(seen.tree)) <= MAX_LISTED + 2
    deep = b"\x05\x00"
    for _ in range(60):
        deep = b"\x30" + bytes([len(deep)]) + deep if len(deep) < 128 else b"\x30\x81" + bytes([len(deep)]) + deep
    assert "too much" in json.dumps(record(look(source(deep))))


def test_a_tree_is_no_larger_than_its_limit() -> None:
    """A list shows its first members and the count of the rest."""
    crl = authority().crl_der(range(1, 400))
    revoked = next(one for one in nodes(look(source(crl)).tree) if one.name == "revoked")
    assert revoked.value == f"399, of which {MAX_LISTED} are shown"
    assert len(revoked.items) == MAX_LISTED


def test_the_rules_of_form_exist() -> None:
    """No table names a rule that is none."""
    assert {rule for rules in looking._FORM.values() for rule in rules} <= set(RULES)


def test_show_prints_a_tree(tmp_path: Path) -> None:
    """The real command line: tree, recipients, signer and verdicts on stdout; JSON keeps the schema."""
    file, mine = tmp_path / "deposit.der", tmp_path / "mine.der"
    file.write_bytes(acme().deposit(globex()))
    mine.write_bytes(globex().encryption_der)
    shown = kmb("object", "show", str(file), "--cert", str(mine))
    assert shown.returncode == 0, shown.stderr
    assert "deposit: " in shown.stdout
    assert "strict     keeps SIG-001 to 005, ENV-001 to 015, DEP-001 to 004" in shown.stdout
    assert "globex/main" in shown.stdout
    told = json.loads(kmb("object", "show", str(file), "--json").stdout)
    jsonschema_rs.validate(SCHEMA, told, validate_formats=True)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(b"".join(pem(der) for der in (acme().identity_der, authority().issuing_der)))
    assert [one["kind"] for one in json.loads(kmb("object", "show", str(chain), "--json").stdout)] == [
        "certificate"
    ] * 2


def kmb(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the real program, without a home."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KMB_")}
    return subprocess.run(
        [sys.executable, "-m", "pki.tenant.cli", *arguments],
        env=clean | {"KMB_HOME": "/nonexistent", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def pem(der: bytes) -> bytes:
    """Return a certificate in PEM."""
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def test_a_source_keeps_its_bytes_to_itself() -> None:
    """What was read may be a key: it is in no representation."""
    assert SECRET.hex() not in repr(source(objects()["symmetric package"][1]))
    assert "der=" not in repr(source(objects()["private"][1]))


def test_what_is_nobodys_has_no_name_of_ours() -> None:
    """A PKCS #12 file is no list of capabilities, and a recipient without a name is called so."""
    key = ec.generate_private_key(ec.SECP256R1())
    bag = pkcs12.serialize_key_and_certificates(b"mine", key, None, None, serialization.NoEncryption())
    assert kind_of(bag) is Kind.UNKNOWN
    assert _who(Party("", "", "", "key encryption key")) == "somebody unnamed"


def test_forms_of_signed_data_that_are_not_taken_are_named() -> None:
    """Detached signatures, and what brings certificates along, where nothing else is wrong."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "me")])
    start = datetime(2030, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, start, start + timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA256())
    maker = pkcs7.PKCS7SignatureBuilder().set_data(b"content").add_signer(certificate, key, hashes.SHA256())
    options = [pkcs7.PKCS7Options.Binary, pkcs7.PKCS7Options.NoCapabilities]
    for more, message in (
        ([pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.NoCerts], "detached"),
        ([], "certificates"),
    ):
        der = maker.sign(serialization.Encoding.DER, [*options, *more])
        strict = look(next(decode_all(der))).verdicts[0].broken
        assert strict is not None
        assert message in strict.message
