"""A disk that really fills up: one clear error, nothing half written, the older data untouched."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxscale.errors import MachineError
from jaxscale.store import arrays, commit, disk
from jaxscale.store.checkpoints import Checkpoints
from tests.jaxscale.store.file_systems import small_tmpfs

SMALL = {"w": np.ones((1 << 18,), np.float32)}  # 1 MiB
LARGE = {"w": np.ones((1 << 21,), np.float32)}  # 8 MiB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_tmpfs(tmp_path / "disk", 4 << 20) as path:
        yield path


def test_the_preflight_names_the_bytes(small_disk: Path) -> None:
    with Checkpoints(small_disk / "c") as checkpoints:
        checkpoints.save(1, SMALL, {})
        with pytest.raises(
            MachineError, match=r"checkpoint 2 needs 8,\d{3},\d{3} bytes and .* has [23],\d{3},\d{3} free"
        ):
            checkpoints.save(2, LARGE, {})
        assert checkpoints.steps() == [1]


def test_a_disk_that_fills_up_during_a_save(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpoints(small_disk / "c", keep_last=1) as checkpoints:
        checkpoints.save(1, SMALL, {})
        with monkeypatch.context() as patched:
            patched.setattr(disk, "require_free", lambda *_: None)
            with pytest.raises(MachineError, match="the disk is full"):
                checkpoints.save(2, LARGE, {})
        assert sorted(p.name for p in (small_disk / "c").iterdir()) == ["step_00000001"]
        np.testing.assert_array_equal(checkpoints.restore(1, SMALL)[0]["w"], SMALL["w"])
        checkpoints.save(2, SMALL, {})
        assert checkpoints.steps() == [2]


@pytest.mark.parametrize("what", ["file", "array"])
def test_a_disk_that_fills_up_during_a_draft(small_disk: Path, what: str) -> None:
    with commit.draft(small_disk / "x", format="test", version=1) as draft:
        arrays.write_tree(draft.path, SMALL)

    def replace() -> None:
        with commit.draft(small_disk / "x", format="test", version=1, replace=True) as draft:
            if what == "file":
                (draft.path / "large").write_bytes(bytes(8 << 20))
            else:
                arrays.write_tree(draft.path, LARGE)

    with pytest.raises(MachineError, match="the disk is full"):
        replace()
    assert [p.name for p in small_disk.iterdir()] == ["x"]
    commit.open_committed(small_disk / "x", check="full")
