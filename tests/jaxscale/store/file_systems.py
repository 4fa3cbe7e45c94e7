"""File systems made for one test: a small tmpfs that fills up, an ext4 whose power can be cut.

Where mounting is refused the test is skipped, loudly.
"""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jaxscale.store import faults

_EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), linux/fs/ext4/ext4.h
_NO_LOG_FLUSH = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH: what is not in the journal on disk by now is lost


@contextlib.contextmanager
def small_tmpfs(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mounts a tmpfs of that size at `folder`."""
    folder.mkdir()
    _run_or_skip("a full disk", "mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class PowerCutDisk:
    """An ext4 in a file, mounted through a loop device. Its power can be cut and comes back."""

    def __init__(self, folder: Path) -> None:
        self._image, self.path = folder / "image", folder / "disk"
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(64 << 20)
        _run_or_skip("a power cut", "mkfs.ext4", "-q", "-F", str(self._image))
        self._mount()

    def cut(self) -> None:
        """Cuts the power: every write that was not made durable is lost; then mounts the disk again."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)
        self.close()
        self._mount()
        faults.COUNTS["cuts"] += 1

    def close(self) -> None:
        """Unmounts the disk."""
        subprocess.run(["umount", str(self.path)], check=True)

    def _mount(self) -> None:
        _run_or_skip("a power cut", "mount", "-o", "loop", str(self._image), str(self.path))


def _run_or_skip(what: str, *command: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"NOT TESTED: {what}: there is no {command[0]} here")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"NOT TESTED: {what}: {' '.join(command[:3])} is refused here: {done.stderr.strip()}; run as root")
