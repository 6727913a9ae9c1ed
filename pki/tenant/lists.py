"""Revocation lists as one agent gets them: the changes, where it holds what they build on, and else the whole."""

from __future__ import annotations

import hashlib
from datetime import datetime

from pki.core.authorities import ca_key_identifier
from pki.core.crl import Crl, apply_delta, verify_crl, verify_delta
from pki.core.errors import KeymailboxError
from pki.tenant.client import Client
from pki.tenant.journal import Journal


class Lists:
    """Fetches lists; the newest full one of each issuing CA is kept in the journal."""

    def __init__(self, client: Client, journal: Journal) -> None:
        self._client = client
        self._journal = journal
        # What was verified in this process, by the digest of its bytes: a long list is read once.
        self._verified: dict[str, Crl] = {}
        # The number of each issuing CA's list that no delta went with, such as its first.
        self._alone: dict[bytes, int] = {}

    def newest(self, issuing: bytes, now: datetime, *, at_least: int) -> Crl | None:
        """Return what an issuing CA's newest list says, signed and fresh; None when the server has none.

        A full list that is at hand and the delta list to it say the same as the full one, or the full one is fetched:
        so it is, too, when what comes out has a lower number than ``at_least``. Raises what is wrong with the full one.
        """
        changed = self._changed(issuing, now)
        if changed is not None and changed.number >= at_least:
            return changed
        der = self._client.crl(ca_key_identifier(issuing))
        if der is None:
            return None
        found = verify_crl(der, issuing_der=issuing, now=now)
        self._keep(issuing, der, found)
        return found

    def _changed(self, issuing: bytes, now: datetime) -> Crl | None:
        """Return the list at hand with what has changed since; None where that cannot be."""
        ski = ca_key_identifier(issuing)
        held = self._held(ski, issuing, now)
        if held is None or self._alone.get(ski) == held.number:
            return None
        der = self._client.delta(ski)
        if der is None:
            self._alone[ski] = held.number
            return None
        try:
            delta = verify_delta(der, issuing_der=issuing, now=now)
            if (delta.number, delta.this_update, delta.issuer) == (held.number, held.this_update, held.issuer):
                # It came out together with the list that we hold: there is nothing newer.
                return held
            return apply_delta(held, delta)
        except KeymailboxError:
            # Whatever is wrong with it: what counts is the full list.
            return None

    def _held(self, ski: bytes, issuing: bytes, now: datetime) -> Crl | None:
        der = self._journal.lists.of(ski)
        if der is None:
            return None
        digest = hashlib.sha256(issuing + der).hexdigest()
        try:
            # Signatures never change their mind; the clock is looked at each time.
            found = self._verified.get(digest) or verify_crl(der, issuing_der=issuing, now=now)
        except KeymailboxError:
            return None
        self._verified = {digest: found} | {key: one for key, one in self._verified.items() if one.issuer != ski}
        return found if now <= found.next_update else None

    def _keep(self, issuing: bytes, der: bytes, found: Crl) -> None:
        self._verified[hashlib.sha256(issuing + der).hexdigest()] = found
        self._journal.lists.keep(ca_key_identifier(issuing), found.number, der)
