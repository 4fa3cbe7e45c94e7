"""What the fault suite has in common: writers to be killed in processes of their own, bit flips, and the counts."""

import multiprocessing
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxscale.store import failpoints

# kills, flips, cuts, and of all of them: lost, silent. Printed at the end of the run by conftest.py.
COUNTS: Counter[str] = Counter()

# A server that has imported everything and started no thread forks a process for each writer in a few milliseconds.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["jaxscale.store.checkpoints"])


def run_until_killed(target: Callable[..., None], *args: Any, failpoint: str) -> None:
    """Runs `target(*args)` in a process that kills itself with SIGKILL at a failpoint; fails if it does not come there.

    Args:
      target: a function of a module; it may call `mark_acknowledged`.
      *args: its arguments.
      failpoint: `name` or `name@nth`.
    """
    name, _, nth = failpoint.partition("@")
    process = _start(target, *args, failpoint=f"{name}:kill@{nth or 1}")
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"{failpoint} was not reached: exit code {process.exitcode}"
    COUNTS["kills"] += 1


def run_and_kill_after(target: Callable[..., None], *args: Any, delay_s: float) -> None:
    """Runs `target(*args)` in a process and kills it with SIGKILL `delay_s` seconds after it started."""
    process = _start(target, *args, failpoint=None)
    process.join(delay_s)
    process.kill()
    process.join()
    COUNTS["kills"] += 1


def start(target: Callable[..., None], *args: Any) -> Any:
    """Starts `target(*args)` in a process."""
    return _start(target, *args, failpoint=None)


def mark_acknowledged(file: Path, what: str) -> None:
    """Writes down, in a writer, that the durable layer acknowledged `what`."""
    with file.open("a") as acknowledged:
        acknowledged.write(f"{what}\n")
        acknowledged.flush()
        os.fsync(acknowledged.fileno())


def acknowledged(file: Path) -> list[str]:
    """What was marked as acknowledged, in order."""
    return file.read_text().split() if file.exists() else []


def flip_bit(file: Path, random_bits: random.Random) -> None:
    """Flips one random bit of a file; flipping it again with the same random state mends it."""
    position = random_bits.randrange(8 * file.stat().st_size)
    with file.open("r+b") as opened:
        opened.seek(position // 8)
        byte = opened.read(1)[0]
        opened.seek(position // 8)
        opened.write(bytes([byte ^ (1 << position % 8)]))
    COUNTS["flips"] += 1


def _start(target: Callable[..., None], *args: Any, failpoint: str | None) -> Any:
    process = _processes.Process(target=_run, args=(target, args, failpoint))
    process.start()
    return process


def _run(target: Callable[..., None], args: tuple[Any, ...], failpoint: str | None) -> None:
    if failpoint is not None:
        os.environ[failpoints.VARIABLE] = failpoint
    target(*args)
