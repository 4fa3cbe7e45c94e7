"""What a dual tower's training step computes: its parameters, and the contrastive loss of a batch of pairs."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxscale.nn.config import Remat
from jaxscale.nn.functional import Params
from jaxscale.nn.keys import named_key
from retrieval.towers.encoder import Side, TowerPair, apply_encoder, init_towers
from retrieval.towers.loss import Contrastive, excluded_documents, info_nce
from retrieval.towers.trained import apart, whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLoss:
    """The loss of two towers as a function of their parameters and a batch.

    Attributes:
      towers: the two encoders.
      contrastive: the loss.
      compute_dtype: of the transformers' products.
      remat: what of each of their layers the backward pass computes again.
    """

    towers: TowerPair
    contrastive: Contrastive
    compute_dtype: str
    remat: Remat = False

    def init_params(self, key: Array) -> Params:
        """Fresh weights: `{"towers": ..., "log_temperature": []}`, the latter only where it is learned.

        What LoRA does not train is below `frozen` instead; see `trained.apart`.
        """
        params: Params = {"towers": init_towers(self.towers, key)}
        if self.contrastive.learn_temperature:
            params["log_temperature"] = jnp.asarray(math.log(self.contrastive.temperature), jnp.float32)
        return apart(self.towers, params)

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """InfoNCE over the global batch (under gradient accumulation: over the microbatch).

        Args:
          params: as `init_params` makes them.
          batch: described at `PairBatches.batch`.
          key: for dropout.
        """
        params = whole(params)
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
            remat=self.remat,
        )

    def _temperature(self, params: Params) -> Float[Array, ""]:
        if self.contrastive.learn_temperature:
            return jnp.exp(params["log_temperature"])
        return jnp.asarray(self.contrastive.temperature, jnp.float32)
