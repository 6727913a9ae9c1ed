"""Issuing keys in more than one home: who moves to a token still has former keys in files, and the reverse."""

from __future__ import annotations

from pki.core.errors import ConflictError, SettingsError
from pki.core.signatures import SignatureAlgorithm, VerifyingKey
from pki.server.ports import IssuingKey, IssuingKeys

_PROBE = b"keymailbox: is the key in this home?"


class SeveralHomes:
    """Keys are made in one home, and looked for in all of them."""

    def __init__(self, first: IssuingKeys, *others: IssuingKeys) -> None:
        """New keys are made in ``first``."""
        self.first = first
        self._homes = (first, *others)

    def __repr__(self) -> str:
        return f"SeveralHomes{self._homes!r}"

    def create(self, algorithm: SignatureAlgorithm) -> IssuingKey:
        """Make a key in the first home; raises as that does."""
        return self.first.create(algorithm)

    def open(self, public: VerifyingKey) -> IssuingKey:
        """Return a key of whichever home has it; SettingsError with what each said when none has."""
        said: list[SettingsError] = []
        for home in self._homes:
            try:
                return home.open(public)
            except SettingsError as error:
                said.append(error)
        raise SettingsError(
            "No home has the key of the issuing CA's certificate",
            on="; ".join(str(one) for one in said),
            hint=said[-1].hint,
        )

    def discard(self, public: VerifyingKey) -> None:
        """Destroy the key wherever it is."""
        for home in self._homes:
            home.discard(public)


def demand_first(keys: IssuingKeys, public: VerifyingKey) -> None:
    """Raise ConflictError unless a key is where new ones are made, or UnavailableError when that is away."""
    home = keys.first if isinstance(keys, SeveralHomes) else keys
    try:
        home.open(public).sign(_PROBE)
    except SettingsError:
        raise ConflictError(
            "A request is under way for a key in another home, a file or a token",
            on=public.ski.hex(),
            hint="kmb-server ca install FILE, or the same again with: kmb-server ca request --discard",
        ) from None
