"""The objective of a dual tower: contrastive loss on pairs, a retrieval metric on dev, export as a retriever folder."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.nn.functional import Params
from jaxscale.nn.keys import named_key
from retrieval.towers.batches import PairBatches
from retrieval.towers.dev import DevSet
from retrieval.towers.encoder import SIDES, Encoder, Side, TowerPair, apply_encoder, init_towers
from retrieval.towers.loss import Contrastive, excluded_documents, info_nce
from retrieval.towers.retriever_folder import join_towers, save_retriever


@dataclasses.dataclass(frozen=True, kw_only=True)
class DualTowerObjective:
    """What `jaxscale.train` trains: see `jaxscale.train.objective.Objective`.

    Attributes:
      towers: the two encoders.
      contrastive: the loss.
      pairs: the training batches.
      dev: the dev queries and the documents they are searched among.
      tokenizer: of both towers.
      compute_dtype: of the transformers' products.
      starting_params: host weights to start from, or None.
      identity: all that makes the run what it is, as JSON values.
    """

    towers: TowerPair
    contrastive: Contrastive
    pairs: PairBatches
    dev: DevSet
    tokenizer: Tokenizer
    compute_dtype: str
    starting_params: Params | None
    identity: dict[str, Any]

    def init_params(self, key: Array) -> Params:
        """Fresh weights: `{"towers": ..., "log_temperature": []}`, the latter only where it is learned."""
        params: Params = {"towers": init_towers(self.towers, key)}
        if self.contrastive.learn_temperature:
            params["log_temperature"] = jnp.asarray(math.log(self.contrastive.temperature), jnp.float32)
        return params

    def starting_from(self, towers: dict[str, Params] | None) -> Self:
        """The objective with host weights for its towers to start from; None: `init_params` draws them."""
        if towers is None:
            return self
        params: Params = {"towers": towers}
        if self.contrastive.learn_temperature:
            params["log_temperature"] = np.float32(math.log(self.contrastive.temperature))
        return dataclasses.replace(self, starting_params=params)

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """InfoNCE over the global batch (under gradient accumulation: over the microbatch)."""
        num_queries, num_passages, length = batch["document_tokens"].shape
        queries = self._encode("query", params, batch["query_tokens"], batch["query_mask"], key)
        flat = (num_queries * num_passages, length)
        documents = self._encode(
            "document", params, batch["document_tokens"].reshape(flat), batch["document_mask"].reshape(flat), key
        ).reshape(num_queries, num_passages, -1)
        excluded = excluded_documents(
            batch["document_ids"],
            batch["known_positives"],
            mask_same_document=self.contrastive.mask_same_document,
            mask_known_positives=self.contrastive.mask_known_positives,
        )
        temperature = self._temperature(params)
        loss, hits = info_nce(queries, documents, temperature, excluded, symmetric=self.contrastive.symmetric)
        return loss, {"in_batch_accuracy": jnp.mean(hits), "temperature": temperature}

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Global batch `step`; its arrays are described at `PairBatches.batch`."""
        return self.pairs.batch(step)

    def evaluate(self, params: Params, mesh: Mesh) -> dict[str, float]:
        """nDCG@10 and RR@10 of the dev queries."""
        configs = (self.towers.query, self.towers.document)
        towers = (self.towers.params(params["towers"], "query"), self.towers.params(params["towers"], "document"))
        return self.dev.evaluate(configs, towers, mesh, self.compute_dtype)

    def export(self, params: Params, path: Path) -> None:
        """Writes the retriever folder; `params` are host arrays."""
        query, document = (
            Encoder(
                config=self.towers.config(side),
                params=self.towers.params(params["towers"], side),
                tokenizer=self.tokenizer,
            )
            for side in SIDES
        )
        towers = join_towers(query=query, document=document, shared=self.towers.shared, score=self.towers.score)
        save_retriever(path, towers, replace=True)

    def _encode(
        self, side: Side, params: Params, tokens: Int[Array, "N S"], mask: Bool[Array, "N S"], key: Array
    ) -> Float[Array, "N E"]:
        return apply_encoder(
            self.towers.config(side),
            self.towers.params(params["towers"], side),
            tokens,
            mask,
            compute_dtype=jnp.dtype(self.compute_dtype),
            dropout_key=named_key(key, side),
        )

    def _temperature(self, params: Params) -> Float[Array, ""]:
        if self.contrastive.learn_temperature:
            return jnp.exp(params["log_temperature"])
        return jnp.asarray(self.contrastive.temperature, jnp.float32)
