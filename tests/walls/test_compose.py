"""compose.yaml runs what the Procfile runs, and holds its containers and secrets as tightly as it says."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kit.serve import commands
from workers.app import QUEUES

ROOT = Path(__file__).resolve().parents[2]
PORT = 8080
ISSUER = "issuer"
PROCESSES = commands((ROOT / "Procfile").read_text(), PORT)
OWN = (*PROCESSES, "init")


@cache
def composition() -> dict[str, Any]:
    """The parsed compose.yaml, with its anchors resolved."""
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return parsed


def service(name: str) -> dict[str, Any]:
    """One service of compose.yaml."""
    found: dict[str, Any] = composition()["services"][name]
    return found


def sources(name: str, section: str) -> set[str]:
    """The names of a service's volumes or secrets, whichever way they are written."""
    entries = service(name).get(section, [])
    return {entry["source"] if isinstance(entry, dict) else entry.split(":")[0] for entry in entries}


def docker_compose() -> list[str] | None:
    """The docker client's compose command, if this machine has client and plugin; no engine is needed."""
    docker = shutil.which("docker")
    if docker is None:
        return None
    answer = subprocess.run([docker, "compose", "version"], capture_output=True, timeout=60)
    return [docker, "compose"] if answer.returncode == 0 else None


def test_the_services_are_the_procfiles_processes() -> None:
    """Besides database, broker and the one-shot init, compose.yaml has exactly the Procfile's processes."""
    assert set(composition()["services"]) == {*OWN, "postgres", "rabbitmq"}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_service_runs_the_procfiles_command(name: str) -> None:
    """Each service's command is its Procfile line, word by word."""
    assert service(name)["command"] == PROCESSES[name]


def test_validation_shares_no_process_with_what_may_be_slow() -> None:
    """The queue of deposits is served by a process that serves no other, and every queue by exactly one."""
    served = [command[-1].split(",") for command in PROCESSES.values() if "--queues" in command]
    assert ["validate"] in served
    assert sorted(queue for queues in served for queue in queues) == sorted(QUEUES)


def test_init_runs_before_everything_else() -> None:
    """The one-shot init initialises, is not restarted, and every process waits until it has succeeded."""
    shell, flags, script = service("init")["command"]
    assert (shell, flags) == ("sh", "-euc")
    assert script.splitlines()[0] == "kmb-server init"
    assert service("init")["restart"] == "no"
    for name in PROCESSES:
        assert service(name)["depends_on"]["init"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("name", OWN)
def test_a_container_is_hardened(name: str) -> None:
    """Our containers are read-only, without capabilities or new privileges, and not root."""
    held = service(name)
    assert held["read_only"] is True
    assert held["cap_drop"] == ["ALL"]
    assert "cap_add" not in held
    assert "no-new-privileges:true" in held["security_opt"]
    assert held["user"] == "10001:10001"
    assert any(mount.split(":")[0] == "/tmp" for mount in held["tmpfs"])
    assert "privileged" not in held


@pytest.mark.parametrize("name", ["postgres", "rabbitmq"])
def test_an_official_image_has_only_what_it_needs_to_give_up_root(name: str) -> None:
    """Database and broker are read-only too, and have the capabilities to switch their user, and no others."""
    held = service(name)
    assert held["read_only"] is True
    assert held["cap_drop"] == ["ALL"]
    assert set(held["cap_add"]) == {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"}
    assert "no-new-privileges:true" in held["security_opt"]


def test_the_ca_key_is_mounted_into_init_and_issuer_alone() -> None:
    """Neither the CA's volume nor its passphrase reaches another service; the issuer cannot write the volume."""
    services = composition()["services"]
    assert {name for name in services if "ca" in sources(name, "volumes")} == {"init", ISSUER}
    assert {name for name in services if "passphrase" in sources(name, "secrets")} == {"init", ISSUER}
    holders = {name for name in services if "KMB_PASSPHRASE_FILE" in service(name).get("environment", {})}
    assert holders == {"init", ISSUER}
    assert service(ISSUER)["volumes"] == ["ca:/var/lib/keymailbox:ro"]


def test_each_has_its_own_login_at_the_database() -> None:
    """The owner's is init's alone, the API has its own and no other, everybody else the workers'."""
    services = composition()["services"]
    holders = {
        secret: {name for name in services if secret in sources(name, "secrets")}
        for secret in ("owner_database_url", "api_database_url", "database_url")
    }
    assert holders["owner_database_url"] == {"init"}
    assert holders["api_database_url"] == {"init", "api"}
    assert holders["database_url"] == {*OWN} - {"api"}
    variables = {name: service(name).get("environment", {}) for name in OWN}
    assert variables["init"]["KMB_OWNER_DATABASE_URL_FILE"] == "/run/secrets/owner_database_url"
    assert variables["init"]["KMB_API_DATABASE_URL_FILE"] == "/run/secrets/api_database_url"
    for name in OWN:
        expected = "api_database_url" if name == "api" else "database_url"
        assert variables[name]["KMB_DATABASE_URL_FILE"] == f"/run/secrets/{expected}"
    users = {one["file"].rsplit("/", 1)[1] for one in composition()["secrets"].values()}
    assert {"owner_database_url", "api_database_url", "workers_database_url"} <= users


@pytest.mark.parametrize("name", [*OWN, "postgres", "rabbitmq"])
def test_secrets_come_from_files(name: str) -> None:
    """No variable carries a secret: what is secret is given as a path, and the path is one of the service's secrets."""
    given = {f"/run/secrets/{source}" for source in sources(name, "secrets")}
    for variable, value in service(name).get("environment", {}).items():
        if variable.endswith("_FILE"):
            assert value in given
        else:
            assert not any(word in variable for word in ("PASS", "SECRET", "KEY", "DATABASE_URL", "BROKER_URL"))


def test_ports_are_published_on_loopback_only() -> None:
    """Nothing listens on the host but on 127.0.0.1, and only the API does; the rest shares an internal network."""
    services = composition()["services"]
    published = {name: service(name)["ports"] for name in services if "ports" in service(name)}
    assert set(published) == {"api"}
    assert all(port.startswith("127.0.0.1:") and port.endswith(f":{PORT}") for port in published["api"])
    assert composition()["networks"]["inside"] == {"internal": True}
    assert {name for name in services if "outside" in service(name)["networks"]} == {"api", "worker"}


@pytest.mark.parametrize("name", [*PROCESSES, "postgres", "rabbitmq"])
def test_a_service_has_a_health_check(name: str) -> None:
    """What keeps running is watched."""
    assert service(name)["healthcheck"]["test"][0] == "CMD"


def test_the_image_is_installed_by_hash_and_not_root() -> None:
    """The Dockerfile installs by hash alone, ends as the user that compose.yaml names, and has a health check."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    installs = [step for line in lines if line.startswith("RUN") for step in line.split("&&") if "pip install" in step]
    assert installs
    assert all("--require-hashes" in step or "--no-index" in step for step in installs)


def test_every_secret_of_compose_is_made_by_make_secrets() -> None:
    """`make secrets` writes each file that compose.yaml mounts as a secret."""
    recipe = (ROOT / "Makefile").read_text()
    for secret in composition()["secrets"].values():
        folder, name = secret["file"].rsplit("/", 1)
        assert folder == "./var/compose"
        assert f"put {name} " in recipe


def test_the_token_is_the_issuers() -> None:
    """compose.hsm.yaml gives library, way and PIN to issuer and ceremonies alone; the PIN comes from a file."""
    added: dict[str, Any] = yaml.safe_load((ROOT / "compose.hsm.yaml").read_text())
    assert set(added["services"]) == {"init", ISSUER}
    for held in added["services"].values():
        assert set(held) == {"environment", "secrets", "volumes", "networks"}
        assert held["environment"]["KMB_TOKEN_PIN_FILE"] == "/run/secrets/token_pin"
        assert set(held["environment"]) == {"KMB_PKCS11_MODULE", "KMB_PKCS11_TOKEN", "KMB_TOKEN_PIN_FILE"}
        assert held["secrets"] == ["token_pin"] and all(mount.endswith(":ro") for mount in held["volumes"])
    assert set(added["secrets"]) == {"token_pin"}


@pytest.mark.skipif(docker_compose() is None, reason="no docker client with the compose plugin; parsed as YAML above")
def test_docker_compose_accepts_it() -> None:
    """`docker compose config` resolves the file without a word of complaint."""
    command = docker_compose()
    assert command is not None
    done = subprocess.run(
        [*command, "-f", "compose.yaml", "config", "--quiet"], cwd=ROOT, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
