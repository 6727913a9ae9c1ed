"""What a worker and its child processes share: a folder in which the children count and the parent says to stop."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, multiprocess
from prometheus_client.registry import Collector

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where the children's figures lie: prometheus_client reads it when it is imported, so only they count there."""


_STOPPING = "stopping"


def say_stop() -> None:
    """Tell this worker's children to begin nothing more; a task that runs ends with the batch it is at."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        with suppress(OSError):
            (Path(folder) / _STOPPING).touch()


def stopping() -> bool:
    """Tell, in a child, whether its parent is to stop: a look at a file, since signals are Celery's own business."""
    folder = os.environ.get(FOLDER_VARIABLE)
    # Without its folder, its parent is gone.
    return folder is not None and (os.path.exists(f"{folder}/{_STOPPING}") or not os.path.exists(folder))  # noqa: PTH110


@contextmanager
def counted_children() -> Iterator[CollectorRegistry]:
    """Give the children that are started meanwhile a folder to count in; return what all of them have counted."""
    folder = tempfile.mkdtemp(prefix="keymailbox-worker-")
    os.environ[FOLDER_VARIABLE] = folder
    registry = CollectorRegistry()
    registry.register(_Children(Path(folder)))
    ProcessCollector(registry=registry)
    try:
        yield registry
    finally:
        del os.environ[FOLDER_VARIABLE]
        shutil.rmtree(folder, ignore_errors=True)


# It has no types.
_multiprocess: Any = multiprocess


class _Children(Collector):
    """Adds up what children have counted; gauges only of those that live."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = _multiprocess.MultiProcessCollector(None, path=str(folder))

    def collect(self) -> Iterable[Metric]:
        for file in self._folder.glob("gauge_live*_*.db"):
            pid = int(file.stem.rpartition("_")[2])
            with suppress(ProcessLookupError):
                os.kill(pid, 0)
                continue
            _multiprocess.mark_process_dead(pid, str(self._folder))
        found: Iterable[Metric] = self._files.collect()
        return found

    def describe(self) -> Iterable[Metric]:
        return []
