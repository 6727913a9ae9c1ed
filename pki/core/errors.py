"""The one family of errors: each class has a stable code, and its docstring is the default message."""

from __future__ import annotations

from typing import ClassVar


class KeymailboxError(Exception):
    """Something in keymailbox failed."""

    code: ClassVar[str] = "error"

    def __init__(
        self,
        message: str = "",
        *,
        on: str = "",
        hint: str = "",
        rule: str = "",
        at: bytes | int | None = None,
        retry_after: int | None = None,
    ) -> None:
        """Say what failed (``message``), ``on`` what, the next command (``hint``), and the rule that was broken.

        ``at`` is where: the offset in bytes, or the encoding of the offending part, which `pki.core.der.located` looks
        for in the whole. ``retry_after`` is in how many seconds the same may succeed, where that is known.
        """
        self.message = message or (type(self).__doc__ or "").split("\n", 1)[0]
        self.on = on
        self.hint = hint
        self.rule = rule
        self.retry_after = retry_after
        self.offset = at if isinstance(at, int) else None
        self.part = at if isinstance(at, bytes) else None
        super().__init__(self.message)

    def __str__(self) -> str:
        where = f" ({self.on})" if self.on else ""
        offset = f" at byte {self.offset}" if self.offset is not None else ""
        rule = f" [{self.rule}]" if self.rule else ""
        return f"{self.message}{where}{offset}{rule}"


# Bytes and formats


class MalformedError(KeymailboxError):
    """The bytes are not a DER encoding of the expected structure."""

    code = "malformed"


class TooLargeError(KeymailboxError):
    """The object is larger than the limit."""

    code = "too-large"


class ProfileError(KeymailboxError):
    """The object is well formed but outside of the wire profile."""

    code = "outside-profile"


def demand(condition: bool, rule: str, message: str, at: bytes | None = None) -> None:
    """Raise ProfileError with the number of the rule, unless it is kept; ``at`` is the offending part's encoding."""
    if not condition:
        raise ProfileError(message, rule=rule, at=at)


class AlgorithmError(KeymailboxError):
    """The algorithm is not allowed here."""

    code = "algorithm-not-allowed"


class BadAddressError(KeymailboxError):
    """An address is written tenant/instance, each of a-z, 0-9 and inner hyphens, 1 to 31 characters."""

    code = "bad-address"


# Verification


class VerificationError(KeymailboxError):
    """A check failed."""

    code = "verification-failed"


class SignatureError(VerificationError):
    """The signature does not verify under the expected key."""

    code = "bad-signature"


class CertificateError(VerificationError):
    """The certificate cannot be used."""

    code = "bad-certificate"


class UnwrapError(VerificationError):
    """The deposit cannot be opened with this key."""

    code = "cannot-open"


class SealError(VerificationError):
    """The file cannot be opened with this passphrase."""

    code = "cannot-unseal"


class ExpiredError(VerificationError):
    """The object has expired."""

    code = "expired"


class PeriodError(VerificationError):
    """Now is outside of the period for this."""

    code = "outside-period"


class RevokedError(CertificateError):
    """The certificate is revoked."""

    code = "certificate-revoked"


class WrongPartyError(VerificationError):
    """The object belongs to somebody else."""

    code = "wrong-party"


class StaleError(VerificationError):
    """The information is older than the freshness limit."""

    code = "stale"


class PinError(VerificationError):
    """The peer's identity key is not the one that was pinned."""

    code = "identity-changed"


# State


class NotFoundError(KeymailboxError):
    """There is no such thing, or it is not yours to see."""

    code = "not-found"


class DeletedError(KeymailboxError):
    """The bytes were deleted when the period for which they are kept was over."""

    code = "deleted"


class UnknownRecipientError(NotFoundError):
    """The recipient has no mailbox here."""

    code = "unknown-recipient"


class ConflictError(KeymailboxError):
    """The request conflicts with what is stored."""

    code = "conflict"


class AddressTakenError(ConflictError):
    """The address is taken by another instance."""

    code = "address-taken"


class ReplayedError(ConflictError):
    """The same object was presented before."""

    code = "replayed"


class IdempotencyError(ConflictError):
    """The idempotency key was used with another body."""

    code = "idempotency-key-reused"


class IllegalMoveError(ConflictError):
    """The state does not allow this step."""

    code = "illegal-state"


class EnrolmentError(KeymailboxError):
    """The invitation is unknown, used or expired."""

    code = "invitation-refused"


class AccessError(KeymailboxError):
    """The request is not authenticated."""

    code = "not-authenticated"


class ForbiddenError(KeymailboxError):
    """The authenticated instance may not do this."""

    code = "forbidden"


class NotWelcomeError(ForbiddenError):
    """The recipient does not take deposits from you."""

    code = "not-welcome"


class UsageError(KeymailboxError):
    """The request is missing something or has something it should not have."""

    code = "bad-request"


class UnavailableError(KeymailboxError):
    """A part of the service is away for the moment."""

    code = "unavailable"


class FullError(UnavailableError):
    """There is no room left on the server's disk: nothing of this request was done."""

    code = "full"


class BusyError(UnavailableError):
    """There is more to do than can be done in time: nothing of this request was done."""

    code = "busy"


class QuotaError(KeymailboxError):
    """A limit of how much one may have under way is reached."""

    code = "quota"


class SettingsError(KeymailboxError):
    """The configuration cannot be used."""

    code = "bad-configuration"
