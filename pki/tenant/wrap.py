"""Wrap a shared key for a peer that has passed every check, and sign the whole."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from pki.core.certificates import VerifiedCertificate
from pki.core.deposits import Context, compose
from pki.core.errors import AlgorithmError
from pki.core.packages import KeyMaterial
from pki.core.policy import check_handover
from pki.core.tenants import Address
from pki.tenant.ports import KeyHolder
from pki.tenant.records.sent import Sent


@dataclass(frozen=True)
class Wrapped:
    """A deposit ready to be sent: its bytes, their SHA-512, and the fingerprint of the certificate it is for."""

    body: bytes
    sha512: bytes
    certificate: str


def check_allowed(one: Sent, certificate: VerifiedCertificate) -> None:
    """Raise AlgorithmError when the recipient's key is of EC or RSA and the sender has not allowed that for it."""
    algorithm = certificate.recipient.algorithm
    if algorithm.classical and not one.allow_classical:
        raise AlgorithmError(
            "The recipient's key can be opened by a quantum computer, and this was not allowed",
            on=f"{one.recipient}, {algorithm.title}",
            hint=f"ask {one.recipient.tenant} for: kmb cert renew; or: kmb key send {one.name.key_id}"
            f" --to {one.recipient} --allow-classical",
        )


def wrap(
    one: Sent,
    material: KeyMaterial,
    *,
    sender: Address,
    certificate: VerifiedCertificate,
    signer_ski: bytes,
    holder: KeyHolder,
    now: datetime,
) -> Wrapped:
    """Wrap ``material`` for one certificate. The caller got that from ``Directory.look_up``, which checked it."""
    check_allowed(one, certificate)
    check_handover(material, recipient=one.recipient, now=now)
    context = Context(
        sender=sender,
        recipient=one.recipient,
        key_id=one.name.key_id,
        key_version=one.name.version,
        purpose=one.purpose,
        expires=one.expires_at,
    )
    body = compose(
        material,
        context,
        package_id=bytes.fromhex(one.deposit_id),
        recipient=certificate.recipient,
        signer_ski=signer_ski,
        sign=holder.sign,
        algorithm=holder.identity_public().algorithm,
        signing_time=now,
    )
    return Wrapped(body, hashlib.sha512(body).digest(), certificate.parsed.fingerprint)
