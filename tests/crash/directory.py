"""Certificates: invited, enrolled, asked for, issued, proved, revoked, listed, reminded of, expired."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from pki.core import kem
from pki.core.certificates import CertificateState, RequestState
from pki.core.errors import EnrolmentError
from pki.core.ids import RequestId
from pki.core.kem import KemAlgorithm
from pki.core.signatures import SignatureAlgorithm
from pki.core.tenants import parse_address
from pki.core.x509 import CertificateKind
from pki.server.facts import RequestRecord
from pki.server.services import access, certificates, est, orders, status
from pki.server.services.revocations import ask_for_lists
from tests.crash.attempts import Attempt, Case, client
from tests.kit.authority import new_signing_key
from tests.kit.bureau import Bureau
from tests.kit.counter import Client, Counter
from tests.kit.office import Kms
from tests.kit.plain import plain
from tests.kit.town import Town, name

BRIEF = timedelta(days=6)
"""How long certificates are valid where their end is looked at."""
ENDING = ("remind", "expire_certificates")
"""Those cases."""


def invite(town: Town) -> Attempt:
    """An invitation; whoever did not hear of it makes another, and the first is used by nobody."""
    tenant = parse_address(f"{name('hooli')}/main").tenant
    heard: list[str] = []

    def work() -> None:
        heard[:] = [access.invite(town.deps, tenant)[0].reference]

    return client(work, lambda: None if heard else _fail("no invitation"))


def enrol(town: Town) -> Attempt:
    """An instance; that its invitation is used shows it that it was heard, when it can see its own request."""
    kms = Kms(parse_address(f"{name('initech')}/main"))
    reference, secret = town.office.invite(kms.address.tenant)
    enrolment = kms.enrolment(reference, secret, now=town.clock.now())

    def work() -> None:
        try:
            access.enroll(town.deps, enrolment)
        except EnrolmentError:
            # What an agent does (pki/tenant/enrolment.py).
            caller = kms.caller(town.office)
            certificates.submit_request(town.deps, caller, enrolment.identity_request)

    def check() -> None:
        assert certificates.lookup(town.deps, kms.address).identity.state is CertificateState.ACTIVE

    return client(work, check)


def request(town: Town) -> Attempt:
    """A request for a new encryption key, which stays unproved."""
    who = town.globex
    der = who.kms.encryption_request(town.office, kem.generate())
    told: list[RequestId] = []

    def work() -> None:
        told[:] = [certificates.submit_request(town.deps, town.caller(who), der).id]

    def check() -> None:
        found = certificates.status(town.deps, town.caller(who), told[0])
        assert found.request.state is RequestState.ISSUED
        assert found.request.challenge is not None

    return client(work, check)


def issue(town: Town) -> Attempt:
    """A batch: a first identity, an identity renewed, and two encryption keys."""
    new = Kms(parse_address(f"{name('initech')}/main"))
    access.enroll(town.deps, new.enrolment(*town.office.invite(new.address.tenant), now=town.clock.now()))
    # Not of one instance: a request names the identity certificate, which another request of the batch replaces.
    who, other = town.neighbour("first").kms, town.neighbour("second").kms
    # A second of its own, so that the bytes are others than those of the first request.
    town.clock.step(timedelta(seconds=1))
    asked = [(who, who.identity_request(town.clock.now()))]
    asked += [(other, other.encryption_request(town.office, kem.generate())) for _ in range(2)]
    callers = [(kms.caller(town.office), der) for kms, der in asked]
    ids = [(caller, certificates.submit_request(town.deps, caller, der).id) for caller, der in callers]
    lists = set(town.signer.signed)

    def check() -> None:
        assert certificates.lookup(town.deps, new.address).identity.state is CertificateState.ACTIVE
        found = [certificates.status(town.deps, caller, one).request for caller, one in ids]
        assert {one.state for one in found} == {RequestState.ISSUED}, [one.reason for one in found]
        # Whatever was signed is known.
        assert set(town.signer.signed) - town.known_tbs() <= lists

    return Attempt(lambda: town.hands.drain("issue"), check)


def prove(town: Town) -> Attempt:
    """A new encryption key takes the old one's place."""
    who = town.neighbour("first")
    before = who.certificate
    assert before is not None
    private = kem.generate()
    caller = town.caller(who)
    asked = certificates.submit_request(town.deps, caller, who.kms.encryption_request(town.office, private))
    town.office.work()
    digest = who.kms.decrypt(town.office, asked.id, private)

    def check() -> None:
        found = certificates.lookup(town.deps, who.kms.address).encryption
        assert found is not None
        assert found.state is CertificateState.ACTIVE
        assert certificates.by_fingerprint(town.deps, before.fingerprint).state is CertificateState.RETIRED
        who.certificate = found

    return client(lambda: certificates.prove(town.deps, caller, asked.id, digest), check)


def revoke(town: Town) -> Attempt:
    """An owner revokes its identity, and with it falls what that has endorsed."""
    who = town.newcomer()
    identity = certificates.lookup(town.deps, who.kms.address).identity
    wish = who.kms.revocation(town.office, identity.fingerprint)
    caller = town.caller(who)

    def check() -> None:
        found = certificates.history(town.deps, who.kms.address)
        assert {one.state for one in found} == {CertificateState.REVOKED}

    return client(lambda: certificates.revoke(town.deps, caller, wish), check)


def publish(town: Town) -> Attempt:
    """The next revocation list, with its delta, and OCSP responses for what is new."""
    if not town.count("revocations"):
        # One is enough: a list of more takes more steps.
        revoke(town).work()
    town.clock.step(timedelta(hours=1))
    before = status.latest_crl(town.deps)
    ask_for_lists(town.deps)
    town.tick("crl", "ocsp-refresh")

    def check() -> None:
        after = status.latest_crl(town.deps)
        assert after is not None
        assert before is None or after.number > before.number

    return Attempt(lambda: town.hands.drain("issue"), check)


def order(town: Town) -> Attempt:
    """Two officers revoke what an owner has; order and approval are each given again."""
    who = town.newcomer()
    assert who.certificate is not None
    bureau = _bureau(town)
    given = bureau.signed(bureau.revocation("ann", [who.certificate.fingerprint]))
    approvals: list[bytes] = []

    def work() -> None:
        record = orders.give(town.deps, given)
        approvals[:] = approvals or [bureau.approval("bob", record)]
        orders.approve(town.deps, approvals[0])

    def check() -> None:
        [found] = [one for one in certificates.history(town.deps, who.kms.address) if one.kind == "encryption"]
        assert found.state is CertificateState.REVOKED

    return client(work, check)


def remind(town: Town) -> Attempt:
    """Owners of certificates that end soon are told, each once for each threshold."""
    town.newcomer()
    town.clock.step(BRIEF - timedelta(hours=20))
    town.tick("remind")
    before = town.count("reminders")

    def check() -> None:
        assert town.count("reminders") > before

    return Attempt(lambda: town.hands.drain("rotate"), check)


def expire_certificates(town: Town) -> Attempt:
    """All certificates whose time is over."""
    who = town.newcomer()
    town.clock.step(BRIEF + timedelta(hours=1))
    town.tick("expire")

    def check() -> None:
        found = certificates.history(town.deps, who.kms.address)
        assert {one.state for one in found} == {CertificateState.EXPIRED}

    return Attempt(lambda: town.hands.drain("rotate"), check)


def message(town: Town) -> Attempt:
    """A CMP client enrols and confirms: each message is stored, answered once, and answered the same again."""
    counter = town.counter = town.counter or Counter(town.office)
    town.hands.opens(counter.opener)
    who = Client(counter, parse_address(f"{name('umbrella')}/main"))
    who.invited()
    fields = who.fields
    der = who.enrolment(**fields)
    digests: list[str] = []

    def work() -> None:
        digests[:] = [counter.hand_in(der)]
        town.hands.drain("issue")

    def check() -> None:
        reply = counter.reply(digests[0])
        assert reply.kind == "ip", reply.text
        done = who.confirmation(reply, fields, reply.certificate, who.mac)
        digest = counter.hand_in(done)
        town.hands.drain("issue")
        assert counter.reply(digest).kind == "pkiconf"
        town.recover()

    return client(work, check)


def confirmation(town: Town) -> Attempt:
    """A CMP client confirms an encryption certificate, which becomes active."""
    counter = town.counter = town.counter or Counter(town.office)
    town.hands.opens(counter.opener)
    who = Client(counter, parse_address(f"{name('umbrella')}/main"))
    who.invited()
    who.enrol()
    fields, private = who.fields, kem.generate()
    reply = counter.post(who.wish(KemAlgorithm.COMPOSITE, private, **fields))
    der = who.confirmation(reply, fields, reply.opened(KemAlgorithm.COMPOSITE, private), who.signature)
    digests: list[str] = []

    def work() -> None:
        digests[:] = [counter.hand_in(der)]
        town.hands.drain("issue")

    def check() -> None:
        assert counter.reply(digests[0]).kind == "pkiconf"
        found = certificates.history(town.deps, who.address)
        assert [one.state for one in found if one.kind is CertificateKind.ENCRYPTION] == [CertificateState.ACTIVE]
        town.recover()

    return client(work, check)


def est_enroll(town: Town) -> Attempt:
    """An EST client enrols with an invitation; asked again, the request that is there answers."""
    address = parse_address(f"{name('wonka')}/main")
    der = plain(address, new_signing_key(SignatureAlgorithm.ECDSA_P256))
    credentials = est.Credentials(*town.office.invite(address.tenant))
    told: list[RequestRecord] = []

    def work() -> None:
        told[:] = [est.enroll(town.deps, credentials, der)]

    def check() -> None:
        assert est.outcome(town.deps, told[0]) == certificates.lookup(town.deps, address).identity.der
        assert len(certificates.history(town.deps, address)) == 1

    return client(work, check)


def est_renew(town: Town) -> Attempt:
    """An EST client that shows its certificate gets the next one."""
    address, algorithm = parse_address(f"{name('wonka')}/main"), SignatureAlgorithm.ECDSA_P256
    key = new_signing_key(algorithm)
    credentials = est.Credentials(*town.office.invite(address.tenant))
    record = est.enroll(town.deps, credentials, plain(address, key))
    town.hands.drain("issue")
    shown = est.outcome(town.deps, record)
    assert shown is not None
    der = plain(address, key)
    told: list[RequestRecord] = []

    def work() -> None:
        told[:] = [est.renew(town.deps, shown, der)]

    def check() -> None:
        found = certificates.history(town.deps, address)
        assert sorted(one.state for one in found) == [CertificateState.ACTIVE, CertificateState.RETIRED]
        assert est.outcome(town.deps, told[0]) == certificates.lookup(town.deps, address).identity.der

    return client(work, check)


def _bureau(town: Town) -> Bureau:
    # The names stay for ever: each town has its officers once.
    if town.bureau is None:
        town.bureau = Bureau(town.office, "ann", "bob")
    return town.bureau


def _fail(why: str) -> None:
    raise AssertionError(why)


CASES: Mapping[str, Case] = {
    one.__name__: one
    for one in (
        invite,
        enrol,
        request,
        issue,
        prove,
        revoke,
        publish,
        order,
        remind,
        expire_certificates,
        message,
        confirmation,
        est_enroll,
        est_renew,
    )
}
