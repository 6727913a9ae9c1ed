"""The database stands still: it is there, and says nothing, as on a host whose disk hangs."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from tests.kit.members import Members
from tests.kit.processes import STOP_SECONDS, Installation, answers, wait_until
from tests.kit.services import Services, drop_database, new_database

_HEALED = 60.0
_STUCK_SECONDS = 17.0
"""After which the relay, which looks at the database every two seconds, and the beat, every fifteen, wait for it."""
_TWICE_SECONDS = 20.0
"""Half of what a process has that was told once."""
_IN_PROGRESS = "keymailbox_http_requests_in_progress"


def test_everything_ends_although_the_database_says_nothing(services: Services, tmp_path: Path) -> None:
    """With 0, or with 1 after 38 s where a thread waits for it; told twice, soon. What was accepted goes on after."""
    database = new_database(services.postgres.url)
    try:
        with (
            Installation(tmp_path / "server", database, services.rabbitmq.url) as installed,
            Members(installed, tmp_path) as members,
        ):
            installed.start()
            acme, globex = members.enrol("acme/eu-west"), members.enrol("globex/main")
            installed.stop("validator")
            [sent] = acme.send_key(acme.create_key("unheard"), [globex.address], wait=0).delivered

            installed.database.hold()
            # A thread of the API waits for an answer.
            asking = threading.Thread(target=answers, args=(f"{installed.url}/readyz",))
            asking.start()
            wait_until(lambda: _in_progress(installed) > 0, on=installed.running["api"])
            time.sleep(_STUCK_SECONDS)

            twice = [installed.running.pop(name) for name in ("relay", "api")]
            for process in twice:
                process.ask_to_stop()
            # Two signals at once are one.
            time.sleep(1)
            began = time.monotonic()
            for process in twice:
                process.ask_to_stop()
            assert [process.stopped() for process in twice] == [1, 1]
            assert time.monotonic() - began < _TWICE_SECONDS
            # A worker whose child stands still, by two Ctrl-C: Celery waits for it, in its handler of the second.
            worker = installed.running.pop("worker")
            for child in _children(worker.process.pid):
                os.kill(child, signal.SIGSTOP)
            worker.process.send_signal(signal.SIGINT)
            time.sleep(1)
            assert worker.process.poll() is None
            worker.process.send_signal(signal.SIGINT)
            began = time.monotonic()
            assert worker.stopped() == 1
            assert time.monotonic() - began < _TWICE_SECONDS
            # Within the forty seconds after which a supervisor kills; none is killed here.
            codes = installed.stop()
            assert set(codes.values()) <= {0, 1} and codes["beat"] == 1, codes
            assert b"stop_overdue" in installed.logged()
            asking.join(STOP_SECONDS)

            installed.database.restore()
            installed.start()
            wait_until(lambda: acme.client.status(sent.deposit_id, wait=5).state == "available", _HEALED)
    finally:
        drop_database(database)


def _in_progress(installed: Installation) -> float:
    figures = installed.told("api").text
    return sum(float(line.split()[-1]) for line in figures.splitlines() if line.startswith(_IN_PROGRESS))


def _children(pid: int) -> list[int]:
    """Return the processes that a worker has its tasks worked on by."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
