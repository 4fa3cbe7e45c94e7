"""What a row of metrics says of speed: time per step, throughput, MFU, what was waited for, and which process for."""

import dataclasses

import jax

from jaxscale.observe import host
from jaxscale.observe.goodput import Goodput, Ledger
from jaxscale.observe.phases import Phases
from jaxscale.train.coordination import Coordination
from jaxscale.train.process_spread import ProcessSpread
from jaxscale.train.step_flops import StepFlops

# The values of a row that two equal runs do not share.
MEASURED = frozenset(
    {
        "step_time_s",
        "examples_per_s",
        "tokens_per_s_per_device",
        "model_flops_per_s_per_device",
        "mfu",
        "hfu",
        "data_wait_s",
        "checkpoint_blocked_s",
        "step_time_spread_s",
        "slowest_process",
        "peak_device_memory_bytes",
        "peak_host_memory_bytes",
    }
)


@dataclasses.dataclass
class _Since:
    """What was done since the last row."""

    goodput: Goodput
    num_steps: int = 0
    num_examples: int = 0
    num_tokens: int = 0
    model_flops: int = 0
    hardware_flops: int = 0


class Speedometer:
    """Measures a run from row to row by the time of its phases, so that no row pays for compiling or evaluating.

    Args:
      phases: of the run; the goodput ledger listens to them from here on.
      num_devices: of the mesh.
    """

    def __init__(self, phases: Phases, num_devices: int) -> None:
        self._phases, self._num_devices = phases, num_devices
        self._ledger = Ledger()
        phases.listen(self._ledger)
        self._since = _Since(goodput=self.goodput())
        # Of steps that no rollback has thrown away: seconds in steps when a checkpoint's state was there, by its step.
        self._step_s_at: dict[int, float] = {}
        self._spread = ProcessSpread(
            phases, Coordination.of_this_job(), rank=jax.process_index(), num_processes=jax.process_count()
        )

    def begin(self, step: int) -> None:
        """Counts from the state of `step`, which the run has or goes on from."""
        self.mark(step)
        self._spread.begin(step)

    def goodput(self) -> Goodput:
        """Where this process's time went so far."""
        return self._ledger.read(self._phases.now())

    def mark(self, step: int) -> None:
        """Remembers the state of `step` as one that a rollback may go back to."""
        self._step_s_at[step] = self._ledger.step_s

    def rolled_back(self, step: int) -> None:
        """Counts all steps since the state of `step` as wasted, and begins a row."""
        kept_s = self._step_s_at.get(step, 0.0)
        self._step_s_at = {known: step_s for known, step_s in self._step_s_at.items() if known <= step}
        self._ledger.waste(max(self._ledger.step_s - kept_s, 0.0))
        self._since = _Since(goodput=self.goodput())
        self._spread.begin(step)

    def before_logged(self, step: int) -> None:
        """Tells how long this process took, just before it dispatches `step`, which has a row."""
        self._spread.tell(step)

    def count(self, *, num_examples: int, num_tokens: int, flops: StepFlops | None) -> None:
        """Counts one step whose metrics have arrived."""
        since = self._since
        since.num_steps += 1
        since.num_examples += num_examples
        since.num_tokens += num_tokens
        since.model_flops += flops.model if flops else 0
        since.hardware_flops += flops.hardware if flops else 0

    def row(self, step: int, flops: StepFlops | None) -> dict[str, float]:
        """The measured values of a row, of the steps since the last one; and begins the next.

        `step_time_s` is the mean time per step, waiting for data included; compiling, evaluating, saving and restoring
        are left out. `mfu` and `hfu` are `StepFlops.model` and `hardware` over that time, the devices and their peak;
        where no peak is published, `model_flops_per_s_per_device` alone says what was reached. How far
        several processes are apart is defined in `process_spread`.

        Args:
          step: the row's.
          flops: of a step; None where nobody has counted.
        """
        since, now = self._since, self.goodput()
        self._since = _Since(goodput=now)
        spent = {phase: now.phases_s[phase] - since.goodput.phases_s[phase] for phase in now.phases_s}
        elapsed_s = max(spent["step"] + spent["data"], 1e-9)
        per_device = 1 / (elapsed_s * self._num_devices)
        row = {
            "step_time_s": elapsed_s / max(since.num_steps, 1),
            "examples_per_s": since.num_examples / elapsed_s,
            "data_wait_s": spent["data"],
            "checkpoint_blocked_s": spent["checkpoint"],
            "model_flops_per_s_per_device": since.model_flops * per_device,
        }
        if since.num_tokens:
            row["tokens_per_s_per_device"] = since.num_tokens * per_device
        if flops is not None and flops.peak_per_s_per_device is not None:
            row["mfu"] = since.model_flops * per_device / flops.peak_per_s_per_device
            row["hfu"] = since.hardware_flops * per_device / flops.peak_per_s_per_device
        return {name: float(f"{value:.5g}") for name, value in row.items()} | self._spread.row(step) | _peak_memory()


def _peak_memory() -> dict[str, float]:
    """The most that one device of this process, and the process itself, have held; bytes."""
    stats = jax.local_devices()[0].memory_stats() or {}
    on_device = {"peak_device_memory_bytes": stats["peak_bytes_in_use"]} if "peak_bytes_in_use" in stats else {}
    return {**on_device, "peak_host_memory_bytes": host.peak_process_bytes()}
