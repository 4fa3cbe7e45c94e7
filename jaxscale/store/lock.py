"""One writer per directory: a lock file beside it that the kernel frees when its holder dies, however it dies."""

import fcntl
import json
import os
import socket
import sys
from pathlib import Path
from types import TracebackType

from jaxscale.errors import MachineError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class WriterLock:
    """The right to write `path`; held from construction until `release` or the end of the process.

    Args:
      path: what is to be written; the lock file is `.<name>.lock` beside it.

    Raises:
      MachineError: another writer, which is named, holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = lock_file(path)
        self._descriptor: int | None = self._acquire()

    def release(self) -> None:
        """Gives the lock back; a second call does nothing."""
        if self._descriptor is None:
            return
        # Removed while still locked: whoever waits on this inode sees that it has lost its name, and tries again.
        self.file.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> "WriterLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _acquire(self) -> int:
        while True:
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 4096, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise MachineError(
                    f"{self.path} is being written by another process: {_describe(holder)}; "
                    "wait for it, stop it, or write elsewhere"
                ) from None
            if self._still_named(descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _holder().encode() + b"\n", 0)
                return descriptor
            os.close(descriptor)

    def _still_named(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.file))
        except FileNotFoundError:
            return False


def lock_file(path: Path) -> Path:
    """The lock file of `path`.

    >>> lock_file(Path("runs/a")).as_posix()
    'runs/.a.lock'
    """
    return path.parent / f".{path.name}.lock"


def _holder() -> str:
    boot_id = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
    command = " ".join(sys.argv)[:1000]
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "boot_id": boot_id, "command": command})


def _describe(holder: str) -> str:
    try:
        known = json.loads(holder)
        return f"pid {known['pid']} on {known['host']} ({known['command']})"
    except (ValueError, KeyError, TypeError):
        return "its name is not known yet"
