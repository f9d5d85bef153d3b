"""Who is still alive: locks that end with the process that holds them, so that what a dead one left can be told."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imu_cli import signals
from imu_cli.errors import ImuError

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL)
"""What a file system that knows no such locks answers."""
WAIT, PAUSE = 30.0, 0.01
"""Seconds to wait for another run that puts its files in their places, which takes milliseconds; and between two looks."""

_taken: set[int] = set()
_ours: set[tuple[int, int]] = set()
"""Folders that this process holds: what holds one may call what wants to hold it."""


def _try(descriptor: int) -> bool | None:
    """Whether the lock is ours now; None where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the file that is open still stands under its name: its last holder may have removed it meanwhile."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)


def take(path: Path, *, sure: bool = False) -> int | None:
    """The descriptor of a lock file, made if it is not there, that is ours until it is closed or the process ends.

    None where a living process holds it; ``sure``: also where nobody can know, for the file system has no locks.

    Raises:
        OSError: the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        got = _try(descriptor)
        ours = got is not False and not (got is None and sure) and _is_at(descriptor, path)
    except OSError:
        os.close(descriptor)
        raise
    if not ours:
        os.close(descriptor)
        return None
    _taken.add(descriptor)
    return descriptor


def release(descriptor: int) -> None:
    """Let go of a lock: what it stood for is a dead run's from now on, if it is still there."""
    _taken.discard(descriptor)
    os.close(descriptor)


def _forked() -> None:
    """A child that was forked holds nothing: it may outlive a parent that is killed."""
    for descriptor in _taken:
        with suppress(OSError):
            os.close(descriptor)
    _taken.clear()


os.register_at_fork(after_in_child=_forked)


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """The short moment in which files of a folder change their places belongs to one run at a time; nothing is left of it.

    Raises:
        ImuError: another process holds it for longer than any moment.
        OSError: the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    which = (found.st_dev, found.st_ino)
    if which in _ours:
        os.close(descriptor)
        yield
        return
    try:
        end = time.monotonic() + WAIT
        while _try(descriptor) is False:
            signals.check()
            if time.monotonic() > end:
                raise ImuError(f"{folder}: another process has been holding it for {WAIT:.0f} seconds; end it, or wait")
            time.sleep(PAUSE)
        _ours.add(which)
        yield
    finally:
        _ours.discard(which)
        os.close(descriptor)
