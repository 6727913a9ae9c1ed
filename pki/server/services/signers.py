"""Whose key signed this: the stored certificate that proves a signer, verified again before it is trusted."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from pki.core.certificates import CertificateState, CertifiedKey, VerifiedCertificate, check_parsed
from pki.core.errors import CertificateError, NotFoundError, RevokedError
from pki.core.ids import DepositId, Fingerprint
from pki.core.x509 import CertificateKind, ParsedCertificate, parse_certificate
from pki.server.facts import CaChain
from pki.server.store import certificates as certificate_store
from pki.server.store.engine import Unit

_DEPOSIT_ID = re.compile(r"[0-9a-f]{32}")
# A retired certificate still proves and opens what was under way when it was renewed.
USABLE = (CertificateState.ACTIVE, CertificateState.RETIRED)
# A key that was certified twice is proved by the better certificate.
_PREFERENCE = (*USABLE, CertificateState.REVOKED, CertificateState.EXPIRED, CertificateState.UNPROVED)


def has_form(deposit_id: str) -> bool:
    """Return whether a text looks like a deposit's id."""
    return _DEPOSIT_ID.fullmatch(deposit_id) is not None


def known_form(deposit_id: str) -> DepositId:
    """Return the text as a deposit's id; what does not look like one exists nowhere: NotFoundError."""
    if not has_form(deposit_id):
        raise NotFoundError(on=deposit_id[:40])
    return DepositId(deposit_id)


class Known:
    """The certificates of some keys: what their rows said just now, and the bytes of those not seen before."""

    def __init__(
        self,
        rows: Mapping[str, Sequence[CertifiedKey]],
        remembered: Mapping[Fingerprint, ParsedCertificate],
        ders: Mapping[Fingerprint, bytes],
    ) -> None:
        """Take what `known` has read."""
        self._rows = rows
        self._remembered = dict(remembered)
        self._ders = ders

    def of(self, ski: str) -> Sequence[CertifiedKey]:
        """Return what the directory says of a key, its newest certificate first."""
        return self._rows.get(ski, ())

    def verified(
        self, rows: Sequence[CertifiedKey], kind: CertificateKind, chain: CaChain, now: datetime, *, rule: str
    ) -> tuple[CertifiedKey, VerifiedCertificate]:
        """Return the certificate to rely on among those of one key, with its chain verified at ``now``.

        Raises RevokedError, ExpiredError, or CertificateError when there is none that may be relied on.
        """
        fitting = [row for row in rows if row.kind is kind]
        if not fitting:
            raise CertificateError(f"The key has no {kind} certificate here", rule=rule)
        found = min(fitting, key=lambda row: _PREFERENCE.index(row.state))
        if found.state is CertificateState.REVOKED:
            raise RevokedError(on=str(found.address), rule=rule)
        parsed = self._parsed(found)
        if (parsed.address, parsed.ski.hex()) != (found.address, found.ski):
            raise CertificateError("The certificate is not the one that its row tells of", on=found.ski, rule=rule)
        # Chain and clock are looked at anew each time, as the row's state was: only what never changes is remembered.
        certificate = check_parsed(parsed, kind=kind, issuing_der=chain.all, root_der=chain.root, now=now)
        if found.state not in USABLE:
            raise CertificateError(f"The certificate is {found.state}", on=str(found.address), rule=rule)
        return found, certificate

    def _parsed(self, row: CertifiedKey) -> ParsedCertificate:
        if row.fingerprint not in self._remembered:
            parsed = parse_certificate(self._ders[row.fingerprint])
            if parsed.fingerprint != row.fingerprint:
                raise CertificateError("The stored certificate is not the one that was issued", on=row.fingerprint)
            self._remembered[row.fingerprint] = parsed
            _parsed.keep(parsed)
        return self._remembered[row.fingerprint]


def known(unit: Unit, skis: Collection[str]) -> Known:
    """Read what the directory says of some keys (hex), by one statement, and by another what is not remembered."""
    rows = certificate_store.keys(unit, skis)
    wanted = [row.fingerprint for some in rows.values() for row in some]
    remembered = {found.fingerprint: found for one in wanted if (found := _parsed.find(one)) is not None}
    unseen = [one for one in wanted if one not in remembered]
    return Known(rows, remembered, dict(certificate_store.ders(unit, unseen)))


class _Parsed:
    """Certificates that were read before, by the SHA-256 of their bytes, which says that they are the same bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._known: OrderedDict[Fingerprint, ParsedCertificate] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, fingerprint: Fingerprint) -> ParsedCertificate | None:
        with self._lock:
            found = self._known.get(fingerprint)
            if found is not None:
                self._known.move_to_end(fingerprint)
            return found

    def keep(self, parsed: ParsedCertificate) -> None:
        with self._lock:
            self._known[parsed.fingerprint] = parsed
            if len(self._known) > self._most:
                self._known.popitem(last=False)


_parsed = _Parsed(1024)  # each up to 20 kB
