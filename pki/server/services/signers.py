"""Whose key signed this: the stored certificate that proves a signer, verified again before it is trusted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from pki.core.certificates import CertificateRecord, CertificateState, VerifiedCertificate, check_stored
from pki.core.errors import CertificateError, NotFoundError, RevokedError
from pki.core.ids import DepositId
from pki.core.x509 import CertificateKind
from pki.server.ports import CaChain

_DEPOSIT_ID = re.compile(r"[0-9a-f]{32}")
# A retired certificate still proves and opens what was under way when it was renewed.
_USABLE = (CertificateState.ACTIVE, CertificateState.RETIRED)
# A key that was certified twice is proved by the better certificate.
_PREFERENCE = (*_USABLE, CertificateState.REVOKED, CertificateState.EXPIRED, CertificateState.UNPROVED)


def has_form(deposit_id: str) -> bool:
    """Return whether a text looks like a deposit's id."""
    return _DEPOSIT_ID.fullmatch(deposit_id) is not None


def known_form(deposit_id: str) -> DepositId:
    """Return the text as a deposit's id; what does not look like one exists nowhere: NotFoundError."""
    if not has_form(deposit_id):
        raise NotFoundError(on=deposit_id[:40])
    return DepositId(deposit_id)


def usable(record: CertificateRecord) -> bool:
    """Return whether a certificate may still be relied on, as far as its state tells."""
    return record.state in _USABLE


def verified(
    records: Sequence[CertificateRecord], kind: CertificateKind, chain: CaChain, now: datetime, *, rule: str
) -> tuple[CertificateRecord, VerifiedCertificate]:
    """Return the certificate to rely on among those of one key, with its chain verified at ``now``.

    Raises RevokedError, ExpiredError, or CertificateError when there is none that may be relied on.
    """
    fitting = [record for record in records if record.kind is kind]
    if not fitting:
        raise CertificateError(f"The key has no {kind} certificate here", rule=rule)
    found = min(fitting, key=lambda record: _PREFERENCE.index(record.state))
    if found.state is CertificateState.REVOKED:
        raise RevokedError(on=str(found.address), rule=rule)
    certificate = check_stored(found.der, kind=kind, issuing_der=chain.issuing, root_der=chain.root, now=now)
    if not usable(found):
        raise CertificateError(f"The certificate is {found.state}", on=str(found.address), rule=rule)
    return found, certificate
