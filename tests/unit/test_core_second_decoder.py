"""pyasn1 reads what we make: one object of each kind, the same fields, and the same bytes when it writes them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pyasn1.codec.der.decoder import decode
from pyasn1.codec.der.encoder import encode
from pyasn1_alt_modules import (
    rfc2986,
    rfc5083,
    rfc5084,
    rfc5280,
    rfc5652,
    rfc5958,
    rfc6031,
    rfc6960,
    rfc7191,
    rfc7906,
    rfc9629,
)

from pki.core import crl, deposits, envelope, keys, ocsp, oids, packages, receipts, requests, revocations, x509
from pki.core.crl import Reason, Revoked
from pki.core.ids import DepositId, fingerprint
from pki.core.keyattributes import KeyAttributes, KeyPurpose, Period
from pki.core.packages import PKCS8, KeyMaterial
from pki.core.receipts import RefusalReason
from pki.core.recipients import Recipient
from tests.kit.authority import DAY, NOW, PACKAGE_ID, acme, authority, globex
from tests.kit.forge import deposit_context

ALGORITHMS = list(keys.ALGORITHMS.values())
SAID = KeyAttributes(
    algorithm=oids.AES256_GCM,
    purpose=KeyPurpose.OPERATIONAL,
    validity=Period(NOW, NOW + 365 * DAY),
    distribution=Period(NOW - DAY, NOW + 30 * DAY),
    receivers=(globex().address, acme().address),
)


def second(der: bytes, kind: Any) -> Any:
    """Return what pyasn1 reads, which must be all of it, and what it writes again."""
    found, rest = decode(der, asn1Spec=kind)
    assert not rest
    assert encode(found) == der
    return found


def dotted(value: Any) -> str:
    """Return an OID's text."""
    return str(value)


def signed_content(der: bytes) -> tuple[Any, dict[str, bytes]]:
    """Return the SignedData of an object, and its signed attributes."""
    info = second(der, rfc5652.ContentInfo())
    assert dotted(info["contentType"]) == oids.SIGNED_DATA.dotted_string
    signed = second(bytes(info["content"]), rfc5652.SignedData())
    (signer,) = signed["signerInfos"]
    return signed, {dotted(one["attrType"]): bytes(one["attrValues"][0]) for one in signer["signedAttrs"]}


def enveloped(der: bytes) -> Any:
    """Return the AuthEnvelopedData of an envelope."""
    info = second(der, rfc5652.ContentInfo())
    assert dotted(info["contentType"]) == oids.AUTH_ENVELOPED_DATA.dotted_string
    return second(bytes(info["content"]), rfc5083.AuthEnvelopedData())


def test_a_deposit() -> None:
    """A deposit's signer, time, content, digest, id and receipt request are the same for both readers."""
    der = acme().deposit(globex())
    ours = deposits.parse_deposit(der)
    signed, attributes = signed_content(der)
    (signer,) = signed["signerInfos"]
    assert bytes(signer["sid"]["subjectKeyIdentifier"]) == ours.signer_ski
    assert bytes(signed["encapContentInfo"]["eContent"]) == ours.signed.content
    assert attributes == {oid.dotted_string: value for oid, value in ours.signed.attributes.items()}
    time = second(attributes[oids.SIGNING_TIME.dotted_string], rfc5652.SigningTime())
    assert str(time["utcTime"]) == f"{ours.signing_time:%y%m%d%H%M%SZ}"
    value = attributes[oids.KEY_PACKAGE_ID_AND_RECEIPT_REQUEST.dotted_string]
    asked = second(value, rfc7191.KeyPkgIdentifierAndReceiptReq())
    assert bytes(asked["pkgID"]).hex() == ours.id
    (to,) = asked["receiptReq"]["receiptsTo"]
    assert dotted(to["sirenType"]) == oids.SIREN_DN.dotted_string
    assert encode(second(bytes(to["sirenValue"]), rfc5280.Name())) == x509.name_der(ours.context.sender)
    assert attributes[oids.DEPOSIT_CONTEXT.dotted_string] == deposit_context(expires=NOW + 30 * DAY)
    inner = enveloped(ours.signed.content)
    assert bytes(inner["mac"]) == ours.envelope.mac
    assert len(inner["recipientInfos"]) == len(ours.envelope.recipients)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.title)
def test_an_envelope_for_each_kind_of_key(algorithm: keys.KeyAlgorithm) -> None:
    """Recipient, ciphertext, wrapped key, nonce and tag are the same for both readers."""
    public = keys.public_from_private(algorithm, keys.generate(algorithm))
    der = envelope.wrap(b"content", oids.DATA, [Recipient(bytes(range(20)), algorithm, public)], ukm=b"ukm")
    ours = envelope.parse(der)
    theirs = enveloped(der)
    (mine,), (slot,) = ours.recipients, theirs["recipientInfos"]
    compare_recipient(mine, slot)
    content = theirs["authEncryptedContentInfo"]
    assert dotted(content["contentType"]) == ours.content_type.dotted_string
    assert bytes(content["encryptedContent"]) == ours.ciphertext
    gcm = second(encode(content["contentEncryptionAlgorithm"]["parameters"]), rfc5084.GCMParameters())
    assert (bytes(gcm["aes-nonce"]), int(gcm["aes-ICVlen"])) == (ours.nonce, 16)
    assert bytes(theirs["mac"]) == ours.mac
    listed = {dotted(one["attrType"]): [bytes(v) for v in one["attrValues"]] for one in theirs["authAttrs"]}
    assert list(listed) == [oids.CONTENT_TYPE.dotted_string]


def compare_recipient(mine: Any, slot: Any) -> None:
    """Compare a recipient as both readers see it."""
    kind = slot.getName()
    if kind == "ori":
        assert dotted(slot["ori"]["oriType"]) == oids.KEM_RECIPIENT_INFO.dotted_string
        info = second(bytes(slot["ori"]["oriValue"]), rfc9629.KEMRecipientInfo())
        assert bytes(info["rid"]["subjectKeyIdentifier"]) == mine.ski
        assert dotted(info["kem"]["algorithm"]) == mine.algorithm.oid.dotted_string
        assert not info["kem"]["parameters"].hasValue()
        assert bytes(info["kemct"]) == mine.ciphertext
        assert dotted(info["kdf"]["algorithm"]) == mine.kdf.dotted_string
        assert (int(info["kekLength"]), bytes(info["ukm"])) == (32, mine.ukm)
        assert bytes(info["encryptedKey"]) == mine.encrypted_key
    elif kind == "kari":
        (entry,) = slot["kari"]["recipientEncryptedKeys"]
        assert bytes(entry["rid"]["rKeyId"]["subjectKeyIdentifier"]) == mine.ski
        assert slot["kari"]["originator"]["originatorKey"]["publicKey"].asOctets() == mine.ciphertext
        assert (bytes(slot["kari"]["ukm"]), bytes(entry["encryptedKey"])) == (mine.ukm, mine.encrypted_key)
        assert dotted(slot["kari"]["keyEncryptionAlgorithm"]["algorithm"]) == mine.kdf.dotted_string
    else:
        assert kind == "ktri"
        assert bytes(slot["ktri"]["rid"]["subjectKeyIdentifier"]) == mine.ski
        assert bytes(slot["ktri"]["encryptedKey"]) == mine.ciphertext


def test_receipts_refusals_and_revocations() -> None:
    """Answers name the same deposit and entity for both readers; a revocation is signed like all the rest."""
    party = globex()
    common: dict[str, Any] = {"signer_ski": party.ski, "sign": party.key.sign, "signing_time": NOW}
    deposit, sha512 = DepositId(PACKAGE_ID.hex()), bytes(64)
    der = receipts.compose_receipt(deposit, sha512, party.address, **common)
    signed, attributes = signed_content(der)
    receipt = second(bytes(signed["encapContentInfo"]["eContent"]), rfc7191.KeyPackageReceipt())
    assert bytes(receipt["receiptOf"]["pkgID"]) == PACKAGE_ID
    assert attributes[oids.DEPOSIT_DIGEST.dotted_string][2:] == sha512
    der = receipts.compose_refusal(deposit, sha512, party.address, RefusalReason.WRONG_TARGET, **common)
    signed, _ = signed_content(der)
    refusal = second(bytes(signed["encapContentInfo"]["eContent"]), rfc7191.KeyPackageError())
    assert bytes(refusal["errorOf"]["pkgID"]) == PACKAGE_ID
    ours = receipts.parse_receipt(der).code
    assert ours is not None
    assert int(refusal["errorCode"]["enum"]) == ours.value
    revocation = revocations.compose_revocation(fingerprint(party.identity_der), Reason.KEY_COMPROMISE, **common)
    signed, _ = signed_content(revocation)
    assert dotted(signed["encapContentInfo"]["eContentType"]) == oids.REVOCATION_REQUEST.dotted_string


def test_certificates_requests_and_lists() -> None:
    """Serial, names, keys and extensions, and what is revoked, are the same for both readers."""
    for der in (acme().identity_der, acme().encryption_der, authority().root_der, authority().issuing_der):
        second(der, rfc5280.Certificate())
    ours = x509.parse_certificate(acme().encryption_der)
    tbs = second(ours.der, rfc5280.Certificate())["tbsCertificate"]
    assert int(tbs["serialNumber"]) == ours.serial
    assert (encode(tbs["subjectPublicKeyInfo"]), encode(tbs["issuer"])) == (ours.spki, ours.issuer_der)
    assert encode(tbs["subject"]) == x509.name_der(ours.address)
    extensions = {dotted(one["extnID"]): bytes(one["extnValue"]) for one in tbs["extensions"]}
    assert bytes(second(extensions["2.5.29.14"], rfc5280.SubjectKeyIdentifier())) == ours.ski
    (name,) = second(extensions["2.5.29.17"], rfc5280.SubjectAltName())
    assert str(name["uniformResourceIdentifier"]) == ours.address.uri
    for der in (acme().identity_request, acme().encryption_request):
        request = requests.parse_request(der)
        info = second(der, rfc2986.CertificationRequest())["certificationRequestInfo"]
        assert encode(info["subjectPKInfo"]) == request.spki
        assert encode(info["subject"]) == x509.name_der(request.address)
    revoked = authority().crl_der([5, 1 << 158])
    entries = second(revoked, rfc5280.CertificateList())["tbsCertList"]["revokedCertificates"]
    known = crl.verify_crl(revoked, issuing_der=authority().issuing_der, now=NOW).revoked
    assert {int(entry["userCertificate"]) for entry in entries} == set(known)


def test_status() -> None:
    """OCSP requests and responses are the same for both readers, byte for byte when they are written again."""
    ids = ocsp.issuer_ids(authority().issuing_der)
    asked = tuple(ocsp.cert_id(one, serial) for one in ids for serial in (5, 1 << 158))
    request = ocsp.encode_request(ocsp.Request(asked, bytes(32)))
    theirs = second(request, rfc6960.OCSPRequest())["tbsRequest"]["requestList"]
    assert [int(one["reqCert"]["serialNumber"]) for one in theirs] == [one.serial for one in asked]
    assert ocsp.parse_request(request).asked == asked
    states = (ocsp.Standing.GOOD, ocsp.Standing.UNKNOWN, Revoked(NOW, Reason.SUPERSEDED), Revoked(NOW, Reason(0)))
    answers = [ocsp.Answer(*pair, NOW, NOW, NOW) for pair in zip(asked, states, strict=True)]
    tbs = ocsp.response_tbs(authority().issuing_der, answers, produced_at=NOW, nonce=bytes(32))
    response = ocsp.assemble(tbs, authority().key.sign(tbs), authority().issuing_der)
    content = second(response, rfc6960.OCSPResponse())["responseBytes"]
    assert dotted(content["responseType"]) == ocsp.BASIC.dotted_string
    basic = second(bytes(content["response"]), rfc6960.BasicOCSPResponse())
    assert encode(basic["tbsResponseData"]) == tbs
    singles = basic["tbsResponseData"]["responses"]
    assert [one["certStatus"].getName() for one in singles] == ["good", "unknown", "revoked", "revoked"]
    for one, answer in zip(singles, answers, strict=True):
        assert encode(one["certID"]) == answer.cert_id.der


@pytest.mark.parametrize("said", [KeyAttributes(), SAID], ids=["bare", "all said"])
def test_key_packages(said: KeyAttributes) -> None:
    """Keys, media types and attributes are the same for both readers."""
    kind, der = packages.encode_package(KeyMaterial(bytes(32), "application/x-test", said))
    assert kind == oids.SYMMETRIC_KEY_PACKAGE
    (one,) = second(der, rfc6031.SymmetricKeyPackage())["sKeys"]
    assert bytes(one["sKey"]) == bytes(32)
    check_said(one["sKeyAttrs"], said)
    private = Ed25519PrivateKey.from_private_bytes(bytes(32)).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    kind, der = packages.encode_package(KeyMaterial(private, PKCS8, said))
    (key,) = second(der, rfc5958.AsymmetricKeyPackage())
    assert bytes(key["privateKey"]) == second(private, rfc5958.OneAsymmetricKey())["privateKey"].asOctets()
    check_said(key["attributes"] if key["attributes"].hasValue() else [], said)


def check_said(attributes: Sequence[Any], said: KeyAttributes) -> None:
    """Compare what is said of a key."""
    values = {dotted(one["attrType"]): bytes(one["attrValues"][0]) for one in attributes}
    if said == KeyAttributes():
        assert oids.KEY_PURPOSE.dotted_string not in values
        return
    assert said.purpose is not None
    purpose = second(values[oids.KEY_PURPOSE.dotted_string], rfc7906.KeyPurpose())
    assert int(purpose) == said.purpose.number
    algorithm = second(values[oids.KEY_ALGORITHM.dotted_string], rfc7906.KeyAlgorithm())
    assert dotted(algorithm["keyAlg"]) == oids.AES256_GCM.dotted_string
    second(values[oids.KEY_VALIDITY_PERIOD.dotted_string], rfc7906.KeyValidityPeriod())
    second(values[oids.KEY_DISTRIBUTION_PERIOD.dotted_string], rfc7906.KeyDistPeriod())
    receivers = second(values[oids.KEY_PACKAGE_RECEIVERS.dotted_string], rfc7906.KeyPkgReceiversV2())
    assert len(receivers) == len(said.receivers)
