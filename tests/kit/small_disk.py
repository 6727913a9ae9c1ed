"""A disk that is small and can be filled: a file system in memory, mounted for the test."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kit.daemons import ServiceMissingError


class SmallDisk:
    """Where it is mounted, and what fills it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Write until not one byte more fits."""
        handle = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        os.write(handle, bytes(size))
            try:
                os.write(handle, b"x")
            except OSError as error:
                assert error.errno == errno.ENOSPC
        finally:
            os.close(handle)

    def free(self) -> None:
        """Make room again."""
        self._ballast.unlink()


@contextmanager
def small_disk(megabytes: int) -> Iterator[SmallDisk]:
    """Mount a disk of this size, open to every user; needs the right to mount, as root in CI has."""
    # Not in the test's own folder: a database's user has to get there.
    path = Path(tempfile.mkdtemp(prefix="keymailbox-disk-", dir="/var/tmp"))
    path.chmod(0o755)
    options = f"size={megabytes}m,mode=755"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, check=False)
    if done.returncode:
        path.rmdir()
        why = done.stderr.decode(errors="replace").strip()
        raise ServiceMissingError(f"a small disk cannot be mounted: {why}. Next: unshare -Urm make test, or as root")
    try:
        yield SmallDisk(path)
    finally:
        # Lazily: who still has a file open there must not keep it.
        subprocess.run(["umount", "--lazy", str(path)], check=True)
        path.rmdir()
