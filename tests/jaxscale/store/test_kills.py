"""kill -9 at every named failpoint of a save: what was acknowledged is there, whole, or a newer complete one is."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxscale.store
from jaxscale.errors import DataError
from jaxscale.store import commit, disk, failpoints
from jaxscale.store.checkpoints import Checkpoints
from jaxscale.store.verify import verify
from tests.jaxscale.store import faults

NAMES = failpoints.names_in(Path(jaxscale.store.__file__).parent)
COMMIT = [name for name in NAMES if name.startswith("commit.")]
REMOVAL = ["commit.before_remove", "commit.removing"]
BETWEEN = "commit.between_renames"
DRAFT = [name for name in COMMIT if name not in (*REMOVAL, BETWEEN)]
SAVE = [name for name in NAMES if name != BETWEEN] + ["arrays.before_write@2", "arrays.after_write@2"]


def write(path: Path, generation: int, *, replace: bool, exchange: bool) -> None:
    if not exchange:
        disk.exchange = lambda first, second: False  # type: ignore[assignment]  # as on a file system that can't
    with commit.draft(path, format="test", version=1, replace=replace) as draft:
        for name in ("a", "b"):
            (draft.path / name).write_text(f"{generation}")
    faults.mark_acknowledged(path.with_name("acknowledged"), str(generation))


def write_first(path: Path) -> None:
    write(path, 1, replace=False, exchange=True)


def replace(path: Path) -> None:
    write(path, 2, replace=True, exchange=True)


def replace_without_exchange(path: Path) -> None:
    write(path, 2, replace=True, exchange=False)


def generation_of(path: Path) -> int:
    try:
        commit.open_committed(path, check="full")
    except DataError:
        return 0
    return int((path / "a").read_text())


def check_recovery(path: Path, attempted: int) -> None:
    """The place holds what was acknowledged or what was attempted, whole; the next writer finds nothing in its way."""
    last = max(map(int, faults.acknowledged(path.with_name("acknowledged"))), default=0)
    found = generation_of(path)
    if found < last:
        faults.COUNTS["lost"] += 1
    assert last <= found <= attempted
    write(path, 3, replace=True, exchange=True)
    assert generation_of(path) == 3
    assert sorted(p.name for p in path.parent.iterdir()) == ["acknowledged", "x"]


@pytest.mark.parametrize("failpoint", DRAFT)
def test_a_killed_first_write(tmp_path: Path, failpoint: str) -> None:
    faults.run_until_killed(write_first, tmp_path / "x", failpoint=failpoint)
    check_recovery(tmp_path / "x", attempted=1)


@pytest.mark.parametrize("failpoint", DRAFT)
def test_a_killed_replacement(tmp_path: Path, failpoint: str) -> None:
    write_first(tmp_path / "x")
    faults.run_until_killed(replace, tmp_path / "x", failpoint=failpoint)
    check_recovery(tmp_path / "x", attempted=2)


@pytest.mark.parametrize("failpoint", [*DRAFT, BETWEEN])
def test_a_killed_replacement_by_two_renames(tmp_path: Path, failpoint: str) -> None:
    write_first(tmp_path / "x")
    faults.run_until_killed(replace_without_exchange, tmp_path / "x", failpoint=failpoint)
    check_recovery(tmp_path / "x", attempted=2)


def state_of(step: int) -> dict[str, Any]:
    return {"w": np.full((64, 8), step, np.float32), "opt": {"count": np.int32(step)}}


def save(directory: Path, steps: list[int]) -> None:
    with Checkpoints(directory, keep_last=1) as checkpoints:
        for step in steps:
            checkpoints.save_async(step, state_of(step), {"step": step})
            checkpoints.wait()
            faults.mark_acknowledged(directory.with_name("acknowledged"), str(step))


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one_step")
    save(folder / "c", [1])
    return folder


def check_checkpoints(directory: Path, next_step: int) -> None:
    """The newest step is the acknowledged one or newer, whole; every other is whole too; training goes on."""
    last = max(map(int, faults.acknowledged(directory.with_name("acknowledged"))), default=0)
    with Checkpoints(directory, keep_last=1) as checkpoints:
        newest = checkpoints.latest() or 0
        if newest < last:
            faults.COUNTS["lost"] += 1
        assert newest >= last
        for step in checkpoints.steps():
            state, metadata = checkpoints.restore(step, state_of(0))
            np.testing.assert_array_equal(state["w"], state_of(step)["w"])
            assert (int(state["opt"]["count"]), metadata) == (step, {"step": step})
        checkpoints.save(next_step, state_of(next_step), {"step": next_step})
        assert checkpoints.steps() == [next_step]
    assert [p.name for p in directory.iterdir()] == [f"step_{next_step:08d}"]
    assert not verify(directory).damages


@pytest.mark.parametrize("failpoint", SAVE)
def test_a_killed_checkpoint(tmp_path: Path, one_step: Path, failpoint: str) -> None:
    shutil.copytree(one_step, tmp_path, dirs_exist_ok=True)
    faults.run_until_killed(save, tmp_path / "c", [2], failpoint=failpoint)
    check_checkpoints(tmp_path / "c", next_step=3)


def _random_kills(tmp_path: Path, num_kills: int, seed: int) -> None:
    random_times = random.Random(seed)
    first = 1
    for _ in range(num_kills):
        steps = list(range(first, first + 1000))
        faults.run_and_kill_after(save, tmp_path / "c", steps, delay_s=random_times.uniform(0.3, 1.5))
        with Checkpoints(tmp_path / "c") as checkpoints:
            first = (checkpoints.latest() or 0) + 1
        check_checkpoints(tmp_path / "c", next_step=first)
        first += 1


def test_kills_at_random_times(tmp_path: Path) -> None:
    _random_kills(tmp_path, num_kills=3, seed=0)


@pytest.mark.slow
def test_many_kills_at_random_times(tmp_path: Path) -> None:
    _random_kills(tmp_path, num_kills=30, seed=1)
