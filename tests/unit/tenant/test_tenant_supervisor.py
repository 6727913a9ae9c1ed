"""systemd is told how the agent is: by a socket that really listens, and a unit that systemd itself reads."""

from __future__ import annotations

import configparser
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from pki.core.errors import ConflictError, KeymailboxError, UnavailableError
from pki.tenant import disk, rounds, supervisor
from pki.tenant.commands.agent import _Teller
from pki.tenant.commands.status import _daemon
from pki.tenant.rounds import Round
from pki.tenant.supervisor import Supervisor

UNIT = Path(__file__).parents[3] / "docs" / "systemd" / "kmb-agent@.service"


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A manager's datagram socket, and its name as NOTIFY_SOCKET has it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        name = f"@keymailbox-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
        listener.bind("\0" + name[1:] if name.startswith("@") else name)
        listener.settimeout(10)
        yield name, listener


def heard(listener: socket.socket) -> str:
    """Return the next datagram."""
    return listener.recv(4096).decode()


def test_what_failed_is_said_until_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    """A round that has other steps neither makes the agent ready nor takes back what is wrong."""
    teller, at = _Teller(as_json=True, all_json=True), datetime.now(UTC)
    teller.tell(Round(at, failed=[("receive", UnavailableError("away")), ("listen", UnavailableError("away"))]))
    teller.tell(Round(at, done=["resume", "campaigns", "listen"]))
    assert teller.summary == "nothing to do yet; receive failed: unavailable"
    teller.tell(Round(at, done=["receive"]))
    assert (teller.summary, teller.troubles) == ("nothing to do yet", {})
    assert capsys.readouterr().out.count('"failed"') == 2


def test_what_the_manager_hears(manager: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ready, what it does, alive at half of the watchdog's time and not more often, stopping."""
    now = [1000.0]
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: now[0]))
    name, listener = manager
    told = Supervisor({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "200000", "WATCHDOG_PID": str(os.getpid())})
    assert told.every == 0.1
    told.ready("acme/eu-west: nothing\nto do")
    assert heard(listener) == "READY=1\nSTATUS=acme/eu-west: nothing to do"
    told.status("acme/eu-west: nothing to do")
    told.status("acme/eu-west: 1 received")
    assert heard(listener) == "STATUS=acme/eu-west: 1 received"
    for _ in range(3):
        told.alive()
    assert heard(listener) == "WATCHDOG=1"
    now[0] += 0.11
    told.alive()
    told.stopping()
    assert [heard(listener), heard(listener)] == ["WATCHDOG=1", "STOPPING=1\nSTATUS=Stopping"]


def test_a_manager_that_does_not_read_is_not_waited_for(
    manager: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine keeps some messages for it, and then no more: the agent would not hear that it is to stop."""
    monkeypatch.setattr(supervisor, "_TOLD_SECONDS", 0.001)
    told = Supervisor({"NOTIFY_SOCKET": manager[0]})
    telling = threading.Thread(target=lambda: [told.status(str(number)) for number in range(600)], daemon=True)
    telling.start()
    telling.join(60)
    assert not telling.is_alive()
    assert heard(manager[1]) == "STATUS=0"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "x"},
        {"NOTIFY_SOCKET": "relative", "WATCHDOG_USEC": "0"},
    ],
)
def test_without_a_manager_nothing_happens(environment: dict[str, str]) -> None:
    """Nobody there, somewhere else, or not for us: the work goes on."""
    told = Supervisor(environment)
    told.ready("x")
    told.alive()
    told.stopping()


def test_another_process_s_watchdog_is_not_ours() -> None:
    """WATCHDOG_PID says whom it is for (sd_watchdog_enabled(3))."""
    assert Supervisor({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).every is None


def test_one_agent_for_a_context(tmp_path: Path) -> None:
    """A second one is told who has it; the lock ends with the process, however that ends."""
    path = tmp_path / "agent.lock"
    script = "import sys,time; from pathlib import Path; from pki.tenant import disk;"
    script += f"held = disk.exclusive(Path({str(path)!r})); print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    with other.stdout:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConflictError) as refused:
            disk.exclusive(path)
        assert str(other.pid) in refused.value.on
        assert disk.holder(path) == str(other.pid)
        other.kill()
        other.wait(10)
    assert disk.holder(path) is None
    disk.exclusive(path).close()
    disk.exclusive(path).close()


def test_the_doctor_sees_the_agent(tmp_path: Path) -> None:
    """None runs, one runs, and one that gives no sign of life any more."""
    path = tmp_path / "agent.lock"
    now = datetime.now(UTC)
    assert _daemon(path, now).startswith("none runs")
    with disk.exclusive(path):
        assert f"process {os.getpid()} runs" in _daemon(path, now)
        with pytest.raises(KeymailboxError) as stuck:
            _daemon(path, now + timedelta(minutes=5))
        assert f"process {os.getpid()}, for " in stuck.value.on
    assert _daemon(path, now).startswith("none runs")


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """Verified by systemd itself where it is; its settings are those that the agent and the documentation rely on."""
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read_string(UNIT.read_text())
    service = parsed["Service"]
    assert (service["Type"], service["WatchdogSec"], service["Restart"]) == ("notify", "120", "always")
    assert service["ExecStart"].endswith("kmb --context %i agent run --log-format json")
    assert "KMB_PASSPHRASE_FILE=%d/passphrase" in UNIT.read_text()
    assert (service["NoNewPrivileges"], service["ProtectSystem"]) == ("yes", "strict")
    verifier = shutil.which("systemd-analyze")
    if verifier is not None:
        unit = tmp_path / "kmb-agent@acme.eu-west.service"
        unit.write_text(UNIT.read_text())
        done = subprocess.run([verifier, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert unit.name not in done.stderr, done.stderr


def test_steps_have_their_pace() -> None:
    """All at once, then each in its time; what failed soon again, then later and later; what is asked for at once."""
    pace = rounds.Pace(["receive", "renew"], 1.0, 100.0)
    assert pace.due(100.0, ()) == ["receive", "renew"]
    for step in ("receive", "renew"):
        pace.done(step, 100.0, failed=False)
    assert (pace.due(159.0, ()), pace.due(159.0, {"renew"})) == ([], ["renew"])
    assert (pace.rest(159.0), pace.due(160.0, ())) == (1.0, ["receive"])
    pauses = []
    for _ in range(8):
        pace.done("receive", 200.0, failed=True)
        pauses.append(pace.rest(200.0))
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    quick = rounds.Pace(["receive"], 0.5, 0.0)
    quick.done("receive", 0.0, failed=False)
    assert quick.rest(0.0) == 30.0


def test_a_round_goes_on_and_ends_when_told() -> None:
    """What fails does not keep the others from their turn, news is remembered, and a stop ends it between two steps."""
    from datetime import UTC, datetime

    from pki.core.errors import UnavailableError

    done: list[str] = []

    def act(name: str) -> Callable[[], object]:
        def step() -> object:
            done.append(name)
            if name == "renew":
                raise UnavailableError("away")
            return []

        return step

    class News:
        kept = 0

        def begin(self) -> None:
            raise UnavailableError("no stream yet")

        def wait(self, seconds: float) -> frozenset[str]:
            return frozenset({"rewrap"})

        def keep(self) -> None:
            self.kept += 1

    news = News()
    steps = {name: (place, act(name)) for name, place in (("renew", "renewed"), ("rewrap", "rewrapped"))}
    going = rounds.run(
        steps,
        news,
        clock=lambda: datetime.now(UTC),
        scale=1.0,
        stop=lambda: len(done) >= 3,
        alive=lambda: None,
    )
    first, second = list(going)
    assert [name for name, _ in first.failed] == ["listen", "renew"]
    assert (done, second.failed, news.kept) == (["renew", "rewrap", "rewrap"], [], 2)
