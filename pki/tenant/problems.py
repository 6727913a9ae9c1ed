"""The server's problems (RFC 9457) as errors of the family: the code names the class, the words are the server's."""

from __future__ import annotations

from pki.core.errors import BusyError, KeymailboxError, MalformedError, UnavailableError
from pki.tenant import messages
from pki.tenant.messages import Json

TOO_MANY = 429
PASSING = frozenset({502, 503, 504})


def error_of(problem: Json, status: int, on: str) -> KeymailboxError:
    """Return a problem as the error that its code names; what is no problem at all as what the status says."""
    try:
        code = messages.text(problem, "code", default="")
        told = messages.text(problem, "detail", default="") or messages.text(problem, "title", default="")
        rule = messages.text(problem, "rule", default="")
    except MalformedError:
        code = told = rule = ""
    kind = _family().get(code)
    if kind is None:
        kind = BusyError if status == TOO_MANY else UnavailableError if status in PASSING else KeymailboxError
        told = told or f"The server answered {status}"
    # What to type next is ours to say: a server must not talk anybody into accepting a key.
    return kind(told[:500], on=on, hint=_HINTS.get(code, ""), rule=rule[:20])


_HINTS = {
    "invitation-refused": "ask the operator for: kmb-server tenant invite TENANT --json",
    "address-taken": "choose another instance name: kmb enroll TENANT/OTHER …",
    "certificate-revoked": "a lost key does not come back; with a new invitation: kmb enroll TENANT/OTHER …",
    "unknown-recipient": "check the address with its owner: kmb whoami shows it there",
    "too-large": "send something smaller: keys, not documents",
    "not-welcome": "ask the recipient's people for: kmb mailbox senders set",
    "quota": "kmb receipt list shows what is under way; later: kmb agent run --once",
    "illegal-state": "kmb receipt list shows where everything stands",
}


def _family() -> dict[str, type[KeymailboxError]]:
    found: dict[str, type[KeymailboxError]] = {}
    waiting: list[type[KeymailboxError]] = [KeymailboxError]
    while waiting:
        kind = waiting.pop()
        found[kind.code] = kind
        waiting.extend(kind.__subclasses__())
    return found
