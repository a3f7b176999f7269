"""A lock between processes, held on a file and given back by the kernel whatever happens to its holder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgemm.errors import EngineError


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file at `path`, created if need be, for the block; wait for whoever else holds it.

    `on_wait` is called once before waiting. The wait can be interrupted with Ctrl-C. A holder that dies, even by
    kill -9, releases the lock. Raises EngineError if the file cannot be made.
    """
    while True:
        descriptor = _open(path)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait is not None:
                    on_wait()
                    on_wait = None
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever held it may have deleted the file: a lock on a file without a name keeps nobody out.
            if _same_file(descriptor, path):
                yield
                return
        finally:
            os.close(descriptor)


def remove_if_free(path: Path) -> bool:
    """Delete the lock file unless a process holds it; return whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EngineError(
            f"Cannot lock {path}: {error.strerror}. Set EDGEMM_CACHE to a folder that you can write."
        ) from error


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino)
