"""The whole way of a key under an issuing CA whose key is in a token, through real processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from cryptography.x509 import load_der_x509_certificate

from pki.core.authorities import authority_key
from pki.core.signatures import SignatureAlgorithm
from pki.core.x509 import CertificateKind
from pki.server.hierarchy import read_chain
from pki.tenant.agent import Agent
from tests.kit import canary
from tests.kit.members import Members
from tests.kit.processes import Installation, wait_until
from tests.kit.services import Services, drop_database, new_database
from tests.kit.tokens import soft_token


@pytest.fixture(scope="module")
def held(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """All processes of production, the issuing CA's key in SoftHSM, made in a ceremony."""
    database = new_database(services.postgres.url)
    token = soft_token(tmp_path_factory.mktemp("hsm") / "token")
    room = tmp_path_factory.mktemp("token")
    try:
        with Installation(room, database, services.rabbitmq.url, token=token) as installed:
            installed.start()
            yield installed
            codes = installed.stop()
            assert {code for name, code in codes.items() if name != "api"} == {0}, codes
    finally:
        drop_database(database)


@pytest.fixture(scope="module")
def members(held: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Agent, Agent]]:
    """Two tenants, certified by the token."""
    with Members(held, tmp_path_factory.mktemp("members")) as enrolled:
        yield enrolled.enrol("acme/eu-west"), enrolled.enrol("globex/main")


def test_a_key_goes_all_the_way_under_a_token(held: Installation, members: tuple[Agent, Agent]) -> None:
    """Enrolled, certified, sent, received, receipted; each certificate is signed by P-384 in the token."""
    acme, globex = members
    name = acme.create_key("orders-2026")
    acme.send_key(name, [globex.address])
    assert [taken.kind for taken in globex.receive(wait=20).taken] == ["receipt"]
    assert globex.load_key(name).key == acme.load_key(name).key
    chain = read_chain(held.home)
    assert authority_key(chain.issuing).algorithm is SignatureAlgorithm.ECDSA_P384
    issuing = load_der_x509_certificate(chain.issuing)
    certificates = held.sql("SELECT der FROM certificates")
    assert len(certificates) == 4
    for (der,) in certificates:
        load_der_x509_certificate(der).verify_directly_issued_by(issuing)
    # Nothing of an issuing key is in the server's home.
    assert {path.name for path in held.home.rglob("*.sealed")} <= {"registration.key.sealed"}


def test_the_pin_is_nowhere(held: Installation, members: tuple[Agent, Agent]) -> None:
    """Logs, database, home, and what any user of the machine sees of the processes: none of them has a PIN."""
    assert held.token is not None and members
    wanted = {"pin": held.token.pin.encode(), "so-pin": held.token.so_pin.encode()}
    seen = [
        path.read_bytes()
        for running in held.running.values()
        for pid in _family(running.process.pid)
        for path in (Path(f"/proc/{pid}/cmdline"), Path(f"/proc/{pid}/environ"))
    ]
    places = {
        "database": canary.database(held.libpq_url),
        "logs": held.logged(),
        "home": b"\n".join(path.read_bytes() for path in held.home.rglob("*") if path.is_file()),
        "processes": b"\n".join(seen),
    }
    assert canary.search(places, wanted) == []
    assert b"KMB_TOKEN_PIN_FILE" in places["processes"]
    keyless = b"".join(
        Path(f"/proc/{pid}/environ").read_bytes()
        for name, running in held.running.items()
        if name != "issuer"
        for pid in _family(running.process.pid)
    )
    assert b"KMB_TOKEN" not in keyless and b"KMB_PKCS11" not in keyless


def test_a_token_pulled_while_issuing(held: Installation, members: tuple[Agent, Agent]) -> None:
    """What was asked for while the token was away is issued when it is back, by the same processes, once."""
    assert held.token is not None
    acme = members[0]
    [before, *_] = acme.certificates(CertificateKind.ENCRYPTION)
    held.token.remove()
    renewed = threading.Thread(target=partial(acme.publish, wait=240))
    renewed.start()
    try:
        wait_until(lambda: held.sql("SELECT 1 FROM jobs WHERE error LIKE '%%The token is away%%'"), 60)
        assert renewed.is_alive()
    finally:
        held.token.put_back()
    renewed.join(240)
    assert not renewed.is_alive()
    [after, *_] = acme.certificates(CertificateKind.ENCRYPTION)
    assert after.fingerprint != before.fingerprint
    [(count,)] = held.sql("SELECT count(*) FROM certificates WHERE address = 'acme/eu-west' AND kind = 'encryption'")
    assert count == 2


def test_a_killed_issuer_comes_back_to_its_token(held: Installation, members: tuple[Agent, Agent]) -> None:
    """Kill -9 leaves no lock and no session that the next issuer would stumble over."""
    held.kill("issuer")
    held.start("issuer")
    globex = members[1]
    [before, *_] = globex.certificates(CertificateKind.ENCRYPTION)
    globex.publish()
    [after, *_] = globex.certificates(CertificateKind.ENCRYPTION)
    assert after.fingerprint != before.fingerprint


def test_a_wrong_pin_is_said_before_the_issuer_begins(held: Installation) -> None:
    """The issuer does not start with a PIN that the token refuses; it says so without showing it."""
    assert held.token is not None
    wrong = held.room / "wrong-pin"
    wrong.write_text("4711-not-it\n")
    environment = held.environment(private=True) | {"KMB_TOKEN_PIN_FILE": str(wrong)}
    done = subprocess.run(
        [sys.executable, "-m", "workers.cli", "worker", "--queues", "issue"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "The token refuses the PIN" in done.stderr and "KMB_TOKEN_PIN_FILE" in done.stderr
    assert "4711" not in done.stdout + done.stderr


def _family(pid: int) -> list[int]:
    """Return a process and all that came from it."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [pid, *(one for child in children for one in _family(child))]
