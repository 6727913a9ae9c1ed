"""docs/protocol.md is true where that can be computed: numbers, endpoints, codes, and the example, byte by byte."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import composites, deposits, errors, httpsig, oids, packages, policy
from pki.core.errors import KeymailboxError
from pki.core.policy import RULES
from pki.core.receipts import RefusalReason
from pki.server.api import problems
from tests.kit.authority import KEY, NOW, acme, globex

HOUSE = Path(__file__).parents[2]
TEXT = (HOUSE / "docs" / "protocol.md").read_text()
EXAMPLE = (HOUSE / "docs" / "example" / "deposit.pem").read_text()
RULE = re.compile(r"\b([A-Z]{3})-(\d{3})\b")
HEX = r"[0-9a-f]{2}"
LINE = re.compile(rf"^ *(\d+) +({HEX}(?: {HEX})*)(?: …)?(?: .*)?$")


def section(number: str) -> str:
    """Return a section of the text with what is below it, found by the number in its heading."""
    level = "#" * (2 + number.count("."))
    found = re.search(rf"^{level} {re.escape(number)} .*?(?=^#{{1,{len(level)}}} \d|\Z)", TEXT, re.M | re.S)
    assert found, number
    return found[0]


def rows(number: str) -> Iterator[list[str]]:
    """Return the cells of the tables in a section, without the heads."""
    for line in section(number).splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def known_oids() -> set[str]:
    """Return every object identifier of the code."""
    held = [value for name, value in vars(oids).items() if name.isupper()]
    listed = [one for value in held for one in (value if isinstance(value, tuple) else (value,))]
    return {one.dotted_string for one in (*listed, *composites.SUPPORTED) if isinstance(one, Oid)}


def test_the_object_identifiers_are_those_of_the_code() -> None:
    """The table has all the numbers of the code and no others."""
    told = re.findall(r"`(\d+(?:\.\d+)+)`", section("3"))
    assert len(told) == len(set(told))
    assert set(told) == known_oids()


def test_the_endpoints_are_those_of_the_schema() -> None:
    """The table lists each request of schemas/openapi.json once."""
    schema = json.loads((HOUSE / "schemas" / "openapi.json").read_text())
    served = {f"{method.upper()} {path}" for path, methods in schema["paths"].items() for method in methods}
    told = [cells[0].strip("`") for cells in rows("10.2")][1:]
    assert sorted(told) == sorted(served)
    signed = {
        f"{method.upper()} {path}"
        for path, methods in schema["paths"].items()
        for method, route in methods.items()
        if route.get("security")
    }
    unsigned = {cells[0].strip("`") for cells in rows("10.2") if cells[1] == "open"}
    assert unsigned <= served - signed


def test_the_rules_that_are_named_exist() -> None:
    """Each rule in the text is in the list of rules, and each family is named."""
    families = {name[:3] for name in RULES}
    told = {f"{family}-{number}" for family, number in RULE.findall(TEXT) if family in families}
    assert told <= set(RULES)
    assert {name[:3] for name in told} == families


def test_the_refusals_are_those_of_the_code() -> None:
    """The table has the codes and words of the code."""
    told = {(int(cells[0]), cells[1]) for cells in rows("8") if cells[0].isdigit()}
    assert told == {(reason.number, reason.word) for reason in RefusalReason}


def test_the_errors_have_the_codes_and_statuses_of_the_server() -> None:
    """The table has each code that the API can answer, beside its status."""
    told = {
        (int(cells[0]), code)
        for cells in rows("10.3")
        if cells[0].isdigit()
        for code in re.findall(r"`(.+?)`", cells[1])
    }

    def family(kind: type[KeymailboxError]) -> Iterator[type[KeymailboxError]]:
        yield kind
        for below in kind.__subclasses__():
            if below.__module__ == errors.__name__:
                yield from family(below)

    known = {(problems.status(kind()), kind.code) for kind in family(KeymailboxError)}
    assert told == {(status, code) for status, code in known if status != 500}


def test_the_links_lead_somewhere() -> None:
    """Files that the text points at are there, and so are its own sections."""
    titles = re.findall(r"^#+ (.+)$", TEXT, re.M)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"`[^`]*`", "", TEXT)):
        if target.startswith("#"):
            assert target[1:] in anchors
        else:
            assert (HOUSE / "docs" / target).exists(), target


def test_the_signed_request_is_as_shown() -> None:
    """The example of a signed request comes out of the code, and is accepted by it."""
    key = Ed25519PrivateKey.from_private_bytes(bytes([0x0D]) * 32)
    name = httpsig.key_id(key.public_key().public_bytes_raw())
    shown = dict(re.findall(r"^    ([A-Z][\w-]+): (.+)$", section("10.1"), re.M))
    base: list[bytes] = []

    def sign(message: bytes) -> bytes:
        base.append(message)
        return key.sign(message)

    headers = {field: shown[field] for field in ("Content-Type", "Idempotency-Key")}
    made = httpsig.sign_request(
        "POST",
        "https://mail.example/v1/deposits",
        headers,
        bytes.fromhex("3000"),
        key_id=name,
        sign=sign,
        created=NOW,
        nonce="00112233445566778899aabbccddeeff",
    )
    assert made.items() <= shown.items()
    assert "\n".join(re.findall(r'^    (".+)$', section("10.1"), re.M)).encode() == base[0]


def example() -> bytes:
    """Return the deposit of the example."""
    found = re.search(r"-----BEGIN CMS-----\n(.+)\n-----END CMS-----\n\Z", EXAMPLE, re.S)
    assert found
    return base64.b64decode(found[1])


def test_each_line_of_the_example_has_the_bytes_of_the_file() -> None:
    """The annotated dump has the file's bytes at its offsets, in order and without a gap but where it says so."""
    der = example()
    block = section("14").split("```")[1]
    lines = [LINE.match(line) for line in block.strip("\n").splitlines()]
    assert all(lines)
    end = 0
    for line in lines:
        assert line
        offset, shown = int(line[1]), bytes.fromhex(_exact(line[0]))
        assert der[offset : offset + len(shown)] == shown, line[0]
        assert end <= offset, line[0]
        end = offset + len(shown)
    assert len(lines) > 70


def test_the_example_verifies_and_opens_to_what_is_said() -> None:
    """A sender and a recipient made from the seeds find what the text says, computed without the core's envelope."""
    der = example()
    deposit = deposits.parse_deposit(der)
    verified = policy.verify_deposit(
        deposit, sender=acme().verified(), crl=None, recipient_skis={globex().kem_ski}, now=NOW
    )
    assert (str(verified.context.sender), verified.context.key_id) == ("acme/eu-west", "orders-2030")
    told = {cells[0].split(",")[0]: cells[1].strip("`") for cells in rows("14") if cells[1].startswith("`")}
    computed = _on_the_way(der, deposit)
    assert told == {name: value.hex() for name, value in computed.items()}
    material = _decoded(computed["key package"])
    assert (material.key, material.media_type) == (KEY.key, KEY.media_type)


@pytest.mark.parametrize("word", ["Expected:", "ML-DSA-65 from the seed 0b × 32", "private key 0c × 96"])
def test_the_example_says_how_it_was_made(word: str) -> None:
    """The head of the file names seeds and expectation."""
    assert word in EXAMPLE


def _exact(line: str) -> str:
    # Two letters of the remark may look like hex: more than one space ends the bytes.
    return re.split(r" {2,}| …", line.strip().split(None, 1)[1])[0]


def _on_the_way(der: bytes, deposit: Any) -> dict[str, bytes]:
    private = globex().private
    sent = der[160:1280]
    ml, x = MLKEM768PrivateKey.from_seed_bytes(private[:64]), X25519PrivateKey.from_private_bytes(private[64:])
    ss_m, ct_x = ml.decapsulate(sent[:1088]), sent[1088:]
    ss_x, pk_x = x.exchange(X25519PublicKey.from_public_bytes(ct_x)), x.public_key().public_bytes_raw()
    shared = hashlib.sha3_256(ss_m + ss_x + ct_x + pk_x + bytes.fromhex("5c2e2f2f5e5c")).digest()
    info = bytes.fromhex("3010300b060960864801650304012d020120")
    kek = HKDF(SHA256(), 32, None, info).derive(shared)
    content_key = aes_key_unwrap(kek, der[1313:1353])
    aad, signed = b"\x31" + der[1494:1625], b"\x31" + der[1690:2027]
    package = AESGCM(content_key).decrypt(der[1386:1398], der[1403:1493] + der[1627:1643], aad)
    assert hashlib.sha512(der[66:1643]).digest() == der[1768:1832]
    return {
        "ss_M": ss_m,
        "ss_X": ss_x,
        "ct_X": ct_x,
        "pk_X": pk_x,
        "shared secret": shared,
        "info of HKDF": info,
        "key-encryption key": kek,
        "content key": content_key,
        "SHA-256 of the additional data": hashlib.sha256(aad).digest(),
        "SHA-256 of what is signed": hashlib.sha256(signed).digest(),
        "key package": package,
        "deposit digest": deposit.sha512,
    }


def _decoded(package: bytes) -> packages.KeyMaterial:
    return packages.decode_package(oids.SYMMETRIC_KEY_PACKAGE, package)
