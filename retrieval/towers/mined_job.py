"""The job of training a dual tower in rounds, on hard negatives mined between them: pure data, checked beforehand."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.observe.heartbeat import Heartbeat
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.planned_step import PlannedStep
from jaxscale.train.result import TrainResult
from jaxscale.train.signals import StopSignals
from retrieval.towers.job import DualTowerJob
from retrieval.towers.loss import Contrastive
from retrieval.towers.pairs import PairData
from retrieval.towers.rounds import Rounds, job_of_round, train_rounds
from retrieval.towers.start import Towers

# Where paths don't matter: nothing is read there.
_NOWHERE = Path("rounds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinedTowerJob:
    """All that says what a training of two towers in rounds is, and how it is operated.

    Attributes:
      towers: the encoders.
      data: the pairs; its hard negatives stay empty, as the rounds mine them.
      contrastive: the loss.
      training: seed, steps, batch, optimizer, of every round.
      operation: mesh, checkpoints, logging, of every round.
      rounds: how training and mining follow each other.
    """

    towers: Towers
    data: PairData
    contrastive: Contrastive
    training: TrainingIdentity
    operation: Operation
    rounds: Rounds

    def check(self, mesh: MeshSpec) -> None:
        """Checks what no field can check alone.

        Args:
          mesh: the resolved mesh the job will run on.

        Raises:
          UsageError: naming the field, what it is and what it may be.
        """
        if self.data.hard_negatives:
            raise UsageError(
                f"data.hard_negatives={self.data.hard_negatives!r} is given, but the rounds mine their own; leave it "
                "empty, and say how many in rounds.num_hard_negatives"
            )
        if self.contrastive.distill != "none":
            raise UsageError(
                f"contrastive.distill={self.contrastive.distill!r} learns a re-ranker's scores, which negatives that "
                "the rounds mine do not carry; use distill=none, or a job without rounds"
            )
        # The last round's batches have mined negatives, whatever the first one's have.
        for job in (job_of_round(self._plain(), self.rounds, 0, _NOWHERE), self._with_negatives()):
            job.check(mesh)
        if self.rounds.mine_first and not self.towers.init_from:
            raise UsageError(
                "rounds.mine_first mines with the model that the job starts from, and towers.init_from is not given; "
                "add `--towers.init-from DIR`"
            )

    def starting_from(self, path: str) -> Self:
        """The job with the transformer, tokenizer and weights of the folder at `path` to start from."""
        return dataclasses.replace(self, towers=dataclasses.replace(self.towers, init_from=path, transformer=None))

    def planned_step(self) -> PlannedStep:
        """The step of a round with mined negatives, on shapes alone; see `DualTowerJob.planned_step`."""
        return self._with_negatives().planned_step()

    def train_in(
        self, out: Path, *, stop: StopSignals, command: Sequence[str] = (), heartbeat: Heartbeat | None = None
    ) -> TrainResult:
        """Trains all rounds in a folder; see `retrieval.towers.rounds.train_rounds`."""
        return train_rounds(self._plain(), self.rounds, out, stop=stop, command=command, heartbeat=heartbeat)

    def _plain(self) -> DualTowerJob:
        """The first round's job, without mined negatives."""
        return DualTowerJob(
            towers=self.towers,
            data=self.data,
            contrastive=self.contrastive,
            training=self.training,
            operation=self.operation,
        )

    def _with_negatives(self) -> DualTowerJob:
        """A job with the batches of a round that has mined negatives, and with the towers of the first."""
        mined = dataclasses.replace(self.rounds, mine_first=True)
        return job_of_round(self._plain(), mined, 0, _NOWHERE)
