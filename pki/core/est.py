"""What EST (RFC 7030) answers with: certificates alone in CMS, and what a request should be made of."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated

from cryptography.hazmat import asn1 as library
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, attributes, oids
from pki.core.signatures import IDENTITY
from pki.core.usages import SIGNS


def certs_only(certificates: Sequence[bytes]) -> bytes:
    """Return SignedData that nobody signed, holding certificates in DER (RFC 5652 §5.1, RFC 8551 §3.8)."""
    bundle = CertificatesOnly(
        version=1,
        digest_algorithms=asn1.SetOf([]),
        content=NoContent(content_type=oids.DATA),
        certificates=asn1.SetOf([asn1.tlv(der) for der in certificates]),
        signer_infos=asn1.SetOf([]),
    )
    return asn1.encode(asn1.ContentInfo(content_type=oids.SIGNED_DATA, content=asn1.tlv(asn1.encode(bundle))))


def csr_attributes(algorithms: Collection[str]) -> bytes:
    """Return CsrAttrs (RFC 8951 §3.2): the algorithms of an identity key, its curves, and the key usage that it gets.

    ``algorithms`` are the labels of those that are allowed. Nothing of it is about one client: who asks has not said
    who it is.
    """
    known = sorted((one for one in IDENTITY if one.label in algorithms), key=lambda one: one.label)
    curves = [asn1.tlv(asn1.encode(one.curve)) for one in known if one.curve]
    elliptic = [asn1.Attribute(oid=oids.EC_PUBLIC_KEY, values=asn1.SetOf(curves))] if curves else []
    usage = asn1.Extension(oid=SIGNS.oid, critical=True, value=SIGNS.public_bytes())
    wishes = attributes.attribute(oids.EXTENSION_REQUEST, asn1.sequence_of([asn1.encode(usage)]))
    return asn1.sequence_of(asn1.encode(one) for one in (*(one.oid for one in known), *elliptic, wishes))


@library.sequence
class NoContent:
    """EncapsulatedContentInfo without content, RFC 5652 §5.2."""

    content_type: Oid


@library.sequence
class CertificatesOnly:
    """SignedData of certificates alone, RFC 5652 §5.1."""

    version: int
    digest_algorithms: asn1.SetOf[asn1.AlgorithmIdentifier]
    content: NoContent
    certificates: Annotated[asn1.SetOf[asn1.TLV], asn1.Implicit(0)]
    signer_infos: asn1.SetOf[asn1.TLV]
