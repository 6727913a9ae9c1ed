"""Requests for issuing CAs: rules ICA-…."""

from __future__ import annotations

from collections.abc import Iterator

from tests.kit import forge, tlv
from tests.kit import forge_pki as pki
from tests.kit.forge_pki import ISSUING, STRANGER
from tests.vectors.cases import Case

NAME = forge.name(("2.5.4.3", "keymailbox issuing 1a2b3c4d"))
NULLED = tlv.algorithm(forge.ML_DSA_65, tlv.NULL)
ED25519 = tlv.algorithm("1.3.101.112")
TIME = tlv.attribute(forge.SIGNING_TIME, tlv.utc(pki.NOW))


def issuing_requests() -> Iterator[Case]:
    """Yield a good request for an issuing CA, and broken ones."""

    def made(subject: bytes = NAME, **changes: object) -> bytes:
        wish: dict[str, object] = {"key": ISSUING, "sign": ISSUING.sign, "attributes": [], **changes}
        return pki.request(subject=subject, **wish)  # type: ignore[arg-type]  # each as `request` takes it

    yield Case("good", "issuing-request", "", "A request for an issuing CA", made())
    for rule, name, why, body in (
        ("ICA-001", "version-2", "Version 2", made(version=1)),
        ("ICA-001", "attributes", "It has a signing time", made(attributes=[TIME])),
        ("ICA-001", "large", "It has 16 KiB of name", made(forge.name(("2.5.4.3", "x" * 16384)))),
        ("ICA-002", "address", "An instance's subject", made(forge.address_name("globex/main"))),
        ("ICA-002", "no-name", "No name at all", made(tlv.seq())),
        ("ICA-002", "empty-name", "An empty name", made(forge.name(("2.5.4.3", "")))),
        ("ICA-002", "long-name", "A name of 65 characters", made(forge.name(("2.5.4.3", "x" * 65)))),
        ("ICA-002", "control", "A name that moves the cursor", made(forge.name(("2.5.4.3", "root\x1b[2J")))),
        ("ICA-002", "not-ascii", "A name that looks like another", made(forge.name(("2.5.4.3", "r\u043e\u043et")))),
        ("ICA-003", "null-parameters", "NULL parameters of the signature's algorithm", made(algorithm=NULLED)),
        ("ICA-003", "unused-bits", "The signature's last bits are said to be unused", made(unused=3)),
        ("ICA-003", "other-signer", "Signed by another key", made(sign=STRANGER.sign)),
        ("ICA-003", "ed25519", "An Ed25519 key", made(spki=tlv.seq(ED25519, tlv.bits(bytes(range(32)))))),
        ("ICA-003", "short-key", "The key has a byte less", made(spki=tlv.seq(forge.GOOD, tlv.bits(bytes(1951))))),
    ):
        yield Case(name, "issuing-request", rule, why, body)
