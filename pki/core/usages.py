"""What a certificate's key is for: the kinds of certificates, and the key usages that tell them apart."""

from __future__ import annotations

from enum import StrEnum

from cryptography import x509

from pki.core import asked, keys
from pki.core.errors import ProfileError, demand
from pki.core.keys import EcAlgorithm


class CertificateKind(StrEnum):
    """What a certificate's key is for."""

    IDENTITY = "identity"
    ENCRYPTION = "encryption"
    ACCESS = "access"
    """For TLS to the server; relying parties never see one."""


def key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_agreement: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    """Return a key usage of these bits (RFC 5280 §4.2.1.3)."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=key_agreement,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


SIGNS = key_usage(digital_signature=True)
"""The key usage of identity and access certificates."""


def usage_of(spki: bytes, kind: CertificateKind) -> x509.KeyUsage:
    """Return the key usage of a certificate for a key."""
    if kind is not CertificateKind.ENCRYPTION:
        return SIGNS
    agreed = isinstance(keys.parse_spki(spki)[0], EcAlgorithm)
    return key_usage(key_agreement=agreed, key_encipherment=not agreed)


def kind_of(usage: x509.ExtensionType, clients: x509.Extension[x509.ExtensionType] | None) -> CertificateKind:
    """Return the kind of a certificate with a key usage, and perhaps an extended one (rules CRT-006, CRT-018)."""
    if clients is not None:
        signs = usage == SIGNS
        good = signs and clients.critical and clients.value == asked.CLIENTS
        demand(good, "CRT-018", "An extended key usage is for access alone: clientAuth, critical, of a key that signs")
        return CertificateKind.ACCESS
    if usage == SIGNS:
        return CertificateKind.IDENTITY
    if usage in (key_usage(key_encipherment=True), key_usage(key_agreement=True)):
        return CertificateKind.ENCRYPTION
    raise ProfileError("The key usage is not digitalSignature, keyEncipherment or keyAgreement alone", rule="CRT-006")


def check_fit(spki: bytes, usage: x509.ExtensionType) -> None:
    """Raise ProfileError unless the key usage of an encryption certificate is its key's (rule CRT-006)."""
    # RFC 9935 §5 and RFC 3279 §2.3.1 for what is encrypted to, RFC 5480 §3 for ECDH
    agreed = isinstance(keys.parse_spki(spki)[0], EcAlgorithm)
    fits = usage == key_usage(key_agreement=agreed, key_encipherment=not agreed)
    demand(fits, "CRT-006", "The key usage is not that of the key: keyAgreement for an EC key, else keyEncipherment")
