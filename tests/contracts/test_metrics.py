"""Figures have names that say what they are, cost little, and are told to the operator's machines alone."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import httpx2
import pytest
import yaml
from prometheus_client.core import Metric
from sqlalchemy import event

from pki.core.deposits import DepositState
from pki.core.errors import SettingsError, UnavailableError
from pki.server import bootstrap, metrics
from pki.server.services.metrics import Figures, scrape
from pki.server.settings import load_settings
from pki.server.store import lag, outbox
from pki.server.store.engine import Store
from tests.kit.daemons import LOOPBACK, NOBODY, free_port
from tests.kit.facts import at
from tests.kit.site import Homes, Instance, Site
from workers.app import QUEUES

pytest_plugins = ["tests.kit.api_fixtures"]

ALERTS = Path(__file__).parents[2] / "docs/prometheus-alerts.yaml"
UNITS = ("_seconds", "_bytes", "_size", "_total", "_in_progress", "_waiting", "_in_use", "_up")


def everything(site: Site) -> list[Metric]:
    """All families that any process tells."""
    metrics.broker_up(), metrics.dead_letters()
    return [*metrics.REGISTRY.collect(), *Figures(site.deps).collect()]


def value(name: str, **labels: str) -> float:
    """What this process has counted by now; tests share it."""
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def test_names_and_help(site: Site) -> None:
    """Each is ours, in base units with the suffix of what it is, and says what it is good for (Prometheus' naming)."""
    for family in everything(site):
        assert re.fullmatch(r"keymailbox_[a-z_]+", family.name), family.name
        assert not re.search(r"_(ms|millis|minutes|kb|mb|percent)(_|$)", family.name), family.name
        assert len(family.documentation) > 20 and family.documentation.endswith("."), family.name
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_size")), family.name
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)
    names = [family.name for family in everything(site)]
    assert len(names) == len(set(names))


def test_alarms_are_about_figures_that_exist(site: Site) -> None:
    """Each rule of docs/prometheus-alerts.yaml names figures that are told, and says what to do."""
    known = {sample.name for family in everything(site) for sample in family.samples}
    # Labelled ones have samples once something was counted.
    for family in everything(site):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
        known |= {family.name + suffix for suffix in suffixes}
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    for rule in group["rules"]:
        used = set(re.findall(r"keymailbox_\w+", rule["expr"]))
        assert used and used <= known, (rule["alert"], used - known)
        assert set(rule["annotations"]) == {"summary", "description"}
        assert "kmb-server" in rule["annotations"]["description"] or "docs/" in rule["annotations"]["description"]
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_a_deposit_is_counted_along_its_way(site: Site, acme: Instance, globex: Instance) -> None:
    """Each state that it enters is counted once, when that is committed, and the times between them are observed."""
    states = ("received", "available", "collected", "acknowledged")
    before = {state: value("keymailbox_deposits_total", state=state) for state in states}
    waits = ("accepted_to_available", "available_to_collected", "available_to_answered")
    seen = {wait: value(f"keymailbox_deposit_{wait}_seconds_count") for wait in waits}
    deposit_id, body = acme.send(globex)
    assert globex.post(f"{globex.mailbox}/collection", {"ids": [deposit_id]}).status_code == 200
    receipt = globex.receipt(deposit_id, body)
    for _ in range(2):
        answer = globex.call("POST", f"/v1/deposits/{deposit_id}/receipt", receipt, "application/cms")
        assert answer.status_code in (200, 201), answer.text
    assert {state: value("keymailbox_deposits_total", state=state) for state in states} == {
        state: count + 1 for state, count in before.items()
    }
    assert {wait: value(f"keymailbox_deposit_{wait}_seconds_count") for wait in waits} == {
        wait: count + 1 for wait, count in seen.items()
    }


def test_nothing_is_counted_that_was_not_committed(store: Store) -> None:
    """What a unit says once it is committed is not said when it fails."""
    before = value("keymailbox_deposits_total", state="expired")
    with pytest.raises(RuntimeError), store.unit() as unit:
        unit.once_committed(lambda: metrics.moved(DepositState.EXPIRED, count=1))
        raise RuntimeError
    assert value("keymailbox_deposits_total", state="expired") == before


def test_lag_by_age_and_rank(store: Store) -> None:
    """The age is the oldest due job's whatever its rank; what is dead or not due yet does not count."""
    with store.unit() as unit:
        outbox.add(unit, "issue", "crl", ["a"], now=at(0), rank=outbox.IDLE)
        outbox.add(unit, "issue", "crl", ["b", "c"], now=at(5), rank=outbox.URGENT)
        outbox.add(unit, "notify", "webhook", ["d"], now=at(0), due_at=at(100))
        outbox.add(unit, "report", "chain", ["e"], now=at(0))
        [job] = outbox.claim(unit, "report", 1, now=at(0), lease=at(1) - at(0))
        outbox.bury(unit, job, now=at(1), error="x")
    with store.read() as unit:
        assert lag.queues(unit, at(10)) == {"issue": (3, 10.0)}
        assert lag.queues(unit, at(10), ["notify"]) == {}
        assert lag.dead_jobs(unit) == {"report": 1}
        assert lag.unsequenced(unit) == (0, None)
        assert lag.dead_deliveries(unit) == 0
    assert set(lag.QUEUES) == set(QUEUES)


def test_a_scrape_reads_no_table_whole(store: Store) -> None:
    """Each statement goes by an index: however much has been kept, a scrape costs the same."""
    statements: list[tuple[str, object]] = []
    with store.read() as unit:
        connection = unit.connection

        def noted(_c: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
            statements.append((statement, parameters))

        event.listen(connection, "before_cursor_execute", noted)
        lag.queues(unit, at(0))
        lag.dead_jobs(unit)
        lag.unsequenced(unit)
        lag.dead_deliveries(unit)
        event.remove(connection, "before_cursor_execute", noted)
        if unit.dialect == "postgresql":
            # Empty tables are cheap to read whole: what is asked is whether an index could be used.
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        explain = "EXPLAIN QUERY PLAN " if unit.dialect == "sqlite" else "EXPLAIN "
        for statement, parameters in statements:
            plan = "\n".join(str(tuple(row)) for row in connection.exec_driver_sql(explain + statement, parameters))
            assert not re.search(r"Seq Scan|SCAN (jobs|events|deliveries)(?! USING)", plan), (statement, plan)
    assert len(statements) > 3 * len(QUEUES)


def test_a_port_of_its_own(homes: Homes, database_url: str) -> None:
    """Figures, liveness and readiness are told on KMB_METRICS_PORT, on loopback unless told otherwise."""
    port = free_port()
    settings = load_settings(home=homes.new(), database_url=database_url, metrics_port=port)
    deps = bootstrap.build(settings)
    useful = True

    def ready() -> None:
        if not useful:
            raise UnavailableError("Nobody works", on="validate", hint="kmb-server doctor")

    def told(path: str) -> httpx2.Response:
        return httpx2.get(f"http://{LOOPBACK}:{port}{path}", timeout=10, trust_env=False, verify=NOBODY)

    try:
        with bootstrap.watched(deps, "test", ready, site=True):
            assert told("/livez").json() == {"status": "ok"}
            assert told("/readyz").json() == {"status": "ok"}
            figures = told("/metrics")
            assert figures.headers["content-type"] == metrics.CONTENT_TYPE
            assert "keymailbox_database_up 1.0" in figures.text and "keymailbox_jobs_total" in figures.text
            assert told("/v1/ca").status_code == 404
            useful = False
            answer = told("/readyz")
            assert (answer.status_code, answer.json()["hint"]) == (503, "kmb-server doctor")
            assert told("/livez").status_code == 200
            with pytest.raises(SettingsError, match="port for figures"), bootstrap.watched(deps, "test", ready):
                pass
        with socket.socket() as probe:
            assert probe.connect_ex((LOOPBACK, port)) != 0
    finally:
        deps.store.close()


def test_nowhere_by_default(homes: Homes, database_url: str) -> None:
    """Without a port nothing listens."""
    deps = bootstrap.build(load_settings(home=homes.new(), database_url=database_url))
    with bootstrap.watched(deps, "test", lambda: None):
        assert scrape(metrics.REGISTRY).startswith(b"# HELP")
    deps.store.close()
