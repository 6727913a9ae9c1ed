"""Contract of certificates over HTTP: requested, proved, looked up, revoked; and the CA's own."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography import x509 as crypto_x509

from pki.core import certificates as facts
from pki.core import crl, kem, requests, x509
from pki.core.kem import KemAlgorithm
from pki.core.tenants import parse_address
from tests.kit.site import Instance, Site, code, in_time, now

pytest_plugins = ["tests.kit.api_fixtures"]


def test_the_ca_is_public(site: Site) -> None:
    """Root and issuing certificate are to be had without a signature, and cached."""
    answer = site.http.get("/v1/ca")
    told = answer.json()
    root = base64.b64decode(told["root"])
    assert told["root_fingerprint"] == hashlib.sha256(root).hexdigest()
    issuing = crypto_x509.load_der_x509_certificate(base64.b64decode(told["issuing"]))
    assert issuing.issuer == crypto_x509.load_der_x509_certificate(root).subject
    again = site.http.get("/v1/ca", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_crl_is_public(site: Site) -> None:
    """Before the first list there is none; then it is there in DER with an ETag that moves with it."""
    assert code(site.http.get("/v1/crl")) == (404, "not-found")
    acme = site.instance("acme/eu-west")
    first = site.http.get("/v1/crl")
    assert first.headers["content-type"] == "application/pkix-crl"
    assert site.http.get("/v1/crl", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    fingerprint = facts.proof_of_decryption(acme.encryption_certificate)
    path = f"/v1/certificates/{fingerprint}/revocation"
    revoked = acme.call("POST", path, acme.revocation(fingerprint), "application/cms")
    assert (revoked.status_code, revoked.json()["state"]) == (200, "revoked")
    site.work()
    second = site.http.get("/v1/crl", headers={"If-None-Match": first.headers["etag"]})
    assert second.status_code == 200
    listed = crl.verify_crl(second.content, issuing_der=site.deps.chain.issuing, now=now())
    assert x509.parse_certificate(acme.encryption_certificate).serial in listed.revoked


def test_an_encryption_certificate_is_hidden_until_proved(site: Site) -> None:
    """The hash that proves possession is nowhere to be read before; the proof makes the certificate active."""
    acme = Instance(site, parse_address("acme/eu-west"))
    assert acme.enrol().status_code == 201
    site.work()
    listing = acme.get("/v1/directory/acme/eu-west").json()
    assert listing["encryption"] is None
    acme.identity_certificate = base64.b64decode(listing["identity"]["certificate"])
    submitted = acme.request_encryption()
    assert (submitted.status_code, submitted.json()["state"]) == (202, "pending")
    path = submitted.headers["location"]
    assert path == f"/v1/certificate-requests/{submitted.json()['id']}"
    site.work()
    told = acme.get(path).json()
    assert (told["state"], told["certificate_state"]) == ("issued", "unproved")
    assert told["certificate"] is None
    assert told["fingerprint"] is None
    opened = acme.open_challenge(base64.b64decode(told["challenge"]))
    fingerprint = facts.proof_of_decryption(opened)
    assert fingerprint not in acme.get("/v1/events").text
    assert code(acme.get(f"/v1/certificates/{fingerprint}")) == (404, "not-found")
    assert code(acme.post(f"{path}/proof", {"sha256": "0" * 64})) == (422, "verification-failed")
    assert code(acme.post(f"{path}/proof", {"sha256": "short"})) == (400, "bad-request")
    assert acme.get("/v1/directory/acme/eu-west").json()["encryption"] is None
    for _ in range(2):
        proved = acme.post(f"{path}/proof", {"sha256": fingerprint})
        assert (proved.status_code, proved.json()["certificate_state"]) == (200, "active")
        assert base64.b64decode(proved.json()["certificate"]) == opened
    assert acme.get("/v1/directory/acme/eu-west").json()["encryption"]["fingerprint"] == fingerprint


def test_a_listing_holds_what_a_sender_checks(site: Site, acme: Instance, globex: Instance) -> None:
    """Another tenant finds certificate, endorsing request and issuer, and they pass the sender's checks."""
    answer = globex.get("/v1/directory/acme/eu-west")
    told = answer.json()
    for kind in (x509.CertificateKind.IDENTITY, x509.CertificateKind.ENCRYPTION):
        listed = told[kind.value]
        facts.check_listed(
            base64.b64decode(listed["certificate"]),
            base64.b64decode(listed["request"]),
            address=acme.address,
            kind=kind,
            identity_key=acme.identity.public,
            issuing_der=base64.b64decode(told["issuing"]),
            root_der=site.deps.chain.root,
            crl=crl.verify_crl(site.http.get("/v1/crl").content, issuing_der=site.deps.chain.issuing, now=now()),
            now=now(),
        )
    unchanged = globex.call("GET", "/v1/directory/acme/eu-west", headers={"If-None-Match": answer.headers["etag"]})
    assert unchanged.status_code == 304


def test_renewal_leaves_a_history(site: Site, acme: Instance) -> None:
    """A new encryption key takes the old one's place; the old certificate stays to be read, as retired."""
    old = facts.proof_of_decryption(acme.encryption_certificate)
    acme.encryption = kem.generate()
    acme.certify()
    history = acme.get("/v1/directory/acme/eu-west/history").json()["certificates"]
    states = [(one["kind"], one["state"]) for one in history]
    assert sorted(states) == [("encryption", "active"), ("encryption", "retired"), ("identity", "active")]
    assert acme.get(f"/v1/certificates/{old}").json()["state"] == "retired"


def test_strangers_requests_are_not_seen(site: Site, acme: Instance, globex: Instance) -> None:
    """Somebody else's request looks exactly like none."""
    submitted = acme.call("POST", "/v1/certificate-requests", _request(acme, kem.generate()), "application/pkcs10")
    real = submitted.json()["id"]
    none = "0" * 64
    answers = [globex.get(f"/v1/certificate-requests/{one}") for one in (real, none)]
    assert {code(answer) for answer in answers} == {(404, "not-found")}
    assert answers[0].text.replace(real, none) == answers[1].text
    assert code(globex.post(f"/v1/certificate-requests/{real}/proof", {"sha256": none})) == (404, "not-found")


def test_a_request_needs_possession_and_its_own_address(site: Site, acme: Instance, globex: Instance) -> None:
    """Nobody gets a certificate under somebody else's name or signature, nor with an altered request."""
    good = _request(acme, kem.generate())
    assert code(globex.call("POST", "/v1/certificate-requests", good, "application/pkcs10"))[0] == 422
    for place in (-1, len(good) // 2):
        altered = bytearray(good)
        altered[place] ^= 1
        answer = acme.call("POST", "/v1/certificate-requests", bytes(altered), "application/pkcs10")
        assert answer.status_code in (400, 422)
        code(answer)
    # The same bytes twice are the same request.
    ids = [acme.call("POST", "/v1/certificate-requests", good, "application/pkcs10").json()["id"] for _ in range(2)]
    assert ids[0] == ids[1]


def test_only_the_owner_revokes(site: Site, acme: Instance, globex: Instance) -> None:
    """A revocation needs the owner's access key and identity key, and has to be for the certificate in the path."""
    mine = facts.proof_of_decryption(acme.encryption_certificate)
    theirs = facts.proof_of_decryption(globex.encryption_certificate)
    good = acme.revocation(mine)
    refused = [
        globex.call("POST", f"/v1/certificates/{mine}/revocation", globex.revocation(mine), "application/cms"),
        globex.call("POST", f"/v1/certificates/{mine}/revocation", good, "application/cms"),
        acme.call("POST", f"/v1/certificates/{theirs}/revocation", good, "application/cms"),
        acme.call("POST", f"/v1/certificates/{mine}/revocation", globex.revocation(mine), "application/cms"),
        acme.call("POST", f"/v1/certificates/{mine}/revocation", b"", "application/cms"),
    ]
    for answer in refused:
        assert answer.status_code in (400, 404, 422)
        code(answer)
    assert acme.get(f"/v1/certificates/{mine}").json()["state"] == "active"


@pytest.mark.usefixtures("only_the_bell")
def test_following_waits_for_the_issuer(site: Site, acme: Instance) -> None:
    """A long poll is answered when the certificate is issued, not before and not much later."""
    path = "/v1/certificate-requests"
    submitted = acme.call("POST", path, _request(acme, kem.generate()), "application/pkcs10")
    follow = f"{submitted.headers['location']}?wait=20"
    assert in_time(site, lambda: acme.get(follow), site.work).json()["state"] == "issued"


def test_nobody_is_found_where_nobody_is(acme: Instance) -> None:
    """An address without an instance, and a fingerprint without a certificate."""
    assert code(acme.get("/v1/directory/acme/nobody")) == (404, "unknown-recipient")
    assert code(acme.get("/v1/directory/acme/nobody/history")) == (404, "unknown-recipient")
    assert code(acme.get(f"/v1/certificates/{'0' * 64}")) == (404, "not-found")


def _request(instance: Instance, private: bytes) -> bytes:
    identity = x509.parse_certificate(instance.identity_certificate)
    algorithm = KemAlgorithm.COMPOSITE
    return requests.encryption_request(
        instance.address,
        kem.spki(algorithm, kem.public_from_private(algorithm, private)),
        requests.Statement(identity.issuer_der, identity.serial),
        sign=instance.identity.sign,
        signing_time=now(),
    )


def test_own_certificates_say_what_waits(site: Site, acme: Instance, globex: Instance) -> None:
    """An instance sees its own, with the mail under each key, and nobody else's."""
    before = globex.get("/v1/certificates").json()["items"]
    acme.send(globex)
    after = globex.get("/v1/certificates").json()["items"]
    assert [one["fingerprint"] for one in before] == [one["fingerprint"] for one in after]
    active = {one["kind"]: one for one in after if one["state"] == "active"}
    history = globex.get(f"/v1/directory/{globex.address}/history").json()["certificates"]
    assert {one["fingerprint"] for one in after} == {one["fingerprint"] for one in history}
    grown = {one["kind"]: one for one in before if one["state"] == "active"}["encryption"]["waiting"]
    assert active["encryption"]["waiting"] == grown | {"available": grown["available"] + 1}
    assert set(active["identity"]["waiting"].values()) == {0}
    assert {one["fingerprint"] for one in acme.get("/v1/certificates").json()["items"]}.isdisjoint(
        one["fingerprint"] for one in after
    )
    etag = globex.get("/v1/certificates").headers["etag"]
    assert globex.call("GET", "/v1/certificates", headers={"If-None-Match": etag}).status_code == 304


def test_a_certificate_is_cached_by_its_state(site: Site, globex: Instance) -> None:
    """By fingerprint a client gets an ETag, and 304 as long as the certificate's state is the same."""
    listed = globex.call("GET", f"/v1/directory/{globex.address}").json()
    path = f"/v1/certificates/{listed['identity']['fingerprint']}"
    first = globex.call("GET", path)
    again = globex.call("GET", path, headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
