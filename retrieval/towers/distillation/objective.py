"""The objective of a distillation: the distance to the teacher's vectors, dev metrics, export into the same space."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int64

from jaxscale.nn.functional import Params
from retrieval.towers.distillation.batches import QueryBatches
from retrieval.towers.distillation.dev import DevQueries
from retrieval.towers.distillation.loss import DistillationLoss
from retrieval.towers.encoder import Encoder
from retrieval.towers.retriever_folder import LoadedTowers, save_retriever, with_query_tower


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationObjective:
    """What `jaxscale.train` trains: see `jaxscale.train.objective.Objective`.

    Attributes:
      computation: parameters and loss.
      queries: the training batches.
      dev: the dev queries.
      student: before the first step.
      teacher: the retriever whose query tower the student takes the place of.
      identity: all that makes the run what it is, as JSON values.
    """

    computation: DistillationLoss
    queries: QueryBatches
    dev: DevQueries
    student: Encoder
    teacher: LoadedTowers
    identity: dict[str, Any]

    @property
    def starting_params(self) -> Params:
        """The student's host weights before the first step."""
        return self.student.params

    @property
    def needs_one_process(self) -> str:
        """Why several processes can't distil; see `jaxscale.train.objective.NeedsOneProcess`."""
        return "the dev metrics of a distillation are computed by one process so far; give it all devices"

    def init_params(self, key: Array) -> Params:
        """Fresh weights, for their shapes; see `DistillationLoss.init_params`."""
        return self.computation.init_params(key)

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The distance from the teacher; see `DistillationLoss.loss`."""
        return self.computation.loss(params, batch, key)

    def sample_ids(self, number: int) -> Int64[np.ndarray, " B"]:
        """The queries of batch `number`, by their places."""
        return self.queries.examples(number)

    def batch(self, number: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """Rows of global batch `number`; its arrays are described at `QueryBatches.batch`.

        The whole batch is made whatever rows are asked for: how long it is padded depends on all of it.
        """
        return {name: leaf[rows] for name, leaf in self.queries.batch(number).items()}

    def batch_shapes(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """The shapes of every batch, by its buckets."""
        return self.queries.batch_shapes()

    def evaluate(self, params: Params, mesh: Mesh) -> dict[str, float]:
        """Cosine to the teacher, and nDCG@10 among the frozen documents where there are some."""
        return self.dev.evaluate(self.student.config, params, mesh, self.computation.compute_dtype)

    def export(self, params: Params, path: Path) -> None:
        """Writes the retriever folder: student, frozen document tower, and the space that the student joins."""
        query = dataclasses.replace(self.student, params=params)
        save_retriever(path, with_query_tower(self.teacher, query), replace=True)
