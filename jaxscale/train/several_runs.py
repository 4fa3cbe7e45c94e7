"""What `jaxscale train` asks of a job that is more than one run: that it trains them in a folder of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

from jaxscale.mesh import MeshSpec
from jaxscale.observe.heartbeat import Heartbeat
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.result import TrainResult
from jaxscale.train.signals import StopSignals


@runtime_checkable
class SeveralRuns(Protocol):
    """What a recipe returns for several runs, each from what the ones before have made: a frozen dataclass of data."""

    @property
    def training(self) -> TrainingIdentity:
        """What the loop uses of every run's identity."""
        ...

    @property
    def operation(self) -> Operation:
        """How every run is operated."""
        ...

    def check(self, mesh: MeshSpec) -> None:
        """Checks what no field can check alone; see `jaxscale.train.job.Job.check`."""
        ...

    def starting_from(self, path: str) -> Self:
        """The same job, its first run starting from the folder at `path`."""
        ...

    def train_in(
        self, out: Path, *, stop: StopSignals, command: Sequence[str], heartbeat: Heartbeat | None
    ) -> TrainResult:
        """Trains all runs from where the folder stands, and leaves the last one's model in `out/model`.

        Args:
          out: the folder; made where there is none.
          stop: the caller's signals.
          command: the words of the command line, to be kept in the folder.
          heartbeat: of this process, where something watches it.

        Raises:
          Preempted, Interrupted, DivergedError, UsageError, MachineError: as `jaxscale.train.loop.train`.
        """
        ...
