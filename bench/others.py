"""Other people's certificate authorities, for comparison: cfssl and django-ca, each with PostgreSQL and a P-256 key."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from sqlalchemy import make_url

from tests.kit.daemons import LOOPBACK, apt_install, free_port
from tests.kit.processes import wait_until
from tests.kit.services import drop_database, new_database

DJANGO_CA = "django-ca==3.2.0"
_ENVIRONMENT = Path("var/bench/django-ca")
_CLIENTS = 4
# cfssl/certdb/pg/migrations/001_CreateCertificates.sql says these columns.
_CERTDB = """
CREATE TABLE certificates (
    serial_number bytea NOT NULL, authority_key_identifier bytea NOT NULL, ca_label bytea, status bytea NOT NULL,
    reason int, expiry timestamptz, revoked_at timestamptz, pem bytea NOT NULL,
    PRIMARY KEY (serial_number, authority_key_identifier)
)
"""


@dataclass(frozen=True)
class Peer:
    """Certificates a second, and the CPU time of its process for one in µs, whatever else the machine does."""

    rate: float
    cpu: float


def requests(count: int) -> list[str]:
    """Return certificate requests in PEM for P-256 keys, each signed by its own."""
    made = []
    for number in range(count):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"n{number}.bench.example")])
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        made.append(csr.public_bytes(Encoding.PEM).decode())
    return made


def cfssl(room: Path, postgres: str, count: int) -> Peer:
    """Return what is had from ``cfssl serve`` with its certificates in PostgreSQL, by four clients."""
    if shutil.which("cfssl") is None:
        apt_install("golang-cfssl", Path("/usr/bin/cfssl"))
    room.mkdir()
    asked = {"CN": "bench CA", "key": {"algo": "ecdsa", "size": 256}}
    made = _run(["cfssl", "gencert", "-initca", "-loglevel", "5", "-"], json.dumps(asked))
    (room / "ca.pem").write_text(json.loads(made)["cert"])
    (room / "ca-key.pem").write_text(json.loads(made)["key"])
    usages = ["digital signature"]
    (room / "config.json").write_text(json.dumps({"signing": {"default": {"expiry": "8760h", "usages": usages}}}))
    database = new_database(postgres)
    url = make_url(database)
    source = f"postgres://{url.username}:{url.password or ''}@{url.host}:{url.port}/{url.database}?sslmode=disable"
    (room / "db.json").write_text(json.dumps({"driver": "postgres", "data_source": source}))
    with psycopg.connect(database.replace("postgresql+psycopg", "postgresql"), autocommit=True) as connection:
        connection.execute(_CERTDB)
    port = free_port()
    words = ["-address", LOOPBACK, "-port", str(port), "-ca", "ca.pem", "-ca-key", "ca-key.pem"]
    with (room / "log").open("wb") as log:
        command = ["cfssl", "serve", *words, "-config", "config.json", "-db-config", "db.json", "-loglevel", "4"]
        process = subprocess.Popen(command, cwd=room, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answers(port))
        bodies = [json.dumps({"certificate_request": csr}).encode() for csr in requests(count)]
        before = _cpu(process.pid)
        value = Peer(_posted(port, bodies), (_cpu(process.pid) - before) / count * 1e6)
        with psycopg.connect(database.replace("postgresql+psycopg", "postgresql")) as connection:
            found = connection.execute("SELECT count(*) FROM certificates").fetchone()
        if found is None or found[0] < count:
            raise RuntimeError(f"cfssl stored {found} of {count} certificates:\n{(room / 'log').read_text()[-2000:]}")
        return value
    finally:
        process.terminate()
        process.wait(10)
        drop_database(database)


def django_ca(postgres: str, count: int) -> Peer:
    """Return what is had from django-ca's own function for that, in its own environment and process."""
    python = _ENVIRONMENT / "bin" / "python"
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(_ENVIRONMENT)])
        _run([str(python), "-m", "pip", "install", "--quiet", DJANGO_CA, "psycopg[binary]"])
    database = new_database(postgres)
    try:
        told = json.dumps({"database": database, "requests": requests(count)})
        script = Path(__file__).with_name("django_ca_issue.py").resolve()
        return Peer(**json.loads(_run([str(python.absolute()), str(script)], told).strip().rpartition("\n")[2]))
    finally:
        drop_database(database)


def _posted(port: int, bodies: list[bytes]) -> float:
    failed: list[str] = []

    def post(own: list[bytes]) -> None:
        client = HTTPConnection(LOOPBACK, port)
        for body in own:
            client.request("POST", "/api/v1/cfssl/sign", body, {"Content-Type": "application/json"})
            answer = client.getresponse()
            content = answer.read()
            if answer.status != 200:
                failed.append(content.decode(errors="replace")[:300])
        client.close()

    threads = [threading.Thread(target=post, args=(bodies[number::_CLIENTS],)) for number in range(_CLIENTS)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - start
    if failed:
        raise RuntimeError(f"cfssl refused {len(failed)} requests: {failed[0]}")
    return len(bodies) / spent


def _cpu(pid: int) -> float:
    """Return the seconds of CPU that a process has used (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _answers(port: int) -> bool:
    client = HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        client.request("POST", "/api/v1/cfssl/info", b'{"label": ""}', {"Content-Type": "application/json"})
        return client.getresponse().status == 200
    except OSError:
        return False
    finally:
        client.close()


def _run(command: list[str], typed: str = "") -> str:
    done = subprocess.run(command, input=typed, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    return done.stdout
