"""A GPT-2 of 13 million parameters trains on CPU: our steps beside those of transformers and torch, taking turns.

Command: python benchmarks/train_step.py --peers .venv-peers/bin/python --out benchmarks/results/train_step.jsonl

6 layers 256 wide, 32,768 tokens in the vocabulary, 8 rows of 512 tokens a step, AdamW, clipping, no dropout, tied
output: the recipe `gpt2_12m`. One JSON row per figure, medians of several turns. Both sides have the same cores, random
tokens, and weights and optimizer in float32. bfloat16 is that of matrix products; torch's autocast chooses what else it
is for. Our process has huge pages, as `jaxscale train` starts itself with them (`jaxscale.host_memory`); torch runs as
it comes.

The last row sets our step on 8 emulated devices (fsdp=8, float32, no chunks, which such a mesh pays for) beside the one
on one device: the same cores do the same arithmetic, so what is lost is what sharding costs there.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from line_process import LineProcess
from turns import rows_of

from jaxscale.host_memory import TUNABLE

HERE = Path(__file__).resolve().parent
DTYPES = ("float32", "bfloat16")
SHAPE = {"num_layers": 6, "d_model": 256, "num_heads": 4, "vocab_size": 32768, "length": 512, "num_rows": 8}
STEPS_PER_TURN = 2
NUM_DEVICES = 8


def ours(mesh: str, chunk_tokens: int | None) -> LineProcess:
    environment = {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(HERE.parent),
        "GLIBC_TUNABLES": TUNABLE,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={NUM_DEVICES}" if mesh != "data=1" else "",
    }
    words = (json.dumps(SHAPE), mesh, json.dumps(chunk_tokens))
    return LineProcess(sys.executable, HERE / "train_step_ours.py", words, environment)


def speeds(sides: Mapping[str, LineProcess], dtype: str, turns: int) -> dict[str, list[float]]:
    """Tokens per second of every side, turn by turn; the turn before the first compiles and warms up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, side in sides.items():
            seconds = side.ask(dtype=dtype, steps=STEPS_PER_TURN)["seconds"]
            if turn:
                found[name].append(STEPS_PER_TURN * SHAPE["num_rows"] * SHAPE["length"] / seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="python of the environment of locks/peers.txt")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--chunk-tokens", type=int, default=512, help="of our loss on one device")
    parser.add_argument("--out", type=Path, default=None, help="also append the rows to this file")
    flags = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.cores])
    one = ours("data=1", flags.chunk_tokens)
    peer = LineProcess(flags.peers, HERE / "train_step_peer.py", (json.dumps(SHAPE), str(flags.cores)))
    rows = []
    for dtype in DTYPES:
        found = speeds({"jaxscale": one, "transformers": peer}, dtype, flags.turns)
        rows += rows_of(found, dtype, "ratio", benchmark="train_step", unit="tokens/s")
    peer.close()
    sharded = ours(f"fsdp={NUM_DEVICES}", None)
    found = speeds({"fsdp=8": sharded, "one_device": one}, "float32", flags.turns)
    rows += rows_of(found, "float32", "sharded_ratio", benchmark="train_step", unit="tokens/s")
    for row in rows:
        row |= {"turns": flags.turns, "machine": f"{platform.machine()}, {flags.cores} cores", **one.ready}
        print(json.dumps(row), flush=True)
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        with flags.out.open("a") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)


if __name__ == "__main__":
    main()
