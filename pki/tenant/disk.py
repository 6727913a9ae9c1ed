"""Files that are written whole, for the owner's eyes, and survive a power cut."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path
from typing import BinaryIO

from pki.core.errors import ConflictError


def private_folder(path: Path) -> Path:
    """Make a folder, and its parents, that only the owner can enter."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_new(path: Path, content: bytes) -> bool:
    """Write ``content`` to a new file of mode 0600; False when there is a file already, which stays as it is."""
    temporary = _written_beside(path, content)
    try:
        # A hard link is the one atomic step that refuses to replace what is there.
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    return True


def replace(path: Path, content: bytes) -> None:
    """Write ``content`` to a file of mode 0600, in the place of what was there."""
    temporary = _written_beside(path, content)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def exclusive(path: Path) -> BinaryIO:
    """Return a file with our process's number in it, locked until it is closed: nobody else can lock it meanwhile.

    ConflictError names who has it. The lock ends with the process, however that ends.
    """
    file = path.open("a+b")
    try:
        path.chmod(0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        who = file.read(20).decode(errors="replace").strip()
        file.close()
        raise ConflictError("An agent runs already", on=f"{path.parent}: process {who or 'unknown'}") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n".encode())
    file.flush()
    return file


def holder(path: Path) -> str | None:
    """Return the number of the process that has an `exclusive` file now, or None when nobody has."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        try:
            # Shared, and given back at once: who looks is not in the way of others who look.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return file.read(20).decode(errors="replace").strip() or "unknown"
    return None


def _written_beside(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
