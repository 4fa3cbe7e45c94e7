"""Bit flips, truncated, deleted, additional and swapped files: every one is found, and the file named."""

import random
import re
import shutil
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from jaxscale.errors import VerificationError
from jaxscale.store import arrays, commit
from jaxscale.store.checkpoints import Checkpoints
from jaxscale.store.verify import verify
from tests.jaxscale.store import faults

STATE = {"w": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32), "count": np.int32(7)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run-like folder with every kind of file the durable layer writes, and some it does not cover."""
    folder = tmp_path_factory.mktemp("run")
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(1, STATE, {"step": 1})
        checkpoints.save(2, STATE, {"step": 2})
        checkpoints.set_best(1)
    with commit.draft(folder / "vectors", format="vectors", version=1) as draft:
        with commit.draft(draft.path / "shard-0", format="vectors.shard", version=1) as shard:
            arrays.write(shard.path, "vectors", STATE["w"])
            (shard.path / "ids.txt").write_text("a\nb\n")
        (draft.path / "contract.json").write_text('{"space": "x", "dims": 64}\n')
        (draft.path / "index.faiss").write_bytes(np.random.default_rng(1).bytes(5000))
        draft.counts["recall"] = 0.96
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


def covered_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size and p.name != "metrics.jsonl")


def expect_named(folder: Path, file: Path) -> None:
    damaged = [damage.file for damage in verify(folder).damages]
    if file not in damaged:
        faults.COUNTS["silent"] += 1
    assert damaged == [file]


def _flips(folder: Path, num_flips: int, seed: int) -> None:
    files = covered_files(folder)
    assert {file.suffix for file in files} >= {".json", ".txt", ".faiss", ""}
    random_bits = random.Random(seed)
    for trial in range(num_flips):
        file = files[trial % len(files)]
        content = file.read_bytes()
        faults.flip_bit(file, random_bits)
        expect_named(folder, file)
        file.write_bytes(content)
    assert not verify(folder).damages


def test_every_bit_flip_is_found(folder: Path) -> None:
    _flips(folder, num_flips=40, seed=0)


@pytest.mark.slow
def test_a_thousand_bit_flips_are_found(folder: Path) -> None:
    _flips(folder, num_flips=1000, seed=1)


def _flips_before_restore(folder: Path, num_flips: int, seed: int) -> None:
    checkpoints = Checkpoints(folder / "checkpoints")
    files = covered_files(checkpoints.path(2))
    random_bits = random.Random(seed)
    for trial in range(num_flips):
        file = files[trial % len(files)]
        content = file.read_bytes()
        faults.flip_bit(file, random_bits)
        faults.COUNTS["silent"] += 1  # until it is found
        with pytest.raises(VerificationError, match=re.escape(str(file))):
            checkpoints.restore(2, STATE)
        faults.COUNTS["silent"] -= 1
        file.write_bytes(content)
    np.testing.assert_array_equal(checkpoints.restore(2, STATE)[0]["w"], STATE["w"])


def test_a_flipped_checkpoint_is_not_restored(folder: Path) -> None:
    _flips_before_restore(folder, num_flips=20, seed=2)


@pytest.mark.slow
def test_many_flipped_checkpoints_are_not_restored(folder: Path) -> None:
    _flips_before_restore(folder, num_flips=300, seed=3)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "run"))


@pytest.mark.parametrize("change", ["truncate", "delete", "empty", "grow"])
def test_every_other_change_is_found(copy: Path, change: str) -> None:
    for file in covered_files(copy):
        if change == "delete" and file.parent.name in ("vectors", "shard-0") and file.name == "MANIFEST.json":
            continue  # the next test
        content = file.read_bytes()
        if change == "delete":
            file.unlink()
        else:
            file.write_bytes({"truncate": content[:-1], "empty": b"", "grow": content + b"\0"}[change])
        expect_named(copy, file)
        file.write_bytes(content)
    assert not verify(copy).damages


def test_a_nested_manifest_is_missed_by_the_one_above(copy: Path) -> None:
    (copy / "vectors/shard-0/MANIFEST.json").unlink()
    expect_named(copy, copy / "vectors/shard-0/MANIFEST.json")


def test_an_additional_file_is_found(copy: Path) -> None:
    for directory in (copy / "vectors", copy / "vectors/shard-0", copy / "checkpoints/step_00000001/orbax/state/w/c"):
        (directory / "extra").write_text("")
        expect_named(copy, directory / "extra")
        (directory / "extra").unlink()


def test_a_chunk_of_other_values_with_a_valid_checksum_is_found(copy: Path) -> None:
    chunk = copy / "checkpoints/step_00000001/orbax/state/count/c"
    other = (8).to_bytes(4, "little")
    chunk.write_bytes(other + google_crc32c.value(other).to_bytes(4, "little"))
    expect_named(copy, chunk)
