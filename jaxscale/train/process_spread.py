"""How far the processes of a run are apart: whom the others wait for in a step, and how long.

A step is synchronous: whatever its cause, a delay of one process is in the step time of all. So each process counts its
own time alone, `OwnTime`, and tells it just before it dispatches a step that will be logged. Once the first process has
that step's metrics, all have dispatched it, and so have told: it reads what is there and waits for nobody, and the step
itself knows nothing of it.
"""

import time
from collections.abc import Callable, Mapping

from jaxscale.observe.phases import Phase, Phases
from jaxscale.train.coordination import Coordination


class OwnTime:
    """Seconds in which a process kept the others waiting, or would have: `listen` of a `Phases` feeds it.

    It counts the wall time of `data` and of what is between steps (`idle`), and of `step` the processor time of this
    thread: some backends run a program in the call that dispatches it, so that the wall time there is also that of
    waiting for the others, who may be the slow ones. What a step does not consist of (compiling, evaluating, saving,
    restoring) is left out. A device that is slow itself does not show: its own host waits for it like all others.

    Args:
      thread_s: seconds of processor time of the calling thread.
    """

    def __init__(self, thread_s: Callable[[], float] = time.thread_time) -> None:
        self._thread_s = thread_s
        self._total_s = 0.0
        self._current: tuple[Phase, float, float] | None = None

    def __call__(self, phase: Phase, at_s: float) -> None:
        """Begins a phase at a time."""
        thread_s = self._thread_s()
        if self._current is not None:
            last, since_s, since_thread_s = self._current
            if last in ("data", "idle"):
                self._total_s += at_s - since_s
            elif last == "step":
                self._total_s += thread_s - since_thread_s
        self._current = (phase, at_s, thread_s)

    @property
    def total_s(self) -> float:
        """All of it up to the last change of phase."""
        return self._total_s


class ProcessSpread:
    """Tells the processes' own times to the first of them; does nothing in a process that is alone.

    Args:
      phases: of the run, from here on.
      job: where they are told; None for a process that is alone.
      rank: of this process.
      num_processes: of the job.
    """

    def __init__(self, phases: Phases, job: Coordination | None, *, rank: int, num_processes: int) -> None:
        self._job, self._rank, self._num_processes = job, rank, num_processes
        self._own = OwnTime()
        self._since_step, self._since_s = 0, 0.0
        if job is not None:
            phases.listen(self._own)

    def begin(self, step: int) -> None:
        """Counts from the state of `step`."""
        self._since_step, self._since_s = step, self._own.total_s

    def tell(self, step: int) -> None:
        """Tells this process's own time per step since the last call; all call it just before they dispatch `step`."""
        if self._job is not None:
            own_s = (self._own.total_s - self._since_s) / (step - self._since_step)
            self._job.put(f"{_folder(step)}/{self._rank}", repr(own_s))
            self.begin(step)

    def row(self, step: int) -> dict[str, float]:
        """`spread_of` what all told of a step whose metrics are here; empty in all processes but the first."""
        if self._job is None or self._rank != 0:
            return {}
        own_s = {int(rank): float(told) for rank, told in self._job.below(_folder(step)).items()}
        self._job.delete(_folder(step))
        return spread_of(own_s) if len(own_s) == self._num_processes else {}


def spread_of(own_s: Mapping[int, float]) -> dict[str, float]:
    """The values of a row of metrics.

    Args:
      own_s: every process's own time per step, in seconds.

    >>> spread_of({0: 0.01, 1: 0.25, 2: 0.02})
    {'step_time_spread_s': 0.24, 'slowest_process': 1}
    """
    slowest = max(sorted(own_s), key=lambda rank: own_s[rank])
    spread_s = own_s[slowest] - min(own_s.values())
    return {"step_time_spread_s": float(f"{spread_s:.5g}"), "slowest_process": slowest}


def _folder(step: int) -> str:
    return f"jaxscale/own_time/{step}"
