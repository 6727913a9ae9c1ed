"""What has to be so when the faults are over: nothing acknowledged is lost, nothing twice, nothing is stuck."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from pki.core.errors import KeymailboxError
from pki.server.store.engine import Store
from tests.chaos.ground import Ground
from tests.chaos.tenants import Tenant, passes
from tests.kit.invariants import broken
from tests.kit.sink import Sink

_SETTLED = 180.0
"""Seconds; longer than the claims and leases of whoever was killed last."""


def settle(ground: Ground, tenants: Sequence[Tenant]) -> list[str]:
    """Let agents and workers end what they have begun; return what is left."""
    store = Store(ground.installation.database_url)
    deadline = time.monotonic() + _SETTLED
    left = ["nobody looked"]
    try:
        while left and time.monotonic() < deadline:
            busy = [str(one.address) for one in tenants if not _settled(one)]
            left = [f"{name} is not done" for name in busy] or broken(store, settled=True)
            if left:
                print(f"chaos: {len(left)} things are left, such as: {left[0][:150]}", flush=True)
                time.sleep(5)
    finally:
        store.close()
    return left


def _settled(tenant: Tenant) -> bool:
    try:
        return tenant.settle()
    except KeymailboxError as error:
        if not passes(error):
            tenant.trouble.append(f"{tenant.address}: at the end: {error.code}: {error}")
        return False


def judge(ground: Ground, tenants: Sequence[Tenant], sink: Sink, hooks: Sequence[str]) -> list[str]:
    """Return each thing that is not as it has to be; ids of what was acknowledged and is not there are told."""
    sql = ground.installation.sql
    found: list[str] = []
    acknowledged = {name for one in tenants for name in one.wire.deposits}
    states = dict(sql("SELECT id, state FROM deposits"))
    lost = sorted(acknowledged - states.keys())
    if lost:
        found.append(f"LOST: {len(lost)} deposits were acknowledged and are not there: {' '.join(lost)}")
    events = Counter(name for (name,) in sql("SELECT subject FROM events WHERE type = 'keymailbox.deposit.available'"))
    found += [f"TWICE: {name} became available {count} times" for name, count in events.items() if count > 1]
    for one in tenants:
        found += one.wire.faults + one.trouble
        found += _journal(one, states)
        keys = Counter((str(key.owner), key.key_id, key.version) for key in one.agent.shared_keys())
        found += [f"TWICE: {one.address} holds {name} {count} times" for name, count in keys.items() if count > 1]
    wanted = {name for (name,) in sql("SELECT event_id FROM deliveries WHERE webhook_id = ANY(%s)", list(hooks))}
    late = sorted(wanted - set(sink.heard))
    if late or not wanted:
        found.append(f"LOST: {len(late)} of {len(wanted)} events did not reach their webhook: {' '.join(late[:20])}")
    if not sql("SELECT 1 FROM crls WHERE next_update > now()"):
        found.append("no fresh revocation list is there")
    found += [f"ENDED by itself: {one}" for one in ground.ended]
    return found


def _journal(tenant: Tenant, states: dict[str, str]) -> list[str]:
    """Compare what an agent remembers of what it sent with what the server says; its answers it has verified itself."""
    found = []
    for sent in tenant.agent.sent():
        there = states.get(sent.deposit_id)
        if there is None and sent.state != "failed":
            found.append(f"LOST: {tenant.address} sent {sent.deposit_id}, {sent.state}, and it is not there")
        elif (there in ("acknowledged", "refused")) != (sent.receipt is not None):
            found.append(f"{tenant.address}: {sent.deposit_id} is {there}, and the journal says {sent.state}")
    return found
