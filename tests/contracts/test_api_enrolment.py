"""Contract of enrolment: a token works once, in time, for its tenant, and for who holds the keys."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from pki.core import requests
from pki.core.tenants import parse_address
from pki.server.services import access
from pki.server.store import lag, tenants
from tests.kit.site import Instance, Site, code, now

pytest_plugins = ["tests.kit.api_fixtures"]

ADDRESS = parse_address("acme/eu-west")


def enrolled(site: Site) -> list[str]:
    """Return who is enrolled, and check that nothing was done halfway."""
    with site.deps.store.read() as unit:
        instances = [str(one.address) for one in tenants.list_instances(unit)]
        due = lag.queues(unit, now())
    assert due.get("issue", (0, 0.0))[0] == len(instances)
    return instances


def test_an_invitation_enrols(site: Site) -> None:
    """An invited instance gets its address, and a request for its identity certificate is under way."""
    instance = Instance(site, ADDRESS)
    answer = instance.enrol()
    assert answer.status_code == 201
    told = answer.json()
    assert told["address"] == "acme/eu-west"
    assert enrolled(site) == ["acme/eu-west"]
    path = f"/v1/certificate-requests/{told['request_id']}"
    assert instance.get(path).json()["state"] == "pending"
    site.work()
    done = instance.get(path).json()
    assert (done["state"], done["kind"], done["certificate_state"]) == ("issued", "identity", "active")


def test_a_token_works_once(site: Site) -> None:
    """The second use of a token is refused, whoever uses it."""
    invitation, secret = site.invite("acme")
    first, second = Instance(site, ADDRESS), Instance(site, parse_address("acme/second"))
    assert first.post("/v1/enrolments", first.enrolment(invitation, secret)).status_code == 201
    for again in (second, first):
        answer = again.post("/v1/enrolments", again.enrolment(invitation, secret))
        assert answer.status_code in (403, 409)
        code(answer)
    assert code(second.post("/v1/enrolments", second.enrolment(invitation, secret))) == (403, "invitation-refused")
    assert enrolled(site) == ["acme/eu-west"]


def test_bad_tokens_look_the_same(site: Site) -> None:
    """Unknown, wrong and used: no answer tells which it was."""
    invitation, secret = site.invite("acme")
    used, used_secret = site.invite("acme")
    user = Instance(site, parse_address("acme/user"))
    assert user.post("/v1/enrolments", user.enrolment(used, used_secret)).status_code == 201
    instance = Instance(site, ADDRESS)
    bodies = [
        instance.enrolment(replace(invitation, reference="0" * 16), secret),
        instance.enrolment(invitation, "wrong"),
    ]
    answers = [instance.post("/v1/enrolments", body) for body in bodies]
    assert {code(answer) for answer in answers} == {(403, "invitation-refused")}
    assert len({answer.text for answer in answers}) == 1
    assert code(instance.post("/v1/enrolments", instance.enrolment(used, used_secret)))[0] == 403
    assert enrolled(site) == ["acme/user"]


def test_an_expired_token_is_refused(site: Site) -> None:
    """A token that was not used in time is worth nothing."""

    class Yesterday:
        def now(self) -> Any:
            return now() - timedelta(hours=24, seconds=5)

    invitation, secret = access.invite(replace(site.deps, clock=Yesterday()), ADDRESS.tenant)
    instance = Instance(site, ADDRESS)
    answer = instance.post("/v1/enrolments", instance.enrolment(invitation, secret))
    assert code(answer) == (403, "invitation-refused")
    assert enrolled(site) == []


def test_a_taken_address_is_refused(site: Site) -> None:
    """A second instance cannot claim an address, and keeps its token for another one."""
    assert Instance(site, ADDRESS).enrol().status_code == 201
    invitation, secret = site.invite("acme")
    second = Instance(site, ADDRESS)
    answer = second.post("/v1/enrolments", second.enrolment(invitation, secret))
    assert code(answer) == (409, "address-taken")
    second.address = parse_address("acme/second")
    assert second.post("/v1/enrolments", second.enrolment(invitation, secret)).status_code == 201
    assert enrolled(site) == ["acme/eu-west", "acme/second"]


def test_another_tenants_token_is_refused(site: Site) -> None:
    """A token of one tenant does not open another's name."""
    invitation, secret = site.invite("globex")
    instance = Instance(site, ADDRESS)
    answer = instance.post("/v1/enrolments", instance.enrolment(invitation, secret))
    assert code(answer) == (422, "wrong-party")
    assert enrolled(site) == []


def test_the_access_key_has_to_sign(site: Site) -> None:
    """Who names somebody else's access key cannot sign with it."""
    invitation, secret = site.invite("acme")
    owner, thief = Instance(site, ADDRESS), Instance(site, ADDRESS)
    body = owner.enrolment(invitation, secret)
    assert code(thief.post("/v1/enrolments", body)) == (401, "not-authenticated")
    assert code(site.http.post("/v1/enrolments", json=body)) == (401, "not-authenticated")
    assert enrolled(site) == []


def test_the_identity_key_has_to_sign(site: Site) -> None:
    """A request for a key whose private half signed nothing is refused: no possession, no certificate."""
    invitation, secret = site.invite("acme")
    instance = Instance(site, ADDRESS)
    forged = requests.identity_request(
        ADDRESS, instance.spki, sign=MLDSA65PrivateKey.generate().sign, signing_time=now()
    )
    body = instance.enrolment(invitation, secret) | {"identity_request": base64.b64encode(forged).decode()}
    assert code(instance.post("/v1/enrolments", body)) == (422, "bad-signature")
    assert enrolled(site) == []


MALFORMED: list[tuple[dict[str, str], tuple[int, str]]] = [
    ({"identity_request": ""}, (400, "malformed")),
    ({"identity_request": "MAA="}, (400, "malformed")),
    ({"identity_request": "%%%"}, (400, "bad-request")),
    ({"access_key": "AAAA"}, (400, "bad-request")),
    ({"address": "acme"}, (400, "bad-address")),
    ({"address": "acme/EU"}, (400, "bad-address")),
    ({"address": "acme/other"}, (422, "wrong-party")),
    ({"secret": ""}, (400, "bad-request")),
    ({"extra": "1"}, (400, "bad-request")),
]


def test_malformed_enrolments_are_told(site: Site) -> None:
    """Each part is checked, and nothing is left behind; the token stays good."""
    invitation, secret = site.invite("acme")
    instance = Instance(site, ADDRESS)
    good = instance.enrolment(invitation, secret)
    for change, expected in MALFORMED:
        assert code(instance.post("/v1/enrolments", good | change)) == expected, change
        assert enrolled(site) == []
    assert instance.post("/v1/enrolments", good).status_code == 201


def test_a_request_with_trailing_bytes_is_refused(site: Site) -> None:
    """One byte after the request's end is one too many."""
    invitation, secret = site.invite("acme")
    instance = Instance(site, ADDRESS)
    good = instance.enrolment(invitation, secret)
    longer = base64.b64encode(base64.b64decode(good["identity_request"]) + b"\0").decode()
    answer = instance.call(
        "POST", "/v1/enrolments", json.dumps(good | {"identity_request": longer}).encode(), "application/json"
    )
    assert code(answer) == (400, "malformed")
    assert enrolled(site) == []
