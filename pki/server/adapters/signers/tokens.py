"""A PKCS #11 token as one process uses it: one library, one session, one log-in, opened again after it was away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import pkcs11
from pkcs11 import exceptions as failures
from pkcs11.constants import TokenFlag
from pydantic import SecretStr

from pki.core.errors import AlgorithmError, SettingsError, UnavailableError

_log = logging.getLogger(__name__)

T = TypeVar("T")

Session = pkcs11.types.Session
"""A session that is logged in; what comes out of it is good as long as it is the token's."""

_CALLS = threading.RLock()
"""Libraries are initialized without locks of their own (PKCS #11 §5.4): one call at a time in a process."""

_PAUSE = 0.2
"""Seconds before the library is started again: another process may just be writing to the token."""
_WRONG_PIN: tuple[type[Exception], ...] = (
    failures.PinIncorrect,
    failures.PinInvalid,
    failures.PinLenRange,
    failures.PinExpired,
    failures.PinLocked,
    failures.UserPinNotInitialized,
)
_NOT_THERE = (failures.MechanismInvalid, failures.MechanismParamInvalid, failures.KeySizeRange)


@dataclass
class _Library:
    """A loaded library; sessions of an earlier ``generation`` are dead."""

    handle: Any
    generation: int = 0


_LIBRARIES: dict[str, _Library] = {}


class Token:
    """A token, found by its label; nothing is opened before it is used. Threads may share it, processes may not."""

    def __init__(self, module: str, label: str, pin: SecretStr) -> None:
        """``module`` is the path of the PKCS #11 library; the PIN is the user's, not the security officer's."""
        self.label = label
        self._module = module
        self._pin = pin
        self._session: Session | None = None
        self._writable = False
        self._generation = -1
        self._refused = ""
        self._away = False

    def __repr__(self) -> str:
        return f"Token({self.label!r})"

    @property
    def pin(self) -> str:
        """The PIN, for keys that ask for it each time (CKA_ALWAYS_AUTHENTICATE)."""
        return self._pin.get_secret_value()

    def use(self, work: Callable[[Session], T]) -> T:
        """Return what ``work`` makes of a session; it may be called three times, and must not mind.

        When the session or the token was lost, another session is tried, then the library from its start. Raises
        UnavailableError when the token is away, AlgorithmError when it does not do what is asked, SettingsError when
        library, token or PIN is not the right one; a PIN that was refused is not tried again, as tokens lock.
        """
        return self._use(work, self._keep, self._reopen, self._restart)

    def change(self, work: Callable[[Session], T]) -> T:
        """Return what ``work`` makes of a session that may write: it is called once; raises as `use` does."""
        with _CALLS:
            self._writable = True
            try:
                return self._use(work, self._reopen)
            finally:
                self._writable = False
                self.close()

    def _use(self, work: Callable[[Session], T], *steps: Callable[[], None]) -> T:
        reason = ""
        with _CALLS:
            for step in steps:
                try:
                    step()
                    done = work(self._opened())
                    self._told(away="")
                    return done
                except _NOT_THERE as error:
                    raise AlgorithmError("The token does not do this", on=self._named(error)) from None
                except failures.PKCS11Error as error:
                    reason = self._named(error)
            self.close()
            self._told(away=reason)
        raise self._gone(reason)

    def mechanisms(self) -> frozenset[int]:
        """Return the numbers of what the token can do (CKM_…); raises as `use` does."""
        return self.use(lambda session: frozenset(int(one) for one in session.token.slot.get_mechanisms()))

    def describe(self) -> str:
        """Return what the token says of itself, without logging in: no PIN is spent. Raises as `use` does."""
        with _CALLS:
            try:
                found = self._find(self._library())
                return f"{found.label}: {found.manufacturer_id} {found.model}, {found.serial.decode(errors='replace')}"
            except failures.PKCS11Error as error:
                raise self._gone(self._named(error)) from None

    def close(self) -> None:
        """Log out and give the session back; the next use opens another."""
        with _CALLS:
            session, self._session = self._session, None
            library = _LIBRARIES.get(self._module)
            if session is not None and library is not None and library.generation == self._generation:
                with suppress(failures.PKCS11Error):
                    session.close()

    def _told(self, *, away: str) -> None:
        # Each change once: while it is away every job that needs it fails, and each would say so.
        if bool(away) != self._away:
            _log.warning("the CA's token is %s", f"away: {away}" if away else f"back: {self.label}")
        self._away = bool(away)

    def _keep(self) -> None:
        """Go on with the session that is there."""

    def _reopen(self) -> None:
        self.close()

    def _restart(self) -> None:
        # Some libraries see a token that was put back only after their start (PKCS #11 §5.4, C_Finalize).
        self.close()
        time.sleep(_PAUSE)
        library = self._library()
        library.generation += 1
        library.handle.reinitialize()

    def _opened(self) -> Session:
        library = self._library()
        if self._session is None or self._generation != library.generation:
            self._session = self._log_in(library)
            self._generation = library.generation
        return self._session

    def _library(self) -> _Library:
        if self._module not in _LIBRARIES:
            try:
                _LIBRARIES[self._module] = _Library(pkcs11.lib(self._module))
            except failures.PKCS11Error as error:
                # The words are the dynamic linker's.
                raise SettingsError(
                    f"The PKCS #11 library cannot be loaded: {error}",
                    on=self._module,
                    hint="set KMB_PKCS11_MODULE to the path of the vendor's library",
                ) from None
        library = _LIBRARIES[self._module]
        if not library.handle.initialized:
            library.handle.initialize()
        return library

    def _log_in(self, library: _Library) -> Session:
        if self._refused:
            raise self._refusal()
        found = self._find(library)
        flags = found.flags
        if flags & (TokenFlag.USER_PIN_LOCKED | TokenFlag.USER_PIN_FINAL_TRY):
            locked = flags & TokenFlag.USER_PIN_LOCKED
            self._refused = "The PIN is locked" if locked else "The next wrong PIN locks the token, so none is tried"
            raise self._refusal()
        try:
            session: Session = found.open(rw=self._writable, user_pin=self.pin)
        except failures.UserAlreadyLoggedIn:
            # This process is logged in by another session, and so is each session of it (PKCS #11 §5.6.8).
            session = found.open(rw=self._writable)
        except _WRONG_PIN as error:
            self._refused = f"The token refuses the PIN: {type(error).__name__}"
            raise self._refusal() from None
        return session

    def _find(self, library: _Library) -> pkcs11.types.Token:
        found: list[pkcs11.types.Token] = list(library.handle.get_tokens(token_label=self.label))
        if not found:
            raise failures.TokenNotPresent
        if len(found) > 1:
            raise SettingsError("Several tokens have this label", on=self.label, hint="label them differently")
        return found[0]

    def _gone(self, reason: str) -> UnavailableError:
        return UnavailableError(
            "The token is away", on=reason, hint=f"pkcs11-tool --module {self._module} --list-token-slots"
        )

    def _refusal(self) -> SettingsError:
        return SettingsError(
            self._refused,
            on=self.label,
            hint=f"put the right PIN into KMB_TOKEN_PIN_FILE, try it with pkcs11-tool --module {self._module} "
            f'--token-label "{self.label}" --login --list-objects, and start again',
        )

    def _named(self, error: Exception) -> str:
        # Codes without a class of their own have their number in the text.
        code = str(error) if type(error) is failures.PKCS11Error else type(error).__name__
        return f"{self.label}: {code}"


@lru_cache(maxsize=8)
def token(module: str, label: str, pin: SecretStr) -> Token:
    """Return the one `Token` of this process for a token, so that it is logged in once, and a refused PIN stays so."""
    return Token(module, label, pin)


def release() -> None:
    """Log out of every token and let go of the libraries, in this process; what is used next begins anew."""
    with _CALLS:
        for library in _LIBRARIES.values():
            library.generation += 1
            with suppress(failures.PKCS11Error):
                library.handle.finalize()
