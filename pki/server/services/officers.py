"""The operator's officers: their list lies beside the CA, and changes only with the CA's key."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pki.core import officers, signatures
from pki.core.authorities import ca_key_identifier, issuer_of, verify_authorities
from pki.core.errors import ForbiddenError, NotFoundError, SettingsError, StaleError
from pki.core.events import EventType
from pki.core.officers import Officer, Officers
from pki.core.signatures import IDENTITY
from pki.server.ports import CA_FOLDER, OFFICERS_FILE, CaKeys, CaSigner
from pki.server.services import events
from pki.server.services.deps import Deps
from pki.server.store import events as event_store
from pki.server.store import orders as order_store
from pki.server.store.engine import Unit

_CURSOR = "officers"
_ADD = "kmb-server officer add NAME --key FILE.pub"


def read(deps: Deps, unit: Unit) -> Officers:
    """Return the list, verified (rules ORD-001, -002).

    Raises NotFoundError where there is none, SignatureError when the CA did not sign it, CertificateError for a CA that
    is not under the root, StaleError when there was a newer one: both the file and the database remember its number.
    """
    path = _path(deps)
    last = event_store.cursor(unit, _CURSOR)
    try:
        der = path.read_bytes()
    except FileNotFoundError:
        if last:
            raise StaleError("The list of officers is gone", on=str(path), hint=_ADD, rule="ORD-002") from None
        raise NotFoundError("There are no officers", on=str(path), hint=_ADD) from None
    except OSError as error:
        raise SettingsError(f"The list of officers cannot be read: {error.strerror}", on=str(path)) from None
    unverified = officers.parse_officers(der)
    chain = deps.chain
    issuing = issuer_of(chain.all, unverified.authority)
    found = unverified.verify(issuing)
    # Who can write the home can put a CA of their own among the former ones; the root has not signed that.
    verify_authorities(issuing_der=issuing, root_der=chain.root, now=found.issued)
    if found.number < last:
        raise StaleError(
            "There was a newer list of officers", on=f"{found.number} after {last}", hint=_ADD, rule="ORD-002"
        )
    return found


def add(deps: Deps, keys: CaKeys, name: str, spki: bytes) -> Officers:
    """Make a person an officer for ever more, by the public half of their own key in DER.

    Raises UsageError for what is no name, ConflictError for a name or a key that somebody had before, AlgorithmError.
    """
    key = signatures.load(spki, allowed=IDENTITY, rule="ORD-001")
    now = deps.clock.now().replace(microsecond=0)
    new = Officer(officers.officer_name(name), key, now)
    return _change(deps, keys, new, EventType.OFFICER_ADDED, now)


def remove(deps: Deps, keys: CaKeys, name: str) -> Officers:
    """Let a person be no officer from now on; what they signed before stays proved. Raises NotFoundError."""
    now = deps.clock.now().replace(microsecond=0)
    with deps.store.read() as unit:
        try:
            gone = read(deps, unit).at(name, now)
        except ForbiddenError:
            raise NotFoundError("There is no such officer", on=name[:64], hint="kmb-server officer list") from None
    return _change(deps, keys, replace(gone, removed=now), EventType.OFFICER_REMOVED, now)


def sign_anew(deps: Deps, keys: CaKeys) -> None:
    """Have the current issuing CA sign the list, if a former one did: when that is gone, nobody could verify it."""
    current = ca_key_identifier(keys.current.certificate_der)
    with deps.store.unit() as unit:
        order_store.hold(unit)
        try:
            before = read(deps, unit)
        except NotFoundError:
            return
        if officers.parse_officers(_path(deps).read_bytes()).authority == current:
            return
        now = deps.clock.now().replace(microsecond=0)
        _write(_path(deps), _signed(keys.current, before.number + 1, before.listed, now))
        event_store.set_cursor(unit, _CURSOR, before.number + 1)
        read(deps, unit)


def _change(deps: Deps, keys: CaKeys, changed: Officer, told: EventType, now: datetime) -> Officers:
    with deps.store.unit() as unit:
        order_store.hold(unit)
        try:
            before = read(deps, unit)
            number, listed = before.number, before.listed
        except NotFoundError:
            number, listed = 0, ()
        rest = [one for one in listed if one.name != changed.name]
        if told is EventType.OFFICER_ADDED or len(rest) == len(listed):
            listed = officers.with_officer(listed, changed)
        else:
            listed = tuple(changed if one.name == changed.name else one for one in listed)
        der = _signed(keys.current, number + 1, listed, now)
        _write(_path(deps), der)
        event_store.set_cursor(unit, _CURSOR, number + 1)
        happened = events.event(
            told, changed.name, now, officer=changed.name, key=changed.key.ski.hex(), number=number + 1
        )
        event_store.append(unit, [happened])
        return read(deps, unit)


def _signed(signer: CaSigner, number: int, listed: Sequence[Officer], now: datetime) -> bytes:
    issuing = signer.certificate_der
    tbs = officers.officers_tbs(number, ca_key_identifier(issuing), now, listed)
    return officers.assemble(tbs, signer.sign(tbs), issuing)


def _path(deps: Deps) -> Path:
    return deps.settings.home / CA_FOLDER / OFFICERS_FILE


def _write(path: Path, content: bytes) -> None:
    """Replace the file, on disk for good, or leave it as it was."""
    handle, made = tempfile.mkstemp(prefix=".officers-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(made).chmod(0o644)
        Path(made).replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise SettingsError(f"The list of officers cannot be written: {error.strerror}", on=str(path)) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(made).unlink()
