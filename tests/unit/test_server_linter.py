"""The linter: what pkilint says, no less and no more, of certificates of every kind and of broken ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import product
from pathlib import Path

import pytest
from cryptography import x509 as library
from pkilint.pkix.certificate import RFC5280Certificate

from pki.core import asn1, oids, x509
from pki.core.keys import EcAlgorithm, KemAlgorithm, KeyAlgorithm, RsaAlgorithm
from pki.core.signatures import IDENTITY, SignatureAlgorithm
from pki.core.x509 import CertificateKind
from pki.server.adapters.linter import PkiLinter, container
from pki.server.ports import Finding
from tests.kit.authority import DAY, NOW, Authority, Party, authority, signing_key
from tests.kit.facts import ACME

PAGE = Path(__file__).parents[2] / "docs" / "adr" / "0013-what-is-signed-is-stored-and-linted-first.md"
S = SignatureAlgorithm
ISSUERS = (S.ML_DSA_44, S.ML_DSA_65, S.ML_DSA_87, S.ECDSA_P256, S.ECDSA_P384, S.ED25519, S.SLH_DSA_SHA2_128F)
KEYS: tuple[KeyAlgorithm, ...] = (
    KemAlgorithm.COMPOSITE,
    KemAlgorithm.ML_KEM_768,
    KemAlgorithm.ML_KEM_1024,
    EcAlgorithm.P_256,
    EcAlgorithm.P_384,
    RsaAlgorithm.OAEP_SHA256,
    RsaAlgorithm.OAEP_SHA1,
)
COMPOSITE = "pkix.public_key_algorithm_unsupported"


def certificates() -> Iterator[tuple[str, bytes]]:
    """Return a certificate for each algorithm of the CA, of an identity and of an encryption key."""
    for issuer in ISSUERS:
        for identity in sorted(IDENTITY, key=lambda one: one.title):
            party = Party(Authority(5, S.ML_DSA_65, issuer), ACME, 11, identity=identity)
            yield f"{identity.label} by {issuer.label}", party.identity_der
        key = signing_key(9, S.ED25519).public.spki
        yield f"access by {issuer.label}", Authority(5, S.ML_DSA_65, issuer).issue(ACME, key, CertificateKind.ACCESS)
    for issuer, wanted in product((S.ML_DSA_65, S.ECDSA_P384), KEYS):
        party = Party(Authority(5, S.ML_DSA_65, issuer), ACME, 11, wanted)
        yield f"{wanted.title} by {issuer.label}", party.encryption_der


def own_walk(der: bytes) -> list[tuple[str, str, str]]:
    """Return validator, node and findings of each visit that the library itself makes."""
    document = RFC5280Certificate("", der)
    results = container().validate(document.decode())
    return sorted((str(one.validator), one.node.path, str(one.finding_descriptions)) for one in results)


def our_walk(der: bytes) -> list[tuple[str, str, str]]:
    """Return the same of ours."""
    document, results = RFC5280Certificate("", der), []  # type: ignore[var-annotated]  # the library's results
    PkiLinter()._walk.run(document.decode(), results)
    return sorted((str(one.validator), one.node.path, str(one.finding_descriptions)) for one in results)


def changed(**values: object) -> bytes:
    """Return a certificate of ours, signed, with other fields."""
    der = Party(authority(), ACME, 11).identity_der
    outer = asn1.decode(asn1.Certificate, der, what="it")
    tbs = asn1.decode(asn1.TbsCertificate, asn1.encode(outer.tbs), what="it")
    fields = {name: getattr(tbs, name) for name in tbs.__annotations__} | values
    return x509.assemble(asn1.encode(asn1.TbsCertificate(**fields)), bytes(3309))


def extended(*, without: library.ObjectIdentifier | None = None, more: Sequence[asn1.Extension] = ()) -> bytes:
    """Return a certificate of ours without one of its extensions, and with others."""
    der = Party(authority(), ACME, 11).identity_der
    outer = asn1.decode(asn1.Certificate, der, what="it")
    listed = asn1.decode(asn1.TbsCertificate, asn1.encode(outer.tbs), what="it").extensions
    return changed(extensions=[*(one for one in listed if one.oid != without), *more])


def alternative(name: library.GeneralName, *, critical: bool = False) -> asn1.Extension:
    """Return a subjectAltName."""
    value = library.SubjectAlternativeName([name])
    return asn1.Extension(oid=value.oid, critical=critical, value=value.public_bytes())


SAN = library.SubjectAlternativeName.oid
BAD: dict[str, tuple[bytes, str]] = {
    "serial of 160 bits": (changed(serial=1 << 159), "pkix.certificate_serial_number_out_of_range"),
    "serial zero": (changed(serial=0), "pkix.certificate_serial_number_out_of_range"),
    "version 2": (changed(version=1), "pkix.certificate_version_is_not_v3"),
    "ends before it begins": (
        changed(validity=asn1.Validity(not_before=asn1.time(NOW), not_after=asn1.time(NOW - DAY))),
        "pkix.certificate_negative_validity_period",
    ),
    "no authority key identifier": (
        extended(without=library.AuthorityKeyIdentifier.oid),
        "pkix.authority_key_identifier_extension_absent",
    ),
    "an extension twice": (
        extended(more=[alternative(library.UniformResourceIdentifier(ACME.uri))]),
        "pkix.duplicate_extension",
    ),
    "a name that is no URI": (
        extended(without=SAN, more=[alternative(library.UniformResourceIdentifier("acme eu west"))]),
        "pkix.invalid_uri_syntax",
    ),
    "a host name that is none": (
        extended(without=SAN, more=[alternative(library.DNSName("-acme-.example"))]),
        "pkix.invalid_domain_name_syntax",
    ),
    "an extension that is no DER": (
        extended(without=SAN, more=[asn1.Extension(oid=SAN, critical=False, value=b"\x30\x05nop")]),
        "itu.invalid_asn1_syntax",
    ),
    "capabilities that are critical": (
        extended(more=[asn1.Extension(oid=oids.SMIME_CAPABILITIES, critical=True, value=b"\x30\x00")]),
        "pkix.smime_capabilities_extension_critical",
    ),
    "no DER at all": (b"\x30\x80junk", "itu.invalid_asn1_syntax"),
    "nothing": (b"", "itu.invalid_asn1_syntax"),
}


def stopping(findings: Sequence[Finding]) -> list[str]:
    """Return the codes of those that stop a signature."""
    return [finding.code for finding in findings if finding.stops]


def test_what_is_issued_passes_whatever_the_algorithms() -> None:
    """No validator is switched off, and none is wrong about ML-DSA, SLH-DSA, ML-KEM or the composite.

    Of the composite, which is a draft, it says that it does not know which key usage fits; that is no error.
    """
    linter = PkiLinter()
    advice = {
        (name, one.code) for name, der in certificates() for one in linter.findings(der) if one.severity != "INFO"
    }
    assert {code for _, code in advice} == {COMPOSITE}
    assert {name.partition(" by ")[0] for name, _ in advice} == {KemAlgorithm.COMPOSITE.title}
    assert (linter.linted, linter.stopped) == (len(list(certificates())), 0)


def test_our_walk_visits_what_the_library_visits() -> None:
    """Which validators fit a place is remembered; none is left out for that, nor run where it does not belong."""
    seen = [der for _, der in certificates()][::5] + [der for der, _ in BAD.values() if der[1:2] == b"\x82"]
    assert len(seen) > 15
    for der in seen:
        assert our_walk(der) == own_walk(der)


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_found(case: str) -> None:
    """Each of these is an error in the standards' eyes, said by its code, and counted."""
    der, code = BAD[case]
    linter = PkiLinter()
    findings = linter.findings(der)
    assert code in stopping(findings)
    assert findings[0].stops, "the worst comes first"
    assert (linter.linted, linter.stopped) == (1, 1)


def test_a_validity_of_many_years_is_no_error_of_the_linter() -> None:
    """How long is too long, the standards do not say: that is what profiles are for."""
    far = asn1.Validity(not_before=asn1.time(NOW), not_after=asn1.time(NOW + timedelta(days=20_000)))
    assert stopping(PkiLinter().findings(changed(validity=far))) == []


def test_the_decision_lists_every_validator() -> None:
    """ADR 13 names all that look at a certificate; a new release of the library that drops one is seen here."""
    names = PkiLinter().validators
    assert len(names) >= 50
    assert [name for name in names if f"`{name}`" not in PAGE.read_text()] == []


def test_only_who_lints_loads_the_library() -> None:
    """A process that issues nothing does not pay for it: the linter is made everywhere and idle."""
    program = (
        "import sys; from pki.server import bootstrap; from pki.server.settings import load_settings; "
        "deps = bootstrap.build(load_settings()); print('pkilint' in sys.modules, 'pyasn1' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
