"""Certificates by CMP: asked for (ir, cr, kur, p10cr), issued, handed out, and confirmed (certConf)."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from pki.core import x509
from pki.core.certificates import (
    CertificateRecord,
    CertificateState,
    RequestState,
    check_stored,
    proof_of_decryption,
)
from pki.core.cmp import answers, bodies, messages
from pki.core.cmp.messages import Message
from pki.core.cmp.types import Body, Fail
from pki.core.errors import (
    EnrolmentError,
    ForbiddenError,
    IllegalMoveError,
    NotFoundError,
    ProfileError,
    ReplayedError,
    UsageError,
    VerificationError,
)
from pki.core.ids import RequestId
from pki.core.requests import UnverifiedRequest, parse_request
from pki.core.signatures import SignatureAlgorithm
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind
from pki.server.facts import Caller, Instance, Invitation, RequestRecord, Transaction
from pki.server.ports import CaKeys
from pki.server.services import access, admission, certificates, issuing
from pki.server.services.cmp.credentials import UNKNOWN, Credential
from pki.server.services.cmp.exchanges import Move
from pki.server.services.deps import Deps
from pki.server.store import certificates as certificate_store
from pki.server.store import exchanges as store
from pki.server.store import tenants as tenant_store
from pki.server.store.engine import Unit

ANSWERED_BY: Mapping[Body, Body] = {Body.IR: Body.IP, Body.CR: Body.CP, Body.P10CR: Body.CP, Body.KUR: Body.KUP}
"""What asks for a certificate, and what brings it."""
ISSUING, CONFIRMING, CLOSED = "issuing", "confirming", "closed"
CONFIRM_WITHIN = timedelta(minutes=15)
"""For how long a transaction waits for its confirmation; a certificate that nobody confirmed is never listed."""
_PKCS10_NUMBER = -1
"""The request's number where PKCS #10 has none (RFC 9483 §4.1.4)."""


@dataclass(frozen=True)
class Answer:
    """What is said, and with which header."""

    kind: Body
    content: bytes
    nonce: bytes
    implicit: bool = False
    sealed: bool = False
    """Whether EnvelopedData is in it, which version 3 brought (RFC 9810 §7)."""
    move: Move | None = None
    """What becomes of the transaction when this is stored, at once: who does it again comes to the same end."""


def enrol(deps: Deps, keys: CaKeys, credential: Credential, message: Message, digest: str) -> Answer:
    """Issue the certificate that a message asks for; a message that came before comes to the same end.

    Raises what is wrong with the request, and UnavailableError where the CA's key or the store is away.
    """
    now = deps.clock.now()
    with deps.store.unit() as unit:
        # Two workers may have the same message, of whom the first one's lease is over: one opens the transaction.
        store.exchange(unit, digest, lock=True)
        transaction = store.transaction(unit, message.header.transaction.hex(), lock=True)
        if transaction is None:
            transaction = _opened(unit, credential, message, digest, now)
        elif transaction.digest != digest or transaction.expires_at <= now:
            raise ReplayedError("The transactionID is in use", rule="CMP-009")
    result = issuing.issue(deps, keys, [transaction.request_id])[transaction.request_id]
    if isinstance(result, Exception):
        raise result
    kind = ANSWERED_BY[message.kind]
    if result.state is RequestState.REJECTED:
        text = answers.refusal(transaction.number, Fail.BAD_CERT_TEMPLATE, result.reason or "The request was rejected")
        return Answer(kind, text, transaction.nonce, move=Move(transaction.id, ISSUING, CLOSED))
    record = _issued(deps, result)
    in_the_clear = record.kind is not CertificateKind.ENCRYPTION
    implicit = message.header.implicit_confirm and in_the_clear
    move = Move(transaction.id, ISSUING, CLOSED if implicit else CONFIRMING)
    if in_the_clear:
        # RFC 9810 §5.3.2: what a shared secret vouches for may be trusted.
        trusted = [deps.chain.root] if credential.invitation is not None else []
        content = answers.certificate(transaction.number, record.der, trusted)
        return Answer(kind, content, transaction.nonce, implicit=implicit, move=move)
    chain = deps.chain
    verified = check_stored(
        record.der, kind=record.kind, issuing_der=chain.all, root_der=chain.root, now=deps.clock.now()
    )
    content = answers.encrypted_certificate(transaction.number, record.der, verified.recipient)
    return Answer(kind, content, transaction.nonce, sealed=True, move=move)


def confirm(deps: Deps, credential: Credential, message: Message) -> Answer:
    """Take a confirmation: an encryption certificate whose hash comes back becomes active (rules CMP-009, -010).

    A wrong hash ends the transaction, so that nobody tries twice. Raises NotFoundError where nothing waits for it.
    """
    said = bodies.parse_confirmation(message.content)
    with deps.store.read() as unit:
        transaction = store.transaction(unit, message.header.transaction.hex())
        request = None if transaction is None else certificate_store.request(unit, transaction.request_id)
    if transaction is None or request is None or transaction.credential != credential.name:
        raise NotFoundError("No transaction waits for this confirmation", rule="CMP-009")
    if transaction.state != CONFIRMING or transaction.expires_at <= deps.clock.now():
        raise IllegalMoveError("The transaction waits for no confirmation", rule="CMP-009")
    if message.header.recipient_nonce != transaction.nonce:
        raise VerificationError("The recipNonce is not the nonce of the answer", rule="CMP-009")
    nonce, closing = secrets.token_bytes(16), Move(transaction.id, CONFIRMING, CLOSED)
    if not said.accepted:
        # An encryption certificate stays unproved and is never listed; the owner may revoke an identity certificate.
        return Answer(Body.PKICONF, answers.confirmed(), nonce, move=closing)
    record = _issued(deps, request)
    if said.number != transaction.number or not _is_hash(said, record):
        wrong = answers.error(Fail.BAD_CERT_ID, "This is not the hash of the certificate [CMP-010]")
        return Answer(Body.ERROR, wrong, nonce, move=closing)
    if record.kind is CertificateKind.ENCRYPTION:
        caller = Caller(_instance(deps, transaction.address))
        certificates.prove(deps, caller, transaction.request_id, proof_of_decryption(record.der))
    return Answer(Body.PKICONF, answers.confirmed(), nonce, move=closing)


def close(deps: Deps, credential: Credential, message: Message) -> Answer:
    """End the transaction of who tells of an error."""
    with deps.store.unit() as unit:
        transaction = store.transaction(unit, message.header.transaction.hex(), lock=True)
        if transaction is not None and transaction.credential == credential.name:
            store.set_state(unit, transaction.id, transaction.state, CLOSED)
    return Answer(Body.PKICONF, answers.confirmed(), secrets.token_bytes(16))


def _opened(unit: Unit, credential: Credential, message: Message, digest: str, now: datetime) -> Transaction:
    """Queue the request with its transaction, all of it or nothing."""
    if message.kind is Body.P10CR:
        der, number, old = message.content, _PKCS10_NUMBER, None
    else:
        asked = bodies.parse_key_request(message.content)
        der, number, old = message.bare, asked.number, asked.old
    unverified = parse_request(der)
    if credential.instance is not None:
        address = credential.instance.address
        if message.header.time is None:
            raise ProfileError("A signed message says when it was signed", rule="CMP-007")
        # PKCS #10 of other tools has no time of its own: a recorded message would be as good as a new one.
        admission.check_time(message.header.time, now)
        if old is not None:
            _check_old(unit, address, old)
        request_id = _of_instance(unit, credential.instance, unverified, now)
    else:
        assert credential.invitation is not None
        address = unverified.address
        request_id = _of_invited(unit, credential.invitation, message.kind, unverified, now)
    transaction = Transaction(
        id=message.header.transaction.hex(),
        digest=digest,
        credential=credential.name,
        address=address,
        request_id=request_id,
        number=number,
        nonce=secrets.token_bytes(16),
        state=ISSUING,
        expires_at=now + CONFIRM_WITHIN,
    )
    if not store.open_transaction(unit, transaction):
        raise ReplayedError("The transactionID is in use", rule="CMP-009")
    return transaction


def _of_invited(unit: Unit, named: Invitation, kind: Body, unverified: UnverifiedRequest, now: datetime) -> RequestId:
    """Enrol a new instance; who lost the answer, and asks again with the same key, gets the same certificate."""
    if kind not in (Body.IR, Body.P10CR) or unverified.kind is not CertificateKind.IDENTITY:
        raise ForbiddenError("A secret enrols an identity key; sign the message with that key for anything else")
    request = unverified.verify(x509.identity_public_key(unverified.spki))
    admission.check_time(request.signing_time, now)
    invitation = tenant_store.lock_invitation(unit, named.reference)
    if invitation is None:
        raise EnrolmentError(UNKNOWN)
    if invitation.used_at is None:
        access.admit(unit, invitation, request, None, now)
        return request.id
    instance = tenant_store.instance(unit, request.address)
    first = certificate_store.first_request(unit, request.address)
    known = instance is not None and instance.identity_spki == request.spki
    if invitation.used_by != request.address or not known or first is None:
        raise EnrolmentError(UNKNOWN)
    return first.id


def _of_instance(unit: Unit, instance: Instance, unverified: UnverifiedRequest, now: datetime) -> RequestId:
    """Take a request of who has an identity: for that key, an encryption key, or by PKCS #10 an access key."""
    if unverified.kind is CertificateKind.IDENTITY and unverified.spki != instance.identity_spki:
        raise UsageError(
            "Another identity key is another identity: the certificate is renewed for the key that is enrolled",
            on=str(instance.address),
        )
    request = unverified.verify(admission.key_of(instance, unverified))
    if messages.is_message(request.der) and certificate_store.request(unit, request.id) is not None:
        raise ReplayedError("The same certificate request was submitted before", rule="CMP-009")
    # PKCS #10 that some tools sign once and for all may come again in a message that is new.
    return certificates.take(unit, request, instance.address, now).id


def _check_old(unit: Unit, owner: Address, old: tuple[bytes, int]) -> None:
    for record in certificate_store.history(unit, owner):
        named = record.serial == old[1] and record.state is not CertificateState.UNPROVED
        if named and x509.parse_certificate(record.der).issuer_der == old[0]:
            return
    raise NotFoundError("The certificate to be replaced is not one of the sender's", rule="CMP-011")


def _issued(deps: Deps, request: RequestRecord) -> CertificateRecord:
    with deps.store.read() as unit:
        record = certificate_store.certificate(unit, request.fingerprint) if request.fingerprint else None
    if record is None:
        raise NotFoundError("The certificate is not there", on=request.id)
    return record


def _instance(deps: Deps, address: Address) -> Instance:
    with deps.store.read() as unit:
        found = tenant_store.instance(unit, address)
    if found is None:
        raise NotFoundError(on=str(address))
    return found


def _is_hash(said: bodies.Confirmation, record: CertificateRecord) -> bool:
    """Say whether a hash is the certificate's, by the algorithm that is named or that its signature has."""
    name = said.hash or _DIGESTS.get(x509.parse_certificate(record.der).signature_algorithm)
    if name is None:
        return False
    return hmac.compare_digest(hashlib.new(name, record.der).digest(), said.digest)


_DIGESTS = {
    SignatureAlgorithm.ECDSA_P256: "sha256",
    SignatureAlgorithm.ECDSA_P384: "sha384",
    SignatureAlgorithm.RSA: "sha384",
}
"""RFC 9810 §5.3.18: without hashAlg, the hash is that of the signature; the others' algorithms have none."""
