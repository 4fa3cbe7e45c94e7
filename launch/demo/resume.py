"""Trains the demo's towers, kills the training with SIGKILL, starts it again, and proves that nothing differs."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from jaxscale.errors import JaxscaleError, MachineError
from jaxscale.observe.metrics import read_metrics
from jaxscale.store import arrays
from jaxscale.store.checkpoints import Checkpoints
from jaxscale.train.run_folder import CHECKPOINTS

RECIPE = "two_tower_demo"
NUM_DEVICES = 8
# The checkpoint that both runs are compared at, and the step after which the first one is killed.
PREFIX_STEPS = 40
KILL_AFTER_STEP = 25
_START_TIMEOUT_S = 300.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeProof:
    """What became of a run that was killed, beside the same run left alone.

    Attributes:
      killed_after_step: the last step known to be done when SIGKILL was sent.
      compared_at_step: the step whose two checkpoints were compared.
      num_leaves: arrays in the state: parameters, optimizer state, counters.
      num_bytes: bytes compared.
      differing: the leaves that are not the same bit by bit.
    """

    killed_after_step: int
    compared_at_step: int
    num_leaves: int
    num_bytes: int
    differing: tuple[str, ...]

    @property
    def bitwise(self) -> bool:
        """Whether every bit is the same."""
        return not self.differing


def train_with_a_kill(corpus: Path, run: Path, *, num_steps: int | None = None) -> int:
    """Trains the demo's recipe to its end, killed once on the way.

    Args:
      corpus: the BEIR folder.
      run: the run folder to make.
      num_steps: steps in all; the recipe's own number when None.

    Returns:
      The last step known to be done when the first process was killed.
    """
    command = _train_command(corpus, run, num_steps)
    with subprocess.Popen(command, env=_environment()) as process:
        killed_after = _wait_for_step(process, run, KILL_AFTER_STEP)
        process.send_signal(signal.SIGKILL)
    print(f"demo: killed the training (SIGKILL) after step {killed_after}; the same command again:", file=sys.stderr)
    _run(command)
    return killed_after


def prove_resume(corpus: Path, run: Path, reference: Path, killed_after_step: int) -> ResumeProof:
    """Trains the first `PREFIX_STEPS` steps without a kill and compares both checkpoints of that step.

    Args:
      corpus: the BEIR folder.
      run: the run that was killed.
      reference: the folder for the run that is left alone.
      killed_after_step: what `train_with_a_kill` returned.
    """
    _run(_train_command(corpus, reference, PREFIX_STEPS))
    unbroken, resumed = (read_state(folder, PREFIX_STEPS) for folder in (reference, run))
    differing = {path for path in unbroken.keys() | resumed.keys() if not _same(unbroken.get(path), resumed.get(path))}
    return ResumeProof(
        killed_after_step=killed_after_step,
        compared_at_step=PREFIX_STEPS,
        num_leaves=len(unbroken),
        num_bytes=sum(leaf.nbytes for leaf in unbroken.values()),
        differing=tuple(sorted(differing)),
    )


def read_state(run: Path, step: int) -> dict[str, np.ndarray]:
    """Every leaf of a run's checkpoint by its path, read with full verification."""
    state, _ = Checkpoints(run / CHECKPOINTS).restore(step, None)
    return arrays.named_leaves(state)


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return one.tobytes() == other.tobytes()


def _train_command(corpus: Path, run: Path, num_steps: int | None) -> list[str]:
    words = [sys.executable, "-m", "launch.cli", "train", RECIPE, "--data.folder", str(corpus), "--out", str(run)]
    steps = [] if num_steps is None else ["--training.num-steps", str(num_steps)]
    keep = ["--operation.keep-every-steps", str(PREFIX_STEPS)]
    return [*words, *steps, *keep, "--devices", str(NUM_DEVICES)]


def _environment() -> dict[str, str]:
    """The environment without what emulates devices for this process."""
    return {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}


def _run(command: list[str]) -> None:
    done = subprocess.run(command, env=_environment(), check=False)
    if done.returncode != 0:
        raise _failed(command, done.returncode)


def _wait_for_step(process: subprocess.Popen[bytes], run: Path, step: int) -> int:
    """Waits until a run has logged `step`, and returns the last step it has logged by then."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _failed([str(word) for word in process.args], process.returncode)  # type: ignore[union-attr]
        rows = read_metrics(run) if (run / "metrics.jsonl").exists() else []
        if rows and rows[-1]["step"] >= step:
            return int(rows[-1]["step"])
        time.sleep(0.05)
    process.kill()
    raise MachineError(f"the training in {run} did not reach step {step} within {_START_TIMEOUT_S:.0f} s")


def _failed(command: list[str], code: int) -> JaxscaleError:
    return MachineError(f"`{' '.join(command)}` ended with exit code {code}; its messages stand above")
