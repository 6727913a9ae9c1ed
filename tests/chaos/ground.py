"""A whole installation that may be broken: its own PostgreSQL and RabbitMQ, and a supervisor that starts all again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import kombu

from tests.kit.daemons import LOOPBACK, Daemon, free_port
from tests.kit.processes import Installation, wait_until
from tests.kit.proxy import Balancer
from tests.kit.services import Service, new_database, postgres, rabbitmq
from workers.app import QUEUES

PROCESSES = ("api-1", "api-2", "relay", "validator-1", "validator-2", "worker", "issuer", "sequencer", "beat")
_UP = 180.0


class Ground:
    """What runs, and how each part of it is killed and comes back."""

    def __init__(self, installation: Installation, front: Balancer, services: dict[str, Service]) -> None:
        self.installation = installation
        self.front = front
        self._services = services
        self._daemons: dict[str, Daemon] = {name: service.daemons[0] for name, service in services.items()}
        self._clock = installation.room / "clock"
        self._starting: dict[str, threading.Thread] = {}
        self.ended: list[str] = []
        """Processes that ended by themselves, and the ends of their logs."""

    def kill(self, *names: str) -> None:
        """Kill -9 processes with their children, and start them again at once, as a supervisor does."""
        self.ready(*names)
        for name in names:
            self.installation.kill(name)
        for name in names:
            self._start(name)

    def ready(self, *names: str) -> None:
        """Wait for processes that were started again; start again who has ended by itself, and remember that."""
        for name in names or PROCESSES:
            if name in self._starting:
                self._starting.pop(name).join(_UP)
            one = self.installation.running.get(name)
            if one is None or one.process.poll() is not None:
                why = "did not start" if one is None else f"ended with {one.process.returncode}:\n{one.tail()}"
                self.ended.append(f"{name} {why}")
                self.installation.start(name)

    def _start(self, name: str) -> None:
        # Nobody waits for it here: the others are at work meanwhile.
        thread = threading.Thread(target=self._started, args=(name,), daemon=True)
        self._starting[name] = thread
        thread.start()

    def _started(self, name: str) -> None:
        # What went wrong shows in `ready`.
        with suppress(AssertionError):
            self.installation.start(name)

    def pause(self, name: str, seconds: float) -> None:
        """Stop a process with its children where it stands, and let it go on after a while."""
        self.ready(name)
        group = self.installation.running[name].process.pid
        os.killpg(group, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.killpg(group, signal.SIGCONT)

    def kill_service(self, name: str) -> float:
        """Kill -9 PostgreSQL or RabbitMQ with all its children; return when it answered again."""
        self._daemons[name] = self._daemons[name].crash()
        wait_until(self._answers(name), _UP)
        return time.monotonic()

    def empty_broker(self, *, delete: bool) -> None:
        """Take all wake-ups out of the queues, or the queues themselves."""
        for name in QUEUES:
            # A connection for each: a queue of which only the name is left (workers/consumer.py) closes it with 541.
            with kombu.Connection(self._services["rabbitmq"].url, connect_timeout=5) as connection:
                errors = (*connection.connection_errors, *connection.channel_errors)
                with suppress(*errors), connection.channel() as channel:
                    queue = kombu.Queue(f"{self.installation.prefix}.{name}", channel=channel)
                    queue.delete() if delete else queue.purge()

    def move_clock(self, seconds: float) -> None:
        """Let the machine's clock be wrong by so much, for all processes of the server."""
        fresh = self._clock.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.rename(self._clock)

    def close(self) -> None:
        """Stop database and broker."""
        for name, service in self._services.items():
            self._daemons[name].stop()
            service.stop()

    def _answers(self, name: str) -> Callable[[], bool]:
        def sql() -> bool:
            try:
                return bool(self.installation.sql("SELECT 1"))
            except Exception:
                return False

        def amqp() -> bool:
            try:
                with kombu.Connection(self._services["rabbitmq"].url, connect_timeout=3) as connection:
                    connection.connect()
            except Exception:
                return False
            return True

        return sql if name == "postgres" else amqp


@contextmanager
def ground(room: Path) -> Iterator[Ground]:
    """Start everything in a folder, and stop it at the end."""
    os.environ["KMB_TEST_PRIVATE_SERVICES"] = "1"
    state = room / "services"
    services: dict[str, Service] = {}
    ports = [free_port(), free_port()]
    front = Balancer(LOOPBACK, ports)
    made: Ground | None = None
    try:
        services["postgres"] = postgres(state)
        services["rabbitmq"] = rabbitmq(state)
        installation = Installation(
            room / "server", new_database(services["postgres"].url), services["rabbitmq"].url, port=front.port
        )
        installation.room.mkdir()
        installation.ports = dict(zip(("api-1", "api-2"), ports, strict=True))
        clock = Path(__file__).parents[1] / "kit" / "clock"
        installation.variables = {
            "KMB_PUBLIC_URL": f"http://{LOOPBACK}:{front.port}",
            "KMB_TEST_CLOCK": str(installation.room / "clock"),
            "PYTHONPATH": str(clock),
            # Who is probed here hammers: fairness has its own tests.
            "KMB_LIMIT_SENDER_DAILY": "1000000",
        }
        (installation.room / "clock").write_text("0")
        with installation:
            installation.start(*PROCESSES)
            made = Ground(installation, front, services)
            yield made
    finally:
        front.close()
        if made is not None:
            made.close()
        else:
            for service in services.values():
                service.stop()
