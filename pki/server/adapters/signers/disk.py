"""Files of the CA: each appears whole and on the disk for good, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PUBLIC, SECRET = 0o644, 0o600


def create_folder(folder: Path, files: Mapping[str, tuple[bytes, int]], *, mode: int) -> bool:
    """Make a folder with these files (name, content, mode) at once; False when somebody else's is there and stays.

    Folders below it, by names with a slash, are for their owner only.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        below = {made / name for name in files if "/" in name}
        for inner in {path.parent for path in below}:
            inner.mkdir(mode=0o700)
        for name, (content, bits) in files.items():
            _write(made / name, content, bits)
        made.chmod(mode)
        for inner in [*{path.parent for path in below}, made]:
            sync(inner)
        try:
            made.rename(folder)
        except OSError as error:
            # Never replaced: it is not empty.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            return False
        sync(folder.parent)
        return True
    finally:
        shutil.rmtree(made, ignore_errors=True)


def create(path: Path, content: bytes, mode: int) -> bool:
    """Make a file; False when one is there, which stays."""
    with _beside(path, content, mode) as made:
        try:
            os.link(made, path)
        except FileExistsError:
            return False
        sync(path.parent)
    return True


def replace(path: Path, content: bytes, mode: int) -> None:
    """Make a file, in the place of one that is there."""
    with _beside(path, content, mode) as made:
        made.rename(path)
        sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file, if it is there; its folder need not be."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync(path.parent)


def private_folder(folder: Path) -> None:
    """Make a folder for its owner only, unless it is there."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(folder.parent)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: what is read, decided and written in between is one step for other processes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sync(directory: Path) -> None:
    """Bring a folder's names to the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _beside(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    made = path.parent / f".{path.name}-{secrets.token_hex(8)}"
    try:
        _write(made, content, mode)
        yield made
    finally:
        with contextlib.suppress(FileNotFoundError):
            made.unlink()


def _write(path: Path, content: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
