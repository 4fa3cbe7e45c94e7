"""What a re-ranker's training step computes: for every query, the cross-entropy of its relevant document in a group."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxscale.nn.config import Remat
from jaxscale.nn.functional import Params
from retrieval.reranking.cross_encoder import CrossEncoderConfig, apply_cross_encoder, init_cross_encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupLoss:
    """The loss of a cross-encoder as a function of its parameters and a batch.

    Attributes:
      config: the cross-encoder.
      compute_dtype: of the transformer's products.
      remat: what of each of its layers the backward pass computes again.
    """

    config: CrossEncoderConfig
    compute_dtype: str
    remat: Remat = False

    def init_params(self, key: Array) -> Params:
        """Fresh weights; see `init_cross_encoder`."""
        return init_cross_encoder(self.config, key)

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], key: Array
    ) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
        """The mean over queries of the listwise cross-entropy, and how often the relevant document scores highest.

        Args:
          params: as `init_params` makes them.
          batch: described at `GroupBatches.batch`.
          key: for dropout.
        """
        shape = batch["tokens"].shape[:2]
        flat = {name: leaf.reshape(-1, leaf.shape[-1]) for name, leaf in batch.items()}
        scores = apply_cross_encoder(
            self.config,
            params,
            flat["tokens"],
            flat["mask"],
            flat.get("types"),
            compute_dtype=jnp.dtype(self.compute_dtype),
            dropout_key=key if self.config.transformer.dropout_rate else None,
            remat=self.remat,
        ).reshape(shape)
        hits = scores[:, 0] >= jnp.max(scores, axis=1)
        return jnp.mean(listwise(scores)), {"group_accuracy": jnp.mean(hits.astype(jnp.float32))}

    @property
    def averages_parts(self) -> bool:
        """Whether the loss of a batch is the mean of its parts' losses: not where dropout draws alike for all parts."""
        return not self.config.transformer.dropout_rate

    def part_weight(self, batch: Mapping[str, jax.Array]) -> Float32[Array, ""]:
        """The weight of a part of a batch in the batch's loss: its queries."""
        return jnp.float32(batch["tokens"].shape[0])


def listwise(scores: Float32[Array, "B P"]) -> Float32[Array, "B"]:
    """`logsumexp over p of s[p]  -  s[0]` for each group of a relevant document, the first, and others.

    Reference: Gao et al. 2021, Rethink Training of BERT Rerankers in Multi-Stage Retrieval Pipeline (localized
    contrastive estimation), https://arxiv.org/abs/2101.08751

    >>> listwise(jnp.zeros((1, 4))).tolist() == [float(jnp.log(4.0))]
    True
    """
    return jax.nn.logsumexp(scores, axis=1) - scores[:, 0]
