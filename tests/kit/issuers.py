"""A home with a root and issuing CAs of the test's own choice, and the issuer process's keys to them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from pki.core import signatures, x509
from pki.core.signatures import SignatureAlgorithm
from pki.core.signers import SigningKey
from pki.server.hierarchy import encode_issuers
from pki.server.ports import CA_FOLDER, ISSUERS_FILE, ISSUING_FILE, ROOT_FILE, CaKeys
from pki.server.services.deps import Deps
from tests.kit.authority import DAY, NOW, signing_key
from workers.handlers import Hands


@dataclass(frozen=True)
class HeldSigner:
    """An issuing CA's key in memory."""

    certificate_der: bytes
    key: SigningKey

    def sign(self, message: bytes, /) -> bytes:
        """Sign."""
        return self.key.sign(message)


@dataclass(frozen=True)
class Issuers:
    """Several issuing CAs under one root, all of the same name, as after a roll-over; newest first."""

    algorithms: tuple[SignatureAlgorithm, ...] = (SignatureAlgorithm.ML_DSA_65, SignatureAlgorithm.ECDSA_P256)
    seed: int = 60
    at: datetime = NOW

    @cached_property
    def root_der(self) -> bytes:
        """The root's certificate."""
        return self._certificate("Test root", self._root, None, 1, 1)

    @cached_property
    def keys(self) -> CaKeys:
        """What the issuer process holds."""
        current, *former = (self._signer(number) for number in range(len(self.algorithms)))
        return CaKeys(current, tuple(former))

    def keys_of(self, *numbers: int) -> CaKeys:
        """Return what it would hold of these alone, the first one current."""
        current, *former = (self._signer(number) for number in numbers)
        return CaKeys(current, tuple(former))

    def write(self, home: Path, *numbers: int) -> None:
        """Write the certificates into a server's home; with ``numbers`` those of these alone."""
        folder = home / CA_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        certificates = tuple(self._signer(one).certificate_der for one in numbers or range(len(self.algorithms)))
        (folder / ROOT_FILE).write_bytes(self.root_der)
        (folder / ISSUING_FILE).write_bytes(certificates[0])
        (folder / ISSUERS_FILE).write_bytes(encode_issuers(certificates))

    @cached_property
    def _root(self) -> SigningKey:
        return signing_key(self.seed, SignatureAlgorithm.ECDSA_P384)

    def _signer(self, number: int) -> HeldSigner:
        algorithm = self.algorithms[number]
        assert algorithm not in signatures.SLH_DSA
        key = signing_key(self.seed + 1 + number, algorithm)
        return HeldSigner(self._certificate("Test issuing CA", key, self.root_der, 2 + number, 0), key)

    def _certificate(self, title: str, key: SigningKey, issuer: bytes | None, serial: int, path: int) -> bytes:
        tbs = x509.ca_tbs(
            title,
            key.public.spki,
            issuer_der=issuer,
            serial=serial,
            not_before=self.at - 400 * DAY,
            not_after=self.at + 2000 * DAY,
            path_length=path,
        )
        return x509.assemble(tbs, self._root.sign(tbs))


class HeldHands(Hands):
    """An issuer's worker with keys in memory."""

    def __init__(self, deps: Deps, keys: CaKeys) -> None:
        super().__init__(deps, ())
        self._queues = frozenset({"issue"})
        self._held = keys

    def _ca(self) -> CaKeys:
        return self._held


@contextmanager
def at_work(hands: Hands) -> Iterator[None]:
    """Let a worker do what is due in the issuer's queue meanwhile."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.01):
            hands.drain("issue")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
