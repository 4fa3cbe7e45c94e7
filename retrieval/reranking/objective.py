"""The objective of a re-ranker: cross-entropy in groups, an order of dev candidates, export as a re-ranker's folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.nn.functional import Params
from jaxscale.train.slice_gradients import Weight
from retrieval.reranking.batches import GroupBatches
from retrieval.reranking.cross_encoder import CrossEncoder
from retrieval.reranking.dev import DevCandidates
from retrieval.reranking.folder import save_reranker
from retrieval.reranking.loss import GroupLoss


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerankerObjective:
    """What `jaxscale.train` trains: see `jaxscale.train.objective.Objective`.

    Attributes:
      computation: parameters and loss.
      groups: the training batches.
      dev: the dev queries and their candidates.
      tokenizer: of both texts.
      starting_params: host weights to start from, or None.
      identity: all that makes the run what it is, as JSON values.
    """

    computation: GroupLoss
    groups: GroupBatches
    dev: DevCandidates
    tokenizer: Tokenizer
    starting_params: Params | None
    identity: dict[str, Any]

    def init_params(self, key: Array) -> Params:
        """Fresh weights; see `GroupLoss.init_params`."""
        return self.computation.init_params(key)

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The cross-entropy in groups; see `GroupLoss.loss`."""
        return self.computation.loss(params, batch, key)

    @property
    def part_weight(self) -> Weight | None:
        """The weight of a part of a batch; see `jaxscale.train.objective.AveragesParts`."""
        return self.computation.part_weight if self.computation.averages_parts else None

    def batch(self, number: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """Rows of global batch `number`; its arrays are described at `GroupBatches.batch`.

        The whole batch is made whatever rows are asked for: how long it is padded depends on all of it.
        """
        return {name: leaf[rows] for name, leaf in self.groups.batch(number).items()}

    @property
    def needs_one_process(self) -> str:
        """Why several processes can't train it; see `jaxscale.train.objective.NeedsOneProcess`."""
        return "the dev metric of re-rankers is computed by one process so far; give it all devices"

    def batch_shapes(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """The shapes of every batch, by its bucket."""
        return self.groups.batch_shapes()

    def evaluate(self, params: Params, mesh: Mesh) -> dict[str, float]:
        """nDCG@10 and RR@10 of the dev candidates' order."""
        return self.dev.evaluate(self.computation.config, params, mesh, self.computation.compute_dtype)

    def export(self, params: Params, path: Path) -> None:
        """Writes the re-ranker's folder; `params` are host arrays."""
        model = CrossEncoder(config=self.computation.config, params=params, tokenizer=self.tokenizer)
        save_reranker(path, model, replace=True)
