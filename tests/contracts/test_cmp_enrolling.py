"""Contract of CMP: identities under a secret, encryption keys under an identity, confirmed or never listed."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pki.core import keys, x509
from pki.core.certificates import CertificateState
from pki.core.cmp import messages
from pki.core.cmp.protection import MacParameters, SignedBy
from pki.core.cmp.types import Fail
from pki.core.errors import UnknownRecipientError
from pki.core.kem import KemAlgorithm
from pki.core.keys import RsaAlgorithm
from pki.core.tenants import parse_address
from pki.core.x509 import CertificateKind
from pki.server.services import certificates
from pki.server.store import certificates as certificate_store
from pki.server.store import tenants
from pki.server.store.engine import Store
from tests.kit import forge, forge_cmp, tlv
from tests.kit import forge_pki as pki
from tests.kit.authority import new_signing_key
from tests.kit.counter import Client, Counter
from tests.kit.office import Office, open_office

EU_WEST = parse_address("acme/eu-west")
COMPOSITE = KemAlgorithm.COMPOSITE


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Office:
    """A server with a CA."""
    return open_office(store, tmp_path)


@pytest.fixture
def counter(office: Office) -> Counter:
    """Where CMP messages are answered."""
    return Counter(office)


@pytest.fixture
def acme(counter: Counter) -> Client:
    """An instance that was invited."""
    return Client(counter, EU_WEST).invited()


@pytest.fixture
def enrolled(acme: Client) -> Client:
    """An instance with an identity certificate."""
    acme.enrol()
    return acme


def states(office: Office, kind: CertificateKind) -> list[CertificateState]:
    """Return the states of eu-west's certificates, newest first."""
    with office.deps.store.read() as unit:
        return [one.state for one in certificate_store.history(unit, EU_WEST, kind)]


def test_a_secret_enrols_an_identity(office: Office, acme: Client) -> None:
    """An ir leaves an instance without an access key, and an active identity certificate, which it brings."""
    fields = acme.fields
    reply = acme.counter.post(acme.enrolment(**fields))
    with office.deps.store.read() as unit:
        instance = tenants.instance(unit, EU_WEST)
        invitation = tenants.invitation(unit, acme.reference)
    assert instance is not None
    assert (instance.identity_spki, instance.access_key) == (acme.identity.public.spki, None)
    assert invitation is not None
    assert invitation.used_by == EU_WEST
    listing = certificates.lookup(office.deps, EU_WEST)
    assert (reply.kind, reply.certificate, reply.implicit) == ("ip", listing.identity.der, False)
    header = reply.message["header"]
    assert bytes(header["transactionID"]) == fields["transaction"]
    assert bytes(header["recipNonce"]) == fields["nonce"]
    assert len(reply.message["body"]["ip"]["caPubs"]) == 1
    assert acme.confirm(reply, fields, reply.certificate, acme.mac).kind == "pkiconf"
    assert office.told()[-1] == "certificate.activated"


def test_the_answer_has_the_protection_of_the_question(office: Office, acme: Client) -> None:
    """A MAC under the same secret with another salt; a signature of the issuing CA, whose certificate comes along."""
    answer = messages.parse(acme.counter.post(acme.enrolment()).der)
    assert isinstance(answer.algorithm, MacParameters)
    answer.algorithm.verify(answer.protection, acme.secret.encode(), answer.protected)
    assert answer.algorithm.salt != bytes(range(16))
    acme.reference = ""
    reply = acme.counter.post(acme.wish(COMPOSITE, keys.generate(COMPOSITE)))
    answer = messages.parse(reply.der)
    key = x509.authority_key(office.deps.chain.issuing)
    assert answer.algorithm == SignedBy(key.algorithm)
    key.verify(answer.protection, answer.protected)
    assert len(reply.message["extraCerts"]) == 1


def test_implicit_confirmation(office: Office, acme: Client) -> None:
    """It is granted for an identity, whose key has proved itself, and never for a certificate that comes encrypted."""
    wanted = {"information": [tlv.seq(tlv.oid(forge_cmp.IMPLICIT_CONFIRM), tlv.NULL)]}
    fields = acme.fields
    reply = acme.counter.post(acme.enrolment(**fields, **wanted))
    assert reply.implicit
    assert acme.confirm(reply, fields, reply.certificate, acme.mac).kind == "error"
    acme.reference = ""
    private, fields = keys.generate(COMPOSITE), acme.fields
    reply = acme.counter.post(acme.wish(COMPOSITE, private, **fields, **wanted))
    assert (reply.kind, reply.implicit) == ("cp", False)
    assert states(office, CertificateKind.ENCRYPTION) == [CertificateState.UNPROVED]
    assert acme.confirm(reply, fields, reply.opened(COMPOSITE, private), acme.signature).kind == "pkiconf"
    assert states(office, CertificateKind.ENCRYPTION) == [CertificateState.ACTIVE]


def test_a_lost_answer_is_given_again(office: Office, acme: Client) -> None:
    """Who asks again with the same secret and the same key gets the same certificate; nothing is there twice."""
    first = acme.counter.post(acme.enrolment())
    told = office.told()
    fields = acme.fields
    again = acme.counter.post(acme.enrolment(**fields))
    assert again.certificate == first.certificate
    assert office.told() == told
    assert acme.confirm(again, fields, again.certificate, acme.mac).kind == "pkiconf"


def test_whatever_is_wrong_with_a_secret_is_answered_alike(office: Office, acme: Client) -> None:
    """Unknown, wrong, used, expired, from before CMP, or none: one answer, which nothing protects (CMP-008)."""
    counter = acme.counter
    old = Client(counter, EU_WEST).invited()
    with office.deps.store.unit() as unit:
        tenants.forget_secrets(unit, office.clock.now() + timedelta(days=365))
    late, fresh = Client(counter, EU_WEST).invited(), Client(counter, EU_WEST).invited()
    acme.invited()
    counter.post(acme.enrolment())
    sibling = Client(counter, parse_address("acme/other")).invited()
    sibling.enrol()
    wrong = {
        "unknown": Client(counter, EU_WEST, "0" * 16, "guess"),
        "wrong": Client(counter, EU_WEST, fresh.reference, "guess"),
        "of another": Client(counter, EU_WEST, fresh.reference, late.secret),
        "from before": old,
        "used, for another address": Client(counter, parse_address("acme/third"), acme.reference, acme.secret),
        "used, by another": Client(counter, sibling.address, acme.reference, acme.secret, sibling.identity),
        "used, with another key": Client(counter, EU_WEST, acme.reference, acme.secret),
        "no reference": Client(counter, EU_WEST, "", fresh.secret),
        "odd reference": Client(counter, EU_WEST, fresh.reference.upper() + "x", fresh.secret),
    }
    answers = {name: counter.post(client.enrolment()) for name, client in wrong.items()}
    answers["no protection"] = counter.post(fresh.enrolment(protect=None))
    office.clock.step(timedelta(days=365))
    answers["expired"] = counter.post(late.enrolment())
    for name, one in answers.items():
        assert (one.kind, one.protected, one.failure) == ("error", False, Fail.BAD_MESSAGE_CHECK), name
    assert len({one.text for one in answers.values()}) == 1
    with office.deps.store.read() as unit:
        assert len(tenants.list_instances(unit)) == 2


def test_without_a_registration_key_a_secret_is_not_known(office: Office, acme: Client) -> None:
    """An issuer process that has none answers as if the secret were wrong; signatures it takes all the same."""
    acme.enrol()
    late = Client(acme.counter, parse_address("acme/late")).invited()
    object.__setattr__(acme.counter, "opener", None)
    assert late.counter.post(late.enrolment()).failure == Fail.BAD_MESSAGE_CHECK
    assert acme.counter.post(acme.wish(COMPOSITE, keys.generate(COMPOSITE))).kind == "cp"


@pytest.mark.parametrize("algorithm", [COMPOSITE, KemAlgorithm.ML_KEM_768, RsaAlgorithm.OAEP_SHA256])
def test_an_encryption_key_is_proved(office: Office, enrolled: Client, algorithm: Any) -> None:
    """The certificate comes encrypted to its key, is not listed, and becomes active when its hash comes back."""
    private = keys.generate(algorithm)
    fields = enrolled.fields
    reply = enrolled.counter.post(enrolled.wish(algorithm, private, **fields))
    assert (reply.kind, int(reply.message["header"]["pvno"])) == ("cp", 3)
    assert certificates.lookup(office.deps, EU_WEST).encryption is None
    certificate = reply.opened(algorithm, private)
    assert enrolled.confirm(reply, fields, certificate, enrolled.signature).kind == "pkiconf"
    listed = certificates.lookup(office.deps, EU_WEST).encryption
    assert listed is not None
    assert listed.der == certificate


def test_a_key_update_retires_the_old_key(office: Office, enrolled: Client) -> None:
    """A kur for another encryption key names the old certificate, which is retired when the new one is proved."""
    private = keys.generate(COMPOSITE)
    old = x509.parse_certificate(enrolled.publish(COMPOSITE, private))
    named = tlv.seq(
        tlv.oid(forge_cmp.OLD_CERTIFICATE), tlv.seq(forge_cmp.general(old.issuer_der), tlv.integer(old.serial))
    )
    office.clock.step(timedelta(seconds=1))
    private, fields = keys.generate(COMPOSITE), enrolled.fields
    wish = enrolled.wish(COMPOSITE, private, kind=forge_cmp.KUR, controls=[named], **fields)
    reply = enrolled.counter.post(wish)
    assert reply.kind == "kup"
    assert states(office, CertificateKind.ENCRYPTION) == [CertificateState.UNPROVED, CertificateState.ACTIVE]
    enrolled.confirm(reply, fields, reply.opened(COMPOSITE, private), enrolled.signature)
    assert states(office, CertificateKind.ENCRYPTION) == [CertificateState.ACTIVE, CertificateState.RETIRED]


def test_an_identity_is_renewed_for_its_own_key(office: Office, enrolled: Client) -> None:
    """A kur brings a new certificate for the same key; another identity key is another identity."""
    office.clock.step(timedelta(hours=1))
    reply = enrolled.counter.post(enrolled.renewal())
    assert reply.kind == "kup"
    assert certificates.lookup(office.deps, EU_WEST).identity.der == reply.certificate
    assert states(office, CertificateKind.IDENTITY) == [CertificateState.ACTIVE, CertificateState.RETIRED]
    reply = enrolled.counter.post(enrolled.renewal(identity=new_signing_key()))
    assert reply.kind == "error"
    assert "Another identity key is another identity" in reply.text


def test_what_is_replaced_is_the_senders(office: Office, enrolled: Client) -> None:
    """A key update that names somebody else's certificate, or none that there is, is refused (CMP-011)."""
    globex = Client(enrolled.counter, parse_address("globex/main")).invited()
    other = x509.parse_certificate(globex.enrol().certificate)
    for serial in (other.serial, 4711):
        named = tlv.seq(
            tlv.oid(forge_cmp.OLD_CERTIFICATE), tlv.seq(forge_cmp.general(other.issuer_der), tlv.integer(serial))
        )
        wish = enrolled.wish(COMPOSITE, keys.generate(COMPOSITE), kind=forge_cmp.KUR, controls=[named])
        reply = enrolled.counter.post(wish)
        assert (reply.kind, reply.failure) == ("error", Fail.BAD_CERT_ID)
        assert "[CMP-011]" in reply.text
    assert states(office, CertificateKind.ENCRYPTION) == []


def test_a_certificate_that_nobody_confirms_is_not_listed(office: Office, enrolled: Client) -> None:
    """Without a confirmation, and after one that comes too late, it stays unproved; so does a rejected one."""
    private, fields = keys.generate(COMPOSITE), enrolled.fields
    reply = enrolled.counter.post(enrolled.wish(COMPOSITE, private, **fields))
    certificate = reply.opened(COMPOSITE, private)
    office.clock.step(timedelta(minutes=16))
    late = enrolled.confirm(reply, fields, certificate, enrolled.signature)
    assert (late.kind, late.protected) == ("error", True)
    fields = enrolled.fields
    reply = enrolled.counter.post(enrolled.wish(COMPOSITE, keys.generate(COMPOSITE), **fields))
    assert enrolled.confirm(reply, fields, certificate, enrolled.signature, status=2).kind == "pkiconf"
    assert set(states(office, CertificateKind.ENCRYPTION)) == {CertificateState.UNPROVED}
    assert certificates.lookup(office.deps, EU_WEST).encryption is None


@pytest.mark.parametrize("wrong", ["hash", "nonce", "no nonce", "other sender", "secret"])
def test_a_confirmation_has_to_fit(office: Office, acme: Client, wrong: str) -> None:
    """The hash (CMP-010), the nonce and who confirms (CMP-009) have to be right; a wrong hash ends the transaction."""
    globex = Client(acme.counter, parse_address("globex/main")).invited()
    globex.enrol()
    secret = acme.mac
    reference = acme.reference
    acme.enrol()
    private, fields = keys.generate(COMPOSITE), acme.fields
    reply = acme.counter.post(acme.wish(COMPOSITE, private, **fields))
    certificate = reply.opened(COMPOSITE, private)
    if wrong == "hash":
        answer = acme.confirm(reply, fields, certificate[:-1], acme.signature)
        assert "[CMP-010]" in answer.text
        answer = acme.confirm(reply, fields, certificate, acme.signature)
    elif wrong == "nonce":
        answer = acme.confirm(reply, fields, certificate, acme.signature, answers=bytes(16))
    elif wrong == "no nonce":
        answer = acme.confirm(reply, fields, certificate, acme.signature, answers=None)
    elif wrong == "other sender":
        mine = {**fields, "sender": globex.fields["sender"]}
        answer = acme.confirm(reply, mine, certificate, globex.signature)
    else:
        answer = acme.confirm(reply, {**fields, "key": reference.encode()}, certificate, secret)
    assert answer.kind == "error"
    assert "[CMP-009]" in answer.text
    assert states(office, CertificateKind.ENCRYPTION) == [CertificateState.UNPROVED]


def test_a_hash_without_its_algorithm(office: Office, enrolled: Client) -> None:
    """ML-DSA has no hash to go by, so a confirmation that names none does not fit (RFC 9810 §5.3.18)."""
    private, fields = keys.generate(COMPOSITE), enrolled.fields
    reply = enrolled.counter.post(enrolled.wish(COMPOSITE, private, **fields))
    certificate = reply.opened(COMPOSITE, private)
    content = forge_cmp.confirmation(hashlib.sha256(certificate).digest())
    mine = {**fields, "answers": reply.nonce}
    answer = enrolled.counter.post(forge_cmp.message(forge_cmp.CERTCONF, content, enrolled.signature, **mine))
    assert (answer.kind, answer.failure) == ("error", Fail.BAD_CERT_ID)
    assert states(office, CertificateKind.ENCRYPTION) == [CertificateState.UNPROVED]


def test_pkcs10_of_other_tools(office: Office, acme: Client) -> None:
    """A p10cr enrols an identity; the same PKCS #10 in a new message is no second certificate, an old one is none."""
    csr = pki.request(
        str(EU_WEST), spki=acme.identity.public.spki, attributes=(), algorithm=forge.GOOD, sign=acme.identity.sign
    )
    fields = acme.fields
    reply = acme.counter.post(forge_cmp.message(forge_cmp.P10CR, csr, acme.mac, **fields))
    assert (reply.kind, int(reply.message["body"]["cp"]["response"][0]["certReqId"])) == ("cp", -1)
    assert acme.confirm(reply, fields, reply.certificate, acme.mac).kind == "error"
    acme.reference = ""
    again = acme.counter.post(forge_cmp.message(forge_cmp.P10CR, csr, acme.signature, **acme.fields))
    assert again.certificate == reply.certificate
    assert states(office, CertificateKind.IDENTITY) == [CertificateState.ACTIVE]
    for time in (office.clock.now() - timedelta(hours=49), None):
        late = acme.counter.post(
            forge_cmp.message(forge_cmp.P10CR, csr, acme.signature, **{**acme.fields, "time": time})
        )
        assert late.kind == "error"
    office.clock.step(timedelta(days=300))
    renewed = acme.counter.post(forge_cmp.message(forge_cmp.P10CR, csr, acme.signature, **acme.fields))
    assert renewed.certificate != reply.certificate
    assert states(office, CertificateKind.IDENTITY) == [CertificateState.ACTIVE, CertificateState.RETIRED]


def test_nobody_is_there_before_the_answer(office: Office, acme: Client) -> None:
    """A message that waits has changed nothing."""
    acme.counter.hand_in(acme.enrolment())
    with pytest.raises(UnknownRecipientError):
        certificates.lookup(office.deps, EU_WEST)
