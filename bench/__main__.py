"""`make bench`: the main job on SQLite and on PostgreSQL with RabbitMQ, each figure beside its bare cost."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import bare, exchange
from bench.figures import Figure, beside, table, write
from pki.tenant.enrolment import Invitation
from tests.kit.daemons import free_port
from tests.kit.processes import Installation, answers, wait_until
from tests.kit.services import Services, drop_database, new_database

_RESULTS = Path("bench/results/latest.json")


def main() -> None:
    """Measure, print a table, and write bench/results/latest.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deposits", type=int, default=1000, help="how many deposits the throughput part sends")
    parser.add_argument("--clients", type=int, default=16, help="from how many connections")
    parser.add_argument("--exchanges", type=int, default=40, help="how many keys are handed over one after another")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each bare cost is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="keymailbox-bench-") as name, Services() as services:
        folder = Path(name)
        verify = bare.verifications(options.seconds)
        figures = [Figure("bare: ML-DSA-65 verifications, one core", verify, "1/s")]
        figures += _sqlite(folder / "sqlite", verify, options)
        admin = services.postgres.url
        database = new_database(admin)
        try:
            figures += _production(folder / "production", database, services.rabbitmq.url, verify, options)
        finally:
            drop_database(database)
    write(figures, _RESULTS)
    print(table(figures))
    print(f"\nwritten to {_RESULTS}")


def _sqlite(folder: Path, verify: float, options: argparse.Namespace) -> list[Figure]:
    folder.mkdir()
    insert = bare.sqlite_inserts(folder, options.seconds)
    port = free_port()
    home = folder / "server"
    with (folder / "server.log").open("wb") as log:
        command = [sys.executable, "-m", "workers.cli", "dev", "--home", str(home), "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=_clean())
    try:
        server = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{server}/readyz"))
        agents = []
        for address in ("acme/bench", "globex/bench"):
            tenant = address.partition("/")[0]
            invite = [sys.executable, "-m", "workers.cli", "tenant", "invite", tenant, "--home", str(home), "--json"]
            told = json.loads(subprocess.run(invite, check=True, capture_output=True, env=_clean()).stdout)
            invitation = Invitation(told["reference"], told["secret"])
            agents.append(exchange.enrolled(server, address, invitation, folder / tenant))
        return _figures("SQLite", _measure(server, agents, options), verify, insert)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _production(folder: Path, database: str, broker: str, verify: float, options: argparse.Namespace) -> list[Figure]:
    folder.mkdir()
    plain = database.replace("postgresql+psycopg://", "postgresql://")
    insert = bare.postgresql_inserts(plain, options.clients, options.seconds)
    installation = Installation(folder / "installation", database, broker)
    # Past the kit's proxies, which would cost what is to be measured.
    installation.variables |= {"KMB_DATABASE_URL": database, "KMB_BROKER_URL": broker}
    with installation:
        installation.start()
        agents = []
        for address in ("acme/bench", "globex/bench"):
            tenant = address.partition("/")[0]
            told = installation.invite(tenant)
            invitation = Invitation(told["reference"], told["secret"])
            agents.append(exchange.enrolled(installation.url, address, invitation, folder / tenant))
        result = _measure(installation.url, agents, options)
    return _figures("PostgreSQL + RabbitMQ", result, verify, insert)


def _measure(server: str, agents: list[exchange.Agent], options: argparse.Namespace) -> exchange.Result:
    sender, recipient = agents
    with sender, recipient:
        return exchange.measure(
            server,
            sender,
            recipient,
            deposits=options.deposits,
            clients=options.clients,
            exchanges=options.exchanges,
        )


def _figures(where: str, result: exchange.Result, verify: float, insert: float) -> list[Figure]:
    return [
        Figure(f"{where}, bare: durable inserts of 6 kB", insert, "1/s"),
        beside(f"{where}: deposits accepted, one a request", result.accepted, "1/s", insert, 0.30),
        beside(f"{where}: deposits accepted and validated", result.validated, "1/s", verify, 0.75),
        Figure(f"{where}: deposits collected, 50 a request", result.collected, "1/s"),
        Figure(f"{where}: polls of an empty page, one client", result.empty_polls, "1/s"),
        Figure(f"{where}: deposit to verified receipt, p50", result.receipt_p50, "ms"),
        Figure(f"{where}: deposit to verified receipt, p99", result.receipt_p99, "ms"),
    ]


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("KMB_")}


if __name__ == "__main__":
    main()
