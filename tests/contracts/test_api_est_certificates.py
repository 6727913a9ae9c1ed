"""Contract of EST with client certificates: each stands for its owner, for what it is for, and while it is in use."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pki.core import requests, x509
from pki.core.ids import request_id
from pki.core.tenants import parse_address
from pki.core.x509 import CertificateKind
from pki.server.services import issuing
from pki.server.store import tenants
from tests.contracts.conftest import Databases
from tests.kit.authority import Authority, new_signing_key
from tests.kit.est import (
    ADDRESS,
    BEHIND_A_FRONT,
    ENROLL,
    REENROLL,
    Client,
    ed25519,
    for_access,
    refused,
    signing,
)
from tests.kit.leaves import leaf_tbs
from tests.kit.site import Homes, Instance, Site, now

pytest_plugins = ["tests.kit.api_fixtures"]


@pytest.fixture
def site(homes: Homes, databases: Databases) -> Iterator[Site]:
    """A server behind a TLS front, where the database makes no difference."""
    with Site(homes.new(), databases.migrated("sqlite"), log_level="error", **BEHIND_A_FRONT) as opened:
        yield opened


@pytest.fixture
def anywhere(homes: Homes, database_url: str) -> Iterator[Site]:
    """The same on each of the databases."""
    with Site(homes.new(), database_url, log_level="error", **BEHIND_A_FRONT) as opened:
        yield opened


def test_an_identity_certificate_renews_itself(site: Site) -> None:
    """A new request, or the old one again once it is due, gives a new certificate of the same key."""
    client = Client(site)
    first = client.enrol()
    second = client.certified(client.request())
    assert x509.parse_certificate(second).spki == x509.parse_certificate(first).spki
    assert second != first
    # The one before is retired, and stands for its owner as long as it is valid.
    assert client.certified(client.request(), first) not in (first, second)


def test_an_access_certificate_gives_an_access_key(anywhere: Site) -> None:
    """Who enrolled by EST brings its access key with the identity certificate; from then on /v1 answers it."""
    client, instance = Client(anywhere), Instance(anywhere, ADDRESS)
    key = signing(instance.access)
    client.enrol()
    assert instance.get(instance.mailbox).status_code == 401
    der = client.certified(for_access(ADDRESS, key))
    parsed = x509.parse_certificate(der)
    assert (parsed.kind, parsed.address, parsed.spki) == (CertificateKind.ACCESS, ADDRESS, key.public.spki)
    assert instance.get(instance.mailbox).status_code == 200
    # It renews itself, and nothing else; and there is no second access key.
    assert client.certified(for_access(ADDRESS, key, ago=60), der) != der
    refused(client.post(REENROLL, client.request(), certificate=der), 403, "nothing but itself")
    refused(client.post(REENROLL, for_access(ADDRESS, ed25519()), certificate=der), 400, "another access key")
    refused(client.post(REENROLL, for_access(ADDRESS, ed25519()), certificate=client.certificate), 400)


def test_a_lost_access_key_signs_nothing_more(anywhere: Site) -> None:
    """Its certificate revoked for the key, calls with it are refused, it does not come back, and a new one is bound."""
    client, instance = Client(anywhere), Instance(anywhere, ADDRESS, identity=new_signing_key())
    client.key, lost = instance.identity, signing(instance.access)
    client.enrol()
    fingerprint = hashlib.sha256(client.certified(for_access(ADDRESS, lost))).hexdigest()
    path = f"/v1/certificates/{fingerprint}/revocation"
    assert instance.call("POST", path, instance.revocation(fingerprint), "application/cms").status_code == 200
    assert instance.get(instance.mailbox).status_code == 401
    anywhere.work()
    again = for_access(ADDRESS, lost, ago=60)
    refused(client.post(REENROLL, again, certificate=client.certificate), 400, "does not come back")
    instance.access = Ed25519PrivateKey.generate()
    client.certified(for_access(ADDRESS, signing(instance.access)))
    assert instance.get(instance.mailbox).status_code == 200


def test_of_two_first_access_keys_one_is_bound(anywhere: Site) -> None:
    """Both requests are taken while there is no key yet; one gets its certificate, and the other is rejected."""
    client, keys = Client(anywhere), (ed25519(), ed25519())
    client.enrol()
    asked = [for_access(ADDRESS, key) for key in keys]
    for der in asked:
        assert client.post(REENROLL, der, certificate=client.certificate).status_code == 202
    for _ in range(2):
        issuing.issue(anywhere.deps, anywhere.keys, [request_id(der) for der in asked])
    answers = [client.post(REENROLL, der, certificate=client.certificate).status_code for der in asked]
    assert sorted(answers) == [200, 400]
    with anywhere.deps.store.read() as unit:
        [instance] = tenants.list_instances(unit)
    assert instance.access_key == keys[answers.index(200)].public.raw


def test_another_instances_access_key_is_refused(site: Site, acme: Instance) -> None:
    """Who could bind it would be taken for its owner."""
    client = Client(site, parse_address("acme/other"))
    client.enrol()
    stolen = for_access(client.address, signing(acme.access))
    refused(client.post(REENROLL, stolen, certificate=client.certificate), 409)


def test_a_native_instance_has_its_access_key_certified(site: Site, acme: Instance) -> None:
    """/v1 takes the request for the key that signs the call; for another one it does not. Others are not told of it."""
    key = signing(acme.access)
    answer = acme.call("POST", "/v1/certificate-requests", for_access(ADDRESS, key), "application/pkcs10")
    assert answer.status_code == 202
    site.work()
    told = acme.get(answer.headers["location"]).json()
    assert (told["kind"], told["state"], told["certificate_state"]) == ("access", "issued", "active")
    other = acme.call("POST", "/v1/certificate-requests", for_access(ADDRESS, ed25519()), "application/pkcs10")
    assert other.status_code == 422
    history = acme.get("/v1/directory/acme/eu-west/history").json()["certificates"]
    assert {one["kind"] for one in history} == {"identity", "encryption"}


def test_a_certificate_stands_for_its_owner_alone(site: Site, acme: Instance, globex: Instance) -> None:
    """Somebody else's certificate, one of another CA, an encryption certificate and none at all: no."""
    client = Client(site, ADDRESS, acme.identity)
    refused(client.post(REENROLL, client.request(), certificate=globex.identity_certificate), 400, "another address")
    refused(client.post(REENROLL, client.request(), certificate=acme.encryption_certificate), 401)
    stranger = Authority(seed=77)
    forged = stranger.issue(ADDRESS, acme.spki, CertificateKind.IDENTITY)
    refused(client.post(REENROLL, client.request(), certificate=forged), 401, "not good")
    refused(client.post(REENROLL, client.request()), 401)
    # The identity key itself has to sign, whatever the front says of the client.
    thief = new_signing_key()
    refused(client.post(REENROLL, client.request(thief), certificate=acme.identity_certificate), 400, "REQ-005")


def test_a_certificate_that_nobody_listed_is_refused(site: Site, acme: Instance) -> None:
    """Signed by the CA and not in the directory: made by who has the key, not by the issuer."""
    keys = site.keys.current
    tbs = leaf_tbs(
        serial=7,
        issuer_der=keys.certificate_der,
        address=ADDRESS,
        spki=acme.spki,
        not_before=now() - timedelta(hours=1),
        not_after=now() + timedelta(days=1),
        kind=CertificateKind.IDENTITY,
    )
    unlisted = x509.assemble(tbs, keys.sign(tbs))
    client = Client(site, ADDRESS, acme.identity)
    refused(client.post(REENROLL, client.request(), certificate=unlisted), 401, "not in use")


def test_a_revoked_certificate_and_its_key_do_not_come_back(site: Site, acme: Instance) -> None:
    """Refused as the client's; and the old request again, with an invitation or without, brings no lost key back."""
    client = Client(site, ADDRESS, acme.identity)
    der = client.request()
    again = client.certified(der, acme.identity_certificate)
    fingerprint = hashlib.sha256(again).hexdigest()
    wish = acme.revocation(fingerprint)
    path = f"/v1/certificates/{fingerprint}/revocation"
    assert acme.call("POST", path, wish, "application/cms").status_code == 200
    refused(client.post(REENROLL, der, certificate=again), 401, "not in use")
    refused(client.post(REENROLL, der, certificate=acme.identity_certificate), 401, "not in use")
    refused(client.post(ENROLL, der, password=client.invited()), 409)
    reused = Client(site, parse_address("acme/other"), acme.identity)
    refused(reused.post(ENROLL, reused.request(), password=reused.invited()), 409)


def test_the_header_counts_from_the_front_alone(homes: Homes, databases: Databases) -> None:
    """Who is no front of ours cannot say who the client is; nothing is taken from such a request."""
    with Site(homes.new(), databases.migrated("sqlite"), client_cert_from="192.0.2.1, 2001:db8::/32") as site:
        acme = site.instance("acme/eu-west")
        client = Client(site, ADDRESS, acme.identity)
        refused(client.post(REENROLL, client.request(), certificate=acme.identity_certificate), 403, "TLS front")
        chained = client.post(ENROLL, client.request(), Client_Cert_Chain=":AAAA:")
        refused(chained, 403, "KMB_CLIENT_CERT_FROM")
        password = client.invited()
        both = client.post(ENROLL, client.request(), certificate=acme.identity_certificate, password=password)
        refused(both, 403)


def test_a_header_that_is_no_certificate(site: Site) -> None:
    """Malformed, several, empty, large: refused, and the server goes on."""
    client = Client(site)
    for said in ("", "::", ":%%%%:", "AAAA", ":AAAA:, :AAAA:", ":MAA=:", f":{'A' * 40_000}:"):
        answer = client.post(REENROLL, client.request(), Client_Cert=said)
        assert answer.status_code in (400, 401), (said[:20], answer.text)
    assert site.http.get("/livez").status_code == 200


def test_encryption_keys_are_not_for_est(site: Site, acme: Instance) -> None:
    """The proof that a KEM key opens takes an answer that EST has no message for: the client is sent elsewhere."""
    identity = x509.parse_certificate(acme.identity_certificate)
    der = requests.encryption_request(
        ADDRESS,
        x509.parse_certificate(acme.encryption_certificate).spki,
        requests.Statement(identity.issuer_der, identity.serial),
        sign=acme.identity.sign,
        signing_time=now(),
    )
    client = Client(site, ADDRESS, acme.identity)
    for path in (ENROLL, REENROLL):
        refused(client.post(path, der, certificate=acme.identity_certificate), 400, "/v1/certificate-requests")
    refused(client.post(ENROLL, der, password=client.invited()), 400, "/v1/certificate-requests")
