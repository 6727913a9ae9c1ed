"""An envelope inside of a signed object: with its ContentInfo around it, or bare, or as a file of its own."""

from __future__ import annotations

from pki.core import asn1, oids
from pki.core.errors import MalformedError
from pki.core.signing import UnverifiedSigned
from pki.tenant.objects.ber import to_der
from pki.tenant.objects.kinds import Kind, kind_of

_BARE = frozenset({oids.AUTH_ENVELOPED_DATA, oids.ENVELOPED_DATA})
_SEQUENCE, _EXPLICIT_0 = 0x30, 0xA0


def enveloped(signed: UnverifiedSigned) -> bytes | None:
    """Return the envelope in a signed object as a ContentInfo in DER, or None when it holds something else.

    A deposit holds a ContentInfo and says so (RFC 5652 §3); others may hold what the type names, bare (§5.2), or sign
    the file with the envelope in it as data. Raises MalformedError when it should be an envelope and is bad BER.
    """
    if signed.content_type == oids.CONTENT_INFO:
        return to_der(signed.content)
    if signed.content_type in _BARE:
        # An OCTET STRING's length is written like any other's; what is inside may still be BER.
        content = asn1.retagged(_EXPLICIT_0, asn1.encode(signed.content))
        return to_der(asn1.retagged(_SEQUENCE, asn1.encode(asn1.encode(signed.content_type) + content)))
    if signed.content_type != oids.DATA or signed.content[:1] != b"\x30":
        return None
    try:
        der = to_der(signed.content)
        return der if kind_of(der) in (Kind.ENVELOPE, Kind.UNAUTHENTICATED) else None
    except MalformedError:
        return None
