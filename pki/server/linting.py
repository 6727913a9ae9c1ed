"""Nothing is signed that the linter finds an error in: certificates of instances, of issuing CAs and of roots alike."""

from __future__ import annotations

import logging

from pki.core import x509
from pki.core.errors import ProfileError
from pki.core.signatures import SignatureAlgorithm
from pki.server.ports import Linter

_log = logging.getLogger(__name__)


def dummy(tbs: bytes, algorithm: SignatureAlgorithm) -> bytes:
    """Return the certificate in DER with a signature of zeros, as large as one of ``algorithm``."""
    return x509.assemble(tbs, bytes(algorithm.size))


def demand_clean(linter: Linter, certificate_der: bytes, *, on: str, asked: str) -> None:
    """Raise ProfileError when there is an error in a certificate that is to be signed (rule ISS-001).

    ``on`` is whose it is, and ``asked`` what it was asked for by, for the log.
    """
    against = [finding for finding in linter.findings(certificate_der) if finding.stops]
    for finding in against:
        _log.error("lint: %s (%s) at %s in %s", finding.code, finding.severity, finding.place, asked)
    if against:
        worst = against[0]
        raise ProfileError(
            f"The linter finds an error in the certificate: {worst.code}", on=f"{on}, {worst.place}", rule="ISS-001"
        )
