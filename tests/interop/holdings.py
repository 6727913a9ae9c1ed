"""Our objects in the files that peers read: certificates in PEM, private keys as PKCS #8."""

from __future__ import annotations

import base64
from operator import attrgetter

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM1024PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pki.core import asn1, packages
from pki.core.keys import EcAlgorithm, KemAlgorithm, RsaAlgorithm
from pki.core.signatures import IDENTITY, SignatureAlgorithm
from tests.interop.commands import Tool
from tests.kit.authority import NOW, Party

AT = ("-attime", str(int(NOW.timestamp())))
"""The time of the tests."""
IDENTITIES: list[SignatureAlgorithm] = sorted(IDENTITY, key=lambda one: one.title)
TITLE = attrgetter("title")
"""Names a test's parameter."""


def pem(der: bytes, label: str = "CERTIFICATE") -> bytes:
    """Return DER in PEM."""
    text = base64.encodebytes(der).decode().replace("\n", "")
    lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n".encode()


def pkcs8(party: Party) -> bytes:
    """Return a party's encryption key as PKCS #8 in DER: the seed for ML-KEM, raw for the composite."""
    if party.algorithm is KemAlgorithm.COMPOSITE:
        algorithm = asn1.AlgorithmIdentifier(algorithm=party.algorithm.oid, parameters=None)
        info = packages.OneAsymmetricKey(
            version=0, algorithm=algorithm, private_key=party.private, attributes=None, public_key=None
        )
        return asn1.encode(info)
    if isinstance(party.algorithm, RsaAlgorithm):
        return party.private
    key: MLKEM768PrivateKey | MLKEM1024PrivateKey | ec.EllipticCurvePrivateKey
    if party.algorithm is KemAlgorithm.ML_KEM_768:
        key = MLKEM768PrivateKey.from_seed_bytes(party.private)
    elif party.algorithm is KemAlgorithm.ML_KEM_1024:
        key = MLKEM1024PrivateKey.from_seed_bytes(party.private)
    else:
        curve = ec.SECP256R1() if party.algorithm is EcAlgorithm.P_256 else ec.SECP384R1()
        key = ec.derive_private_key(int.from_bytes(party.private, "big"), curve)
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def trust(tool: Tool, party: Party) -> tuple[str, ...]:
    """Write the CA's certificates and say what makes OpenSSL believe in them at the time of the tests."""
    tool.put("root.pem", pem(party.authority.root_der))
    tool.put("issuing.pem", pem(party.authority.issuing_der))
    return ("-CAfile", "root.pem", *AT)


def keys(tool: Tool, party: Party) -> tuple[str, ...]:
    """Write a recipient's certificate and key, and say where they are."""
    recip = tool.put("recipient.pem", pem(party.encryption_der))
    return ("-recip", recip, "-inkey", tool.put("recipient.key", pem(pkcs8(party), "PRIVATE KEY")))


def signers(tool: Tool, party: Party) -> tuple[str, ...]:
    """Write the signer's certificate with its issuer's, and say that no other counts."""
    chain = pem(party.identity_der) + pem(party.authority.issuing_der)
    return ("-nointern", "-certfile", tool.put("signer.pem", chain), "-purpose", "any", *trust(tool, party))
