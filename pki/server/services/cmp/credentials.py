"""Who sent a CMP message: an invitation's secret or an active identity key protects it, or nobody did."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from pki.core import x509
from pki.core.authorities import authority_key, ca_key_identifier
from pki.core.cmp.messages import Message, name_of
from pki.core.cmp.protection import MacParameters, MacProtection, Protection, SignatureProtection, SignedBy
from pki.core.errors import BadAddressError, MalformedError, NotFoundError, SignatureError
from pki.core.tenants import parse_address
from pki.core.x509 import CertificateKind
from pki.server.facts import Instance, Invitation
from pki.server.ports import CaKeys, SecretOpener
from pki.server.services import access
from pki.server.services.deps import Deps
from pki.server.store import certificates as certificate_store
from pki.server.store import tenants as tenant_store

UNKNOWN = (
    "The message is not accepted. Reference and secret: unknown, used, expired, or from before CMP was set up."
    " A signature: not of the active identity key of the sender"
)
"""One text for everything: it tells nobody what was right."""
_REFERENCE = re.compile(rb"[0-9a-f]{16}")


@dataclass(frozen=True)
class Credential:
    """What a message is protected with, proved: ``name`` is the same for the same secret or key."""

    name: str
    answer: Protection
    key_identifier: bytes
    """What our answer names its key by."""
    invitation: Invitation | None = None
    instance: Instance | None = None


def authenticate(deps: Deps, keys: CaKeys, opener: SecretOpener | None, message: Message) -> Credential:
    """Return the credential of a message; one and the same SignatureError for all that is wrong (rule CMP-008)."""
    if isinstance(message.algorithm, MacParameters):
        return _by_secret(deps, opener, message, message.algorithm)
    if message.algorithm is not None:
        return _by_key(deps, keys, message)
    raise SignatureError(UNKNOWN, rule="CMP-008")


def _by_secret(deps: Deps, opener: SecretOpener | None, message: Message, parameters: MacParameters) -> Credential:
    reference = message.header.sender_key or b""
    invitation, secret = None, None
    if opener is not None and _REFERENCE.fullmatch(reference):
        with deps.store.read() as unit:
            invitation = tenant_store.invitation(unit, reference.decode())
        secret = access.opened_secret(invitation, opener)
    # Whoever guesses a reference waits as long as who knows one.
    known = secret if secret is not None else secrets.token_urlsafe(32)
    try:
        parameters.verify(message.protection, known.encode(), message.protected)
    except SignatureError:
        secret = None
    if invitation is None or secret is None or invitation.expires_at <= deps.clock.now():
        raise SignatureError(UNKNOWN, rule="CMP-008")
    answer = MacProtection(parameters.with_salt(secrets.token_bytes(16)), secret.encode())
    return Credential(f"reference {invitation.reference}", answer, reference, invitation=invitation)


def _by_key(deps: Deps, keys: CaKeys, message: Message) -> Credential:
    try:
        instance = _instance(deps, message)
        key = x509.identity_public_key(instance.identity_spki)
        if message.algorithm != SignedBy(key.algorithm):
            raise SignatureError
        key.verify(message.protection, message.protected)
    except (NotFoundError, BadAddressError, MalformedError, SignatureError):
        raise SignatureError(UNKNOWN, rule="CMP-008") from None
    issuing = authority_key(keys.current.certificate_der)
    answer = SignatureProtection(issuing.algorithm, keys.current.sign)
    return Credential(
        f"key {key.ski.hex()}", answer, ca_key_identifier(keys.current.certificate_der), instance=instance
    )


def _instance(deps: Deps, message: Message) -> Instance:
    """Return the instance that a signed message names as its sender, if its identity certificate is good now."""
    name = name_of(message.header.sender)
    address = parse_address(x509.common_name_of(name))
    if x509.name_der(address) != name:
        raise NotFoundError
    with deps.store.read() as unit:
        instance = tenant_store.instance(unit, address)
        identity = certificate_store.active(unit, address, CertificateKind.IDENTITY)
    if instance is None or identity is None or identity.not_after <= deps.clock.now():
        raise NotFoundError
    named = message.header.sender_key
    if named not in (None, bytes.fromhex(identity.ski)):
        raise NotFoundError
    return instance
