"""A simulated power cut right after an acknowledgement: what was acknowledged is there and whole."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxscale.store import commit
from jaxscale.store.checkpoints import Checkpoints
from jaxscale.store.verify import verify
from tests.jaxscale.store import faults
from tests.jaxscale.store.file_systems import PowerCutDisk

STATE = {"w": np.arange(3000, dtype=np.float32), "count": np.int32(7)}


@pytest.fixture
def power(tmp_path: Path) -> Iterator[PowerCutDisk]:
    disk = PowerCutDisk(tmp_path)
    yield disk
    disk.close()


def write(path: Path, content: str) -> None:
    with commit.draft(path, format="test", version=1, replace=True) as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "a.txt").write_text(content)


def expect_content(path: Path, content: str) -> None:
    if not commit.is_committed(path):
        faults.COUNTS["lost"] += 1
    commit.open_committed(path, check="full")
    assert (path / "sub" / "a.txt").read_text() == content


def test_the_cut_loses_what_is_not_durable(power: PowerCutDisk) -> None:
    """The control: without it, the other tests might pass because nothing is ever lost."""
    (power.path / "plain.txt").write_text("written, not fsynced")
    power.cut()
    assert not (power.path / "plain.txt").exists()


def test_a_committed_directory(power: PowerCutDisk) -> None:
    write(power.path / "deep" / "er" / "x", "one")
    power.cut()
    expect_content(power.path / "deep" / "er" / "x", "one")


def test_a_replaced_directory(power: PowerCutDisk) -> None:
    write(power.path / "x", "one")
    write(power.path / "x", "two")
    power.cut()
    expect_content(power.path / "x", "two")


@pytest.mark.parametrize("failpoint", ["commit.before_fsync", "commit.before_rename", "commit.after_rename"])
def test_a_writer_that_dies_with_the_power(power: PowerCutDisk, failpoint: str) -> None:
    write(power.path / "x", "one")
    faults.run_until_killed(write, power.path / "x", "two", failpoint=failpoint)
    power.cut()
    commit.open_committed(power.path / "x", check="full")
    assert (power.path / "x" / "sub" / "a.txt").read_text() in ("one", "two")
    write(power.path / "x", "three")
    expect_content(power.path / "x", "three")
    assert sorted(p.name for p in power.path.iterdir()) == ["lost+found", "x"]


def test_a_checkpoint(power: PowerCutDisk) -> None:
    with Checkpoints(power.path / "c", keep_last=1) as checkpoints:
        checkpoints.save(1, STATE, {"step": 1})
        checkpoints.save(2, STATE, {"step": 2})
    power.cut()
    checkpoints = Checkpoints(power.path / "c")
    if checkpoints.latest() != 2:
        faults.COUNTS["lost"] += 1
    state, metadata = checkpoints.restore(2, STATE)
    np.testing.assert_array_equal(state["w"], STATE["w"])
    assert metadata == {"step": 2}
    assert not verify(power.path / "c").damages


def test_a_best_mark(power: PowerCutDisk) -> None:
    with Checkpoints(power.path / "c") as checkpoints:
        checkpoints.save(1, STATE, {})
        checkpoints.save(2, STATE, {})
        checkpoints.set_best(1)
        checkpoints.set_best(2)
    power.cut()
    assert Checkpoints(power.path / "c").best() == 2
