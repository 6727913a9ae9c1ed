"""What the services need from outside, and where the CA's files lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from pki.core.authorities import issuer_of
from pki.core.issuance import CertificateProfile
from pki.core.signatures import SignatureAlgorithm, VerifyingKey
from pki.core.x509 import CertificateKind

CA_FOLDER = "ca"
ROOT_FILE = "root.der"
ISSUERS_FILE = "issuers.pem"
"""Where the CA's certificates lie in the server's home; all issuing CAs in one file, the current one first."""
ISSUING_FILE = "issuing.der"
"""The one issuing CA of a home of before there were several; it counts where ISSUERS_FILE is not there."""
REQUEST_FILE = "request.der"
"""The request for the next issuing CA, while it is under way."""

OFFICERS_FILE = "officers.der"
"""The list of officers, signed by an issuing CA; without it nobody may order."""
REGISTRATION_FILE = "registration.der"
"""The public half of the registration key, SubjectPublicKeyInfo in DER."""

# What the services need from outside


class Clock(Protocol):
    """Tells the time; never raises."""

    def now(self) -> datetime:
        """Return the time in UTC, with its zone."""


class IssuingKey(Protocol):
    """A key that an issuing CA has or is to have; it does one thing, sign."""

    @property
    def public(self) -> VerifyingKey:
        """Its public half."""

    def sign(self, message: bytes, /) -> bytes:
        """Return the signature over ``message``, of the key's algorithm; UnavailableError when the key is away."""


class IssuingKeys(Protocol):
    """Where the issuing CAs' keys are: files, or a token. Each is known by its public half."""

    def create(self, algorithm: SignatureAlgorithm) -> IssuingKey:
        """Make a key and keep it for good; it is there when this returns. Raises AlgorithmError."""

    def open(self, public: VerifyingKey) -> IssuingKey:
        """Return a key that is kept; SettingsError when it is not, SealError when it cannot be opened."""

    def discard(self, public: VerifyingKey) -> None:
        """Destroy a key that no certificate was made for; one that is not there is no error."""


class CaSigner(Protocol):
    """The issuing CA's key; only the process that issues holds one.

    Signing leaves no trace of its own: who calls it has stored what is to be signed before. A failure may be retried.
    Several threads may sign at once; a device that cannot do that makes them wait.
    """

    @property
    def certificate_der(self) -> bytes:
        """The issuing CA's certificate."""

    def sign(self, message: bytes, /) -> bytes:
        """Return the signature over ``message``, of the algorithm of the certificate's key.

        Raises UnavailableError when the key is away.
        """


@dataclass(frozen=True)
class CaKeys:
    """What the issuer process holds: the current issuing CA's key, and former ones whose certificates are still out.

    New certificates are issued under ``current``; ``former``, newest first, sign status only.
    """

    current: CaSigner
    former: tuple[CaSigner, ...] = ()

    @property
    def all(self) -> tuple[CaSigner, ...]:
        """Each key, the current one first."""
        return (self.current, *self.former)

    def of(self, key_identifier: bytes) -> CaSigner:
        """Return the key with this subject key identifier; raises CertificateError (rule CRT-007)."""
        found = issuer_of([one.certificate_der for one in self.all], key_identifier)
        return next(one for one in self.all if one.certificate_der == found)


class SecretOpener(Protocol):
    """The registration key: opens the secrets of invitations; only the process that issues holds one."""

    def open(self, sealed: bytes, /) -> bytes:
        """Return what was sealed to the key; raises UnwrapError, one and the same for all that is wrong."""


@dataclass(frozen=True)
class Finding:
    """What a linter has against a certificate: the standard's or the linter's own code for it, and where it is.

    One that ``stops`` is a violation; the others are advice.
    """

    severity: str
    code: str
    place: str
    message: str
    stops: bool


class Linter(Protocol):
    """Looks at a certificate before it is signed. It changes nothing, and the same certificate gets the same answer."""

    def findings(self, certificate_der: bytes, /) -> Sequence[Finding]:
        """Return what there is against a certificate whose signature is a dummy of the right size, worst first.

        Never raises for what it finds: what it cannot read, or stumbles over, is a finding that stops.
        """


class Profiles(Protocol):
    """What certificates look like; the same for as long as the process runs."""

    def of(self, kind: CertificateKind, /) -> CertificateProfile:
        """Return the profile of a kind; raises SettingsError when the operator's files cannot be used."""


class Notifier(Protocol):
    """Posts to an address that a tenant named, from inside the operator's network: it must not be led astray."""

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Send once, follow no redirect, return the HTTP status.

        Raises ForbiddenError for a target that must not be reached, UnavailableError when there is no answer: it may
        have arrived all the same, so the body carries an id that stays the same when it is sent again.
        """


class EventPublisher(Protocol):
    """The topic exchange for those who want to listen."""

    def publish(self, events: Sequence[Mapping[str, object]]) -> None:
        """Hand over CloudEvents; returns when the broker has confirmed all of them.

        Raises UnavailableError otherwise: some may have gone out, the same ones are published again.
        """
