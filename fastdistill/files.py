"""Files that are whole or absent: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.(?P<process>\d{1,9})\.tmp")


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a reader never sees part of it and a crash never leaves part of it.

    Permissions follow the umask, as of any new file.

    Args:
        path: where; its folder is created.
        content: all of it.

    Raises:
        OSError: naming the file; what stood there before still does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name of this process's own, lest two writers of one file tear each other's
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(temporary, content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync(path.parent)


def write_synced(path: Path, content: bytes) -> None:
    """Writes a file through to the disk. A crash may leave part of it, so it belongs under a temporary name.

    Raises:
        OSError: naming the file.
    """
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
        _write_all(descriptor, content)
        os.fsync(descriptor)


def append(path: Path, content: bytes) -> None:
    """Appends to a file by one write, so that a killed process leaves at most its last piece unfinished.

    Raises:
        OSError: naming the file.
    """
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as descriptor:
        _write_all(descriptor, content)


def sync(path: Path) -> None:
    """Makes what a file holds, or the renames in a folder, survive a power loss.

    Raises:
        OSError: naming the path.
    """
    with _opened(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


def sweep(folder: Path) -> None:
    """Removes the temporaries that dead writers, of files or of exports, have left in a folder."""
    for path in folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if not found or _alive(int(found["process"])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder, created where it is missing, against other processes; the system lets go when this one dies.

    A folder that is still empty at the end is removed.

    Raises:
        ValueError: when another process holds it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ValueError(
                f"expected {folder} for this process alone, got one that another process is writing to: wait for it, "
                "or choose another --name"
            ) from error
        if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
            break
        os.close(descriptor)  # its last holder has removed it between our opening and our locking
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # refuses when there is something inside
        os.close(descriptor)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor, whose calls' errors name the path they do not know."""
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
