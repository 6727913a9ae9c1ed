"""PKCS #10 as other people's tools make it: no signing time, and whatever else they say."""

from __future__ import annotations

from pki.core import asn1, x509
from pki.core.signers import SigningKey
from pki.core.tenants import Address


def plain(address: Address, key: SigningKey, *said: asn1.Attribute) -> bytes:
    """Return a request for ``key``, signed by itself, with these attributes."""
    info = asn1.encode(
        asn1.RequestInfo(
            version=0,
            subject=asn1.tlv(x509.name_der(address)),
            public_key=asn1.decode(asn1.SubjectPublicKeyInfo, key.public.spki, what="x"),
            attributes=asn1.SetOf(list(said)),
        )
    )
    identifier = key.public.algorithm.identifier
    return asn1.encode(
        asn1.Request(info=asn1.tlv(info), signature_algorithm=identifier, signature=asn1.BitString(key.sign(info), 0))
    )
