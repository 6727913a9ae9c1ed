"""OpenSSL's CMP client against the server: identities, encryption keys, renewal, revocation, and what goes wrong."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pki.core import keys, x509
from pki.core.certificates import CertificateState
from pki.core.tenants import parse_address
from pki.core.x509 import CertificateKind
from pki.server.services import certificates
from pki.server.store import certificates as certificate_store
from pki.server.store import tenants
from tests.interop.commands import SECONDS, RefusedError, Tool
from tests.interop.holdings import pem
from tests.kit.desk import Desk
from tests.kit.site import Homes, Site

pytest_plugins = ["tests.kit.api_fixtures"]

EU_WEST = parse_address("acme/eu-west")
BLOCKS = re.findall(r"```shell\n(.*?)```", (Path(__file__).parents[2] / "docs/interop.md").read_text(), re.DOTALL)
SUBJECT = ("-subject", "/O=acme/CN=acme\\/eu-west")
IDENTITY = ("-cert", "identity.pem", "-key", "identity.key")


@dataclass(frozen=True)
class Cmp:
    """OpenSSL as CMP client of a server, with the root that came with the invitation."""

    openssl: Tool
    desk: Desk

    def run(self, command: str, *words: str) -> str:
        """Run a command of ``openssl cmp``; a refusal raises RefusedError with what was said."""
        url = f"{self.desk.site.url}/.well-known/cmp"
        return self.openssl.run("cmp", "-config", "", "-cmd", command, "-server", url, *words)

    def key(self, name: str, *words: str) -> None:
        """Make a key."""
        self.openssl.run("genpkey", *words, "-out", name)

    def invite(self, name: str = "secret") -> tuple[str, ...]:
        """Take an invitation, and say how it is used."""
        invitation, secret = self.desk.site.invite("acme")
        self.openssl.put(name, secret.encode())
        return ("-ref", invitation.reference, "-secret", f"file:{name}")

    def enrol(self, *words: str) -> str:
        """Get an identity certificate for a new ML-DSA-65 key."""
        self.key("identity.key", "-algorithm", "ML-DSA-65")
        told = ("-newkey", "identity.key", "-out_trusted", "root.pem", "-certout", "identity.pem")
        return self.run("ir", *self.invite(), *SUBJECT, *told, *words)

    def publish(self, key: str, certificate: str, command: str = "cr", *words: str) -> str:
        """Get an encryption certificate."""
        wanted = ("-newkey", key, "-popo", "2", *SUBJECT, "-certout", certificate, "-out_trusted", "root.pem")
        return self.run(command, *IDENTITY, "-trusted", "root.pem", *wanted, *words)

    def states(self, kind: CertificateKind) -> list[CertificateState]:
        """Return the states of eu-west's certificates, oldest first."""
        with self.desk.site.deps.store.read() as unit:
            found = certificate_store.history(unit, EU_WEST, kind)
        return [one.state for one in sorted(found, key=lambda one: one.issued_at)]

    def certificate(self, name: str) -> bytes:
        """Return a certificate in DER."""
        self.openssl.run("x509", "-in", name, "-outform", "DER", "-out", "converted.der")
        return self.openssl.get("converted.der")


@pytest.fixture
def cmp(openssl: Tool, homes: Homes, tmp_path: Path) -> Iterator[Cmp]:
    """OpenSSL as a client of a server that works."""
    # The home has its database, in SQLite.
    with Site(homes.new(), "", log_level="error") as site, Desk(site, tmp_path) as desk:
        openssl.put("root.pem", pem(desk.site.deps.chain.root))
        yield Cmp(openssl, desk)


def test_from_an_invitation_to_a_key(cmp: Cmp) -> None:
    """ir, cr, kur and rr: an identity, an ML-KEM-768 key, an RSA key after it, a renewed identity, a revocation."""
    said = cmp.enrol("-chainout", "chain.pem", "-cacertsout", "cas.pem")
    for line in ("sending IR", "received IP", "sending CERTCONF", "received PKICONF"):
        assert line in said
    assert certificates.lookup(cmp.desk.site.deps, EU_WEST).identity.der == cmp.certificate("identity.pem")
    assert b"BEGIN CERTIFICATE" in cmp.openssl.get("chain.pem")
    cmp.key("kem.key", "-algorithm", "ML-KEM-768")
    said = cmp.publish("kem.key", "kem.pem")
    assert "sending CERTCONF" in said
    listed = certificates.lookup(cmp.desk.site.deps, EU_WEST).encryption
    assert listed is not None
    assert listed.der == cmp.certificate("kem.pem")
    cmp.key("rsa.key", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072")
    cmp.publish("rsa.key", "rsa.pem", "kur", "-oldcert", "kem.pem")
    assert cmp.states(CertificateKind.ENCRYPTION) == [CertificateState.RETIRED, CertificateState.ACTIVE]
    signed = (*IDENTITY, "-trusted", "root.pem")
    said = cmp.run("kur", *signed, "-newkey", "identity.key", "-certout", "renewed.pem", "-implicit_confirm")
    assert "CERTCONF" not in said
    assert cmp.states(CertificateKind.IDENTITY) == [CertificateState.RETIRED, CertificateState.ACTIVE]
    cmp.run("genm", *signed, "-infotype", "caCerts", "-cacertsout", "told.pem")
    assert cmp.openssl.get("told.pem").count(b"BEGIN CERTIFICATE") == 2
    cmp.run("rr", *signed, "-oldcert", "rsa.pem", "-revreason", "1")
    assert cmp.states(CertificateKind.ENCRYPTION) == [CertificateState.RETIRED, CertificateState.REVOKED]
    with pytest.raises(RefusedError, match="CMP-002"):
        cmp.run("rr", *signed, "-issuer", "/CN=other", "-serial", "4711", "-revreason", "1")


def test_a_native_agent_wraps_for_it(cmp: Cmp) -> None:
    """A peer believes the CMP messages as endorsements and wraps a key, which openssl cms opens."""
    cmp.key("identity.key", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    told = ("-newkey", "identity.key", "-days", "365", "-certout", "identity.pem", "-out_trusted", "root.pem")
    cmp.run("ir", *cmp.invite(), *SUBJECT, *told)
    cmp.key("kem.key", "-algorithm", "ML-KEM-768")
    cmp.publish("kem.key", "kem.pem")
    globex = cmp.desk.enrol("globex/main")
    name = globex.create_key("orders-2026")
    campaign = globex.send_key(name, [EU_WEST])
    [delivery] = campaign.delivered
    with cmp.desk.site.deps.store.read() as unit:
        body = unit.connection.exec_driver_sql("SELECT body FROM bodies").scalar_one()
    assert delivery.state in ("received", "available")
    cmp.openssl.put("deposit.der", body)
    verify = ("cms", "-verify", "-noverify", "-inform", "DER", "-in", "deposit.der", "-binary", "-out", "envelope.der")
    sender = globex.certificates(CertificateKind.IDENTITY)[0].der
    cmp.openssl.put("sender.pem", pem(sender))
    cmp.openssl.run(*verify, "-nointern", "-certfile", "sender.pem")
    cmp.openssl.run(
        *("cms", "-decrypt", "-inform", "DER", "-in", "envelope.der", "-binary"),
        *("-recip", "kem.pem", "-inkey", "kem.key", "-out", "package.der"),
    )
    assert globex.load_key(name).key in cmp.openssl.get("package.der")


def test_what_is_refused(cmp: Cmp) -> None:
    """OpenSSL tells why: an unprotected answer for who is not known, a signed one with a reason for who is."""
    cmp.enrol()
    cmp.key("kem.key", "-algorithm", "ML-KEM-768")
    told = ("-newkey", "identity.key", "-days", "365", "-certout", "x.pem")
    [reference, _] = cmp.invite()[1:3]
    wrong = ("-ref", reference, "-secret", "pass:guess")
    with pytest.raises(RefusedError, match="missing protection"):
        cmp.run("ir", *wrong, *SUBJECT, *told)
    with pytest.raises(RefusedError, match=r"badMessageCheck.*unknown, used, expired"):
        cmp.run("ir", *wrong, *SUBJECT, *told, "-unprotected_errors")
    used = ("-ref", "0" * 16, "-secret", "file:secret")
    with pytest.raises(RefusedError, match=r"badMessageCheck.*unknown, used, expired"):
        cmp.run("ir", *used, *SUBJECT, *told, "-unprotected_errors")
    with pytest.raises(RefusedError, match="CMP-005"):
        cmp.publish("kem.key", "x.pem", "cr", "-subject", "/O=acme/CN=acme\\/other")
    with pytest.raises(RefusedError, match="notAuthorized"):
        cmp.publish("kem.key", "x.pem", "cr", "-subject", "/O=acme/CN=acme\\/other", "-san_nodefault")
    with pytest.raises(RefusedError, match="REQ-003"):
        cmp.publish("kem.key", "x.pem", "cr", "-subject", "/CN=acme")
    cmp.key("other.key", "-algorithm", "ML-DSA-65")
    with pytest.raises(RefusedError, match="Another identity key is another identity"):
        cmp.run("kur", *IDENTITY, "-trusted", "root.pem", "-newkey", "other.key", "-certout", "x.pem")
    with pytest.raises(RefusedError, match="badMessageCheck"):
        forged = (*IDENTITY, "-unprotected_requests")
        trusting = ("-trusted", "root.pem", "-unprotected_errors")
        cmp.run("genm", *forged, *trusting, "-infotype", "caCerts", "-cacertsout", "x.pem")
    assert cmp.states(CertificateKind.ENCRYPTION) == []


def test_the_same_message_and_a_confirmation_that_never_comes(cmp: Cmp) -> None:
    """A saved message that is sent again gets the same answer; without a confirmation nothing is listed."""
    cmp.enrol()
    cmp.key("kem.key", "-algorithm", "ML-KEM-768")
    saved = ("-reqout", "request.der", "-rspout", "response.der")
    cmp.publish("kem.key", "kem.pem", "cr", "-disable_confirm", *saved)
    assert cmp.states(CertificateKind.ENCRYPTION) == [CertificateState.UNPROVED]
    first = cmp.openssl.get("response.der")
    again = ("-reqin", "request.der", "-rspout", "again.der", "-disable_confirm")
    cmp.publish("kem.key", "again.pem", "cr", *again)
    assert cmp.openssl.get("again.der") == first
    assert cmp.openssl.get("again.pem") == cmp.openssl.get("kem.pem")
    assert cmp.states(CertificateKind.ENCRYPTION) == [CertificateState.UNPROVED]
    with pytest.raises(RefusedError):
        # What was certified for another key cannot be decrypted.
        cmp.key("other.key", "-algorithm", "ML-KEM-768")
        cmp.publish("other.key", "x.pem", "cr", *again)


def test_pkcs10(cmp: Cmp) -> None:
    """p10cr: PKCS #10 of OpenSSL enrols an identity, renews it, and brings the access key that CMP has no word for."""
    name = ("-subj", "/O=acme/CN=acme\\/eu-west")
    cmp.key("identity.key", "-algorithm", "ML-DSA-65")
    cmp.openssl.run("req", "-new", "-key", "identity.key", *name, "-out", "identity.csr")
    told = ("-csr", "identity.csr", "-out_trusted", "root.pem", "-certout", "identity.pem")
    assert "sending CERTCONF" in cmp.run("p10cr", *cmp.invite(), *told)
    assert cmp.states(CertificateKind.IDENTITY) == [CertificateState.ACTIVE]
    cmp.key("access.key", "-algorithm", "ED25519")
    use = ("-addext", "extendedKeyUsage=critical,clientAuth")
    cmp.openssl.run("req", "-new", "-key", "access.key", *name, *use, "-out", "access.csr")
    signed = (*IDENTITY, "-trusted", "root.pem", "-csr", "access.csr", "-certout", "access.pem")
    assert "sending CERTCONF" in cmp.run("p10cr", *signed)
    with cmp.desk.site.deps.store.read() as unit:
        instance = tenants.instance(unit, EU_WEST)
    assert instance is not None
    assert instance.access_key is not None
    cmp.openssl.run("req", "-new", "-key", "access.key", *name, "-out", "other.csr")
    with pytest.raises(RefusedError, match="Another identity key is another identity"):
        cmp.run("p10cr", *IDENTITY, "-trusted", "root.pem", "-csr", "other.csr", "-certout", "x.pem")


def test_the_documentations_commands(cmp: Cmp) -> None:
    """Each command of docs/interop.md works as it stands there, typed by somebody with an invitation."""
    room, site = cmp.openssl.room, cmp.desk.site
    (room / "bin").mkdir()
    (room / "bin/openssl").write_text(f'#!/bin/sh\nexec {cmp.openssl.command} "$@"\n')
    (room / "bin/openssl").chmod(0o755)
    told = {"SERVER": site.url, "REFERENCE": cmp.invite()[1], "PATH": f"{room}/bin:{os.environ['PATH']}"}
    assert len(BLOCKS) == 4
    for block in BLOCKS:
        command = ["sh", "-e", "-c", block]
        done = subprocess.run(command, cwd=room, env={**os.environ, **told}, capture_output=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr.decode()
    assert cmp.states(CertificateKind.ENCRYPTION) == [CertificateState.REVOKED, CertificateState.ACTIVE]
    assert cmp.states(CertificateKind.IDENTITY) == [CertificateState.RETIRED, CertificateState.ACTIVE]
    assert cmp.states(CertificateKind.ACCESS) == [CertificateState.ACTIVE]


def test_an_ec_key_for_encryption(cmp: Cmp) -> None:
    """The certificate of an EC key comes encrypted by key agreement."""
    cmp.enrol()
    cmp.key("ec.key", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    cmp.publish("ec.key", "ec.pem")
    parsed = x509.parse_certificate(cmp.certificate("ec.pem"))
    assert parsed.kind is CertificateKind.ENCRYPTION
    assert keys.parse_spki(parsed.spki)[0] is keys.EcAlgorithm.P_256
