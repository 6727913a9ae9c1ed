"""Contract of EST (RFC 7030): invitations and certificates enrol and renew, for nobody but their owner."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest
from cryptography import x509 as library
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID

from pki.core import asn1, attributes, est, oids, requests, x509
from pki.core.ids import request_id
from pki.core.signatures import IDENTITY
from pki.core.tenants import parse_address
from pki.core.x509 import CertificateKind
from pki.server.adapters import profiles
from pki.server.services import access, issuing
from pki.server.store import tenants
from tests.contracts.conftest import Databases
from tests.kit.est import (
    ADDRESS,
    BEHIND_A_FRONT,
    ENROLL,
    Client,
    ed25519,
    enrolled,
    issued,
    refused,
    signing,
)
from tests.kit.office import SteppedClock
from tests.kit.plain import plain
from tests.kit.site import Homes, Instance, Site, now
from tests.kit.threads import together

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


def test_anybody_may_have_the_cas_certificates(site: Site) -> None:
    """/cacerts holds the root and the issuing CA, and what a client has is not sent again."""
    answer = site.http.get("/.well-known/est/cacerts")
    assert answer.headers["content-type"] == "application/pkcs7-mime"
    found = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer.content, validate=True))
    chain = site.deps.chain
    assert {one.public_bytes(Encoding.DER) for one in found} == {chain.root, chain.issuing}
    again = site.http.get("/.well-known/est/cacerts", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304


def test_anybody_may_know_what_is_asked_for(site: Site) -> None:
    """/csrattrs names each algorithm of an identity key."""
    answer = site.http.get("/.well-known/est/csrattrs")
    assert answer.headers["content-type"] == "application/csrattrs"
    told = base64.b64decode(answer.content, validate=True)
    assert told == est.csr_attributes({one.label for one in IDENTITY})
    for oid in (oids.ML_DSA_65, oids.ED25519, oids.P_256, oids.P_384, oids.EXTENSION_REQUEST):
        assert asn1.encode(oid) in told


def test_the_operators_profile_is_asked_first(homes: Homes, databases: Databases) -> None:
    """What it does not allow is refused before an invitation is used up, and not among what may be asked for."""
    home = homes.new()
    (home / "profiles").mkdir()
    widest = Path(profiles.__file__).parents[1] / "profiles" / "identity.toml"
    narrow = re.sub(r"algorithms = \[.*?\]", 'algorithms = ["ed25519"]', widest.read_text(), flags=re.DOTALL)
    (home / "profiles" / "identity.toml").write_text(narrow)
    with Site(home, databases.migrated("sqlite"), log_level="error", **BEHIND_A_FRONT) as site:
        told = base64.b64decode(site.http.get("/.well-known/est/csrattrs").content)
        assert asn1.encode(oids.ED25519) in told
        assert asn1.encode(oids.EC_PUBLIC_KEY) not in told
        client = Client(site)
        password = client.invited()
        refused(client.post(ENROLL, client.request(), password=password), 400, "ISS-003")
        assert enrolled(site) == []
        assert client.post(ENROLL, client.request(ed25519()), password=password).status_code == 202


def test_an_invitation_enrols(anywhere: Site) -> None:
    """202 while the issuer works, then the same request again is answered with the certificate; it opens no /v1."""
    client = Client(anywhere)
    der, password = client.request(), client.invited()
    answer = client.post(ENROLL, der, password=password)
    assert (answer.status_code, answer.headers["retry-after"]) == (202, "5")
    anywhere.work()
    parsed = x509.parse_certificate(issued(client.post(ENROLL, der, password=password)))
    assert (parsed.address, parsed.kind, parsed.spki) == (ADDRESS, CertificateKind.IDENTITY, client.key.public.spki)
    assert issued(client.post(ENROLL, der, password=password)) == parsed.der
    with anywhere.deps.store.read() as unit:
        [instance] = tenants.list_instances(unit)
    assert (instance.access_key, instance.access_key_id) == (None, None)


def test_a_quick_issuer_is_waited_for(homes: Homes, databases: Databases) -> None:
    """Within some seconds the first answer is the certificate."""
    with Site(homes.new(), databases.migrated("sqlite"), log_level="error") as site:
        done = threading.Event()

        def work() -> None:
            while not done.wait(0.02):
                site.work()

        worker = threading.Thread(target=work)
        worker.start()
        try:
            client = Client(site)
            assert issued(client.post(ENROLL, client.request(), password=client.invited()))
        finally:
            done.set()
            worker.join()


def test_who_may_not_enrol_is_refused_alike(site: Site) -> None:
    """No, unreadable, unknown, wrong, used or expired credentials: the same words, the same fields, nothing left."""
    client = Client(site)
    used, (reference, secret) = client.invited(), client.invited()
    other, third = Client(site, parse_address("acme/other")), Client(site, parse_address("acme/third"))
    assert other.post(ENROLL, other.request(), password=used).status_code == 202
    known = third.request()
    assert third.post(ENROLL, known, password=third.invited()).status_code == 202
    late = replace(site.deps, clock=SteppedClock(now() - timedelta(days=2)))
    expired, lost = access.invite(late, ADDRESS.tenant)
    tries: list[httpx2.Response] = [
        client.post(ENROLL, client.request(), password=password)
        for password in (
            used,
            (reference, secret[:-1]),
            (reference, ""),
            ("00" * 8, secret),
            ("' OR 1=1 --", secret),
            (expired.reference, lost),
        )
    ]
    # Who used an invitation sees what became of its own request, and of nobody else's.
    tries.append(client.post(ENROLL, known, password=used))
    assert len({(one.status_code, one.text, one.headers["www-authenticate"]) for one in tries}) == 1
    refused(tries[0], 401)
    for said in (
        "",
        "Bearer x",
        "Basic",
        "Basic %%%",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + "A" * 999,
    ):
        answer = client.post(ENROLL, client.request(), **({"Authorization": said} if said else {}))
        refused(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Basic realm=")
    assert enrolled(site) == ["acme/other", "acme/third"]


def test_an_invitation_is_used_once_when_many_try_at_once(anywhere: Site) -> None:
    """Eight different clients: one is enrolled. Eight times the same request: it is one request."""
    client, answers = Client(anywhere), []
    password = client.invited()

    def race(number: int) -> None:
        one = Client(anywhere, parse_address(f"acme/n{number}"))
        answers.append(one.post(ENROLL, one.request(), password=password).status_code)

    together(8, race)
    assert sorted(answers) == [202, *[401] * 7]
    assert len(enrolled(anywhere)) == 1
    der, password, answers = client.request(), client.invited(), []
    together(8, lambda _: answers.append(client.post(ENROLL, der, password=password).status_code))
    assert answers == [202] * 8
    assert len(enrolled(anywhere)) == 2


def test_an_invitation_is_for_its_tenant_and_leaves_others_alone(site: Site, acme: Instance) -> None:
    """Another tenant's name, a taken address and a taken key are refused, and the invitation stays good."""
    client = Client(site)
    password = client.invited()
    refused(
        client.post(ENROLL, client.request(address=parse_address("globex/x")), password=password), 400, "another tenant"
    )
    refused(client.post(ENROLL, client.request(), password=password), 409)
    taken = plain(parse_address("acme/other"), acme.identity)
    refused(client.post(ENROLL, taken, password=password), 409)
    assert enrolled(site) == ["acme/eu-west"]
    assert (
        client.post(ENROLL, client.request(address=parse_address("acme/other")), password=password).status_code == 202
    )


def test_an_access_key_is_no_identity(site: Site, acme: Instance) -> None:
    """A key is for one use: what signs somebody's calls is certified as nobody's identity."""
    client, key = Client(site, parse_address("acme/other")), signing(acme.access)
    refused(client.post(ENROLL, client.request(key), password=client.invited()), 409)


def test_a_secret_is_not_taken_in_the_clear(homes: Homes, databases: Databases) -> None:
    """Where clients come by http over a network, nobody may show a secret."""
    with Site(homes.new(), databases.migrated("sqlite"), public_url="http://mailbox.example") as site:
        client = Client(site)
        answer = client.post(ENROLL, client.request(), password=client.invited(), Host="mailbox.example")
        refused(answer, 403, "without TLS")
        refused(client.post(ENROLL, client.request(), password=client.invited()), 400, "another host")
        assert enrolled(site) == []


def pem(der: bytes) -> bytes:
    """Return a request as files hold it."""
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE REQUEST-----\n"


BODIES: list[tuple[Callable[[bytes], bytes], str, int]] = [
    (base64.b64encode, "application/pkcs10", 202),
    (base64.encodebytes, "application/pkcs10; charset=us-ascii", 202),
    (lambda der: base64.encodebytes(der).replace(b"\n", b"\r\n"), "application/pkcs10", 202),
    (base64.b64encode, "text/plain", 400),
    (base64.b64encode, "", 400),
    (pem, "application/pkcs10", 400),
    (lambda der: der, "application/pkcs10", 400),
    (lambda der: b"", "application/pkcs10", 400),
    (lambda der: base64.b64encode(der + b"\0"), "application/pkcs10", 400),
    (lambda der: base64.b64encode(der[:-9]), "application/pkcs10", 400),
    (lambda der: base64.b64encode(bytes(16 * 1024 + 3)), "application/pkcs10", 413),
    (lambda der: base64.b64encode(bytes(64 * 1024)), "application/pkcs10", 413),
    (lambda der: b"\n" * 20_000 + base64.b64encode(der), "application/pkcs10", 202),
]


def test_bodies(site: Site) -> None:
    """Base64 with line breaks and without; what is malformed or large is told in words, and the invitation stays."""
    for number, (encode, kind, status) in enumerate(BODIES):
        client = Client(site, parse_address(f"acme/n{number}"))
        token = base64.b64encode(":".join(client.invited()).encode()).decode()
        headers = {"Authorization": f"Basic {token}"} | ({"Content-Type": kind} if kind else {})
        answer = site.http.post(ENROLL, content=encode(client.request()), headers=headers)
        assert answer.status_code == status, (number, answer.text)
        if status != 202:
            refused(answer, status)
            answer = site.http.post(
                ENROLL,
                content=base64.b64encode(client.request()),
                headers=headers | {"Content-Type": "application/pkcs10"},
            )
            assert answer.status_code == 202


def test_what_a_request_asks_for_too_much_is_named(site: Site) -> None:
    """An invitation does not make a CA of anybody, and a challenge password is not read."""
    client = Client(site)
    builder = library.CertificateSigningRequestBuilder().subject_name(library.Name.from_bytes(x509.name_der(ADDRESS)))
    key = ec.generate_private_key(ec.SECP256R1())
    constraints = library.BasicConstraints(ca=True, path_length=None)
    wish = builder.add_extension(constraints, True).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    refused(client.post(ENROLL, wish, password=client.invited()), 400, "basic constraints", "REQ-008")
    password = attributes.attribute(library.ObjectIdentifier("1.2.840.113549.1.9.7"), asn1.encode("tls-unique"))
    refused(client.post(ENROLL, plain(ADDRESS, client.key, password), password=client.invited()), 400, "REQ-004")
    other = library.Name([library.NameAttribute(NameOID.COMMON_NAME, "acme/eu-west")])
    unnamed = library.CertificateSigningRequestBuilder().subject_name(other).sign(key, hashes.SHA256())
    refused(client.post(ENROLL, unnamed.public_bytes(Encoding.DER), password=client.invited()), 400, "REQ-003")
    assert enrolled(site) == []


def test_what_is_not_served(site: Site) -> None:
    """Keys are made by their owners: serverkeygen is 501, as is fullcmc; labels and other methods are unknown."""
    for name in ("serverkeygen", "fullcmc"):
        answer = site.http.post(f"/.well-known/est/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (501, "text/plain; charset=utf-8")
    assert site.http.get("/.well-known/est/label/cacerts").status_code == 404
    assert site.http.get(ENROLL).status_code == 405


def test_a_rejected_request_is_told(site: Site) -> None:
    """What the issuer finds wrong later is the answer, with its reason."""
    client = Client(site)
    der = requests.identity_request(
        ADDRESS, client.key.public.spki, sign=client.key.sign, signing_time=now(), algorithm=client.key.public.algorithm
    )
    password = client.invited()
    assert client.post(ENROLL, der, password=password).status_code == 202
    late = replace(site.deps, clock=SteppedClock(now() + timedelta(hours=49)))
    issuing.issue(late, site.keys, [request_id(der)])
    refused(client.post(ENROLL, der, password=password), 400, "rejected", "stale")
