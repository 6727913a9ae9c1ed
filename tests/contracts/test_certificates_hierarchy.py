"""Contract of the hierarchy on disk: root, ceremony and roll-over are whole or not at all, and nobody slips one in."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.x509 import load_der_x509_certificate

from pki.core import issuers, sealing, x509
from pki.core.authorities import authority_key, verify_authorities
from pki.core.errors import (
    CertificateError,
    ConflictError,
    KeymailboxError,
    MalformedError,
    ProfileError,
    SealError,
    SettingsError,
    SignatureError,
)
from pki.core.issuers import IssuingRequest
from pki.core.signatures import SignatureAlgorithm
from pki.core.signers import SigningKey
from pki.server.adapters.signers import home as ca
from pki.server.adapters.signers.file import FileKeys
from pki.server.adapters.signers.held import hold_all
from pki.server.adapters.signers.root import Root, create_root, open_root, root_algorithm
from pki.server.facts import CaChain
from pki.server.hierarchy import read_chain
from pki.server.ports import Finding
from tests.kit.authority import DAY, NOW, new_signing_key
from tests.kit.kills import killed_before_each
from tests.kit.office import PASSPHRASE
from tests.kit.rollover import another_issuing_ca, files_of, pem
from tests.kit.threads import together

ROOT_PASSPHRASE = b"only the root"
ML_DSA, P384, P256 = SignatureAlgorithm.ML_DSA_65, SignatureAlgorithm.ECDSA_P384, SignatureAlgorithm.ECDSA_P256


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A room with a server's home, and its root in a folder of its own."""
    room = tmp_path_factory.mktemp("hierarchy")
    create_root(room / "root", ROOT_PASSPHRASE, NOW - 10 * DAY, P384)
    _, request = ca.request_issuing(room / "home", keys(room), ML_DSA)
    content = certified(room, request)
    ca.install(room / "home", keys(room), content, NOW, root_fingerprint=fingerprint(room))
    return room


@pytest.fixture
def room(made: Path, tmp_path: Path) -> Path:
    """A copy of that room."""
    shutil.copytree(made, tmp_path / "room")
    return tmp_path / "room"


def keys(room: Path) -> FileKeys:
    """Return the server's key files."""
    return FileKeys(room / "home", PASSPHRASE)


def root(room: Path) -> Root:
    """Open the root."""
    return open_root(room / "root", ROOT_PASSPHRASE)


def fingerprint(room: Path) -> str:
    """Return the root's fingerprint, as the ceremony prints it."""
    return ca._fingerprint((room / "root" / "root.der").read_bytes())


def requested(room: Path, algorithm: SignatureAlgorithm = ML_DSA, *, discard: bool = False) -> IssuingRequest:
    """Ask for the next issuing CA."""
    return ca.request_issuing(room / "home", keys(room), algorithm, discard=discard)[1]


def certified(room: Path, request: IssuingRequest) -> bytes:
    """Have it signed; return what the ceremony writes."""
    opened = root(room)
    return pem(opened.sign_issuing(request, NOW), opened.certificate_der)


def installed(room: Path, content: bytes) -> CaChain:
    """Make it current."""
    return ca.install(room / "home", keys(room), content, NOW)


def whole(room: Path) -> CaChain:
    """Return the chain, having checked that each part of it is under the root, and that each key is there and fits."""
    chain = read_chain(room / "home")
    for der in chain.all:
        verify_authorities(issuing_der=der, root_der=chain.root, now=NOW)
    for signer in hold_all(keys(room), chain, NOW).all:
        authority_key(signer.certificate_der).verify(signer.sign(b"message"), b"message")
    return chain


# The ceremony


@pytest.mark.parametrize("label", ["slh-dsa-sha2-128s", "slh-dsa-shake-256f", "ml-dsa-65", "ml-dsa-87", "p-384"])
def test_a_root_of_each_family(label: str, tmp_path: Path) -> None:
    """Sealed under a passphrase of its own, for its owner alone; it signs an issuing CA of another family."""
    algorithm = root_algorithm(label)
    assert create_root(tmp_path / "root", ROOT_PASSPHRASE, NOW, algorithm)
    opened = open_root(tmp_path / "root", ROOT_PASSPHRASE)
    assert authority_key(opened.certificate_der).algorithm is algorithm
    assert stat.S_IMODE((tmp_path / "root").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "root" / "root.key.sealed").stat().st_mode) == 0o600
    key = new_signing_key(P256)
    der = opened.sign_issuing(self_signed("keymailbox issuing 1", key), NOW)
    verify_authorities(issuing_der=der, root_der=opened.certificate_der, now=NOW)


def self_signed(name: str, key: SigningKey) -> IssuingRequest:
    """Return a verified request."""
    return issuers.parse_request(issuers.compose_request(name, key.public, key.sign)).verify()


class Refusing:
    """A linter that finds an error in everything; remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[bytes] = []

    def findings(self, certificate_der: bytes, /) -> tuple[Finding, ...]:
        """Find it."""
        self.shown.append(certificate_der)
        return (Finding("ERROR", "house_refused", "certificate", "", stops=True),)


def test_a_ca_s_certificate_is_linted_before_it_is_signed(tmp_path: Path) -> None:
    """A root's own and an issuing CA's: an error that the linter finds stops both, and leaves nothing."""
    linter = Refusing()
    with pytest.raises(ProfileError, match="house_refused") as caught:
        create_root(tmp_path / "root", ROOT_PASSPHRASE, NOW, P384, linter)
    assert caught.value.rule == "ISS-001"
    assert not (tmp_path / "root").exists()
    create_root(tmp_path / "root", ROOT_PASSPHRASE, NOW, P384)
    strict = replace(open_root(tmp_path / "root", ROOT_PASSPHRASE), linter=linter)
    request = self_signed("keymailbox issuing 1", new_signing_key(P256))
    with pytest.raises(ProfileError, match="house_refused"):
        strict.sign_issuing(request, NOW)
    assert list((tmp_path / "root" / "issued").glob("*.*")) == []
    assert [load_der_x509_certificate(one).signature.strip(b"\0") for one in linter.shown] == [b"", b""]
    assert open_root(tmp_path / "root", ROOT_PASSPHRASE).sign_issuing(request, NOW)


def test_nothing_of_the_root_s_key_is_in_the_home(room: Path) -> None:
    """Neither its secret nor its sealed file, nor does the server's passphrase open the root."""
    secret = sealing.unseal(
        (room / "root" / "root.key.sealed").read_bytes(),
        ROOT_PASSPHRASE,
        purpose=f"keymailbox CA root key, {P384.title}",
    )
    for name, content in files_of(room / "home").items():
        assert "root.key" not in name
        assert secret not in content
        assert secret.hex().encode() not in content
    with pytest.raises(SealError) as caught:
        open_root(room / "root", PASSPHRASE)
    assert "KMB_ROOT_PASSPHRASE_FILE" in caught.value.hint


def test_a_request_is_the_same_until_it_is_installed(room: Path) -> None:
    """Asked again, the same; of another kind, a conflict; given up, another one, and the key is gone."""
    first = requested(room)
    assert requested(room) == first
    with pytest.raises(ConflictError) as caught:
        requested(room, P384)
    assert "--discard" in caught.value.hint
    second = requested(room, P384, discard=True)
    assert second.key != first.key
    with pytest.raises(SettingsError):
        keys(room).open(first.key)
    chain = installed(room, certified(room, second))
    assert authority_key(chain.issuing) == second.key
    assert ca.pending(room / "home") is None
    assert requested(room).key not in (first.key, second.key)


def test_the_same_request_gives_the_same_certificate(room: Path) -> None:
    """The ceremony may be repeated; a name or a key that is taken may not be used again."""
    request = requested(room)
    assert certified(room, request) == certified(room, request)
    key = new_signing_key(P256)
    with pytest.raises(ConflictError):
        root(room).sign_issuing(self_signed(request.name, key), NOW)
    root(room).sign_issuing(self_signed("keymailbox issuing x", key), NOW)
    with pytest.raises(ConflictError):
        root(room).sign_issuing(self_signed("keymailbox issuing y", key), NOW)
    opened = root(room)
    with pytest.raises(ConflictError):
        opened.sign_issuing(self_signed("keymailbox issuing z", opened._key), NOW)


def test_what_was_prepared_in_the_root_s_folder_is_not_signed_blindly(room: Path) -> None:
    """Somebody puts other bytes in the place of those that are to be signed: an issuing CA that may have CAs below."""
    request = requested(room)
    tbs = x509.ca_tbs(
        request.name,
        request.key.spki,
        issuer_der=root(room).certificate_der,
        serial=7,
        not_before=NOW,
        not_after=NOW + 900 * DAY,
        path_length=4,
    )
    (room / "root" / "issued" / f"{request.key.ski.hex()}.tbs").write_bytes(tbs)
    with pytest.raises(CertificateError):
        certified(room, request)
    assert not (room / "root" / "issued" / f"{request.key.ski.hex()}.der").exists()


# Installing


def test_a_roll_over_keeps_the_former(room: Path) -> None:
    """Current and former change places at once; again it changes nothing; and there is a way back."""
    before = whole(room)
    content = certified(room, requested(room, P384))
    chain = installed(room, content)
    assert chain.former == (before.issuing,)
    assert whole(room) == chain
    stamp = (room / "home" / "ca" / "issuers.pem").stat().st_mtime_ns
    assert installed(room, content) == chain
    assert (room / "home" / "ca" / "issuers.pem").stat().st_mtime_ns == stamp
    third = installed(room, certified(room, requested(room, P256)))
    assert third.all[1:] == chain.all
    assert installed(room, pem(before.issuing)).all == (before.issuing, third.issuing, chain.issuing)


def test_what_has_expired_leaves(room: Path) -> None:
    """At the next roll-over; until then it stays, and its key is not asked for."""
    request = requested(room)
    opened = root(room)
    short = opened.sign_issuing(request, NOW - 3 * DAY, lifetime=4 * DAY)
    before = whole(room)
    installed(room, pem(short, opened.certificate_der))
    then = installed(room, certified(room, requested(room, P384)))
    assert then.former == (short, before.issuing)
    later = NOW + 2 * DAY
    assert [one.certificate_der for one in hold_all(keys(room), then, later).all] == [then.issuing, before.issuing]
    last = ca.install(room / "home", keys(room), certified(room, requested(room, P256)), later)
    assert last.former == (then.issuing, before.issuing)


def broken(room: Path) -> Iterator[tuple[str, bytes, type[KeymailboxError]]]:
    """Yield what must not be installed, and why."""
    opened = root(room)
    request = requested(room)
    good = opened.sign_issuing(request, NOW)
    yield "nothing", b"", MalformedError
    yield "no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", MalformedError
    yield "three certificates", pem(good, good, good), MalformedError
    yield "another root", pem(good, another_issuing_ca()), CertificateError
    yield "under another root", pem(another_issuing_ca()), CertificateError
    yield "under another root, which claims ours", pem(another_issuing_ca(), opened.certificate_der), CertificateError
    flipped = bytearray(good)
    flipped[-1] ^= 1
    yield "altered", bytes(flipped), KeymailboxError
    yield "the root itself", opened.certificate_der, KeymailboxError
    stranger = self_signed("keymailbox issuing of a stranger", new_signing_key())
    yield "a key that is not here", pem(opened.sign_issuing(stranger, NOW)), SettingsError
    late = self_signed("keymailbox issuing late", new_signing_key())
    yield "not valid yet", pem(opened.sign_issuing(late, NOW + 30 * DAY)), KeymailboxError
    namesake = load_der_x509_certificate(read_chain(room / "home").issuing)
    name = x509.common_name_of(namesake.subject.public_bytes())
    key = new_signing_key()
    tbs = issuers.issuing_tbs(self_signed(name, key), root_der=opened.certificate_der, serial=5, now=NOW)
    yield "a name that is taken", pem(x509.assemble(tbs, opened._key.sign(tbs))), ConflictError
    again = issuers.IssuingRequest("keymailbox issuing again", authority_key(read_chain(room / "home").issuing))
    tbs = issuers.issuing_tbs(again, root_der=opened.certificate_der, serial=6, now=NOW)
    yield "a key that has one", pem(x509.assemble(tbs, opened._key.sign(tbs))), ConflictError


def test_what_is_not_installed(room: Path) -> None:
    """Each is refused in words, and changes no file."""
    cases = list(broken(room))
    before = files_of(room / "home")
    for title, content, kind in cases:
        with pytest.raises(kind):
            installed(room, content)
        assert files_of(room / "home") == before, title


def test_a_home_without_a_root_takes_the_one_that_a_person_named(made: Path, tmp_path: Path) -> None:
    """And no other, and none without a fingerprint; a request on the way does not look like a CA."""
    room = tmp_path
    shutil.copytree(made / "root", room / "root")
    content = certified(room, requested(room))
    for told in (None, "", "00" * 32, fingerprint(room)[:-2]):
        with pytest.raises(CertificateError):
            ca.install(room / "home", keys(room), content, NOW, root_fingerprint=told)
        assert not (room / "home" / "ca" / "root.der").exists()
    with pytest.raises(SettingsError) as caught:
        ca.create_ca(room / "home", PASSPHRASE, NOW)
    assert "kmb-server ca install" in caught.value.hint
    spoken = ":".join(fingerprint(room)[place : place + 2].upper() for place in range(0, 64, 2))
    ca.install(room / "home", keys(room), content, NOW, root_fingerprint=spoken)
    whole(room)


def test_a_request_that_was_swapped(room: Path) -> None:
    """Between server and root somebody puts a key of theirs into the request: the signature under it no longer fits."""
    der, request = ca.request_issuing(room / "home", keys(room), ML_DSA)
    other = new_signing_key()
    with pytest.raises((SignatureError, KeymailboxError)):
        issuers.parse_request(der.replace(request.key.raw, other.public.raw)).verify()
    # A request that is wholly theirs is in order, and so the ceremony asks for the fingerprint; nor does it install.
    theirs = self_signed(request.name, other)
    assert theirs.fingerprint != request.fingerprint
    with pytest.raises(SettingsError):
        installed(room, certified(room, theirs))


def test_a_home_of_before(tmp_path: Path) -> None:
    """Root and issuing key in one folder: it works on, its root can be taken away, and it rolls over."""
    chain = ca.create_ca(tmp_path / "home", PASSPHRASE, NOW - DAY)
    folder = tmp_path / "home" / "ca"
    (sealed,) = (folder / "private").iterdir()
    sealed.rename(folder / "private" / "issuing.key.sealed")
    (tmp_path / "home" / "root" / "root.key.sealed").rename(folder / "private" / "root.key.sealed")
    shutil.rmtree(tmp_path / "home" / "root")
    (folder / "issuers.pem").unlink()
    (folder / "issuing.der").write_bytes(chain.issuing)
    assert ca.create_ca(tmp_path / "home", PASSPHRASE, NOW) == chain
    assert whole(tmp_path) == chain
    # As docs/operations.md says.
    (tmp_path / "root").mkdir()
    (folder / "private" / "root.key.sealed").rename(tmp_path / "root" / "root.key.sealed")
    shutil.copy(folder / "root.der", tmp_path / "root" / "root.der")
    opened = open_root(tmp_path / "root", PASSPHRASE)
    der = opened.sign_issuing(requested(tmp_path), NOW)
    assert installed(tmp_path, pem(der)).all == (der, chain.issuing)
    whole(tmp_path)


# Killed, and twice at once


def test_init_killed_at_each_step(tmp_path: Path) -> None:
    """There is no CA, or a whole one; and the next call ends with a whole one, under the root that was there."""
    count = iter(range(1000))

    def fresh() -> Path:
        return tmp_path / str(next(count))

    def work(place: Path) -> CaChain:
        return ca.create_ca(place / "home", PASSPHRASE, NOW)

    # The file system looks the same before and after a sync.
    for _, place in killed_before_each(fresh, work, steps=("rename", "link", "mkdir")):
        left = place / "home" / "root" / "root.der"
        known = left.read_bytes() if left.exists() else None
        if (place / "home" / "ca").exists():
            whole(place)
        chain = ca.create_ca(place / "home", PASSPHRASE, NOW)
        assert known in (None, chain.root)
        assert whole(place) == chain
    assert next(count) > 8


def copies(room: Path, tmp_path: Path) -> Iterator[Path]:
    """Yield one copy of the room after the other."""
    for number in range(1000):
        shutil.copytree(room, tmp_path / f"copy{number}")
        yield tmp_path / f"copy{number}"


def test_a_request_killed_at_each_step(room: Path, tmp_path: Path) -> None:
    """The CA is as it was, and the next request is whole: its key is there."""
    before = whole(room)
    rooms = copies(room, tmp_path)
    steps = 0
    for _, place in killed_before_each(lambda: next(rooms), lambda place: requested(place)):
        steps += 1
        assert whole(place) == before
        request = requested(place)
        assert keys(place).open(request.key).public == request.key
    assert steps > 2


def test_the_ceremony_killed_at_each_step(room: Path, tmp_path: Path) -> None:
    """Nothing was signed, or what was signed is in the root's folder; the next time it is the same certificate."""
    request = requested(room)
    rooms = copies(room, tmp_path)
    steps = 0
    for _, place in killed_before_each(lambda: next(rooms), lambda place: certified(place, request)):
        steps += 1
        prepared = place / "root" / "issued" / f"{request.key.ski.hex()}.tbs"
        fixed = prepared.read_bytes() if prepared.exists() else None
        assert fixed is not None or not prepared.with_suffix(".der").exists()
        der = root(place).sign_issuing(request, NOW)
        assert fixed in (None, load_der_x509_certificate(der).tbs_certificate_bytes)
        assert root(place).issued().count(der) == 1
        assert root(place).sign_issuing(request, NOW) == der
    assert steps > 3


def test_a_roll_over_killed_at_each_step(room: Path, tmp_path: Path) -> None:
    """The old chain or the new one, and nothing in between; the next time the new one, without a request left over."""
    before = whole(room)
    content = certified(room, requested(room, P384))
    rooms = copies(room, tmp_path)
    seen = set()
    for _, place in killed_before_each(lambda: next(rooms), lambda place: installed(place, content)):
        seen.add(whole(place))
        chain = installed(place, content)
        assert chain.former == (before.issuing,)
        assert ca.pending(place / "home") is None
        assert not (place / "home" / "ca" / "request.der").exists()
    assert seen == {before, chain}


def test_twice_at_once(made: Path, tmp_path: Path) -> None:
    """Of several requests at once there is one; of several roll-overs at once each is there afterwards."""
    room = tmp_path / "room"
    shutil.copytree(made, room)
    assert len(set(together(4, lambda _: requested(room).fingerprint))) == 1
    first = certified(room, requested(room, P384, discard=True))
    chains = together(4, lambda _: installed(room, first))
    assert len(set(chains)) == 1
    second = certified(room, requested(room, P256))
    both = together(2, lambda number: installed(room, [second, first][number]))
    assert {der for chain in both for der in chain.all} == set(whole(room).all)
    assert len(whole(room).all) == 3
    roots = together(3, lambda number: create_root(tmp_path / "root", f"secret {number}".encode(), NOW, P384))
    assert roots.count(True) == 1


def test_an_empty_passphrase_and_a_lifetime(tmp_path: Path) -> None:
    """A root without a passphrase is not made; an issuing CA may be short-lived."""
    with pytest.raises(SettingsError):
        create_root(tmp_path / "root", b"", NOW, P384)
    assert not (tmp_path / "root").exists()
    create_root(tmp_path / "root", ROOT_PASSPHRASE, NOW, P384)
    key = new_signing_key(P256)
    der = open_root(tmp_path / "root", ROOT_PASSPHRASE).sign_issuing(
        self_signed("keymailbox issuing 1", key), NOW, lifetime=timedelta(days=30)
    )
    found = load_der_x509_certificate(der)
    assert found.not_valid_after_utc - found.not_valid_before_utc == 30 * DAY
