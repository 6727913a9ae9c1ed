"""An issuing CA that can sign: its certificate, and the key that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cryptography.x509 import load_der_x509_certificate

from pki.core.authorities import authority_key
from pki.core.errors import SettingsError
from pki.server.facts import CaChain
from pki.server.ports import CaKeys, IssuingKey, IssuingKeys


@dataclass(frozen=True)
class HeldKey:
    """A `CaSigner` of a certificate and the key that it names."""

    certificate_der: bytes = field(repr=False)
    _key: IssuingKey = field(repr=False)

    def sign(self, message: bytes, /) -> bytes:
        """Return the signature over ``message``; UnavailableError when the key is away."""
        return self._key.sign(message)


def hold(keys: IssuingKeys, certificate_der: bytes) -> HeldKey:
    """Open the key of an issuing CA's certificate. Raises SettingsError when it is another's, and what opening does."""
    public = authority_key(certificate_der)
    key = keys.open(public)
    if key.public != public:
        raise SettingsError("The CA's key and certificate do not belong together", on=public.ski.hex())
    return HeldKey(certificate_der, key)


def hold_all(keys: IssuingKeys, chain: CaChain, now: datetime) -> CaKeys:
    """Open the keys of all issuing CAs: the current one's, and former ones that are valid ``now``."""
    valid = [one for one in chain.former if load_der_x509_certificate(one).not_valid_after_utc > now]
    return CaKeys(hold(keys, chain.issuing), tuple(hold(keys, one) for one in valid))
