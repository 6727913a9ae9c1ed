"""Certificates of instances as relying parties take them, made without profiles: also of keys that nobody may have."""

from __future__ import annotations

from datetime import datetime

from cryptography import x509 as library

from pki.core import oids, x509
from pki.core.authorities import authority_key, ca_key_identifier
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind


def leaf_tbs(
    *,
    serial: int,
    issuer_der: bytes,
    address: Address,
    spki: bytes,
    not_before: datetime,
    not_after: datetime,
    kind: CertificateKind,
    capabilities: bytes | None = None,
) -> bytes:
    """Return the to-be-signed part of an instance's certificate; ``issuer_der`` is the issuing CA's certificate.

    ``capabilities`` are SMIMECapabilities in DER.
    """
    preferences = [] if capabilities is None else [library.UnrecognizedExtension(oids.SMIME_CAPABILITIES, capabilities)]
    return x509.encode_tbs(
        serial=serial,
        algorithm=authority_key(issuer_der).algorithm,
        issuer=library.load_der_x509_certificate(issuer_der).subject.public_bytes(),
        subject=x509.name_der(address),
        spki=spki,
        not_before=not_before,
        not_after=not_after,
        extensions=[
            *x509.own_extensions(address, spki, kind),
            (False, library.AuthorityKeyIdentifier(ca_key_identifier(issuer_der), None, None)),
            *((False, one) for one in preferences),
        ],
    )
