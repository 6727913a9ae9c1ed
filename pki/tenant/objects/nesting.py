"""An envelope inside of a signed object: with its ContentInfo around it, or bare."""

from __future__ import annotations

from pki.core import asn1, oids
from pki.core.signing import UnverifiedSigned
from pki.tenant.objects.ber import to_der

ENVELOPES = frozenset({oids.CONTENT_INFO, oids.AUTH_ENVELOPED_DATA, oids.ENVELOPED_DATA})
"""The types under which an envelope may be signed."""
_SEQUENCE, _EXPLICIT_0 = 0x30, 0xA0


def enveloped(signed: UnverifiedSigned) -> bytes:
    """Return what a signed object of one of `ENVELOPES` holds as a ContentInfo in DER.

    A deposit holds a ContentInfo and says so (RFC 5652 §3); others may hold what the type names, bare (§5.2).
    """
    if signed.content_type == oids.CONTENT_INFO:
        return to_der(signed.content)
    # An OCTET STRING's length is written like any other's; what is inside may still be BER.
    content = asn1.retagged(_EXPLICIT_0, asn1.encode(signed.content))
    return to_der(asn1.retagged(_SEQUENCE, asn1.encode(asn1.encode(signed.content_type) + content)))
