"""The decoders that take bytes from others, each with what is done next with what it lets through, and its seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache

from pki.core import (
    capabilities,
    counterfoils,
    crl,
    deposits,
    envelope,
    errorcodes,
    issuers,
    keys,
    links,
    ocsp,
    officers,
    oids,
    orders,
    packages,
    paths,
    receipts,
    requests,
    revocations,
    signatures,
    signing,
    x509,
)
from pki.core.cmp import bodies, messages
from pki.core.cmp.protection import ITERATIONS, MacParameters
from pki.core.errors import SignatureError
from pki.core.profile import Profile
from pki.core.signatures import VerifyingKey
from pki.tenant.objects import ber, looking, reading
from pki.tenant.objects.outline import Node
from tests.kit import forge, forge_pki, tlv
from tests.kit.authority import NOW, PACKAGE_ID
from tests.kit.forge_classical import RsaReader, RsaSigner
from tests.kit.vectors import FOLDER, load, own

Decoder = Callable[[bytes], object]


@cache
def _pinned() -> VerifyingKey:
    return signatures.from_raw(forge_pki.ACME.public)


@cache
def _shared(name: str) -> bytes:
    return load(FOLDER / "keys" / f"{name}.txt").body


def deposit(data: bytes) -> object:
    """Parse a deposit as the server does, and check its signature."""
    return deposits.parse_deposit(data).signed.verify(_pinned())


def counterfoil(data: bytes) -> object:
    """Parse what is kept of a deposit, and check its signature."""
    return counterfoils.parse(data).verify(_pinned())


def deposit_context(data: bytes) -> object:
    """Parse the context of a deposit; what is accepted is written in the same way."""
    context = deposits.decode_context(data)
    assert context.encode() == data
    return context


def strict_envelope(data: bytes) -> object:
    """Parse an envelope as the server does, and open it."""
    return _opened(envelope.parse(data))


def read_envelope(data: bytes) -> object:
    """Parse an envelope of others, and open it."""
    return _opened(envelope.parse(data, profile=Profile.READ))


def _opened(parsed: envelope.ParsedEnvelope) -> bytes:
    private = forge_pki.GLOBEX_KEY.private
    return envelope.unwrap(
        parsed, forge_pki.GLOBEX_KEY.ski, lambda found, sent: keys.recover(found, _fitting(found, private), sent)
    )


@cache
def _fitting(algorithm: keys.KeyAlgorithm, private: bytes) -> bytes:
    if isinstance(algorithm, keys.RsaAlgorithm):
        return keys.load_private(_shared("rsa-3072-key"))[1]
    return (
        private[:1] * algorithm.private_size if isinstance(algorithm, keys.KemAlgorithm) else private[: algorithm.size]
    )


def read_signed(data: bytes) -> object:
    """Parse a signed object of others, and check its signature."""
    signed = signing.parse(data, content_types=None, extra=(), profile=Profile.READ)
    return signed.verify(_pinned())


def symmetric_package(data: bytes) -> object:
    """Take the key out of a symmetric key package."""
    return packages.decode_package(oids.SYMMETRIC_KEY_PACKAGE, data)


def read_package(data: bytes) -> object:
    """Take the key out of a symmetric key package of others."""
    return packages.decode_package(oids.SYMMETRIC_KEY_PACKAGE, data, profile=Profile.READ)


def asymmetric_package(data: bytes) -> object:
    """Take the key out of an asymmetric key package; what is accepted can be wrapped again."""
    material = packages.decode_package(oids.ASYMMETRIC_KEY_PACKAGE, data)
    assert packages.encode_package(material)[0] == oids.ASYMMETRIC_KEY_PACKAGE
    return material


def receipt(data: bytes) -> object:
    """Parse an answer, and check it against a deposit."""
    sender = receipts.parse_receipt(data)
    return sender.verify(
        _pinned(), recipient=sender.received_by, deposit=deposits.deposit_id(PACKAGE_ID), sha512=sender.digest
    )


def read_receipt(data: bytes) -> object:
    """Parse an answer of others."""
    return receipts.parse_receipt(data, profile=Profile.READ)


def error_code(data: bytes) -> object:
    """Parse an error code; what is accepted is written in the same way."""
    code = errorcodes.parse_code(data)
    assert code.encode() == data
    return code.name


def revocation(data: bytes) -> object:
    """Parse a revocation request, and check its signature."""
    return revocations.parse_revocation(data).verify(_pinned())


def request(data: bytes) -> object:
    """Parse a certificate request, and check its signature."""
    return requests.parse_request(data).verify(_pinned())


def cmp_message(data: bytes) -> object:
    """Read a CMP message and its body, and check a MAC; without what came along it is the same message."""
    message = messages.parse(data)
    assert messages.parse(message.bare).protected == message.protected
    if isinstance(message.algorithm, MacParameters):
        assert message.algorithm.iterations <= ITERATIONS[1]
        with suppress(SignatureError):
            message.algorithm.with_salt(bytes(16)).verify(message.protection, b"secret", message.protected[:64])
    return bodies.read(message)


def certificate(data: bytes) -> object:
    """Parse a certificate, and check its chain."""
    parsed = x509.parse_certificate(data)
    x509.verify_chain(parsed, issuing_der=_shared("issuing"), root_der=_shared("root"), now=NOW)
    return parsed


def any_certificate(data: bytes) -> object:
    """Parse a certificate of any issuer, and look for its path."""
    trust, untrusted = links.parse(_shared("root")), links.parse(_shared("issuing"))
    return paths.find(links.parse(data), trust=[trust], untrusted=[untrusted], now=NOW)


def revocation_list(data: bytes) -> object:
    """Check a revocation list."""
    return crl.verify_crl(data, issuing_der=_shared("issuing"), now=NOW)


def delta_list(data: bytes) -> object:
    """Check a delta list, and put it on top of a full one."""
    delta = crl.verify_delta(data, issuing_der=_shared("issuing"), now=NOW)
    return crl.apply_delta(crl.verify_crl(_shared("crl"), issuing_der=_shared("issuing"), now=NOW), delta)


def issuing_request(data: bytes) -> object:
    """Parse a request for an issuing CA, and check its signature; what is accepted is certified."""
    request = issuers.parse_request(data).verify()
    return issuers.issuing_tbs(request, root_der=_shared("root"), serial=7, now=NOW)


def ocsp_request(data: bytes) -> object:
    """Read an OCSP request; what is accepted can be answered."""
    request = ocsp.parse_request(data)
    answers = [ocsp.Answer(one, ocsp.Standing.UNKNOWN, NOW, NOW) for one in request.asked]
    return ocsp.response_tbs(_shared("issuing"), answers, produced_at=NOW, nonce=request.nonce)


def officer_list(data: bytes) -> object:
    """Check a list of officers."""
    return officers.parse_officers(data).verify(_shared("issuing"))


@cache
def _listed() -> officers.Officers:
    return officers.parse_officers(_shared("officers")).verify(_shared("issuing"))


def order(data: bytes) -> object:
    """Parse an officer's order, and check who gave it."""
    return orders.parse_order(data).ordered_by(_listed())


def approval(data: bytes) -> object:
    """Parse an approval, and check it with an order."""
    parsed = orders.parse_approval(data)
    return orders.verify_order(orders.parse_order(_shared("order")), parsed, _listed(), now=NOW)


def private_key(data: bytes) -> object:
    """Read a private key of a file, and make its public key."""
    algorithm, private = keys.load_private(data)
    return keys.public_from_private(algorithm, private)


def encryption_key(data: bytes) -> object:
    """Read a public key to wrap for."""
    return keys.parse_spki(data, profile=Profile.READ)


def verifying_key(data: bytes) -> object:
    """Read a public key to verify with."""
    return signatures.load(data)


def preferences(data: bytes) -> object:
    """Read what the owner of a key prefers."""
    return capabilities.parse_capabilities(data)


def foreign(data: bytes) -> object:
    """Turn BER into DER, which stays as it is when it is turned again; and read it as an envelope."""
    der = ber.to_der(data)
    assert ber.to_der(der) == der
    return envelope.parse(der, profile=Profile.READ)


def show(data: bytes) -> object:
    """Show any object as a tree, from which no control character may come."""
    for source in reading.decode_all(data):
        seen = looking.look(source)
        assert _printable(seen.tree)
    return data


def _printable(node: Node) -> bool:
    return (node.name + node.value).isprintable() and all(_printable(one) for one in node.items)


def file(data: bytes) -> object:
    """Read what a file holds: DER, BER or PEM."""
    return list(reading.decode_all(data))


DECODERS: dict[str, Decoder] = {
    "deposit": deposit,
    "counterfoil": counterfoil,
    "context": deposit_context,
    "envelope": strict_envelope,
    "envelope-read": read_envelope,
    "signed-read": read_signed,
    "package": symmetric_package,
    "package-read": read_package,
    "package-asymmetric": asymmetric_package,
    "receipt": receipt,
    "receipt-read": read_receipt,
    "error-code": error_code,
    "revocation": revocation,
    "request": request,
    "cmp": cmp_message,
    "certificate": certificate,
    "any-certificate": any_certificate,
    "crl": revocation_list,
    "crl-delta": delta_list,
    "ocsp-request": ocsp_request,
    "issuing-request": issuing_request,
    "officers": officer_list,
    "order": order,
    "approval": approval,
    "pkcs8": private_key,
    "encryption-key": encryption_key,
    "verifying-key": verifying_key,
    "capabilities": preferences,
    "ber": foreign,
    "file": file,
    "show": show,
}
_KINDS = {
    "envelope-read": "envelope",
    "signed-read": "deposit",
    "package-read": "package",
    "package-asymmetric": "package",
    "receipt-read": "receipt",
    "any-certificate": "certificate",
    "ber": "envelope",
}


def seeds(name: str) -> Iterable[bytes]:
    """Return objects to start from: our own vectors of this kind, good and bad."""
    kind = _KINDS.get(name, name)
    yield from (vector.body for vector in map(load, own()) if vector.header["kind"] == kind)
    if name == "context":
        parsed = deposits.parse_deposit(load(FOLDER / "accepted" / "deposit-deposit.txt").body)
        yield parsed.signed.attributes[oids.DEPOSIT_CONTEXT]
    elif name == "counterfoil":
        yield counterfoils.cut(load(FOLDER / "accepted" / "deposit-deposit.txt").body)
    elif name == "error-code":
        yield from (errorcodes.ErrorCode(71).encode(), errorcodes.ErrorCode(oids.DATA).encode())
    elif name == "pkcs8":
        yield from (load(path).body for path in sorted((FOLDER / "keys").glob("*-key.txt")))
    elif name == "encryption-key":
        for path in sorted((FOLDER / "keys").glob("*-key.txt")):
            algorithm, private = keys.load_private(load(path).body)
            yield keys.spki(algorithm, keys.public_from_private(algorithm, private))
    elif name == "capabilities":
        yield tlv.seq(tlv.algorithm("1.2.840.113549.1.9.16.3.29"), tlv.algorithm("1.2.840.113549.1.1.7", tlv.seq()))
    elif name == "ber":
        # An indefinite length around the content, and octets in pieces.
        whole = forge.envelope([forge.kem_recipient(forge_pki.GLOBEX_KEY, forge.CEK)])
        yield b"\x30\x80" + whole[4:] + b"\0\0"
        yield b"\x24\x80\x04\x01a\x04\x01b\0\0"
    elif name == "show":
        yield from (vector.body for vector in map(load, own()) if vector.header["expect"] == "accepted")
    elif name == "file":
        crl = _shared("crl")
        yield crl
        yield reading.encode_pem(_shared("root"), "CERTIFICATE") + b"\n" + reading.encode_pem(crl, "X509 CRL")
    elif name == "verifying-key":
        yield forge_pki.ACME.spki
        yield RsaSigner(RsaReader(_shared("rsa-3072-key"))).spki
        yield bytes.fromhex("302a300506032b6570032100") + bytes.fromhex(
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        )
