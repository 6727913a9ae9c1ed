"""The policy of a mailbox over HTTP, and by the agent's client."""

from __future__ import annotations

import json
from datetime import timedelta

import httpx2
import pytest

from pki.core.senders import SenderMode, SenderPolicy
from tests.kit.site import Instance, Site, code

pytest_plugins = "tests.kit.api_fixtures"


def put(who: Instance, path: str, policy: object) -> httpx2.Response:
    """Choose."""
    return who.call("PUT", path, json.dumps(policy).encode(), "application/json")


def test_a_recipient_chooses(acme: Instance, globex: Instance, initech: Instance) -> None:
    """GET and PUT of the own policy; a deposit of who is not welcome is 403."""
    path = f"{acme.mailbox}/senders"
    assert acme.get(path).json() == {
        "mode": "anyone", "listed": [], "max_bytes": None, "max_lifetime": None, "changed_at": None,
    }  # fmt: skip
    told = put(acme, path, {"mode": "listed", "listed": ["globex"], "max_lifetime": 86400 * 90})
    assert told.json()["listed"] == ["globex"]
    assert acme.get(path).json()["max_lifetime"] == 86400 * 90
    assert globex.deposit(globex.compose(acme)[1]).status_code == 202
    refused = initech.deposit(initech.compose(acme)[1])
    assert code(refused) == (403, "not-welcome")
    assert refused.json()["detail"] == "The recipient does not take deposits from you."


def test_nobody_else_sees_it(acme: Instance, globex: Instance) -> None:
    """It is as if there were none."""
    path = f"{acme.mailbox}/senders"
    assert code(globex.get(path)) == (404, "not-found")
    assert code(put(globex, path, {"mode": "anyone"})) == (404, "not-found")


@pytest.mark.parametrize(
    "wrong", [{"mode": "some"}, {"mode": "listed", "listed": ["a//b"]}, {"mode": "anyone", "max_bytes": 5}, {}]
)
def test_what_is_no_policy(acme: Instance, wrong: object) -> None:
    """400, and nothing changes."""
    path = f"{acme.mailbox}/senders"
    assert put(acme, path, wrong).status_code == 400
    assert acme.get(path).json()["mode"] == "anyone"


def test_a_quota_is_429(site: Site, acme: Instance, globex: Instance) -> None:
    """With the time to come again, in header and body."""
    from pki.server.services import limits

    limits.allow(site.deps, acme.address, {"pair-deposits": 1})
    globex.send(acme)
    refused = globex.deposit(globex.compose(acme)[1])
    assert code(refused) == (429, "quota")
    assert refused.headers["retry-after"] == str(refused.json()["retry_after"]) == "300"


def test_policies_have_one_form_on_both_sides() -> None:
    """What a client is told is what it may say."""
    from pki.server.api.senders import policy_object
    from pki.tenant.messages import sender_policy

    policy = SenderPolicy(SenderMode.KNOWN, ("globex", "initech/lab"), 20_000, timedelta(days=3))
    assert sender_policy(policy_object(policy)) == policy
