"""Paths of certificates: what x509-limbo has no case for. Signatures, lengths that are counted down, bounds, order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pki.core import links, paths
from pki.core.errors import CertificateError, ExpiredError, MalformedError
from pki.core.links import Link

NOW = datetime(2030, 5, 17, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclass
class Signer:
    """Somebody with a name and a key."""

    name: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    ski: bytes = b""

    def __post_init__(self) -> None:
        self.ski = self.ski or x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()).digest

    def issue(
        self,
        to: Signer,
        *,
        authority: bool = True,
        length: int | None = None,
        until: datetime = NOW + 9 * DAY,
        signed_by: ec.EllipticCurvePrivateKey | None = None,
        odd: bool = False,
    ) -> Link:
        """Return a certificate for somebody; ``signed_by`` forges the signature."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(called(to.name))
            .issuer_name(called(self.name))
            .public_key(to.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - DAY)
            .not_valid_after(until)
            .add_extension(x509.SubjectKeyIdentifier(to.ski), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier(self.ski, None, None), critical=False)
            .add_extension(x509.BasicConstraints(authority, length if authority else None), critical=True)
        )
        if odd:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00")
            builder = builder.add_extension(unknown, critical=True)
        made = builder.sign(signed_by or self.key, hashes.SHA256())
        return links.parse(made.public_bytes(serialization.Encoding.DER))


def called(name: str) -> x509.Name:
    """Return a distinguished name."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def chain(*names: str, length: int | None = None) -> list[Link]:
    """Return certificates from the leaf to the root for these names, the root's first; ``length`` is the root's."""
    signers = [Signer(name) for name in names]
    made = [signers[0].issue(signers[0], length=length)]
    for above, below in pairwise(signers):
        made.append(above.issue(below, authority=below is not signers[-1]))
    return made[::-1]


def found(path: list[Link]) -> tuple[Link, ...]:
    """Look for the path of the first of these certificates to the last one, which is trusted."""
    return paths.find(path[0], trust=path[-1:], untrusted=path[1:-1][::-1], now=NOW)


@pytest.mark.parametrize("between", [0, 1, 2, 3])
@pytest.mark.parametrize("allowed", [0, 1, 2, 3, None])
def test_the_path_length_is_counted_down(between: int, allowed: int | None) -> None:
    """A root that allows n certificates of CAs below it has n, and not one more (RFC 5280 §4.2.1.9)."""
    path = chain("root", *(f"ca {number}" for number in range(between)), "leaf", length=allowed)
    if allowed is None or between <= allowed:
        assert list(found(path)) == path
        return
    with pytest.raises(CertificateError, match="no path of this length"):
        found(path)


def test_who_changes_its_key_is_not_counted() -> None:
    """A CA that certifies its own new key adds no level; another CA's does."""
    root, old, leaf = Signer("root"), Signer("ca"), Signer("leaf")
    new = Signer("ca")
    path = [
        new.issue(leaf, authority=False),
        old.issue(new),
        root.issue(old, length=0),
        root.issue(root, length=1),
    ]
    assert list(found(path)) == path
    new.name = "another"
    path[:2] = [new.issue(leaf, authority=False), old.issue(new)]
    with pytest.raises(CertificateError, match="no path of this length"):
        found(path)


@pytest.mark.parametrize("place", [0, 1])
def test_a_forged_signature_is_found_at_each_level(place: int) -> None:
    """All names and identifiers are right, and another key signed; in the search, and in a path that is given."""
    root, middle, leaf = Signer("root"), Signer("ca"), Signer("leaf")
    other = ec.generate_private_key(ec.SECP256R1())
    path = [
        middle.issue(leaf, authority=False, signed_by=other if place == 0 else None),
        root.issue(middle, signed_by=other if place == 1 else None),
        root.issue(root),
    ]
    for check in (found, lambda given: paths.validate(given, NOW)):
        with pytest.raises(CertificateError, match="not signed by its issuer") as caught:
            check(path)
        assert caught.value.rule == "CRT-014"


def test_a_path_that_is_given_has_its_order() -> None:
    """Each certificate is under the next one by name and key: left out, turned round or exchanged it is refused."""
    path = chain("root", "ca", "leaf")
    paths.validate(path, NOW)
    for wrong in (
        [path[0], path[2]],
        path[::-1],
        [path[1], path[0], path[2]],
        [path[0], *chain("root", "ca", "leaf")[1:]],
        # The same key under another name.
        [path[0], replace(path[1], subject_der=called("another").public_bytes()), path[2]],
    ):
        with pytest.raises(CertificateError):
            paths.validate(wrong, NOW)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_time_is_looked_at_from_end_to_end(place: int) -> None:
    """One certificate that is over ends the path, be it the leaf, one in between, or the anchor."""
    root, middle, leaf = Signer("root"), Signer("ca"), Signer("leaf")
    over = [NOW - timedelta(seconds=1) if place == at else NOW for at in range(3)]
    path = [
        middle.issue(leaf, authority=False, until=over[0]),
        root.issue(middle, until=over[1]),
        root.issue(root, until=over[2]),
    ]
    for check in (found, lambda given: paths.validate(given, NOW)):
        with pytest.raises(ExpiredError) as caught:
            check(path)
        assert caught.value.rule == "CRT-003"
    paths.validate(path, NOW - timedelta(seconds=1))
    with pytest.raises(CertificateError, match="not valid yet"):
        paths.validate(path, NOW - 2 * DAY)


def test_the_search_is_bounded() -> None:
    """A hundred CAs of one name and one key identifier cost 64 signatures, and then it is over."""
    leaf = Signer("leaf")
    crowd = [Signer("ca", ski=b"the same identifier!") for _ in range(paths.MAX_CHECKS + 36)]
    root = Signer("root")
    untrusted = [root.issue(one) for one in crowd]
    with pytest.raises(CertificateError):
        paths.find(crowd[-1].issue(leaf, authority=False), trust=[root.issue(root)], untrusted=untrusted, now=NOW)
    first = crowd[0].issue(leaf, authority=False)
    assert len(paths.find(first, trust=[root.issue(root)], untrusted=untrusted, now=NOW)) == 3


def test_a_path_has_eight_certificates_at_most() -> None:
    """One more is refused, however good each of them is."""
    names = [f"ca {number}" for number in range(paths.MAX_PATH - 2)]
    path = chain("root", *names, "leaf")
    assert list(found(path)) == path
    with pytest.raises(CertificateError, match="more than 8"):
        found(chain("root", *names, "one more", "leaf"))


def test_a_search_turns_back() -> None:
    """A CA that is over and its successor have one name and key: the path goes by the one that is good."""
    root, middle, leaf = Signer("root"), Signer("ca"), Signer("leaf")
    anchor, good, late = root.issue(root), root.issue(middle), root.issue(middle, until=NOW - timedelta(hours=1))
    last = middle.issue(leaf, authority=False)
    for untrusted in ([late, good], [good, late]):
        assert paths.find(last, trust=[anchor], untrusted=untrusted, now=NOW) == (last, good, anchor)
    with pytest.raises(ExpiredError):
        paths.find(last, trust=[anchor], untrusted=[late], now=NOW)


def test_who_is_trusted_itself_is_a_path_of_one() -> None:
    """It needs no issuer; a critical extension that nobody understands is refused there, too."""
    root, leaf = Signer("root"), Signer("leaf")
    plain = root.issue(leaf, authority=False)
    assert paths.find(plain, trust=[plain], untrusted=[], now=NOW) == (plain,)
    odd = root.issue(leaf, authority=False, odd=True)
    with pytest.raises(CertificateError, match="not understood"):
        paths.find(odd, trust=[odd], untrusted=[], now=NOW)


def test_a_certificate_that_is_none() -> None:
    """Bytes that are no certificate, too many of them, and a truncated one are refused with a typed error."""
    good = Signer("root").issue(Signer("leaf")).der
    for wrong in (b"", b"\x30\x00", good[:-1], good + b"\0", bytes(links.MAX_CERTIFICATE + 1)):
        with pytest.raises(MalformedError):
            links.parse(wrong)
