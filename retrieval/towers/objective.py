"""The objective of a dual tower: contrastive loss on pairs, a retrieval metric on dev, export as a retriever folder."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.mesh import MeshSpec
from jaxscale.nn.functional import Params
from retrieval.towers.batches import PairBatches
from retrieval.towers.dev import DevSet
from retrieval.towers.encoder import SIDES, Encoder, TowerPair
from retrieval.towers.pair_loss import PairLoss
from retrieval.towers.retriever_folder import join_towers, save_retriever
from retrieval.towers.trained import apart, whole, without_factors


@dataclasses.dataclass(frozen=True, kw_only=True)
class DualTowerObjective:
    """What `jaxscale.train` trains: see `jaxscale.train.objective.Objective`.

    Attributes:
      computation: parameters and loss.
      pairs: the training batches.
      dev: the dev queries and the documents they are searched among.
      tokenizer: of documents.
      query_tokenizer: of queries; most often the same.
      starting_params: host weights to start from, or None.
      identity: all that makes the run what it is, as JSON values.
    """

    computation: PairLoss
    pairs: PairBatches
    dev: DevSet
    tokenizer: Tokenizer
    query_tokenizer: Tokenizer
    starting_params: Params | None
    identity: dict[str, Any]

    @property
    def towers(self) -> TowerPair:
        """The two encoders."""
        return self.computation.towers

    def init_params(self, key: Array) -> Params:
        """Fresh weights; see `PairLoss.init_params`."""
        return self.computation.init_params(key)

    def starting_from(self, towers: dict[str, Params] | None) -> Self:
        """The objective with host weights for its towers to start from; None: `init_params` draws them."""
        if towers is None:
            return self
        params: Params = {"towers": towers}
        if self.computation.contrastive.learn_temperature:
            params["log_temperature"] = np.float32(math.log(self.computation.contrastive.temperature))
        return dataclasses.replace(self, starting_params=apart(self.towers, params))

    def on(self, mesh: MeshSpec) -> Self:
        """The objective whose loss is computed on a mesh; see `jaxscale.train.objective.KnowsMesh`."""
        return dataclasses.replace(self, computation=self.computation.on(mesh))

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The contrastive loss; see `PairLoss.loss`."""
        return self.computation.loss(params, batch, key)

    def batch(self, number: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """Rows of global batch `number`; its arrays are described at `PairBatches.batch`.

        The whole batch is made whatever rows are asked for: how long it is padded depends on all of it.
        """
        return {name: leaf[rows] for name, leaf in self.pairs.batch(number).items()}

    @property
    def needs_one_process(self) -> str:
        """Why several processes can't train towers; see `jaxscale.train.objective.NeedsOneProcess`."""
        return "the dev metric of towers is computed by one process so far; give it all devices"

    def batch_shapes(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """The shapes of every batch, by its buckets."""
        return self.pairs.batch_shapes()

    def evaluate(self, params: Params, mesh: Mesh) -> dict[str, float]:
        """nDCG@10 and RR@10 of the dev queries."""
        configs, tree = (self.towers.query, self.towers.document), whole(params)["towers"]
        towers = (self.towers.params(tree, "query"), self.towers.params(tree, "document"))
        return self.dev.evaluate(configs, towers, mesh, self.computation.compute_dtype)

    def export(self, params: Params, path: Path) -> None:
        """Writes the retriever folder, factors of LoRA merged with their weights; `params` are host arrays."""
        tree = whole(params)["towers"]
        query, document = (
            Encoder(config=config, params=merged, tokenizer=tokenizer)
            for tokenizer, (config, merged) in zip(
                (self.query_tokenizer, self.tokenizer),
                (without_factors(self.towers.config(side), self.towers.params(tree, side)) for side in SIDES),
                strict=True,
            )
        )
        towers = join_towers(query=query, document=document, shared=self.towers.shared, score=self.towers.score)
        save_retriever(path, towers, replace=True)
