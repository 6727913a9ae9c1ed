"""``kmb object wrap``, ``open`` and ``verify`` as they are typed, with keys and certificates made here."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, mlkem, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner, Result

from pki.core import asn1, keys, oids, signing
from pki.core.errors import KeymailboxError
from pki.core.kem import KemAlgorithm
from pki.tenant import output
from pki.tenant.cli import app
from tests.unit.tenant.test_objects_ber import loosened_envelope, loosened_signed

DAY = timedelta(days=1)
CONTENT = bytes(range(256)) * 3


def type_(*arguments: str, fine: int = output.DONE, **environment: str) -> Result:
    """Type a command; it has to end with the exit code ``fine``."""
    result = CliRunner().invoke(
        app, ["object", *arguments], env={"KMB_PASSPHRASE_FILE": None, "NO_COLOR": "1"} | environment
    )
    error = result.exception
    code = output.exit_code(error) if isinstance(error, KeymailboxError) else result.exit_code
    assert code == fine, (result.output, repr(error))
    if isinstance(error, KeymailboxError):
        assert error.hint
    return result


def told(*arguments: str, **environment: str) -> Any:
    """Type a command with --json, and read what it prints."""
    return json.loads(type_(*arguments, "--json", **environment).stdout)


def refused(*arguments: str, fine: int = output.CHECK_FAILED, **environment: str) -> KeymailboxError:
    """Type a command, and return its error."""
    error = type_(*arguments, fine=fine, **environment).exception
    assert isinstance(error, KeymailboxError)
    return error


@dataclass
class Desk:
    """A folder with a small authority and its certificates."""

    folder: Path

    def __post_init__(self) -> None:
        self.keys: dict[str, CertificatePublicKeyTypes] = {}
        self.root = ec.generate_private_key(ec.SECP256R1())
        self.middle = ec.generate_private_key(ec.SECP384R1())
        now = datetime.now(UTC)
        self.issue("root", self.root.public_key(), ("root", self.root), authority=True, until=now + 9 * DAY)
        self.issue("middle", self.middle.public_key(), ("root", self.root), authority=True, path_length=0)

    def path(self, name: str) -> str:
        """Return where a file is."""
        return str(self.folder / name)

    def issue(
        self,
        name: str,
        public: CertificatePublicKeyTypes,
        issuer: tuple[str, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey] | None = None,
        *,
        digest: hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None = None,
        padded: padding.PSS | None = None,
        authority: bool = False,
        path_length: int | None = None,
        ski: bool = True,
        until: datetime | None = None,
        usage: str = "",
        critical: bool = False,
    ) -> str:
        """Write a certificate in PEM, and return where."""
        now = datetime.now(UTC)
        by, key = issuer or ("middle", self.middle)
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named(by))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * DAY)
            .not_valid_after(until or now + DAY)
        )
        if ski:
            builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        self.keys[name] = public
        # What somebody else signs in an authority's name says that it is the authority's.
        above = x509.SubjectKeyIdentifier.from_public_key(self.keys[by])
        named_key = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above)
        builder = builder.add_extension(named_key, critical=False)
        if authority:
            builder = builder.add_extension(x509.BasicConstraints(True, path_length), critical=True)
            usage = "key_cert_sign"
        if usage:
            names = (
                "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
            )  # fmt: skip
            said = {one: one == usage or (authority and one == "crl_sign") for one in names}
            builder = builder.add_extension(x509.KeyUsage(**said), critical=True)
        if critical:
            odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
            builder = builder.add_extension(odd, critical=True)
        if digest is None:
            large = isinstance(key, rsa.RSAPrivateKey) or key.curve.name == "secp384r1"
            digest = hashes.SHA384() if large else hashes.SHA256()
        made = builder.sign(key, digest, rsa_padding=padded)
        Path(self.path(f"{name}.pem")).write_bytes(made.public_bytes(serialization.Encoding.PEM))
        return self.path(f"{name}.pem")

    def key(self, name: str, private: PrivateKeyTypes, passphrase: bytes | None = None) -> str:
        """Write a private key in PKCS #8, and return where."""
        sealing: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase is not None:
            sealing = serialization.BestAvailableEncryption(passphrase)
        text = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealing)
        Path(self.path(f"{name}.key")).write_bytes(text)
        return self.path(f"{name}.key")

    def both(self, name: str, private: Any, **more: Any) -> tuple[str, str]:
        """Write key and certificate, and return where."""
        return self.key(name, private), self.issue(name, private.public_key(), **more)

    def content(self, data: bytes = CONTENT) -> str:
        """Write a file to wrap."""
        Path(self.path("content")).write_bytes(data)
        return self.path("content")


def named(name: str) -> x509.Name:
    """Return a name with a common name alone."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Return a new desk."""
    return Desk(tmp_path)


RECIPIENTS: dict[str, tuple[Any, str]] = {
    "ML-KEM-768": (mlkem.MLKEM768PrivateKey.generate, "key_encipherment"),
    "ML-KEM-1024": (mlkem.MLKEM1024PrivateKey.generate, "key_encipherment"),
    "ECDH P-256": (lambda: ec.generate_private_key(ec.SECP256R1()), "key_agreement"),
    "ECDH P-384": (lambda: ec.generate_private_key(ec.SECP384R1()), "key_agreement"),
    "RSA-OAEP-SHA256": (lambda: rsa.generate_private_key(65537, 3072), "key_encipherment"),
}


@pytest.mark.parametrize("ski", [True, False], ids=["identifier", "issuer and serial"])
@pytest.mark.parametrize("kind", RECIPIENTS)
def test_each_kind_of_key_is_wrapped_for_and_opens(desk: Desk, kind: str, ski: bool) -> None:
    """By key identifier or by issuer and serial; what comes out is what went in, in a file for the owner alone."""
    make, usage = RECIPIENTS[kind]
    key, cert = desk.both("mine", make(), ski=ski, usage=usage)
    wrapped = told(
        "wrap", "--to", cert, "--in", desk.content(), "--out", desk.path("o.cms"), "--pem", "--allow-classical"
    )
    assert wrapped["for"] == [{"subject": "CN=mine", "algorithm": kind}]
    opened = told("open", desk.path("o.cms"), "--key", key, "--cert", cert, "--out", desk.path("out"))
    assert (opened["opened_with"], opened["content"], opened["media_type"]) == (kind, "data", None)
    assert Path(desk.path("out")).read_bytes() == CONTENT
    assert stat.S_IMODE(Path(desk.path("out")).stat().st_mode) == 0o600


def test_several_recipients_signed_and_as_a_package(desk: Desk) -> None:
    """One envelope for two, SignedData around it; each opens it and sees by whom and what it is."""
    first = desk.both("first", mlkem.MLKEM768PrivateKey.generate())
    second = desk.both("second", mlkem.MLKEM1024PrivateKey.generate())
    signer = desk.both("signer", mldsa.MLDSA65PrivateKey.generate(), usage="digital_signature")
    wrapped = told(
        "wrap", "--to", first[1], "--to", second[1], "--in", desk.content(), "--out", desk.path("o.cms"),
        "--sign-with", signer[0], "--signer-cert", signer[1], "--media-type", "application/jwk+json",
        "--kdf", "hkdf-sha512",
    )  # fmt: skip
    assert (wrapped["signed_by"], wrapped["content"]) == ("CN=signer", "symmetric key package")
    for number, (key, cert) in enumerate((first, second)):
        out = desk.path(f"out{number}")
        opened = told(
            "open", desk.path("o.cms"), "--key", key, "--cert", cert, "--out", out, "--verify-with", signer[1]
        )
        assert (opened["media_type"], opened["verified_with"]) == ("application/jwk+json", "CN=signer")
        assert Path(out).read_bytes() == CONTENT
    unverified = type_("open", desk.path("o.cms"), "--key", first[0], "--cert", first[1], "--out", desk.path("x"))
    assert "nobody verified" in unverified.stderr
    other = desk.both("other", ed25519.Ed25519PrivateKey.generate())
    wrong = ("open", desk.path("o.cms"), "--key", first[0], "--cert", first[1], "--out", desk.path("y"))
    refused(*wrong, "--verify-with", other[1])
    assert not Path(desk.path("y")).exists()


@pytest.mark.parametrize("kind", ["ML-DSA-44", "ML-DSA-65", "ML-DSA-87", "Ed25519", "P-256", "P-384"])
def test_each_identity_key_signs(desk: Desk, kind: str) -> None:
    """From PKCS #8, under a passphrase too; verified through the chain."""
    private: Any = {
        "ML-DSA-44": mldsa.MLDSA44PrivateKey.generate,
        "ML-DSA-65": mldsa.MLDSA65PrivateKey.generate,
        "ML-DSA-87": mldsa.MLDSA87PrivateKey.generate,
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
        "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    }[kind]()
    secret = Path(desk.path("pass"))
    secret.write_bytes(b"correct horse\n")
    key, cert = desk.key("signer", private, b"correct horse"), desk.issue("signer", private.public_key())
    mine = desk.both("mine", mlkem.MLKEM768PrivateKey.generate())
    command = (
        "wrap", "--to", mine[1], "--in", desk.content(), "--out", desk.path("o.cms"),
        "--sign-with", key, "--signer-cert", cert,
    )  # fmt: skip
    assert "passphrase" in refused(*command, fine=output.USAGE).message
    type_(*command, KMB_PASSPHRASE_FILE=str(secret))
    found = told(
        "verify", desk.path("o.cms"), "--trust", desk.path("root.pem"), "--untrusted", desk.path("middle.pem"),
        "--signer", cert,
    )  # fmt: skip
    assert (found["signer"], found["path"]) == ("CN=signer", ["CN=signer", "CN=middle", "CN=root"])
    assert "whether a certificate of the path is revoked" in found["not_verified"]
    secret.write_bytes(b"wrong")
    refused(*command, "--force", KMB_PASSPHRASE_FILE=str(secret))


def test_ber_of_foreign_tools_is_opened(desk: Desk) -> None:
    """A signed envelope, both as a streaming tool writes them: shown, verified and opened."""
    key, cert = desk.both("mine", mlkem.MLKEM768PrivateKey.generate())
    signer, theirs = desk.both("signer", mldsa.MLDSA65PrivateKey.generate())
    content, out = desk.content(), desk.path("o.cms")
    type_("wrap", "--to", cert, "--in", content, "--out", out, "--sign-with", signer, "--signer-cert", theirs)
    Path(out).write_bytes(loosened_signed(Path(out).read_bytes()))
    (shown,) = told("show", out)
    assert (shown["ber"], shown["kind"]) == (True, "signed-data")
    type_("open", out, "--key", key, "--cert", cert, "--out", desk.path("out"), "--verify-with", theirs)
    plain = desk.path("plain.cms")
    type_("wrap", "--to", cert, "--in", content, "--out", plain)
    Path(plain).write_bytes(loosened_envelope(Path(plain).read_bytes()))
    type_("open", plain, "--key", key, "--cert", cert, "--out", desk.path("out"), "--force")
    assert Path(desk.path("out")).read_bytes() == CONTENT


def test_the_composite_opens_from_its_96_bytes(desk: Desk) -> None:
    """Our own default key, in PKCS #8, without a certificate: the key's own identifier is in the envelope."""
    from tests.kit.authority import acme

    info = keys.PrivateKeyInfo(
        version=0,
        algorithm=asn1.AlgorithmIdentifier(algorithm=KemAlgorithm.COMPOSITE.oid, parameters=None),
        private_key=acme().private,
        attributes=None,
        public_key=None,
    )
    Path(desk.path("mine.p8")).write_bytes(asn1.encode(info))
    from pki.core import envelope

    Path(desk.path("o.cms")).write_bytes(envelope.wrap(CONTENT, oids.DATA, [acme().recipient]))
    opened = told("open", desk.path("o.cms"), "--key", desk.path("mine.p8"), "--out", desk.path("out"))
    assert opened["opened_with"] == "MLKEM768-X25519-SHA3-256"
    assert Path(desk.path("out")).read_bytes() == CONTENT


def test_a_signature_over_anothers_envelope_is_not_its_sender(desk: Desk) -> None:
    """A deposit whose context inside differs from the one that is signed is refused before it is opened."""
    from tests.kit.authority import acme, globex

    deposit = acme().deposit(globex())
    read = signing.parse(
        deposit, content_types=None, extra={oids.DEPOSIT_CONTEXT, oids.KEY_PACKAGE_ID_AND_RECEIPT_REQUEST}
    )
    thief = signing.sign(
        oids.CONTENT_INFO,
        read.content,
        extra={oids.DEPOSIT_CONTEXT: globex().context(acme()).encode()},
        signing_time=datetime.now(UTC),
        signer_ski=globex().ski,
        sign=globex().key.sign,
    )
    info = keys.PrivateKeyInfo(
        version=0,
        algorithm=asn1.AlgorithmIdentifier(algorithm=KemAlgorithm.COMPOSITE.oid, parameters=None),
        private_key=globex().private,
        attributes=None,
        public_key=None,
    )
    Path(desk.path("mine.p8")).write_bytes(asn1.encode(info))
    Path(desk.path("good")).write_bytes(deposit)
    Path(desk.path("stolen")).write_bytes(thief)
    key = ("--key", desk.path("mine.p8"), "--out", desk.path("out"))
    assert told("open", desk.path("good"), *key)["media_type"] == "application/x-test"
    assert refused("open", desk.path("stolen"), *key, "--force").rule == "DEP-004"


def test_what_is_refused_says_why(desk: Desk) -> None:
    """Classical keys unasked, certificates for something else or expired, keys that do not fit, wrong arguments."""
    elliptic = desk.both("elliptic", ec.generate_private_key(ec.SECP256R1()))
    kem = desk.both("kem", mlkem.MLKEM768PrivateKey.generate())
    other = desk.both("other", mlkem.MLKEM768PrivateKey.generate())
    signs = desk.both("signs", mldsa.MLDSA65PrivateKey.generate(), usage="digital_signature")
    old = desk.issue("old", mlkem.MLKEM768PrivateKey.generate().public_key(), until=datetime.now(UTC) - DAY)
    content, out = desk.content(), desk.path("o.cms")
    to = ("wrap", "--in", content, "--out", out, "--to")
    assert "--allow-classical" in refused(*to, elliptic[1]).hint
    unfit = refused(*to, signs[1])
    assert "CN=signs" in unfit.on and "ML-DSA-65" in unfit.on
    # Certificates and keys of what nobody uses here are named, so that one knows which to replace.
    large, signing = ec.generate_private_key(ec.SECP521R1()), rsa.generate_private_key(65537, 2048)
    assert "CN=large, P-521" in refused(*to, desk.issue("large", large.public_key()), "--allow-classical").on
    assert "CN=small" in refused(*to, desk.issue("small", signing.public_key()), "--allow-classical").on
    assert "secp521r1" in refused("open", content, "--key", desk.key("large", large), "--out", out).on
    told_by = ("--sign-with", desk.key("rsa", signing), "--signer-cert", signs[1])
    assert "does not sign here" in refused(*to, elliptic[1], *told_by).message
    refused(*to, old)
    refused(*to, kem[1], "--to", kem[1])
    refused(*to, kem[1], "--kdf", "md5", fine=output.USAGE)
    refused(*to, kem[1], "--as", "nonsense", fine=output.USAGE)
    refused(*to, kem[1], "--as", "data", "--media-type", "a/b", fine=output.USAGE)
    refused(*to, kem[1], "--sign-with", signs[0], fine=output.USAGE)
    refused(*to, kem[1], "--sign-with", signs[0], "--signer-cert", kem[1])
    refused(*to, desk.path("missing"), fine=output.USAGE)
    refused(*to, content, fine=output.USAGE)
    wrong = desk.issue("agreed", ec.generate_private_key(ec.SECP256R1()).public_key(), usage="key_encipherment")
    refused(*to, wrong, "--allow-classical")
    assert not Path(out).exists()
    type_(*to, kem[1])
    refused(*to, kem[1], fine=output.REFUSED)
    result = ("--out", desk.path("out"))
    assert "somebody else" in refused("open", out, "--key", other[0], "--cert", other[1], *result).message
    refused("open", out, "--key", other[0], "--cert", kem[1], *result, fine=output.USAGE)
    refused("open", out, "--key", kem[1], "--cert", kem[1], *result, fine=output.USAGE)
    refused("open", kem[1], "--key", kem[0], "--cert", kem[1], *result, fine=output.USAGE)
    refused("open", out, "--key", kem[0], "--verify-with", signs[1], *result, fine=output.USAGE)
    broken = bytearray(Path(out).read_bytes())
    broken[-1] ^= 1
    Path(desk.path("broken")).write_bytes(broken)
    assert refused("open", desk.path("broken"), "--key", kem[0], "--cert", kem[1], *result).code == "cannot-open"
    assert not Path(desk.path("out")).exists()


def test_paths_that_do_not_hold_are_refused(desk: Desk) -> None:
    """No anchor, no authority, too long, another's signature, expired, an unknown critical extension."""
    leaf = desk.issue("leaf", mlkem.MLKEM768PrivateKey.generate().public_key())
    root, middle = desk.path("root.pem"), desk.path("middle.pem")
    found = told("verify", leaf, "--trust", root, "--untrusted", middle)
    assert found["path"] == ["CN=leaf", "CN=middle", "CN=root"]
    assert told("verify", leaf, "--trust", middle)["path"] == ["CN=leaf", "CN=middle"]
    refused("verify", leaf)
    refused("verify", leaf, "--trust", root)
    refused("verify", leaf, "--untrusted", middle, "--untrusted", root)
    stranger = ec.generate_private_key(ec.SECP384R1())
    forged = desk.issue("forged", mlkem.MLKEM768PrivateKey.generate().public_key(), ("middle", stranger))
    assert "not signed" in refused("verify", forged, "--trust", middle).message
    low = ec.generate_private_key(ec.SECP256R1())
    desk.issue("low", low.public_key(), authority=True)
    deep = desk.issue("deep", mlkem.MLKEM768PrivateKey.generate().public_key(), ("low", low))
    chain = ("--untrusted", middle, "--untrusted", desk.path("low.pem"))
    assert "no path of this length" in refused("verify", deep, "--trust", root, *chain).message
    person = ec.generate_private_key(ec.SECP256R1())
    desk.issue("person", person.public_key())
    under = desk.issue("under", low.public_key(), ("person", person))
    assert "may not sign" in refused("verify", under, "--trust", desk.path("person.pem")).message
    odd = desk.issue("odd", low.public_key(), critical=True)
    assert "critical" in refused("verify", odd, "--trust", middle).message
    late = desk.issue("late", low.public_key(), until=datetime.now(UTC) - DAY)
    assert refused("verify", late, "--trust", middle).rule == "CRT-003"


def test_paths_under_other_people_s_rsa(desk: Desk) -> None:
    """RSA authorities with SHA-256, -384 and -512 are followed; PSS, small keys and a weak key's chain are not."""
    large, small = rsa.generate_private_key(65537, 3072), rsa.generate_private_key(65537, 2048)
    public = mlkem.MLKEM768PrivateKey.generate().public_key()
    until = datetime.now(UTC) + DAY
    for name, key in (("large", large), ("small", small)):
        desk.issue(name, key.public_key(), (name, key), authority=True, until=until)
    trust = ("--trust", desk.path("large.pem"), "--trust", desk.path("small.pem"))
    for digest in (hashes.SHA256(), hashes.SHA384(), hashes.SHA512()):
        leaf = desk.issue("leaf", public, ("large", large), digest=digest)
        assert told("verify", leaf, *trust)["path"] == ["CN=leaf", "CN=large"]
    pss = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
    assert "RSA-PSS" in refused("verify", desk.issue("leaf", public, ("large", large), padded=pss), *trust).on
    assert "3072 to 4096 bits" in refused("verify", desk.issue("leaf", public, ("small", small)), *trust).message


def test_lists_and_requests_are_verified(desk: Desk) -> None:
    """A revocation list by its issuer, a request by its own key; what was changed, or has no signature, is refused."""
    now = datetime.now(UTC)
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(named("middle"))
        .last_update(now)
        .next_update(now + DAY)
        .add_extension(x509.CRLNumber(5), critical=False)
        .sign(desk.middle, hashes.SHA384())
    )
    path = Path(desk.path("list.pem"))
    path.write_bytes(crl.public_bytes(serialization.Encoding.PEM))
    trust = ("--trust", desk.path("root.pem"), "--untrusted", desk.path("middle.pem"))
    assert told("verify", str(path), *trust)["path"] == ["CN=middle", "CN=root"]
    refused("verify", str(path), "--trust", desk.path("root.pem"))
    key = mldsa.MLDSA65PrivateKey.generate()
    request = x509.CertificateSigningRequestBuilder().subject_name(named("me")).sign(key, None)
    Path(desk.path("me.csr")).write_bytes(request.public_bytes(serialization.Encoding.DER))
    assert told("verify", desk.path("me.csr"))["kind"] == "certificate-request"
    der = bytearray(request.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    Path(desk.path("bad.csr")).write_bytes(der)
    refused("verify", desk.path("bad.csr"))
    refused("verify", desk.key("kem", mlkem.MLKEM768PrivateKey.generate()), fine=output.USAGE)


def test_a_request_for_a_kem_key_is_verified_under_its_identity(desk: Desk) -> None:
    """RFC 9883: the identity key signed it, so that has to be given."""
    from tests.kit.authority import acme, authority

    for name, der in (("request", acme().encryption_request), ("identity", acme().identity_der)):
        Path(desk.path(name)).write_bytes(der)
    Path(desk.path("issuing")).write_bytes(authority().issuing_der)
    assert "RFC 9883" in refused("verify", desk.path("request"), fine=output.USAGE).message
    # The kit's certificates are of 2030.
    late = refused("verify", desk.path("request"), "--signer", desk.path("identity"), "--trust", desk.path("issuing"))
    assert late.rule == "CRT-003"


def test_secrets_do_not_go_to_a_terminal(desk: Desk) -> None:
    """Into a pipe they go, and what is told goes to stderr then; a terminal is refused."""
    key, cert = desk.both("mine", mlkem.MLKEM768PrivateKey.generate())
    type_("wrap", "--to", cert, "--in", desk.content(), "--out", desk.path("o.cms"))
    arguments = ["object", "open", desk.path("o.cms"), "--key", key, "--cert", cert, "--out", "-"]
    command = [sys.executable, "-m", "pki.tenant.cli", *arguments]
    piped = subprocess.run(command, capture_output=True, timeout=60)
    assert piped.stdout == CONTENT
    assert b"ML-KEM-768" in piped.stderr
    main, side = os.openpty()
    try:
        shown = subprocess.run(command, stdout=side, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(side)
        os.close(main)
    assert shown.returncode == output.USAGE
    assert b"terminal" in shown.stderr


def test_bad_files_are_told_in_three_parts(desk: Desk, tmp_path: Path) -> None:
    """What failed, on what file, and what to type; never a traceback, never a control character."""
    cases = {
        "empty": b"",
        "text": b"hello\n",
        "no end": b"-----BEGIN CMS-----\nMAA=\n",
        "no base64": b"-----BEGIN CMS-----\n!!!!\n-----END CMS-----\n",
        "old key": b"-----BEGIN RSA PRIVATE KEY-----\nMAA=\n-----END RSA PRIVATE KEY-----\n",
        "encrypted pem": b"-----BEGIN PRIVATE KEY-----\nProc-Type: 4\n\nMAA=\n-----END PRIVATE KEY-----\n",
        "cut off": b"\x30\x82\x10\x00\x02",
        "trailing": b"\x30\x03\x02\x01\x01\x00\x00",
        "indefinite, no CMS": b"\x30\x80" * 20_000,
        "label \x1b[2J": b"-----BEGIN STRANGE THING-----\nMAA=\n-----END STRANGE THING-----\n",
    }
    for number, content in enumerate(cases.values()):
        path = tmp_path / f"bad{number}"
        path.write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-m", "pki.tenant.cli", "object", "show", str(path)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode in (output.USAGE, output.CHECK_FAILED), (content, done)
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert lines[0].startswith("kmb: "), done.stderr
        assert str(path) in lines[1]
        assert lines[2].startswith("  next: ")
