"""What the durable layer asks of the file system: free space, fsync, and two names exchanged in one step."""

import ctypes
import errno
import os
from pathlib import Path

from jaxscale.errors import MachineError, UsageError

_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def require_free(path: Path, needed_bytes: int, what: str) -> None:
    """Refuses to start a write that can't fit.

    Args:
      path: where the write goes; the nearest directory above it that exists is asked.
      needed_bytes: what the write takes.
      what: what is written, for the message.

    Raises:
      MachineError: fewer bytes are free.
    """
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    stat = os.statvfs(existing)
    free_bytes = stat.f_bavail * stat.f_frsize
    if free_bytes < needed_bytes:
        raise MachineError(
            f"{what} needs {needed_bytes:,} bytes and {existing} has {free_bytes:,} free; "
            "free some space, keep fewer checkpoints, or write elsewhere"
        )


def fsync(path: Path) -> None:
    """Makes a file's bytes, or the names in a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(path: Path) -> None:
    """`mkdir -p`, durably: the parent of every directory made is fsynced."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        fsync(made.parent)


def check_directory_above(path: Path) -> None:
    """Refuses a place that can't be made because something above it is a file.

    Raises:
      UsageError: naming that file.
    """
    above = next(p for p in path.absolute().parents if p.exists())
    if not above.is_dir():
        raise UsageError(f"{path} can't be made: {above} is no folder; choose another place")


def exchange(first: Path, second: Path) -> bool:
    """Exchanges two names in one step.

    Returns:
      False, with nothing done, where the system or the file system can't.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))
