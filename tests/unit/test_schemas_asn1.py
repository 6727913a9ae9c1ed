"""The ASN.1 module compiles, and says the same as the code, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import asn1tools
import pytest

from pki.core import (
    asn1,
    crl,
    deposits,
    keyattributes,
    keys,
    oids,
    receipts,
    recipients,
    requests,
    revocations,
    signing,
)
from pki.core.agreement import SharedInfo
from pki.core.capabilities import parse_capabilities
from pki.core.crl import Reason
from pki.core.entities import entity
from pki.core.errorcodes import NUMBERED
from pki.core.ids import Fingerprint, fingerprint
from pki.core.kem import Hkdf
from pki.core.keyattributes import KeyAttributes, KeyPurpose, Period
from pki.core.keys import EcAlgorithm, KemAlgorithm
from pki.core.officers import Officer, officers_tbs
from pki.core.orders import LIFETIME, CapLift, OrderId, RevocationOrder, compose_approval, compose_order
from pki.core.packages import PKCS8, KeyMaterial, encode_package
from pki.core.receipts import RefusalReason
from tests.kit.authority import KEY, NOW, PACKAGE_ID, acme, globex

SCHEMAS = Path(__file__).parents[2] / "schemas"
MODULE = (SCHEMAS / "keymailbox.asn1").read_text()
IMPORTED = (SCHEMAS / "imported.asn1").read_text()
NAME = "Keymailbox-1"

CONTEXT = acme().context(globex())
DEPOSIT = acme().deposit(globex())
PARSED = deposits.parse_deposit(DEPOSIT)
SIGNER: dict[str, Any] = {"signer_ski": globex().ski, "sign": globex().key.sign, "signing_time": NOW}
RECEIPT = receipts.compose_receipt(PARSED.id, PARSED.sha512, globex().address, **SIGNER)
REVOCATION = revocations.compose_revocation(fingerprint(acme().identity_der), Reason.SUPERSEDED, **SIGNER)
SAID = KeyAttributes(
    algorithm=oids.AES256_GCM,
    purpose=KeyPurpose.OPERATIONAL,
    validity=Period(NOW, datetime(2031, 1, 1, tzinfo=UTC)),
    distribution=Period(None, datetime(2032, 1, 1, tzinfo=UTC)),
    receivers=(globex().address, acme().address),
)


@cache
def compiled(module: str = MODULE) -> Any:
    """Return the module with what it imports, compiled for DER."""
    return asn1tools.compile_string(module + IMPORTED, "der")


def through(kind: str, der: bytes, *, module: str = MODULE) -> Any:
    """Decode with the module and its constraints, demand the same bytes back, and return the value."""
    value = compiled(module).decode(kind, der, check_constraints=True)
    assert compiled(module).encode(kind, value, check_constraints=True) == der
    return value


def refused(der: bytes, kind: str, *, module: str = MODULE) -> bool:
    """Return whether the module finds no such value, or another encoding for it."""
    try:
        through(kind, der, module=module)
    except (asn1tools.Error, AssertionError):
        return True
    return False


def refusal(reason: RefusalReason) -> bytes:
    """Return a refusal of the deposit."""
    return receipts.compose_refusal(PARSED.id, PARSED.sha512, globex().address, reason, **SIGNER)


def content(signed: bytes) -> bytes:
    """Return what is signed, found with the module."""
    value = through("SignedObjectProfile", signed)
    return bytes(value["content"]["encapContentInfo"]["eContent"])


def attributes(listed: list[dict[str, Any]]) -> Mapping[str, bytes]:
    """Return attributes by number, with their one value each."""
    assert all(len(one["attrValues"]) == 1 for one in listed)
    found = {one["attrType"]: one["attrValues"][0] for one in listed}
    assert len(found) == len(listed)
    return found


def signed_attributes(signed: bytes) -> Mapping[str, bytes]:
    """Return the signed attributes, found with the module."""
    (info,) = through("SignedObjectProfile", signed)["content"]["signerInfos"]
    return attributes(info["signedAttrs"])


def numbers(module: str = MODULE) -> Mapping[str, str]:
    """Return the module's object identifiers, resolved."""
    values = asn1tools.parse_string(module + IMPORTED)[NAME]["values"]

    def resolve(parts: list[Any]) -> list[int]:
        found: list[int] = []
        for part in parts:
            if isinstance(part, str):
                found += resolve(values[part]["value"])
            else:
                found.append(part[1] if isinstance(part, tuple) else int(part))
        return found

    return {name: ".".join(map(str, resolve(held["value"]))) for name, held in values.items()}


def enumeration(kind: str) -> Mapping[str, int]:
    """Return the names and numbers of an ENUMERATED or INTEGER of the module."""
    declared = asn1tools.parse_string(MODULE + IMPORTED)[NAME]["types"][kind]
    return dict(declared["values"]) if "values" in declared else dict(declared["named-numbers"])


def test_the_numbers_are_those_of_the_code() -> None:
    """Object identifiers that the module assigns are the code's."""
    told = numbers()
    ours = {
        "id-depositContext": oids.DEPOSIT_CONTEXT,
        "id-depositDigest": oids.DEPOSIT_DIGEST,
        "id-mediaType": oids.MEDIA_TYPE,
        "id-revocationRequest": oids.REVOCATION_REQUEST,
        "id-revocationOrder": oids.REVOCATION_ORDER,
        "id-capLift": oids.CAP_LIFT,
        "id-orderApproval": oids.ORDER_APPROVAL,
        "id-officerList": oids.OFFICER_LIST,
        "id-kma-keyAlgorithm": oids.KEY_ALGORITHM,
        "id-kma-keyPurpose": oids.KEY_PURPOSE,
        "id-kma-keyValidityPeriod": oids.KEY_VALIDITY_PERIOD,
        "id-kma-keyDistPeriod": oids.KEY_DISTRIBUTION_PERIOD,
        "id-kma-keyPkgReceiversV2": oids.KEY_PACKAGE_RECEIVERS,
    }
    assert {name: told[name] for name in ours} == {name: oid.dotted_string for name, oid in ours.items()}
    assert told["id-refusals"] == oids.REFUSAL_ARC


def test_the_context_has_the_same_value_and_bytes() -> None:
    """A context of the code is read and written by the module, field by field."""
    value = through("DepositContext", CONTEXT.encode())
    assert value == {
        "version": 1,
        "sender": "acme/eu-west",
        "recipient": "globex/main",
        "keyId": CONTEXT.key_id,
        "keyVersion": CONTEXT.key_version,
        "purpose": CONTEXT.purpose,
        "expires": CONTEXT.expires.replace(tzinfo=None),
    }
    other = compiled().encode("DepositContext", {**value, "keyVersion": 7}, check_constraints=True)
    assert deposits.decode_context(other).key_version == 7


@pytest.mark.parametrize(
    ("field", "value"),
    [("version", 2), ("sender", "ACME/x"), ("keyId", "no space"), ("keyVersion", 0), ("purpose", "p" * 129)],
)
def test_the_bounds_of_the_context_are_those_of_the_code(field: str, value: object) -> None:
    """What the module's constraints exclude, the code refuses."""
    held = {**through("DepositContext", CONTEXT.encode()), field: value}
    with pytest.raises(asn1tools.ConstraintsError):
        compiled().encode("DepositContext", held, check_constraints=True)
    with pytest.raises(Exception, match="DEP-002"):
        deposits.decode_context(compiled().encode("DepositContext", held))


def test_a_deposit_is_read_by_the_module_to_its_innermost_part() -> None:
    """Each layer of a deposit that the code made comes out of the module with the same bytes."""
    outer = through("SignedObjectProfile", DEPOSIT)
    assert outer["contentType"] == oids.SIGNED_DATA.dotted_string
    assert outer["content"]["encapContentInfo"]["eContentType"] == oids.CONTENT_INFO.dotted_string
    (info,) = outer["content"]["signerInfos"]
    assert info["sid"] == acme().ski
    signed = attributes(info["signedAttrs"])
    assert signed[oids.DEPOSIT_CONTEXT.dotted_string] == CONTEXT.encode()
    request = signed[oids.KEY_PACKAGE_ID_AND_RECEIPT_REQUEST.dotted_string]
    profile = through("KeyPkgIdentifierAndReceiptReqProfile", request)
    standard = through("KeyPkgIdentifierAndReceiptReq", request)
    assert profile["pkgID"] == standard["pkgID"] == PACKAGE_ID
    assert profile["receiptReq"]["receiptsTo"] == standard["receiptReq"]["receiptsTo"]
    envelope = through("EnvelopeProfile", outer["content"]["encapContentInfo"]["eContent"])
    assert envelope["contentType"] == oids.AUTH_ENVELOPED_DATA.dotted_string
    inner = envelope["content"]
    assert attributes(inner["authAttrs"])[oids.DEPOSIT_CONTEXT.dotted_string] == CONTEXT.encode()
    (recipient,) = inner["recipientInfos"]
    kind, held = recipient
    assert (kind, held["oriType"]) == ("ori", oids.KEM_RECIPIENT_INFO.dotted_string)
    assert held["oriValue"]["rid"] == globex().kem_ski
    assert len(held["oriValue"]["kemct"]) == globex().algorithm.ciphertext_size


def test_what_hkdf_is_told_is_the_modules() -> None:
    """The info of HKDF has the same bytes."""
    wrap = asn1.AlgorithmIdentifier(algorithm=oids.AES256_WRAP, parameters=None)
    for ukm in (None, b"ukm"):
        value = through("KEMOtherInfoProfile", asn1.encode(asn1.KemOtherInfo(wrap=wrap, kek_length=32, ukm=ukm)))
        assert value.get("ukm") == ukm


@pytest.mark.parametrize("ukm", [None, b"ukm"])
@pytest.mark.parametrize("algorithm", keys.ALGORITHMS.values(), ids=lambda one: one.title)
def test_recipients_of_each_kind_are_the_modules(algorithm: keys.KeyAlgorithm, ukm: bytes | None) -> None:
    """A recipient of each algorithm comes out of the module under its choice, with the same bytes."""
    public = keys.public_from_private(algorithm, keys.generate(algorithm))
    recipient = recipients.Recipient(globex().kem_ski, algorithm, public)
    der = asn1.encode(recipients.make(recipient, bytes(32), ukm=ukm))
    kind, held = through("RecipientInfoProfile", der)
    if isinstance(algorithm, KemAlgorithm):
        assert (kind, held["oriValue"].get("ukm")) == ("ori", ukm)
    elif isinstance(algorithm, EcAlgorithm):
        assert (kind, held.get("ukm")) == ("kari", ukm)
        point, bits = held["originator"][1]["publicKey"]
        assert (len(point), bits) == (algorithm.public_size, 8 * algorithm.public_size)
    else:
        assert (kind, held["rid"]) == ("ktri", globex().kem_ski)


@pytest.mark.parametrize("ukm", [None, b"ukm"])
def test_what_the_key_agreement_is_told_is_the_modules(ukm: bytes | None) -> None:
    """The SharedInfo of the X9.63 derivation has the same bytes, and 256 bits in it."""
    wrap = asn1.AlgorithmIdentifier(algorithm=oids.AES256_WRAP, parameters=None)
    der = asn1.encode(SharedInfo(key_info=wrap, ukm=ukm, length=(256).to_bytes(4, "big")))
    value = through("ECC-CMS-SharedInfoProfile", der)
    assert (value.get("entityUInfo"), value["suppPubInfo"].hex()) == (ukm, "00000100")


def test_preferences_are_read_as_the_module_writes_them() -> None:
    """Preferences that the module writes are the code's; the first HKDF counts."""
    listed = [{"algorithm": oid.dotted_string} for oid in (oids.DATA, oids.HKDF_SHA512, oids.HKDF_SHA256)]
    said = parse_capabilities(compiled().encode("SMIMECapabilitiesProfile", listed, check_constraints=True))
    assert said.kdf is Hkdf.SHA512
    assert through("SMIMECapabilitiesProfile", said.der) == listed


def test_a_receipt_is_one_by_the_module_and_by_the_rfc() -> None:
    """A receipt has the same value and bytes as RFC 7191's type and as the profile's."""
    profile, standard = (
        through("KeyPackageReceiptProfile", content(RECEIPT)),
        through("KeyPackageReceipt", content(RECEIPT)),
    )
    assert standard == {"version": 2, "receiptOf": ("pkgID", PACKAGE_ID), "receivedBy": profile["receivedBy"]}
    assert profile["receiptOf"] == PACKAGE_ID
    assert profile["receivedBy"]["sirenType"] == oids.SIREN_DN.dotted_string
    through("Name", profile["receivedBy"]["sirenValue"])
    digest = signed_attributes(RECEIPT)[oids.DEPOSIT_DIGEST.dotted_string]
    assert through("DepositDigest", digest) == PARSED.sha512


@pytest.mark.parametrize("reason", RefusalReason)
def test_a_refusal_is_one_by_the_module_and_by_the_rfc(reason: RefusalReason) -> None:
    """A refusal carries the code's number under the module's name."""
    profile = through("KeyPackageErrorProfile", content(refusal(reason)))
    standard = through("KeyPackageError", content(refusal(reason)))
    assert profile["errorOf"] == PACKAGE_ID
    assert standard["errorOf"] == ("pkgID", PACKAGE_ID)
    assert enumeration("RefusalReason")[profile["errorCode"]] == reason.number
    assert standard["errorCode"][0] == "enum"


def test_the_lists_of_codes_are_those_of_the_code() -> None:
    """Refusal reasons, revocation reasons and purposes are the same numbers under the same words."""
    assert enumeration("RefusalReason") == {one.word: one.number for one in RefusalReason}
    assert enumeration("KeyPurposeProfile") == {one.word: one.number for one in KeyPurpose}
    assert sorted(enumeration("RevocationReason").values()) == sorted(crl.Reason)


def test_the_imported_error_codes_are_the_rfcs() -> None:
    """The companion's list of RFC 7191's codes is the code's."""
    declared = asn1tools.parse_string(IMPORTED)["KeyPackageReceiptAndErrorModuleV2"]["types"]["EnumeratedErrorCode"]
    assert {number: name for name, number in declared["values"]} == dict(NUMBERED)


def test_a_revocation_request_has_the_same_value_and_bytes() -> None:
    """A revocation request of the code is read and written by the module."""
    value = through("RevocationRequest", content(REVOCATION))
    assert value == {
        "version": 1,
        "fingerprint": bytes.fromhex(fingerprint(acme().identity_der)),
        "reason": int(Reason.SUPERSEDED),
        "requested": NOW.replace(tzinfo=None),
    }
    assert signed_attributes(REVOCATION).keys() == {
        oid.dotted_string for oid in (oids.CONTENT_TYPE, oids.SIGNING_TIME, oids.MESSAGE_DIGEST)
    }


def test_what_officers_sign_has_the_same_value_and_bytes() -> None:
    """Orders, approvals and the list of officers of the code are read and written by the module."""
    key, hashes = acme().key, (Fingerprint("00" * 32), Fingerprint("01" * 32))
    order = RevocationOrder("ann", "Because.", NOW, NOW + LIFETIME, Reason.SUPERSEDED, hashes)
    value = through("RevocationOrder", content(compose_order(order, key)))
    assert value["certificates"] == [bytes.fromhex(one) for one in hashes]
    lift = through("CapLift", content(compose_order(CapLift("ann", "x", NOW, NOW + LIFETIME, 7, LIFETIME), key)))
    assert (lift["count"], lift["seconds"]) == (7, 86400)
    approval = through("OrderApproval", content(compose_approval(OrderId("ab" * 32), "bob", key, NOW)))
    assert (approval["officer"], approval["order"].hex()) == ("bob", "ab" * 32)
    listed = (Officer("ann", key.public, NOW), Officer("bob", globex().key.public, NOW, NOW + LIFETIME))
    held = through("OfficerList", officers_tbs(3, acme().ski, NOW, listed))
    assert [one.get("removed") for one in held["officers"]] == [None, (NOW + LIFETIME).replace(tzinfo=None)]


def test_certificates_and_requests_keep_their_profiles() -> None:
    """Certificates, requests and the possession statement come out with the same bytes."""
    for der in (acme().identity_der, acme().encryption_der):
        tbs = through("CertificateProfile", der)["tbsCertificate"]
        assert tbs["subjectPublicKeyInfo"]["algorithm"].get("parameters") is None
    through("CertificationRequestProfile", acme().identity_request)
    asked = through("CertificationRequestProfile", acme().encryption_request)["certificationRequestInfo"]
    statement = attributes(asked["attributes"])[oids.POSSESSION_STATEMENT.dotted_string]
    signer = through("PossessionStatementProfile", statement)["signer"]
    said = requests.parse_request(acme().encryption_request).statement
    assert said is not None
    assert signer["serialNumber"] == said.serial


def test_key_packages_have_the_same_value_and_bytes() -> None:
    """Both key packages come out with the same bytes, and so do the attributes of RFC 7906."""
    content_type, der = encode_package(KeyMaterial(KEY.key, KEY.media_type, SAID))
    assert content_type == oids.SYMMETRIC_KEY_PACKAGE
    value = through("SymmetricKeyPackageProfile", der)
    (key,) = value["sKeys"]
    assert (value["version"], key["sKey"]) == (1, KEY.key)
    said = attributes(key["sKeyAttrs"])
    assert through("MediaType", said[oids.MEDIA_TYPE.dotted_string]) == KEY.media_type
    kinds = {
        oids.KEY_ALGORITHM: "KeyAlgorithmProfile",
        oids.KEY_PURPOSE: "KeyPurposeProfile",
        oids.KEY_VALIDITY_PERIOD: "KeyValidityPeriodProfile",
        oids.KEY_DISTRIBUTION_PERIOD: "KeyDistPeriodProfile",
        oids.KEY_PACKAGE_RECEIVERS: "KeyPkgReceiversProfile",
    }
    assert tuple(kinds) == keyattributes.ORDER
    values = {oid: through(kind, said[oid.dotted_string]) for oid, kind in kinds.items()}
    assert values[oids.KEY_PURPOSE] == "operational"
    assert values[oids.KEY_VALIDITY_PERIOD]["doNotUseBefore"] == int(NOW.timestamp())
    names = [one["sirenValue"] for _, one in values[oids.KEY_PACKAGE_RECEIVERS]]
    assert names == [entity(address).value for address in SAID.receivers]


def test_an_asymmetric_key_package_has_the_same_bytes() -> None:
    """A PKCS #8 key comes out of the module with the same bytes."""
    # Ed25519, RFC 8410 §10.3
    key = bytes.fromhex("302e020100300506032b657004220420") + bytes(range(32))
    content_type, der = encode_package(KeyMaterial(key, PKCS8, SAID))
    assert content_type == oids.ASYMMETRIC_KEY_PACKAGE
    (one,) = through("AsymmetricKeyPackageProfile", der)
    assert one["privateKeyAlgorithm"]["algorithm"] == "1.3.101.112"
    assert len(one["attributes"]) == len(keyattributes.ORDER)


def test_times_are_written_as_the_module_says() -> None:
    """Signing times are the Time of RFC 5280."""
    assert through("Time", signing.encode_time(NOW)) == ("utcTime", NOW.replace(tzinfo=None))
    late = datetime(2050, 1, 1, tzinfo=UTC)
    assert through("Time", signing.encode_time(late)) == ("generalTime", late.replace(tzinfo=None))


CHANGES = {
    "a field less": ("DepositContext", "  purpose     UTF8String (SIZE (0..128)),     -- printable\n", ""),
    "two fields swapped": ("DepositContext", "keyVersion  INTEGER (1..2147483647)", "keyVersion  UTF8String"),
    "another string type": ("DepositContext", "KeyIdText ::= UTF8String", "KeyIdText ::= PrintableString"),
    "another version": ("DepositContext", "version     INTEGER { v1(1) } (1)", "version     INTEGER { v1(2) } (2)"),
    "an optional field more": ("RevocationRequest", "  reason       Rev", "  x UTF8String,  reason       Rev"),
    "another size": (
        "RevocationRequest",
        "fingerprint  OCTET STRING (SIZE (32))",
        "fingerprint  OCTET STRING (SIZE (20))",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_module_that_disagrees_is_noticed(change: str) -> None:
    """A module with one change does not read what the code makes."""
    kind, old, new = CHANGES[change]
    assert MODULE.count(old) == 1
    der = CONTEXT.encode() if kind == "DepositContext" else content(REVOCATION)
    assert not refused(der, kind)
    assert refused(der, kind, module=MODULE.replace(old, new))
