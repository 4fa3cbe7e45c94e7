import os
import time
from pathlib import Path

import pytest

from jaxscale.errors import MachineError
from jaxscale.store.lock import WriterLock, lock_file
from tests.jaxscale.store import faults


def _hold(path: Path) -> None:
    WriterLock(path)
    faults.mark_acknowledged(path.with_name("held"), str(os.getpid()))
    time.sleep(60)


def test_the_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    with WriterLock(tmp_path / "x"), pytest.raises(MachineError, match=f"pid {os.getpid()} on "):
        WriterLock(tmp_path / "x")


def test_other_directories_are_free(tmp_path: Path) -> None:
    with WriterLock(tmp_path / "x"), WriterLock(tmp_path / "y"):
        pass


def test_a_released_lock_leaves_no_file(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path / "x")
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == []
    WriterLock(tmp_path / "x").release()


def test_a_stale_file_is_not_a_lock(tmp_path: Path) -> None:
    lock_file(tmp_path / "x").write_text('{"pid": 1}')
    WriterLock(tmp_path / "x").release()


def test_a_killed_holder_loses_the_lock(tmp_path: Path) -> None:
    process = faults.start(_hold, tmp_path / "x")
    while not faults.acknowledged(tmp_path / "held"):
        assert process.is_alive()
        time.sleep(0.01)
    with pytest.raises(MachineError, match=f"pid {process.pid} "):
        WriterLock(tmp_path / "x")
    process.kill()
    process.join()
    WriterLock(tmp_path / "x").release()
