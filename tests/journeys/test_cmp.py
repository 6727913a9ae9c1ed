"""CMP through real processes: an issuer is killed in the middle, and the client sends its message again."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

import httpx2
import psycopg

from pki.core.cmp import messages
from pki.core.cmp.protection import MacParameters
from pki.core.cmp.types import Body
from tests.kit import forge, forge_cmp, tlv
from tests.kit.authority import new_signing_key
from tests.kit.daemons import NOBODY
from tests.kit.members import Pair
from tests.kit.processes import Installation, wait_until

ADDRESS = "acme/by-cmp"
_STUCK = (
    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    " AND state = 'active' AND pid <> pg_backend_pid()"
)
"""A process waits for a lock that another connection holds."""


def test_an_issuer_is_killed_in_the_middle(pair: Pair) -> None:
    """Kill -9 between the stored serial and the certificate: the same message again gets its one certificate."""
    installation = pair.installation
    secret, enrolment = _enrolment(installation)
    with psycopg.connect(installation.libpq_url) as holding:
        holding.execute("LOCK TABLE certificates IN EXCLUSIVE MODE")
        # An API that reads it only after its client has gone stores nothing: the same once more.
        wait_until(lambda: _post(installation, enrolment, seconds=2) is None and installation.sql(_STUCK))
        installation.kill("issuer")
    assert installation.sql("SELECT 1 FROM instances WHERE address = %s", ADDRESS)
    assert not installation.sql("SELECT 1 FROM certificates WHERE address = %s", ADDRESS)

    installation.start("issuer")
    answer = wait_until(lambda: _post(installation, enrolment, seconds=40), 60)

    message = messages.parse(answer)
    assert message.kind is Body.IP
    assert isinstance(message.algorithm, MacParameters)
    message.algorithm.verify(message.protection, secret, message.protected)
    [(certificate,)] = installation.sql("SELECT der FROM certificates WHERE address = %s", ADDRESS)
    assert certificate in answer
    told = "SELECT 1 FROM events WHERE type = 'keymailbox.certificate.issued' AND data LIKE %s"
    assert len(installation.sql(told, f"%{ADDRESS}%")) == 1
    assert _post(installation, enrolment, seconds=10) == answer


def _enrolment(installation: Installation) -> tuple[bytes, bytes]:
    """Return an invitation's secret, and an ir under it."""
    invitation, key, now = installation.invite("acme"), new_signing_key(), datetime.now(UTC)
    secret, name = invitation["secret"].encode(), forge.address_name(ADDRESS)
    request = forge_cmp.asked(forge_cmp.template(name, key.public.spki, start=now), key.sign)
    fields = {"sender": forge_cmp.general(name), "recipient": forge_cmp.general(tlv.seq()), "time": now}
    message = forge_cmp.message(
        forge_cmp.IR,
        tlv.seq(request),
        forge_cmp.by_secret(secret),
        key=invitation["reference"].encode(),
        transaction=secrets.token_bytes(16),
        nonce=secrets.token_bytes(16),
        **fields,
    )
    return secret, message


def _post(installation: Installation, message: bytes, *, seconds: float) -> bytes | None:
    """Post a message; None when there is no answer in time."""
    url, kind = f"{installation.url}/.well-known/cmp", {"Content-Type": "application/pkixcmp"}
    try:
        answer = httpx2.post(url, content=message, headers=kind, timeout=seconds, trust_env=False, verify=NOBODY)
    except httpx2.TimeoutException:
        return None
    return answer.content if answer.status_code == 200 else None
