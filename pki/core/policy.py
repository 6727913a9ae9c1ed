"""Numbered yes/no rules: the only way from an unverified deposit to a verified one, and the list of all rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from pki.core.certificates import VerifiedCertificate
from pki.core.crl import Crl
from pki.core.deposits import UnverifiedDeposit, VerifiedDeposit
from pki.core.errors import (
    AlgorithmError,
    CertificateError,
    ExpiredError,
    PeriodError,
    ProfileError,
    RevokedError,
    StaleError,
    WrongPartyError,
)
from pki.core.keys import RsaAlgorithm
from pki.core.packages import KeyMaterial
from pki.core.tenants import Address

MAX_LIFETIME = timedelta(days=90)
MAX_AGE_AT_DEPOSIT = timedelta(days=1)
CLOCK_SKEW = timedelta(minutes=5)

RULES: Mapping[str, str] = {
    "DER-001": "An object is in DER, of the structure that is declared, within the bounds, and nothing follows it.",
    "SIG-001": "A signed object is SignedData of version 3.",
    "SIG-002": "Its content has one of the types that are expected there.",
    "SIG-003": "It has exactly one signer, named by a subject key identifier.",
    "SIG-004": "The signature is of an identity's algorithm, the digest the one that goes with it, parameters absent.",
    "SIG-005": "The signed attributes are exactly the expected ones, each once, and content-type agrees.",
    "SIG-006": "Digest and signature verify under the signer's key.",
    "SIG-007": "The signature is of the algorithm of the signer's key.",
    "ENV-001": "The envelope is AuthEnvelopedData.",
    "ENV-002": "Each version is the one that its type asks for.",
    "ENV-003": "It has 1 to 16 recipients, none twice.",
    "ENV-004": "Each recipient is of a kind and an algorithm that is allowed, a KEM without parameters.",
    "ENV-005": "Each recipient is named by a 20-byte key identifier, and what is for it has its exact size.",
    "ENV-006": "A KEM's key derivation is HKDF with SHA-256, SHA-384 or SHA-512.",
    "ENV-007": "The content key is wrapped with AES-256-wrap under a 32-byte key.",
    "ENV-008": "The content is encrypted with AES-256-GCM.",
    "ENV-009": "The nonce has 12 bytes.",
    "ENV-010": "The tag has 16 bytes, and says so.",
    "ENV-011": "Authenticated attributes are there: content-type, and at most our context.",
    "ENV-012": "The content's type is the authenticated one.",
    "ENV-013": "A key agreement is of one ephemeral key on the recipient's curve, with X9.63 by the curve's hash.",
    "ENV-014": "RSA is OAEP with SHA-256 throughout, or SHA-1 throughout, without a label.",
    "ENV-015": "User keying material has at most 1024 bytes.",
    "PKG-001": "A key package is of version 1 with exactly one key.",
    "PKG-002": "A key's attributes are known ones, each once and with one value.",
    "PKG-003": "In a symmetric key package they stand in their order: media type, algorithm, purpose, validity period, "
    "distribution period, receivers.",
    "PKG-004": "An asymmetric key is one unencrypted PKCS #8 key, of version 2 if it holds its public key.",
    "PKG-005": "A PKCS #8 key lies in an asymmetric key package, everything else in a symmetric one.",
    "PKG-006": "The key is not empty, and its media type is of the form type/subtype.",
    "PKG-007": "The times of a period are from 1970 to 9999, and it ends after it starts.",
    "PKG-008": "The key's algorithm is one identifier, and its purpose one of RFC 7906's.",
    "PKG-009": "The receivers are 1 to 64 addresses by distinguished name, none twice.",
    "PKG-010": "The key is handed over within its distribution period.",
    "PKG-011": "Its recipient is among its receivers, if it names any.",
    "CRT-001": "A certificate is of version 3 with a positive serial of at most 20 bytes.",
    "CRT-002": "It is signed with an algorithm of the profile, inside and outside alike.",
    "CRT-003": "It is valid now, and so are its issuers.",
    "CRT-004": "It names exactly one address, in subject and subjectAltName alike.",
    "CRT-005": "It has exactly the four extensions, for access a fifth, perhaps capabilities, and the key identifier "
    "is the key's.",
    "CRT-006": "The key usage is critical and the key's: digitalSignature, keyEncipherment or keyAgreement alone.",
    "CRT-007": "Its issuer and authority key identifier are the issuing CA's.",
    "CRT-008": "The issuing CA signed it.",
    "CRT-009": "The key is of an allowed algorithm, well formed and of the right size.",
    "CRT-010": "It is not revoked.",
    "CRT-011": "It is for the expected address and use.",
    "CRT-012": "The request signed by the pinned identity key is for this address, use, key and capabilities.",
    "CRT-013": "It starts within 48 hours of that request, if that has a time.",
    "CRT-014": "Root and issuing CA may sign certificates, and chain.",
    "CRT-015": "Capabilities are 1 to 16 in at most 1 KiB, first the one that is preferred.",
    "CRT-016": "It has at most 64 KiB and 16 extensions.",
    "CRT-017": "It is valid for at most 400 days.",
    "CRT-018": "An extended key usage is that of access: clientAuth alone, critical, of a key that signs.",
    "CRL-001": "The issuing CA signed the revocation list.",
    "CRL-002": "It has no critical extension, so it is a full list.",
    "CRL-003": "It is not past its nextUpdate.",
    "CRL-004": "A delta list has one critical extension: the number of the full list that it builds on.",
    "CRL-005": "It builds on a full list that is not newer than the one at hand.",
    "CRL-006": "It is newer than the full list at hand.",
    "CRL-007": "It is of the same issuing CA as the full list, for all of its certificates and reasons.",
    "OCS-001": "An OCSP request has at most 4 KiB and asks about 1 to 16 certificates.",
    "OCS-002": "It is of version 1, without a critical extension other than a nonce.",
    "OCS-003": "Its nonce, if there is one, has 1 to 128 bytes.",
    "OCS-004": "Its serial numbers have at most 20 bytes.",
    "OCS-005": "Its certificates are all of one issuing CA here, named by SHA-1 or SHA-256.",
    "REQ-001": "A request is PKCS #10 of version 1, or a CMP message that asks for a certificate, at most 16 KiB.",
    "REQ-002": "It is signed with an identity's algorithm, for an identity key with that key's.",
    "REQ-003": "Its subject is exactly O = tenant, CN = tenant/instance.",
    "REQ-004": "Its attributes are signing time and, for an encryption key, possession and perhaps capabilities; for "
    "another key, the time may be missing and extensions be asked for.",
    "REQ-005": "The identity key signed it; a request for an access key, that key itself.",
    "REQ-006": "The possession statement names the identity certificate that is active.",
    "REQ-007": "Its signing time, if it has one, lies within 48 hours of now.",
    "REQ-008": "It asks for no other extensions than its certificate gets.",
    "ISS-001": "Before a certificate is signed, pkilint finds no error in it.",
    "ISS-002": "What was signed is byte for byte what was stored to be signed.",
    "ISS-003": "A certificate is of the profile of its kind: key, address, validity and preferences.",
    "ICA-001": "A request for an issuing CA is PKCS #10 of version 1 without attributes, at most 16 KiB.",
    "ICA-002": "Its subject is one common name of 1 to 64 printable ASCII characters.",
    "ICA-003": "Its key is of an issuing CA's algorithm and signed it.",
    "ICA-004": "Every issuing CA that is relied on is shown.",
    "CMP-001": "A CMP message has at most 64 KiB, version 2 or 3, a transactionID of 16 bytes and nonces of 16 to 64.",
    "CMP-002": "It is of a known kind, between directory names, for this CA or for nobody in particular.",
    "CMP-003": "What protects it is a password-based MAC of 100 to 100,000 rounds, or an identity's signature.",
    "CMP-004": "It asks for one thing.",
    "CMP-005": "A template names subject and key, and nothing that would not be issued anyway.",
    "CMP-006": "An identity key has signed its request; an encryption key's certificate is to come encrypted to it.",
    "CMP-007": "A signed message has a messageTime; under a secret, a notBefore that is asked for stands for it.",
    "CMP-008": "It is protected with the secret of an invitation, or by the active identity key of its sender.",
    "CMP-009": "A transactionID opens one transaction, and a confirmation has that transaction's nonce.",
    "CMP-010": "The hash that confirms a certificate is the certificate's, by SHA-256, SHA-384 or SHA-512.",
    "CMP-011": "The certificate that is to be replaced is the sender's.",
    "DEP-001": "A deposit is not larger than the limit.",
    "DEP-002": "Its context is of version 1, each field in its form.",
    "DEP-003": "It has a 16-byte id and asks for one receipt, to its sender.",
    "DEP-004": "It holds a key package, and the context inside equals the one outside.",
    "DEP-005": "The signer's certificate is an identity certificate of the address that it names as its sender.",
    "DEP-006": "The sender's certificate is not revoked.",
    "DEP-007": "It is wrapped for usable keys of its recipient and nobody else.",
    "DEP-008": "It has not expired.",
    "DEP-009": "It expires within 90 days.",
    "DEP-010": "It was signed at most a day ago and not in the future.",
    "DEP-011": "Its id was never seen before.",
    "DEP-012": "It is wrapped with RSA-OAEP and SHA-1 only for a key whose certificate asks for that.",
    "RCP-001": "A receipt is of version 2, at most 16 KiB.",
    "RCP-002": "It names one deposit, and a refusal one of the known reasons.",
    "RCP-003": "It names the recipient by its distinguished name.",
    "RCP-004": "It is the recipient's own, for this deposit.",
    "RCP-005": "It names the digest of exactly these bytes.",
    "REV-001": "A revocation request is of version 1 and for one certificate.",
    "REV-002": "It is for a certificate of the one who signed it.",
    "REV-003": "A certificate is listed on its owner's request, two officers' order, or as it stood on a list before.",
    "ORD-001": "A list of officers is of version 1, at most 256 of them, no name and no key twice, for ever.",
    "ORD-002": "The issuing CA signed it, and it is not older than one that was there before.",
    "ORD-003": "Who orders and who approves were officers then, and still are.",
    "ORD-004": "Order and approval are of version 1; an order has a text and 1 to 1000 certificates, or lifts the cap.",
    "ORD-005": "Two different officers with two different keys signed, one the order and one its approval.",
    "ORD-006": "It was approved while it was good, for at most 24 hours.",
    "ORD-007": "In 24 hours orders revoke no more certificates than the cap, unless two officers have lifted it.",
}
"""Each rule in a sentence; docs/rules.md adds reason, source and test."""

LOOSER: Mapping[str, str] = {
    "DER-001": "A CMS object may be in BER; it becomes DER before it is read.",
    "SIG-001": "Version 1 is read as well; embedded certificates and revocation lists are left out, never believed.",
    "SIG-002": "Any type of content is read, and told.",
    "SIG-003": "The signer may be named by issuer and serial, or by a key identifier of 1 to 64 bytes; unsigned "
    "attributes are left out.",
    "SIG-004": "Other digests that are strong enough for the signature are read, ECDSA under another digest than its "
    "curve's, and NULL parameters of a digest.",
    "SIG-005": "Other attributes may stand beside the known ones, and the signing time may be missing.",
    "ENV-003": "Up to 256 recipients.",
    "ENV-004": "ML-KEM-512 is read; recipients that cannot be used stand beside one that can.",
    "ENV-005": "A recipient may be named by issuer and serial or by a key identifier of 1 to 64 bytes; RSA keys have "
    "2048 bits or more.",
    "ENV-007": "AES-128-wrap and AES-192-wrap are read.",
    "ENV-008": "AES-128-GCM and AES-192-GCM are read.",
    "ENV-011": "They may be missing where the content is id-data; other attributes may stand beside the known ones.",
    "ENV-013": "One key agreement may be for several recipients, its curve may be named, and the derivation may use "
    "another SHA-2 than the curve's.",
    "PKG-002": "Attributes that are not known are passed over.",
    "PKG-003": "Attributes may stand in any order.",
    "PKG-008": "More may be said of the key's algorithm.",
    "PKG-009": "Receivers that are no addresses are passed over.",
    "RCP-002": "Every code of RFC 7191 and codes that are object identifiers are read, and told by name.",
}
"""What `pki.core.profile.Profile.READ` takes where STRICT does not; a rule that is not here is the same in both."""


def verify_deposit(
    deposit: UnverifiedDeposit,
    *,
    sender: VerifiedCertificate,
    crl: Crl | None,
    recipient_skis: Collection[bytes],
    sha1_skis: Collection[bytes] = (),
    now: datetime,
    max_lifetime: timedelta = MAX_LIFETIME,
    max_age: timedelta | None = MAX_AGE_AT_DEPOSIT,
) -> VerifiedDeposit:
    """Return the deposit if it keeps rules DEP-005 to -010, -012, SIG-006 and -007, else raise the broken one's error.

    ``recipient_skis`` are the keys that the recipient may be reached by, ``sha1_skis`` those of them whose certificates
    ask for RSA-OAEP with SHA-1; ``max_age`` is None for a recipient, who may collect late.
    """
    context = deposit.context
    if sender.parsed.address != context.sender or sender.parsed.ski != deposit.signer_ski:
        raise WrongPartyError("The deposit is not signed by the sender that it names", rule="DEP-005")
    if crl is not None and crl.issuer != sender.parsed.aki:
        raise CertificateError("The revocation list is another issuing CA's", on=str(context.sender), rule="DEP-006")
    if crl is not None and sender.parsed.serial in crl.revoked:
        raise RevokedError("The sender's certificate is revoked", on=str(context.sender), rule="DEP-006")
    if any(recipient.ski not in recipient_skis for recipient in deposit.envelope.recipients):
        raise WrongPartyError(
            "The deposit is not wrapped for a usable key of its recipient",
            on=str(context.recipient),
            hint=f"kmb key send {context.key_id} --to {context.recipient}",
            rule="DEP-007",
        )
    sha1 = {one.ski for one in deposit.envelope.recipients if one.algorithm is RsaAlgorithm.OAEP_SHA1}
    if not sha1 <= set(sha1_skis):
        raise AlgorithmError(
            "The recipient's certificate does not ask for RSA-OAEP with SHA-1",
            on=str(context.recipient),
            hint=f"kmb key send {context.key_id} --to {context.recipient}",
            rule="DEP-012",
        )
    if context.expires <= now:
        raise ExpiredError("The deposit has expired", on=f"at {context.expires}", rule="DEP-008")
    if context.expires > now + max_lifetime + CLOCK_SKEW:
        raise ProfileError("The deposit lives too long", on=f"until {context.expires}", rule="DEP-009")
    if deposit.signing_time > now + CLOCK_SKEW or (max_age is not None and deposit.signing_time < now - max_age):
        raise StaleError("The deposit was not signed just now", on=f"at {deposit.signing_time}", rule="DEP-010")
    signed = deposit.signed.verify(sender.identity_key)
    return VerifiedDeposit(deposit.id, context, signed, deposit.envelope)


def check_handover(material: KeyMaterial, *, recipient: Address, now: datetime) -> None:
    """Raise unless what is said of a key lets ``recipient`` have it ``now`` (rules PKG-010, PKG-011).

    The sender asks before it wraps, and the recipient before it stores: nobody in between can see it.
    """
    period = material.attributes.distribution
    early = period is not None and period.not_before is not None and now < period.not_before - CLOCK_SKEW
    late = period is not None and period.not_after is not None and now > period.not_after + CLOCK_SKEW
    if period is not None and (early or late):
        raise PeriodError(
            "The key may not be handed over yet" if early else "The key may not be handed over any more",
            on=f"{period.not_before or 'ever'} to {period.not_after}",
            hint="kmb key create NAME --distribute-from TIME --distribute-until TIME, which makes the next version",
            rule="PKG-010",
        )
    receivers = material.attributes.receivers
    if receivers and recipient not in receivers:
        raise WrongPartyError(
            "The key is not for this recipient",
            on=str(recipient),
            hint=f"kmb key create NAME --receiver {recipient}, which makes the next version",
            rule="PKG-011",
        )
