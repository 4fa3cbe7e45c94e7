"""What a language model's training computes: its first parameters, and the loss of the tokens it is to predict."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Key

from jaxscale.nn import functional
from jaxscale.nn.config import Remat, TransformerConfig
from jaxscale.nn.functional import Params
from jaxscale.nn.token_losses import chunked_token_loss
from jaxscale.nn.transformer import scaled_for_logits
from jaxscale.train.token_loss import num_predicted, token_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenPrediction:
    """A decoder's next token, or an encoder's masked tokens.

    Attributes:
      transformer: the model.
      z_loss: weight of the squared logarithm of the softmax's denominator.
      load_balance_loss: weight of the experts' load balance.
      router_z_loss: weight of the squared logarithm of the router's softmax's denominator.
      remat: what of each layer the backward pass computes again.
      compute_dtype: of matrix products.
      chunk_tokens: of a batch, the most whose scores exist at once; None for those of all.
    """

    transformer: TransformerConfig
    z_loss: float
    load_balance_loss: float
    router_z_loss: float
    remat: Remat
    compute_dtype: Literal["float32", "bfloat16"]
    chunk_tokens: int | None = None

    def init_params(self, key: Key[Array, ""]) -> Params:
        """Fresh weights; see `functional.init_params`."""
        return functional.init_params(self.transformer, key)

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], key: Key[Array, ""]
    ) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
        """The mean loss of a batch or a microbatch, in float32, and with experts their routers' losses, to be logged.

        Args:
          params: as `init_params` makes them.
          batch: int32 [B S] `tokens` and `targets`, and, where rows hold several documents, `segments` and `positions`.
          key: for dropout.
        """
        compute_dtype = jnp.dtype(self.compute_dtype)
        hidden, router = functional.apply_with_router(
            self.transformer,
            params,
            batch["tokens"],
            None,
            segments=batch.get("segments"),
            positions=batch.get("positions"),
            compute_dtype=compute_dtype,
            dropout_key=key if self.transformer.dropout_rate else None,
            remat=self.remat,
        )
        loss = self._loss_of_tokens(params, hidden, batch["targets"])
        if router is None:
            return loss, {}
        # Each sequence counts by its predicted tokens, as it does in the loss of tokens.
        counts = jnp.sum((batch["targets"] >= 0).astype(jnp.float32), axis=1)
        shares = counts / jnp.maximum(counts.sum(), 1.0)
        balance, z = jnp.sum(shares * router.load_balance), jnp.sum(shares * router.z)
        loss = loss + self.load_balance_loss * balance + self.router_z_loss * z
        return loss, {"load_balance": balance, "router_z": z}

    def part_weight(self, batch: Mapping[str, jax.Array]) -> Float32[Array, ""]:
        """The weight of a part of a batch in the batch's loss: its predicted tokens."""
        return num_predicted(batch["targets"])

    @property
    def averages_parts(self) -> bool:
        """Whether the loss of a batch is the mean of its parts' by their weights: not with dropout, which would leave
        the same out of every part.
        """
        return not self.transformer.dropout_rate

    def _loss_of_tokens(
        self, params: Params, hidden: Float[Array, "B S D"], targets: Int[Array, "B S"]
    ) -> Float32[Array, ""]:
        config, compute_dtype = self.transformer, jnp.dtype(self.compute_dtype)
        if self.chunk_tokens is None:
            scores_of = functional.logits if config.kind == "decoder" else functional.masked_token_logits
            return token_loss(
                scores_of(config, params, hidden, compute_dtype=compute_dtype), targets, z_loss=self.z_loss
            )
        weights, vocabulary_dim = functional.output_weights(config, params)
        loss, _ = chunked_token_loss(
            scaled_for_logits(config, hidden) if config.kind == "decoder" else hidden,
            weights,
            targets,
            vocabulary_dim=vocabulary_dim,
            chunk_tokens=self.chunk_tokens,
            z_loss=self.z_loss,
            compute_dtype=compute_dtype,
        )
        return loss

    def without_regularization(self) -> "TokenPrediction":
        """The same without dropout and without all that is added to the loss of tokens, to be evaluated."""
        return dataclasses.replace(
            self,
            transformer=dataclasses.replace(self.transformer, dropout_rate=0.0),
            z_loss=0.0,
            load_balance_loss=0.0,
            router_z_loss=0.0,
            remat=False,
        )
