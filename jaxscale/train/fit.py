"""Three functions are enough: trains a user's task on a mesh, in a run folder, and predicts with what was learned."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxscale.mesh import mesh_from_text
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.loop import train
from jaxscale.train.objective import Params
from jaxscale.train.result import TrainResult
from jaxscale.train.task import Task, TaskObjective, predictions


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a run has learned.

    Attributes:
      result: how the run ended.
      params: the parameters of the step that `Operation.best_metric` chose, else of the last; numpy arrays.
      mesh: where it was trained.
    """

    result: TrainResult
    params: Params
    mesh: Mesh
    _objective: TaskObjective = dataclasses.field(repr=False)

    @property
    def model(self) -> Any:
        """The user's model with the parameters, to be called."""
        return self._objective.adapter.bound(self.params)

    def predict(self, examples: Sequence[Any]) -> Any:
        """`Task.predict` of any number of examples: numpy arrays with a row for each."""
        return predictions(self._objective, self.params, examples, self.mesh)


def fit(
    task: Task,
    examples: Sequence[Any],
    *,
    out: str | Path,
    training: TrainingIdentity,
    operation: Operation | None = None,
    held_out: Sequence[Any] = (),
) -> Fitted:
    """Trains a task; the same call again goes on from the last checkpoint, and one that is done only reads.

    Where the arrays live on the mesh is derived from the task's own computation. Metrics, checkpoints, signals and
    rollback are those of every run: see docs/formats/run-folder.md.

    Args:
      task: the model and the three functions.
      examples: anything with a length that can be indexed; held-out ones too.
      out: the run folder.
      training: steps, batch, optimizer, seed.
      operation: mesh, checkpoints, logging, evaluation; the usual where None.
      held_out: examples to evaluate on.

    Raises:
      DataError, MachineError, UsageError, DivergedError, Preempted: as `jaxscale.train.loop.train`.
    """
    operation = operation or Operation()
    objective = TaskObjective(task=task, examples=examples, held_out=held_out, training=training)
    result = train(objective, training, operation, Path(out))
    params = objective.read_params(Path(result.model))
    return Fitted(result, params, mesh_from_text(operation.mesh), objective)
