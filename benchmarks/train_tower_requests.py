"""What both sides of benchmarks/train_tower.py do alike: they draw tokens, and answer requests, one a line.

A request is {"dtype": "float32" | "bfloat16", "steps": number of steps}; the answer is {"seconds": ..., "loss": the
last one, "peak_bytes": the most memory that the process held so far, "held_bytes": what it holds now}. Between requests
a side uses no processor.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Trained(Protocol):
    """A model with an optimizer and one batch."""

    def run(self, num_steps: int) -> float:
        """Makes so many steps and returns the last one's loss."""
        ...


def tokens(setting: Mapping[str, Any]) -> list[np.ndarray]:
    """The ids of the queries and of the documents, [B S] each, words only."""
    draw, shape = np.random.default_rng(0), (setting["num_pairs"], setting["length"])
    return [draw.integers(1000, 30000, shape) for _ in range(2)]


def answer(make: Callable[[Mapping[str, Any], str], Trained]) -> None:
    """Makes steps as standard input asks.

    Args:
      make: a model in a number format, for the setting that is the program's first argument.
    """
    setting = json.loads(sys.argv[1])
    trained: dict[str, Trained] = {}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        dtype = request["dtype"]
        if dtype not in trained:
            trained[dtype] = make(setting, dtype)
        start = time.perf_counter()
        loss = trained[dtype].run(request["steps"])
        seconds = time.perf_counter() - start
        memory = {"peak_bytes": _resident_bytes("VmHWM"), "held_bytes": _resident_bytes("VmRSS")}
        print(json.dumps({"seconds": seconds, "loss": loss, **memory}), flush=True)


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
