"""The issuer's side of CMP: who speaks is proved first, then what is asked for is done, and the answer is stored."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from cryptography.x509 import load_der_x509_certificate

from pki.core import errors
from pki.core.cmp import answers, bodies, messages, types
from pki.core.cmp.messages import NOBODY, Header, Message
from pki.core.cmp.protection import MacParameters
from pki.core.cmp.types import Body, Fail
from pki.core.errors import EnrolmentError, KeymailboxError, SignatureError, UnavailableError, UsageError
from pki.server.facts import Caller
from pki.server.ports import CaKeys, SecretOpener
from pki.server.services import revocations
from pki.server.services.cmp import enrolling, exchanges
from pki.server.services.cmp.credentials import UNKNOWN, Credential, authenticate
from pki.server.services.cmp.enrolling import ANSWERED_BY, Answer
from pki.server.services.cmp.exchanges import Move
from pki.server.services.deps import Deps
from pki.server.store import exchanges as store

ROUNDS_AT_ONCE = 1_000_000
"""How much work of checking secrets is done in one go: anybody may ask for it, and revocation lists must not wait."""

_FAILURES: Mapping[type[KeymailboxError], Fail] = {
    errors.AlgorithmError: Fail.BAD_ALG,
    errors.MalformedError: Fail.BAD_DATA_FORMAT,
    errors.ProfileError: Fail.BAD_CERT_TEMPLATE,
    errors.StaleError: Fail.BAD_TIME,
    errors.RevokedError: Fail.CERT_REVOKED,
    errors.SignatureError: Fail.BAD_POP,
    errors.WrongPartyError: Fail.NOT_AUTHORIZED,
    errors.ForbiddenError: Fail.NOT_AUTHORIZED,
    errors.VerificationError: Fail.BAD_CERT_ID,
    errors.NotFoundError: Fail.BAD_CERT_ID,
    errors.ReplayedError: Fail.TRANSACTION_ID_IN_USE,
}
"""The nearest class in an error's ancestry decides; anything else is a bad request."""


@dataclass(frozen=True)
class Desk:
    """What messages are answered with."""

    deps: Deps
    keys: CaKeys
    opener: SecretOpener | None


def handle(desk: Desk, digests: Sequence[str]) -> Mapping[str, Exception | None]:
    """Answer stored messages; for each None, or the error to try again after. Answered ones are left alone.

    One that trips us up does not hold up those that came with it. Nor do those whose secrets take long to check hold up
    what else the issuer has to do: of them as many as are done in about a second, the others are put off.
    """
    results: dict[str, Exception | None] = {}
    spent = 0
    for digest in dict.fromkeys(digests):
        try:
            message = _waiting(desk, digest)
            rounds = 0 if message is None else _rounds(message)
            if spent and spent + rounds > ROUNDS_AT_ONCE:
                exchanges.put_off(desk.deps, digest)
            elif message is not None:
                spent += rounds
                exchanges.answer(desk.deps, digest, *_respond(desk, message, digest))
            results[digest] = None
        except Exception as error:
            results[digest] = error
    return results


def _waiting(desk: Desk, digest: str) -> Message | None:
    """Return a message that waits for its answer."""
    with desk.deps.store.read() as unit:
        exchange = store.exchange(unit, digest)
    if exchange is None or exchange.response is not None or exchange.expires_at <= desk.deps.clock.now():
        return None
    return messages.parse(exchange.request)


def _rounds(message: Message) -> int:
    return message.algorithm.iterations if isinstance(message.algorithm, MacParameters) else 0


def _respond(desk: Desk, message: Message, digest: str) -> tuple[bytes, timedelta, Move | None]:
    """Return the answer, how long it is kept, and what becomes of its transaction.

    Raises UnavailableError, after which the message is tried again.
    """
    sender = messages.general_name(_name(desk.keys.current.certificate_der))
    nonce = secrets.token_bytes(16)
    unknown = exchanges.unprotected_error(message, sender, nonce, Fail.BAD_MESSAGE_CHECK, UNKNOWN)
    try:
        credential = authenticate(desk.deps, desk.keys, desk.opener, message)
    except SignatureError:
        return unknown, exchanges.KEPT_FOR_STRANGERS, None
    try:
        answer = _answer(desk, credential, message, digest)
    except EnrolmentError:
        # As if the secret were wrong: who has none learns nothing of what became of an invitation.
        return unknown, exchanges.KEPT_FOR_STRANGERS, None
    except UnavailableError:
        raise
    except KeymailboxError as error:
        answer = Answer(Body.ERROR, answers.error(_failure(error), _text(error)), nonce)
    return _composed(desk, credential, message, sender, answer), exchanges.KEPT, answer.move


def _answer(desk: Desk, credential: Credential, message: Message, digest: str) -> Answer:
    _check_recipient(desk, message)
    if message.kind in ANSWERED_BY:
        return enrolling.enrol(desk.deps, desk.keys, credential, message, digest)
    if message.kind is Body.CERTCONF:
        return enrolling.confirm(desk.deps, credential, message)
    if message.kind is Body.RR:
        return _revoke(desk, credential, message)
    if message.kind is Body.ERROR:
        return enrolling.close(desk.deps, credential, message)
    if message.kind is Body.GENM:
        return _inform(desk, message)
    raise UsageError("This kind of CMP message is not answered here", on=message.kind.name.lower())


def _revoke(desk: Desk, credential: Credential, message: Message) -> Answer:
    if credential.instance is None:
        raise errors.ForbiddenError("A secret revokes nothing; sign the message with the identity key")
    # Without the certificates that came along, the message is kept as the evidence.
    revocations.revoke(desk.deps, Caller(credential.instance), message.bare)
    return Answer(Body.RP, answers.revoked(), secrets.token_bytes(16))


def _inform(desk: Desk, message: Message) -> Answer:
    asked = bodies.parse_information(message.content)
    if asked != [types.CA_CERTIFICATES]:
        raise UsageError("Only the CA's certificates can be asked for", hint="openssl cmp -cmd genm -infotype caCerts")
    chain = desk.deps.chain
    return Answer(Body.GENP, answers.authorities([*chain.all, chain.root]), secrets.token_bytes(16))


def _composed(desk: Desk, credential: Credential, message: Message, sender: bytes, answer: Answer) -> bytes:
    asked = message.header
    header = Header(
        version=3 if answer.sealed else asked.version,
        sender=sender,
        recipient=asked.sender,
        transaction=asked.transaction,
        sender_nonce=answer.nonce,
        time=desk.deps.clock.now().replace(microsecond=0),
        sender_key=credential.key_identifier,
        recipient_nonce=asked.sender_nonce,
        implicit_confirm=answer.implicit,
    )
    return messages.compose(header, answer.kind, answer.content, credential.answer, [desk.keys.current.certificate_der])


def _check_recipient(desk: Desk, message: Message) -> None:
    """Demand that a message is for us, or for nobody in particular (rule CMP-002)."""
    ours = {messages.general_name(_name(der)) for der in (*desk.deps.chain.all, desk.deps.chain.root)}
    if message.header.recipient not in {NOBODY, *ours}:
        raise errors.WrongPartyError("The message is for another CA", hint="openssl cmp -recipient …", rule="CMP-002")


def _name(certificate_der: bytes) -> bytes:
    return load_der_x509_certificate(certificate_der).subject.public_bytes()


def _failure(error: KeymailboxError) -> Fail:
    return next((_FAILURES[kind] for kind in type(error).__mro__ if kind in _FAILURES), Fail.BAD_REQUEST)


def _text(error: KeymailboxError) -> str:
    # An offset counts from a part that the client does not know.
    told = f"{error.message} ({error.on})" if error.on else error.message
    told += f" [{error.rule}]" if error.rule else ""
    return f"{told}; {error.hint}" if error.hint else told
