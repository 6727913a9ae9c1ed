"""`make bench-wire`: what the wire formats cost beside the bare cryptography and beside another decoder, in one run."""

from __future__ import annotations

import argparse
import gc
import secrets
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap
from pyasn1.codec.der.decoder import decode
from pyasn1.codec.der.encoder import encode
from pyasn1_alt_modules import rfc5083, rfc5652

from bench.figures import Figure, table, within, write
from pki.core import asn1, deposits, envelope, kem, oids, policy
from pki.core.errors import KeymailboxError
from pki.core.kem import KemAlgorithm
from tests.kit.authority import NOW, acme, globex
from tests.unit import test_core_bad_input as bad_input

_RESULTS = Path("bench/results/wire.json")
_INFO = bytes(20)

Work = Callable[[], object]


def main() -> None:
    """Measure, print a table, and write bench/results/wire.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="how often each pair is measured, by turns")
    parser.add_argument("--seconds", type=float, default=0.1, help="how long one round of one side lasts")
    options = parser.parse_args()
    figures: list[Figure] = []
    # What the imports left behind is not looked through again and again: it is no cost of the formats.
    gc.collect()
    gc.freeze()

    def pair(name: str, ours: Work, bare: Work, goal: float) -> None:
        value, floor, ratio = beside(ours, bare, options.rounds, options.seconds)
        figures.append(within(name, value, "µs", floor, ratio, goal))

    _check(pair)
    for algorithm in (KemAlgorithm.COMPOSITE, KemAlgorithm.ML_KEM_768, KemAlgorithm.ML_KEM_1024):
        _sealing(pair, algorithm)
    figures += _refusals(options.rounds)
    write(figures, _RESULTS)
    print(table(figures))
    print(f"\nwritten to {_RESULTS}")


def beside(ours: Work, bare: Work, rounds: int, seconds: float) -> tuple[float, float, float]:
    """Return the CPU time of both in µs and the median of their ratios; by turns, so that both see the same machine."""
    pairs = [(_cost(ours, seconds), _cost(bare, seconds)) for _ in range(rounds)]
    ratio = statistics.median(mine / other for mine, other in pairs)
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs), ratio


def _check(pair: Callable[[str, Work, Work, float], None]) -> None:
    sender, recipient = acme(), globex()
    der = sender.deposit(recipient)
    certificate, skis = sender.verified(), [recipient.kem_ski]

    def whole() -> None:
        parsed = deposits.parse_deposit(der)
        policy.verify_deposit(parsed, sender=certificate, crl=None, recipient_skis=skis, now=NOW)

    key = MLDSA65PublicKey.from_public_bytes(sender.key.public.raw)
    signature, message = _signed(der)
    pair("deposit check, beside the bare ML-DSA-65 verify", whole, lambda: key.verify(signature, message), 1.35)
    pair("deposit decoded, no rule looked at, beside pyasn1", lambda: _decoded(der), lambda: _pyasn1(der), 0.10)
    pair(
        "deposit parsed with its rules, beside pyasn1", lambda: deposits.parse_deposit(der), lambda: _pyasn1(der), 0.10
    )


def _sealing(pair: Callable[[str, Work, Work, float], None], algorithm: KemAlgorithm) -> None:
    private = kem.generate(algorithm)
    public = kem.public_from_private(algorithm, private)
    recipient = envelope.Recipient(bytes(20), algorithm, public)
    content = secrets.token_bytes(64)
    der = envelope.wrap(content, oids.DATA, [recipient])

    def bare_seal() -> None:
        _, shared = kem.encapsulate(algorithm, public)
        cek, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
        aes_key_wrap(HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_INFO).derive(shared), cek)
        AESGCM(cek).encrypt(nonce, content, _INFO)

    ciphertext, shared = kem.encapsulate(algorithm, public)
    kek = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_INFO).derive(shared)
    cek, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
    wrapped, sealed = aes_key_wrap(kek, cek), AESGCM(cek).encrypt(nonce, content, _INFO)

    def bare_open() -> None:
        found = kem.decapsulate(algorithm, private, ciphertext)
        key = aes_key_unwrap(HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_INFO).derive(found), wrapped)
        AESGCM(key).decrypt(nonce, sealed, _INFO)

    def unwrap() -> None:
        envelope.unwrap(envelope.parse(der), bytes(20), lambda alg, sent: kem.decapsulate(algorithm, private, sent))

    pair(f"{algorithm.title} sealed", lambda: envelope.wrap(content, oids.DATA, [recipient]), bare_seal, 2.0)
    pair(f"{algorithm.title} opened", unwrap, bare_open, 2.0)


def _refusals(rounds: int) -> list[Figure]:
    """Return what the dearest refusal before cryptography costs, of bad input of each sort; the goal is 1 ms."""
    bad: dict[str, list[tuple[str, bytes]]] = {"thousands of something": [], "wrong lengths": [], "20,000 levels": []}
    for names, _, der in bad_input.crowds().values():
        bad["thousands of something"] += [(name, der) for name in names]
    for name in bad_input.PARSERS:
        bad["wrong lengths"] += [(name, length + bytes(100)) for length in bad_input.HUGE.values()]
        bad["20,000 levels"].append((name, bad_input.DEEP))
    figures = []
    for sort, cases in bad.items():
        worst = max(_refusal(name, der, rounds) for name, der in cases)
        figures.append(within(f"bad input refused, the dearest: {sort}", worst, "ms", 1.0, worst, 1.0))
    return figures


def _refusal(name: str, der: bytes, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begun = time.process_time()
        with suppress(KeymailboxError):
            bad_input.PARSERS[name](der)
        times.append((time.process_time() - begun) * 1e3)
    return statistics.median(times)


def _signed(der: bytes) -> tuple[bytes, bytes]:
    signed, _ = decode(decode(der, asn1Spec=rfc5652.ContentInfo())[0]["content"], asn1Spec=rfc5652.SignedData())
    info = signed["signerInfos"][0]
    attrs = rfc5652.SignedAttributes()
    attrs.extend(info["signedAttrs"])
    return bytes(info["signature"]), encode(attrs)


def _decoded(der: bytes) -> None:
    """Decode what pyasn1 decodes, and no more, into the core's types."""
    outer = asn1.decode(asn1.ContentInfo, der, what="")
    signed = asn1.inner(asn1.SignedData, outer.content, what="")
    inside = asn1.decode(asn1.ContentInfo, signed.content.content, what="")
    asn1.inner(asn1.AuthEnvelopedData, inside.content, what="")


def _pyasn1(der: bytes) -> None:
    signed, _ = decode(decode(der, asn1Spec=rfc5652.ContentInfo())[0]["content"], asn1Spec=rfc5652.SignedData())
    inner, _ = decode(bytes(signed["encapContentInfo"]["eContent"]), asn1Spec=rfc5652.ContentInfo())
    decode(inner["content"], asn1Spec=rfc5083.AuthEnvelopedData())


def _cost(work: Work, seconds: float) -> float:
    work()
    count, begun, end = 0, time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        work()
        count += 1
    return (time.process_time() - begun) / count * 1e6


if __name__ == "__main__":
    main()
