"""The durable layer's speed: save and verified load beside Orbax alone and dd with fsync, and how async saves block.

Command: python benchmarks/store.py --size-mb 1024 --runs 5 --out benchmarks/results/store.jsonl

One JSON row per figure, medians of several runs. The contestants take turns: a noisy disk is noisy to all. Loads
read from the page cache, as a restart on the same machine does, unless --cold drops it first (root only).
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from jaxscale.store.checkpoints import Checkpoints

MB = 1_000_000
NUM_LEAVES = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=1024, help="size of the state")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="also append the rows to this file")
    parser.add_argument("--dir", type=Path, default=None, help="where to write; a temporary folder here by default")
    parser.add_argument("--cold", action="store_true", help="drop the page cache before each load (root only)")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=flags.dir or Path.cwd(), prefix="bench-store-") as folder:
        rows = measure(Path(folder), flags.size_mb * MB, flags.runs, flags.cold)
    for row in rows:
        line = json.dumps(row)
        print(line, flush=True)
        if flags.out is not None:
            flags.out.parent.mkdir(parents=True, exist_ok=True)
            with flags.out.open("a") as file:
                file.write(f"{line}\n")


def measure(folder: Path, num_bytes: int, runs: int, cold: bool) -> list[dict[str, Any]]:
    """Times every contestant `runs` times, in turn, and returns the rows."""
    state = make_state(num_bytes)
    times: dict[str, list[float]] = {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = function()
        times.setdefault(name, []).append(time.perf_counter() - start)
        return result

    for run in range(runs + 1):
        if run == 1:
            times.clear()  # the first run warms up: imports, allocator, file system
        one_run(folder / f"run-{run}", state, timed, cold)
        shutil.rmtree(folder / f"run-{run}")
    return [*throughput_rows(times, num_bytes, runs, cold), blocking_row(times, num_bytes, runs)]


def one_run(folder: Path, state: dict[str, jax.Array], timed: Callable[..., Any], cold: bool) -> None:
    """Each contestant once."""
    folder.mkdir()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)
    with Checkpoints(folder / "ours") as checkpoints:
        timed("save.jaxscale", lambda: checkpoints.save(1, state, {}))
        before_load(cold)
        restored = timed("load.jaxscale", lambda: jax.block_until_ready(checkpoints.restore(1, abstract, sharding)))
        check(restored[0], state)
        del restored
    settle()
    timed("save.orbax", lambda: ocp.save(folder / "orbax", state))
    before_load(cold)
    loaded = timed("load.orbax", lambda: jax.block_until_ready(ocp.load(folder / "orbax", abstract)))
    check(loaded, state)
    del loaded
    settle()
    num_blocks = sum(x.nbytes for x in state.values()) // MB
    dd = ["dd", "if=/dev/zero", f"of={folder / 'dd'}", f"bs={MB}", f"count={num_blocks}", "conv=fsync", "status=none"]
    timed("save.dd", lambda: subprocess.run(dd, check=True))
    settle()
    shutil.rmtree(folder / "ours")
    timed("copy", lambda: jax.tree.map(np.array, state))
    with Checkpoints(folder / "ours") as checkpoints:
        checkpoints.acquire()  # makes the folder, durably; a training run does it once
        timed("first_block", lambda: checkpoints.save_async(1, state, {}))
        checkpoints.wait()
        timed("block", lambda: checkpoints.save_async(2, state, {}))
        checkpoints.wait()
    settle()


def make_state(num_bytes: int) -> dict[str, jax.Array]:
    """Random float32 matrices of equal size; random, so that no contestant gains by compressing."""
    rows = num_bytes // (NUM_LEAVES * 1024 * 4)
    keys = jax.random.split(jax.random.key(0), NUM_LEAVES)
    return {f"layer_{i:02d}": jax.random.normal(key, (rows, 1024)) for i, key in enumerate(keys)}


def check(found: dict[str, jax.Array], expected: dict[str, jax.Array]) -> None:
    """Both sides must have moved the same values."""
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name][0]), np.asarray(value[0]))


def settle() -> None:
    """Lets nobody pay for what another left to be written."""
    os.sync()


def before_load(cold: bool) -> None:
    settle()
    if cold:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")


def throughput_rows(times: dict[str, list[float]], num_bytes: int, runs: int, cold: bool) -> list[dict[str, Any]]:
    """One row for save and one for load: MB/s of each contestant and the ratios to ours."""
    rows = []
    for what, peers in (("save", ("orbax", "dd")), ("load", ("orbax",))):
        speeds = {who: num_bytes / MB / statistics.median(times[f"{what}.{who}"]) for who in ("jaxscale", *peers)}
        row = {"figure": f"store.{what}_mb_s", "unit": "MB/s", "durable": what == "save" or None, "cold": cold}
        row |= {who: round(speed, 1) for who, speed in speeds.items()}
        row |= {f"ratio_to_{peer}": round(speeds["jaxscale"] / speeds[peer], 3) for peer in peers}
        row |= {"runs_s": {who: [round(t, 3) for t in times[f"{what}.{who}"]] for who in speeds}}
        note = {
            "save": "ours and dd are fsynced when they return, Orbax alone is not",
            "load": "ours checks every byte (manifest and codec), Orbax alone checks nothing",
        }[what]
        rows.append(row | {"note": note} | conditions(num_bytes, runs))
    return rows


def blocking_row(times: dict[str, list[float]], num_bytes: int, runs: int) -> dict[str, Any]:
    """How long `save_async` blocks, beside one host copy of the state."""
    blocked_s, first_s, copy_s = (statistics.median(times[name]) for name in ("block", "first_block", "copy"))
    return {
        "figure": "store.async_block_s",
        "unit": "s",
        "jaxscale": round(blocked_s, 4),
        "jaxscale_first_save": round(first_s, 4),
        "host_copy": round(copy_s, 4),
        "ratio_to_host_copy": round(blocked_s / copy_s, 3),
        "ratio_of_first_save": round(first_s / copy_s, 3),
        "within_limit": max(blocked_s, first_s) <= max(1.2 * copy_s, 0.05),
        "runs_s": {name: [round(t, 4) for t in times[name]] for name in ("block", "first_block", "copy")},
        "note": "limit: 1.2 host copies, or 50 ms; host copy: jax.tree.map(np.array, state); a run's first save "
        "allocates the memory that the later ones reuse",
    } | conditions(num_bytes, runs)


def conditions(num_bytes: int, runs: int) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "size_mb": num_bytes // MB,
        "num_leaves": NUM_LEAVES,
        "runs": runs,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "jax": jax.__version__,
        "load_average": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    main()
