"""Issuing CAs: the request for one (PKCS #10, RFC 2986), and its certificate under a root (RFC 5280)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography.x509 import load_der_x509_certificate

from pki.core import asn1, signatures, x509
from pki.core.der import located
from pki.core.errors import CertificateError, SignatureError, demand
from pki.core.signatures import SLH_DSA, Sign, SignatureAlgorithm, VerifyingKey

_S = SignatureAlgorithm

MAX_REQUEST = 16 * 1024
"""Bytes; an honest request has about 5,500, and 7,500 with ML-DSA-87."""
ROOT_LIFETIME = timedelta(days=20 * 365)
ISSUING_LIFETIME = timedelta(days=10 * 365)
SKEW = timedelta(minutes=5)
"""How much earlier than now a CA's certificate begins, for clocks that are behind."""

ROOTS = SLH_DSA | {_S.ML_DSA_65, _S.ML_DSA_87, _S.ECDSA_P384}
"""What a root's key may be: it has to last for decades."""
ISSUING: frozenset[SignatureAlgorithm] = frozenset({_S.ML_DSA_65, _S.ML_DSA_87, _S.ECDSA_P256, _S.ECDSA_P384, _S.RSA})
"""What an issuing CA's key may be: its signature is in every certificate. RSA is for tokens that have nothing newer."""

_MAX_NAME = 64  # ub-common-name (RFC 5280 appendix A.1)


@dataclass(frozen=True)
class IssuingRequest:
    """A request for an issuing CA that its own key signed; only `UnverifiedIssuingRequest.verify` makes one."""

    name: str
    key: VerifyingKey

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key's SubjectPublicKeyInfo, in hex: what two people compare."""
        return key_fingerprint(self.key)


@dataclass(frozen=True)
class UnverifiedIssuingRequest:
    """A request for an issuing CA in its form (rules ICA-001 and ICA-002)."""

    name: str
    key: VerifyingKey
    _info: bytes
    _signature: bytes

    def verify(self) -> IssuingRequest:
        """Return the request if its own key signed it, else raise SignatureError (rule ICA-003)."""
        try:
            self.key.verify(self._signature, self._info)
        except SignatureError:
            raise SignatureError("The request is not signed by its own key", on=self.name, rule="ICA-003") from None
        return IssuingRequest(self.name, self.key)


def key_fingerprint(key: VerifyingKey) -> str:
    """Return SHA-256 of a key's SubjectPublicKeyInfo, in hex."""
    return hashlib.sha256(key.spki).hexdigest()


def compose_request(name: str, key: VerifyingKey, sign: Sign) -> bytes:
    """Return the request for an issuing CA of this common name, signed by its key, in DER."""
    info = asn1.encode(
        asn1.RequestInfo(
            version=0,
            subject=asn1.tlv(x509.common_name_der(name)),
            public_key=asn1.decode(asn1.SubjectPublicKeyInfo, key.spki, what="The public key"),
            attributes=asn1.SetOf([]),
        )
    )
    return asn1.encode(
        asn1.Request(
            info=asn1.tlv(info),
            signature_algorithm=key.algorithm.identifier,
            signature=asn1.BitString(sign(info), 0),
        )
    )


@located
def parse_request(der: bytes, *, allowed: Collection[SignatureAlgorithm] = ISSUING) -> UnverifiedIssuingRequest:
    """Return a request for an issuing CA that keeps the profile (rules ICA-001 to ICA-003); nothing is verified.

    Nothing counts in it but a name and a key of an algorithm that is ``allowed``: the root decides the rest.
    """
    demand(len(der) <= MAX_REQUEST, "ICA-001", f"The request has more than {MAX_REQUEST} bytes")
    outer = asn1.decode(asn1.Request, der, what="The request")
    info_der = asn1.encode(outer.info)
    info = asn1.decode(asn1.RequestInfo, info_der, what="The request")
    demand(info.version == 0, "ICA-001", "The request is not of version 1")
    demand(not info.attributes.as_list(), "ICA-001", "The request has attributes")
    name = _name(asn1.encode(info.subject))
    key = signatures.load(asn1.encode(info.public_key), allowed=allowed, rule="ICA-003")
    algorithm = signatures.algorithm_of(outer.signature_algorithm, allowed=allowed, rule="ICA-003")
    demand(algorithm is key.algorithm, "ICA-003", "The request is signed with another algorithm than its key's")
    demand(not outer.signature.padding_bits(), "ICA-003", "The signature's bits are not whole bytes")
    return UnverifiedIssuingRequest(name, key, info_der, outer.signature.as_bytes())


def _name(subject: bytes) -> str:
    # Of one form, so that it is compared and never interpreted: up to 64 bytes, all lengths are of one byte.
    text = subject[len(x509.common_name_der("x")) - 1 :].decode("ascii", errors="replace")
    plain = 0 < len(text) <= _MAX_NAME and text.isascii() and text.isprintable()
    demand(
        plain and x509.common_name_der(text) == subject,
        "ICA-002",
        f"The request's subject is not one common name of 1 to {_MAX_NAME} printable ASCII characters",
    )
    return text


def root_tbs(name: str, key: VerifyingKey, *, serial: int, now: datetime) -> bytes:
    """Return the to-be-signed part of a root's certificate, under which there is one level of issuing CAs."""
    start = now - SKEW
    return x509.ca_tbs(
        name,
        key.spki,
        issuer_der=None,
        serial=serial,
        not_before=start,
        not_after=start + ROOT_LIFETIME,
        path_length=1,
    )


def issuing_tbs(
    request: IssuingRequest,
    *,
    root_der: bytes,
    serial: int,
    now: datetime,
    lifetime: timedelta = ISSUING_LIFETIME,
) -> bytes:
    """Return the to-be-signed part of an issuing CA's certificate, which ends with the root's at last."""
    start = now - SKEW
    last = load_der_x509_certificate(root_der).not_valid_after_utc
    return x509.ca_tbs(
        request.name,
        request.key.spki,
        issuer_der=root_der,
        serial=serial,
        not_before=start,
        not_after=min(start + lifetime, last),
        path_length=0,
    )


def same_tbs(tbs: bytes, request: IssuingRequest, *, root_der: bytes) -> bytes:
    """Return stored to-be-signed bytes if they are what this request comes to, else raise CertificateError."""
    found = asn1.decode(asn1.TbsCertificate, tbs, what="The prepared certificate")
    start, end = (
        moment.as_datetime().replace(tzinfo=UTC) for moment in (found.validity.not_before, found.validity.not_after)
    )
    made = issuing_tbs(request, root_der=root_der, serial=found.serial, now=start + SKEW, lifetime=end - start)
    if made != tbs:
        raise CertificateError("The prepared certificate is not the request's", on=request.name)
    return tbs
