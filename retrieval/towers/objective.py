"""The objective of a dual tower: contrastive loss on pairs, a retrieval metric on dev, export as a retriever folder."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxscale.data.batches import BatchSchedule
from jaxscale.data.buckets import pad_to_bucket
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.nn.functional import Params
from jaxscale.nn.keys import named_key
from retrieval.contract import Score
from retrieval.towers.dev import DevSet
from retrieval.towers.encoder import Encoder, EncoderConfig, apply_encoder, init_encoder
from retrieval.towers.loss import Contrastive, excluded_documents, info_nce
from retrieval.towers.pairs import PairTable, TokenTable
from retrieval.towers.retriever_folder import join_towers, save_retriever


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerPair:
    """Two encoders that are trained together.

    Attributes:
      query: the encoder of queries.
      document: the encoder of documents.
      shared: whether both use the same weights.
      score: how their vectors are compared.
    """

    query: EncoderConfig
    document: EncoderConfig
    shared: bool
    score: Score

    def query_params(self, params: Params) -> Params:
        """The query encoder's weights in a tree of `init_towers`."""
        return params["towers"]["shared" if self.shared else "query"]

    def document_params(self, params: Params) -> Params:
        """The document encoder's weights in a tree of `init_towers`."""
        return params["towers"]["shared" if self.shared else "document"]


def init_towers(towers: TowerPair, key: Array) -> dict[str, Params]:
    """Fresh weights: `{"shared": ...}`, or `{"query": ..., "document": ...}`."""
    if towers.shared:
        return {"shared": init_encoder(towers.query, named_key(key, "shared"))}
    return {
        "query": init_encoder(towers.query, named_key(key, "query")),
        "document": init_encoder(towers.document, named_key(key, "document")),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairBatches:
    """The training pairs as tokens, and which of them batch n holds.

    Attributes:
      table: who belongs to whom.
      queries: tokens of each query row.
      documents: tokens of each document row of the corpus.
      schedule: the pairs of every batch.
      query_buckets: padded lengths of queries.
      document_buckets: padded lengths of documents.
      num_hard_negatives: per query and step.
      pad_id: the token that fills.
    """

    table: PairTable
    queries: TokenTable
    documents: TokenTable
    schedule: BatchSchedule
    query_buckets: tuple[int, ...]
    document_buckets: tuple[int, ...]
    num_hard_negatives: int
    pad_id: int

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Global batch `step`: B queries, each with its own document and its hard negatives (P documents in all).

        Returns:
          `query_tokens` int32 and `query_mask` bool [B S]; `document_tokens` and `document_mask` [B P S];
          `document_ids` int32 [B P], rows of the corpus; `known_positives` int32 [B M].
        """
        pairs = self.table.pairs[self.schedule.indices(step)]
        query_rows, own = pairs[:, 0], pairs[:, 1]
        seed = (self.schedule.seed, step)
        negatives = self.table.choose_hard_negatives(query_rows, self.num_hard_negatives, seed)
        document_rows = np.concatenate([own[:, None], negatives], axis=1)
        query_tokens, query_mask = pad_to_bucket(self.queries.rows(query_rows), self.query_buckets, self.pad_id)
        flat_tokens, flat_mask = pad_to_bucket(
            self.documents.rows(document_rows.reshape(-1)), self.document_buckets, self.pad_id
        )
        return {
            "query_tokens": query_tokens,
            "query_mask": query_mask,
            "document_tokens": flat_tokens.reshape(*document_rows.shape, -1),
            "document_mask": flat_mask.reshape(*document_rows.shape, -1),
            "document_ids": document_rows,
            "known_positives": self.table.known_positives[query_rows],
        }


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

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """InfoNCE over the global batch (under gradient accumulation: over the microbatch)."""
        queries = apply_encoder(
            self.towers.query,
            self.towers.query_params(params),
            batch["query_tokens"],
            batch["query_mask"],
            compute_dtype=jnp.dtype(self.compute_dtype),
            dropout_key=named_key(key, "query"),
        )
        num_queries, num_passages, length = batch["document_tokens"].shape
        documents = apply_encoder(
            self.towers.document,
            self.towers.document_params(params),
            batch["document_tokens"].reshape(num_queries * num_passages, length),
            batch["document_mask"].reshape(num_queries * num_passages, length),
            compute_dtype=jnp.dtype(self.compute_dtype),
            dropout_key=named_key(key, "document"),
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
        return self.dev.evaluate(
            (self.towers.query, self.towers.document),
            (self.towers.query_params(params), self.towers.document_params(params)),
            mesh,
            self.compute_dtype,
        )

    def export(self, params: Params, path: Path) -> None:
        """Writes the retriever folder; `params` are host arrays."""
        towers = join_towers(
            query=Encoder(
                config=self.towers.query, params=self.towers.query_params(params), tokenizer=self.tokenizer
            ),
            document=Encoder(
                config=self.towers.document, params=self.towers.document_params(params), tokenizer=self.tokenizer
            ),
            shared=self.towers.shared,
            score=self.towers.score,
        )
        save_retriever(path, towers, replace=True)

    def _temperature(self, params: Params) -> Float[Array, ""]:
        if self.contrastive.learn_temperature:
            return jnp.exp(params["log_temperature"])
        return jnp.asarray(self.contrastive.temperature, jnp.float32)
