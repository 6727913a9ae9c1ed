"""A second implementation in small, from docs/protocol.md and the ASN.1 module alone: the core takes what it makes.

Of the core it imports only what judges: nothing here is encoded, derived or signed by it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import asn1tools
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from pki.core import deposits, policy, receipts, requests, revocations
from pki.core.crl import Reason
from pki.core.receipts import ReceiptKind, RefusalReason
from pki.core.x509 import CertificateKind
from tests.kit.authority import KEY, NOW, acme, globex

SCHEMAS = Path(__file__).parents[2] / "schemas"
PLAIN = """
Plain DEFINITIONS ::= BEGIN
Number ::= OBJECT IDENTIFIER  Bytes ::= OCTET STRING  Text ::= UTF8String
END
"""
MODULE = asn1tools.compile_string(
    (SCHEMAS / "keymailbox.asn1").read_text() + (SCHEMAS / "imported.asn1").read_text() + PLAIN, "der"
)

# docs/protocol.md §3
SIGNED_DATA, AUTH_ENVELOPED = "1.2.840.113549.1.7.2", "1.2.840.113549.1.9.16.1.23"
CONTENT_INFO = "1.2.840.113549.1.9.16.1.6"
PACKAGE, RECEIPT, ERROR = "1.2.840.113549.1.9.16.1.25", "2.16.840.1.101.2.1.2.78.3", "2.16.840.1.101.2.1.2.78.6"
CONTENT_TYPE, DIGEST, TIME = (f"1.2.840.113549.1.9.{number}" for number in (3, 4, 5))
ID_AND_REQUEST, STATEMENT, DN = "2.16.840.1.101.2.1.5.65", "1.3.6.1.4.1.22112.2.1", "2.16.840.1.101.2.1.16.0"
SHA512, ML_DSA_65 = "2.16.840.1.101.3.4.2.3", "2.16.840.1.101.3.4.3.18"
COMPOSITE, KEM = "1.3.6.1.5.5.7.6.58", "1.2.840.113549.1.9.16.13.3"
HKDF_SHA256, WRAP, GCM = "1.2.840.113549.1.9.16.3.28", "2.16.840.1.101.3.4.1.45", "2.16.840.1.101.3.4.1.46"
OURS = "2.25.190657131263726506617233032095942278161"
CONTEXT, DEPOSIT_DIGEST, MEDIA_TYPE, REVOCATION = f"{OURS}.1.1", f"{OURS}.1.2", f"{OURS}.1.3", f"{OURS}.2.1"
ORGANIZATION, COMMON_NAME = "2.5.4.10", "2.5.4.3"

IDENTITY = {"acme/eu-west": MLDSA65PrivateKey.from_seed_bytes(b"\x0b" * 32)}
IDENTITY["globex/main"] = MLDSA65PrivateKey.from_seed_bytes(b"\x0c" * 32)


def enc(kind: str, value: Any) -> bytes:
    """Return a value in DER, within the module's constraints."""
    return bytes(MODULE.encode(kind, value, check_constraints=True))


def entries(values: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return attributes as a SET OF has them in DER: sorted by their encodings."""
    listed = [{"attrType": oid, "attrValues": [value]} for oid, value in values.items()]
    return sorted(listed, key=lambda one: enc("Attribute", one))


def name(address: str) -> Any:
    """Return an address as a name (§2)."""
    parts = ((ORGANIZATION, address.split("/")[0]), (COMMON_NAME, address))
    return ("rdnSequence", [[{"type": oid, "value": enc("Text", text)}] for oid, text in parts])


def entity(address: str) -> dict[str, Any]:
    """Return an address as an entity (§7.2)."""
    return {"sirenType": DN, "sirenValue": enc("Name", name(address))}


def moment(when: datetime) -> bytes:
    """Return a Time (§2)."""
    return enc("Time", ("utcTime", when.replace(tzinfo=None)))


def signed(content_type: str, content: bytes, signer: str, more: Mapping[str, bytes]) -> bytes:
    """Return a signed object (§5)."""
    key = IDENTITY[signer]
    attributes = entries(
        {
            CONTENT_TYPE: enc("Number", content_type),
            DIGEST: enc("Bytes", hashlib.sha512(content).digest()),
            TIME: moment(NOW),
            **more,
        }
    )
    info = {
        "version": 3,
        "sid": hashlib.sha256(key.public_key().public_bytes_raw()).digest()[:20],
        "digestAlgorithm": {"algorithm": SHA512},
        "signedAttrs": attributes,
        "signatureAlgorithm": {"algorithm": ML_DSA_65},
        "signature": key.sign(enc("AttributesProfile", attributes)),
    }
    data = {
        "version": 3,
        "digestAlgorithms": [{"algorithm": SHA512}],
        "encapContentInfo": {"eContentType": content_type, "eContent": content},
        "signerInfos": [info],
    }
    return enc("SignedObjectProfile", {"contentType": SIGNED_DATA, "content": data})


def envelope(content: bytes, context: bytes, public: bytes) -> bytes:
    """Return an envelope for the composite (§4.2, §6)."""
    content_key, nonce, wrap = secrets.token_bytes(32), secrets.token_bytes(12), {"algorithm": WRAP}
    shared_m, sent_m = MLKEM768PublicKey.from_public_bytes(public[:1184]).encapsulate()
    ephemeral = X25519PrivateKey.generate()
    shared_x = ephemeral.exchange(X25519PublicKey.from_public_bytes(public[1184:]))
    sent_x = ephemeral.public_key().public_bytes_raw()
    mixed = shared_m + shared_x + sent_x + public[1184:] + bytes.fromhex("5c2e2f2f5e5c")
    info = enc("KEMOtherInfoProfile", {"wrap": wrap, "kekLength": 32})
    kek = HKDF(SHA256(), 32, None, info).derive(hashlib.sha3_256(mixed).digest())
    attributes = entries({CONTENT_TYPE: enc("Number", PACKAGE), CONTEXT: context})
    sealed = AESGCM(content_key).encrypt(nonce, content, enc("AttributesProfile", attributes))
    recipient = {
        "version": 0,
        "rid": hashlib.sha256(public).digest()[:20],
        "kem": {"algorithm": COMPOSITE},
        "kemct": sent_m + sent_x,
        "kdf": {"algorithm": HKDF_SHA256},
        "kekLength": 32,
        "wrap": wrap,
        "encryptedKey": aes_key_wrap(kek, content_key),
    }
    algorithm = {"algorithm": GCM, "parameters": {"nonce": nonce, "icvLen": 16}}
    data = {
        "version": 0,
        "recipientInfos": [("ori", {"oriType": KEM, "oriValue": recipient})],
        "authEncryptedContentInfo": {
            "contentType": PACKAGE,
            "contentEncryptionAlgorithm": algorithm,
            "encryptedContent": sealed[:-16],
        },
        "authAttrs": attributes,
        "mac": sealed[-16:],
    }
    return enc("EnvelopeProfile", {"contentType": AUTH_ENVELOPED, "content": data})


def deposit() -> bytes:
    """Return a deposit (§7)."""
    said = {"version": 1, "sender": "acme/eu-west", "recipient": "globex/main", "keyId": "orders-2030"}
    expires = NOW.replace(tzinfo=None, month=6)
    context = enc("DepositContext", {**said, "keyVersion": 3, "purpose": "orders", "expires": expires})
    media_type = {"attrType": MEDIA_TYPE, "attrValues": [enc("MediaType", KEY.media_type)]}
    package = {"version": 1, "sKeys": [{"sKeyAttrs": [media_type], "sKey": KEY.key}]}
    wrapped = envelope(enc("SymmetricKeyPackageProfile", package), context, public_key())
    request = {"pkgID": secrets.token_bytes(16), "receiptReq": {"receiptsTo": [entity("acme/eu-west")]}}
    more = {ID_AND_REQUEST: enc("KeyPkgIdentifierAndReceiptReqProfile", request), CONTEXT: context}
    return signed(CONTENT_INFO, wrapped, "acme/eu-west", more)


def public_key() -> bytes:
    """Return the public key in the certificate of globex/main, found with the module."""
    tbs = MODULE.decode("CertificateProfile", globex().encryption_der)["tbsCertificate"]
    assert tbs["subjectPublicKeyInfo"]["algorithm"]["algorithm"] == COMPOSITE
    return bytes(tbs["subjectPublicKeyInfo"]["subjectPublicKey"][0])


def test_the_core_accepts_and_opens_a_strangers_deposit() -> None:
    """A deposit made from the text alone keeps every rule, verifies, and opens to the key."""
    parsed = deposits.parse_deposit(deposit())
    verified = policy.verify_deposit(
        parsed, sender=acme().verified(), crl=None, recipient_skis={globex().kem_ski}, now=NOW
    )
    assert deposits.open_deposit(verified, globex().kem_ski, globex().decapsulate) == KEY


def test_the_core_believes_a_strangers_answers() -> None:
    """A receipt and a refusal made from the text alone are the recipient's, for these bytes."""
    body = deposit()
    parsed = deposits.parse_deposit(body)
    package_id = bytes.fromhex(parsed.id)
    digest = {DEPOSIT_DIGEST: enc("DepositDigest", hashlib.sha512(body).digest())}
    receipt = enc("KeyPackageReceiptProfile", {"receiptOf": package_id, "receivedBy": entity("globex/main")})
    said = {"errorOf": package_id, "errorBy": entity("globex/main"), "errorCode": "revoked"}
    for content_type, content, kind, reason in (
        (RECEIPT, receipt, ReceiptKind.RECEIPT, None),
        (ERROR, enc("KeyPackageErrorProfile", said), ReceiptKind.REFUSAL, RefusalReason.REVOKED),
    ):
        answer = receipts.parse_receipt(signed(content_type, content, "globex/main", digest)).verify(
            globex().verified().identity_key,
            recipient=globex().address,
            deposit=parsed.id,
            sha512=hashlib.sha512(body).digest(),
        )
        assert (answer.kind, answer.reason) == (kind, reason)


def test_the_core_takes_a_strangers_revocation() -> None:
    """A revocation request made from the text alone is its owner's."""
    fingerprint = hashlib.sha256(acme().encryption_der).digest()
    said = {"version": 1, "fingerprint": fingerprint, "reason": 4, "requested": NOW.replace(tzinfo=None)}
    wish = revocations.parse_revocation(signed(REVOCATION, enc("RevocationRequest", said), "acme/eu-west", {}))
    verified = wish.verify(acme().verified().identity_key)
    assert (verified.named.fingerprint, verified.reason) == (fingerprint.hex(), Reason.SUPERSEDED)


def test_the_core_takes_a_strangers_certificate_request() -> None:
    """A request for an encryption key made from the text alone is signed by the identity key, with its statement."""
    identity = MODULE.decode("CertificateProfile", globex().identity_der)["tbsCertificate"]
    signer = {"issuer": identity["issuer"], "serialNumber": identity["serialNumber"]}
    statement = enc("PossessionStatementProfile", {"signer": signer})
    spki = {"algorithm": {"algorithm": COMPOSITE}, "subjectPublicKey": (public_key(), 8 * 1216)}
    info = {
        "version": 0,
        "subject": name("globex/main"),
        "subjectPKInfo": spki,
        "attributes": entries({TIME: moment(NOW), STATEMENT: statement}),
    }
    unsigned = {"certificationRequestInfo": info, "signatureAlgorithm": {"algorithm": ML_DSA_65}}
    whole = enc("CertificationRequestProfile", {**unsigned, "signature": (b"\0", 8)})
    # what is signed is the first part as it stands: its header says how long it is
    to_sign = whole[4 : 4 + 4 + int.from_bytes(whole[6:8], "big")]
    signature = IDENTITY["globex/main"].sign(to_sign)
    der = enc("CertificationRequestProfile", {**unsigned, "signature": (signature, 8 * len(signature))})
    request = requests.parse_request(der).verify(globex().verified().identity_key)
    assert (request.kind, request.address) == (CertificateKind.ENCRYPTION, globex().address)
    assert request.id == hashlib.sha256(der).hexdigest()
    assert request.statement == globex().statement
