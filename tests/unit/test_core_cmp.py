"""CMP messages: read, protected, answered; and what endorses a certificate."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from cryptography import x509 as library
from cryptography.x509 import ObjectIdentifier as Oid
from pyasn1.codec.der.decoder import decode as pyasn1_decode
from pyasn1_alt_modules import rfc5652, rfc9480

from pki.core import keys, requests, revocations, signatures, x509
from pki.core.certificates import check_listed
from pki.core.cmp import answers, bodies, messages
from pki.core.cmp.messages import Header
from pki.core.cmp.protection import MacParameters, MacProtection, SignatureProtection, SignedBy
from pki.core.cmp.types import AES256_CBC, Body, Fail
from pki.core.envelope import Recipient
from pki.core.errors import AlgorithmError, CertificateError, KeymailboxError, ProfileError, SignatureError
from pki.core.kem import KemAlgorithm
from pki.core.keys import EcAlgorithm, KeyAlgorithm, RsaAlgorithm
from pki.core.signatures import SignatureAlgorithm
from pki.core.tenants import parse_address
from pki.core.x509 import CertificateKind
from tests.kit import forge, tlv
from tests.kit import forge_cmp as cmp
from tests.kit import forge_pki as pki
from tests.kit.authority import NOW
from tests.kit.forge_pki import ACME, GLOBEX, GLOBEX_KEY, STRANGER
from tests.kit.vectors import FOLDER, load

HEADER = Header(
    version=2, sender=messages.NOBODY, recipient=messages.NOBODY, transaction=bytes(16), sender_nonce=bytes(16)
)


def parse(der: bytes) -> requests.UnverifiedRequest:
    """Return a message as a request."""
    return requests.parse_request(der)


def key(of: forge.Signer = GLOBEX) -> signatures.VerifyingKey:
    """Return an identity key."""
    return signatures.from_raw(of.public)


def shared(name: str) -> bytes:
    """Return an object that the vectors share."""
    return load(FOLDER / "keys" / f"{name}.txt").body


def test_an_identity_is_asked_for_under_a_secret() -> None:
    """The identity key signs the request and its time, and an invitation's secret protects the message."""
    der = cmp.first()
    message = messages.parse(der)
    assert isinstance(message.algorithm, MacParameters)
    message.algorithm.verify(message.protection, cmp.SECRET, message.protected)
    request = parse(der).verify(key())
    assert (request.kind, str(request.address), request.spki) == (CertificateKind.IDENTITY, "globex/main", GLOBEX.spki)
    assert request.signing_time == NOW - cmp.MINUTE
    assert message.header.sender_key == cmp.REFERENCE


def test_an_encryption_key_is_asked_for_by_the_identity_key() -> None:
    """The identity key signs the whole message, and messageTime is the time."""
    request = parse(cmp.further()).verify(key())
    assert (request.kind, request.spki) == (CertificateKind.ENCRYPTION, GLOBEX_KEY.spki)
    assert (request.signing_time, request.statement) == (NOW - cmp.MINUTE, None)


def test_certificates_that_come_along_are_no_part_of_it() -> None:
    """What nothing protects is left out, so that one request has one form."""
    along = cmp.further(along=tlv.context(1, tlv.seq(pki.certificate())))
    assert parse(messages.parse(along).bare).verify(key())
    with pytest.raises(ProfileError, match="REQ-001"):
        parse(along)


def test_a_peer_believes_the_identity_keys_message() -> None:
    """A certificate is endorsed by the CMP message that asked for it, and by no other key's (CRT-012, REQ-005)."""

    def check(request: bytes, identity: forge.Signer = GLOBEX) -> None:
        check_listed(
            pki.certificate(key=GLOBEX_KEY),
            request,
            address=parse_address("globex/main"),
            kind=CertificateKind.ENCRYPTION,
            identity_key=key(identity),
            issuing_der=shared("issuing"),
            root_der=shared("root"),
            crl=None,
            now=NOW,
        )

    check(cmp.further())
    with pytest.raises(SignatureError, match="REQ-005"):
        check(cmp.further(protect=cmp.by_key(STRANGER)))
    with pytest.raises(SignatureError, match="REQ-005"):
        check(cmp.further(), STRANGER)
    with pytest.raises(CertificateError, match="CRT-013"):
        check(cmp.further(time=NOW - timedelta(hours=72)))
    other = cmp.message(cmp.CR, tlv.seq(cmp.asked(cmp.template(key=pki.ACME_KEY.spki), cmp.ENCRYPTED)), cmp.by_key())
    with pytest.raises(CertificateError, match="CRT-012"):
        check(other)


@pytest.mark.parametrize("where", ["request", "protection", "both"])
def test_both_signatures_of_an_identity_have_to_be_right(where: str) -> None:
    """A renewal has two signatures, of the request and of the message, and each is the identity key's (REQ-005)."""
    signer = STRANGER if where != "protection" else GLOBEX
    content = tlv.seq(cmp.asked(cmp.template(), signer.sign))
    protect = cmp.by_key(STRANGER if where != "request" else GLOBEX)
    with pytest.raises(SignatureError, match="REQ-005"):
        parse(cmp.message(cmp.KUR, content, protect)).verify(key())
    good = cmp.message(cmp.KUR, tlv.seq(cmp.asked(cmp.template(), GLOBEX.sign)), cmp.by_key())
    assert parse(good).verify(key()).kind is CertificateKind.IDENTITY


def test_cmp_005_a_wish_is_refused_or_granted() -> None:
    """The alternative name and the key usage that would be issued anyway may be asked for, and nothing else."""
    right = [pki.names(pki.uri("globex/main")), pki.usage()]
    assert parse(cmp.first(cmp.identity(extensions=right))).verify(key())
    for wrong in (pki.names(pki.uri("acme/eu-west")), pki.usage(pki.ENCIPHERMENT), pki.usage(b"\x05\xa0")):
        with pytest.raises(ProfileError, match="CMP-005"):
            parse(cmp.first(cmp.identity(extensions=[wrong])))
    with pytest.raises(ProfileError, match="CMP-005"):
        parse(cmp.first(cmp.identity(extensions=[right[0], right[0]])))
    preferences = pki.extension("1.2.840.113549.1.9.15", tlv.seq(tlv.algorithm("1.2.840.113549.1.9.16.3.30")))
    with pytest.raises(ProfileError, match="CMP-005"):
        parse(cmp.first(cmp.identity(extensions=[preferences])))


def test_cmp_006_an_identity_key_is_of_its_own_kind() -> None:
    """A signature of another algorithm than the key's proves nothing, nor does an encryption key's own."""
    rsa = tlv.algorithm("1.2.840.113549.1.1.11", tlv.NULL)
    proof = tlv.context(1, rsa, tlv.bits(bytes(384)))
    with pytest.raises(AlgorithmError, match="CMP-006"):
        messages_read(cmp.first(tlv.seq(cmp.asked(cmp.template(), proof))))
    ecdsa = tlv.context(1, tlv.algorithm("1.2.840.10045.4.3.2"), tlv.bits(bytes(70)))
    with pytest.raises(ProfileError, match="REQ-002"):
        parse(cmp.first(tlv.seq(cmp.asked(cmp.template(start=NOW), ecdsa))))


def messages_read(der: bytes) -> object:
    """Read message and body."""
    return bodies.read(messages.parse(der))


def test_the_work_for_a_mac_is_bounded() -> None:
    """A billion rounds are refused before the first (CMP-003); the most that is taken is done in a moment."""
    _, protect = cmp.by_secret(rounds=100_000)
    began = time.thread_time()
    with pytest.raises(ProfileError, match="CMP-003"):
        messages.parse(cmp.first(protect=cmp.by_secret(rounds=1_000_000_000, honest=1)))
    assert time.thread_time() - began < 0.5
    message = messages.parse(cmp.first(protect=cmp.by_secret(rounds=100_000)))
    assert isinstance(message.algorithm, MacParameters)
    message.algorithm.verify(message.protection, cmp.SECRET, message.protected)
    assert protect(b"") != message.protection


@pytest.mark.parametrize("wrong", [b"", b"x", cmp.SECRET + b" ", cmp.SECRET[:-1]])
def test_cmp_008_another_secret(wrong: bytes) -> None:
    """Another secret, an altered message or a cut MAC do not verify."""
    message = messages.parse(cmp.first())
    assert isinstance(message.algorithm, MacParameters)
    for code, secret, data in (
        (message.protection, wrong, message.protected),
        (message.protection, cmp.SECRET, message.protected[:-1] + b"x"),
        (message.protection[:-1], cmp.SECRET, message.protected),
        (b"", cmp.SECRET, message.protected),
    ):
        with pytest.raises(SignatureError, match="CMP-008"):
            message.algorithm.verify(code, secret, data)


def test_what_is_written_is_read() -> None:
    """A message that we compose comes out as it went in, whatever protects it."""
    message = messages.parse(cmp.first())
    assert isinstance(message.algorithm, MacParameters)
    mac = MacProtection(message.algorithm.with_salt(bytes(range(32))), cmp.SECRET)
    signed = SignatureProtection(SignatureAlgorithm.ML_DSA_65, ACME.sign)
    header = Header(
        version=3,
        sender=messages.general_name(x509.name_der(parse_address("acme/eu-west"))),
        recipient=messages.NOBODY,
        transaction=bytes(range(16)),
        sender_nonce=bytes(range(16)),
        time=NOW.replace(microsecond=0),
        sender_key=b"key",
        recipient_nonce=bytes(16),
        implicit_confirm=True,
    )
    for protection in (None, mac, signed):
        der = messages.compose(header, Body.PKICONF, answers.confirmed(), protection, [pki.certificate()])
        read = messages.parse(der)
        assert (read.header, read.kind, read.content) == (header, Body.PKICONF, answers.confirmed())
        _, rest = pyasn1_decode(der, asn1Spec=rfc9480.PKIMessage())
        assert rest == b""
        if protection is mac:
            assert isinstance(read.algorithm, MacParameters)
            assert read.algorithm.salt == bytes(range(32))
            read.algorithm.verify(read.protection, cmp.SECRET, read.protected)
        elif protection is signed:
            assert read.algorithm == SignedBy(SignatureAlgorithm.ML_DSA_65)
            key(ACME).verify(read.protection, read.protected)


@pytest.mark.parametrize("failure", list(Fail))
def test_a_failure_is_the_bit_that_it_is(failure: Fail) -> None:
    """Another decoder reads the same bit, and the text."""
    der = messages.compose(HEADER, Body.ERROR, answers.error(failure, "what is wrong"), None)
    message, _ = pyasn1_decode(der, asn1Spec=rfc9480.PKIMessage())
    told = message["body"]["error"]["pKIStatusInfo"]
    assert int(told["status"]) == 2
    assert [place for place, bit in enumerate(told["failInfo"]) if bit] == [int(failure)]
    assert str(told["statusString"][0]) == "what is wrong"


def test_answers_are_what_another_decoder_reads() -> None:
    """Certificates, revocations and the CA's certificates, read by pyasn1."""
    certificate = pki.certificate()

    def read(kind: Body, content: bytes) -> object:
        message, rest = pyasn1_decode(messages.compose(HEADER, kind, content, None), asn1Spec=rfc9480.PKIMessage())
        assert rest == b""
        return message["body"]

    ip = read(Body.IP, answers.certificate(7, certificate, [shared("root")]))["ip"]  # type: ignore[index]  # pyasn1 has no types
    assert int(ip["response"][0]["certReqId"]) == 7
    assert ip["response"][0]["certifiedKeyPair"]["certOrEncCert"]["certificate"].isValue
    assert len(ip["caPubs"]) == 1
    cp = read(Body.CP, answers.refusal(0, Fail.BAD_POP, "no"))["cp"]  # type: ignore[index]  # pyasn1 has no types
    assert not cp["response"][0]["certifiedKeyPair"].isValue
    rp = read(Body.RP, answers.revoked())["rp"]  # type: ignore[index]  # pyasn1 has no types
    assert int(rp["status"][0]["status"]) == 0
    genp = read(Body.GENP, answers.authorities([certificate]))["genp"]  # type: ignore[index]  # pyasn1 has no types
    assert str(genp[0]["infoType"]) == cmp.CA_CERTS


@pytest.mark.parametrize(
    "algorithm",
    [KemAlgorithm.COMPOSITE, KemAlgorithm.ML_KEM_768, KemAlgorithm.ML_KEM_1024, *EcAlgorithm, RsaAlgorithm.OAEP_SHA256],
    ids=lambda one: one.title,
)
def test_a_certificate_comes_encrypted(algorithm: KeyAlgorithm) -> None:
    """It is EnvelopedData (RFC 9810 §5.2.2) for the key, as pyasn1 reads it, and holds the certificate."""
    private = keys.generate(algorithm)
    public = keys.public_from_private(algorithm, private)
    recipient = Recipient(bytes(20), algorithm, public)
    content = answers.encrypted_certificate(0, b"the certificate", recipient)
    message, _ = pyasn1_decode(messages.compose(HEADER, Body.CP, content, None), asn1Spec=rfc9480.PKIMessage())
    held = message["body"]["cp"]["response"][0]["certifiedKeyPair"]["certOrEncCert"]["encryptedCert"]["envelopedData"]
    assert int(held["version"]) == (3 if isinstance(algorithm, KemAlgorithm) else 2)
    assert len(held["recipientInfos"]) == 1
    encrypted = held["encryptedContentInfo"]
    assert encrypted["contentType"] == rfc5652.id_data
    assert Oid(str(encrypted["contentEncryptionAlgorithm"]["algorithm"])) == AES256_CBC
    assert b"the certificate" not in content


def test_confirmations_and_revocations_are_read() -> None:
    """What a client says about its certificates, in facts."""
    said = messages_read(cmp.message(cmp.CERTCONF, cmp.confirmation(b"\1" * 32, number=3), cmp.by_key()))
    assert said == bodies.Confirmation(3, b"\1" * 32, None, accepted=True)
    by = tlv.algorithm(forge.SHA_512)
    said = messages_read(cmp.message(cmp.CERTCONF, cmp.confirmation(b"\1" * 64, status=2, by=by), cmp.by_key()))
    assert said == bodies.Confirmation(0, b"\1" * 64, "sha512", accepted=False)
    said = messages_read(cmp.message(cmp.RR, cmp.revocation(7, None), cmp.by_key()))
    assert said == bodies.RevocationWish(pki.ISSUER_NAME, 7, 0)
    old = tlv.seq(tlv.oid(cmp.OLD_CERTIFICATE), tlv.seq(cmp.general(pki.ISSUER_NAME), tlv.integer(9)))
    asked = messages_read(cmp.message(cmp.KUR, cmp.encryption(controls=[old]), cmp.by_key()))
    assert isinstance(asked, bodies.KeyRequest)
    assert (asked.old, asked.proof) == ((pki.ISSUER_NAME, 9), None)


def test_a_revocation_is_the_owners_signed_message() -> None:
    """An rr that the identity key signed is a wish; one under a secret, without a time or with more is none."""
    wish = revocations.parse_revocation(cmp.message(cmp.RR, cmp.revocation(), cmp.by_key())).verify(key())
    certificate = x509.parse_certificate(pki.certificate())
    assert wish.named.fits(certificate)
    assert not wish.named.fits(x509.parse_certificate(pki.certificate(serial=9)))
    assert (int(wish.reason), wish.requested) == (1, NOW - cmp.MINUTE)
    along = tlv.context(1, tlv.seq(pki.certificate()))
    for der in (
        cmp.message(cmp.RR, cmp.revocation(), cmp.by_secret()),
        cmp.message(cmp.RR, cmp.revocation(), cmp.by_key(), time=None),
        cmp.message(cmp.RR, cmp.revocation(), cmp.by_key(), along=along),
        cmp.further(),
    ):
        with pytest.raises(ProfileError, match="REV-001"):
            revocations.parse_revocation(der)
    with pytest.raises(SignatureError, match="SIG-006"):
        revocations.parse_revocation(cmp.message(cmp.RR, cmp.revocation(), cmp.by_key(STRANGER))).verify(key())


def test_issuing_cas_may_sign_messages() -> None:
    """An issuing CA's certificate has digitalSignature, a root's has not."""
    root = x509.ca_tbs(
        "root", ACME.spki, issuer_der=None, serial=1, not_before=NOW, not_after=NOW + pki.DAY, path_length=1
    )
    root_der = x509.assemble(root, ACME.sign(root))
    issuing = x509.ca_tbs(
        "issuing", GLOBEX.spki, issuer_der=root_der, serial=2, not_before=NOW, not_after=NOW + pki.DAY, path_length=0
    )
    found = [
        library.load_der_x509_certificate(der).extensions.get_extension_for_class(library.KeyUsage).value
        for der in (root_der, x509.assemble(issuing, ACME.sign(issuing)))
    ]
    assert [one.digital_signature for one in found] == [False, True]
    assert all(one.key_cert_sign and one.crl_sign for one in found)


def test_pkcs10_and_cmp_are_told_apart() -> None:
    """So are CMP and CMS, and what is none of them is refused."""
    assert messages.is_message(cmp.first())
    assert not messages.is_message(pki.request())
    assert not messages.is_message(pki.revocation())
    for der in (tlv.seq(), tlv.seq(tlv.seq()), tlv.seq(tlv.seq(), tlv.context(0)), tlv.NULL):
        with pytest.raises(KeymailboxError):
            parse(der)
