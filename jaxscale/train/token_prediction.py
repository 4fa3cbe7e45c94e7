"""What a language model's training computes: its first parameters, and the loss of the tokens it is to predict."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Key

from jaxscale.nn import functional
from jaxscale.nn.config import Remat, TransformerConfig
from jaxscale.nn.functional import Params
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
    """

    transformer: TransformerConfig
    z_loss: float
    load_balance_loss: float
    router_z_loss: float
    remat: Remat
    compute_dtype: Literal["float32", "bfloat16"]

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
        scores_of = functional.logits if self.transformer.kind == "decoder" else functional.masked_token_logits
        scores = scores_of(self.transformer, params, hidden, compute_dtype=compute_dtype)
        loss = token_loss(scores, batch["targets"], z_loss=self.z_loss)
        if router is None:
            return loss, {}
        loss = loss + self.load_balance_loss * router.load_balance + self.router_z_loss * router.z
        return loss, {"load_balance": router.load_balance, "router_z": router.z}

    def part_weight(self, batch: Mapping[str, jax.Array]) -> Float32[Array, ""]:
        """The weight of a part of a batch in the batch's loss: its predicted tokens."""
        return num_predicted(batch["targets"])

    @property
    def averages_parts(self) -> bool:
        """Whether the loss of a batch is the mean of its parts' by their weights: not with experts, whose balance is
        that of the whole batch, nor with dropout, which would leave the same out of every part.
        """
        return self.transformer.experts is None and not self.transformer.dropout_rate

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
